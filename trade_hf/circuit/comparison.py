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
  taken (Higham, Accuracy and Stability of Numerical Algorithms, 2nd ed., section 3.1). With the u of single precision,
  the proof holds in double precision and in exact arithmetic too.

At the end, the error of each output must be less than what could change the decoded value. The same bound is taken of
the compiled model itself. Where both hold, both models decode to the same on every input, in each of these arithmetics.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from trade_hf.circuit.errors import Errors
from trade_hf.circuit.ideal import Ideal, UnboundedError
from trade_hf.circuit.isomorphism import domain_of
from trade_hf.circuit.products import Matching, TooManyProductsError, match_parts
from trade_hf.compiled.weights import TracrWeights

TOLERANCE = 1e-3  # numbers up to 100 that differ by no more are the same; rounding leaves some 1e-4 in another basis
# Single precision is off in proportion to a number. So larger ones may differ by this part of themselves, up to ten
# times the TOLERANCE: whole numbers are told apart whatever their size.
RELATIVE = 1e-5
PRECISIONS = ("float32", "float64")
SINGLE, DOUBLE = (
    2.0**-24,
    2.0**-51,
)  # unit roundoff; of double precision four times, for the rounding of the bound itself
ON = 0.5  # the least logit of an output that is on
# How much farther off than the compiled model's own a logit may be where the s-op is None: no part may write there what
# Tracr would decode. It is asked of double precision, where another basis is off by 0.0034 at most in the tests; what
# single precision adds is rounding.
FAINT = 5e-3


def are_alike(first: np.ndarray | float, second: np.ndarray | float) -> np.ndarray:
    """Whether numbers of a program and of a model are the same. NaN and infinity are like nothing."""
    with np.errstate(invalid="ignore"):  # infinity less infinity is NaN, and not within any tolerance
        within = np.clip(RELATIVE * np.abs(first), TOLERANCE, 10 * TOLERANCE)
        return np.abs(np.subtract(first, second)) <= within


@dataclass(frozen=True)
class Comparison:
    """Whether two models are proven to be one function.

    Attributes:
      precisions: in which arithmetic, `float32` and `float64` (and so in exact arithmetic), or in `float64` alone; ()
        if there is no proof.
      reason: why not in both; None if in both.
      error: the most that any output of the model can be off in the last arithmetic that was tried, if that is known.
      margin: what it may be off.
    """

    precisions: tuple[str, ...]
    reason: str | None = None
    error: float | None = None
    margin: float | None = None

    @property
    def is_proven(self) -> bool:
        """Whether both models give the same on every input in either precision."""
        return self.precisions == PRECISIONS


def compare(compiled: TracrWeights, weights: TracrWeights) -> Comparison:
    """Whether `weights` is proven to compute what `compiled`, a compiled program, computes. No proof says nothing."""
    if domain_of(compiled) != domain_of(weights):
        return Comparison((), "the two models differ in vocabulary, length, mask or output values")
    try:
        matching = match_parts(compiled, weights)
        if matching is None:
            return Comparison((), "the parts of the two models do not correspond")
        ideal = Ideal.of(compiled)
    except (TooManyProductsError, UnboundedError) as error:
        return Comparison((), str(error))
    in_double = _compare(ideal, weights, matching, DOUBLE)
    if in_double.reason is not None:
        return in_double
    in_single = _compare(ideal, weights, matching, SINGLE)
    if in_single.reason is not None:
        return replace(in_double, precisions=PRECISIONS[1:], reason=f"in float32, {in_single.reason}")
    return replace(in_single, precisions=PRECISIONS)


def hangs_on_order(compiled: TracrWeights) -> bool:
    """Whether what a compiled program gives in single precision may hang on the order of its sums. False is certain."""
    try:
        ideal = Ideal.of(compiled)
        own = Errors(ideal, compiled, _with_itself(ideal), SINGLE).of_outputs()
    except UnboundedError:
        return True
    if compiled.output_values is None:
        return bool((2 * own > TOLERANCE).any())
    return not _decodes_alike(ideal.outputs, own)


def _compare(ideal: Ideal, weights: TracrWeights, matching: list[Matching], unit: float) -> Comparison:
    """In arithmetic of one unit roundoff, `precisions` left open."""
    try:
        own = Errors(ideal, ideal.weights, _with_itself(ideal), unit).of_outputs()
        given = Errors(ideal, weights, matching, unit).of_outputs()
    except UnboundedError as unbounded:
        return Comparison((), str(unbounded))
    error = float(given.max())
    if weights.output_values is None:
        margin, is_safe = TOLERANCE - float(own.max()), bool((given + own <= TOLERANCE).all())
    else:
        margin, is_safe = _margin(ideal.outputs), _decodes_alike(ideal.outputs, np.maximum(given, own))
        if is_safe and unit == DOUBLE and (ideal.outputs.max(1) < ON).any():
            is_safe = bool((given - own <= FAINT).all())
    reason = f"an output may be off by up to {error:.1e}, where {margin:.1e} can change what it is"
    return Comparison((), None if is_safe else reason, error, margin)


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


def _decodes_alike(outputs: np.ndarray, off: np.ndarray) -> bool:
    """Whether logits [combination, output] decode to the same if each is off by up to `off` [output]: to the same value
    that is on, or to none."""
    rows, first = np.arange(len(outputs)), outputs.argmax(1)
    least, others = outputs[rows, first] - off[first], outputs + off
    others[rows, first] = -np.inf
    is_on = (least > ON) & (least > others.max(1))
    is_off = (outputs + off).max(1) < ON
    return bool((is_on | is_off).all())


def _margin(outputs: np.ndarray) -> float:
    """The least by which all logits [combination, output] must be off for another value to be decoded."""
    inverted = np.sort(outputs, axis=1)[:, ::-1]
    largest = inverted[:, 0]
    second = inverted[:, 1] if inverted.shape[1] > 1 else np.full(len(outputs), -np.inf)
    return float(np.where(largest > ON, np.minimum((largest - second) / 2, largest - ON), ON - largest).min())
