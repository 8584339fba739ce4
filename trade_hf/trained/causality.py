"""Does the model use a line's value? Interchange interventions on the subspace that holds it.

For each s-op of a program: the directions of the residual stream in which its values differ are found by regression on
half of the inputs; then what lies in them is exchanged for another input's, and the model's answers are held against
the program's with that line's values exchanged (arXiv:2106.02997, arXiv:2303.02536). The place is the one that does
best on the first half of the pairs; the figure is of the other half.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from trade_hf.rasp.program import RaspError, variable_name
from trade_hf.trained.answers import Answers
from trade_hf.trained.domain import PADDING, Domain
from trade_hf.trained.evidence import Evidence, patterns
from trade_hf.trained.program import Program, Run
from trade_hf.trained.transformer import Transformer

MOST_INPUTS = 600  # that a mechanism is looked for on
MOST_DIRECTIONS = 8  # of the subspace of one value
CONFIDENCE = 1.96  # standard deviations: 95 %


@dataclass(frozen=True)
class Mechanism:
    """Where in a model a line is, and whether the model uses it.

    Attributes:
      line: its name.
      where: the hook of the residual stream, or the head.
      held: of an s-op: the share of its variance that a linear map from there gives; of a selector: the squared
        correlation of the head's attention with it.
      interchange: the share of answers that should change with the line's value and do so as the program says; None
        for selectors, and where no answer should change.
      interval: of that share, 95 % (Wilson).
      cases: how many answers should have changed.
    """

    line: str
    where: str
    held: float
    interchange: float | None = None
    interval: tuple[float, float] | None = None
    cases: int = 0

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def mechanism(program: Program, model: Transformer, domain: Domain, seed: int = 0) -> list[Mechanism]:
    """The mechanism of each line of a program.

    Args:
      program: it need not agree with the model.
      model, domain: the model and its inputs.
      seed: of the inputs that are drawn, where there are many, and of the pairs.
    """
    rng = np.random.RandomState(seed)
    chosen = np.sort(rng.permutation(len(domain))[:MOST_INPUTS])
    part = domain.rows(chosen)
    evidence = Evidence(model, part)
    heads = patterns(model, part)
    exchange = Exchange(program, model, part, evidence, rng)
    selectors = _selectors(program, part)
    found = []
    for number, line in enumerate(program.lines):
        if line.op.gives_selector:
            found.append(_head_of(number, selectors[number], heads, part))
        else:
            found.append(exchange.line(number))
    return found


def _selectors(program: Program, domain: Domain) -> dict[int, np.ndarray]:
    """[input, query, key] what each selector selects."""
    run = Run(domain.tokens)
    values: dict[int, np.ndarray] = {-2: run.tokens, -1: run.indices}
    for number, line in enumerate(program.lines):
        values[number] = run.compute(line, [values[a] for a in line.args])
    return {n: values[n].astype(np.float64) for n, line in enumerate(program.lines) if line.op.gives_selector}


def _head_of(number: int, selected: np.ndarray, heads: Mapping[str, np.ndarray], domain: Domain) -> Mechanism:
    """The head whose attention correlates most with a selector's."""
    weights = selected / np.maximum(selected.sum(-1, keepdims=True), 1)
    is_token = domain.tokens != PADDING
    pairs = is_token[:, :, None] & is_token[:, None, :]
    best = max(heads, key=lambda name: _squared_correlation(weights[pairs], heads[name][pairs]))
    return Mechanism(variable_name(number), best, round(_squared_correlation(weights[pairs], heads[best][pairs]), 4))


def _squared_correlation(first: np.ndarray, second: np.ndarray) -> float:
    if first.std() < 1e-9 or second.std() < 1e-9:
        return 0.0
    correlation = float(np.corrcoef(first, second)[0, 1])
    return max(correlation, 0.0) ** 2


class Exchange:
    """Interchange interventions for the lines of one program.

    Args:
      program, model, domain: what is looked at, on inputs few enough to be run often.
      evidence: the model's activations on them.
      rng: draws the pairs of inputs.
    """

    def __init__(
        self, program: Program, model: Transformer, domain: Domain, evidence: Evidence, rng: np.random.RandomState
    ) -> None:
        self.program, self.model, self.domain, self.evidence = program, model, domain, evidence
        self.values = program.evaluate_all(domain.tokens)
        self.partner = _partners(domain.lengths, rng)
        self.is_fitted = rng.rand(len(domain)) < 0.5  # inputs that directions and places are fitted on
        self.base = program.evaluate(domain.tokens)

    def line(self, number: int) -> Mechanism:
        """Where an s-op's value is, and what happens when it is exchanged."""
        values = self.values[number]
        assert values is not None
        name, place = variable_name(number), self.evidence.place(np.nan_to_num(values))
        try:
            expected = self.program.evaluate_with(self.domain.tokens, number, values[self.partner])
        except RaspError:  # the program has no value there: nothing to hold the model against
            return Mechanism(name, place.hook, round(place.r2, 4))
        should = self.domain.is_answer & (expected != self.base) & ~np.isnan(expected)
        if not should[~self.is_fitted].any():
            return Mechanism(name, place.hook, round(place.r2, 4))
        outcomes = {hook: self._changed(hook, values) == expected for hook in self.evidence.hooks}
        fitted, judged = should & self.is_fitted[:, None], should & ~self.is_fitted[:, None]
        best = max(outcomes, key=lambda hook: outcomes[hook][fitted].mean() if fitted.any() else 0.0)
        right, cases = int(outcomes[best][judged].sum()), int(judged.sum())
        r2 = float(self.evidence.held(np.nan_to_num(values)[None])[0][self.evidence.hooks.index(best)])
        low, high = interval(right, cases)
        return Mechanism(name, best, round(r2, 4), round(right / cases, 4), (round(low, 4), round(high, 4)), cases)

    def _changed(self, hook: str, values: np.ndarray) -> np.ndarray:
        """[input, position] the model's answers with what holds `values` at a hook exchanged for the partner's."""
        directions = torch.tensor(self._directions(hook, values), dtype=torch.float32)
        logits = np.zeros((*self.domain.tokens.shape, self.domain.columns), np.float32)
        stream = self.evidence.streams[hook]
        with torch.no_grad():
            for rows in self.model.batches(self.domain):
                length = int(self.domain.lengths[rows[0]])
                theirs = torch.tensor(stream[self.partner[rows], :length])

                def exchanged(own: torch.Tensor, theirs: torch.Tensor = theirs) -> torch.Tensor:
                    return own + (theirs - own) @ directions @ directions.T

                found = self.model.run(self.domain.tokens[rows, :length], patches={hook: exchanged})
                logits[rows, :length] = found[..., : self.domain.columns].numpy()
        return Answers.of(logits, self.domain).values

    def _directions(self, hook: str, values: np.ndarray) -> np.ndarray:
        """[d_model, direction] orthonormal directions in which the stream differs with a value.

        What follows from token and position alone is taken off first, unless the value itself follows from them.
        """
        at = self.evidence.is_token & self.is_fitted[:, None]
        stream, wanted = self.evidence.streams[hook][at].astype(np.float64), values[at]
        classes, codes = np.unique(wanted, return_inverse=True)
        indicators = np.eye(len(classes))[codes] if len(classes) <= 4 * MOST_DIRECTIONS else wanted[:, None]
        width = self.domain.tokens.shape[1]
        alone = np.unique(self.domain.tokens[at] * width + np.nonzero(at)[1], return_inverse=True)[1]
        within = _less_means(indicators, alone)
        if np.square(within).sum() > 0.01 * np.square(indicators - indicators.mean(0)).sum():
            stream, indicators = _less_means(stream, alone), within
        else:
            stream, indicators = stream - stream.mean(0), indicators - indicators.mean(0)
        slopes = np.linalg.lstsq(indicators, stream, rcond=1e-6)[0]
        _, sizes, directions = np.linalg.svd(indicators @ slopes, full_matrices=False)
        kept = min(MOST_DIRECTIONS, int((sizes > 0.02 * sizes.max()).sum()))
        return directions[:kept].T


def _less_means(rows: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Rows less the mean of their group."""
    means = np.zeros((groups.max() + 1, rows.shape[1]))
    np.add.at(means, groups, rows)
    return rows - (means / np.bincount(groups)[:, None])[groups]


def _partners(lengths: np.ndarray, rng: np.random.RandomState) -> np.ndarray:
    """[input] another input of the same length, drawn at random."""
    partner = np.arange(len(lengths))
    for length in np.unique(lengths):
        rows = rng.permutation(np.flatnonzero(lengths == length))
        partner[rows] = np.roll(rows, 1)
    return partner


def interval(right: int, cases: int) -> tuple[float, float]:
    """Wilson's interval of a share, 95 %."""
    share, spread = right / cases, CONFIDENCE**2 / cases
    middle = (share + spread / 2) / (1 + spread)
    half = CONFIDENCE * math.sqrt(share * (1 - share) / cases + spread / (4 * cases)) / (1 + spread)
    return max(0.0, middle - half), min(1.0, middle + half)
