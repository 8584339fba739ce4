"""What RASP itself says of a program on one input, value by value, as tracr's evaluator does (`rasp/rasp.py`).

`evaluate.py` is as good where it says that an input is valid, and a thousand times as fast; elsewhere this decides:
averages of numbers that were to be moved, tables without an entry for a number, comparisons with None.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from trade_hf.rasp.functions import Function, Value
from trade_hf.rasp.program import INDICES, TOKENS, Line, Op, Program, Variable
from trade_hf.rasp.text import COMPARISONS


class NoAnswerError(ValueError):
    """RASP has no answer: its evaluator raises an error; the message says which."""


def answer(program: Program, tokens: Sequence[Value], causal: bool = False) -> list[Value | None]:
    """A program's outputs on one input, one for each token.

    Args:
      program: the program.
      tokens: the input.
      causal: selectors select no key after the query, as in tracr's `rasp/causal_eval.py`.

    Raises NoAnswerError where tracr's evaluator raises an error.
    """
    states: dict[Variable, Any] = {TOKENS: list(tokens), INDICES: list(range(len(tokens)))}
    for number in program.live_lines:
        line = program.lines[number]
        try:
            states[number] = _state(line, [states[argument] for argument in line.args], causal)
        except (TypeError, ValueError, ArithmeticError) as error:
            raise NoAnswerError(f"line {number + 1}: {error}") from None
    return states[program.output]


def _state(line: Line, args: list[Any], causal: bool) -> list:
    """Of an s-op its values, of a selector [query][key]."""
    function = line.function
    match line.op:
        case Op.MAP | Op.MAP_NUMERICAL:
            assert function is not None
            return [None if x is None else function(x) for x in args[0]]
        case Op.SEQUENCE_MAP | Op.LINEAR_SEQUENCE_MAP:
            assert function is not None
            return [None if x is None or y is None else function(x, y) for x, y in zip(*args, strict=True)]
        case Op.SELECT:
            assert function is not None
            keys, queries = args
            return [
                [_selects(function, k, q) and (not causal or place <= row) for place, k in enumerate(keys)]
                for row, q in enumerate(queries)
            ]
        case Op.AGGREGATE | Op.AGGREGATE_NUMERICAL:
            default = 0 if line.op is Op.AGGREGATE_NUMERICAL else None
            return [_mean([v for v, is_one in zip(args[1], row, strict=True) if is_one], default) for row in args[0]]
    return [sum(row) for row in args[0]]


def _selects(function: Function, key: Value | None, query: Value | None) -> bool:
    """What is written as `rasp.Comparison` refuses None, tables and other lambdas take it."""
    if (key is None or query is None) and function.name in COMPARISONS.values():
        raise ValueError("a comparison with None")
    return bool(function(key, query))  # type: ignore[arg-type]


def _mean(values: list, default: Value | None) -> Value | None:
    if not values:
        return default
    if len(values) == 1:
        return values[0]
    if not all(isinstance(value, int | float) for value in values):
        raise ValueError(f"an average of {values}")
    return sum(values) / len(values)
