"""What a trained model holds where: how well a linear map reads an s-op's values from the residual stream.

A value that follows from the token and the position alone is read nearly everywhere, so what counts is how much better
the stream gives a value than the best function of token and position does.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from trade_hf.trained.domain import PADDING, Domain
from trade_hf.trained.transformer import Transformer

SMALLEST_SHARE = 1e-6  # of the largest singular value: directions below are rounding


@dataclass(frozen=True)
class Place:
    """Where a value is read best: the hook of the residual stream and the share of variance that a linear map gives."""

    hook: str
    r2: float


class Evidence:
    """Activations of a model on some inputs, in a form in which many s-ops are held against them at once.

    Args:
      model: the transformer.
      domain: its inputs.
    """

    def __init__(self, model: Transformer, domain: Domain) -> None:
        self.is_token = domain.tokens != PADDING
        self.streams = streams(model, domain)
        self.hooks = list(self.streams)
        self._bases = [_basis(stream[self.is_token]) for stream in self.streams.values()]
        token, place = domain.tokens[self.is_token], np.nonzero(self.is_token)[1]
        self._alone = np.unique(token * domain.tokens.shape[1] + place, return_inverse=True)[1]

    def held(self, values: np.ndarray) -> np.ndarray:
        """[s-op, hook] the share of variance that a linear map from the stream gives.

        Args:
          values: [s-op, input, position].
        """
        found = _standardised(values[:, self.is_token])
        return np.stack([np.square(found @ basis).sum(1) for basis in self._bases], 1)

    def gain(self, values: np.ndarray) -> np.ndarray:
        """[s-op] how much of what token and position alone do not give is held where it is held best, 0 to 1.

        NaN for an s-op that token and position give.
        """
        found = _standardised(values[:, self.is_token])
        counts = np.bincount(self._alone)
        alone = np.stack([np.bincount(self._alone, row) for row in found]) if len(found) else np.zeros((0, len(counts)))
        explained = (np.square(alone) / counts).sum(1)
        best = np.stack([np.square(found @ basis).sum(1) for basis in self._bases], 1).max(1)
        gain = np.clip((best - explained) / np.maximum(1 - explained, 1e-3), 0, 1)
        return np.where(explained < 0.999, gain, np.nan)

    def place(self, values: np.ndarray) -> Place:
        """Where an s-op of [input, position] values is read best; the earliest of the hooks that are nearly as good."""
        r2 = self.held(values[None])[0]
        first = int(np.flatnonzero(r2 >= r2.max() - 0.005)[0])
        return Place(self.hooks[first], float(r2[first]))


def streams(model: Transformer, domain: Domain) -> dict[str, np.ndarray]:
    """[input, position, d_model] the residual stream after each part, by hook name."""
    found: dict[str, np.ndarray] = {}
    with torch.no_grad():
        for rows in model.batches(domain):
            length = int(domain.lengths[rows[0]])
            cache: dict[str, torch.Tensor] = {}
            model.run(domain.tokens[rows, :length], cache=cache)
            for name, activation in cache.items():
                if "hook_resid" not in name:
                    continue
                if name not in found:
                    found[name] = np.zeros((*domain.tokens.shape, model.config.d_model), np.float32)
                found[name][rows, :length] = activation.numpy()
    return _without_twins(found)


def patterns(model: Transformer, domain: Domain) -> dict[str, np.ndarray]:
    """[input, query, key] each head's attention, by name as in `head 0.1`."""
    found: dict[str, np.ndarray] = {}
    shape = (*domain.tokens.shape, domain.tokens.shape[1])
    with torch.no_grad():
        for rows in model.batches(domain):
            length = int(domain.lengths[rows[0]])
            cache: dict[str, torch.Tensor] = {}
            model.run(domain.tokens[rows, :length], cache=cache)
            for layer in range(model.config.n_layers):
                for head in range(model.config.n_heads):
                    pattern = found.setdefault(f"head {layer}.{head}", np.zeros(shape, np.float32))
                    pattern[rows, :length, :length] = cache[f"blocks.{layer}.attn.hook_pattern"][:, head].numpy()
    return found


def _without_twins(found: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Without the stream before a layer, which is the one after the layer before."""
    return {name: part for name, part in found.items() if not name.endswith("resid_pre") or name.startswith("blocks.0")}


def _basis(activations: np.ndarray) -> np.ndarray:
    """[cell, dimension] an orthonormal basis of what linear maps of [cell, d_model] activations give, less means."""
    centred = activations - activations.mean(0)
    left, sizes, _ = np.linalg.svd(centred.astype(np.float64), full_matrices=False)
    return left[:, sizes > SMALLEST_SHARE * sizes.max()].astype(np.float32)


def _standardised(values: np.ndarray) -> np.ndarray:
    """Rows with mean 0 and length 1."""
    values = values - values.mean(1, keepdims=True)
    return (values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-12)).astype(np.float32)
