"""Every elementwise function and predicate of the language: one table of names, and explicit tables.

A *named* function is written as the body of its lambda (`x + 1`, `x == y`, `k <= q`); a function that has no name
is an *explicit table* from values to values. Argument names: `x` for a map, `x, y` for a sequence map, and
`k, q` (key, query) for the predicate of a select, as in tracr's `rasp.Select`.
"""

from __future__ import annotations

import ast
import functools
import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

# What an s-op can hold at one position. Tuples come from imported programs (tracr's `make_nary_sequencemap`).
Value = int | float | bool | str | tuple
Pairs = Mapping[Any, Any]  # arguments (pairs of arguments for two) → values
MAX_NUMBER, MAX_LENGTH = 1e15, 1_000  # of a value: without its sign; of a text or a tuple


class Kind(Enum):
    """What a function is for; it decides the number of arguments."""

    UNARY = "x"
    BINARY = "x, y"
    PREDICATE = "k, q"
    LINEAR = "factors"

    __hash__ = object.__hash__  # Enum's own is slow


@dataclass(frozen=True)
class Function:
    """A named function, an explicit table, or the two factors of a linear sequence map.

    Attributes:
      kind: what the function is for.
      name: the lambda's body as in `FUNCTIONS`, or a comparison with a text (see `named_by_text`); None for tables and
        factors.
      table: pairs (argument, value) for a map, ((x, y), value) for a sequence map, and for a predicate the pairs
        (key, query) that are selected, each with True. Arguments that are missing are undefined (None).
      factors: (first factor, second factor) of a linear sequence map.
    """

    kind: Kind
    name: str | None = None
    table: tuple[tuple[Value, Value], ...] | None = None
    factors: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        given = [part is not None for part in (self.name, self.table, self.factors)]
        if sum(given) != 1:
            raise ValueError("a Function is a name, a table or two factors: exactly one of them")
        if (self.kind is Kind.LINEAR) != (self.factors is not None):
            raise ValueError(f"factors belong to a linear sequence map, not to a function of {self.kind.value}")
        if self.name is not None and _lambda(self.kind, self.name) is None:
            raise ValueError(f"no function of ({self.kind.value}) is named {self.name!r}")

    @functools.cached_property
    def compute(self) -> Callable[..., Any]:
        """The function itself, without what `__call__` costs."""
        named = None if self.name is None else _lambda(self.kind, self.name)
        return named or self.__call__

    @functools.cached_property
    def _lookup(self) -> Mapping[Value, Value]:
        return dict(self.table or ())

    def __call__(self, *args: Value) -> Value | None:
        """The value at `args` (None where a table does not define it)."""
        if self.name is not None:
            return self.compute(*args)
        if self.factors is not None:
            return self.factors[0] * args[0] + self.factors[1] * args[1]  # type: ignore[operator]
        if self.kind is Kind.PREDICATE:
            return args in self._lookup
        return self._lookup.get(args[0] if self.kind is Kind.UNARY else args)

    def __str__(self) -> str:
        if self.name is not None:
            return self.name
        return f"{self.factors[0]:g} * x + {self.factors[1]:g} * y" if self.factors else "table"


def _remainder(x: Any, divisor: int) -> Any:
    """x % divisor. Raises TypeError for a text, which Python would take for a format of any width."""
    if isinstance(x, str):
        raise TypeError("expected numbers, got a text")
    return x % divisor


def _product(x: Any, y: Any) -> Any:
    """x * y. Raises ValueError for a text or a tuple times a number that is longer than a value may be."""
    for repeated, times in ((x, y), (y, x)):
        if isinstance(repeated, str | tuple) and isinstance(times, int) and len(repeated) * times > MAX_LENGTH:
            raise ValueError(f"expected texts of up to {MAX_LENGTH:,} characters")
    return x * y


def _unary() -> dict[str, Callable]:
    table: dict[str, Callable] = {"x": lambda x: x}
    for c in range(6):
        table[f"x == {c}"] = lambda x, c=c: x == c
    for c in range(1, 5):
        table[f"x < {c}"] = lambda x, c=c: x < c
    for c in range(6):
        table[f"x != {c}"] = lambda x, c=c: x != c
    for c in range(5):
        table[f"x > {c}"] = lambda x, c=c: x > c
    for c in (2, 3):
        table[f"x % {c}"] = lambda x, c=c: _remainder(x, c)
    table["x // 2"] = lambda x: x // 2
    table["abs(x)"] = lambda x: abs(x)
    table["-x"] = lambda x: -x
    for c in (1, 2, 3):
        table[f"x + {c}"] = lambda x, c=c: x + c
    for c in (1, 2, 3):
        table[f"x - {c}"] = lambda x, c=c: x - c
    for c in (1, 4):
        table[f"{c} - x"] = lambda x, c=c: c - x
    table["x * 2"] = lambda x: x * 2
    table["x * 3"] = lambda x: x * 3
    table["x * x"] = lambda x: x * x
    table["x / 2"] = lambda x: x / 2
    table["x < 0"] = lambda x: x < 0
    return table


_BINARY: dict[str, Callable] = {
    "x + y": lambda x, y: x + y,
    "x - y": lambda x, y: x - y,
    "y - x": lambda x, y: y - x,
    "x * y": lambda x, y: _product(x, y),
    "max(x, y)": lambda x, y: max(x, y),
    "min(x, y)": lambda x, y: min(x, y),
    "x == y": lambda x, y: x == y,
    "x != y": lambda x, y: x != y,
    "x < y": lambda x, y: x < y,
    "x <= y": lambda x, y: x <= y,
    "x > y": lambda x, y: x > y,
    "x >= y": lambda x, y: x >= y,
    "x and y": lambda x, y: x and y,
    "y and x": lambda x, y: y and x,
    "x or y": lambda x, y: x or y,
    "y or x": lambda x, y: y or x,
}

_PREDICATE: dict[str, Callable] = {
    "k == q": lambda k, q: k == q,
    "k != q": lambda k, q: k != q,
    "k < q": lambda k, q: k < q,
    "k <= q": lambda k, q: k <= q,
    "k > q": lambda k, q: k > q,
    "k >= q": lambda k, q: k >= q,
    "True": lambda k, q: True,
    "False": lambda k, q: False,
    "q == k + 1": lambda k, q: q == k + 1,
    "q == k + 2": lambda k, q: q == k + 2,
    "k == q + 1": lambda k, q: k == q + 1,
    "k == q + 2": lambda k, q: k == q + 2,
}

_LAMBDAS: dict[Kind, dict[str, Callable]] = {
    Kind.UNARY: _unary(),
    Kind.BINARY: _BINARY,
    Kind.PREDICATE: _PREDICATE,
    Kind.LINEAR: {},
}

_COMPARED = re.compile(r"(?P<variable>[xkq]) (?P<sign>==|!=) (?P<text>'.*'|\".*\")", re.DOTALL)


def named_by_text(kind: Kind, name: str) -> Function | None:
    """The function `x == 'a'` or `x != 'a'`, of a select `k == 'a'`, `q != 'a'` and so on; None for another name."""
    return None if _comparison(kind, name) is None else Function(kind, name=name)


def _lambda(kind: Kind, name: str) -> Callable | None:
    return _LAMBDAS[kind].get(name) or _comparison(kind, name)


def _comparison(kind: Kind, name: str) -> Callable | None:
    found = _COMPARED.fullmatch(name)
    variables = kind.value.split(", ")
    if found is None or kind not in (Kind.UNARY, Kind.PREDICATE) or found["variable"] not in variables:
        return None
    try:
        text = ast.literal_eval(found["text"])
    except (ValueError, SyntaxError):
        return None
    place, compare = variables.index(found["variable"]), operator.eq if found["sign"] == "==" else operator.ne
    return lambda *args: compare(args[place], text)


# The table of all named functions, in the order in which canonical form prefers them.
FUNCTIONS: dict[Kind, dict[str, Function]] = {
    kind: {name: Function(kind, name=name) for name in names} for kind, names in _LAMBDAS.items()
}


def compares(name: str) -> bool:
    """Whether a named function gives nothing but True and False."""
    return any(mark in name for mark in ("==", "!=", "<", ">"))


# Factors of linear sequence maps that have a token of their own; others are legal and stand for themselves.
LINEAR_FACTORS: tuple[tuple[int, int], ...] = ((1, 1), (1, -1), (-1, 1), (1, 2), (2, 1))


def linear(first: float, second: float) -> Function:
    """The function of a linear sequence map: first * x + second * y."""
    return Function(Kind.LINEAR, factors=(plain(first), plain(second)))


def tabulated(kind: Kind, pairs: Pairs) -> Function:
    """An explicit table; `pairs` maps arguments (pairs of arguments for two) to values."""
    return Function(kind, table=tuple((plain(key), plain(value)) for key, value in pairs.items()))


def find_named(kind: Kind, pairs: Pairs) -> Function:
    """The first named function that agrees with `pairs` everywhere, else the explicit table itself."""
    numeric = all(_is_number(part) for key in pairs for part in (key if isinstance(key, tuple) else (key,)))
    for name, function in FUNCTIONS[kind].items():
        if (numeric or not any(map(str.isdigit, name))) and agrees(function, pairs):
            return function
    if kind is Kind.PREDICATE:
        pairs = {key: True for key, selected in pairs.items() if selected}
    return tabulated(kind, pairs)


def find_comparison(kind: Kind, pairs: Pairs) -> Function | None:
    """A comparison with one text that agrees with `pairs` everywhere, if there is one: `x == 'a'`, `k != 'a'`."""
    if kind not in (Kind.UNARY, Kind.PREDICATE) or not all(isinstance(value, bool) for value in pairs.values()):
        return None
    variables = kind.value.split(", ")
    for place, variable in enumerate(variables):
        of = [key[place] if kind is Kind.PREDICATE else key for key in pairs]
        for sign, wanted in (("==", True), ("!=", False)):
            texts = {part for part, value in zip(of, pairs.values(), strict=True) if value is wanted}
            if len(texts) == 1 and isinstance(text := texts.pop(), str):
                function = named_by_text(kind, f"{variable} {sign} {text!r}")
                if function is not None and agrees(function, pairs):
                    return function
    return None


def _is_number(value: object) -> bool:
    return isinstance(value, int | float)


def plain(value: Any) -> Any:
    """A value with Python's own numbers in the place of numpy's, JAX's and torch's scalars."""
    if isinstance(value, tuple):
        return tuple(map(plain, value))
    return value.item() if hasattr(value, "item") and getattr(value, "shape", ()) == () else value


def is_small(value: Value) -> bool:
    """Whether a value is within what programs may hold: no number that is infinite or none, no long text."""
    if isinstance(value, int | float):
        return abs(value) <= MAX_NUMBER
    return len(value) <= MAX_LENGTH and (isinstance(value, str) or all(map(is_small, value)))


def agrees(function: Function, pairs: Pairs) -> bool:
    """Whether a function gives these values at these arguments."""
    try:
        for args, value in pairs.items():
            got = function(*args) if function.kind is not Kind.UNARY else function(args)
            if got != value or isinstance(got, str) != isinstance(value, str):
                return False
    except (TypeError, ValueError, ArithmeticError):  # say, "a" < 1: this name does not fit these values
        return False
    return True
