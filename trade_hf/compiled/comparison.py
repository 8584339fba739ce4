"""Does a model compute what a program's compiled form computes, in whatever basis? A proof, with a bound on rounding.

The parts of the two models are paired (`products.py`). The compiled model's side is known exactly: `ideal.py` lists
what each source can add to the residual stream. Of the other model the products are taken in double precision from its
single-precision weights. For each source and each later reader it is bounded how far what the reader gets can be from
what the compiled model's reader gets, over all states of the source:
- *products*: the difference of the two products is computed, not tolerated.
- *hidden units*: one whose input is farther from 0 than its error can be is either off in both models, or linear. The
  errors of linear units that read the same add up before they are bounded, so those of a threshold's two units cancel
  and a step passes no error on. A unit at 0 passes on as much as its error.
- *heads*: logits that are off by e change the softmax's weights by a factor of at most exp(2 e). That matters only
  among keys of different values. The weight of keys that should have none, the leak, counts as an error.
- *parts without a partner* are paired with parts of zeros. A unit that reads 2e8 and writes 1e-7 counts with the most
  that it can write.
- *rounding*: a sum of n products is off by at most n u times the sum of their magnitudes, in whatever order it is
  taken (Higham, Accuracy and Stability of Numerical Algorithms, 2nd ed., section 3.1). u is that of single precision;
  so the proof holds in double precision and in exact arithmetic too.

At the end, the error of each output must be less than what could change the decoded value. The same bound is taken of
the compiled model itself. Where both hold, both models decode to the same on every input, in each of these arithmetics.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from trade_hf.compiled.errors import Errors
from trade_hf.compiled.ideal import Ideal, UnboundedError
from trade_hf.compiled.isomorphism import domain_of
from trade_hf.compiled.products import Matching, TooManyProductsError, match_parts
from trade_hf.compiled.weights import TracrWeights

NUMBERS_APART = 5e-4  # of numerical outputs, from the ideal: two models are within 1e-3 of each other
ON = 0.5  # the least logit of an output that is on; where none is, the s-op is None


@dataclass(frozen=True)
class Comparison:
    """Whether two models are proven to be one function.

    Attributes:
      reason: why there is no proof; None if there is one.
      error: the most that any output of the model can be off, if that is known.
      margin: what it may be off.
    """

    reason: str | None
    error: float | None = None
    margin: float | None = None

    @property
    def is_proven(self) -> bool:
        return self.reason is None


def compare(compiled: TracrWeights, weights: TracrWeights) -> Comparison:
    """Whether `weights` is proven to compute what `compiled`, a compiled program, computes. No proof says nothing."""
    if domain_of(compiled) != domain_of(weights):
        return Comparison("the two models differ in vocabulary, length, mask or output values")
    try:
        matching = match_parts(compiled, weights)
        if matching is None:
            return Comparison("the parts of the two models do not correspond")
        ideal = Ideal.of(compiled)
        found = _decide(Errors(ideal, weights, matching))
        return _decide(Errors(ideal, compiled, _with_itself(ideal))) if found.is_proven else found
    except (TooManyProductsError, UnboundedError) as error:
        return Comparison(str(error))


def _with_itself(ideal: Ideal) -> list[Matching]:
    """Each part of a compiled model with itself."""
    return [
        Matching(
            *(
                np.stack([places, places], 1)
                for places in (
                    np.concatenate([np.empty(0, int), *(head.compared for head in layer.heads)]),
                    np.concatenate([np.empty(0, int), *(head.moved for head in layer.heads)]),
                    np.concatenate([np.empty(0, int), *(group.units for group in layer.groups)]),
                )
            )
        )
        for layer in ideal.layers
    ]


def _decide(errors: Errors) -> Comparison:
    """Whether no output can be off by as much as would change what is decoded."""
    outputs, off = errors.ideal.outputs, errors.of_outputs()
    error = float(off.max())
    if errors.ideal.weights.output_values is None:
        margin = NUMBERS_APART
        is_safe = error <= margin
    else:
        first = outputs.argmax(1)
        rows = np.arange(len(outputs))
        others = np.where(np.arange(outputs.shape[1]) == first[:, None], -np.inf, outputs)
        largest = outputs[rows, first]
        is_on = (largest - off[first] > ON) & (largest - off[first] > (others + off).max(1))
        is_off = (outputs + off).max(1) < ON
        is_safe = bool((is_on | is_off).all())
        apart = np.where(largest > ON, np.minimum((largest - others.max(1)) / 2, largest - ON), ON - largest)
        margin = float(apart.min())
    reason = None if is_safe else f"an output may be off by up to {error:.1e}, where {margin:.1e} can change what it is"
    return Comparison(reason, error, margin)
