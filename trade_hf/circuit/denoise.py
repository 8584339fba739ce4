"""A model brought back to Tracr's own basis and scales, in some order, and noise taken off it there.

Nearly all of Tracr's entries are 0 and the others simple fractions, so the median entry of a noisy tensor tells how
strong the noise is, and which fraction was meant as long as the noise is weaker than they are apart. In another basis
all entries are large, so Tracr's is found first: by products (`circuit/realisation.py`), in noise by lengths and angles
(`alignment.py`). What rounding leaves there is noise too.
"""

from __future__ import annotations

import contextlib
from dataclasses import replace
from functools import partial

import numpy as np

from trade_hf.circuit.alignment import align, reach
from trade_hf.circuit.circuit import Circuit
from trade_hf.circuit.realisation import NotTracrsError, realise
from trade_hf.compiled.weights import TracrWeights, WeightsError, check_limits
from trade_hf.limits import GaveUpError, Limits

ROUNDING = 2e-6  # of the largest entry of a tensor, where it was turned into another basis and back
LARGEST_ZERO = 0.5  # 1 is always an entry, whatever the noise
LARGEST_DENOMINATOR = 12
MOST_TAKEN = 0.1  # of a tensor's size, as noise
LOOKED_AT, NEAR, MOST = 16, 0.1, 0.5  # inputs on which models are run; numbers as near as that agree; the share of them


def is_aligned(weights: TracrWeights) -> bool:
    """Whether basis and scales may be Tracr's own, in some order: a token's embedding is then one direction, and the
    constant one."""
    entries = np.count_nonzero(weights.tensors["token_embed/embeddings"], 1)
    if entries.max() > 2 or np.count_nonzero(entries) < len(entries) - 1:  # only the pad token's may be 0
        return False
    units = []
    for name, tensor in weights.tensors.items():
        if name.endswith("/b") and tensor.any():
            return False
        if name.endswith(("attn/key/w", "attn/linear/w")) and not _is_of_0_and_1(tensor):
            return False
        if name.endswith("mlp/linear_1/w"):
            sizes = np.abs(tensor)
            largest = sizes.max(0)
            units.append(largest[(largest > 0) & ((sizes == largest) | (sizes == 0)).all(0)])
    plain = np.concatenate(units)  # the weight of units that read all that they read with the same one
    return _is_of_0_and_1(weights.unembedding) and (not len(plain) or bool(np.median(plain == 1)))


def _is_of_0_and_1(tensor: np.ndarray) -> bool:
    return bool(((tensor == 0) | (tensor == 1)).all())


def denoise(weights: TracrWeights, limits: Limits | None = None) -> TracrWeights:
    """The model in Tracr's own basis and scales with its noise taken off where that can be done, else the model itself.
    Raises LimitError where `limits` of a search are reached."""
    if is_aligned(weights):
        return weights
    for brought in (partial(_by_products, limits=limits), _as_it_is, _by_lengths):
        with contextlib.suppress(NotTracrsError, GaveUpError, WeightsError, ArithmeticError, LookupError):
            found = brought(weights)
            clean = replace(found, tensors={name: _denoise(tensor) for name, tensor in found.tensors.items()})
            check_limits(clean)
            if is_aligned(clean) and _is_near(clean, found):
                return clean
    return weights


def _by_products(weights: TracrWeights, limits: Limits | None) -> TracrWeights:
    circuit = Circuit.of(weights)
    found = _with_inputs(realise(weights, circuit, limits))
    if not _give_the_same(weights, circuit, Circuit.of(found)):
        raise NotTracrsError("what was found gives something else")
    return found


def _as_it_is(weights: TracrWeights) -> TracrWeights:
    return weights


def _by_lengths(weights: TracrWeights) -> TracrWeights:
    if (aligned := align(weights)) is weights:
        raise NotTracrsError("no basis is found by lengths and angles")
    return _with_inputs(aligned)


def _give_the_same(weights: TracrWeights, *circuits: Circuit) -> bool:
    """Whether circuits of a model agree on most of some inputs. Where the program gives None, either may decode to
    anything."""
    inputs = np.random.RandomState(0).randint(0, len(weights.input_vocab), (LOOKED_AT, weights.max_seq_len))
    one, other = (circuit.run(inputs) for circuit in circuits)
    if weights.output_values is not None:
        one, other = one.argmax(-1), other.argmax(-1)
    return bool((np.abs(one - other) < NEAR).mean() > MOST)


def _is_near(clean: TracrWeights, noisy: TracrWeights) -> bool:
    """Whether little was taken off; in another basis it would be much."""
    return all(
        np.linalg.norm(clean.tensors[name] - tensor) <= MOST_TAKEN * np.linalg.norm(tensor)
        for name, tensor in noisy.tensors.items()
    )


def _with_inputs(weights: TracrWeights) -> TracrWeights:
    """With embeddings and unembedding as they are in Tracr's basis: of 0 and 1."""
    rounded = {name: np.round(tensor) for name, tensor in weights.tensors.items() if name.endswith("embeddings")}
    return replace(weights, tensors={**weights.tensors, **rounded}, unembedding=np.round(weights.unembedding))


def _denoise(tensor: np.ndarray) -> np.ndarray:
    farthest = max(reach(tensor), ROUNDING * float(np.abs(tensor).max()))
    clean = np.where(np.abs(tensor) < min(farthest, LARGEST_ZERO), 0, tensor)
    left = clean != 0
    for denominator in range(1, LARGEST_DENOMINATOR + 1):
        if 2 * farthest * denominator * (denominator - 1) >= 1:  # fractions are closer to each other than that
            break
        simple = np.round(tensor * denominator) / denominator
        meant = left & (np.abs(simple - tensor) < farthest)
        clean[meant] = simple[meant]
        left &= ~meant
    return clean.astype(np.float32)
