"""Which programs are kept. A line is judged where it is drawn, a program when it is whole.

What is rejected has a reason, and is counted.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from trade_hf.compiled.faithful import INPUTS_AT_BOS, OFF, AtBos, at_bos, may_depart, reads_bos, widths_cleaned_twice
from trade_hf.rasp.canonical import Structure, structure_of
from trade_hf.rasp.evaluate import Evaluation, Run, all_inputs, random_inputs
from trade_hf.rasp.functions import Value
from trade_hf.rasp.program import INDICES, TOKENS, Line, Op, Program, Type, Variable
from trade_hf.rasp.tables import Domain, Table, Tables, UnsupportedError, input_tables, tabulate_line

if TYPE_CHECKING:
    from dataset_builder.sampler import SamplerConfig

MOST_COMMON = 0.97  # a larger share of one output value is "nearly constant"
MOSTLY_NONE = 0.5
SCREEN_SEED = 20_241_001
SCREEN_PAIRS = 3_200  # pairs of positions that are looked at, in short and in drawn inputs each
SCREEN_INPUTS = (48, 128)  # at least and at most, of each


class Rejected(Exception):
    """A line or a program that the corpus does not take; `reason` is the bucket it is counted in."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True, eq=False)
class Screen:
    """Judges programs over one vocabulary and length, on a fixed set of inputs: short ones, and seeded random ones."""

    config: SamplerConfig
    vocab: tuple[Value, ...]
    max_seq_len: int
    run: Run

    @functools.cached_property
    def cells(self) -> int:
        """How many positions of its inputs are real."""
        return int(self.run.real.sum())

    @functools.cached_property
    def inputs(self) -> tuple[np.ndarray, np.ndarray]:
        """[cell] tokens and indices."""
        tokens, indices = (self.run.states[variable].T[self.run.real.T] for variable in (TOKENS, INDICES))
        return np.array([*map(float, self.vocab)]).take(tokens), indices  # type: ignore[arg-type]

    @classmethod
    @functools.lru_cache(maxsize=1_000)
    def of(cls, config: SamplerConfig, vocab: tuple[Value, ...], max_seq_len: int) -> Screen:
        least, most = SCREEN_INPUTS
        count = min(most, max(least, SCREEN_PAIRS // max_seq_len**2))
        short = all_inputs(len(vocab), min(3, max_seq_len))
        short = np.pad(short, ((0, 0), (0, max_seq_len - short.shape[1])), constant_values=-1)[:count]
        drawn = random_inputs(len(vocab), max_seq_len, count, SCREEN_SEED)
        return cls(config, vocab, max_seq_len, Run(np.concatenate([short, drawn])))

    def check(self, program: Program) -> Structure:
        """A whole program's structure; raises Rejected."""
        draft = Draft(self)
        for line in program.lines:
            draft.add(line)
        return draft.finish()


@dataclass(frozen=True, eq=False)
class Judged:
    """A line over lines that were judged before, whatever program it stands in.

    Attributes:
      table: its table.
      state: what it gives on the screen's inputs (see `Run`).
      has_none: whether that is None somewhere.
      at_bos: what it is at BOS (see `compiled/faithful.py`).
      reason: why no program may have it; None if it may.
    """

    table: Table
    state: np.ndarray
    has_none: bool = False
    at_bos: AtBos = OFF
    reason: str | None = None


# Lines that were judged, by screen, operation, function and the judged lines that they read: a third to a half of all
# lines that are drawn came before.
_JUDGED: dict[tuple, Judged] = {}
MAX_JUDGED = 20_000  # some 4 KB each

_NO_TABLE, _NO_STATE = Table(Domain.of(())), np.empty(0)
_TOKENS, _INDICES = Judged(_NO_TABLE, _NO_STATE), Judged(_NO_TABLE, _NO_STATE)


def _refused(reason: str) -> Judged:
    return Judged(_NO_TABLE, _NO_STATE, reason=reason)


class Draft:
    """A program in the making: the lines that were taken so far, with their tables and what they give on the screen's
    inputs."""

    def __init__(self, screen: Screen) -> None:
        self.screen, self.config = screen, screen.config
        self.lines: list[Line] = []
        self.tables = input_tables(screen.vocab, screen.max_seq_len)
        self.run = screen.run.again()
        self.judged: dict[Variable, Judged] = {TOKENS: _TOKENS, INDICES: _INDICES}
        self.at_bos: dict[Variable, AtBos] = dict(INPUTS_AT_BOS)
        self.d_model = len(screen.vocab) + screen.max_seq_len + 3
        self.key_size = 1
        self.seen: set[tuple] = set()

    def add(self, line: Line) -> None:
        """Take one more line. Raises Rejected, and is as before then."""
        number, judged = len(self.lines), self.judge(line)
        if judged.reason is not None:
            raise Rejected(judged.reason)
        table, domain = judged.table, judged.table.domain
        factors = line.function.factors if line.function else None
        meaning = (line.op, line.args, table.entries, domain.values, factors)
        if meaning in self.seen:
            raise Rejected("equal lines")
        width = 0
        if line.op is Op.SELECT:
            self.key_size = max(self.key_size, *(len(self.tables[argument].domain) for argument in line.args))
        else:
            width = len(domain) if line.op.result is Type.CATEGORICAL else 1
        if self.d_model + width > self.config.max_d_model:
            raise Rejected("too large")
        if line.op is Op.AGGREGATE and len(domain) > self.key_size:
            raise Rejected("key size below values")
        self.lines.append(line)
        self.tables[number], self.judged[number], self.at_bos[number] = table, judged, judged.at_bos
        self.run.put(number, judged.state, judged.has_none)
        self.seen.add(meaning)
        self.d_model += width

    def judge(self, line: Line) -> Judged:
        function = line.function
        if function is not None and function.table is not None:  # tables that are equal may hold 1 and True
            return self._judge(line)
        what = (function.name, function.factors) if function is not None else None
        key = (self.screen, line.op, what, *[self.judged[argument] for argument in line.args])
        found = _JUDGED.get(key)
        if found is None:
            if len(_JUDGED) >= MAX_JUDGED:
                _JUDGED.clear()
            found = _JUDGED[key] = self._judge(line)
        return found

    def _judge(self, line: Line) -> Judged:
        number, lines = len(self.lines), [*self.lines, line]
        try:
            table = tabulate_line(lines, number, self.tables)
        except UnsupportedError:
            return _refused("not compilable")
        reason = self._why_not(line, table)
        if reason is not None:
            return _refused(reason)
        state, has_none = self.run.state(lines, line, table, self.tables), False
        if not self.run.valid.all():
            self.run.valid[:] = True
            return _refused("outside Tracr's dynamic validity")
        if self.run.can_be_none(line, table):
            count = int(np.count_nonzero((state < 0) & self.run.real))
            if count > MOSTLY_NONE * self.screen.cells:
                return _refused("mostly None")
            has_none = count > 0
        if reads_bos(line, table, self.tables, self.at_bos):
            if line.op is Op.SELECT or self._selects_nothing(line.args[0]):
                return _refused("reads BOS")
        return Judged(table, state, has_none, at_bos(lines, line, table, self.tables, self.at_bos))

    def _selects_nothing(self, selector: Variable) -> bool:
        """Whether a selector does so somewhere."""
        return bool((~self.run.states[selector].any(0) & self.run.real).any())

    def _why_not(self, line: Line, table: Table) -> str | None:
        config, values = self.config, table.domain
        if line.op is Op.SELECT:
            return None if any(table.entries) else "empty selector"
        if len(values) < 2:
            return "constant line"
        if not values.magnitude <= config.max_magnitude:
            return "value out of range"
        categorical = line.op.result is Type.CATEGORICAL
        if categorical and len(values) > config.max_values:
            return "too many values"
        hidden = len(table.entries) if line.op is Op.SEQUENCE_MAP else 0 if categorical else 2 * len(values)
        return "too large" if hidden > config.max_hidden else None

    def finish(self) -> Structure:
        """The structure of the lines taken, as a program; raises Rejected."""
        program = Program(tuple(self.lines))
        if not any(TOKENS in line.args for line in program.lines):
            raise Rejected("does not read tokens")
        self._check_behaviour(self.run.output(self.lines, self.tables))
        tables = Tables(program, self.screen.vocab, self.screen.max_seq_len, self.tables)
        if widths_cleaned_twice(tables) and may_depart(tables):
            raise Rejected("reads BOS, which is cleaned twice")
        structure = structure_of(tables)
        if not self.config.min_lines <= len(structure.nodes) <= self.config.max_lines:
            raise Rejected("too short or too long")
        if len(set(structure.nodes)) != len(structure.nodes):
            raise Rejected("equal lines")
        return structure

    def _check_behaviour(self, result: Evaluation) -> None:
        cells = result.codes[result.real]
        if result.values is not None:
            counts = np.bincount(cells + 1)
            self._check_identity(result, cells)
        else:
            counts = np.unique(cells.round(4), return_counts=True)[1]
        if counts.max() == len(cells):
            raise Rejected("constant output")
        if counts.max() > MOST_COMMON * len(cells):
            raise Rejected("nearly constant output")

    def _check_identity(self, result: Evaluation, cells: np.ndarray) -> None:
        assert result.values is not None
        outputs = np.array([*map(float, result.values), math.nan]).take(cells)  # type: ignore[arg-type]
        for same in self.screen.inputs:
            if outputs[0] == same[0] and (outputs == same).all():
                raise Rejected("identity")
