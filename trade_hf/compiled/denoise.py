"""Noise taken off a model that stands in Tracr's own basis, in some order.

Nearly all of Tracr's entries are 0 and the others simple fractions, so the median entry of a noisy tensor tells how
strong the noise is, and which fraction was meant as long as the noise is weaker than they are apart. In another basis,
where all entries are large, nothing can be told this way.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from trade_hf.compiled.weights import TracrWeights

SPREADS = 5.0  # standard deviations that noise may reach: one entry in two million goes beyond
TO_DEVIATION = 1.4826  # of a normal distribution, the standard deviation over the median of absolute values
LARGEST_ZERO = 0.5  # 1 is always an entry, whatever the noise
LARGEST_DENOMINATOR = 12


def is_aligned(weights: TracrWeights) -> bool:
    """Whether the basis may be Tracr's own, in some order: a token's embedding is then one direction, and the constant
    one."""
    entries = np.count_nonzero(weights.tensors["token_embed/embeddings"], 1)
    return bool(entries.max() <= 2 and np.count_nonzero(entries) >= len(entries) - 1)  # only the pad token's may be 0


def denoise(weights: TracrWeights) -> TracrWeights:
    """The model with its noise taken off where that can be done, else the model itself."""
    if is_aligned(weights) or _reach(weights.tensors["token_embed/embeddings"]) > LARGEST_ZERO:
        return weights
    clean = replace(weights, tensors={name: _denoise(tensor) for name, tensor in weights.tensors.items()})
    return clean if is_aligned(clean) else weights


def _denoise(tensor: np.ndarray) -> np.ndarray:
    reach = _reach(tensor)
    clean = np.where(np.abs(tensor) < min(reach, LARGEST_ZERO), 0, tensor)
    left = clean != 0
    for denominator in range(1, LARGEST_DENOMINATOR + 1):
        if 2 * reach * denominator * (denominator - 1) >= 1:  # fractions are closer to each other than that
            break
        simple = np.round(tensor * denominator) / denominator
        meant = left & (np.abs(simple - tensor) < reach)
        clean[meant] = simple[meant]
        left &= ~meant
    return clean.astype(np.float32)


def _reach(tensor: np.ndarray) -> float:
    """How far noise takes an entry at most."""
    return SPREADS * TO_DEVIATION * float(np.median(np.abs(tensor)))
