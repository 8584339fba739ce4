"""Programs unlike the sampler's, which other people's models may well hold: for the split `unusual`.

Each is of one kind: it has a feature that `sampler.py` never or hardly makes, beside lines that join it with the rest.
The last kind, `random`, draws lines with no regard to what is still unused, by the rules of
github.com/langosco/decompile-tracr: 4 to 15 s-ops over five tokens, at most five of them in an input.
The same seed gives the same programs on any machine.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np

from dataset_builder.library import LibraryProgram
from dataset_builder.sampler import WORDS, Draw, Weights
from trade_hf.compiled.compiler import compile_sparse
from trade_hf.rasp.evaluate import evaluate, random_inputs
from trade_hf.rasp.functions import FUNCTIONS, Function, Kind, Value, linear, tabulated
from trade_hf.rasp.program import INDICES, TOKENS, Line, Op, Program, RaspError, Type, Variable
from trade_hf.rasp.tables import Table, UnsupportedError, input_tables, sort_values, tabulate_line

WHOLE = (0, 1, 2, 3, 4)
FRACTIONS = (0.1, 0.2, 0.3, 0.25, 0.5, 0.7, 1.5, 1 / 3, 2 / 3, 2 / 7, 5 / 12)
LOGARITHMS = (math.log(2), math.log(3), math.log(5), math.log10(2), math.sqrt(2), math.pi)
LARGE = (100, 250, 300, 470, 512.5, 999)
FACTORS = (-3, -2, -1, 1, 2, 3, 0.5)
MOST_CODES, MOST_NUMBERS, MOST_PAIRS = 80, 150, 500  # values of an s-op, and pairs that a sequence map takes
SCREENED = 300  # inputs that a program is run on before it is taken
MOSTLY_NONE = 0.5  # of the outputs
TRIES = 30  # of a line


class _Unfit(Exception):
    """A program that is drawn again; the message says why, and is counted."""


class _Draft:
    """A program in the making. Raises _Unfit for a line that Tracr cannot compile or that has too many values."""

    def __init__(self, draw: Draw, vocab: Sequence[Value], max_seq_len: int) -> None:
        self.draw, self.lines = draw, list[Line]()
        self.vocab, self.max_seq_len = tuple(sort_values(vocab)), max_seq_len
        self.tables: dict[Variable, Table] = input_tables(self.vocab, max_seq_len)
        self.unused: list[Variable] = []

    def add(self, op: Op, *args: Variable, function: Function | None = None) -> Variable:
        number = len(self.lines)
        try:
            lines = [*self.lines, Line(op, args, function)]
            table = tabulate_line(lines, number, self.tables)
        except (UnsupportedError, RaspError):
            raise _Unfit("not compilable") from None
        if op is Op.MAP_NUMERICAL and None in table.entries and not self.is_number(args[0]):
            raise _Unfit("not compilable")
        most = MOST_NUMBERS if op.result is Type.NUMERICAL else MOST_CODES
        if len(table.values) > most or (op is Op.SEQUENCE_MAP and len(table.entries) > MOST_PAIRS):
            raise _Unfit("too many values")
        self.lines, self.tables[number] = lines, table
        self.unused = [variable for variable in self.unused if variable not in args] + [number]
        return number

    def values(self, variable: Variable) -> tuple[Value, ...]:
        return self.tables[variable].values

    def is_number(self, variable: Variable) -> bool:
        return variable >= 0 and self.lines[variable].op.result is Type.NUMERICAL

    def map(
        self, source: Variable, outputs: Sequence[Value], *, numerical: bool = False, undefined: float = 0.0
    ) -> Variable:
        """A map that gives each value one of `outputs` at random, or nothing to a share of them."""
        table = {value: self.draw.one_of(outputs) for value in self.values(source) if not self.draw.chance(undefined)}
        op = Op.MAP_NUMERICAL if numerical else Op.MAP
        return self.add(op, source, function=tabulated(Kind.UNARY, table))

    def join(self, first: Variable, second: Variable, outputs: Sequence[Value], undefined: float = 0.0) -> Variable:
        """A sequence map, by a name or a table."""
        first, second = (self.few(variable) for variable in (first, second))
        if not undefined and self.draw.chance(0.4):
            with_names = [*FUNCTIONS[Kind.BINARY].values()]
            return self.add(Op.SEQUENCE_MAP, first, second, function=self.draw.one_of(with_names))
        pairs = itertools.product(self.values(first), self.values(second))
        table = {pair: self.draw.one_of(outputs) for pair in pairs if not self.draw.chance(undefined)}
        return self.add(Op.SEQUENCE_MAP, first, second, function=tabulated(Kind.BINARY, table))

    def few(self, variable: Variable) -> Variable:
        """A categorical s-op with few values, made of a variable: the variable itself if it is one."""
        if self.is_number(variable) or len(self.values(variable)) > 12:
            return self.map(variable, WHOLE)
        return variable

    def select(self, keys: Variable, queries: Variable) -> Variable:
        names = ("k == q", "k != q", "k < q", "k <= q", "k > q", "k >= q", "True")
        return self.add(Op.SELECT, keys, queries, function=FUNCTIONS[Kind.PREDICATE][self.draw.one_of(names)])

    def select_one(self) -> Variable:
        """A selector of at most one position."""
        name = self.draw.one_of(("k == q", "q == k + 1", "q == k + 2", "k == q + 1"))
        return self.add(Op.SELECT, INDICES, INDICES, function=FUNCTIONS[Kind.PREDICATE][name])

    def category(self) -> Variable:
        """A new categorical s-op that reads tokens."""
        match self.draw.below(4):
            case 0:
                return self.map(TOKENS, WHOLE)
            case 1:
                return self.add(Op.AGGREGATE, self.select_one(), TOKENS)
            case 2:
                return self.add(Op.SELECTOR_WIDTH, self.select(TOKENS, TOKENS))
        return self.join(TOKENS, INDICES, WHOLE)

    def source(self) -> Variable:
        """An input or a new s-op."""
        make = self.draw.one_of((lambda: TOKENS, lambda: INDICES, self.category, self.number))
        return make()

    def number(self, outputs: Sequence[Value] = WHOLE) -> Variable:
        """A new numerical s-op that reads tokens."""
        match self.draw.below(3):
            case 0:
                return self.map(TOKENS, outputs, numerical=True)
            case 1:
                bits = self.map(TOKENS, (0, 1), numerical=True)
                return self.add(Op.AGGREGATE_NUMERICAL, self.select(INDICES, INDICES), bits)
        return self.add(Op.SELECTOR_WIDTH_NUMERICAL, self.select(TOKENS, TOKENS))

    def join_all(self, outputs: Sequence[Value]) -> None:
        """Lines that make one output of all that is unused."""
        while len(self.unused) > 1:
            first, second = self.draw.some_of(self.unused, 2)
            if self.is_number(first) and self.is_number(second) and self.draw.chance(0.4):
                factors = linear(self.draw.one_of(FACTORS), self.draw.one_of(FACTORS))
                self.add(Op.LINEAR_SEQUENCE_MAP, first, second, function=factors)
            else:
                self.join(first, second, outputs)


# ---------------------------------------------------------------- kinds


def _constants(draft: _Draft) -> None:
    """Maps that give one value, of values and of numbers."""
    draw = draft.draw
    for _ in range(1 + draw.below(2)):
        draft.map(draft.source(), [draw.one_of(WHOLE)], numerical=draw.chance(0.4))
    if draw.chance(0.5):
        draft.map(draft.unused[-1], WHOLE)
    draft.join(draft.category(), TOKENS, WHOLE)


def _undefined(draft: _Draft) -> None:
    """Maps and sequence maps that give nothing for some values."""
    draw = draft.draw
    for _ in range(1 + draw.below(3)):
        match draw.below(4):
            case 0:
                draft.join(draft.category(), TOKENS, WHOLE, undefined=0.3)
            case 1:
                draft.map(draft.number(), WHOLE, undefined=0.3, numerical=draw.chance(0.3))
            case _:
                draft.map(draft.source(), WHOLE, undefined=0.4)


def _several_maps(draft: _Draft) -> None:
    """Two to five maps of one s-op in one layer."""
    draw = draft.draw
    source = draft.source()
    for _ in range(2 + draw.below(4)):
        draft.map(source, WHOLE[: 2 + draw.below(4)], numerical=draw.chance(0.35))


def _linear_pairs(draft: _Draft) -> None:
    """Several linear maps of the same two numbers."""
    draw = draft.draw
    first, second = draft.number(), draft.number()
    for _ in range(2 + draw.below(2)):
        pair = (first, second) if draw.chance(0.7) else (second, first)
        factors = linear(draw.one_of(FACTORS), draw.one_of(FACTORS))
        draft.add(Op.LINEAR_SEQUENCE_MAP, *pair, function=factors)


def _fractions(draft: _Draft) -> None:
    """Numbers that are no whole ones, and their sums."""
    draw = draft.draw
    outputs = draw.one_of((FRACTIONS, LOGARITHMS, (0.1, 0.2, 0.3), LARGE))
    numbers = [draft.map(draft.source(), outputs, numerical=True) for _ in range(2)]
    factors = linear(draw.one_of(FACTORS), draw.one_of(FACTORS)) if draw.chance(0.6) else linear(1, 1)
    both = draft.add(Op.LINEAR_SEQUENCE_MAP, *numbers, function=factors)
    if draw.chance(0.6):
        draft.map(both, draw.one_of((WHOLE, outputs)), numerical=draw.chance(0.5))


def _chain(draft: _Draft) -> None:
    """Maps of numbers one after the other."""
    draw = draft.draw
    number = draft.number(draw.one_of((WHOLE, FRACTIONS)))
    for _ in range(2 + draw.below(3)):
        if draw.chance(0.3):
            factors = linear(draw.one_of(FACTORS), draw.one_of(FACTORS))
            number = draft.add(Op.LINEAR_SEQUENCE_MAP, number, draft.number(), function=factors)
        else:
            number = draft.map(number, draw.one_of((WHOLE, FRACTIONS, LOGARITHMS)), numerical=True)


def _plain(draft: _Draft) -> None:
    """Nothing but the vocabulary is unusual."""
    draw = draft.draw
    for _ in range(2 + draw.below(2)):
        if draw.chance(0.5):
            draft.map(TOKENS, draw.one_of((WHOLE, draft.vocab[:12])))
        else:
            draft.category()


def _words(draw: Draw) -> Sequence[Value]:
    return draw.some_of(WORDS, 3 + draw.below(6))


def _wide(draw: Draw) -> Sequence[Value]:
    return range(20 + draw.below(41))


def _mixed(draw: Draw) -> Sequence[Value]:
    return [*draw.some_of(WORDS, 2 + draw.below(3)), *draw.some_of(range(9, 15), 1 + draw.below(3))]


def _usual(draw: Draw) -> Sequence[Value]:
    return range(3 + draw.below(5))


# How a program begins, and its vocabulary.
_KINDS: dict[str, tuple[Callable[[_Draft], None], Callable[[Draw], Sequence[Value]]]] = {
    "constants": (_constants, _usual),
    "undefined": (_undefined, _usual),
    "several maps": (_several_maps, _usual),
    "linear pairs": (_linear_pairs, _usual),
    "fractions": (_fractions, _usual),
    "numeric chains": (_chain, _usual),
    "words": (_plain, _words),
    "words and numbers": (_plain, _mixed),
    "wide vocabulary": (_plain, _wide),
}
RANDOM = "random"
KINDS = (*_KINDS, RANDOM)


def unusual_programs(seed: int | str, reasons: Counter | None = None) -> Iterator[LibraryProgram]:
    """An endless stream, the kinds in turn. `reasons` counts what was drawn again and why, and "kept"."""
    draw = Draw(f"unusual-{seed}")
    reasons = Counter() if reasons is None else reasons
    for number, kind in enumerate(itertools.cycle(KINDS)):
        while True:
            try:
                draft = _draw_random(draw) if kind == RANDOM else _draw_kind(draw, kind)
                program = _screened(draft, must_be_valid=kind != "fractions")
                compile_sparse(program, draft.vocab, draft.max_seq_len)
            except UnsupportedError:
                reasons["not compilable"] += 1
                continue
            except _Unfit as error:
                reasons[str(error)] += 1
                continue
            reasons["kept"] += 1
            yield LibraryProgram(f"{kind} {number}", program, draft.vocab, draft.max_seq_len)
            break


def _draw_kind(draw: Draw, kind: str) -> _Draft:
    begin, vocabulary = _KINDS[kind]
    draft = _Draft(draw, vocabulary(draw), 3 + draw.below(5))
    begin(draft)
    words = [word for word in draft.vocab if isinstance(word, str)]
    draft.join_all(draw.one_of((WHOLE, words)) if words else WHOLE)
    return draft


def _screened(draft: _Draft, must_be_valid: bool) -> Program:
    """The draft's program; raises _Unfit for one that shows nothing of what it does, or that Tracr does not compile
    faithfully."""
    if not draft.lines or draft.lines[-1].op is Op.SELECT:
        raise _Unfit("no output")
    program = _without_unused(Program(tuple(draft.lines)))
    if not any(TOKENS in line.args for line in program.lines):
        raise _Unfit("does not read tokens")
    inputs = random_inputs(len(draft.vocab), draft.max_seq_len, SCREENED, 0)
    found = evaluate(program, inputs, draft.vocab, draft.max_seq_len)
    if must_be_valid and not found.valid.all():
        raise _Unfit("outside Tracr's dynamic validity")
    cells = found.codes[found.real]
    if len(np.unique(cells)) < 2:
        raise _Unfit("constant output")
    if found.values is not None and (cells < 0).mean() > MOSTLY_NONE:
        raise _Unfit("mostly None")
    return program


def _without_unused(program: Program) -> Program:
    """The lines that the output depends on alone."""
    place = {TOKENS: TOKENS, INDICES: INDICES} | {number: i for i, number in enumerate(program.live_lines)}
    lines = [program.lines[number] for number in program.live_lines]
    return Program(tuple(replace(line, args=tuple(place[argument] for argument in line.args)) for line in lines))


# ---------------------------------------------------------------- random lines

_RANDOM_OPS = Weights(
    {
        Op.MAP: 0.4,
        Op.MAP_NUMERICAL: 0.6,
        Op.SEQUENCE_MAP: 0.8,
        Op.LINEAR_SEQUENCE_MAP: 1.0,
        Op.AGGREGATE_NUMERICAL: 1.0,
        Op.AGGREGATE: 1.0,
        Op.SELECTOR_WIDTH: 0.05,
    }
)
_COMPARED = ("x == 0", "x == 1", "x == 2", "x == 3", "x != 2", "x != 3", "x > 2", "x > 3", "x < 2", "x < 3")
_JOINED = ("x * y", "x + y", "x - y", "x or y", "x and y")


def _draw_random(draw: Draw) -> _Draft:
    """A program whose last line depends on as many s-ops as were asked for."""
    draft, wanted = _Draft(draw, WHOLE, 5), 4 + draw.below(12)
    for _ in range(TRIES * wanted):
        before = len(draft.lines), list(draft.unused)
        try:
            _random_line(draft)
            program = _screened(draft, must_be_valid=True)
        except _Unfit:
            del draft.lines[before[0] :]
            draft.unused = before[1]
            continue
        if sum(line.op is not Op.SELECT for line in program.lines) == wanted:
            return draft
    raise _Unfit("not as long as was asked for")


def _random_line(draft: _Draft) -> None:
    draw, number = draft.draw, draft.is_number
    sops = [v for v in (TOKENS, INDICES, *range(len(draft.lines))) if v < 0 or draft.lines[v].op is not Op.SELECT]
    categorical, numerical = [v for v in sops if not number(v)], [v for v in sops if number(v)]
    bits = [v for v in numerical if set(draft.values(v)) <= {0, 1}]
    op = draw.weighted(_RANDOM_OPS)
    match op:
        case Op.MAP:
            name = draw.one_of(("x", "x + 1", "x - 1", *_COMPARED))
            draft.add(op, draw.one_of(sops), function=FUNCTIONS[Kind.UNARY][name])
        case Op.MAP_NUMERICAL:
            name = draw.one_of(("x", "x + 1", "x * 2", *_COMPARED))
            draft.add(op, draw.one_of(sops), function=FUNCTIONS[Kind.UNARY][name])
        case Op.SEQUENCE_MAP:
            function = FUNCTIONS[Kind.BINARY][draw.one_of(_JOINED)]
            draft.add(op, *draw.some_of(categorical, 2), function=function)
        case Op.LINEAR_SEQUENCE_MAP if len(numerical) > 1:
            factors = linear(draw.one_of(FACTORS[:-1]), draw.one_of(FACTORS[:-1]))
            draft.add(op, *draw.some_of(numerical, 2), function=factors)
        case Op.AGGREGATE_NUMERICAL if bits:
            draft.add(op, draft.select(draw.one_of(categorical), draw.one_of(categorical)), draw.one_of(bits))
        case Op.AGGREGATE | Op.SELECTOR_WIDTH:
            selector = draft.select(draw.one_of(categorical), draw.one_of(categorical))
            draft.add(op, selector, *([draw.one_of(categorical)] if op is Op.AGGREGATE else []))
        case _:
            raise _Unfit("no such argument")
