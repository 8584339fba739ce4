"""Batched forward pass of a compiled transformer, equal to tracr's `AssembledTransformerModel.apply`.

Tracr runs inputs one by one through JAX (`transformer/model.py`, `transformer/attention.py`); here a batch of inputs of
mixed lengths goes through at once. Attention is softmax(QK / sqrt(key_size)) without a causal mask, the MLP is a ReLU,
there is no layer norm.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from trade_hf.compiled.weights import TracrWeights
from trade_hf.rasp.evaluate import PADDING
from trade_hf.rasp.functions import Value

# Below this, no output direction is on: the s-op is None in RASP (all its directions are 0 in the residual stream).
UNDEFINED_BELOW = 0.5


@dataclass(frozen=True)
class Output:
    """What a model gives for a batch.

    Attributes:
      logits: [batch, position, output] float32: the residual stream after the unembedding, BOS position left out.
      real: [batch, position] whether the position lies within the input.
      values: what the outputs stand for; None for a numerical output (one logit: the number itself).
    """

    logits: np.ndarray
    real: np.ndarray
    values: tuple[Value, ...] | None

    @property
    def codes(self) -> np.ndarray:
        """[batch, position]: as tracr decodes, the first largest output; or the number."""
        return self.logits[..., 0] if self.values is None else self.logits.argmax(-1)

    @property
    def undefined(self) -> np.ndarray:
        """[batch, position]: where no direction is on, which is how None looks from outside."""
        if self.values is None:
            return np.zeros(self.real.shape, bool)
        return self.logits.max(-1) < UNDEFINED_BELOW

    def decode(self, row: int) -> list[Value]:
        """One input's outputs, as tracr's `apply(...).decoded[1:]`."""
        cells = self.codes[row][self.real[row]].tolist()
        return cells if self.values is None else [self.values[code] for code in cells]


def run(weights: TracrWeights, inputs: np.ndarray, batch_size: int = 4096) -> Output:
    """Run token codes [batch, position] through the model.

    `inputs` are indices into `weights.input_vocab`, PADDING after the end of an input.
    """
    rows = np.array([weights.vocab.index(token) for token in weights.input_vocab])
    model = _Model(weights)
    logits = [model(inputs[i : i + batch_size], rows) for i in range(0, len(inputs), batch_size)]
    return Output(torch.cat(logits).numpy(), inputs != PADDING, weights.output_values)


class _Model:
    def __init__(self, weights: TracrWeights) -> None:
        self.weights = weights
        # torch.tensor copies: arrays that come from JAX are read-only.
        self.tensors = {name: torch.tensor(tensor) for name, tensor in weights.tensors.items()}
        self.unembedding = torch.tensor(weights.unembedding)

    @torch.inference_mode()
    def __call__(self, inputs: np.ndarray, rows: np.ndarray) -> Tensor:
        length = int((inputs != PADDING).sum(1).max())
        real = torch.from_numpy(inputs[:, :length] != PADDING)
        tokens = torch.from_numpy(rows[np.where(inputs[:, :length] == PADDING, 0, inputs[:, :length])])
        bos = torch.full((len(inputs), 1), self.weights.vocab.index(self.weights.bos))
        x = F.embedding(torch.cat([bos, tokens], 1), self.tensors["token_embed/embeddings"])
        x = x + self.tensors["pos_embed/embeddings"][: length + 1]
        keys = torch.cat([torch.ones(len(inputs), 1, dtype=torch.bool), real], 1)
        for layer in range(self.weights.num_layers):
            x = x + self.attention(x, keys, f"transformer/layer_{layer}/attn/")
            x = x + self.mlp(x, f"transformer/layer_{layer}/mlp/")
        logits = (x @ self.unembedding)[:, 1:]
        return F.pad(logits, (0, 0, 0, inputs.shape[1] - length))

    def linear(self, x: Tensor, name: str) -> Tensor:
        return x @ self.tensors[f"{name}/w"] + self.tensors[f"{name}/b"]

    def attention(self, x: Tensor, keys: Tensor, prefix: str) -> Tensor:
        query, key, value = (
            self.linear(x, prefix + part).unflatten(-1, (self.weights.num_heads, -1)).transpose(1, 2)
            for part in ("query", "key", "value")
        )
        scores = (query @ key.mT) / self.weights.key_size**0.5
        scores = scores.masked_fill(~keys[:, None, None, :], -1e30)
        attended = (scores.softmax(-1) @ value).transpose(1, 2).flatten(2)
        return self.linear(attended, prefix + "linear")

    def mlp(self, x: Tensor, prefix: str) -> Tensor:
        return self.linear(F.relu(self.linear(x, prefix + "linear_1")), prefix + "linear_2")
