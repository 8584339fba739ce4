"""The facade: weights in, program out, with a verdict on whether the two agree.

from trade_hf import decompile
result = decompile("model.safetensors")   # or a tracr AssembledTransformerModel, or a TracrWeights
print(result.code)
print(result.certificate)
"""

from __future__ import annotations

import contextlib
import functools
import math
import os
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack, overload

import numpy as np

from trade_hf.candidates import Candidate, Source, Unread, lifted_programs
from trade_hf.circuit.denoise import denoise, is_aligned
from trade_hf.circuit.products import do_parts_correspond
from trade_hf.compiled.compiler import compile_like
from trade_hf.compiled.formats import Known, to_weights
from trade_hf.compiled.forward import without_idle_directions
from trade_hf.compiled.transforms import compress
from trade_hf.compiled.weights import TracrWeights
from trade_hf.features import to_units
from trade_hf.limits import EndedBy, LimitError, Limits
from trade_hf.rasp.canonical import canonicalise_spoken, spell
from trade_hf.rasp.program import Program, RaspError
from trade_hf.rasp.tables import UnsupportedError
from trade_hf.rasp.text import parse, to_text
from trade_hf.verification import LEAST_SAMPLED, SAMPLED_INPUTS, Status, Verdict, Verifier

if TYPE_CHECKING:
    from trade_hf.modeling_trade import TraDeForConditionalGeneration

DEFAULT_CHECKPOINT = Path(__file__).parent / "assets" / "trade-base"
MAX_CANDIDATES = 200
MAX_STEPS = 50_000  # of the search, as limits.py counts them: some 5 s on one core
LAST_STEPS = 50_000  # for the verdict on the model as it was given, where noise or a change of basis was taken off
SEARCH_SHARE = 0.8  # of the time limit, if there is one; the rest is for that verdict
COMPARED = 1_000  # pairs of units whose products are compared in a step
FURTHER = 60  # candidates that are looked at after one that is equivalent
UNLIKE = 60  # candidates that are looked at where each is refuted and none can be compared with the model's units
A_FEW = 8  # after one that is proven, or whose units are like the model's, where noise or a turn was taken off
DIGITS = 4  # of a distance of signatures: what differs by rounding alone is as far
LIKE_IN_NOISE = 0.1  # largest difference of two signatures that are alike, where noise was taken off but for thresholds


@dataclass(frozen=True)
class Attempt:
    """A program that was tried.

    Attributes:
      program: over the model's own vocabulary, where it can be said in it; else in canonical terms.
      verdict: how far program and weights (less the noise that could be taken off) are known to agree.
      score: the log-likelihood that the neural model gives the program.
      source: whether the neural model wrote it, or what of it was read from the weights.
    """

    program: Program
    verdict: Verdict
    score: float
    source: Source


@dataclass(frozen=True, repr=False)
class Decompilation:
    """What was recovered.

    Attributes:
      program: over the model's own vocabulary; in canonical form unless that is a weaker answer.
      verdict: how far program and weights are known to agree.
      attempts: all programs that were tried, in order.
      chosen: the number of the attempt that `program` is.
      ended_by: why no further programs were tried.
      seconds: time taken.
      unread: how many programs could not be read from the weights, by the reason: an error's name and message.
    """

    program: Program
    verdict: Verdict
    attempts: tuple[Attempt, ...]
    chosen: int
    ended_by: EndedBy
    seconds: float
    unread: Mapping[str, int] = field(default_factory=dict)

    @property
    def score(self) -> float:
        """The log-likelihood that the neural model gives the program."""
        return self.attempts[self.chosen].score

    @property
    def source(self) -> Source:
        """Whether the neural model wrote the program, or what of it was read from the weights."""
        return self.attempts[self.chosen].source

    @property
    def candidates(self) -> int:
        """How many programs were tried."""
        return len(self.attempts)

    @property
    def code(self) -> str:
        """Python that runs with the tracr package."""
        return to_text(self.program)

    @property
    def status(self) -> Status:
        return self.verdict.status

    @property
    def certificate(self) -> str:
        """The verdict in words, as in: equivalent on all 3,905 inputs."""
        return str(self.verdict)

    def to_dict(self) -> dict[str, Any]:
        """What the command line, the pipeline and the endpoint answer."""
        row = self.verdict.to_dict()
        return {
            "code": self.code,
            **{name: row[name] for name in ("status", "proven", "certificate", *self.verdict.reservations, "limits")},
            "score": None if math.isnan(self.score) else round(self.score, 4),
            "candidates": self.candidates,
            "ended_by": self.ended_by.value,
            **({"unread": dict(self.unread)} if self.unread else {}),
        }

    def __str__(self) -> str:
        return f"{self.code}# {self.certificate}\n"

    def __repr__(self) -> str:
        return (
            f"Decompilation({len(self.program)} lines, {self.certificate}, {self.source.value}, "
            f"{self.candidates} tried, ended by {self.ended_by.value}, {self.seconds:.3g} s)"
        )

    def _repr_html_(self) -> str | None:
        """What a notebook shows: the code and the certificate."""
        try:  # what is in a `try` stays behind when the code goes to the Hub, and its requirements with it
            from trade_hf.report.page import decompilation_html
        except ImportError:
            return None
        return decompilation_html(self)


def load_model(checkpoint: str | os.PathLike = DEFAULT_CHECKPOINT) -> TraDeForConditionalGeneration:
    """A checkpoint in float32 on the CPU, kept once loaded; raises FileNotFoundError where there is none."""
    return _load_model(check_checkpoint(checkpoint))


def check_checkpoint(checkpoint: str | os.PathLike) -> Path:
    """Its folder; raises FileNotFoundError where there is none."""
    if not (Path(checkpoint) / "config.json").is_file():
        raise FileNotFoundError(f"{checkpoint}: expected a folder with a TraDe checkpoint, found no config.json")
    return Path(checkpoint)


@functools.lru_cache(maxsize=4)
def _load_model(checkpoint: Path) -> TraDeForConditionalGeneration:
    import torch
    from transformers.utils import logging

    from trade_hf.modeling_trade import TraDeForConditionalGeneration

    shows_progress = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()  # it takes less than a second
    try:
        model = TraDeForConditionalGeneration.from_pretrained(checkpoint, dtype=torch.float32)
    finally:
        if shows_progress:
            logging.enable_progress_bar()
    return prepare(model)


def prepare(model: TraDeForConditionalGeneration) -> TraDeForConditionalGeneration:
    """A model just loaded, made fit for `decompile_with`: in float32, which all figures are of."""
    model.generation_config.max_length = None  # transformers' own default of 20, which would warn at every call
    return model.float().eval()


@overload
def decompile(
    source: Any,
    checkpoint: str | os.PathLike = DEFAULT_CHECKPOINT,
    max_candidates: int = MAX_CANDIDATES,
    budget_seconds: float | None = None,
    max_steps: float = MAX_STEPS,
    domain: None = None,
    **known: Unpack[Known],
) -> Decompilation: ...


@overload
def decompile(source: Any, *, domain: Any) -> Any: ...


def decompile(
    source: Any,
    checkpoint: str | os.PathLike = DEFAULT_CHECKPOINT,
    max_candidates: int = MAX_CANDIDATES,
    budget_seconds: float | None = None,
    max_steps: float = MAX_STEPS,
    domain: Any = None,
    **known: Unpack[Known],
) -> Any:
    """Recover a RASP program from a transformer, and check it: a Decompilation, or a TrainedDecompilation.

    Args:
      source: a safetensors or npz path or its bytes, a dictionary of arrays, a TracrWeights, or a model of tracr or
        TransformerLens (see `compiled/formats.py`). For a trained model: its folder, or, with `domain`, a
        HookedTransformer or GPT-2 of transformers.
      checkpoint: folder of the neural model.
      max_candidates: see `decompile_with`.
      budget_seconds: see `decompile_with`.
      max_steps: see `decompile_with`.
      domain: a trained model's inputs and answers (see `trained/domain.py`).
      known: what the source does not tell, such as `vocab` and `output_values` (see `Known`).
    """
    if domain is not None or (isinstance(source, str | os.PathLike) and Path(source).is_dir()):
        try:  # what is in a `try` stays behind when the code goes to the Hub (see remote_code.py)
            from trade_hf.trained.decompilation import decompile_trained
        except ImportError:
            raise ImportError("a trained model can be read where trade-hf is installed") from None
        return decompile_trained(source, domain)
    weights = to_weights(source, **known)
    model = functools.partial(_load_model, check_checkpoint(checkpoint))
    return decompile_with(model, weights, max_candidates, budget_seconds, max_steps)


@np.errstate(all="ignore")  # a model may hold any numbers; what overflows is looked at
def decompile_with(
    model: TraDeForConditionalGeneration | functools.partial[TraDeForConditionalGeneration],
    given: TracrWeights,
    max_candidates: int = MAX_CANDIDATES,
    budget_seconds: float | None = None,
    max_steps: float = MAX_STEPS,
) -> Decompilation:
    """Recover a RASP program, and check it.

    Args:
      model: as `load_model` or `prepare` gives it, or a partial function that returns it, called only if no program
        that is read from the weights is the model's own.
      given: the compiled transformer.
      max_candidates: how many programs are checked at most.
      budget_seconds: a limit of the wall clock; None: there is none, and the result is the same on every machine. At
        least one candidate is checked, on as many inputs as there is time for.
      max_steps: of the search, as `limits.py` counts them. What cannot be compared on all inputs in the steps that are
        left, or in the time, is compared on a sample.

    A candidate with identical weights is returned, in canonical form. Where one is found that gives the same and yet is
    not the model's own program, a few more are looked at; where none is proven, the one with the strongest verdict is
    returned, which says what it lacks. For the search, Tracr's own basis is found again in another one, and noise is
    taken off; where that cannot be done, a program whose units have the same products as the model's counts as its own.
    The verdict is always on the model as it was given. Raises ValueError for fewer than one candidate.
    """
    if max_candidates < 1:
        raise ValueError(f"max_candidates: expected at least 1, got {max_candidates}")
    start = time.monotonic()
    end = math.inf if budget_seconds is None else start + budget_seconds
    limits = Limits(max_steps, None if budget_seconds is None else SEARCH_SHARE * budget_seconds)
    used = without_idle_directions(given)
    clean = _denoised(used, limits)
    unread: Unread = Counter()
    search = _Search(clean, clean is not used, max_candidates, limits)
    ended_by = search.over(propose(clean, model, limits, unread))
    program, verdict = search.canonical(_what_is_left(end))
    verifier = search.verifier
    if clean is not given:  # the verdict that counts is another one
        verifier = Verifier(given, limits=_what_is_left(end))
        verdict = verifier.compare(program)
    verdict = verifier.with_departure(program, verdict)
    seconds = time.monotonic() - start
    return Decompilation(program, verdict, tuple(search.attempts), search.chosen, ended_by, seconds, unread)


def propose(
    weights: TracrWeights,
    model: TraDeForConditionalGeneration | functools.partial[TraDeForConditionalGeneration],
    limits: Limits | None = None,
    unread: Unread | None = None,
) -> Iterator[Candidate]:
    """Distinct candidates: what is read from the weights, then what the network finds. There is an end, but far off.

    At least one of the network comes if all are asked for. Raises LimitError after it, once `limits` are reached.
    `unread` counts those that could not be read from the weights, by the reason.
    """
    seen: set[Program] = set()
    with contextlib.suppress(LimitError):
        for program in lifted_programs(weights, limits, unread):
            if program not in seen:
                seen.add(program)
                yield Candidate(program)
    from trade_hf.search import search  # and torch with it: only where it is needed

    network = model() if isinstance(model, functools.partial) else model
    for candidate in search(weights, network, limits, unread):
        if candidate.program not in seen:
            seen.add(candidate.program)
            yield candidate


class _Search:
    """Candidates looked at one by one, and the best so far.

    Args:
      weights: the model, in Tracr's own basis if that was found.
      is_clean: whether noise or a change of basis was taken off it. Then all inputs are run at the end only.
    """

    def __init__(self, weights: TracrWeights, is_clean: bool, max_candidates: int, limits: Limits) -> None:
        self.weights, self.is_clean, self.limits = weights, is_clean, limits
        self.likeness, self.is_aligned = Likeness(weights), is_aligned(weights)
        self.verifier = Verifier(weights, samples=LEAST_SAMPLED if is_clean else SAMPLED_INPUTS, limits=limits)
        self.attempts: list[Attempt] = []
        self.candidates: list[Candidate] = []
        self.strengths: list[tuple[int, float]] = []
        self.most = self.last = max_candidates

    def over(self, candidates: Iterator[Candidate]) -> EndedBy:
        """Look at candidates until there is an end."""
        try:
            for candidate in candidates:
                if (ended_by := self._look_at(candidate)) is not None:
                    return ended_by
                self.limits.check()
        except LimitError as reached:
            return reached.ended_by
        return EndedBy.EXHAUSTED

    @property
    def chosen(self) -> int:
        """The number of the first attempt with the strongest verdict; of equal ones, of that most like the model."""
        return self.strengths.index(max(self.strengths))

    @property
    def is_hopeless(self) -> bool:
        """Whether each program so far is refuted, and none has units that can be compared with the model's."""
        return max(self.strengths) <= (Status.REFUTED.strength, -math.inf)

    def canonical(self, limits: Limits) -> tuple[Program, Verdict]:
        """The chosen program, in canonical form where it gives the same, and its verdict."""
        best, candidate = self.attempts[self.chosen], self.candidates[self.chosen]
        if self.is_hopeless:
            return best.program, best.verdict
        canonical = canonicalise_spoken(candidate.program, self.weights.input_vocab, self.weights.max_seq_len)
        if canonical == candidate.program:
            return best.program, best.verdict
        printed, verdict = _checked(canonical, self.verifier.renewed(limits))  # what is returned is what was compared
        is_as_strong = verdict.status.strength >= best.verdict.status.strength
        return (printed, verdict) if is_as_strong else (best.program, best.verdict)

    def _look_at(self, candidate: Candidate) -> EndedBy | None:
        program, verdict = _checked(candidate.program, self.verifier)
        is_own = not self.is_clean and _is_own(program, verdict, self.weights)
        distance = 0.0 if is_own or verdict.status is Status.IDENTICAL else self._distance(program, verdict)
        self.attempts.append(Attempt(program, verdict, candidate.score, candidate.source))
        self.candidates.append(candidate)
        self.strengths.append((verdict.status.strength, -round(distance, DIGITS)))
        is_like = is_own or (self.is_clean and distance < LIKE_IN_NOISE)
        if self._is_found(program, verdict, is_like):
            return EndedBy.FOUND
        if verdict.is_verified or verdict.status.is_on_all_inputs or is_like:
            further = A_FEW if self.is_clean and (is_like or verdict.is_verified) else FURTHER
            self.last = min(self.last, len(self.attempts) + further)
        if len(self.attempts) == UNLIKE and self.is_hopeless:
            return EndedBy.REFUTED
        if len(self.attempts) < self.last:
            return None
        return EndedBy.CANDIDATES if self.last == self.most else EndedBy.SETTLED

    def _distance(self, program: Program, verdict: Verdict) -> float:
        """Of a program's units from the model's, where that tells programs apart."""
        if not (verdict.status.is_on_all_inputs or (self.is_clean and verdict.reason is None)):
            return math.inf
        self.limits.spend(len(self.likeness.signature) ** 2 / COMPARED)
        distance = self.likeness.distance(program)
        if self.is_clean and verdict.is_verified and distance >= LIKE_IN_NOISE:
            return math.inf  # of a compressed model: how far its proven programs are from it tells nothing
        return distance

    def _is_found(self, program: Program, verdict: Verdict, is_like: bool) -> bool:
        """Whether a program is the model's own beyond doubt."""
        if verdict.status is Status.IDENTICAL or (is_like and not self.is_aligned):
            return True
        is_open = self.is_clean and (verdict.is_verified or not verdict.status.is_on_all_inputs)
        return is_open and _is_own(program, verdict, self.weights)


def _denoised(weights: TracrWeights, limits: Limits) -> TracrWeights:
    """As `denoise`; the model itself where that takes more than the limits."""
    try:
        return denoise(weights, limits)
    except LimitError:
        return weights


def _what_is_left(end: float) -> Limits:
    """For a last verdict: steps of its own, and the time up to `end`."""
    return Limits(LAST_STEPS, None if end == math.inf else end - time.monotonic())


def _is_own(program: Program, verdict: Verdict, weights: TracrWeights) -> bool:
    """Whether a model is the program's own in some basis, and not just one that gives the same."""
    if verdict.status is Status.SAME_IN_ANOTHER_BASIS:
        return True
    if verdict.status in (Status.NOT_COMPARABLE, Status.REFUTED):
        return False
    return do_parts_correspond(compile_like(program, weights), weights)


class Likeness:
    """How a model's units read and write, for programs to be held against, in whatever basis and order."""

    def __init__(self, weights: TracrWeights) -> None:
        self.weights = weights

    def distance(self, program: Program) -> float:
        """How far the units that a program compiles to, in no more dimensions than the model has, read and write
        otherwise than the model's; infinite where their numbers differ."""
        compiled = compile_like(program, self.weights)
        if self.weights.d_model < compiled.d_model:
            compiled = compress(compiled, self.weights.d_model)
        signature = _signature(compiled)
        if signature.shape != self.signature.shape:
            return math.inf
        return float(np.abs(signature - self.signature).max())

    @functools.cached_property
    def signature(self) -> np.ndarray:
        return _signature(self.weights)


def _signature(weights: TracrWeights) -> np.ndarray:
    """[unit] a number for each, of its features and of its products with all others, sorted; ascending."""
    units = to_units(weights)
    told = np.concatenate([units.features, np.sort(units.edges, 1).reshape(len(units.features), -1)], 1)
    return np.sort(told @ np.random.RandomState(0).standard_normal(told.shape[1]))


def spelled(program: Program, weights: TracrWeights) -> Program:
    """A program in canonical terms as one over the model's own tokens."""
    return spell(program, weights.input_vocab, weights.max_seq_len, weights.output_values)


def _checked(program: Program, verifier: Verifier) -> tuple[Program, Verdict]:
    """A program over the model's own tokens, if it can be said, as its text is read; and its verdict."""
    try:
        program = parse(to_text(spelled(program, verifier.weights)))
    except (UnsupportedError, RaspError) as error:
        return program, Verdict(Status.NOT_COMPARABLE, 0, 0, reason=f"the program does not compile: {error}")
    return program, verifier.compare(program)
