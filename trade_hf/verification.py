"""Do two of programs and compiled transformers agree? The answer says how it was found.

Four ways:
- identical weights: the program, compiled, has the model's weights and mask, up to the order of residual directions,
  hidden units, head dimensions and heads. An explicit reordering is found and every tensor compared: this is a proof of
  just that. Where it is not bounded that no order of the sums in single precision changes an output, all inputs or a
  sample are run, and the verdict is another if one does.
- identical weights in another basis: what each part reads of each other part is so nearly the same that no difference
  can reach an output, whatever basis the residual stream has (`circuit/comparison.py`). This is looked for where not
  all inputs were run and those that were agree.
- equivalent: both give the same on every input of every length up to the maximum.
- agrees: the same on a stated number of inputs, where there are too many to run them all (within `limits`, if there are
  any): all of the shortest lengths and a seeded sample of the others, with a bound on the share of inputs that may
  differ.
Otherwise a counterexample, one that no shorter one was found for.

Models are run twice: in single precision, as Tracr's are, and in double precision. Steps 0.01 wide multiply rounding by
a hundred, layer after layer, so in another basis a sum of other rounding can end up on the wrong side of a step. What
holds in one precision alone is no proof, and the verdict says on how many inputs it fails in the other. Nor may single
precision's answer hang on the order of its sums, which another machine takes otherwise: the model is run once more with
each sum off by as much as another order may make it.

Numbers are the same if they differ by at most TOLERANCE, above 100 by at most RELATIVE of themselves
(`circuit/comparison.py`). Categorical outputs are decoded as Tracr does: the first of
the largest logits. None is where all logits are alike within TOLERANCE, or within as small a share of what an output
makes of them where it is on; so neither the offset nor the scale of the logits matters. NaN and infinity are like
nothing.

Inputs that Tracr cannot compile faithfully (`rasp/evaluate.py`, `valid`; `compiled/faithful.py`) are compared with what
Tracr makes of the program there. Where that is not what RASP says, the verdict tells on how many inputs.
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

from trade_hf.circuit.comparison import PRECISIONS, TOLERANCE, are_alike, compare, hangs_on_order
from trade_hf.circuit.isomorphism import are_identical
from trade_hf.compiled.compiler import compile_like, compile_program
from trade_hf.compiled.faithful import check_numbers, limits, may_depart
from trade_hf.compiled.forward import ALIKE, Output, run
from trade_hf.compiled.weights import COLDNESS, TracrWeights, WeightsError
from trade_hf.limits import MULTIPLICATIONS, Limits
from trade_hf.rasp.evaluate import EXACTNESS, PADDING, all_inputs, count_inputs, evaluate, random_inputs
from trade_hf.rasp.functions import Value
from trade_hf.rasp.program import Program, Type
from trade_hf.rasp.reference import NoAnswerError, answer
from trade_hf.rasp.tables import Tables, UnsupportedError, sort_values, tabulate

SINGLE = PRECISIONS[0]  # Tracr's
EXHAUSTIVE_LIMIT = 2_000_000  # inputs; above, a sample is taken
SAMPLED_INPUTS = 10_000
LEAST_SAMPLED = 1_000  # however little time there is
MOST_LOOKED_AT = 200_000_000  # pairs of positions, of all inputs on which RASP is asked what it says
MOST_ASKED = 1_000  # of them one by one, where it may say another thing than Tracr makes of the program; of long ones
MOST_PAIRS_ASKED = 300_000  # fewer: so many pairs of positions in all, but 10 inputs at least
# Of a number times the exactness: steps multiply by it, and up to this float32 is off by less than a tenth of a step.
MOST_EXACT = 1_000_000
MOST_TOKENS = 100_000_000  # of all inputs that may be asked for: they are held in memory, 8 bytes each
REORDERED = "float32, its sums in another order"
HANGS_ON_ORDER = "what the model gives in float32 hangs on the order of its sums"
CONFIDENCE = 0.95  # of the bound on the share of inputs that differ
OUT_OF_SCALE = f"the model is outside Tracr's scale: all of its logits are alike within {ALIKE}"
BOS_LOGIT = COLDNESS / 2  # of a selected key above BOS, times the root of the key size
FRACTION_DIGITS = 9  # of the values of a categorical output: 2.2 % 2 is not quite 0.2
FIRST_CHUNK, CHUNK = 256, 16_384  # most programs that are wrong are so at once
MOST_KEPT = 500_000  # positions whose answers are kept of a model that programs are compared with: up to 40 MB
CHUNK_IN_TIME = 1_024  # where there is a time limit
MOST_PAIRS = 4_000_000  # of positions, of all inputs of a chunk: what a selector and a head hold


class Status(Enum):
    """What was found, the weakest first. The last three are proofs."""

    NOT_COMPARABLE = "not comparable"
    REFUTED = "refuted"
    AGREES = "agrees"
    EQUIVALENT_BUT_FOR_NONE = "equivalent but for None"
    EQUIVALENT_IN_ONE_PRECISION = "equivalent in one precision"
    EQUIVALENT = "equivalent"
    SAME_IN_ANOTHER_BASIS = "identical weights in another basis"
    IDENTICAL = "identical weights"

    @property
    def strength(self) -> int:
        """0 for the weakest."""
        return list(Status).index(self)

    @property
    def is_on_all_inputs(self) -> bool:
        """Whether both were run on all inputs and agree, though it be in one precision or but for None."""
        return Status.AGREES.strength < self.strength <= Status.EQUIVALENT.strength


PROVEN = (Status.EQUIVALENT, Status.SAME_IN_ANOTHER_BASIS, Status.IDENTICAL)


@dataclass(frozen=True)
class Difference:
    """Inputs on which two sides differ: how many were found, the first of them, and what each side gives there.

    Attributes:
      inputs: how many differ.
      checked: of how many.
      first: the tokens of the first of them.
      expected, got: the outputs of the first and of the second side; the first is None where RASP has no answer.
    """

    inputs: int
    checked: int
    first: tuple[Value, ...]
    expected: tuple | None
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
      faint: the inputs on which one gives None and the other, for logits that are not alike and yet too small to be an
        output's, some value. Noise makes such models.
      departure: the inputs on which the program, read as RASP, gives another answer than what Tracr compiles of it.
        The verdict is on what Tracr compiles.
      limits: where there are such inputs, what the model cannot tell apart at its exactness, in words.
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
    faint: Difference | None = None
    departure: Difference | None = None
    limits: tuple[str, ...] = ()

    @property
    def is_verified(self) -> bool:
        """Whether it is proven that both give the same on every input, in both precisions."""
        return self.status in PROVEN

    @property
    def reservations(self) -> dict[str, Difference | None]:
        """What a verdict other than `refuted` is to be read with, by the name of the field."""
        return {"elsewhere": self.elsewhere, "faint": self.faint, "departure": self.departure}

    def to_dict(self) -> dict[str, Any]:
        """All of it for JSON: `proven` is `is_verified`, `certificate` the verdict in words."""
        row = {**asdict(self), "status": self.status.value}
        return json_value({"proven": self.is_verified, "certificate": str(self), **row})

    def __str__(self) -> str:
        return "; ".join([self._found(), *self._reservations()])

    def _found(self) -> str:
        alone = f" in {self.precision} alone" if self.precision else ""
        match self.status:
            case Status.IDENTICAL | Status.SAME_IN_ANOTHER_BASIS:
                return self.status.value
            case Status.EQUIVALENT:
                return f"equivalent on all {self.inputs:,} inputs"
            case Status.EQUIVALENT_IN_ONE_PRECISION | Status.EQUIVALENT_BUT_FOR_NONE:
                return f"equivalent on all {self.inputs:,} inputs{alone}"
            case Status.AGREES:
                return f"agrees on {self.checked:,} of {self.inputs:,} inputs{alone}"
            case Status.REFUTED if self.counterexample is not None:
                return f"refuted by {list(self.counterexample)}"
        return f"{self.status.value}: {self.reason}"

    def _reservations(self) -> list[str]:
        found = []
        if self.elsewhere is not None:
            other = "float32" if self.precision == "float64" else "float64"
            found.append(f"in {other} they differ on {self.elsewhere}" + (f": {self.reason}" if self.reason else ""))
        elif self.status is Status.EQUIVALENT_IN_ONE_PRECISION:
            found.append(str(self.reason))
        if self.faint is not None:
            found.append(f"where the program gives None, the model decodes to a faint value on {self.faint}")
        if self.departure is not None:
            found.append(f"RASP itself gives another answer than Tracr's model on {self.departure}")
        return [*found, *self.limits]


def json_value(value: Any) -> Any:
    """A value as JSON holds it: tuples as lists, NaN and infinity by their names."""
    if isinstance(value, dict):
        return {name: json_value(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [json_value(part) for part in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


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

    Raises ValueError for a limit or a sample below 1, or of more than MOST_TOKENS tokens, TypeError for other types.
    """
    if not (hasattr(program, "lines") and hasattr(weights, "tensors")):
        raise TypeError(f"expected a program and a model, got {type(program).__name__} and {type(weights).__name__}")
    return Verifier(weights, limit, seed, samples).verify(program)


class Verifier:
    """A model that programs are compared with, one after the other: what it gives on the first inputs is kept.

    Within `limits`, a comparison on all inputs that takes too many steps, or would not end in time, is one on a sample,
    and where that is too much as well, one on LEAST_SAMPLED inputs; of these, as many as there is time for.
    """

    def __init__(
        self,
        weights: TracrWeights,
        limit: int = EXHAUSTIVE_LIMIT,
        seed: int = 0,
        samples: int = SAMPLED_INPUTS,
        limits: Limits | None = None,
    ) -> None:
        self.weights, self.limits = weights, limits or Limits()
        vocab = tuple(sort_values(weights.input_vocab))
        self.inputs = _Inputs(vocab, weights.max_seq_len, limit, samples, seed)
        self.model = _ModelSide(weights, vocab)

    def verify(self, program: Program) -> Verdict:
        """As `verify`."""
        return self.with_departure(program, self.compare(program))

    def renewed(self, limits: Limits) -> Verifier:
        """One of the same model, with samples of the usual size and limits of its own; what is kept is kept."""
        other = Verifier(self.weights, limits=limits)
        other.model = self.model
        return other

    @np.errstate(all="ignore")  # a model may hold any numbers; what overflows is a difference
    def compare(self, program: Program) -> Verdict:
        """As `verify`, without a look at whether RASP says what Tracr makes of the program."""
        weights, inputs = self.weights, self.inputs
        try:
            side = self._side(program)
            check_numbers(side.tables, TOLERANCE)
        except (UnsupportedError, WeightsError) as error:  # the second: it is too large
            return Verdict(Status.NOT_COMPARABLE, 0, inputs.total, reason=f"the program does not compile: {error}")
        identical = are_identical(side.compiled, weights)
        if identical and not hangs_on_order(side.compiled):
            return Verdict(Status.IDENTICAL, inputs.total, inputs.total)
        side.departs |= identical  # then it is Tracr's model that is compared, whatever RASP says
        verdict = _compare_within(self.limits, side, self.model, inputs.sampled if identical else inputs)
        if identical:
            return _of_identical(verdict)
        if verdict.status is not Status.AGREES or verdict.faint is not None:
            return verdict
        proof = compare(side.compiled, weights)
        precisions = [name for name in proof.precisions if verdict.precision in (None, name)]
        if len(precisions) == len(PRECISIONS):
            return replace(verdict, status=Status.SAME_IN_ANOTHER_BASIS, bound=None)
        if precisions:
            status = Status.EQUIVALENT_IN_ONE_PRECISION
            return replace(verdict, status=status, bound=None, precision=precisions[0], reason=proof.reason)
        return verdict

    def with_departure(self, program: Program, verdict: Verdict) -> Verdict:
        """What `compare` gave of a program, with a look at whether RASP says what Tracr makes of it."""
        if verdict.status in (Status.NOT_COMPARABLE, Status.REFUTED):
            return verdict
        side = self._side(program)
        departure = _departure(side, self.inputs.looked_at)
        return replace(verdict, departure=departure, limits=limits(side.tables, side.exactness) if departure else ())

    def _side(self, program: Program) -> _ProgramSide:
        return _ProgramSide(program, compile_like(program, self.weights), self.weights.exactness)


def _of_identical(verdict: Verdict) -> Verdict:
    """Of identical weights, what a run says of the order of their sums: that it shows no difference, or one."""
    if verdict.status not in (Status.EQUIVALENT, Status.AGREES) or verdict.faint is not None:
        return verdict
    if verdict.elsewhere is None:
        return Verdict(Status.IDENTICAL, verdict.inputs, verdict.inputs)
    return replace(verdict, status=Status.EQUIVALENT_IN_ONE_PRECISION, bound=None)


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
    one, other = (_ProgramSide(program, compile_program(program, vocab, max_seq_len)) for program in (first, second))
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
    vocab, length = domains[0]
    one, other = (_ModelSide(weights, vocab) for weights in (first, second))
    verdict = _compare(one, other, _Inputs(vocab, length, limit, samples, seed))
    return _of_identical(verdict) if are_identical(first, second) else verdict


# ---------------------------------------------------------------- what is compared


@dataclass(frozen=True)
class _Answer:
    """What one side gives, [input, position].

    Attributes:
      cells: codes of `values`, or numbers if that is None.
      contrast: how far the largest logit is above the smallest (`forward.Output`); 1 of what RASP says, 0 of None.
      values: what the codes stand for.
    """

    cells: np.ndarray
    contrast: np.ndarray
    values: tuple[Value, ...] | None

    @classmethod
    def of(cls, output: Output) -> _Answer:
        return cls(output.codes, output.contrast, output.values)

    def decode(self, row: int, real: np.ndarray) -> tuple:
        """One input's outputs; None where no output direction is on, NaN where a logit is."""
        cells, contrast = self.cells[row][real].tolist(), self.contrast[row][real].tolist()
        if self.values is None:
            return tuple(cells)
        return tuple(
            math.nan if not math.isfinite(on) else None if on <= ALIKE else self.values[code]
            for code, on in zip(cells, contrast, strict=True)
        )


class _ProgramSide:
    """A program, with what Tracr makes of it. Raises UnsupportedError for one that Tracr cannot compile."""

    is_model = False

    def __init__(self, program: Program, compiled: TracrWeights, exactness: float = EXACTNESS) -> None:
        self.tables = tabulate(program, compiled.input_vocab, compiled.max_seq_len)
        self.compiled, self.exactness = compiled, exactness
        # In wide heads, the softmax leaves so much on BOS that averages are others than in RASP.
        leak = compiled.max_seq_len * math.exp(-BOS_LOGIT / math.sqrt(compiled.key_size))
        steepness = max(1.0, exactness / EXACTNESS)  # a step multiplies what is left by it
        self.departs = may_depart(self.tables, exactness) or leak * steepness > TOLERANCE
        self.none = max(ALIKE, 2 * leak)  # the largest contrast of a None

    def __call__(self, inputs: np.ndarray) -> dict[str, _Answer]:
        """By precision: what RASP says, but where that is not to be had from Tracr, what Tracr makes of it."""
        meant = evaluate(self.tables, inputs, causal=self.compiled.causal, exactness=self.exactness)
        contrast = np.ones(meant.codes.shape) if meant.values is None else (meant.codes >= 0).astype(np.float64)
        said = _Answer(meant.codes, contrast, meant.values)
        rows = np.flatnonzero(~meant.valid | self.departs)
        if not len(rows):
            return dict.fromkeys(PRECISIONS, said)
        return {name: _with_rows(said, rows, self.run(inputs[rows], name)) for name in PRECISIONS}

    def says_what_it_gives(self, inputs: np.ndarray) -> np.ndarray:
        """[input]: whether RASP certainly says what the compiled program gives."""
        meant = evaluate(self.tables, inputs, causal=self.compiled.causal, exactness=self.exactness)
        is_exact = _largest_number(self.tables) * self.exactness <= MOST_EXACT
        return meant.valid & meant.listed & (is_exact and not self.departs)

    def run(self, inputs: np.ndarray, dtype: str = SINGLE) -> _Answer:
        """What the compiled program gives, in codes of the tables' values where it is categorical."""
        order = np.array([*map(self.compiled.input_vocab.index, self.tables.vocab), PADDING])
        given = _Answer.of(run(self.compiled, order[inputs], dtype=dtype))
        values = self.tables[self.tables.program.output].values
        if given.values is None:
            return given
        return replace(given, cells=_positions(given.values, values)[given.cells], values=values)


def _with_rows(answer: _Answer, rows: np.ndarray, other: _Answer) -> _Answer:
    """An answer, some of its rows taken from another one."""
    cells, contrast = answer.cells.copy(), answer.contrast.copy()
    cells[rows], contrast[rows] = other.cells, other.contrast
    return replace(answer, cells=cells, contrast=contrast)


class _ModelSide:
    is_model, none = True, ALIKE

    def __init__(self, weights: TracrWeights, vocab: tuple[Value, ...]) -> None:
        self.weights = weights
        # Codes are places in the sorted vocabulary; a model may have its tokens in another order.
        self.order = np.array([*map(weights.input_vocab.index, vocab), PADDING])
        self.kept: dict[bytes, dict[str, _Answer]] = {}  # of the first chunks
        self.room = MOST_KEPT

    def __call__(self, inputs: np.ndarray) -> dict[str, _Answer]:
        """By precision, and in single precision with sums in another order."""
        key = inputs.tobytes() if inputs.size <= MOST_KEPT else b""
        if key in self.kept:
            return self.kept[key]
        answers = {name: _Answer.of(run(self.weights, self.order[inputs], dtype=name)) for name in PRECISIONS}
        answers[REORDERED] = _Answer.of(run(self.weights, self.order[inputs], seed=0))
        if key and inputs.size <= self.room:
            self.room -= inputs.size
            self.kept[key] = answers
        return answers


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
    def looked_at(self) -> _Inputs:
        """Those on which RASP is asked what it says: all, or as many as a sample has by default, fewer if they are
        long."""
        samples = max(1, min(SAMPLED_INPUTS, MOST_LOOKED_AT // self.max_seq_len**2))
        return replace(self, limit=2 * samples, samples=samples)

    @cached_property
    def sampled(self) -> _Inputs:
        """A sample of them, where there are more."""
        return replace(self, limit=1)

    @cached_property
    def least(self) -> _Inputs:
        """A small sample of them, where there are more."""
        return replace(self, limit=1, samples=min(self.samples, LEAST_SAMPLED))

    def bound(self, checked: int) -> float | None:
        """Clopper–Pearson for no difference in the first `checked` inputs: n drawn show none with (1 - p) ** n if a
        share p differs."""
        if checked == self.total:
            return None
        short = count_inputs(len(self.vocab), self.complete_length)
        if checked <= short:
            return 1 - checked / self.total
        return (1 - (1 - CONFIDENCE) ** (1 / (checked - short))) * (1 - short / self.total)


def _compare_within(limits: Limits, first: _Side, second: _ModelSide, inputs: _Inputs) -> Verdict:
    """On all inputs or the sample that is asked for, if that ends before the limits; else on fewer."""
    each = steps_of_input(second.weights)
    for some in (inputs, inputs.sampled) if inputs.is_complete else (inputs,):
        if each * (some.total if some.is_complete else some.samples) <= limits.steps:
            with contextlib.suppress(TimeoutError):
                return _compare(first, second, some, limits, each)
    return _compare(first, second, inputs.least, limits, each, ends_early=True)


def steps_of_input(weights: TracrWeights) -> float:
    """Steps, as `limits.py` counts them, that one input of the greatest length takes: in double precision, and twice in
    single precision, which takes as long."""
    length, parameters = weights.max_seq_len + 1, sum(tensor.size for tensor in weights.tensors.values())
    attended = weights.num_layers * weights.num_heads * weights.key_size * length
    return len(PRECISIONS) * length * (parameters + attended) / MULTIPLICATIONS


def _compare(
    first: _Side,
    second: _Side,
    inputs: _Inputs,
    limits: Limits | None = None,
    each: float = 0.0,
    ends_early: bool = False,
) -> Verdict:
    """Compare two sides, and spend `each` steps for an input.

    Raises TimeoutError as soon as it is to be expected that it would not end in time, and that one on fewer inputs
    would take less. With `ends_early` it ends when the time is over, after FIRST_CHUNK inputs or more.
    """
    limits = limits or Limits()
    codes = inputs.codes
    most, fewer = max(1, MOST_PAIRS // inputs.max_seq_len**2), inputs.samples if inputs.is_complete else LEAST_SAMPLED
    step = min(CHUNK if limits.end == math.inf else FIRST_CHUNK if ends_early else CHUNK_IN_TIME, most)
    starts = [0, *range(min(FIRST_CHUNK, most), len(codes), step), len(codes)]
    comparison = _Comparison(first, second, inputs)
    for start, end in itertools.pairwise(starts):
        now = time.monotonic()
        if start <= FIRST_CHUNK:
            begun = now
        left = len(codes) - start
        if ends_early and start and now > limits.end:
            break
        if start > FIRST_CHUNK and left > fewer and now + (now - begun) * left / (start - FIRST_CHUNK) > limits.end:
            raise TimeoutError
        limits.spend(each * (end - start))
        verdict = comparison.add(codes[start:end])
        if verdict is not None:
            return verdict
    return comparison.verdict()


_Shown = tuple[tuple[Value, ...], tuple, tuple]  # an input's tokens, and what each side gives on it


@dataclass
class _Found:
    """Inputs that differ: how many there are, and the first of them as it was run (alone it may round otherwise)."""

    count: int = 0
    first: _Shown | None = None

    def difference(self, checked: int) -> Difference | None:
        return None if self.first is None else Difference(self.count, checked, *self.first)


class _Comparison:
    """Two sides that are run on one chunk of inputs after the other.

    Attributes:
      differing: the inputs on which the two differ, by precision; and those on which the second side, a model, differs
        with its sums in another order.
      faint: those on which they differ in a None alone: one side's logits are all alike, and the other's nearly so,
        with less than half of the contrast of outputs that are on.
      scale: the least contrast of outputs that are on, 1 at most.
      strongest: the largest contrast of a model.
    """

    def __init__(self, first: _Side, second: _Side, inputs: _Inputs) -> None:
        self.sides, self.inputs = (first, second), inputs
        self.differing = {name: _Found() for name in (*PRECISIONS, REORDERED)}
        self.faint = _Found()
        self.checked, self.scale, self.strongest = 0, 1.0, 0.0
        self.is_on, self.is_zero = np.zeros(2, bool), True  # whether an output of a side was on; all contrasts are 0

    def add(self, chunk: np.ndarray) -> Verdict | None:
        """A verdict where it can be given now."""
        answers = [side(chunk) for side in self.sides]
        if len({answer[SINGLE].values is None for answer in answers}) > 1:
            return self._without_run(Status.REFUTED, "one output is numerical, the other categorical")
        pairs = {name: (answers[0][name], answers[1][name]) for name in PRECISIONS}
        for pair in pairs.values():
            self._look_at_scale(pair, chunk != PADDING)
        if not self.checked and self._is_unreadable():
            return self._without_run(Status.NOT_COMPARABLE, OUT_OF_SCALE)
        found = {name: self._differ(*pair, chunk != PADDING) for name, pair in pairs.items()}
        for name, (differ, _) in found.items():
            self._keep(self.differing[name], differ, chunk, pairs[name])
        if REORDERED in answers[1]:
            pair = answers[0][SINGLE], answers[1][REORDERED]
            self._keep(self.differing[REORDERED], self._differ(*pair, chunk != PADDING)[0], chunk, pair)
        self._keep(self.faint, np.any([faint for _, faint in found.values()], 0), chunk, pairs[SINGLE])
        both = np.all([differ for differ, _ in found.values()], 0)
        self.checked += int(both.argmax()) + 1 if both.any() else len(chunk)
        if both.any():
            row = int(both.argmax())
            return self._refuted(self._shortened(chunk[row]) or self._shown(chunk[row], pairs[SINGLE], row))
        single = self.differing[SINGLE].first
        return self._refuted(single) if single and not self._agreeing() else None

    def verdict(self) -> Verdict:
        """Of two sides of which no input in all chunks shows that they differ in both precisions."""
        if not self.is_on.any() and not self.is_zero:
            return self._without_run(Status.NOT_COMPARABLE, OUT_OF_SCALE)
        agreeing = self._agreeing()
        if self.checked < self.inputs.total:
            status = Status.AGREES
        elif self.faint.count:
            status = Status.EQUIVALENT_BUT_FOR_NONE
        else:
            status = Status.EQUIVALENT if len(agreeing) > 1 else Status.EQUIVALENT_IN_ONE_PRECISION
        verdict = Verdict(status, self.checked, self.inputs.total, self.inputs.bound(self.checked))
        verdict = replace(verdict, faint=self.faint.difference(self.checked))
        if len(agreeing) > 1:
            return verdict
        [other] = set(PRECISIONS) - {*agreeing}
        found, reason = self.differing[other], None
        if not found.count:
            found, reason = self.differing[REORDERED], HANGS_ON_ORDER
        return replace(verdict, precision=agreeing[0], elsewhere=found.difference(self.checked), reason=reason)

    def _agreeing(self) -> list[str]:
        """The precisions in which no input differs; single precision's only if that does not hang on the order of its
        sums, or if it is the only one."""
        agreeing = [name for name in PRECISIONS if not self.differing[name].count]
        return agreeing[1:] if len(agreeing) > 1 and self.differing[REORDERED].count else agreeing

    def _look_at_scale(self, pair: tuple[_Answer, _Answer], real: np.ndarray) -> None:
        contrasts = [answer.contrast[real] for answer in pair]
        on = [~(contrast <= self.sides[0].none) for contrast in contrasts]
        self.is_on |= [part.any() for part in on]
        self.is_zero &= not any(contrast.any() for contrast in contrasts)
        for side, contrast in zip(self.sides, contrasts, strict=True):
            if side.is_model:
                self.strongest = max(self.strongest, contrast[np.isfinite(contrast)].max(initial=0.0))
            self.scale = min(self.scale, contrast[on[0] & on[1]].min(initial=1.0))

    def _is_unreadable(self) -> bool:
        """Whether one side's outputs are on and the other, a model, has logits that are all alike."""
        return any(
            side.is_model and not self.is_on[place] and self.is_on[1 - place] for place, side in enumerate(self.sides)
        )

    def _without_run(self, status: Status, reason: str) -> Verdict:
        return Verdict(status, 0, self.inputs.total, reason=reason)

    def _refuted(self, shown: _Shown) -> Verdict:
        return Verdict(Status.REFUTED, self.checked, self.inputs.total, None, *shown)

    def _shortened(self, found: np.ndarray) -> _Shown | None:
        """What is left of an input of a sample when as many tokens as can be are left out; None if none can."""
        if self.inputs.is_complete:
            return None
        shorter = _shrink(found, self._differs_alone)
        if np.array_equal(shorter, found):
            return None
        first, second = (side(shorter[None])[SINGLE] for side in self.sides)
        return self._shown(shorter, (first, second), 0)

    def _differs_alone(self, one: np.ndarray) -> bool:
        """Whether an input [1, position] differs in both precisions."""
        first, second = (side(one) for side in self.sides)
        return all(self._differ(first[name], second[name], one != PADDING)[0][0] for name in PRECISIONS)

    def _differ(self, first: _Answer, second: _Answer, real: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        faintest = min(self.scale, self.strongest) / 2
        return _differ(first, second, real, self.scale, faintest, self.sides[0].none - ALIKE)

    def _keep(self, found: _Found, differ: np.ndarray, chunk: np.ndarray, pair: tuple[_Answer, _Answer]) -> None:
        if differ.any():
            row = int(differ.argmax())
            found.count += int(differ.sum())
            found.first = found.first or self._shown(chunk[row], pair, row)

    def _shown(self, codes: np.ndarray, pair: tuple[_Answer, _Answer], row: int) -> _Shown:
        """An input, and what stands in a row of each side's answer."""
        real = codes != PADDING
        expected, got = (answer.decode(row, real) for answer in pair)
        return tuple(self.inputs.vocab[code] for code in codes[real]), expected, got


def _differ(
    first: _Answer, second: _Answer, real: np.ndarray, scale: float, faintest: float, leak: float
) -> tuple[np.ndarray, np.ndarray]:
    """[input]: whether the two differ at a real position; and whether they do not but for a faint None.

    Args:
      first, second: what the two sides give.
      real: [input, position] whether the position lies within the input.
      scale: the contrast of an output that is on.
      faintest: the contrast up to which an output is faint.
      leak: how much more contrast than ALIKE the first side's None may have: what its softmax leaves to other keys.
    """
    if first.values is None or second.values is None:
        return ~(are_alike(first.cells, second.cells) | ~real).all(1), np.zeros(len(real), bool)
    values = (*first.values, *second.values)
    same = _positions(first.values, values)[first.cells] == _positions(second.values, values)[second.cells]
    leaked = np.where(first.contrast <= leak + ALIKE * scale, first.contrast, 0) if leak else 0
    off = [first.contrast <= leak + ALIKE * scale, second.contrast <= leaked + ALIKE * scale]
    same = np.where(off[0] | off[1], off[0] & off[1], same)
    same &= np.isfinite(first.contrast) & np.isfinite(second.contrast)
    faint = (off[0] | off[1]) & (np.maximum(first.contrast, second.contrast) <= faintest)
    differ = ~(same | faint | ~real).all(1)
    return differ, ~(same | ~real).all(1) & ~differ


def _departure(side: _ProgramSide, inputs: _Inputs) -> Difference | None:
    """The inputs on which RASP says another thing than the compiled program gives, in single precision; None if there
    are none. Where many have to be looked at one by one, it is on the first of them."""
    step = max(1, MOST_PAIRS // inputs.max_seq_len**2)
    most = min(MOST_ASKED, max(10, MOST_PAIRS_ASKED // inputs.max_seq_len**2))
    found, asked, checked = [], 0, 0
    for chunk in np.split(inputs.codes, range(step, len(inputs.codes), step)):
        unsure = np.flatnonzero(~side.says_what_it_gives(chunk))[: most - asked]
        asked += len(unsure)
        made = side.run(chunk[unsure]) if len(unsure) else None
        for row, codes in enumerate(chunk[unsure]):
            assert made is not None
            real = codes != PADDING
            tokens = tuple(inputs.vocab[code] for code in codes[real])
            said, given = _said(side, tokens), made.decode(row, real)
            if said is None or not all(_are_alike(x, y, made.values is None) for x, y in zip(said, given, strict=True)):
                found.append((tokens, said, given))
        if asked == most:
            checked += int(unsure[-1]) + 1
            break
        checked += len(chunk)
    return Difference(len(found), checked, *found[0]) if found else None


def _said(side: _ProgramSide, tokens: tuple[Value, ...]) -> tuple | None:
    """What RASP says; None where it has no answer."""
    try:
        return tuple(answer(side.tables.program, tokens, side.compiled.causal))
    except NoAnswerError:
        return None


def _are_alike(said: Value | None, given: Value | None, are_numbers: bool) -> bool:
    if said is None or given is None:
        return said is given
    if are_numbers:
        return bool(are_alike(said, given))  # type: ignore[arg-type]
    return rounded(said) == rounded(given)


def _largest_number(tables: Tables) -> float:
    """Of all numerical s-ops, without its sign."""
    lines = tables.program.lines
    numerical = [place for place in tables.program.live_lines if lines[place].op.result is Type.NUMERICAL]
    return max((tables[place].domain.magnitude for place in numerical), default=0)


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
