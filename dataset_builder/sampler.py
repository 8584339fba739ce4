"""Random RASP programs, after Algorithm 1 of arXiv:2410.00061.

A pool of available inputs starts with tokens and indices. Repeat: choose an operation, fill its arguments with
variables, put the new variable into the pool in place of those it used; until one entry is left, which is the output.
So no variable is wasted. A program that is not worth learning from is rejected with a reason, and the reason counted.

The same seed gives the same programs on any machine: only `random.Random.random` is drawn from.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from dataset_builder.rejection import Rejected, Screen
from trade_hf.rasp.canonical import Structure, name_functions
from trade_hf.rasp.functions import FUNCTIONS, LINEAR_FACTORS, Function, Kind, linear
from trade_hf.rasp.program import INDICES, TOKENS, Line, Op, Program, Type, Variable

T = TypeVar("T")


@dataclass(frozen=True)
class SamplerConfig:
    """What is sampled. Lengths count the lines of the canonical form."""

    vocab: tuple[int, ...] = (0, 1, 2, 3, 4)
    max_seq_len: int = 5
    min_lines: int = 3
    max_lines: int = 8
    max_values: int = 16  # of a categorical s-op
    max_magnitude: int = 30  # of a value
    max_d_model: int = 96
    max_hidden: int = 160  # units of one MLP block


@dataclass(frozen=True)
class Sample:
    """A canonical program with what it was made for."""

    program: Program
    structure: Structure
    vocab: tuple[int, ...]
    max_seq_len: int


# Relative frequencies of operations; those that do not fit what is in the pool are left out.
OP_WEIGHTS: dict[Op, float] = {
    Op.MAP: 3.0,
    Op.MAP_NUMERICAL: 1.0,
    Op.SEQUENCE_MAP: 3.0,
    Op.LINEAR_SEQUENCE_MAP: 1.0,
    Op.SELECT: 4.0,
}
INDICES_FROM_START = 0.5  # share of programs whose pool starts with indices too
REUSE = 0.3  # chance that an argument may be a variable that was used before
ONE_KEY = 0.5  # share of selects that compare with indices for equality, so that an aggregate can move values
KEEP_SELECTOR = 0.15  # chance that a selector stays available after it was used


# Relative frequencies of functions by name; what is not listed has weight 1. Of names for the same split of values
# (`x > 2` and `x < 3`, `x + 1` and `x + 3`) one is frequent: which of them is meant is often not in the weights.
_RARE = 0.15
FUNCTION_WEIGHTS: dict[str, float] = {
    "x": 0.0,
    **{f"x != {c}": _RARE for c in range(6)},
    **{f"x > {c}": _RARE for c in range(5)},
    **dict.fromkeys(("x + 2", "x + 3", "x - 2", "x - 3", "1 - x", "x * 3", "x / 2", "x * x", "abs(x)", "x < 0"), _RARE),
    **dict.fromkeys(("x % 2", "x % 3", "x // 2", "4 - x"), 2.0),
    **dict.fromkeys(("x != y", "x <= y", "x >= y", "x and y", "y and x", "x or y", "y or x"), _RARE),
    "False": 0.0,
}


def _weights(kind: Kind, only: Callable[[str], bool] = lambda name: True) -> dict[str, float]:
    return {name: FUNCTION_WEIGHTS.get(name, 1.0) for name in FUNCTIONS[kind] if only(name)}


def _compares(name: str) -> bool:
    return any(mark in name for mark in ("==", "!=", "<", ">"))


_DRAWN = {kind: _weights(kind) for kind in (Kind.UNARY, Kind.BINARY, Kind.PREDICATE)}
_COMPARISONS = _weights(Kind.UNARY, _compares)
_ONE_KEY_PREDICATES = [name for name in FUNCTIONS[Kind.PREDICATE] if "==" in name]


class Draw:
    """Choices that are the same on any machine and any Python."""

    def __init__(self, seed: int | str) -> None:
        self._random = random.Random(f"trade-{seed}")

    def chance(self, probability: float) -> bool:
        return self._random.random() < probability

    def below(self, count: int) -> int:
        return int(self._random.random() * count)

    def one_of(self, items: Sequence[T]) -> T:
        return items[self.below(len(items))]

    def weighted(self, weights: dict[T, float]) -> T:
        point = self._random.random() * sum(weights.values())
        for item, weight in weights.items():
            point -= weight
            if point < 0:
                return item
        return item


def sample_programs(
    seed: int | str, config: SamplerConfig = SamplerConfig(), reasons: Counter | None = None
) -> Iterator[Sample]:
    """An endless stream of canonical programs. `reasons` counts what was rejected and why (and "kept")."""
    draw = Draw(seed)
    screen = Screen.of(config)
    reasons = Counter() if reasons is None else reasons
    while True:
        try:
            program = draw_program(draw, config)
            structure = screen.check(program)
            canonical = name_functions(structure)
            if any(line.function and line.function.table is not None for line in canonical.lines):
                raise Rejected("no names found")  # within the trials that the search for names is given
        except Rejected as rejected:
            reasons[rejected.reason] += 1
            continue
        reasons["kept"] += 1
        yield Sample(canonical, structure, config.vocab, config.max_seq_len)


def draw_program(draw: Draw, config: SamplerConfig) -> Program:
    """One program by Algorithm 1, not yet judged. Raises Rejected if the pool does not come down to one in time."""
    # Long programs are rejected more often: draw a length in proportion to itself, so that what is kept is more even.
    target = draw.weighted({n: float(n) for n in range(config.min_lines, config.max_lines + 1)})
    state = _Pool([TOKENS, INDICES] if draw.chance(INDICES_FROM_START) else [TOKENS])
    while not (state.is_done() and len(state.lines) >= target):
        if len(state.lines) >= config.max_lines + 1:
            raise Rejected("too long")
        state.add(draw, shrink=len(state.pool) - 1 >= target - len(state.lines))
    return Program(tuple(state.lines))


@dataclass
class _Pool:
    """Variables that wait to be used, and the lines so far."""

    pool: list[Variable]
    lines: list[Line] = field(default_factory=list)
    types: dict[Variable, Type] = field(default_factory=lambda: {TOKENS: Type.CATEGORICAL, INDICES: Type.CATEGORICAL})
    by_type: dict[Type, list[Variable]] = field(  # what fits where a type is wanted, in order of lines
        default_factory=lambda: {type_: [TOKENS, INDICES] if type_.accepts(Type.CATEGORICAL) else [] for type_ in Type}
    )
    binary_numbers: list[Variable] = field(
        default_factory=list
    )  # hold 0 and 1 alone: a numerical aggregate can average

    def is_done(self) -> bool:
        return len(self.pool) == 1 and self.pool[0] >= 0 and self.types[self.pool[0]] is not Type.SELECTOR

    def waiting(self, wanted: Type) -> list[Variable]:
        return [v for v in self.pool if wanted.accepts(self.types[v])]

    def add(self, draw: Draw, shrink: bool) -> None:
        """One more line; with `shrink`, one that uses up more than it adds where that is possible."""
        op = self.choose(draw, shrink)
        args = self.arguments(draw, op, shrink)
        function = _function(draw, op)
        if op is Op.SELECT and draw.chance(ONE_KEY):
            args = (INDICES, args[1]) if draw.chance(0.75) else (args[0], INDICES)
            function = FUNCTIONS[Kind.PREDICATE][draw.one_of(_ONE_KEY_PREDICATES)]
        self.append(Line(op, args, function))
        for argument in args:
            if argument in self.pool:
                keeps = op is not Op.SELECT and self.types[argument] is Type.SELECTOR and draw.chance(KEEP_SELECTOR)
                if not (keeps and not shrink):
                    self.pool.remove(argument)
        self.pool.append(len(self.lines) - 1)

    def append(self, line: Line) -> None:
        number, result = len(self.lines), line.op.result
        self.lines.append(line)
        self.types[number] = result
        for wanted, variables in self.by_type.items():
            if wanted.accepts(result):
                variables.append(number)
        if line.op is Op.MAP_NUMERICAL and _compares(str(line.function)):
            self.binary_numbers.append(number)

    def choose(self, draw: Draw, shrink: bool) -> Op:
        if self.waiting(Type.SELECTOR):
            numerical = bool(self.binary_numbers)
            moves = any(self.selects_one_key(v) for v in self.waiting(Type.SELECTOR))
            ops = {Op.AGGREGATE: 6.0 if moves else 1.0, Op.SELECTOR_WIDTH: 2.0, Op.SELECTOR_WIDTH_NUMERICAL: 0.4}
            return draw.weighted(ops | ({Op.AGGREGATE_NUMERICAL: 6.0} if numerical else {}))
        weights = dict(OP_WEIGHTS)
        if len(self.by_type[Type.NUMERICAL]) < 2:
            del weights[Op.LINEAR_SEQUENCE_MAP]
        if self.waiting(Type.NUMERICAL):
            weights[Op.MAP] *= 1.5
            weights[Op.SELECT] *= 2 if self.binary_numbers else 1
        if shrink and len(self.waiting(Type.CATEGORICAL)) >= 2:
            return draw.weighted({Op.SEQUENCE_MAP: 2.0, Op.SELECT: 1.0})
        if shrink and len(self.waiting(Type.NUMERICAL)) >= 2:
            return Op.LINEAR_SEQUENCE_MAP
        return draw.weighted(weights)

    def selects_one_key(self, selector: Variable) -> bool:
        """Whether at most one position is selected, so that a categorical aggregate is sure to be valid."""
        line = self.lines[selector]
        return line.args[0] == INDICES and str(line.function) in _ONE_KEY_PREDICATES

    def arguments(self, draw: Draw, op: Op, shrink: bool) -> tuple[Variable, ...]:
        args: list[Variable] = []
        for wanted in op.argument_types:
            distinct = op in (Op.SEQUENCE_MAP, Op.LINEAR_SEQUENCE_MAP)
            every = self.binary_numbers if op is Op.AGGREGATE_NUMERICAL and args else self.by_type[wanted]
            if wanted is Type.SELECTOR:
                every = self.waiting(wanted)
            every = [v for v in every if not (distinct and v in args)]
            fresh = [v for v in every if v in self.pool and v not in args]
            use_fresh = fresh and (shrink or not draw.chance(REUSE))
            args.append(draw.one_of(fresh if use_fresh else every))
        if op is Op.SELECT and draw.chance(0.25):
            args[1] = args[0]
        return tuple(args)


def _function(draw: Draw, op: Op) -> Function | None:
    match op.kind:
        case None:
            return None
        case Kind.LINEAR:
            return linear(*draw.one_of(LINEAR_FACTORS))
    weights = _COMPARISONS if op is Op.MAP_NUMERICAL and draw.chance(0.6) else _DRAWN[op.kind]
    return FUNCTIONS[op.kind][draw.weighted(weights)]
