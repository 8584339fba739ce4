"""Batched forward pass of a compiled transformer, equal to tracr's `AssembledTransformerModel.apply`.

Tracr runs inputs one by one through JAX (`transformer/model.py`, `transformer/attention.py`); here a batch of inputs of
mixed lengths goes through at once. Attention is softmax(QK / sqrt(key_size)), with a causal mask if the model has one,
the MLP is a ReLU, there is no layer norm.
"""

from __future__ import annotations

from collections.abc import Sequence
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
MAX_CELLS = 2**26  # float32 in one intermediate tensor: 256 MiB


@dataclass(frozen=True)
class Output:
    """What a model gives for a batch.

    Attributes:
      logits: [batch, position, output] float: the residual stream after the unembedding, BOS position left out.
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

    def defined(self, row: int) -> list[Value | None]:
        """As `decode`, None where no direction is on."""
        off = self.undefined[row][self.real[row]]
        return [None if none else value for value, none in zip(self.decode(row), off, strict=True)]


def run(
    weights: TracrWeights, inputs: np.ndarray, batch_size: int = 4096, dtype: torch.dtype = torch.float32
) -> Output:
    """Run token codes [batch, position] through the model.

    `inputs` are indices into `weights.input_vocab`, PADDING after the end of an input. `batch_size` of them run at
    once, fewer where the model is large. `dtype` is the precision of all sums; Tracr's is single.
    """
    positions = inputs.shape[1] + 1
    widest = max(weights.num_heads * positions, weights.mlp_size, weights.num_heads * weights.key_size, weights.d_model)
    batch_size = max(1, min(batch_size, MAX_CELLS // (positions * widest)))
    model = _Model(weights, dtype)
    logits = [model(inputs[i : i + batch_size]) for i in range(0, len(inputs), batch_size)]
    return Output(torch.cat(logits).numpy(), inputs != PADDING, weights.output_values)


def residual_stream(weights: TracrWeights, inputs: np.ndarray) -> np.ndarray:
    """What the residual stream holds after the last layer: [batch, position, d_model], BOS position left out."""
    return _Model(weights).residual_stream(inputs).numpy()


def attention(weights: TracrWeights, tokens: Sequence[Value]) -> np.ndarray:
    """What each position attends to on one input: [layer, head, query, key], each row a distribution; BOS comes first.

    Raises ValueError for an input that the model does not take.
    """
    if not 1 <= len(tokens) <= weights.max_seq_len or not set(tokens) <= set(weights.input_vocab):
        raise ValueError(f"expected 1 to {weights.max_seq_len} tokens of the model's vocabulary, got {list(tokens)}")
    return _Model(weights).patterns(np.array([[weights.vocab.index(token) for token in tokens]]))


class _Model:
    """A model's parameters, without what is all zeros: Tracr pads every layer to the size of the largest."""

    def __init__(self, weights: TracrWeights, dtype: torch.dtype = torch.float32) -> None:
        self.weights = weights
        # Copied, since JAX's are read-only.
        tensors = {name: torch.tensor(tensor, dtype=dtype) for name, tensor in weights.tensors.items()}
        self.tokens, self.positions = tensors["token_embed/embeddings"], tensors["pos_embed/embeddings"]
        self.unembedding = torch.tensor(weights.unembedding, dtype=dtype)
        self.layers = [_Layer(_part(tensors, number), weights) for number in range(weights.num_layers)]

    @torch.inference_mode()
    def __call__(self, inputs: np.ndarray) -> Tensor:
        return self.residual_stream(inputs) @ self.unembedding

    @torch.inference_mode()
    def residual_stream(self, inputs: np.ndarray) -> Tensor:
        rows = np.array([self.weights.vocab.index(token) for token in self.weights.input_vocab])
        length = int((inputs != PADDING).sum(1).max())
        real = torch.from_numpy(inputs[:, :length] != PADDING)
        tokens = torch.from_numpy(rows[np.where(inputs[:, :length] == PADDING, 0, inputs[:, :length])])
        x, shape = self.embed(tokens)
        hidden = ~torch.cat([torch.ones(len(inputs), 1, dtype=torch.bool), real], 1)[:, None] | self.later(length + 1)
        for layer in self.layers:
            layer.add_to(x, shape, hidden)
        return F.pad(x.unflatten(0, shape)[:, 1:], (0, 0, 0, inputs.shape[1] - length))

    @torch.inference_mode()
    def patterns(self, rows: np.ndarray) -> np.ndarray:
        """[layer, head, query, key] of one input, given as rows of the embedding [1, position]."""
        x, shape = self.embed(torch.from_numpy(rows))
        hidden, found = self.later(shape[1])[None], []
        for layer in self.layers:
            found.append(torch.cat([head.pattern(x, shape, hidden) for head in layer.heads]))
            layer.add_to(x, shape, hidden)
        return torch.stack(found).numpy()

    def later(self, positions: int) -> Tensor:
        """[query, key], or what broadcasts to it: the keys after a query, if the model is causal."""
        if not self.weights.causal:
            return torch.zeros(1, positions, dtype=torch.bool)
        return torch.ones(positions, positions, dtype=torch.bool).triu(1)

    def embed(self, rows: Tensor) -> tuple[Tensor, torch.Size]:
        """The residual stream [batch · position, d_model] before the first layer, BOS in front; its shape."""
        bos = torch.full((len(rows), 1), self.weights.vocab.index(self.weights.bos))
        x = F.embedding(torch.cat([bos, rows], 1), self.tokens) + self.positions[: rows.shape[1] + 1]
        return x.flatten(0, 1), x.shape[:2]


def _part(tensors: dict[str, Tensor], number: int) -> dict[str, Tensor]:
    prefix = f"transformer/layer_{number}/"
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


class _Layer:
    def __init__(self, part: dict[str, Tensor], weights: TracrWeights) -> None:
        self.heads = [_Head(part, weights.key_size, number) for number in range(weights.num_heads)]
        self.bias, self.mlp = part["attn/linear/b"], _Mlp(part)

    def add_to(self, x: Tensor, shape: torch.Size, hidden: Tensor) -> None:
        """Add to `x` [batch · position, d_model] what the layer gives of it."""
        attended = [(head.attend(x, shape, hidden), head.moved) for head in self.heads if head.moves]
        for values, moved in attended:
            x.addmm_(values, moved)
        if self.bias.any():
            x += self.bias
        self.mlp.add_to(x)


class _Head:
    def __init__(self, part: dict[str, Tensor], key_size: int, number: int) -> None:
        own = slice(number * key_size, (number + 1) * key_size)
        query, key, value = (
            (part[f"attn/{name}/w"][:, own], part[f"attn/{name}/b"][own]) for name in ("query", "key", "value")
        )
        compares = _not_zero(*query) & _not_zero(*key)
        moved = part["attn/linear/w"][own]
        written = moved.any(1)
        self.query, self.key = ((w[:, compares], b[compares]) for w, b in (query, key))
        self.value, self.moved = (value[0][:, written], value[1][written]), moved[written]
        self.moves, self.scale = bool(written.any()), key_size**-0.5

    def attend(self, x: Tensor, shape: torch.Size, hidden: Tensor) -> Tensor:
        """[batch · position, value]: what a head takes of `x` [batch · position, d_model], nothing of keys that are
        `hidden`: padding, or later ones of a causal model."""
        value = torch.addmm(self.value[1], x, self.value[0]).unflatten(0, shape)
        return (self.pattern(x, shape, hidden) @ value).flatten(0, 1)

    def pattern(self, x: Tensor, shape: torch.Size, hidden: Tensor) -> Tensor:
        """[batch, query, key]: how much each query attends to each key."""
        query, key = (torch.addmm(b, x, w).unflatten(0, shape) for w, b in (self.query, self.key))
        return (query @ key.mT).mul_(self.scale).masked_fill_(hidden, -1e30).softmax(-1)


class _Mlp:
    def __init__(self, part: dict[str, Tensor]) -> None:
        used = part["mlp/linear_2/w"].any(1)
        self.first, self.bias = part["mlp/linear_1/w"][:, used], part["mlp/linear_1/b"][used]
        self.second, self.out = part["mlp/linear_2/w"][used], part["mlp/linear_2/b"]

    def add_to(self, x: Tensor) -> None:
        """Add to `x` [batch · position, d_model] what the block gives of it."""
        if len(self.bias):
            x.addmm_(torch.addmm(self.bias, x, self.first).relu_(), self.second)
        if self.out.any():
            x += self.out


def _not_zero(weights: Tensor, bias: Tensor) -> Tensor:
    return weights.any(0) | (bias != 0)
