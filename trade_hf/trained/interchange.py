"""Interchange interventions: what a model answers when what holds one line's value is exchanged for another input's.

Half of the inputs, in pairs, say where a value is and in which directions; the other half judge it (arXiv:2106.02997).
A place is the residual stream after a part of the model, or what one part alone reads from it (the queries and keys of
a layer, its values, its hidden units), or the stream after the attention of several layers, as for a value that two of
them find.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch.nn import functional

from trade_hf.rasp.program import RaspError
from trade_hf.trained.answers import Answers
from trade_hf.trained.domain import Domain
from trade_hf.trained.evidence import Evidence
from trade_hf.trained.program import Program
from trade_hf.trained.subspaces import fitted, learned
from trade_hf.trained.transformer import Patch, Transformer

GOOD = 0.97  # share of the fitted half at which no directions are learned
LEARNED = 2  # places at which they are
MOST_LEARNED_ON = 64  # inputs of one step
Site = tuple[str, tuple[str, ...]]  # the hook of a residual stream, and the hooks that are patched with it
Projections = tuple[np.ndarray, ...]  # of each site of a place: [d_model, d_model]


@dataclass(frozen=True)
class Outcome:
    """Where a value was exchanged, and how many answers changed as they should.

    Attributes:
      place: name of the place.
      stream: the hook of the residual stream that it reads.
      right, cases: answers that should change: how many did as the program says, and all.
      kept, others: answers that should not change: how many did not, and all.
    """

    place: str
    stream: str
    right: int
    cases: int
    kept: int
    others: int


def places(evidence: Evidence, model: Transformer) -> dict[str, tuple[Site, ...]]:
    """The sites of each place, by its name."""
    found: dict[str, tuple[Site, ...]] = {hook: ((hook, (hook,)),) for hook in evidence.hooks}
    for layer in range(model.config.n_layers):
        block = f"blocks.{layer}"
        before = "blocks.0.hook_resid_pre" if layer == 0 else f"blocks.{layer - 1}.hook_resid_post"
        found[f"{block}.hook_qk_input"] = ((before, (f"{block}.hook_q_input", f"{block}.hook_k_input")),)
        found[f"{block}.hook_v_input"] = ((before, (f"{block}.hook_v_input",)),)
        if not model.config.attn_only:
            found[f"{block}.hook_mlp_in"] = ((f"{block}.hook_resid_mid", (f"{block}.hook_mlp_in",)),)
    after = "post" if model.config.attn_only else "mid"
    hooks = [f"blocks.{layer}.hook_resid_{after}" for layer in range(model.config.n_layers)]
    for start in range(len(hooks) - 1):
        found[" and ".join(hooks[start:])] = tuple((hook, (hook,)) for hook in hooks[start:])
    return found


class Exchange:
    """Interventions for the lines of one program.

    Args:
      program, model, domain: what is looked at, on inputs few enough to be run often.
      evidence: the model's activations on them.
      rng: draws the halves and the pairs of inputs.
      learn: whether projections are learned where those by regression do not do.
    """

    def __init__(
        self,
        program: Program,
        model: Transformer,
        domain: Domain,
        evidence: Evidence,
        rng: np.random.RandomState,
        learn: bool = True,
    ) -> None:
        self.program, self.model, self.domain, self.evidence = program, model, domain, evidence
        self.learn = learn
        self.values = program.evaluate_all(domain.tokens)
        self.base = program.evaluate(domain.tokens)
        self.is_fitted = rng.rand(len(domain)) < 0.5
        self.partner = partners(domain.lengths, self.is_fitted, rng)
        self.places = places(evidence, model)
        width = domain.tokens.shape[1]
        at = self._fitted_cells
        self._groups = np.unique(domain.tokens[at] * width + np.nonzero(at)[1], return_inverse=True)[1]

    @property
    def _fitted_cells(self) -> np.ndarray:
        return np.asarray(self.evidence.is_token & self.is_fitted[:, None])

    def line(self, number: int) -> Outcome | None:
        """What happens when an s-op's value is exchanged where that does best; None where no answer should change."""
        values = self.values[number]
        assert values is not None
        try:
            expected = self.program.evaluate_with(self.domain.tokens, number, values[self.partner])
        except RaspError:  # the program has no value there: nothing to hold the model against
            return None
        asked = self.domain.is_answer & ~np.isnan(expected)
        should = asked & (expected != self.base)
        halves = [half[:, None] for half in (self.is_fitted, ~self.is_fitted)]
        if not all((should & half).any() for half in halves):
            return None
        best = max(self._attempts(values, expected, should), key=lambda attempt: attempt[0])
        _, place, found = best
        judged, others = should & halves[1], asked & ~should & halves[1]
        right = found == expected
        return Outcome(
            place, self.places[place][0][0], int(right[judged].sum()), int(judged.sum()),
            int(right[others].sum()), int(others.sum()),
        )  # fmt: skip

    def _attempts(
        self, values: np.ndarray, expected: np.ndarray, should: np.ndarray
    ) -> Iterator[tuple[float, str, np.ndarray]]:
        """The share of the fitted half's answers that change as they should, the place, and the model's answers."""
        fitting = should & self.is_fitted[:, None]
        at = self._fitted_cells
        kinds = {
            hook: list(fitted(self.evidence.streams[hook][at], values[at], self._groups))
            for hook in dict.fromkeys(hook for sites in self.places.values() for hook, _ in sites)
        }
        tried: dict[str, tuple[float, Projections]] = {}
        for place, sites in self.places.items():
            for projections in zip(*(kinds[hook] for hook, _ in sites), strict=False):
                found = self.answers(place, projections)
                share = float((found == expected)[fitting].mean())
                if place not in tried or share > tried[place][0]:
                    tried[place] = share, projections
                yield share, place, found
        order = sorted(tried, key=lambda place: -tried[place][0])
        if not order or tried[order[0]][0] >= GOOD or not self.learn:
            return
        for place in order[:LEARNED]:
            projections = learned(tried[place][1], partial(self._loss, place, expected))
            found = self.answers(place, projections)
            yield float((found == expected)[fitting].mean()), place, found

    def answers(self, place: str, projections: Projections) -> np.ndarray:
        """[input, position] the model's answers with what projections of a place give exchanged for the partner's."""
        fixed = [torch.tensor(part, dtype=torch.float32) for part in projections]
        logits = np.zeros((*self.domain.tokens.shape, self.domain.columns), np.float32)
        with torch.no_grad():
            for rows in self.model.batches(self.domain):
                found = self._run(place, fixed, rows)
                logits[rows, : found.shape[1]] = found.numpy()
        return Answers.of(logits, self.domain).values

    def _run(self, place: str, projections: Sequence[torch.Tensor], rows: np.ndarray) -> torch.Tensor:
        length = int(self.domain.lengths[rows[0]])
        patches: dict[str, Patch] = {}
        for (source, hooks), projection in zip(self.places[place], projections, strict=True):
            theirs = torch.tensor(self.evidence.streams[source][self.partner[rows], :length])
            patches |= dict.fromkeys(hooks, partial(_exchanged, theirs, projection))
        return self.model.run(self.domain.tokens[rows, :length], patches=patches)[..., : self.domain.columns]

    def _loss(self, place: str, expected: np.ndarray, projections: Sequence[torch.Tensor]) -> torch.Tensor:
        """How far the model's answers on some of the fitted half are from the program's: changed ones count as much
        as all others."""
        total = torch.zeros(())
        fitting = np.flatnonzero(self.is_fitted)
        for rows in self.model.batches(self.domain, fitting):
            rows = rows[:MOST_LEARNED_ON]
            logits = self._run(place, projections, rows)
            length = logits.shape[1]
            wanted, base = expected[rows, :length], self.base[rows, :length]
            asked = self.domain.is_answer[rows, :length] & ~np.isnan(wanted)
            for cells in (asked & (wanted != base), asked & (wanted == base)):
                if cells.any():
                    total = total + self._distance(logits[torch.tensor(cells)], wanted[cells]) * cells.mean()
        return total

    def _distance(self, logits: torch.Tensor, wanted: np.ndarray) -> torch.Tensor:
        """The mean loss of [cell, column] logits against answers."""
        codes = torch.tensor(wanted.astype(np.int64))
        if self.domain.reads == "positive":
            bits = (codes[:, None] >> torch.arange(self.domain.columns)) & 1
            return functional.binary_cross_entropy_with_logits(logits, bits.float())
        inside = codes < self.domain.columns  # a program's answer may be one that the model cannot give
        if not bool(inside.any()):
            return torch.zeros(())
        return functional.cross_entropy(logits[inside], codes[inside].clamp(min=0))


def _exchanged(theirs: torch.Tensor, projection: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
    return own + (theirs - own) @ projection


def partners(lengths: np.ndarray, is_fitted: np.ndarray, rng: np.random.RandomState) -> np.ndarray:
    """[input] another input of the same length and the same half, drawn at random."""
    partner = np.arange(len(lengths))
    for length in np.unique(lengths):
        for half in (True, False):
            rows = rng.permutation(np.flatnonzero((lengths == length) & (is_fitted == half)))
            partner[rows] = np.roll(rows, 1)
    return partner
