"""Maps of maps, which tracr folds into one unless it is told `simplify=False` (its rasp.py, class Map)."""

from __future__ import annotations

from collections.abc import Iterable

from trade_hf.rasp.functions import Function, Kind, Value, find_named, plain
from trade_hf.rasp.program import Line, Op, Program, Variable
from trade_hf.rasp.tables import UnsupportedError, check_values, image, input_tables, sort_values, tabulate

_MAPS = (Op.MAP, Op.MAP_NUMERICAL)


def folded(program: Program, vocab: Iterable[Value], max_seq_len: int) -> Program:
    """The program that tracr makes of a text: a map that `folds` reads what the map below it reads, by both functions.

    Lines keep their numbers; one that nothing reads any more stays. Where the lower map is undefined, the upper one's
    function gets None, as in tracr: `x == 0` is False there. Raises UnsupportedError where it fails on that.
    """
    lines, vocab = list(program.lines), tuple(vocab)
    for number in program.live_lines:
        line = lines[number]
        if line.folds and line.args[0] >= 0 and lines[line.args[0]].op in _MAPS:
            lines[number] = _fold(lines, number, vocab, max_seq_len)
    return Program(tuple(lines)) if lines != list(program.lines) else program


def _fold(lines: list[Line], number: int, vocab: tuple[Value, ...], max_seq_len: int) -> Line:
    upper, lower = lines[number], lines[lines[number].args[0]]
    first, second = lower.function, upper.function
    assert first is not None and second is not None
    values = _values(lines, lower.args[0], vocab, max_seq_len)
    return Line(upper.op, lower.args, _composed(first, second, values, number))


def _values(lines: list[Line], variable: Variable, vocab: tuple[Value, ...], max_seq_len: int) -> tuple[Value, ...]:
    if variable < 0:
        return input_tables(tuple(sort_values(map(plain, vocab))), max_seq_len)[variable].values
    return tabulate(Program(tuple(lines[: variable + 1])), vocab, max_seq_len)[variable].values


def _composed(first: Function, second: Function, values: tuple[Value, ...], number: int) -> Function:
    """`second` of `first`, by a name where it has one over these values."""
    try:
        outputs = image(lambda value: second(first(value)), ((value,) for value in values))  # type: ignore[arg-type]
    except (TypeError, ValueError) as error:
        wanted = "simplify=False to keep the two maps apart, since tracr folds them into one"
        raise UnsupportedError(f"line {number + 1}: expected {wanted}, which fails: {error}") from None
    pairs = {x: y for x, y in zip(values, outputs, strict=True) if y is not None}
    check_values(tuple(pairs.values()))
    return find_named(Kind.UNARY, pairs)
