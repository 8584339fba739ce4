"""How steep a model's steps are: tracr's `mlp_exactness`, read from the weights.

Tracr makes a map of a number x out of steps (`craft/chamber/numerical_mlp.py`). A step at a threshold t is two hidden
units, ReLU(L · (x − t) + 1) and ReLU(L · (x − t)), which write the same forwards and backwards: it rises over a width
of 1 / L. What the two units read differs by the constant alone.

In an orthogonal basis, L is the length of what a unit reads beside the constant. In another one lengths say nothing:
there L is what a unit reads of a number that is written as it is, by a map of values to numbers or by the head of a
selector width.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from trade_hf.rasp.evaluate import EXACTNESS

MAX_EXACTNESS = 1e6  # of any model: beyond, float32 cannot tell which side of a step a number is on
ALIKE = 0.3  # of a length, or of a constant of 1: what noise may leave of a difference that is none
OFF = 0.05  # of what a unit reads: what noise may add to what it reads of the constant
SAME = 0.01  # of what is 0 or 1: rounding leaves less
FAR = 8.0  # times how far off a quarter of all steps are: above, it is no step
ORTHOGONAL = 1e-3  # of a length of 1: above, and more than noise explains, the basis is not orthogonal
ROUNDING = 3e-5  # of an exactness, as a change of basis leaves it
SPREADS = 5.0  # standard errors that an exactness may be off in noise
MOST_UNITS = 512  # of a layer that are looked at: any two of them may be a step
ENOUGH = 64  # steps


@dataclass(frozen=True)
class _Units:
    """What hidden units read, [unit, d_model], and how much of the constant, [unit]."""

    reads: np.ndarray
    of_constant: np.ndarray

    def __getitem__(self, some: np.ndarray) -> _Units:
        return _Units(self.reads[some], self.of_constant[some])


@dataclass(frozen=True)
class _Steps:
    """The steps of one layer: the upper unit and the lower one of each."""

    layer: int
    upper: _Units
    lower: _Units

    @property
    def lengths(self) -> np.ndarray:
        """[step] of what they read beside the constant, in an orthogonal basis. Noise on the two units is not the same,
        so that it averages out."""
        squares = (self.upper.reads * self.lower.reads).sum(1) - self.upper.of_constant * self.lower.of_constant
        return np.sqrt(np.maximum(squares, 0))

    def errors(self, noise: float) -> np.ndarray:
        """[step] standard deviation of `lengths` for noise of that deviation on each entry."""
        longest = np.linalg.norm(self.upper.reads, axis=1) + np.abs(self.upper.of_constant)
        of_squares = 2 * noise * longest + noise**2 * self.upper.reads.shape[1] ** 0.5
        return of_squares / np.maximum(2 * self.lengths, 1e-9)


def exactness_of(weights: Any) -> float:
    """The slope of a TracrWeights' steps; EXACTNESS where it has none, or none that tells."""
    layers = list(_steps(weights))
    if not layers:
        return EXACTNESS
    apart = np.concatenate([steps.upper.reads - steps.lower.reads for steps in layers])
    constant = np.median(apart, axis=0)  # what reads the constant and nothing else
    off = np.concatenate([steps.upper.of_constant - steps.lower.of_constant - 1 for steps in layers])
    noise = float(np.abs(np.concatenate([(apart - constant).ravel(), off])).max())
    if abs(float(np.linalg.norm(constant)) - 1) > ORTHOGONAL + 10 * noise:
        found = _read_as_written(weights, layers, constant)
        return _simplest(float(np.median(found)), 0.0) if len(found) else EXACTNESS
    found = np.concatenate([steps.lengths for steps in layers])
    noise = (max(0.0, float((apart**2).sum(1).mean()) - 1) / (2 * weights.d_model)) ** 0.5
    errors = np.concatenate([steps.errors(noise) for steps in layers])
    return _simplest(float(np.median(found)), SPREADS * float(np.median(errors)) / len(errors) ** 0.5)


def _steps(weights: Any) -> Iterator[_Steps]:
    """Of each layer that has any, until there are enough."""
    found = 0
    pad = weights.tensors["token_embed/embeddings"][weights.vocab.index(weights.pad)].astype(np.float64)
    for layer in range(weights.num_layers):
        if found >= ENOUGH:
            return
        first, second = (weights.layer(layer, f"mlp/linear_{i}/w").astype(np.float64) for i in (1, 2))
        used = np.flatnonzero(first.any(0) & second.any(1))[:MOST_UNITS]
        reads, biases = first.T[used], weights.layer(layer, "mlp/linear_1/b")[used]
        units = _Units(reads, reads @ pad + biases)  # nothing reads the pad token itself
        if len(used) > 1:
            upper, lower = _pairs(units, second[used])
            if len(upper):
                found += len(upper)
                yield _Steps(layer, units[upper], units[lower])


def _pairs(units: _Units, writes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The upper unit of each step and the lower one, which read the same but for a constant of 1, and write opposite
    things."""
    (reads, lengths), (writes, sizes) = map(_normalised, (units.reads, writes))
    above = units.of_constant[:, None] - units.of_constant  # [upper, lower]
    against = writes @ writes.T
    fits = (reads @ reads.T > ALIKE) & (against < ALIKE - 1) & (np.abs(sizes[:, None] - sizes) < ALIKE * sizes)
    fits &= (above > 0) & (above < 1 + ALIKE + OFF * lengths)
    off = np.where(fits, np.abs(above - 1) + np.sqrt(np.maximum(2 + 2 * against, 0)), np.inf)
    best = off.min(0)
    if not np.isfinite(best).any():
        return np.zeros(0, int), np.zeros(0, int)
    usual = float(np.quantile(best[np.isfinite(best)], 0.25))  # next to nothing where there is no noise
    lower = np.flatnonzero(best <= max(SAME, FAR * usual))
    return off[:, lower].argmin(0), lower


def _normalised(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    lengths = np.linalg.norm(rows, axis=1)
    return rows / lengths[:, None], lengths


def _read_as_written(weights: Any, layers: list[_Steps], constant: np.ndarray) -> np.ndarray:
    """[step] what each reads of the number that it is about, of those numbers that are written as they are."""
    embeddings = weights.tensors["token_embed/embeddings"].astype(np.float64)
    bos, pad = (embeddings[weights.vocab.index(token)] for token in (weights.bos, weights.pad))
    numbers, found = np.zeros((0, weights.d_model)), [np.zeros(0)]
    by_layer = {steps.layer: steps for steps in layers}
    for layer in range(weights.num_layers):
        sources = np.concatenate([(bos - pad)[None], numbers])
        numbers = np.concatenate([numbers, *(sources @ moved for moved in _heads(weights, layer))])
        if layer in by_layer:
            lower = by_layer[layer].lower
            products = (lower.reads - lower.of_constant[:, None] * constant) @ numbers.T
            found.append(products.max(1, initial=0))
        numbers = np.concatenate([numbers, _written_as_it_is(weights, layer, constant, by_layer.get(layer))])
    every = np.concatenate(found)
    return every[every > SAME]


def _heads(weights: Any, layer: int) -> Iterator[np.ndarray]:
    """[d_model, d_model] what each head moves."""
    value, moved = (weights.layer(layer, f"attn/{name}/w").astype(np.float64) for name in ("value", "linear"))
    for head in range(weights.num_heads):
        own = slice(head * weights.key_size, (head + 1) * weights.key_size)
        yield value[:, own] @ moved[own]


def _written_as_it_is(weights: Any, layer: int, constant: np.ndarray, steps: _Steps | None) -> np.ndarray:
    """[unit, d_model] what a layer's hidden units write, without steps and their starts, and without the units of
    linear maps, which go in pairs that read opposite things and write multiples."""
    first, second = (weights.layer(layer, f"mlp/linear_{i}/w").astype(np.float64) for i in (1, 2))
    reads, used = first.T, first.any(0) & second.any(1)
    others = [constant[None], -reads, *([] if steps is None else [steps.upper.reads, steps.lower.reads])]
    for row in np.concatenate(others):
        used &= np.abs(reads - row).max(1) > SAME
    return second[used]


def _simplest(found: float, noise: float) -> float:
    """The number of fewest digits that is as near as noise may have taken it; EXACTNESS if that is one, or there is
    none that a model can have."""
    near = max(ROUNDING * found, noise)
    simple = (EXACTNESS, *(float(f"{found:.{digits}g}") for digits in range(1, 17)))
    exactness = next(number for number in simple if abs(number - found) <= near)
    return exactness if 0 < exactness <= MAX_EXACTNESS else EXACTNESS
