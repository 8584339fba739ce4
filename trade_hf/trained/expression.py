"""Functions of a program's lines: short expressions, and tables.

An expression is the body of a lambda, as `(x + y) % 5` or `{1, 3} if x else set()`. It is parsed once, held against a
short list of what may stand in it, and computed on whole arrays; nothing is ever evaluated as Python. A set of columns
is held as the sum of 2 to the power of each.
"""

from __future__ import annotations

import ast
import functools
import operator
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from trade_hf.rasp.program import RaspError
from trade_hf.rasp.syntax import BINARY

MOST_NODES = 24  # of an expression's syntax tree; whoever needs more writes a table
MOST_ENTRIES = 2_000
MOST_COLUMN = 52  # of a set: sums of powers of two up to it are exact
LARGEST = 2.0**53  # whole numbers up to it are exact

_OPERATIONS: dict[type, Callable] = {
    **BINARY,
    ast.BitOr: lambda x, y: (np.asarray(x).astype(np.int64) | np.asarray(y).astype(np.int64)).astype(np.float64),
}
_COMPARISONS: dict[type, Callable] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}
_CALLS: dict[str, tuple[int, Callable]] = {
    "min": (2, np.minimum),
    "max": (2, np.maximum),
    "abs": (1, np.abs),
    "round": (1, np.round),
}


@dataclass(frozen=True)
class Expression:
    """A function without a table. Raises RaspError for text that is no short expression of `names`."""

    text: str
    names: tuple[str, ...]

    def __post_init__(self) -> None:
        self.tree  # noqa: B018  (it checks the text)

    @functools.cached_property
    def tree(self) -> ast.expr:
        return _checked(self.text, self.names)

    @property
    def cells(self) -> int:
        return 0

    def __call__(self, *args: np.ndarray) -> np.ndarray:
        """The values at arrays of arguments, float64. Raises RaspError where there is none, as for a division by 0."""
        with np.errstate(all="ignore"):
            found = _value(self.tree, dict(zip(self.names, args, strict=True)))
            found = np.broadcast_to(found, np.broadcast_shapes(*(np.shape(a) for a in args))).astype(np.float64)
        if not (np.abs(found) <= LARGEST).all():
            raise RaspError(f"{self.text}: expected a number at every argument, got none or one above 2 ** 53")
        return found

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True)
class Table:
    """An explicit table.

    Attributes:
      entries: pairs (argument, value); the argument is a tuple of two for a function of two; values are numbers, or
        frozensets of columns.
      default: the value at all other arguments.
      names: of the arguments.
    """

    entries: tuple[tuple[float | tuple[float, float], float | frozenset[int]], ...]
    default: float | frozenset[int]
    names: tuple[str, ...]

    def __post_init__(self) -> None:
        if len(self.entries) > MOST_ENTRIES:
            raise RaspError(f"expected at most {MOST_ENTRIES:,} entries in a table, got {len(self.entries):,}")
        if len({key for key, _ in self.entries}) != len(self.entries):
            raise RaspError("expected distinct arguments in a table, got one twice")

    @property
    def cells(self) -> int:
        return len(self.entries)

    def __call__(self, *args: np.ndarray) -> np.ndarray:
        """The values at arrays of arguments, float64."""
        args = np.broadcast_arrays(*args)
        found = np.full(args[0].shape, to_number(self.default))
        keys, codes = np.unique(np.stack([a.ravel() for a in args]), axis=1, return_inverse=True)
        lookup = {key if isinstance(key, tuple) else (key,): to_number(value) for key, value in self.entries}
        values = np.array([lookup.get(tuple(key), to_number(self.default)) for key in keys.T.tolist()])
        return values[codes.reshape(found.shape)] if values.size else found

    def __str__(self) -> str:
        key = self.names[0] if len(self.names) == 1 else f"({', '.join(self.names)})"
        entries = ", ".join(f"{_shown(key)}: {_shown(value)}" for key, value in self.entries)
        return f"{{{entries}}}.get({key}, {_shown(self.default)})"


Function = Expression | Table


def to_number(value: float | frozenset[int]) -> float:
    """A value as arrays hold it: a set as the sum of 2 to the power of each column."""
    return float(sum(2**column for column in value)) if isinstance(value, frozenset) else float(value)


def to_set(number: float) -> frozenset[int]:
    """The set of columns that a number in an array stands for."""
    return frozenset(column for column in range(MOST_COLUMN) if int(number) >> column & 1)


def _shown(value: float | tuple[float, float] | frozenset[int]) -> str:
    if isinstance(value, tuple):
        return f"({', '.join(map(_shown, value))})"
    if isinstance(value, frozenset):
        return f"{{{', '.join(map(str, sorted(value)))}}}" if value else "set()"
    return str(int(value)) if float(value).is_integer() else repr(float(value))


@functools.lru_cache(maxsize=20_000)
def _checked(text: str, names: tuple[str, ...]) -> ast.expr:
    try:
        tree = ast.parse(text, mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise RaspError(f"expected an expression of {', '.join(names)}, got {text!r:.60}") from None
    if sum(isinstance(node, ast.expr) for node in ast.walk(tree)) > MOST_NODES:
        raise RaspError(f"expected an expression of at most {MOST_NODES} parts, got {text!r:.60}")
    _check(tree, names)
    return tree


def _check(node: ast.expr, names: tuple[str, ...]) -> None:
    """Raises RaspError for what may not stand in an expression."""
    parts: list[ast.expr] = []
    match node:
        case ast.Name(id=name) if name in names:
            pass
        case ast.Constant(value=bool() | int() | float() as value) if abs(value) <= LARGEST:
            pass
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATIONS:
            parts = [left, right]
        case ast.UnaryOp(op=ast.USub() | ast.Not(), operand=operand):
            parts = [operand]
        case ast.BoolOp(values=values):
            parts = values
        case ast.Compare(left=left, ops=[op], comparators=[right]) if type(op) in _COMPARISONS:
            parts = [left, right]
        case ast.IfExp(test=test, body=body, orelse=other):
            parts = [test, body, other]
        case ast.Call(func=ast.Name(id=name), args=args, keywords=[]) if (
            name in _CALLS and len(args) == _CALLS[name][0]
        ):
            parts = args
        case ast.Set() | ast.Call(func=ast.Name(id="set"), args=[], keywords=[]):
            set_of(node)
        case _:
            raise RaspError(f"expected numbers, {', '.join(names)} and operators, got `{ast.unparse(node)[:60]}`")
    for part in parts:
        _check(part, names)


def set_of(node: ast.expr) -> frozenset[int]:
    """The set that a syntax tree spells. Raises RaspError for another one."""
    if isinstance(node, ast.Call):
        return frozenset()
    columns = [part.value if isinstance(part, ast.Constant) else None for part in getattr(node, "elts", ())]
    if not columns or not all(type(column) is int and 0 <= column <= MOST_COLUMN for column in columns):
        raise RaspError(f"expected a set of columns from 0 to {MOST_COLUMN}, got `{ast.unparse(node)[:60]}`")
    return frozenset(columns)  # type: ignore[arg-type]


def _value(node: ast.expr, arguments: dict[str, np.ndarray]) -> np.ndarray:
    """What a checked expression gives at arrays of arguments; NaN or infinite where it has no value."""
    match node:
        case ast.Name(id=name):
            return arguments[name]
        case ast.Constant(value=value):
            return np.asarray(value, np.float64)  # type: ignore[arg-type]
        case ast.BinOp(left=left, op=op, right=right):
            return _OPERATIONS[type(op)](_value(left, arguments), _value(right, arguments))
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            return (_value(operand, arguments) == 0).astype(np.float64)
        case ast.UnaryOp(operand=operand):
            return -_value(operand, arguments)
        case ast.BoolOp(op=op, values=values):
            found = _value(values[0], arguments)
            for other in values[1:]:  # Python's own: `and` gives the first that is false, else the last
                keeps = (found == 0) if isinstance(op, ast.And) else (found != 0)
                found = np.where(keeps, found, _value(other, arguments))
            return found
        case ast.Compare(left=left, ops=[op], comparators=[right]):
            return np.asarray(
                _COMPARISONS[type(op)](_value(left, arguments), _value(right, arguments)), dtype=np.float64
            )
        case ast.IfExp(test=test, body=body, orelse=other):
            return np.where(_value(test, arguments) != 0, _value(body, arguments), _value(other, arguments))
        case ast.Call(func=ast.Name(id=name), args=args) if args:
            return _CALLS[name][1](*(_value(part, arguments) for part in args))
    return np.asarray(to_number(set_of(node)))
