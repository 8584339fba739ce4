"""A RASP program as frozen, self-checking values: Program, Line, Op.

The four components of a line are those of arXiv:2410.00061: operation, first argument, second argument, and function
or predicate. The encoding of the result (categorical or numerical, arXiv:2301.05062 section 3) is part of the
operation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from functools import cached_property

from trade_hf.rasp.functions import Function, Kind

TOKENS = -2
INDICES = -1
INPUT_NAMES = {TOKENS: "tokens", INDICES: "indices"}

# A variable is TOKENS, INDICES or the number of an earlier line, counted from 0.
Variable = int


class RaspError(ValueError):
    """A program that is not well formed; the message says where and what was expected."""


class Type(Enum):
    CATEGORICAL = "categorical s-op"
    NUMERICAL = "numerical s-op"
    SELECTOR = "selector"
    SOP = "s-op"  # either encoding; only as the type of an argument

    __hash__ = object.__hash__  # Enum's own is slow

    def accepts(self, other: Type) -> bool:
        return self is other or (self is Type.SOP and other is not Type.SELECTOR)


class Op(Enum):
    """name, types of the arguments, type of the result, kind of function (None: takes none)."""

    MAP = ("map", (Type.SOP,), Type.CATEGORICAL, Kind.UNARY)
    MAP_NUMERICAL = ("map_numerical", (Type.SOP,), Type.NUMERICAL, Kind.UNARY)
    SEQUENCE_MAP = ("sequence_map", (Type.CATEGORICAL, Type.CATEGORICAL), Type.CATEGORICAL, Kind.BINARY)
    LINEAR_SEQUENCE_MAP = ("linear_sequence_map", (Type.NUMERICAL, Type.NUMERICAL), Type.NUMERICAL, Kind.LINEAR)
    SELECT = ("select", (Type.CATEGORICAL, Type.CATEGORICAL), Type.SELECTOR, Kind.PREDICATE)
    AGGREGATE = ("aggregate", (Type.SELECTOR, Type.CATEGORICAL), Type.CATEGORICAL, None)
    AGGREGATE_NUMERICAL = ("aggregate_numerical", (Type.SELECTOR, Type.NUMERICAL), Type.NUMERICAL, None)
    SELECTOR_WIDTH = ("selector_width", (Type.SELECTOR,), Type.CATEGORICAL, None)
    SELECTOR_WIDTH_NUMERICAL = ("selector_width_numerical", (Type.SELECTOR,), Type.NUMERICAL, None)

    __hash__ = object.__hash__  # Enum's own is slow

    def __init__(self, text: str, argument_types: tuple[Type, ...], result: Type, kind: Kind | None) -> None:
        self.text = text
        self.argument_types = argument_types
        self.result = result
        self.kind = kind

    @property
    def arity(self) -> int:
        return len(self.argument_types)


OPS: dict[str, Op] = {op.text: op for op in Op}
OP_RANK: dict[Op, int] = {op: rank for rank, op in enumerate(Op)}


@dataclass(frozen=True)
class Line:
    """One line: `op(*args, function)`. Raises RaspError if the components do not fit the operation.

    Attributes:
      folds: of a map in a text, whether tracr would fold it into the map that it reads (`folding.py`). As it stands,
        the line means what its components say.
    """

    op: Op
    args: tuple[Variable, ...]
    function: Function | None = None
    folds: bool = field(default=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        if len(self.args) != self.op.arity:
            raise RaspError(f"{self.op.text} takes {self.op.arity} argument(s), got {len(self.args)}")
        kind = self.function.kind if self.function else None
        if kind is not self.op.kind:
            wanted = f"a function of ({self.op.kind.value})" if self.op.kind else "no function"
            raise RaspError(f"{self.op.text} takes {wanted}, got {self.function}")


@dataclass(frozen=True)
class Program:
    """Lines in order; the last one is the output. Raises RaspError for a line that cannot stand where it does."""

    lines: tuple[Line, ...]

    def __post_init__(self) -> None:
        if not self.lines:
            raise RaspError("a program needs at least one line")
        for number in range(len(self.lines)):
            check_line(self.lines, number)
        if self.lines[-1].op.result is Type.SELECTOR:
            raise RaspError(f"line {len(self.lines)}: the output must be an s-op, got a selector")

    def type_of(self, variable: Variable) -> Type:
        return type_of(self.lines, variable)

    @property
    def output(self) -> Variable:
        return len(self.lines) - 1

    @cached_property
    def live_lines(self) -> list[Variable]:
        """The numbers of the lines that the output depends on, in order."""
        live = {self.output}
        for number in range(self.output, -1, -1):
            if number in live:
                live.update([argument for argument in self.lines[number].args if argument >= 0])
        return sorted(live)

    @cached_property
    def depths(self) -> dict[Variable, int]:
        """Longest path from the inputs to each live line; selectors do not count."""
        depth: dict[Variable, int] = {TOKENS: 0, INDICES: 0}
        for number in self.live_lines:
            line = self.lines[number]
            depth[number] = max([depth[argument] for argument in line.args]) + (line.op is not Op.SELECT)
        return depth

    def __len__(self) -> int:
        return len(self.lines)


def type_of(lines: Sequence[Line], variable: Variable) -> Type:
    return Type.CATEGORICAL if variable < 0 else lines[variable].op.result


def check_line(lines: Sequence[Line], number: int) -> None:
    """Raises RaspError if a line's arguments do not fit its operation, given the lines before it."""
    if misfit := find_misfit(lines, number):
        raise RaspError("line {}: expected {}, got {}".format(number + 1, *misfit))


def find_misfit(lines: Sequence[Line], number: int) -> tuple[str, str] | None:
    """What was expected and what came where a line's arguments do not fit its operation; None where they fit."""
    line = lines[number]
    for argument, wanted in zip(line.args, line.op.argument_types, strict=True):
        if not TOKENS <= argument < number:
            return (
                "tokens, indices or an earlier line",
                f"{variable_name(argument)}, which is used before it is defined",
            )
        if not wanted.accepts(type_of(lines, argument)):
            got = f"{variable_name(argument)}, a {type_of(lines, argument).value}"
            return f"a {wanted.value} as an argument of {line.op.text}", got
    if line.op is Op.LINEAR_SEQUENCE_MAP and line.args[0] == line.args[1]:
        return f"two different s-ops as arguments of {line.op.text}", f"{variable_name(line.args[0])} twice"
    return None


def variable_name(variable: Variable) -> str:
    """`tokens`, `indices`, `v1`, `v2`, …"""
    return INPUT_NAMES.get(variable) or f"v{variable + 1}"
