"""What a program means, on whole batches of inputs.

RASP's semantics as in tracr's `rasp/rasp.py`: where a categorical aggregate selects nothing it gives None, and maps
pass None on. Some inputs lie outside what Tracr can compile faithfully (tracr's `compiler/validating.py` finds some of
them); the evaluation marks those as not valid instead of raising.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np

from trade_hf.rasp.functions import Function, Value
from trade_hf.rasp.program import INDICES, TOKENS, Line, Op, Program, Type, Variable, live_lines
from trade_hf.rasp.tables import Tables, tabulate, unary_image

PADDING = -1  # token code after the end of an input
NONE = -1  # value code of None
# Half a step's width around a threshold, in which the compiled step function interpolates (MLP exactness 100).
STEP_WIDTH = 0.01


@dataclass(frozen=True)
class Evaluation:
    """A program's output on a batch.

    Attributes:
      codes: [batch, position] indices into `values` (-1: None), or the numbers themselves for a numerical output.
      values: what the codes stand for; None for a numerical output.
      real: [batch, position] whether the position lies within the input.
      valid: [batch] whether Tracr compiles this input faithfully: no categorical aggregate mixes different values,
        no None is compared or made a number, no number below 0 comes out of a map of a categorical s-op (Tracr's ReLU
        cuts it off), and every number falls clearly into one step of a compiled map.
    """

    codes: np.ndarray
    values: tuple[Value, ...] | None
    real: np.ndarray
    valid: np.ndarray

    def decode(self, row: int) -> list[Value | None]:
        """One input's outputs as Python values."""
        cells = self.codes[row][self.real[row]].tolist()
        return cells if self.values is None else [self.values[code] if code >= 0 else None for code in cells]


@functools.lru_cache(maxsize=16)
def all_inputs(vocab_size: int, max_seq_len: int) -> np.ndarray:
    """Every input of every length from 1 to the maximum: token codes [input, position], short ones first."""
    blocks = []
    for length in range(1, max_seq_len + 1):
        block = np.full((vocab_size**length, max_seq_len), PADDING, np.int64)
        block[:, :length] = np.indices((vocab_size,) * length).reshape(length, -1).T
        blocks.append(block)
    inputs = np.concatenate(blocks)
    inputs.setflags(write=False)
    return inputs


def count_inputs(vocab_size: int, max_seq_len: int) -> int:
    """How many inputs `all_inputs` would list."""
    return sum(vocab_size**length for length in range(1, max_seq_len + 1))


def random_inputs(vocab_size: int, max_seq_len: int, count: int, seed: int) -> np.ndarray:
    """`count` inputs drawn uniformly from all inputs of all lengths: token codes [input, position]."""
    rng = np.random.RandomState(seed)  # its stream is frozen across numpy's versions, unlike default_rng's
    weights = np.array([float(vocab_size) ** (length - max_seq_len) for length in range(1, max_seq_len + 1)])
    lengths = rng.choice(np.arange(1, max_seq_len + 1), size=count, p=weights / weights.sum())
    inputs = rng.randint(0, vocab_size, (count, max_seq_len), dtype=np.int64)
    inputs[np.arange(max_seq_len) >= lengths[:, None]] = PADDING
    return inputs


def evaluate(program: Program | Tables, inputs: np.ndarray, vocab: tuple = (), max_seq_len: int = 0) -> Evaluation:
    """Run a program on token codes [batch, position] (`PADDING` after the end of an input).

    Args:
      program: the program, or its tables, which already know vocabulary and length.
      inputs: indices into the sorted vocabulary.
      vocab, max_seq_len: needed where a bare program is given.
    """
    tables = program if isinstance(program, Tables) else tabulate(program, vocab, max_seq_len)
    run = _Run(tables, inputs)
    for number in live_lines(tables.program):
        run.states[number] = run.line(number, tables.program.lines[number])
    output = tables.program.output
    numerical = tables.program.type_of(output) is Type.NUMERICAL
    return Evaluation(run.states[output], None if numerical else tables[output].values, run.real, run.valid)


class _Run:
    """The states of all lines on one batch: codes or numbers [batch, position], selectors [batch, query, key]."""

    def __init__(self, tables: Tables, inputs: np.ndarray) -> None:
        self.tables = tables
        self.real = inputs != PADDING
        self.valid = np.ones(len(inputs), bool)
        positions = np.broadcast_to(np.arange(inputs.shape[1]), inputs.shape)
        self.states: dict[Variable, np.ndarray] = {TOKENS: inputs, INDICES: positions}

    def require(self, good: np.ndarray) -> None:
        """Mark inputs where `good` [batch, position] fails at a real position as not valid."""
        self.valid &= (good | ~self.real).all(1)

    def line(self, number: int, line: Line) -> np.ndarray:
        args = [self.states[argument] for argument in line.args]
        program = self.tables.program
        match line.op:
            case Op.MAP | Op.MAP_NUMERICAL:
                if program.type_of(line.args[0]) is Type.NUMERICAL:
                    return self.map_of_numbers(number, line, args[0])
                return self.map(number, line, args[0])
            case Op.SEQUENCE_MAP:
                width = len(self.tables[line.args[1]].values)
                codes = _look_up(self.tables[number].entries, args[0] * width + args[1])
                return np.where((args[0] < 0) | (args[1] < 0), NONE, codes)
            case Op.LINEAR_SEQUENCE_MAP:
                assert line.function is not None and line.function.factors is not None
                return line.function.factors[0] * args[0] + line.function.factors[1] * args[1]
            case Op.SELECT:
                return self.select(number, line, *args)
            case Op.AGGREGATE:
                return self.aggregate(*args)
            case Op.AGGREGATE_NUMERICAL:
                width = args[0].sum(2)
                return np.einsum("bqk,bk->bq", args[0], args[1]) / np.maximum(width, 1)
            case Op.SELECTOR_WIDTH:
                return args[0].sum(2)
            case _:
                return args[0].sum(2).astype(np.float64)

    def map(self, number: int, line: Line, codes: np.ndarray) -> np.ndarray:
        entries = self.tables[number].entries
        if line.op is Op.MAP:
            return _look_up(entries, codes)
        numbers = np.array([np.nan if entry is None else float(entry) for entry in (*entries, 0)])[codes]
        self.require((codes >= 0) & (numbers >= 0))  # Tracr's model gives 0 where RASP gives None or less than 0
        return numbers

    def map_of_numbers(self, number: int, line: Line, numbers: np.ndarray) -> np.ndarray:
        """A function of numbers. The compiled one is a step function over the value set: they must agree."""
        assert line.function is not None
        inputs = self.tables[line.args[0]].values
        steps = [(x, y) for x, y in zip(inputs, unary_image(line.function, inputs), strict=True) if y is not None]
        present, where = np.unique(np.where(self.real, numbers, inputs[0]), return_inverse=True)
        compiled = [_step(steps, x) for x in present.tolist()]
        if line.function.table is None:
            exact = [_safely(line.function, x) for x in present.tolist()]
            agrees = [
                c is not None and e is not None and abs(c - e) < 1e-6 for c, e in zip(compiled, exact, strict=True)
            ]
        else:
            agrees = [c is not None for c in compiled]  # a table says nothing between its entries: nearest step
        where = where.reshape(numbers.shape)
        self.require(np.array(agrees)[where])
        if line.op is Op.MAP_NUMERICAL:
            return np.array([np.nan if c is None else float(c) for c in compiled])[where]
        code_of = {value: code for code, value in enumerate(self.tables[number].values)}
        return np.array([NONE if c is None else code_of[c] for c in compiled])[where]

    def select(self, number: int, line: Line, keys: np.ndarray, queries: np.ndarray) -> np.ndarray:
        self.require((keys >= 0) & (queries >= 0))  # RASP raises on a comparison with None
        width = len(self.tables[line.args[1]].values)
        chosen = np.array(self.tables[number].entries, bool).reshape(-1, width)[keys[:, None, :], queries[:, :, None]]
        return chosen & self.real[:, None, :] & self.real[:, :, None]

    def aggregate(self, chosen: np.ndarray, codes: np.ndarray) -> np.ndarray:
        highest = np.where(chosen, codes[:, None, :], -2).max(2)
        lowest = np.where(chosen, codes[:, None, :], np.iinfo(np.int64).max).min(2)
        nothing = highest == -2
        one_value = (lowest == highest) & ((highest >= 0) | (chosen.sum(2) == 1))
        self.require(nothing | one_value)
        return np.where(nothing, NONE, highest)


def _look_up(entries: tuple, codes: np.ndarray) -> np.ndarray:
    return np.array((*entries, NONE), np.int64)[np.where(codes < 0, -1, codes)]


def _safely(function: Function, x: float) -> Any:
    try:
        return function(x)
    except ArithmeticError:
        return None


def _step(steps: list[tuple], x: float) -> Any:
    """The compiled step function at x; None within a step's slope where it would interpolate."""
    value = steps[0][1]
    for (left, _), (right, after) in zip(steps, steps[1:], strict=False):
        threshold = (left + right) / 2
        if threshold < x < threshold + STEP_WIDTH and value != after:
            return None
        if x <= threshold:
            break
        value = after
    return value
