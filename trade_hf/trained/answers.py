"""What a model answers, as numbers, and what a program's output must be to say the same."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from trade_hf.compiled.weights import WeightsError
from trade_hf.trained.domain import Domain
from trade_hf.trained.expression import MOST_COLUMN, to_set


@dataclass(frozen=True)
class Answers:
    """The answers of a model on a domain.

    Attributes:
      values: [input, position] the number of the largest column, or the sum of 2 to the power of each column above 0;
        NaN where there is no answer.
      are_sets: whether they are sets.
      gap: the smallest difference, over all answers, between the first and the second logit (of sets: between a logit
        and 0).
    """

    values: np.ndarray
    are_sets: bool
    gap: float

    @classmethod
    def of(cls, logits: np.ndarray, domain: Domain) -> Answers:
        """From [input, position, column] logits. Raises WeightsError for sets of too many columns."""
        are_sets = domain.reads == "positive"
        if are_sets and domain.columns > MOST_COLUMN:
            raise WeightsError(f"answer.columns: expected at most {MOST_COLUMN} for sets, got {domain.columns}")
        if are_sets:
            values = (logits > 0) @ 2.0 ** np.arange(domain.columns)
            gaps = np.abs(logits).min(-1)
        else:
            values = logits.argmax(-1).astype(np.float64)
            ordered = np.sort(logits, -1)
            gaps = ordered[..., -1] - ordered[..., -2] if domain.columns > 1 else np.full(values.shape, np.inf)
        return cls(np.where(domain.is_answer, values, np.nan), are_sets, float(gaps[domain.is_answer].min()))

    @cached_property
    def classes(self) -> np.ndarray:
        """The distinct answers, ascending."""
        return np.unique(self.values[~np.isnan(self.values)])

    def differ(self, found: np.ndarray) -> np.ndarray:
        """[input, position] where a program's output is not the model's answer."""
        return np.asarray(~np.isnan(self.values) & (found != self.values))


def spoken(value: float, domain: Domain) -> Any:
    """One answer as people read it: a number, or the columns of a set."""
    if domain.reads == "positive":
        return sorted(to_set(value))
    return int(value) if float(value).is_integer() else float(value)
