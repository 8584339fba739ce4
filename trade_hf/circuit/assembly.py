"""A model in Tracr's coordinates from what its parts read and write of each direction (`realisation.py`)."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from trade_hf.compiled.transforms import WRITERS, readable_dimensions
from trade_hf.compiled.weights import TracrWeights

NEAR = 0.1  # of a product, where it should be a whole number
SMALLEST = 1e-3  # smaller numbers are off by as much as this one
TIDY = 3e-5  # of a number, what rounding may do to it where scales were changed
LARGEST_DENOMINATOR = 12


class NotTracrsError(Exception):
    """The model's parts are not as Tracr makes them."""


@dataclass
class Unit:
    """A hidden unit, or the two of a threshold.

    Attributes:
      row, bias: what it reads of each direction, and always.
      writes: how much of which direction it adds.
      number: the direction of a number that it is all about, which tells its scale; -1 where there is none.
      rise: of a threshold, how far it goes from none to all; 0 for others.
    """

    row: np.ndarray
    bias: float
    writes: dict[int, float] = field(default_factory=dict)
    number: int = -1
    rise: float = 0.0

    def scaled(self, scale: float, vector: np.ndarray) -> np.ndarray:
        """Reads so many times as much; what it then writes in place of `vector`."""
        self.row, self.bias = self.row * scale, self.bias * scale
        return vector / scale


@dataclass
class Head:
    """A head: the directions that are keys, what queries make of each [key, direction], the same whatever the query
    [key], and the directions that are moved, and those that they become."""

    keys: list[int]
    logits: np.ndarray
    bias: np.ndarray
    moved: list[int]
    out: list[int]


@dataclass
class Layer:
    heads: list[Head] = field(default_factory=list)
    units: list[Unit] = field(default_factory=list)

    @property
    def reads_constant(self) -> bool:
        """Whether anything reads what is always there."""
        return bool(self.heads) or any(unit.rise or abs(unit.bias) > NEAR for unit in self.units)


class Assembly:
    """Writes a model's parts into tensors of the given model's sizes, but for the residual stream.

    Its directions are the tokens, BOS, the positions, what parts write, what is always there if anything reads it, and
    the pad token's own; this one is left out where the given model has lost all that nothing reads.

    Attributes:
      scales: [direction] what makes each what Tracr's is.
      slope: of steps.
    """

    def __init__(self, given: TracrWeights, layers: list[Layer], scales: np.ndarray, slope: float) -> None:
        self.given, self.layers, self.scales, self.slope = given, layers, scales, slope
        has_one = any(layer.reads_constant for layer in layers)
        self.has_pad = readable_dimensions(given) < given.d_model
        self.one = slice(len(scales), len(scales) + has_one)
        self.width = self.one.stop + self.has_pad
        self.tensors = {name: np.zeros(self._shape(name, tensor.shape)) for name, tensor in given.tensors.items()}

    def _shape(self, name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
        if name.endswith(("embeddings", *WRITERS)):
            return (*shape[:-1], self.width)
        return (self.width, *shape[1:]) if name.endswith("/w") else shape

    def weights(self, outputs: np.ndarray) -> TracrWeights:
        """With `outputs` [direction, output]. Raises NotTracrsError where parts do not fit in."""
        self._embed()
        for number, layer in enumerate(self.layers):
            for place, head in enumerate(layer.heads):
                self._add_head(f"transformer/layer_{number}/attn", place * self.given.key_size, head)
            column = 0
            for unit in layer.units:
                column += self._add_unit(f"transformer/layer_{number}/mlp", column, unit)
        unembedding = np.zeros((self.width, outputs.shape[1]))
        unembedding[: len(outputs)] = outputs
        if self.given.output_values is None:
            unembedding[: len(outputs)] *= self.scales[:, None]
        return replace(
            self.given,
            tensors={name: tensor.astype(np.float32) for name, tensor in self.tensors.items()},
            unembedding=unembedding.astype(np.float32),
            residual_labels=(),
        )

    def _embed(self) -> None:
        given, tokens = self.given, self.tensors["token_embed/embeddings"]
        tokens[:, self.one] = 1
        for place, token in enumerate((*given.input_vocab, given.bos)):
            tokens[given.vocab.index(token), place] = 1
        if self.has_pad:
            tokens[given.vocab.index(given.pad), -1] = 1
        positions = self.tensors["pos_embed/embeddings"][1:]
        first = len(given.input_vocab) + 1
        positions[:, first : first + len(positions)] = np.eye(len(positions))

    def _add_head(self, prefix: str, first: int, head: Head) -> None:
        if max(len(head.keys), len(head.moved)) > self.given.key_size:
            raise NotTracrsError("a head has more keys than dimensions")
        query, key, value, linear = (self.tensors[f"{prefix}/{part}/w"] for part in ("query", "key", "value", "linear"))
        keys, moved = first + np.arange(len(head.keys)), first + np.arange(len(head.moved))
        known = head.logits.shape[1]
        key[head.keys, keys] = 1
        query[:known, keys] = (head.logits * self.scales[:known]).T
        query[self.one, keys] = head.bias
        value[head.moved, moved] = 1
        linear[moved, head.out] = 1

    def _add_unit(self, prefix: str, column: int, unit: Unit) -> int:
        """The number of hidden units that it is."""
        read, write = (self.tensors[f"{prefix}/linear_{i}/w"] for i in (1, 2))
        if unit.rise:
            at = (unit.rise - unit.bias) / abs(self.scales[unit.number])
            for sign, bias in ((1, 1 - self.slope * at), (-1, -self.slope * at)):
                read[unit.number, column], read[self.one, column] = self.slope, bias
                for place, much in unit.writes.items():
                    write[column, place] = sign * _tidied(much / self.scales[place])
                column += 1
            return 2
        scale = 1.0
        if unit.number >= 0:  # of a linear map it is known what is read, of a map of values what is written
            scale = 1 / self.scales[unit.number]
            scale = scale if unit.number in unit.writes else abs(scale)
        row = scale * unit.row * self.scales[: len(unit.row)]
        read[: len(row), column] = _tidied(row) if unit.number >= 0 else row
        read[self.one, column] = scale * unit.bias
        for place, much in unit.writes.items():
            write[column, place] = _tidied(much / scale / self.scales[place])
        return 1


def _tidied(numbers: np.ndarray | float) -> np.ndarray | float:
    """Simple fractions in place of what rounding made of them."""
    tidy = np.array(numbers, float)
    left = np.ones(tidy.shape, bool)
    for denominator in range(1, LARGEST_DENOMINATOR + 1):
        simple = np.round(tidy * denominator) / denominator
        near = left & (np.abs(simple - tidy) < TIDY * np.maximum(np.abs(tidy), SMALLEST))
        tidy[near], left = simple[near], left & ~near
    return tidy
