"""A program over a given vocabulary and length, with every function written out as a table.

Evaluator, canonical form and compiler all start here. Value sets follow tracr's `compiler/basis_inference.py`.
Values of a categorical s-op are numbered (its *codes*) in the order in which its table first produces them, so the
codes of a line depend on nothing that the compiled weights do not tell.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

from trade_hf.rasp.functions import Function, Value
from trade_hf.rasp.program import INDICES, TOKENS, Line, Op, Program, Type, Variable, live_lines, variable_name

T = TypeVar("T")


class UnsupportedError(ValueError):
    """A well-formed program that Tracr cannot compile; the message gives the line and Tracr's reason."""


@dataclass(frozen=True)
class Table:
    """The meaning of one line.

    Attributes:
      values: a categorical s-op's values, by code; a numerical s-op's value set, ascending; () for a selector.
      entries: what the line does with codes. `map`: an output code for each input code (-1: undefined), or a number
        where the output is numerical; `sequence_map`: the same, for pairs in row-major order;
        `select`: 0 or 1 for (key, query) pairs in row-major order; otherwise ().
    """

    values: tuple[Value, ...]
    entries: tuple = ()


def cached_by_type(maxsize: int) -> Callable[[Callable[..., T]], Callable[..., T]]:
    """A cache that tells True from 1 from 1.0 within tuples: they are equal, but what a program gives must not depend
    on what was computed before it."""

    def cached(function: Callable[..., T]) -> Callable[..., T]:
        @functools.lru_cache(maxsize)
        def remembered(types: tuple, *args: Any) -> T:
            return function(*args)

        @functools.wraps(function)
        def call(*args: Any) -> T:
            return remembered(tuple([tuple(map(type, arg)) for arg in args if isinstance(arg, tuple)]), *args)

        return call

    return cached


@cached_by_type(maxsize=20_000)
def first_appearance(values: tuple) -> tuple[tuple[int, ...], tuple[Value, ...]]:
    """Codes by order of first appearance, None as -1, and the distinct values. Equal numbers share a code."""
    seen: dict[Value, int] = {}
    codes = tuple(-1 if value is None else seen.setdefault(value, len(seen)) for value in values)
    return codes, tuple(seen)


def image(function: Function, arguments: Iterable[tuple]) -> tuple:
    """Function values; None where arithmetic fails, as in tracr's `utils/errors.py`."""

    def safe(args: tuple) -> Value | None:
        try:
            value = function(*args)
        except ArithmeticError:
            return None
        return 0.0 if value == 0 and isinstance(value, float) else value  # no -0.0: it equals 0.0, but reads otherwise

    return tuple(safe(args) for args in arguments)


def unary_image(function: Function, values: tuple) -> tuple:
    named = function.name is not None  # tables that are equal may hold 1 and True
    return _named_unary(function, values) if named else image(function, ((value,) for value in values))


def binary_image(function: Function, first: tuple, second: tuple) -> tuple:
    if function.name is not None:
        return _named_binary(function, first, second)
    return image(function, itertools.product(first, second))


@cached_by_type(maxsize=20_000)
def _named_unary(function: Function, values: tuple) -> tuple:
    return image(function, ((value,) for value in values))


@cached_by_type(maxsize=20_000)
def _named_binary(function: Function, first: tuple, second: tuple) -> tuple:
    return image(function, itertools.product(first, second))


@dataclass(frozen=True)
class Tables:
    """All tables of a program's live lines, by variable, with `tokens` and `indices` among them."""

    program: Program
    vocab: tuple[Value, ...]
    max_seq_len: int
    by_variable: dict[Variable, Table]

    def __getitem__(self, variable: Variable) -> Table:
        return self.by_variable[variable]


def sort_values(values: Iterable[Value]) -> list[Value]:
    """Ascending, or by their text where they do not compare, as tracr's `craft/bases.py` orders directions."""
    values = list(values)
    try:
        return sorted(values)  # type: ignore[type-var]
    except TypeError:
        return sorted(values, key=str)


def tabulate(program: Program, vocab: Iterable[Value], max_seq_len: int) -> Tables:
    """Write out every live line of `program`.

    Raises UnsupportedError if a line has no value at all, or averages values that are not 0 or 1 (Tracr's limits).
    """
    vocab = tuple(sort_values(vocab))
    tables: dict[Variable, Table] = {TOKENS: Table(vocab), INDICES: Table(tuple(range(max_seq_len)))}
    for number in live_lines(program):
        try:
            tables[number] = _tabulate_line(program, program.lines[number], tables, max_seq_len)
        except (TypeError, KeyError) as error:
            raise UnsupportedError(f"line {number + 1}: {program.lines[number].function} fails: {error}") from None
        if not tables[number].values and program.type_of(number) is not Type.SELECTOR:
            raise UnsupportedError(f"line {number + 1}: {variable_name(number)} has no value for any input")
    return Tables(program, vocab, max_seq_len, tables)


def _tabulate_line(program: Program, line: Line, tables: dict[Variable, Table], max_seq_len: int) -> Table:
    args: list[Any] = [tables[argument].values for argument in line.args]
    function: Any = line.function  # of the kind that the operation asks for (Line checks it)
    match line.op:
        case Op.MAP | Op.MAP_NUMERICAL:
            return _tabulate_map(line, args[0])
        case Op.SEQUENCE_MAP:
            codes, values = first_appearance(binary_image(function, args[0], args[1]))
            return Table(values, codes)
        case Op.LINEAR_SEQUENCE_MAP:
            return Table(_number_set(binary_image(function, args[0], args[1])))
        case Op.SELECT:
            return Table((), tuple(map(int, map(bool, binary_image(function, args[0], args[1])))))
        case Op.AGGREGATE:
            return Table(args[1])
        case Op.AGGREGATE_NUMERICAL:
            if not {int(value) for value in args[1]} <= {0, 1}:
                raise UnsupportedError(
                    f"a numerical aggregate averages 0 and 1 alone, got the values {list(args[1])[:8]} "
                    f"of {variable_name(line.args[1])}"
                )
            return Table(_number_set(v / n for v in args[1] for n in range(1, max_seq_len + 1)))
        case Op.SELECTOR_WIDTH | Op.SELECTOR_WIDTH_NUMERICAL:
            return Table(tuple(range(max_seq_len + 1)))
    raise AssertionError(line.op)


def _tabulate_map(line: Line, inputs: tuple) -> Table:
    assert line.function is not None
    outputs = unary_image(line.function, inputs)
    if line.op is Op.MAP:
        codes, values = first_appearance(outputs)
        return Table(values, codes)
    for value in outputs:
        if value is not None and not isinstance(value, int | float):
            raise UnsupportedError(f"a numerical map gives numbers, got {value!r} from {line.function}")
    return Table(_number_set(outputs), outputs)


def _number_set(values: Iterable) -> tuple:
    return tuple(sorted({value for value in values if value is not None}))
