"""The facade: weights in, program out, with a verdict on whether the two agree.

from trade_hf import decompile
result = decompile("model.safetensors")   # or a tracr AssembledTransformerModel, or a TracrWeights
print(result.code)
print(result.certificate)
"""

from __future__ import annotations

import functools
import itertools
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging

from trade_hf.compiled.reading import read_structures
from trade_hf.compiled.weights import TracrWeights
from trade_hf.modeling_trade import TraDeForConditionalGeneration
from trade_hf.processing_trade import TraDeProcessor, pad_labels
from trade_hf.rasp.canonical import name_functions, spell
from trade_hf.rasp.program import Program, RaspError
from trade_hf.rasp.tables import UnsupportedError
from trade_hf.rasp.text import to_text
from trade_hf.tokenization_rasp import LINE_SIZE, MAX_LINES, allowed_next, build_tokenizer, from_ids
from trade_hf.verification import Status, Verdict, verify

DEFAULT_CHECKPOINT = Path(__file__).parent / "assets" / "trade-base"
BEAMS = 8
MAX_READINGS = 8  # ways to read the functions of one candidate that are tried


_STRENGTH = {Status.IDENTICAL: 3, Status.EQUIVALENT: 2, Status.AGREES: 1, Status.REFUTED: 0, Status.UNVERIFIED: 0}


@dataclass(frozen=True)
class Candidate:
    """A proposed program (in canonical terms) and the log-likelihood that the model gives it.

    `read`: only its operations and arguments are the model's; its functions were read from the weights.
    """

    program: Program
    score: float
    read: bool = False


@dataclass(frozen=True)
class Decompilation:
    """What was recovered.

    Attributes:
      program: over the model's own vocabulary.
      verdict: how far program and weights are known to agree.
      score: the log-likelihood that the neural model gives the program.
      candidates: how many programs were tried.
      read: whether the model proposed operations and arguments alone, and the functions were read from the weights.
      seconds: time taken.
    """

    program: Program
    verdict: Verdict
    score: float
    candidates: int
    read: bool
    seconds: float

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

    def __str__(self) -> str:
        return f"{self.code}# {self.certificate}\n"


def load_model(checkpoint: str | os.PathLike = DEFAULT_CHECKPOINT) -> TraDeForConditionalGeneration:
    """A checkpoint in float32 on the CPU, kept once loaded; raises FileNotFoundError where there is none."""
    return _load_model(Path(checkpoint))


@functools.lru_cache(maxsize=4)
def _load_model(checkpoint: Path) -> TraDeForConditionalGeneration:
    if not (checkpoint / "config.json").is_file():
        raise FileNotFoundError(f"{checkpoint}: expected a folder with a TraDe checkpoint, found no config.json")
    shows_progress = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()  # it takes less than a second
    try:
        model = TraDeForConditionalGeneration.from_pretrained(checkpoint, dtype=torch.float32).eval()
    finally:
        if shows_progress:
            logging.enable_progress_bar()
    model.generation_config.max_length = None  # transformers' own default of 20, which would warn at every call
    return model


@functools.cache
def processor() -> TraDeProcessor:
    """Weights to the model's tensors; the same for every checkpoint, since the language fixes the tokens."""
    return TraDeProcessor(build_tokenizer())


def to_weights(source: Any) -> TracrWeights:
    """A TracrWeights from a path, a tracr AssembledTransformerModel, or itself."""
    if isinstance(source, TracrWeights):
        return source
    if isinstance(source, str | os.PathLike):
        return TracrWeights.load(source)
    from trade_hf.compiled.bridge import from_tracr_model

    return from_tracr_model(source)


def decompile(
    source: Any, checkpoint: str | os.PathLike = DEFAULT_CHECKPOINT, beams: int = BEAMS, budget_seconds: float = 5.0
) -> Decompilation:
    """Recover a RASP program from a compiled transformer, and check it.

    Args:
      source: a safetensors path, a TracrWeights, or a tracr AssembledTransformerModel.
      checkpoint: folder of the neural model.
      beams: how many candidates the beam search proposes where the greedy one does not hold.
      budget_seconds: no further candidate is checked after this time.

    The first candidate with identical weights is returned; else the one with the strongest certificate, which says what
    it lacks.
    """
    start = time.monotonic()
    weights, model = to_weights(source), load_model(checkpoint)
    best: tuple[Candidate, Program, Verdict] | None = None
    tried = 0
    for candidate in propose(weights, model, beams):
        if best is not None and time.monotonic() - start > budget_seconds:
            break
        tried += 1
        try:
            program = spell(candidate.program, weights.input_vocab, weights.max_seq_len, weights.output_values)
            verdict = verify(program, weights)
        except UnsupportedError as error:
            program, verdict = candidate.program, Verdict(Status.REFUTED, 0, 0, reason=f"does not compile: {error}")
        if best is None or _STRENGTH[verdict.status] > _STRENGTH[best[2].status]:
            best = candidate, program, verdict
        if verdict.status is Status.IDENTICAL:
            break
    assert best is not None, "the grammar lets the model end every program"
    return Decompilation(best[1], best[2], best[0].score, tried, best[0].read, time.monotonic() - start)


def propose(weights: TracrWeights, model: TraDeForConditionalGeneration, beams: int = BEAMS) -> Iterator[Candidate]:
    """Distinct candidates: the greedy one, then those of a beam search, in order of likelihood.

    Each is followed by what its operations and arguments become with the functions read from the weights.
    """
    seen: set[Program] = set()
    for candidate in _proposed(weights, model, beams):
        for version in itertools.chain([candidate], with_functions_read(candidate, weights)):
            if version.program not in seen:
                seen.add(version.program)
                yield version


def _proposed(weights: TracrWeights, model: TraDeForConditionalGeneration, beams: int) -> Iterator[Candidate]:
    [greedy] = greedy_programs([weights], model)
    if greedy is not None:
        yield greedy
    if beams > 1:
        yield from beam_programs(weights, model, beams)


def with_functions_read(candidate: Candidate, weights: TracrWeights) -> Iterator[Candidate]:
    """The candidate with functions as the weights have them, as named functions or explicit tables."""
    for structure in itertools.islice(read_structures(candidate.program, weights), MAX_READINGS):
        yield Candidate(name_functions(structure), candidate.score, read=True)


def greedy_programs(batch: list[TracrWeights], model: TraDeForConditionalGeneration) -> list[Candidate | None]:
    """The most likely token at each step, for a batch of models. None where the length limit cut a program off."""
    out = _generate(batch, model, num_beams=1, output_logits=True)
    steps = torch.stack(out.logits, 1).log_softmax(-1)
    chosen = out.sequences[:, 1:]
    scores = steps.gather(2, chosen[..., None])[..., 0].masked_fill(chosen == model.config.pad_token_id, 0.0).sum(1)
    return [_candidate(ids, score) for ids, score in zip(chosen.tolist(), scores.tolist(), strict=True)]


def beam_programs(weights: TracrWeights, model: TraDeForConditionalGeneration, beams: int) -> list[Candidate]:
    """Up to `beams` programs, the likeliest first."""
    out = _generate([weights], model, num_beams=beams, num_return_sequences=beams, length_penalty=0.0)
    scored = zip(out.sequences[:, 1:].tolist(), out.sequences_scores.tolist(), strict=True)
    return [candidate for ids, score in scored if (candidate := _candidate(ids, score)) is not None]


def _candidate(ids: list[int], score: float) -> Candidate | None:
    try:
        return Candidate(from_ids(ids), score)
    except RaspError:
        return None


@torch.inference_mode()
def _generate(batch: list[TracrWeights], model: TraDeForConditionalGeneration, **options: Any) -> Any:
    return model.generate(
        **processor()(batch),
        do_sample=False,
        max_new_tokens=LINE_SIZE * MAX_LINES + 1,
        prefix_allowed_tokens_fn=lambda _, ids: allowed_next(ids[1:].tolist()),
        return_dict_in_generate=True,
        output_scores=True,
        **options,
    )


@torch.inference_mode()
def teacher_forced(batch: list[TracrWeights], ids: list[list[int]], model: TraDeForConditionalGeneration) -> list[bool]:
    """For each model, whether every token of `ids` is the likeliest one after its true prefix."""
    labels = pad_labels(ids)
    logits = model(**processor()(batch), labels=labels).logits
    right = (logits.argmax(-1) == labels) | (labels == -100)
    return right.all(1).tolist()
