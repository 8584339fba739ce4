"""Do two of programs and compiled transformers agree? The answer says how it was found.

Four ways:
- identical weights: the program, compiled, has the model's weights and mask, up to the order of residual directions,
  hidden units, head dimensions and heads. An explicit reordering is found and every tensor compared: this is a proof.
- identical weights in another basis: what each part reads of each other part is so nearly the same that no difference
  can reach an output, whatever basis the residual stream has (`compiled/comparison.py`). This is looked for where not
  all inputs were run and those that were agree.
- equivalent: both give the same on every input of every length up to the maximum.
- agrees: the same on a stated number of inputs, where there are too many to run them all (in the time, if there is a
  deadline): all of the shortest lengths and a seeded sample of the others, with a bound on the share of inputs that may
  differ.
Otherwise a counterexample, one that no shorter one was found for.

Numbers are the same if they differ by at most TOLERANCE. Where a program gives None, a model must leave all output
directions off. Inputs that Tracr cannot compile faithfully (`rasp/evaluate.py`, `valid`; `compiled/faithful.py`) have
no defined answer in RASP: there a program means what Tracr makes of it.

Models run in single precision, as Tracr's do. Steps 0.01 wide multiply rounding by a hundred, layer after layer, so in
another basis a sum of other rounding can end up on the wrong side of a step. Where two sides differ they are therefore
run again in double precision: a difference counts if it is there as well.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from enum import Enum
from functools import cached_property
from typing import Any

import numpy as np
import torch

from trade_hf.compiled.comparison import TOLERANCE, compare
from trade_hf.compiled.compiler import compile_program
from trade_hf.compiled.faithful import may_depart
from trade_hf.compiled.forward import run
from trade_hf.compiled.isomorphism import are_identical
from trade_hf.compiled.weights import COLDNESS, TracrWeights, WeightsError
from trade_hf.rasp.evaluate import PADDING, all_inputs, count_inputs, evaluate, random_inputs
from trade_hf.rasp.functions import Value
from trade_hf.rasp.program import Program
from trade_hf.rasp.tables import UnsupportedError, sort_values, tabulate

EXHAUSTIVE_LIMIT = 2_000_000  # inputs; above, a sample is taken
SAMPLED_INPUTS = 10_000
LEAST_SAMPLED = 1_000  # however little time there is
MOST_TOKENS = 100_000_000  # of all inputs that may be asked for: they are held in memory, 8 bytes each
CONFIDENCE = 0.95  # of the bound on the share of inputs that differ
BOS_LOGIT = COLDNESS / 2  # of a selected key above BOS, times the root of the key size
FRACTION_DIGITS = 9  # of the values of a categorical output: 2.2 % 2 is not quite 0.2
FIRST_CHUNK, CHUNK = 256, 16_384  # most programs that are wrong are so at once
MOST_PAIRS = 4_000_000  # of positions, of all inputs of a chunk: what a selector and a head hold
SUSPECTS = 64  # inputs that are run again at a time


class Status(Enum):
    """What was found, the weakest first. The last three are proofs."""

    NOT_COMPARABLE = "not comparable"
    REFUTED = "refuted"
    AGREES = "agrees"
    EQUIVALENT_IN_ONE_PRECISION = "equivalent in one precision"
    EQUIVALENT = "equivalent"
    SAME_IN_ANOTHER_BASIS = "identical weights in another basis"
    IDENTICAL = "identical weights"

    @property
    def strength(self) -> int:
        """0 for the weakest."""
        return list(Status).index(self)


PROVEN = (Status.EQUIVALENT, Status.SAME_IN_ANOTHER_BASIS, Status.IDENTICAL)


@dataclass(frozen=True)
class Difference:
    """Inputs on which two sides differ: how many were found, the first of them, and what each side gives there.

    Attributes:
      inputs: how many differ.
      checked: of how many.
      first: the tokens of the first of them.
      expected, got: the outputs of the first and of the second side.
    """

    inputs: int
    checked: int
    first: tuple[Value, ...]
    expected: tuple
    got: tuple

    def __str__(self) -> str:
        return f"{self.inputs:,} of {self.checked:,} inputs, the first {list(self.first)}"


@dataclass(frozen=True)
class Verdict:
    """What was found, on how many inputs, of how many.

    Attributes:
      status: what was found.
      checked: on how many inputs both were run; all of them where weights are identical, which need not be run.
      inputs: how many inputs there are, of all lengths.
      bound: where not all inputs were run, the share of them that may differ at most, with `CONFIDENCE`.
      counterexample: an input on which the two differ in both precisions; None where none was found.
      expected, got: what the first and the second give there.
      reason: why the two cannot be the same, or cannot be compared, where no input was run.
      precision: `float32` or `float64` where both agree in this one alone, on the inputs that were run.
      elsewhere: the inputs on which they differ in the other precision.
      departure: the inputs on which the program, read as RASP, gives another answer than what Tracr compiles of it.
        The verdict is on what Tracr compiles.
    """

    status: Status
    checked: int
    inputs: int
    bound: float | None = None
    counterexample: tuple[Value, ...] | None = None
    expected: tuple | None = None
    got: tuple | None = None
    reason: str | None = None
    precision: str | None = None
    elsewhere: Difference | None = None
    departure: Difference | None = None

    @property
    def is_verified(self) -> bool:
        """Whether it is proven that both give the same on every input, in both precisions."""
        return self.status in PROVEN

    def to_dict(self) -> dict[str, Any]:
        """All of it for JSON: `proven` is `is_verified`, `certificate` the verdict in words."""
        row = asdict(self) | {"status": self.status.value}
        return {"proven": self.is_verified, "certificate": str(self), **row}

    def __str__(self) -> str:
        return "; ".join([self._found(), *self._reservations()])

    def _found(self) -> str:
        match self.status:
            case Status.IDENTICAL | Status.SAME_IN_ANOTHER_BASIS:
                return self.status.value
            case Status.EQUIVALENT:
                return f"equivalent on all {self.inputs:,} inputs"
            case Status.EQUIVALENT_IN_ONE_PRECISION:
                return f"equivalent on all {self.inputs:,} inputs in {self.precision} alone"
            case Status.AGREES:
                alone = f" in {self.precision} alone" if self.precision else ""
                return f"agrees on {self.checked:,} of {self.inputs:,} inputs{alone}"
            case Status.REFUTED if self.counterexample is not None:
                return f"refuted by {list(self.counterexample)}"
        return f"{self.status.value}: {self.reason}"

    def _reservations(self) -> list[str]:
        found = []
        if self.elsewhere is not None:
            other = "float32" if self.precision == "float64" else "float64"
            found.append(f"in {other} they differ on {self.elsewhere}")
        elif self.status is Status.EQUIVALENT_IN_ONE_PRECISION:
            found.append(str(self.reason))
        if self.departure is not None:
            found.append(f"RASP itself gives another answer than Tracr's model on {self.departure}")
        return found


def verify(
    program: Program,
    weights: TracrWeights,
    limit: int = EXHAUSTIVE_LIMIT,
    seed: int = 0,
    samples: int = SAMPLED_INPUTS,
) -> Verdict:
    """Compare a program with a model.

    Args:
      program: over the model's vocabulary.
      weights: the model.
      limit: run all inputs if there are at most this many, or no more than `samples`; else `samples` of them, drawn
        with `seed`.

    Raises ValueError for a limit or a sample below 1, or of more than MOST_TOKENS tokens.
    """
    return Verifier(weights, limit, seed, samples).verify(program)


class Verifier:
    """A model that programs are compared with, one after the other: what it gives on the first inputs is kept.

    `deadline`, of `time.monotonic()`: a comparison on all inputs that would not end by then is one on a sample, and one
    on a sample that would not either is one on LEAST_SAMPLED inputs.
    """

    def __init__(
        self,
        weights: TracrWeights,
        limit: int = EXHAUSTIVE_LIMIT,
        seed: int = 0,
        samples: int = SAMPLED_INPUTS,
        deadline: float = math.inf,
    ) -> None:
        self.weights, self.deadline = weights, deadline
        vocab = tuple(sort_values(weights.input_vocab))
        self.inputs = _Inputs(vocab, weights.max_seq_len, limit, samples, seed)
        self.model = _ModelSide(weights, vocab)

    def verify(self, program: Program) -> Verdict:
        """As `verify`."""
        weights, inputs = self.weights, self.inputs
        try:
            side = _ProgramSide(program, inputs.vocab, inputs.max_seq_len, weights.causal)
        except (UnsupportedError, WeightsError) as error:  # the second: it is too large
            return Verdict(Status.NOT_COMPARABLE, 0, inputs.total, reason=f"the program does not compile: {error}")
        if are_identical(side.compiled, weights):
            return Verdict(Status.IDENTICAL, inputs.total, inputs.total)
        verdict = _compare_in_time(side, self.model, inputs, self.deadline)
        if verdict.status is not Status.AGREES:
            return verdict
        comparison = compare(side.compiled, weights)
        if comparison.is_proven:
            return replace(verdict, status=Status.SAME_IN_ANOTHER_BASIS, bound=None)
        if comparison.precisions:
            status, [precision] = Status.EQUIVALENT_IN_ONE_PRECISION, comparison.precisions
            return replace(verdict, status=status, bound=None, precision=precision, reason=comparison.reason)
        return verdict


def verify_programs(
    first: Program,
    second: Program,
    vocab: Iterable[Value],
    max_seq_len: int,
    limit: int = EXHAUSTIVE_LIMIT,
    seed: int = 0,
    samples: int = SAMPLED_INPUTS,
) -> Verdict:
    """Compare two programs over the same vocabulary and length.

    Raises UnsupportedError for a program that Tracr cannot compile, WeightsError for one that is too large.
    """
    vocab = tuple(sort_values(set(vocab)))
    one, other = (_ProgramSide(program, vocab, max_seq_len) for program in (first, second))
    return _compare(one, other, _Inputs(vocab, max_seq_len, limit, samples, seed))


def verify_weights(
    first: TracrWeights,
    second: TracrWeights,
    limit: int = EXHAUSTIVE_LIMIT,
    seed: int = 0,
    samples: int = SAMPLED_INPUTS,
) -> Verdict:
    """Compare two models over the same vocabulary and length. Raises ValueError if theirs differ."""
    domains = [(tuple(sort_values(weights.input_vocab)), weights.max_seq_len) for weights in (first, second)]
    if domains[0] != domains[1]:
        raise ValueError("expected two models over one vocabulary and length, got {} and {}".format(*domains))
    (vocab, length), total = domains[0], count_inputs(len(domains[0][0]), domains[0][1])
    if are_identical(first, second):
        return Verdict(Status.IDENTICAL, total, total)
    one, other = (_ModelSide(weights, vocab) for weights in (first, second))
    return _compare(one, other, _Inputs(vocab, length, limit, samples, seed))


# ---------------------------------------------------------------- what is compared


@dataclass(frozen=True)
class _Answer:
    """What one side gives, [input, position]: codes of `values`, or numbers if that is None; where it gives None."""

    cells: np.ndarray
    undefined: np.ndarray
    values: tuple[Value, ...] | None

    def decode(self, row: int, real: np.ndarray) -> tuple:
        cells, undefined = self.cells[row][real].tolist(), self.undefined[row][real].tolist()
        if self.values is None:
            return tuple(cells)
        return tuple(None if none else self.values[code] for code, none in zip(cells, undefined, strict=True))


class _ProgramSide:
    """Raises UnsupportedError for a program that Tracr cannot compile."""

    def __init__(self, program: Program, vocab: tuple[Value, ...], max_seq_len: int, causal: bool = False) -> None:
        self.tables = tabulate(program, vocab, max_seq_len)
        self.compiled = compile_program(program, vocab, max_seq_len, causal=causal)
        # In wide heads, the softmax leaves so much on BOS that averages are others than in RASP.
        leak = max_seq_len * math.exp(-BOS_LOGIT / math.sqrt(self.compiled.key_size))
        self.departs = may_depart(self.tables) or leak > TOLERANCE

    def __call__(self, inputs: np.ndarray, dtype: torch.dtype = torch.float32) -> _Answer:
        meant = evaluate(self.tables, inputs, causal=self.compiled.causal)
        cells, values = meant.codes, meant.values
        undefined = np.zeros(cells.shape, bool) if values is None else cells < 0
        rows = np.flatnonzero(~meant.valid | self.departs)
        if len(rows):
            order = np.array([*map(self.compiled.input_vocab.index, self.tables.vocab), PADDING])
            given = run(self.compiled, order[inputs[rows]], dtype=dtype)
            cells, undefined = cells.copy(), undefined.copy()
            cells[rows], undefined[rows] = given.codes, given.undefined
            if values is not None:
                cells[rows] = _positions(given.values or (), values)[given.codes]
        return _Answer(cells, undefined, values)


class _ModelSide:
    def __init__(self, weights: TracrWeights, vocab: tuple[Value, ...]) -> None:
        self.weights = weights
        # Codes are places in the sorted vocabulary; a model may have its tokens in another order.
        self.order = np.array([*map(weights.input_vocab.index, vocab), PADDING])
        self.kept: dict[bytes, _Answer] = {}  # of first chunks

    def __call__(self, inputs: np.ndarray, dtype: torch.dtype = torch.float32) -> _Answer:
        key = inputs.tobytes() if len(inputs) == FIRST_CHUNK and dtype is torch.float32 else b""
        if key in self.kept:
            return self.kept[key]
        given = run(self.weights, self.order[inputs], dtype=dtype)
        answer = _Answer(given.codes, given.undefined, given.values)
        if key:
            self.kept = {key: answer}
        return answer


_Side = _ProgramSide | _ModelSide


@dataclass(frozen=True)
class _Inputs:
    """Which inputs are run: all, or all of the shortest lengths and a sample of the longer ones."""

    vocab: tuple[Value, ...]
    max_seq_len: int
    limit: int
    samples: int
    seed: int

    def __post_init__(self) -> None:
        for name, count in (("limit", self.limit), ("samples", self.samples)):
            if count < 1:
                raise ValueError(f"{name}: expected at least 1 input, got {count:,}")
        asked, most = self.total if self.is_complete else self.samples, MOST_TOKENS // self.max_seq_len
        if asked > most:
            raise ValueError(
                f"limit and samples: expected at most {most:,} inputs of {self.max_seq_len} tokens, got {asked:,}"
            )

    @property
    def total(self) -> int:
        return count_inputs(len(self.vocab), self.max_seq_len)

    @property
    def is_complete(self) -> bool:
        return self.total <= max(self.limit, self.samples)

    @property
    def complete_length(self) -> int:
        """Up to which length all inputs are run; half of the sample at most."""
        if self.is_complete:
            return self.max_seq_len
        lengths = range(1, self.max_seq_len)
        return max((n for n in lengths if count_inputs(len(self.vocab), n) <= self.samples // 2), default=0)

    @cached_property
    def codes(self) -> np.ndarray:
        """[input, position], short ones first."""
        size, complete = len(self.vocab), self.complete_length
        if self.is_complete:
            return all_inputs(size, self.max_seq_len)
        short = np.full((count_inputs(size, complete), self.max_seq_len), PADDING, np.int64)
        if complete:
            short[:, :complete] = all_inputs(size, complete)
        drawn = random_inputs(size, self.max_seq_len, self.samples - len(short), self.seed, complete + 1)
        return np.concatenate([short, drawn])

    @cached_property
    def sampled(self) -> _Inputs:
        """A sample of them, where there are more."""
        return replace(self, limit=1)

    @cached_property
    def least(self) -> _Inputs:
        """A small sample of them, where there are more."""
        return replace(self, limit=1, samples=min(self.samples, LEAST_SAMPLED))

    def bound(self) -> float | None:
        """Clopper–Pearson for no difference seen: n drawn show none with (1 - p) ** n if a share p differs."""
        if self.is_complete:
            return None
        short = count_inputs(len(self.vocab), self.complete_length)
        return (1 - (1 - CONFIDENCE) ** (1 / (self.samples - short))) * (1 - short / self.total)


def _compare_in_time(first: _Side, second: _Side, inputs: _Inputs, deadline: float) -> Verdict:
    """On all inputs or the sample that is asked for, if that ends before the deadline; else on fewer."""
    for some in (inputs, inputs.sampled) if inputs.is_complete else (inputs,):
        with contextlib.suppress(TimeoutError):
            return _compare(first, second, some, deadline)
    return _compare(first, second, inputs.least)


def _compare(first: _Side, second: _Side, inputs: _Inputs, deadline: float = math.inf) -> Verdict:
    """Raises TimeoutError as soon as it is to be expected that it would not end before the deadline, and that one on
    fewer inputs would take less."""
    codes, total = inputs.codes, inputs.total
    most, fewer = max(1, MOST_PAIRS // inputs.max_seq_len**2), inputs.samples if inputs.is_complete else LEAST_SAMPLED
    step = min(CHUNK if deadline == math.inf or inputs.is_complete else LEAST_SAMPLED, most)
    starts = [0, *range(min(FIRST_CHUNK, most), len(codes), step), len(codes)]
    for start, end in itertools.pairwise(starts):
        now = time.monotonic()
        if start <= FIRST_CHUNK:
            begun = now
        left = len(codes) - start
        if start > FIRST_CHUNK and left > fewer and now + (now - begun) * left / (start - FIRST_CHUNK) > deadline:
            raise TimeoutError
        chunk = codes[start:end]
        answers = first(chunk), second(chunk)
        if (answers[0].values is None) != (answers[1].values is None):
            return Verdict(Status.REFUTED, 0, total, reason="one output is numerical, the other categorical")
        suspects = np.flatnonzero(_differ(*answers, chunk))
        place = _first_that_differs(first, second, chunk, suspects)
        if place is not None:
            found = chunk[place]
            if not inputs.is_complete:
                found = _shrink(found, lambda one: bool(_differ_for_sure(first, second, one)[0]))
            real = found != PADDING
            expected, got = (side(found[None], torch.float64).decode(0, real) for side in (first, second))
            tokens = tuple(inputs.vocab[code] for code in found[real])
            return Verdict(Status.REFUTED, start + place + 1, total, None, tokens, expected, got)
    status = Status.EQUIVALENT if inputs.is_complete else Status.AGREES
    return Verdict(status, len(codes), total, inputs.bound())


def _first_that_differs(first: _Side, second: _Side, chunk: np.ndarray, suspects: np.ndarray) -> int | None:
    """The first of the suspects that differs in double precision too; they are run few at a time, one is enough."""
    for start in range(0, len(suspects), SUSPECTS):
        some = suspects[start : start + SUSPECTS]
        sure = _differ_for_sure(first, second, chunk[some])
        if sure.any():
            return int(some[sure.argmax()])
    return None


def _differ_for_sure(first: _Side, second: _Side, inputs: np.ndarray) -> np.ndarray:
    return _differ(first(inputs, torch.float64), second(inputs, torch.float64), inputs)


def _differ(first: _Answer, second: _Answer, inputs: np.ndarray) -> np.ndarray:
    """[input]: whether the two differ at a real position."""
    if first.values is None or second.values is None:
        same = np.abs(first.cells - second.cells) <= TOLERANCE
    else:
        values = (*first.values, *second.values)
        same = _positions(first.values, values)[first.cells] == _positions(second.values, values)[second.cells]
        same = np.where(first.undefined | second.undefined, first.undefined & second.undefined, same)
    return ~(same | (inputs == PADDING)).all(1)


def _shrink(codes: np.ndarray, differs: Callable[[np.ndarray], bool]) -> np.ndarray:
    """A counterexample from which no single token can be left out."""
    place = 0
    while place < (codes != PADDING).sum():
        shorter = np.append(np.delete(codes, place), PADDING)
        if (shorter != PADDING).any() and differs(shorter[None]):
            codes, place = shorter, 0
        else:
            place += 1
    return codes


def _positions(values: tuple[Value, ...], among: Iterable[Value]) -> np.ndarray:
    """Where each value stands among others, the last of those that are the same up to rounding; -2 for one that is not
    there."""
    place = {rounded(value): i for i, value in enumerate(among)}
    return np.array([place.get(rounded(value), -2) for value in values] or [-2])


def rounded(value: Value) -> Value:
    """Fractions that differ by rounding alone, as 0.1 + 0.2 and 0.3, are one."""
    return round(value, FRACTION_DIGITS) if isinstance(value, float) else value
