"""Programs that the network finds for compiled weights, the likeliest first.

First what it writes, greedily, and the same with its functions read from the weights (`circuit/reading.py`), which is
exact once it is known which s-op reads which. What is left is a search. It departs from the greedy program at
operations and arguments alone: the tokens before the departure are kept, the likeliest completion follows, and
departures are tried in order of the likelihood that they give up. A beam would spend most of its places on names of one
and the same table.
"""

from __future__ import annotations

import contextlib
import functools
import heapq
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutput

from trade_hf.candidates import Candidate, Source, Unread, named
from trade_hf.circuit.reading import Reader
from trade_hf.compiled.weights import TracrWeights
from trade_hf.limits import TOKEN, Limits
from trade_hf.modeling_trade import TraDeForConditionalGeneration
from trade_hf.processing_trade import TraDeProcessor, pad_labels
from trade_hf.rasp.program import Program, RaspError
from trade_hf.tokenization_rasp import (
    LINE_SIZE,
    MAX_NEW_TOKENS,
    NOTHING_ID,
    allowed_next,
    build_tokenizer,
    from_ids,
    to_known_ids,
)

MAX_READINGS = 8  # ways to read the functions of one candidate that are tried
AT_ONCE = 8  # departures that are completed together
MAX_DEPARTURE = 12.0  # of log-likelihood given up, in all
# Log-likelihood that a departure above, or below, the line where reading ended seems to give up.
ABOVE, BELOW = 2.0, 4.0


@functools.cache
def processor() -> TraDeProcessor:
    """Weights to the model's tensors; the same for every checkpoint, since the language fixes the tokens."""
    return TraDeProcessor(build_tokenizer())


def _inputs(batch: list[TracrWeights], model: TraDeForConditionalGeneration) -> dict[str, Tensor]:
    return dict(processor()(batch, encoder=model.config.encoder).to(model.device))


def search(
    weights: TracrWeights,
    model: TraDeForConditionalGeneration,
    limits: Limits | None = None,
    unread: Unread | None = None,
) -> Iterator[Candidate]:
    """Candidates of the network, each that it writes followed by what it becomes with the functions read from the
    weights. There is an end, but far off.

    The first comes in any case. Raises LimitError after it, once `limits` are reached. `unread` counts those that could
    not be read from the weights, by the reason.
    """
    limits = limits or Limits()
    inputs = _encoded(_inputs([weights], model), model)
    count = itertools.count()
    waiting: list[tuple[float, int, float, tuple[int, ...]]] = [(0.0, next(count), 0.0, ())]
    skeletons: set[tuple] = set()
    while waiting:
        best = [heapq.heappop(waiting) for _ in range(min(AT_ONCE, len(waiting)))]
        if skeletons:
            limits.check()
        written = _complete(model, inputs, [prefix for *_, prefix in best])
        limits.spend(TOKEN * max(len(one.ids) for one in written))
        for (_, _, given_up, prefix), one in zip(best, written, strict=True):
            candidate = _candidate(one)
            if candidate is None:
                continue
            skeleton = tuple([(line.op, line.args) for line in candidate.program.lines])
            if skeleton in skeletons:
                continue
            skeletons.add(skeleton)
            reader = Reader(candidate.program.lines, weights, limits=limits)
            yield candidate
            yield from _read(candidate, reader, unread)
            for place, loss, other in _departures(one, len(prefix)):
                if given_up + loss < MAX_DEPARTURE:
                    rank = given_up + loss + _penalty(place // LINE_SIZE, reader.furthest)
                    heapq.heappush(waiting, (rank, next(count), given_up + loss, other))


def _penalty(line: int, furthest: int) -> float:
    """The search goes first where reading came to an end: what is above could be read, what is below was not tried."""
    return 0.0 if line == furthest else ABOVE if line < furthest else BELOW


def with_functions_read(candidate: Candidate, weights: TracrWeights) -> Iterator[Candidate]:
    """The candidate with functions as the weights have them, as named functions or explicit tables."""
    return _read(candidate, Reader(candidate.program.lines, weights))


def _read(candidate: Candidate, reader: Reader, unread: Unread | None = None) -> Iterator[Candidate]:
    for program in named(itertools.islice(reader.structures(), MAX_READINGS), unread):
        yield Candidate(program, candidate.score, Source.FUNCTIONS_READ)


@torch.inference_mode()
def _likelihood(program: Program, inputs: dict[str, Any], model: TraDeForConditionalGeneration) -> float:
    """That the model gives to a program's tokens, functions without one left out; NaN for too long a program."""
    try:
        ids = to_known_ids(program)
    except RaspError:
        return math.nan
    before = [model.config.decoder_start_token_id, *(NOTHING_ID if i is None else i for i in ids[:-1])]
    logits = model(**inputs, decoder_input_ids=torch.tensor([before], device=model.device)).logits[0]
    likelihoods = logits.float().log_softmax(-1)
    return sum(float(row[i]) for row, i in zip(likelihoods, ids, strict=True) if i is not None)


def greedy_programs(batch: list[TracrWeights], model: TraDeForConditionalGeneration) -> list[Candidate | None]:
    """The most likely token at each step, for a batch of models. None where the length limit cut a program off."""
    written = _complete(model, _inputs(batch, model), [()] * len(batch))
    return [_candidate(one) for one in written]


@torch.inference_mode()
def written_programs(
    weights: TracrWeights, model: TraDeForConditionalGeneration, beams: int = 1, samples: int = 1
) -> list[Candidate]:
    """What the network alone writes of one model, distinct, the likeliest first: the programs of a beam search, or of
    so many samples by torch's seed. Programs that the length limit cut off are left out."""
    inputs = _encoded(_inputs([weights], model), model)
    rows = model.generate(
        **inputs,
        num_beams=beams,
        do_sample=samples > 1,
        num_return_sequences=max(beams, samples),
        max_new_tokens=MAX_NEW_TOKENS,
        prefix_allowed_tokens_fn=TraDeProcessor.allowed_next,
    )
    programs = set()
    for ids in rows[:, 1:].tolist():
        with contextlib.suppress(RaspError):
            programs.add(from_ids(ids))
    found = [Candidate(program, _likelihood(program, inputs, model), Source.WRITTEN) for program in programs]
    return sorted(found, key=lambda candidate: -candidate.score)


@torch.inference_mode()
def teacher_forced(batch: list[TracrWeights], ids: list[list[int]], model: TraDeForConditionalGeneration) -> list[bool]:
    """For each model, whether every token of `ids` is the likeliest one after its true prefix."""
    labels = pad_labels(ids).to(model.device)
    logits = model(**_inputs(batch, model), labels=labels).logits
    right = (logits.argmax(-1) == labels) | (labels == -100)
    return right.all(1).tolist()


@dataclass(frozen=True)
class _Written:
    """Tokens [token], and the log-likelihoods of all that the grammar allowed in their places [token, vocabulary];
    minus infinity for what it did not, and for all but the given tokens."""

    ids: list[int]
    likelihoods: Tensor

    def likelihood(self, place: int) -> float:
        return float(self.likelihoods[place, self.ids[place]])


def _departures(written: _Written, start: int) -> Iterator[tuple[int, float, tuple[int, ...]]]:
    """Where what was written could depart at one operation or argument, what that gives up, and the prefix up to it."""
    for place in range(start, len(written.ids)):
        if place % LINE_SIZE == LINE_SIZE - 1:
            continue
        best = written.likelihood(place)
        for token in torch.isfinite(written.likelihoods[place]).nonzero()[:, 0].tolist():
            if token != written.ids[place]:
                yield place, best - float(written.likelihoods[place, token]), (*written.ids[:place], token)


def _candidate(written: _Written) -> Candidate | None:
    score = sum(map(written.likelihood, range(len(written.ids))))
    try:
        return Candidate(from_ids(written.ids), score, Source.WRITTEN)
    except RaspError:
        return None


@torch.inference_mode()
def _encoded(inputs: Any, model: TraDeForConditionalGeneration) -> dict[str, Any]:
    """What `generate` takes in place of the weights, so that they are encoded once."""
    states = model.get_encoder()(**inputs).last_hidden_state
    return {"encoder_outputs": BaseModelOutput(states), "attention_mask": inputs["attention_mask"]}


@torch.inference_mode()
def _complete(
    model: TraDeForConditionalGeneration, inputs: dict[str, Any], prefixes: Sequence[tuple[int, ...]]
) -> list[_Written]:
    """The likeliest completion of each prefix; `inputs` are as many models', or one that all are about."""
    if "encoder_outputs" in inputs and len(prefixes) > 1:
        states = inputs["encoder_outputs"].last_hidden_state.expand(len(prefixes), -1, -1)
        mask = inputs["attention_mask"].expand(len(prefixes), -1)
        inputs = {"encoder_outputs": BaseModelOutput(states), "attention_mask": mask}

    def allowed(row: int, ids: Tensor) -> list[int]:
        done, prefix = len(ids) - 1, prefixes[row]
        return [prefix[done]] if done < len(prefix) else allowed_next(ids[1:].tolist())

    out = model.generate(
        **inputs,
        do_sample=False,
        max_new_tokens=MAX_NEW_TOKENS,
        prefix_allowed_tokens_fn=allowed,
        return_dict_in_generate=True,
        output_scores=True,
        output_logits=True,
    )
    likelihoods = torch.stack(out.logits, 1).log_softmax(-1)
    likelihoods = likelihoods.masked_fill(torch.stack(out.scores, 1) == -torch.inf, -torch.inf)
    rows = out.sequences[:, 1:].tolist()
    end = model.config.eos_token_id
    sizes = [row.index(end) + 1 if end in row else len(row) for row in rows]
    return [_Written(row[:n], some[:n]) for row, n, some in zip(rows, sizes, likelihoods, strict=True)]
