"""Which sampled programs are kept. A rejected program is data with a reason, and is counted."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from trade_hf.rasp.canonical import Structure, structure_of
from trade_hf.rasp.evaluate import Evaluation, all_inputs, evaluate, random_inputs
from trade_hf.rasp.program import INDICES, TOKENS, Op, Program, Type, live_lines
from trade_hf.rasp.tables import Tables, UnsupportedError, tabulate

if TYPE_CHECKING:
    from dataset_builder.sampler import SamplerConfig

MOST_COMMON = 0.97  # a larger share of one output value is "nearly constant"
MOSTLY_NONE = 0.5
SCREEN_SEED = 20_241_001
SCREEN_INPUTS = 256


class Rejected(Exception):
    """A program that the corpus does not take; `reason` is the bucket it is counted in."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True)
class Screen:
    """Judges programs on a fixed set of inputs: all of length up to 3, and seeded random longer ones."""

    config: SamplerConfig
    inputs: np.ndarray

    @classmethod
    def of(cls, config: SamplerConfig) -> Screen:
        size = len(config.vocab)
        short = all_inputs(size, config.max_seq_len)
        short = short[(short >= 0).sum(1) <= 3][:256]
        drawn = random_inputs(size, config.max_seq_len, SCREEN_INPUTS, SCREEN_SEED)
        return cls(config, np.concatenate([short, drawn]))

    def check(self, program: Program) -> Structure:
        """The program's structure; raises Rejected."""
        try:
            tables = tabulate(program, self.config.vocab, self.config.max_seq_len)
        except UnsupportedError:
            raise Rejected("not compilable") from None
        self._check_size(tables)
        self._check_behaviour(evaluate(tables, self.inputs))
        structure = structure_of(tables)
        if not self.config.min_lines <= len(structure.nodes) <= self.config.max_lines:
            raise Rejected("too short or too long")
        if len(set(structure.nodes)) != len(structure.nodes):
            raise Rejected("equal lines")
        return structure

    def _check_size(self, tables: Tables) -> None:
        program, config = tables.program, self.config
        d_model, keys, values = len(config.vocab) + config.max_seq_len + 3, 1, 0
        reads_tokens = False
        for number in live_lines(program):
            line, table = program.lines[number], tables[number]
            reads_tokens |= TOKENS in line.args
            if line.op is Op.SELECT:
                keys = max(keys, *(len(tables[argument].values) for argument in line.args))
                if not any(table.entries):
                    raise Rejected("empty selector")
                continue
            if len(table.values) < 2:
                raise Rejected("constant line")
            if any(not math.isfinite(v) or abs(v) > config.max_magnitude for v in table.values):  # type: ignore[arg-type]
                raise Rejected("value out of range")
            if line.op is Op.SEQUENCE_MAP and len(table.entries) > config.max_hidden:
                raise Rejected("too large")
            if program.type_of(number) is Type.CATEGORICAL:
                d_model += len(table.values)
                if len(table.values) > config.max_values:
                    raise Rejected("too many values")
                values = max(values, len(table.values)) if line.op is Op.AGGREGATE else values
            else:
                d_model += 1
                if 2 * len(table.values) > config.max_hidden:
                    raise Rejected("too large")
        if not reads_tokens:
            raise Rejected("does not read tokens")
        if d_model > config.max_d_model:
            raise Rejected("too large")
        if values > keys:
            raise Rejected("key size below values")

    def _check_behaviour(self, result: Evaluation) -> None:
        if not result.valid.all():
            raise Rejected("outside Tracr's dynamic validity")
        cells = result.codes[result.real]
        if result.values is not None:
            if (cells < 0).mean() > MOSTLY_NONE:
                raise Rejected("mostly None")
            counts = np.bincount(cells + 1)
            self._check_identity(result)
        else:
            counts = np.unique(cells.round(4), return_counts=True)[1]
        if counts.max() == len(cells):
            raise Rejected("constant output")
        if counts.max() > MOST_COMMON * len(cells):
            raise Rejected("nearly constant output")

    def _check_identity(self, result: Evaluation) -> None:
        assert result.values is not None
        named = {TOKENS: self.inputs, INDICES: np.broadcast_to(np.arange(self.inputs.shape[1]), self.inputs.shape)}
        outputs = np.array([float(v) for v in result.values] + [-1.0])[result.codes]  # type: ignore[arg-type]
        tokens = np.array([*self.config.vocab, 0], float)[named[TOKENS]]
        for what in (tokens, named[INDICES]):
            if (np.abs(outputs - what) < 1e-9)[result.real].all():
                raise Rejected("identity")
