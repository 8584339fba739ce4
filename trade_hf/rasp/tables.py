"""A program over a given vocabulary and length, with every function written out as a table.

Evaluator, canonical form and compiler all start here. Value sets follow tracr's `compiler/basis_inference.py`.
Values of a categorical s-op are numbered (its *codes*) in the order in which its table first produces them, so the
codes of a line depend on nothing that the compiled weights do not tell.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from trade_hf.rasp.functions import MAX_LENGTH, MAX_NUMBER, Function, Value, is_small, plain
from trade_hf.rasp.program import INDICES, TOKENS, Line, Op, Program, Type, Variable, variable_name

MAX_DOMAINS = 20_000  # remembered at once
MAX_PAIRS = 250_000  # of values that one function of two arguments is written out for
MAX_ENTRIES = 2_000_000  # of all tables of a program
MAX_VOCAB, MAX_SEQ_LEN = 512, 512
MAX_CHARACTERS = 5_000_000  # of all texts that an s-op can hold


class UnsupportedError(ValueError):
    """A well-formed program that Tracr cannot compile; the message gives the line and Tracr's reason."""


class Domain:
    """The values of an s-op, and what was computed of them.

    Equal values of equal types are one object (`Domain.of`), so that a table which was written out once is found again
    by a look at two names. True, 1 and 1.0 are equal but not of one type: what a program gives must not depend on what
    was computed before it.

    Attributes:
      values: a categorical s-op's values, by code; a numerical s-op's value set, ascending; () for a selector.
      tables: tables of named functions over these values, by operation, function's name and, of two arguments, the
        second one's domain.
      magnitude: the largest number without its sign.
      is_numeric: whether all are numbers.
    """

    __slots__ = ("is_numeric", "magnitude", "tables", "values")
    _all: ClassVar[dict[tuple, Domain]] = {}

    def __init__(self, values: tuple[Value, ...]) -> None:
        self.values = values
        self.tables: dict[tuple, Any] = {}
        numbers = [abs(value) for value in values if isinstance(value, int | float)]
        self.magnitude = max(numbers, default=0)
        self.is_numeric = len(numbers) == len(values)

    @classmethod
    def of(cls, values: tuple[Value, ...]) -> Domain:
        key = (values, *map(type, values))
        found = cls._all.get(key)
        if found is None:
            check_values(values)
            if len(cls._all) >= MAX_DOMAINS:
                forget_domains()
            found = cls._all[key] = cls(values)
        return found

    def __len__(self) -> int:
        return len(self.values)


def check_values(values: Sequence[Value]) -> None:
    """Raises UnsupportedError for a number, a text or texts beyond what any model holds."""
    for value in values:
        if not is_small(value):
            raise UnsupportedError(
                f"expected numbers of up to {MAX_NUMBER:g} and texts of up to {MAX_LENGTH} characters"
            )
    _check_characters(_characters(values))


def _characters(values: Iterable[Value]) -> int:
    return sum(len(value) for value in values if isinstance(value, str | tuple))


def _check_characters(count: int) -> None:
    if count > MAX_CHARACTERS:
        raise UnsupportedError(f"expected texts of at most {MAX_CHARACTERS:,} characters in all, got {count:,}")


def forget_domains() -> None:
    """Drop all that is remembered: nothing but time is lost."""
    for domain in Domain._all.values():
        domain.tables.clear()
    Domain._all.clear()


@dataclass(frozen=True, eq=False)
class Table:
    """The meaning of one line.

    Attributes:
      domain: of its values.
      entries: what the line does with codes. `map`: an output code for each input code (-1: undefined), or a number
        where the output is numerical; `sequence_map`: the same, for pairs in row-major order;
        `select`: 0 or 1 for (key, query) pairs in row-major order; otherwise ().
    """

    domain: Domain
    entries: tuple = ()

    @property
    def values(self) -> tuple[Value, ...]:
        return self.domain.values

    @functools.cached_property
    def codes(self) -> np.ndarray:
        """`entries` that are codes as an array, with a last one for what is undefined, -1."""
        return np.array((*self.entries, -1), np.int16 if len(self.domain) < 2**15 else np.int64)

    @functools.cached_property
    def numbers(self) -> np.ndarray:
        """`entries` that are numbers as an array, nan where there is none, with a last one for what is undefined, 0."""
        return np.array([np.nan if entry is None else float(entry) for entry in (*self.entries, 0)])

    @functools.cached_property
    def chosen(self) -> np.ndarray:
        """A select's `entries` as an array of truth values, with a last one."""
        return np.array((*self.entries, 0), bool)


def first_appearance(values: tuple) -> tuple[tuple[int, ...], tuple[Value, ...]]:
    """Codes by order of first appearance, None as -1, and the distinct values. Equal numbers share a code."""
    seen: dict[Value, int] = {}
    codes = tuple([-1 if value is None else seen.setdefault(value, len(seen)) for value in values])
    return codes, tuple(seen)


def lazy_image(compute: Callable[..., Any], arguments: Iterable[tuple]) -> Iterator[Value | None]:
    """Values of a function one by one; None where arithmetic fails, as in tracr's `utils/errors.py`."""
    for args in arguments:
        try:
            value = compute(*args)
        except ArithmeticError:
            value = None
        # No -0.0: it equals 0.0, but reads otherwise.
        yield 0.0 if value == 0 and isinstance(value, float) else value


def image(compute: Callable[..., Any], arguments: Iterable[tuple]) -> tuple:
    return tuple(lazy_image(compute, arguments))


def unary_image(function: Function, values: tuple) -> tuple:
    return image(function.compute, zip(values, strict=True))


def binary_image(function: Function, first: tuple, second: tuple) -> tuple:
    return image(function.compute, itertools.product(first, second))


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
    """The one order of values, here and in tracr's `craft/bases.py`: two are compared as such, or by their text where
    they do not compare, as 10 and "x".

    Such an order may run in a circle (9 < 10 < "10a" < 9), or tie (1 and "1"). What tracr makes of one hangs on the
    order of a set, which differs from run to run, and may be a model that is wrong; here it hangs on nothing but the
    values.
    """
    values = list(values)
    try:
        return sorted(values)  # type: ignore[type-var]
    except TypeError:
        return sorted(sorted(values, key=lambda value: (str(value), type(value).__name__)), key=_InTracrsOrder)


class _InTracrsOrder:
    """A value that is less than another as a direction of its is in tracr."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __lt__(self, other: _InTracrsOrder) -> bool:
        try:
            return self.value < other.value
        except TypeError:
            return str(self.value) < str(other.value)


def tabulate(program: Program, vocab: Iterable[Value], max_seq_len: int) -> Tables:
    """Write out every live line of `program`.

    Raises UnsupportedError if a line has no value at all, or averages values that are not 0 or 1 (Tracr's limits).
    """
    tables = input_tables(tuple(sort_values(map(plain, vocab))), max_seq_len)
    vocab = tables[TOKENS].values
    entries = 0
    for number in program.live_lines:
        tables[number] = tabulate_line(program.lines, number, tables)
        entries += len(tables[number].entries)
        if entries > MAX_ENTRIES:
            raise UnsupportedError(f"line {number + 1}: expected tables of at most {MAX_ENTRIES:,} entries in all")
    return Tables(program, vocab, max_seq_len, tables)


def input_tables(vocab: tuple[Value, ...], max_seq_len: int) -> dict[Variable, Table]:
    """The tables of `tokens` and `indices`. Raises UnsupportedError for a vocabulary or a length beyond what is run."""
    for what, size, most in (("tokens", len(vocab), MAX_VOCAB), ("positions", max_seq_len, MAX_SEQ_LEN)):
        if size > most:
            raise UnsupportedError(f"expected at most {most:,} {what}, got {size:,}")
    return {TOKENS: Table(Domain.of(vocab)), INDICES: Table(Domain.of(tuple(range(max_seq_len))))}


def tabulate_line(lines: Sequence[Line], number: int, tables: Mapping[Variable, Table]) -> Table:
    """The table of one line, given those of its arguments. Raises UnsupportedError as `tabulate` does."""
    line = lines[number]
    try:
        table = table_of(
            line.op, line.function, tuple([tables[a].domain for a in line.args]), len(tables[INDICES].domain)
        )
        if not table.values and line.op.result is not Type.SELECTOR:
            raise UnsupportedError(f"{variable_name(number)} has no value for any input")
    except UnsupportedError as error:
        raise UnsupportedError(f"line {number + 1}: {error}") from None
    except (TypeError, KeyError, ValueError, ArithmeticError) as error:
        raise UnsupportedError(f"line {number + 1}: {line.function} fails: {error}") from None
    return table


def table_of(op: Op, function: Function | None, args: tuple[Domain, ...], max_seq_len: int) -> Table:
    """The table of an operation over the values of its arguments; kept where the function has a name."""
    if function is None:
        key: tuple = (op, max_seq_len)
    elif function.name is not None:
        key = (op, function.name, args[-1])
    elif function.factors is not None:
        key = (op, function.factors, *map(type, function.factors), args[-1])
    else:  # tables that are equal may hold 1 and True
        return _write_out(op, function, args, max_seq_len)
    kept = args[-1 if op.arity > 1 and function is None else 0].tables
    found = kept.get(key)
    if found is None:
        found = kept[key] = _write_out(op, function, args, max_seq_len)
    return found


def _write_out(op: Op, function: Any, args: tuple[Domain, ...], max_seq_len: int) -> Table:
    values: list[tuple[Any, ...]] = [domain.values for domain in args]
    if function is not None and math.prod(map(len, args)) > MAX_PAIRS:
        raise UnsupportedError(f"expected at most {MAX_PAIRS:,} pairs of values, got {math.prod(map(len, args)):,}")
    check_values(function.factors if function is not None and function.factors else ())
    if op is Op.SEQUENCE_MAP:
        first, second = map(_characters, values)
        _check_characters(first * len(values[1]) + second * len(values[0]))
    match op:
        case Op.MAP:
            return _numbered(unary_image(function, values[0]))
        case Op.MAP_NUMERICAL:
            outputs = unary_image(function, values[0])
            for value in outputs:
                if value is not None and not isinstance(value, int | float):
                    raise UnsupportedError(f"a numerical map gives numbers, got {value!r} from {function}")
            return Table(_number_set(outputs), outputs)
        case Op.SEQUENCE_MAP:
            return _numbered(binary_image(function, *values))
        case Op.LINEAR_SEQUENCE_MAP:
            return Table(_number_set(binary_image(function, *values)))
        case Op.SELECT:
            return Table(_NO_VALUES, tuple(map(int, map(bool, binary_image(function, *values)))))
        case Op.AGGREGATE:
            return Table(args[1])
        case Op.AGGREGATE_NUMERICAL:
            if not {int(value) for value in values[1]} <= {0, 1}:
                raise UnsupportedError(f"a numerical aggregate averages 0 and 1 alone, got the values {values[1][:8]}")
            return Table(_number_set(v / n for v in values[1] for n in range(1, max_seq_len + 1)))
        case Op.SELECTOR_WIDTH | Op.SELECTOR_WIDTH_NUMERICAL:
            return Table(Domain.of(tuple(range(max_seq_len + 1))))
    raise AssertionError(op)


_NO_VALUES = Domain.of(())


def _numbered(outputs: tuple) -> Table:
    codes, values = first_appearance(outputs)
    return Table(Domain.of(values), codes)


def _number_set(values: Iterable) -> Domain:
    return Domain.of(tuple(sorted({value for value in values if value is not None})))
