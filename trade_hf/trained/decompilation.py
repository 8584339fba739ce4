"""An ordinary trained transformer in, a short RASP program out, and how far the two agree.

    from trade_hf import decompile
    result = decompile("models/hist")                    # a folder with domain.json, or
    result = decompile(hooked_transformer, domain=domain)
    print(result.code, result.certificate)

"Equal" is equal to the model, its own errors included, on every input of the domain, in single and in double precision.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from trade_hf.compiled.weights import WeightsError
from trade_hf.trained.answers import Answers, spoken
from trade_hf.trained.candidate import MOST_CELL_SHARE, MOST_LINES
from trade_hf.trained.causality import Mechanism, choose, verdict
from trade_hf.trained.domain import Domain
from trade_hf.trained.program import Program
from trade_hf.trained.progress import Progress, identity
from trade_hf.trained.synthesis import SECONDS, STEPS, Search
from trade_hf.trained.transformer import Transformer
from trade_hf.verification import CONFIDENCE, Status

SHOWN = 5  # inputs that differ
SAMPLES = 3  # of a domain too large to be run: each is drawn when the program is known, and judges it


@dataclass(frozen=True)
class Difference:
    """An input on which program and model differ: `program` and `model` are their answers, by position."""

    input: list[int]
    program: list[Any]
    model: list[Any]


@dataclass(frozen=True, repr=False)
class Comparison:
    """How far a program and a trained model agree.

    Attributes:
      inputs: how many were run.
      agreeing: on how many of them all answers are the model's.
      of: inputs of the whole domain.
      answers: answer positions of all inputs that were run.
      double: inputs on which the model's answers in double precision are others than the program's.
      gap: the smallest difference between the first and the second logit (of sets: between a logit and 0).
      first: the first inputs that differ.
      bound: of a sample that agrees, the share of all inputs that may differ, with CONFIDENCE; 0 where all were run.
    """

    inputs: int
    agreeing: int
    of: int
    answers: int
    double: int
    gap: float
    first: tuple[Difference, ...]
    bound: float = 0.0

    @property
    def status(self) -> Status:
        if self.agreeing < self.inputs:
            return Status.REFUTED
        if self.double:
            return Status.EQUIVALENT_IN_ONE_PRECISION
        return Status.EQUIVALENT if self.inputs == self.of else Status.AGREES

    def __str__(self) -> str:
        gap = f"smallest logit gap {self.gap:.2g}"
        if self.agreeing < self.inputs:
            share = 100 * self.agreeing / self.inputs
            return f"equal on {self.agreeing:,} of {self.inputs:,} inputs ({share:.2f} %), not on {self.first[0].input}"
        if self.double:
            return f"equal on all inputs in single precision, not on {self.double:,} in double precision; {gap}"
        if self.inputs == self.of:
            return f"equal on all {self.inputs:,} inputs, in single and double precision; {gap}"
        return (
            f"equal on {self.inputs:,} sampled inputs of {self.of:,}; "
            f"with {CONFIDENCE:.0%} confidence at most {100 * self.bound:.2g} % differ; {gap}"
        )


def compare(program: Program, model: Transformer, domain: Domain) -> Comparison:
    """Both run on all inputs of a domain, the model in single and in double precision.

    The bound of a sample counts with SAMPLES of them, any of which may be the one that a program passes. It holds for a
    program that did not depend on the sample.
    """
    single = Answers.of(model.logits(domain), domain)
    double = Answers.of(model.logits(domain, torch.float64), domain)
    found = program.evaluate(domain.tokens)
    wrong = single.differ(found).any(1)
    first = tuple(
        Difference(
            domain.input(row),
            [spoken(found[row, p], domain) for p in np.flatnonzero(domain.is_answer[row])],
            [spoken(single.values[row, p], domain) for p in np.flatnonzero(domain.is_answer[row])],
        )
        for row in np.flatnonzero(wrong)[:SHOWN]
    )
    return Comparison(
        len(domain), int((~wrong).sum()), domain.size, domain.answers, int(double.differ(found).any(1).sum()),
        single.gap, first, 0.0 if domain.is_exhaustive else math.log(SAMPLES / (1 - CONFIDENCE)) / domain.worth,
    )  # fmt: skip


@dataclass(frozen=True, repr=False)
class TrainedDecompilation:
    """What was found for a trained model.

    Attributes:
      program: the program.
      comparison: how far it agrees with the model.
      mechanism: for each line, where in the model it is and whether the model uses it; empty if it was not looked for.
      seconds: time taken.
      vocab, max_seq_len: the model's tokens and the longest input.
    """

    program: Program
    comparison: Comparison
    mechanism: tuple[Mechanism, ...]
    seconds: float
    vocab: tuple[int, ...]
    max_seq_len: int

    @property
    def code(self) -> str:
        """Python that runs with the tracr package."""
        return self.program.code

    @property
    def status(self) -> Status:
        return self.comparison.status

    @property
    def is_small(self) -> bool:
        """Whether the program is much smaller than the table of inputs and outputs, so that it explains something."""
        most = MOST_CELL_SHARE * self.comparison.answers
        return len(self.program) <= MOST_LINES and (self.program.table_cells < most or not self.program.table_cells)

    @property
    def is_proven(self) -> bool:
        """Whether a small program is equal to the model on every input of the domain."""
        return self.status is Status.EQUIVALENT and self.is_small

    @cached_property
    def certificate(self) -> str:
        """The verdict and the program's size in words."""
        cells = f"{self.program.table_cells:,} table cells for {self.comparison.answers:,} answers"
        size = f"{len(self.program)} lines, {cells}"
        return f"{self.comparison}; {size}{'' if self.is_small else ', too large to explain anything'}"

    def to_dict(self) -> dict[str, Any]:
        """What the command line answers."""
        comparison = self.comparison
        return {
            "code": self.code,
            "status": self.status.value,
            "proven": self.is_proven,
            "certificate": self.certificate,
            "score": None,
            "seconds": round(self.seconds, 2),
            "source": "search",
            "inputs": comparison.inputs,
            "agreeing": comparison.agreeing,
            "answers": comparison.answers,
            "lines": len(self.program),
            "table_cells": self.program.table_cells,
            "mechanism": [line.to_dict() for line in self.mechanism],
            "mechanism_in_words": verdict(self.mechanism) if self.mechanism else None,
            "domain_inputs": comparison.of,
            "differing_in_float64": comparison.double,
            "smallest_logit_gap": None if math.isinf(comparison.gap) else round(comparison.gap, 6),
            "first_differing": [vars(difference) for difference in comparison.first],
            "tracr_compiles": self.program.compiles(self.vocab, self.max_seq_len),
        }

    @property
    def places(self) -> str:
        """Comments that say whether the model uses the lines, and where each one is; for a known mechanism."""
        return "\n".join([f"# {verdict(self.mechanism)}", *(f"# {m.line:<4} {_in_words(m)}" for m in self.mechanism)])

    def __str__(self) -> str:
        return "\n".join([self.code.rstrip(), f"# {self.certificate}", *([self.places] if self.mechanism else []), ""])

    def _repr_html_(self) -> str:
        from trade_hf.report.trained import decompilation_html

        return decompilation_html(self)

    def __repr__(self) -> str:
        return f"TrainedDecompilation({self.certificate}, {self.seconds:.3g} s)"


def _in_words(line: Mechanism) -> str:
    if line.where.startswith("head"):
        return f"{line.where}: its attention correlates with the selector, r² {line.held:.2f}"
    text = f"{line.where}: a linear map gives {100 * line.held:.0f} % of its variance"
    if line.interchange is None:
        return f"{text}; exchanging it would change no answer"
    assert line.interval is not None
    low, high = line.interval
    return f"{text}; interchange accuracy {line.interchange:.2f} ({low:.2f} to {high:.2f}, {line.cases:,} answers)"


def decompile_trained(
    source: Any,
    domain: Domain | dict | str | os.PathLike | None = None,
    seconds: float = SECONDS,
    steps: int = STEPS,
    seed: int = 0,
    progress: Callable[[str], None] | None = None,
    with_mechanism: bool = True,
    resume: str | os.PathLike | None = None,
    learn: bool = True,
    wall_seconds: float | None = None,
) -> TrainedDecompilation:
    """Find a short program for an ordinary transformer, and say how far the two agree.

    Args:
      source: a folder with `model.safetensors` and `config.json`, or a model (see `Transformer.of`).
      domain: inputs and answers: a Domain, what `domain.json` holds, or its path; default: `domain.json` in the folder.
      seconds, steps: of CPU time, and s-ops, after which the search ends with the best program so far.
      seed: of the samples.
      progress: called with a line of text now and then.
      wall_seconds: of wall time after which the search ends (default: four times those of CPU time).
      with_mechanism: whether to look for where in the model each line is.
      learn: whether projections that hold a line are learned where regression does not do; some seconds.
      resume: a file in which the best so far is kept, and from which a search that was killed goes on.

    Raises WeightsError for a model or a domain that cannot be read.
    """
    start = time.monotonic()
    model = Transformer.of(source)
    inputs = _domain(source, domain, seed)
    begun, keep = None, None
    if resume is not None:
        begun = Progress.load(Path(resume), identity(model, inputs, seed))
        keep = partial(Progress.save, path=Path(resume))
    judged = inputs
    if not inputs.is_exhaustive and inputs.told is None and len(inputs) > 1:  # nothing more can be drawn
        inputs, judged = inputs.halves(seed)
    for number in range(1, SAMPLES + 1):
        answers = Answers.of(model.logits(inputs), inputs)
        search = Search(model, inputs, answers, seconds, steps, progress, seed, wall_seconds, begun, keep)
        program = search.run().program
        fresh = inputs.fresh(seed + number)
        if fresh is None:
            break
        judged = fresh
        wrong = Answers.of(model.logits(fresh), fresh).differ(program.evaluate(fresh.tokens)).any(1)
        if not wrong.any() or number == SAMPLES:
            break
        inputs, begun = inputs.joined(fresh.rows(np.flatnonzero(wrong))), replace(search.done, is_over=False, steps=0)
    lines: list[Mechanism] = []
    if with_mechanism:
        program, lines = choose([found.program for found in search.choices()], model, inputs, seed, learn)
    comparison = compare(program, model, judged)
    vocab = tuple(np.unique(inputs.tokens[inputs.tokens >= 0]).tolist())
    return TrainedDecompilation(
        program, comparison, tuple(lines), time.monotonic() - start, vocab, inputs.tokens.shape[1]
    )


def _domain(source: Any, domain: Any, seed: int) -> Domain:
    if isinstance(domain, Domain):
        return domain
    if isinstance(domain, dict):
        return Domain.from_dict(domain, seed)
    if domain is not None:
        return Domain.load(domain)
    if isinstance(source, str | os.PathLike):
        return Domain.load(Path(source) / "domain.json")
    raise WeightsError("domain: expected the inputs and answers of the model, got none")
