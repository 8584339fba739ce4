"""What a program means, on whole batches of inputs.

RASP's semantics as in tracr's `rasp/rasp.py`: where a categorical aggregate selects nothing it gives None, and maps
pass None on. Some inputs lie outside what Tracr can compile faithfully (tracr's `compiler/validating.py` finds some of
them); the evaluation marks those as not valid instead of raising.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from typing import Any

import numpy as np

from trade_hf.rasp.functions import Value
from trade_hf.rasp.program import INDICES, TOKENS, Line, Op, Program, Type, Variable, type_of
from trade_hf.rasp.tables import Domain, Table, Tables, tabulate

PADDING = -1  # token code after the end of an input
NONE = -1  # value code of None
EXACTNESS = 100.0  # tracr's default of `mlp_exactness`: a compiled step rises over a width of 1 / EXACTNESS
ROUNDING = 1e-6
MOST_KEPT = 1_000_000  # tokens of all inputs of a domain that is kept once listed: 8 MB


def counts_up_to(exactness: float) -> int:
    """The largest width that a compiled selector width tells from all others.

    Tracr reads a width w off 1 / (w + 1), and the step to the next smaller one rises from halfway between on. Up to
    w · (w + 1) ≤ exactness / 2 it is at its height there.
    """
    return int((math.sqrt(1 + 2 * exactness) - 1) / 2 + ROUNDING)


@dataclass(frozen=True)
class Evaluation:
    """A program's output on a batch.

    Attributes:
      codes: [batch, position] indices into `values` (-1: None), or the numbers themselves for a numerical output.
      values: what the codes stand for; None for a numerical output.
      real: [batch, position] whether the position lies within the input.
      valid: [batch] whether Tracr compiles this input faithfully: no categorical aggregate mixes different values, no
        selector width is above what it can count (`counts_up_to`), no None is compared or made a number, no number
        below 0 comes out of a map of a categorical s-op (Tracr's ReLU cuts it off), every number falls clearly into one
        step of a compiled map.
      listed: [batch] whether every table holds each number that it is asked for. Where one does not, RASP gives None,
        and Tracr's step function the entry next to it.
    """

    codes: np.ndarray
    values: tuple[Value, ...] | None
    real: np.ndarray
    valid: np.ndarray
    listed: np.ndarray

    def decode(self, row: int) -> list[Value | None]:
        """One input's outputs as Python values."""
        cells = self.codes[row][self.real[row]].tolist()
        return cells if self.values is None else [self.values[code] if code >= 0 else None for code in cells]


def all_inputs(vocab_size: int, max_seq_len: int) -> np.ndarray:
    """Every input of every length from 1 to the maximum: token codes [input, position], short ones first."""
    is_small = count_inputs(vocab_size, max_seq_len) * max_seq_len <= MOST_KEPT
    return (_kept_inputs if is_small else _list_inputs)(vocab_size, max_seq_len)


def _list_inputs(vocab_size: int, max_seq_len: int) -> np.ndarray:
    blocks = []
    for length in range(1, max_seq_len + 1):
        block = np.full((vocab_size**length, max_seq_len), PADDING, np.int64)
        block[:, :length] = np.indices((vocab_size,) * length).reshape(length, -1).T
        blocks.append(block)
    inputs = np.concatenate(blocks)
    inputs.setflags(write=False)
    return inputs


_kept_inputs = functools.lru_cache(maxsize=16)(_list_inputs)


def count_inputs(vocab_size: int, max_seq_len: int) -> int:
    """How many inputs `all_inputs` would list."""
    return sum(vocab_size**length for length in range(1, max_seq_len + 1))


def random_inputs(vocab_size: int, max_seq_len: int, count: int, seed: int, min_seq_len: int = 1) -> np.ndarray:
    """`count` inputs drawn uniformly from all those of at least `min_seq_len` tokens: token codes [input, position]."""
    rng = np.random.RandomState(seed)  # its stream is frozen across numpy's versions, unlike default_rng's
    every = np.arange(min_seq_len, max_seq_len + 1)
    weights = float(vocab_size) ** (every - max_seq_len)
    lengths = rng.choice(every, size=count, p=weights / weights.sum())
    inputs = rng.randint(0, vocab_size, (count, max_seq_len), dtype=np.int64)
    inputs[np.arange(max_seq_len) >= lengths[:, None]] = PADDING
    return inputs


def evaluate(
    program: Program | Tables,
    inputs: np.ndarray,
    vocab: tuple = (),
    max_seq_len: int = 0,
    causal: bool = False,
    exactness: float = EXACTNESS,
) -> Evaluation:
    """Run a program on token codes [batch, position] (`PADDING` after the end of an input).

    Args:
      program: the program, or its tables, which already know vocabulary and length.
      inputs: indices into the sorted vocabulary.
      vocab, max_seq_len: needed where a bare program is given.
      causal: selectors select no key after the query, as in tracr's `rasp/causal_eval.py`.
      exactness: of the compiled model: it decides which inputs are valid, and nothing else.
    """
    tables = program if isinstance(program, Tables) else tabulate(program, vocab, max_seq_len)
    run = Run(inputs, causal, exactness)
    for number in tables.program.live_lines:
        run.add(tables.program.lines, number, tables.by_variable)
    return run.output(tables.program.lines, tables.by_variable)


class Run:
    """The states of lines on one batch: codes or numbers [position, input], selectors [key, query, input].

    Inputs are the last axis, so that numpy runs over long rows. What stands at positions after an input's end means
    nothing, but codes are codes there too.
    """

    def __init__(self, inputs: np.ndarray, causal: bool = False, exactness: float = EXACTNESS) -> None:
        self.step_width, self.largest_width = 1 / exactness, counts_up_to(exactness)
        codes = np.ascontiguousarray(inputs.T, np.int16)
        self.real = codes != PADDING
        self.padded = ~self.real
        self.keys = self.real[:, None]  # [key, query, input], or what broadcasts to it: what can be selected
        if causal:
            self.keys = self.keys & np.triu(np.ones((len(codes), len(codes)), bool))[..., None]
        self.valid, self.listed = np.ones((2, len(inputs)), bool)
        positions = np.broadcast_to(np.arange(len(codes), dtype=np.int16)[:, None], codes.shape)
        self.states: dict[Variable, np.ndarray] = {TOKENS: codes, INDICES: positions}
        self.with_none: set[Variable] = set()  # s-ops that are None somewhere

    def again(self) -> Run:
        """A run on the same inputs, before any line."""
        run = copy(self)
        run.valid, run.listed = np.ones((2, len(self.valid)), bool)
        run.states, run.with_none = {TOKENS: self.states[TOKENS], INDICES: self.states[INDICES]}, set()
        return run

    def put(self, number: Variable, state: np.ndarray, has_none: bool) -> None:
        """What line `number` gives."""
        self.states[number] = state
        if has_none:
            self.with_none.add(number)

    def output(self, lines: Sequence[Line], tables: Mapping[Variable, Table]) -> Evaluation:
        """What the last line gives."""
        last = len(lines) - 1
        values = None if lines[last].op.result is Type.NUMERICAL else tables[last].values
        return Evaluation(self.states[last].T, values, self.real.T, self.valid, self.listed)

    def require(self, good: np.ndarray) -> None:
        """Mark inputs where `good` [position, input] fails at a real position as not valid."""
        good = good | self.padded
        if not good.all():
            self.valid &= good.all(0)

    def require_defined(self, line: Line) -> None:
        for argument in line.args:
            if argument in self.with_none:
                self.require(self.states[argument] >= 0)

    def add(self, lines: Sequence[Line], number: int, tables: Mapping[Variable, Table]) -> None:
        """Run line `number`; its arguments' lines were run before."""
        line, table = lines[number], tables[number]
        state = self.state(lines, line, table, tables)
        self.put(number, state, self.can_be_none(line, table) and bool(((state < 0) & self.real).any()))

    def can_be_none(self, line: Line, table: Table) -> bool:
        match line.op:
            case Op.MAP | Op.SEQUENCE_MAP:
                return -1 in table.entries or not self.with_none.isdisjoint(line.args)
            case Op.AGGREGATE:
                return True
        return False

    def state(self, lines: Sequence[Line], line: Line, table: Table, tables: Mapping[Variable, Table]) -> np.ndarray:
        args = [self.states[argument] for argument in line.args]
        match line.op:
            case Op.MAP | Op.MAP_NUMERICAL if type_of(lines, line.args[0]) is Type.NUMERICAL:
                return self.map_of_numbers(line, args[0], tables[line.args[0]].domain, table)
            case Op.MAP:
                return table.codes.take(args[0])
            case Op.MAP_NUMERICAL:
                numbers = table.numbers.take(args[0])
                self.require_defined(line)
                if not (table.numbers[:-1] >= 0).all():  # Tracr's model gives 0 where RASP gives None or less than 0
                    self.require(numbers >= 0)
                    numbers = np.nan_to_num(numbers)
                return numbers
            case Op.SEQUENCE_MAP:
                state = table.codes.take(_places(args[0], args[1], table, tables[line.args[1]]))
                if any(argument in self.with_none for argument in line.args):
                    state[(args[0] < 0) | (args[1] < 0)] = NONE
                return state
            case Op.LINEAR_SEQUENCE_MAP:
                assert line.function is not None and line.function.factors is not None
                return line.function.factors[0] * args[0] + line.function.factors[1] * args[1]
            case Op.SELECT:
                self.require_defined(line)  # RASP raises on a comparison with None
                places = _places(args[0][:, None], args[1][None], table, tables[line.args[1]])
                chosen = table.chosen.take(places)
                return np.logical_and(chosen, self.keys, out=chosen)
            case Op.AGGREGATE:
                return self.aggregate(line, *args)
            case Op.AGGREGATE_NUMERICAL:
                return (args[0] * args[1][:, None]).sum(0) / np.maximum(_width(args[0]), 1)
            case _:
                width = _width(args[0])
                if len(width) > self.largest_width:
                    self.require(width <= self.largest_width)
                return width if line.op is Op.SELECTOR_WIDTH else width.astype(np.float64)

    def aggregate(self, line: Line, chosen: np.ndarray, codes: np.ndarray) -> np.ndarray:
        """The one value that is selected; None where there is none."""
        positive = (codes + np.int16(2))[:, None]
        highest = (positive * chosen).max(0)  # 0: nothing, 1: None
        self.require(~(chosen & (positive != highest)).any(0))
        if line.args[1] in self.with_none:  # None and None are not one value
            self.require((highest != 1) | (_width(chosen) <= 1))
        return np.maximum(highest, 1) - np.int16(2)

    def map_of_numbers(self, line: Line, numbers: np.ndarray, domain: Domain, table: Table) -> np.ndarray:
        """A function of numbers. The compiled one is a step function over the value set: they must agree."""
        assert line.function is not None
        steps = _steps_of(line, domain, table)
        step = steps.thresholds.searchsorted(numbers + ROUNDING, side="right")
        clear = steps.changes.take(step) == steps.changes.take(steps.thresholds.searchsorted(numbers + self.step_width))
        result = steps.results.take(step)
        if line.function.table is None:  # a table says nothing between its entries: nearest step
            clear &= np.abs(steps.numbers.take(step) - line.function.compute(numbers)) < 1e-6
        else:
            self.listed &= (np.isin(numbers, steps.listed) | self.padded).all(0)
        self.require(clear)
        return result


@dataclass(frozen=True)
class _Steps:
    """A compiled step function: what it gives below the first threshold, between each two, and above the last one.

    Attributes:
      thresholds: ascending.
      results: by step: codes of the s-op's values, or numbers.
      numbers: by step: the values themselves, where they are numbers.
      changes: by step: how many thresholds below it change the value.
      listed: the numbers that the map has a value for.
    """

    thresholds: np.ndarray
    results: np.ndarray
    numbers: np.ndarray
    changes: np.ndarray
    listed: np.ndarray


def step_at(line: Line, number: float, domain: Domain, table: Table, exactness: float) -> Any:
    """What the compiled step function of a map of numbers gives: a code or a number; None on a rising step."""
    steps = _steps_of(line, domain, table)
    step = steps.thresholds.searchsorted(number + ROUNDING, side="right")
    is_clear = steps.changes[step] == steps.changes[steps.thresholds.searchsorted(number + 1 / exactness)]
    return steps.results[step].item() if is_clear else None


def too_close(line: Line, domain: Domain, table: Table, exactness: float) -> list[tuple[float, float]]:
    """Neighbours among the values that a map of numbers is made for, which it gives different results for although the
    compiled step from one to the other is wider than from one of them to the middle."""
    undefined = None if line.op is Op.MAP_NUMERICAL else NONE
    pairs = [(x, entry) for x, entry in zip(domain.values, table.entries, strict=True) if entry != undefined]
    return [
        (float(one), float(other))  # type: ignore[arg-type]
        for (one, before), (other, after) in itertools.pairwise(pairs)
        if before != after and other - one < 2 / exactness - ROUNDING  # type: ignore[operator]
    ]


def _steps_of(line: Line, domain: Domain, table: Table) -> _Steps:
    """The steps of a map of numbers; kept where its function has a name."""
    assert line.function is not None
    if line.function.name is None:
        return _find_steps(line, domain, table)
    key = ("steps", line.op, line.function.name)
    found = domain.tables.get(key)
    if found is None:
        found = domain.tables[key] = _find_steps(line, domain, table)
    return found


def _find_steps(line: Line, domain: Domain, table: Table) -> _Steps:
    numerical = line.op is Op.MAP_NUMERICAL
    undefined = None if numerical else NONE
    inputs: tuple[Any, ...] = domain.values
    pairs = [(x, entry) for x, entry in zip(inputs, table.entries, strict=True) if entry != undefined]
    results = [entry for _, entry in pairs]
    values = results if numerical else [table.values[code] for code in results]
    changed = [0, *(before != after for before, after in itertools.pairwise(results))]
    return _Steps(
        np.array([(left + right) / 2 for (left, _), (right, _) in itertools.pairwise(pairs)], np.float64),
        np.array(results, np.float64 if numerical else table.codes.dtype),
        np.array([float(value) if isinstance(value, int | float) else np.nan for value in values]),
        np.cumsum(changed),
        np.array([x for x, _ in pairs], np.float64),
    )


def _places(first: np.ndarray, second: np.ndarray, table: Table, of_second: Table) -> np.ndarray:
    """Where pairs stand in a table in row-major order. For a code of -1 it is some place of the table all the same."""
    dtype = np.int16 if len(table.entries) < 2**15 else np.int64
    return first * np.array(len(of_second.domain), dtype) + second


def _width(chosen: np.ndarray) -> np.ndarray:
    """How many keys each query selects."""
    return chosen.sum(0, dtype=np.int16)
