"""Batched forward pass of a compiled transformer, equal to tracr's `AssembledTransformerModel.apply`.

Tracr runs inputs one by one through JAX (`transformer/model.py`, `transformer/attention.py`); here a batch of inputs of
mixed lengths goes through at once. Attention is softmax(QK / sqrt(key_size)), with a causal mask if the model has one,
the MLP is a ReLU, there is no layer norm.

What nothing reads is left out of the sums, unless a number in the model may be too large for float32: infinity times
zero is not zero, and then the output holds what Tracr's would, NaN or infinity.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from trade_hf.compiled.transforms import WRITERS, all_readers, residual_vectors, with_directions
from trade_hf.compiled.weights import TracrWeights
from trade_hf.rasp.evaluate import PADDING
from trade_hf.rasp.functions import Value

# Logits that are no further apart than this are alike: no output direction is on, as where the s-op is None in RASP.
# Rounding leaves up to 2e-4 between them in another basis.
ALIKE = 1e-3
# A number in a model up to which no sum or product of the forward pass leaves float32, nor reaches a mask's -1e30.
LARGEST = 1e29
# Of the magnitudes that a sum adds up: how far off it is at most in a run with other rounding. What orders of a sum in
# single precision differ by, measured in rotated models, is half of that.
OTHER_ROUNDING = 2.0**-26
WIDE = 512  # residual directions; few programs need more
MOST_DRAWN = 2**21  # random numbers at once
MAX_CELLS = 2**19  # numbers in one intermediate array: 2 MiB in float32, which a processor keeps near at hand


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
    def contrast(self) -> np.ndarray:
        """[batch, position]: how far the largest logit is above the smallest; for a single output, its size. In Tracr's
        own scale it is 1 where an output direction is on and 0 where none is. NaN or infinite where a logit is; 1 for
        a number."""
        if self.values is None:
            return np.ones(self.real.shape)
        if len(self.values) == 1:
            return np.abs(self.logits[..., 0])
        with np.errstate(invalid="ignore"):  # infinity less infinity
            return self.logits.max(-1) - self.logits.min(-1)

    @property
    def undefined(self) -> np.ndarray:
        """[batch, position]: where no direction is on, which is how None looks from outside."""
        return self.contrast <= ALIKE

    def decode(self, row: int) -> list[Value]:
        """One input's outputs, as tracr's `apply(...).decoded[1:]`."""
        cells = self.codes[row][self.real[row]].tolist()
        return cells if self.values is None else [self.values[code] for code in cells]

    def defined(self, row: int) -> list[Value | None]:
        """As `decode`, None where no direction is on."""
        off = self.undefined[row][self.real[row]]
        return [None if none else value for value, none in zip(self.decode(row), off, strict=True)]


@np.errstate(all="ignore")
def run(
    weights: TracrWeights,
    inputs: np.ndarray,
    batch_size: int = 4096,
    dtype: str = "float32",
    seed: int | None = None,
) -> Output:
    """Run token codes [batch, position] through the model.

    `inputs` are indices into `weights.input_vocab`, PADDING after the end of an input. `batch_size` of them run at
    once, fewer where the model is large. `dtype` is the precision of all sums: "float32", which is Tracr's, or
    "float64". With a `seed`, each sum is off by a random part of OTHER_ROUNDING, as on a machine that takes it in
    another order.
    """
    weights = without_idle_directions(weights)
    positions = inputs.shape[1] + 1
    widest = max(weights.num_heads * positions, weights.mlp_size, weights.num_heads * weights.key_size, weights.d_model)
    batch_size = max(1, min(batch_size, MAX_CELLS // (positions * widest)))
    model, real = _Model(weights, dtype, _Sums() if seed is None else _RoundedOtherwise(seed)), inputs != PADDING
    logits = np.empty((*inputs.shape, weights.unembedding.shape[1]), dtype)
    for rows in [np.arange(len(inputs))] if model.is_bounded else _by_length(real):
        for start in range(0, len(rows), batch_size):
            some = rows[start : start + batch_size]
            logits[some] = model(inputs[some])
    return Output(logits, real, weights.output_values)


def without_idle_directions(weights: TracrWeights) -> TracrWeights:
    """The model without residual directions that nothing writes or nothing reads, where they are most of a wide one's
    and no number is infinite."""
    if weights.d_model <= WIDE:
        return weights
    vectors = residual_vectors(weights)
    writers = np.concatenate([part for name, part in vectors.items() if name.endswith((*WRITERS, "embeddings"))])
    used = np.flatnonzero(writers.any(0) & all_readers(vectors).any(0))
    if not 0 < len(used) <= weights.d_model / 2 or not is_bounded(weights):
        return weights
    return with_directions(weights, used)


def _by_length(real: np.ndarray) -> list[np.ndarray]:
    """Inputs of one length each: what a model makes of padding may be infinite."""
    lengths = real.sum(1)
    return [np.flatnonzero(lengths == length) for length in np.unique(lengths)]


@np.errstate(all="ignore")  # a model may hold any numbers
def is_bounded(weights: TracrWeights) -> bool:
    """Whether no number in the model, on any input, can be above LARGEST: by the triangle inequality, part by part."""

    def given(reads: np.ndarray, layer: int, part: str) -> np.ndarray:
        matrix, bias = (np.abs(weights.layer(layer, f"{part}/{kind}")).astype(np.float64) for kind in "wb")
        return reads @ matrix + bias

    stream = sum(np.abs(weights.tensors[f"{name}/embeddings"]).max(0) for name in ("token_embed", "pos_embed"))
    largest = 0.0
    for layer in range(weights.num_layers):
        query, key, value = (given(stream, layer, f"attn/{name}") for name in ("query", "key", "value"))
        stream = stream + given(value, layer, "attn/linear")
        hidden = given(stream, layer, "mlp/linear_1")
        stream = stream + given(hidden, layer, "mlp/linear_2")
        largest = max(largest, query @ key, *(part.max() for part in (query, key, value, hidden, stream)))
    return max(largest, (stream @ np.abs(weights.unembedding)).max()) <= LARGEST


@np.errstate(all="ignore")
def residual_stream(weights: TracrWeights, inputs: np.ndarray) -> np.ndarray:
    """What the residual stream holds after the last layer: [batch, position, d_model], BOS position left out."""
    return _Model(weights).residual_stream(inputs)


@np.errstate(all="ignore")
def attention(weights: TracrWeights, tokens: Sequence[Value]) -> np.ndarray:
    """What each position attends to on one input: [layer, head, query, key], each row a distribution; BOS comes first.

    Raises ValueError for an input that the model does not take.
    """
    if not 1 <= len(tokens) <= weights.max_seq_len or not set(tokens) <= set(weights.input_vocab):
        raise ValueError(f"expected 1 to {weights.max_seq_len} tokens of the model's vocabulary, got {list(tokens)}")
    return _Model(weights).patterns(np.array([[weights.vocab.index(token) for token in tokens]]))


class _Sums:
    """The sums of a forward pass, as this machine takes them."""

    def product(self, bias: np.ndarray, x: np.ndarray, w: np.ndarray) -> np.ndarray:
        """bias + x w"""
        total = x @ w
        total += bias
        return total

    def add_product(self, total: np.ndarray, x: np.ndarray, w: np.ndarray) -> None:
        """total += x w"""
        total += x @ w

    def matmul(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """x y of two batches."""
        return x @ y


class _RoundedOtherwise(_Sums):
    """The same, each off by at most OTHER_ROUNDING of the magnitudes that it adds up, at random."""

    def __init__(self, seed: int) -> None:
        self.generator = np.random.Generator(np.random.PCG64(seed))

    def product(self, bias: np.ndarray, x: np.ndarray, w: np.ndarray) -> np.ndarray:
        return self._off(super().product(bias, x, w), super().product(np.abs(bias), np.abs(x), np.abs(w)))

    def add_product(self, total: np.ndarray, x: np.ndarray, w: np.ndarray) -> None:
        magnitude = np.abs(total)
        super().add_product(magnitude, np.abs(x), np.abs(w))
        super().add_product(total, x, w)
        self._off(total, magnitude)

    def matmul(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return self._off(x @ y, np.abs(x) @ np.abs(y))

    def _off(self, total: np.ndarray, magnitude: np.ndarray) -> np.ndarray:
        """`total` itself; of a large one, blocks of rows are off by the same parts, since drawing takes longest."""
        block = max(1, MOST_DRAWN // max(1, total[:1].size))
        drawn = self.generator.random((min(block, len(total)), *total.shape[1:]), total.dtype.type)
        drawn -= 0.5
        drawn *= 2 * OTHER_ROUNDING
        for start in range(0, len(total), block):
            some = slice(start, start + block)
            total[some] += magnitude[some] * drawn[: len(total[some])]
        return total


class _Model:
    """A model's parameters, without what is all zeros (Tracr pads every layer to the size of the largest) where that
    makes no difference."""

    def __init__(self, weights: TracrWeights, dtype: str = "float32", sums: _Sums | None = None) -> None:
        self.sums = sums or _Sums()
        self.weights, self.is_bounded = weights, is_bounded(weights)
        tensors = {name: np.asarray(tensor, dtype) for name, tensor in weights.tensors.items()}
        self.tokens, self.positions = tensors["token_embed/embeddings"], tensors["pos_embed/embeddings"]
        self.unembedding = np.asarray(weights.unembedding, dtype)
        parts = [_part(tensors, number) for number in range(weights.num_layers)]
        self.layers = [_Layer(part, weights, self.is_bounded, self.sums) for part in parts]

    def __call__(self, inputs: np.ndarray) -> np.ndarray:
        """[batch, position, output]"""
        return self.sums.matmul(self.residual_stream(inputs), self.unembedding)

    def residual_stream(self, inputs: np.ndarray) -> np.ndarray:
        """[batch, position, d_model], BOS position left out."""
        rows = np.array([self.weights.vocab.index(token) for token in self.weights.input_vocab])
        length = int((inputs != PADDING).sum(1).max())
        real = inputs[:, :length] != PADDING
        x, shape = self.embed(rows[np.where(real, inputs[:, :length], 0)])
        hidden = np.pad(~real, [(0, 0), (1, 0)])[:, None] | self.later(length + 1)
        for layer in self.layers:
            layer.add_to(x, shape, hidden)
        stream = np.zeros((*inputs.shape, x.shape[1]), x.dtype)
        stream[:, :length] = x.reshape(*shape, -1)[:, 1:]
        return stream

    def patterns(self, rows: np.ndarray) -> np.ndarray:
        """[layer, head, query, key] of one input, given as rows of the embedding [1, position]."""
        x, shape = self.embed(rows)
        hidden, found = self.later(shape[1])[None], []
        for layer in self.layers:
            found.append(np.concatenate([head.pattern(x, shape, hidden) for head in layer.heads]))
            layer.add_to(x, shape, hidden)
        return np.stack(found)

    def later(self, positions: int) -> np.ndarray:
        """[query, key], or what broadcasts to it: the keys after a query, if the model is causal."""
        return np.triu(np.full((positions, positions), self.weights.causal), 1)

    def embed(self, rows: np.ndarray) -> tuple[np.ndarray, tuple[int, int]]:
        """The residual stream [batch · position, d_model] before the first layer, BOS in front; its shape."""
        rows = np.pad(rows, [(0, 0), (1, 0)], constant_values=self.weights.vocab.index(self.weights.bos))
        x = self.tokens[rows] + self.positions[: rows.shape[1]]
        return x.reshape(-1, x.shape[2]), rows.shape


def _part(tensors: dict[str, np.ndarray], number: int) -> dict[str, np.ndarray]:
    prefix = f"transformer/layer_{number}/"
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


class _Layer:
    """A layer's parameters; `prunes` leaves out those that no product with a finite number makes anything of."""

    def __init__(self, part: dict[str, np.ndarray], weights: TracrWeights, prunes: bool, sums: _Sums) -> None:
        heads = [_Head(part, weights.key_size, number, prunes, sums) for number in range(weights.num_heads)]
        self.heads, self.moving = heads, [head for head in heads if head.moves]
        self.moved = np.concatenate([head.moved for head in heads])
        self.bias, self.mlp, self.sums = part["attn/linear/b"], _Mlp(part, prunes, sums), sums

    def add_to(self, x: np.ndarray, shape: tuple[int, int], hidden: np.ndarray) -> None:
        """Add to `x` [batch · position, d_model] what the layer gives of it."""
        if self.moving:
            moved = np.concatenate([head.attend(x, shape, hidden) for head in self.moving], 1)
            self.sums.add_product(x, moved, self.moved)
        if self.bias.any():
            x += self.bias
        self.mlp.add_to(x)


class _Head:
    def __init__(self, part: dict[str, np.ndarray], key_size: int, number: int, prunes: bool, sums: _Sums) -> None:
        own = slice(number * key_size, (number + 1) * key_size)
        query, key, value = (
            (part[f"attn/{name}/w"][:, own], part[f"attn/{name}/b"][own]) for name in ("query", "key", "value")
        )
        moved = part["attn/linear/w"][own]
        compares, written = (_not_zero(*query) & _not_zero(*key), moved.any(1)) if prunes else (slice(None),) * 2
        self.query, self.key = ((w[:, compares], b[compares]) for w, b in (query, key))
        self.value, self.moved = (value[0][:, written], value[1][written]), moved[written]
        self.moves, self.sums = len(self.moved) > 0, sums
        self.scale = np.asarray(key_size**-0.5, moved.dtype)

    def attend(self, x: np.ndarray, shape: tuple[int, int], hidden: np.ndarray) -> np.ndarray:
        """[batch · position, value]: what a head takes of `x` [batch · position, d_model], nothing of keys that are
        `hidden`: padding, or later ones of a causal model."""
        value = self.sums.product(self.value[1], x, self.value[0]).reshape(*shape, -1)
        return self.sums.matmul(self.pattern(x, shape, hidden), value).reshape(len(x), -1)

    def pattern(self, x: np.ndarray, shape: tuple[int, int], hidden: np.ndarray) -> np.ndarray:
        """[batch, query, key]: how much each query attends to each key."""
        query, key = (self.sums.product(b, x, w).reshape(*shape, -1) for w, b in (self.query, self.key))
        logits = self.sums.matmul(query, key.swapaxes(1, 2))
        logits *= self.scale
        np.copyto(logits, -1e30, where=hidden)
        logits -= logits.max(-1, keepdims=True)
        np.exp(logits, out=logits)
        logits /= logits.sum(-1, keepdims=True)
        return logits


class _Mlp:
    def __init__(self, part: dict[str, np.ndarray], prunes: bool, sums: _Sums) -> None:
        self.sums = sums
        used = part["mlp/linear_2/w"].any(1) if prunes else slice(None)
        self.first, self.bias = part["mlp/linear_1/w"][:, used], part["mlp/linear_1/b"][used]
        self.second, self.out = part["mlp/linear_2/w"][used], part["mlp/linear_2/b"]

    def add_to(self, x: np.ndarray) -> None:
        """Add to `x` [batch · position, d_model] what the block gives of it."""
        if len(self.bias):
            hidden = self.sums.product(self.bias, x, self.first)
            self.sums.add_product(x, np.maximum(hidden, 0, out=hidden), self.second)
        if self.out.any():
            x += self.out


def _not_zero(weights: np.ndarray, bias: np.ndarray) -> np.ndarray:
    return weights.any(0) | (bias != 0)
