"""SparseWeights: a compiled transformer as its non-zero entries, which are a few hundred of many thousands."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from trade_hf.compiled.weights import LIMITS, TracrWeights, WeightsError, check_limits, describe
from trade_hf.rasp.functions import Value


@dataclass(frozen=True)
class SparseWeights:
    """What TracrWeights holds, without the zeros.

    Attributes:
      shapes: each tensor's shape, by name, in Tracr's order.
      places: [entry] ascending, where each non-zero entry stands when all tensors are flattened one after the other.
      values: [entry] float32. An entry of -0.0 is kept: Tracr has some.
      num_heads, vocab, bos, pad, max_seq_len, output_values, residual_labels: as in TracrWeights.
      output_directions: the residual direction of each column of the unembedding, which is one-hot.
    """

    shapes: dict[str, tuple[int, ...]]
    places: np.ndarray
    values: np.ndarray
    num_heads: int
    vocab: tuple[Value, ...]
    bos: Value
    pad: Value
    max_seq_len: int
    output_values: tuple[Value, ...] | None
    output_directions: list[int]
    residual_labels: tuple[str, ...]

    @cached_property
    def starts(self) -> np.ndarray:
        """[tensor + 1] where each tensor begins among all, and the end."""
        return np.cumsum([0, *map(math.prod, self.shapes.values())])

    @property
    def d_model(self) -> int:
        return self.shapes["token_embed/embeddings"][1]

    @property
    def num_layers(self) -> int:
        return (len(self.shapes) - 2) // 12

    @property
    def key_size(self) -> int:
        return self.shapes["transformer/layer_0/attn/query/w"][1] // self.num_heads

    @property
    def mlp_size(self) -> int:
        return self.shapes["transformer/layer_0/mlp/linear_1/w"][1]

    def metadata(self) -> dict[str, Any]:
        """As TracrWeights.metadata."""
        return describe(self, self.output_directions)

    def dense(self, causal: bool = False) -> TracrWeights:
        """With a causal mask or without. Raises WeightsError for a model that is larger than what a weights file may
        hold."""
        if self.starts[-1] > LIMITS["parameters"]:
            raise WeightsError(f"the model has {self.starts[-1]:,} parameters; the limit is {LIMITS['parameters']:,}")
        flat = np.zeros(int(self.starts[-1]), np.float32)
        flat[self.places] = self.values
        starts = self.starts.tolist()
        parts = zip(self.shapes.items(), starts, starts[1:], strict=False)
        unembedding = np.zeros((self.d_model, len(self.output_directions)), np.float32)
        unembedding[self.output_directions, np.arange(len(self.output_directions))] = 1.0
        weights = TracrWeights(
            tensors={name: flat[start:end].reshape(shape) for (name, shape), start, end in parts},
            num_heads=self.num_heads,
            vocab=self.vocab,
            bos=self.bos,
            pad=self.pad,
            max_seq_len=self.max_seq_len,
            output_values=self.output_values,
            unembedding=unembedding,
            residual_labels=self.residual_labels,
            causal=causal,
        )
        check_limits(weights)
        return weights
