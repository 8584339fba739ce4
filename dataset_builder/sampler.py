"""Random RASP programs, after Algorithm 1 of arXiv:2410.00061.

A pool of available inputs starts with tokens and indices. Repeat: choose an operation, fill its arguments with
variables, put the new variable into the pool in place of those it used; until one entry is left, which is the output.
So no variable is wasted. A line that cannot be (constant, or outside what Tracr compiles faithfully) is drawn again; a
program that is not worth learning from is rejected; both are counted with the reason.

The same seed gives the same programs on any machine: only `random.Random.random` is drawn from.
"""

from __future__ import annotations

import functools
import random
import string
from bisect import bisect
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any, Generic, TypeVar

from dataset_builder.rejection import Draft, Rejected, Screen
from trade_hf.compiled.compiler import compile_program
from trade_hf.compiled.weights import TracrWeights
from trade_hf.rasp.canonical import Structure, is_numeric, name_functions, spell, spoken_output
from trade_hf.rasp.functions import FUNCTIONS, LINEAR_FACTORS, Function, Kind, Value, compares, linear
from trade_hf.rasp.program import INDICES, TOKENS, Line, Op, Program, Type, Variable
from trade_hf.rasp.tables import sort_values

T = TypeVar("T")


@dataclass(frozen=True)
class SamplerConfig:
    """What is sampled. Lengths of programs count the lines of the canonical form.

    Where `vocab_sizes` or `max_seq_lens` are given (least, most), each program has a vocabulary or a longest input of
    its own, else all have `vocab` and `max_seq_len`.
    """

    vocab: tuple[Value, ...] = (0, 1, 2, 3, 4)
    max_seq_len: int = 5
    min_lines: int = 3
    max_lines: int = 8
    max_values: int = 16  # of a categorical s-op
    max_magnitude: int = 30  # of a value
    max_d_model: int = 96
    max_hidden: int = 160  # units of one MLP block
    vocab_sizes: tuple[int, int] | None = None
    max_seq_lens: tuple[int, int] | None = None

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> SamplerConfig:
        """From settings as JSON or YAML holds them."""
        settings: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in fields.items()}
        return cls(**settings)


WIDE = SamplerConfig(vocab_sizes=(2, 12), max_seq_lens=(3, 12), max_d_model=224)  # of all sizes, words among tokens


class SamplingError(ValueError):
    """Settings that next to no program meets."""


@dataclass(frozen=True)
class Sample:
    """A canonical program with what it was made for. Over tokens that are no numbers its functions speak of the k-th
    token; `spelled` is the program over the tokens themselves."""

    program: Program
    structure: Structure
    vocab: tuple[Value, ...]
    max_seq_len: int

    @property
    def spelled(self) -> Program:
        return spell(self.program, self.vocab, self.max_seq_len, self.structure.output_values)

    def compile(self, **options: Any) -> TracrWeights:
        """As `compile_program`, whose options they are."""
        return compile_program(self.spelled, self.vocab, self.max_seq_len, **options)


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
LINE = "line: "  # before the reason why a line was drawn again
SEARCH = 300  # trials of the search for names, most need ten
GIVE_UP = 5_000  # rejected programs in a row
TRIES = 10  # draws of one line, before the program is given up


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


class Weights(Generic[T]):
    """Things to choose from, and how often each is chosen."""

    def __init__(self, weights: dict[T, float]) -> None:
        self.items = list(weights)
        self.sums = list(accumulate(weights.values()))


_DRAWN = {kind: Weights(_weights(kind)) for kind in (Kind.UNARY, Kind.BINARY, Kind.PREDICATE)}
_COMPARISONS = Weights(_weights(Kind.UNARY, compares))
_ONE_KEY_PREDICATES = [name for name in FUNCTIONS[Kind.PREDICATE] if "==" in name]

# Vocabularies, where each program has one of its own: how often each kind is drawn.
VOCABULARIES = Weights({"from 0": 0.35, "from 1": 0.1, "numbers": 0.2, "letters": 0.2, "words": 0.15})
NUMBERS = range(-5, 16)
# fmt: off
WORDS = (
    "and", "begin", "big", "bird", "blue", "cat", "close", "dog", "else", "end", "fast", "fish", "green", "house", "if",
    "moon", "new", "no", "not", "old", "one", "open", "or", "red", "river", "sky", "slow", "small", "star", "stone",
    "sun", "the", "then", "three", "tree", "two", "yes",
)
# fmt: on


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

    def weighted(self, weights: Weights[T]) -> T:
        return weights.items[
            min(bisect(weights.sums, self._random.random() * weights.sums[-1]), len(weights.items) - 1)
        ]

    def between(self, bounds: tuple[int, int]) -> int:
        return bounds[0] + self.below(bounds[1] - bounds[0] + 1)

    def some_of(self, items: Sequence[T], count: int) -> list[T]:
        """`count` different ones."""
        left = list(items)
        return [left.pop(self.below(len(left))) for _ in range(count)]


def sample_programs(
    seed: int | str, config: SamplerConfig = SamplerConfig(), reasons: Counter | None = None
) -> Iterator[Sample]:
    """An endless stream of canonical programs. `reasons` counts what was rejected and why, and "kept"; lines that were
    drawn again stand under `LINE` and the reason. Raises SamplingError where the settings let next to none through."""
    draw = Draw(seed)
    reasons = Counter() if reasons is None else reasons
    in_a_row = 0
    while True:
        vocab, max_seq_len = draw_domain(draw, config)
        ranks = vocab if is_numeric(vocab) else tuple(range(len(vocab)))
        try:
            structure = draw_program(draw, Screen.of(config, ranks, max_seq_len), reasons).finish()
            if ranks is not vocab:
                structure = replace(structure, vocab=vocab, output_values=spoken_output(structure, vocab))
            canonical = name_functions(structure, SEARCH)
            if any(line.function and line.function.table is not None for line in canonical.lines):
                raise Rejected("no names found")  # within the trials that the search for names is given
        except Rejected as rejected:
            reasons[rejected.reason] += 1
            in_a_row += 1
            if in_a_row == GIVE_UP:
                raise SamplingError(
                    f"none of {GIVE_UP:,} programs in a row was kept, the last one: {rejected}"
                ) from None
            continue
        reasons["kept"] += 1
        in_a_row = 0
        yield Sample(canonical, structure, vocab, max_seq_len)


def draw_domain(draw: Draw, config: SamplerConfig) -> tuple[tuple[Value, ...], int]:
    """Vocabulary, sorted, and the longest input."""
    max_seq_len = draw.between(config.max_seq_lens) if config.max_seq_lens else config.max_seq_len
    if config.vocab_sizes is None:
        return config.vocab, max_seq_len
    size = draw.between(config.vocab_sizes)
    tokens: dict[str, Callable[[], Sequence[Value]]] = {
        "from 0": lambda: range(size),
        "from 1": lambda: range(1, size + 1),
        "numbers": lambda: draw.some_of(NUMBERS, size),
        "letters": lambda: string.ascii_lowercase[:size],
        "words": lambda: draw.some_of(WORDS, size),
    }
    return tuple(sort_values(tokens[draw.weighted(VOCABULARIES)]())), max_seq_len


def draw_program(draw: Draw, screen: Screen, reasons: Counter) -> Draft:
    """One program by Algorithm 1, its lines judged. Raises Rejected if the pool does not come down to one in time."""
    config = screen.config
    target = draw.between((config.min_lines, config.max_lines))
    pool = _Pool(Draft(screen), [TOKENS, INDICES] if draw.chance(INDICES_FROM_START) else [TOKENS])
    while not (pool.is_done() and len(pool.draft.lines) >= target):
        # Each line takes at most one entry more out of the pool than it puts in; equal selects may yet become one line.
        if len(pool.draft.lines) + max(1, len(pool.pool) - 1) > config.max_lines + 1:
            raise Rejected("too long")
        pool.grow(draw, len(pool.pool) - 1 >= target - len(pool.draft.lines), reasons)
    return pool.draft


_WANTED_FOR = {type_: [wanted for wanted in Type if wanted.accepts(type_)] for type_ in Type}


class _Pool:
    """Variables that wait to be used, and the program so far."""

    def __init__(self, draft: Draft, pool: list[Variable]) -> None:
        self.draft, self.pool = draft, pool
        self.types: dict[Variable, Type] = {TOKENS: Type.CATEGORICAL, INDICES: Type.CATEGORICAL}
        inputs = _WANTED_FOR[Type.CATEGORICAL]
        # What fits where a type is wanted, in order of lines.
        self.by_type = {wanted: [TOKENS, INDICES] if wanted in inputs else [] for wanted in Type}
        self.binary_numbers: list[Variable] = []  # hold 0 and 1 alone: a numerical aggregate can average

    def is_done(self) -> bool:
        return len(self.pool) == 1 and self.pool[0] >= 0 and self.types[self.pool[0]] is not Type.SELECTOR

    def waiting(self, wanted: Type) -> list[Variable]:
        fitting = self.by_type[wanted]
        return [v for v in self.pool if v in fitting]

    def grow(self, draw: Draw, shrink: bool, reasons: Counter) -> None:
        """One more line; with `shrink`, one that uses up more than it adds where that is possible."""
        refused: set[Op] = set()
        for _ in range(TRIES):
            line = self.draw_line(draw, shrink, refused)
            try:
                self.draft.add(line)
            except Rejected as rejected:
                reasons[LINE + rejected.reason] += 1
                if line.op is Op.AGGREGATE and not self.selects_one_key(line.args[0]):
                    refused.add(line.op)
                continue
            self.use(line, draw, shrink)
            return
        raise Rejected("no line fits")

    def draw_line(self, draw: Draw, shrink: bool, refused: set[Op]) -> Line:
        op = self.choose(draw, shrink, refused)
        args = self.arguments(draw, op, shrink)
        function = _function(draw, op)
        if op is Op.SELECT and draw.chance(ONE_KEY):
            args = (INDICES, args[1]) if draw.chance(0.75) else (args[0], INDICES)
            function = FUNCTIONS[Kind.PREDICATE][draw.one_of(_ONE_KEY_PREDICATES)]
        return Line(op, args, function)

    def use(self, line: Line, draw: Draw, shrink: bool) -> None:
        number, result = len(self.draft.lines) - 1, line.op.result
        self.types[number] = result
        for wanted in _WANTED_FOR[result]:
            self.by_type[wanted].append(number)
        if line.op is Op.MAP_NUMERICAL and compares(str(line.function)):
            self.binary_numbers.append(number)
        for argument in line.args:
            if argument in self.pool:
                keeps = self.types[argument] is Type.SELECTOR and draw.chance(KEEP_SELECTOR)
                if not (keeps and not shrink):
                    self.pool.remove(argument)
        self.pool.append(number)

    def choose(self, draw: Draw, shrink: bool, refused: set[Op]) -> Op:
        """`refused` are operations that were drawn for this line and could not be."""
        binary = bool(self.binary_numbers)
        if selectors := self.waiting(Type.SELECTOR):
            moves = any(map(self.selects_one_key, selectors))
            return draw.weighted(_reading(Op.AGGREGATE not in refused, moves, binary))
        numerical = len(self.waiting(Type.NUMERICAL))
        if shrink and len(self.waiting(Type.CATEGORICAL)) >= 2:
            return draw.weighted(_JOINING)
        if shrink and numerical >= 2:
            return Op.LINEAR_SEQUENCE_MAP
        if shrink and numerical and len(self.pool) > 1 and draw.chance(0.7):
            return Op.MAP  # of the number, which can then be joined with what else waits
        return draw.weighted(_computing(len(self.by_type[Type.NUMERICAL]) >= 2, numerical > 0, binary))

    def selects_one_key(self, selector: Variable) -> bool:
        """Whether at most one position is selected, so that a categorical aggregate is sure to be valid."""
        line = self.draft.lines[selector]
        return line.args[0] == INDICES and str(line.function) in _ONE_KEY_PREDICATES

    def arguments(self, draw: Draw, op: Op, shrink: bool) -> tuple[Variable, ...]:
        args: list[Variable] = []
        distinct = op is Op.SEQUENCE_MAP or op is Op.LINEAR_SEQUENCE_MAP
        for wanted in op.argument_types:
            every = self.binary_numbers if op is Op.AGGREGATE_NUMERICAL and args else self.by_type[wanted]
            if wanted is Type.SELECTOR:
                every = self.waiting(wanted)
            if distinct and args:
                every = [v for v in every if v not in args]
            fresh = [v for v in every if v in self.pool and v not in args]
            if op is Op.MAP and shrink:
                fresh = self.waiting(Type.NUMERICAL) or fresh
            use_fresh = fresh and (shrink or not draw.chance(REUSE))
            args.append(draw.one_of(fresh if use_fresh else every))
        if op is Op.SELECT and draw.chance(0.25):
            args[1] = args[0]
        return tuple(args)


_JOINING = Weights({Op.SEQUENCE_MAP: 2.0, Op.SELECT: 1.0})


@functools.cache
def _reading(aggregate: bool, moves: bool, averages: bool) -> Weights[Op]:
    """What reads a selector: one that selects at most one key can `move` values, a binary number can be averaged."""
    ops = {Op.SELECTOR_WIDTH: 2.0, Op.SELECTOR_WIDTH_NUMERICAL: 0.4}
    if aggregate:
        ops[Op.AGGREGATE] = 6.0 if moves else 0.5
    if averages:
        ops[Op.AGGREGATE_NUMERICAL] = 6.0
    return Weights(ops)


@functools.cache
def _computing(two_numbers: bool, number_waits: bool, averages: bool) -> Weights[Op]:
    weights = dict(OP_WEIGHTS)
    if not two_numbers:
        del weights[Op.LINEAR_SEQUENCE_MAP]
    if number_waits:
        weights[Op.MAP] *= 1.5
        weights[Op.SELECT] *= 2 if averages else 1
    return Weights(weights)


def _function(draw: Draw, op: Op) -> Function | None:
    match op.kind:
        case None:
            return None
        case Kind.LINEAR:
            return linear(*draw.one_of(LINEAR_FACTORS))
    weights = _COMPARISONS if op is Op.MAP_NUMERICAL and draw.chance(0.6) else _DRAWN[op.kind]
    return FUNCTIONS[op.kind][draw.weighted(weights)]
