"""Which parts of one model are which of another that computes the same in some other basis and order.

What one unit reads of what another writes is the same in any orthogonal basis of the residual stream. Units get
colours: first those of their kind, layer, token, position or output value; then, again and again, what they read and
write from and to units of each colour (refinement as in Weisfeiler–Leman). Where colours tie, one unit is fixed and
refinement goes on. The result is checked: all products must agree, so nothing rests on colours. Biases are not read:
models that differ in them alone correspond.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from trade_hf.compiled.weights import COLDNESS, TracrWeights
from trade_hf.rasp.functions import Value

NEAR = 0.02  # products that differ by less, on a logarithmic scale, are one
EMPTY = 1e-5
MAX_BRANCHES = 200
COLOUR_SIZE = 12  # numbers that stand for a colour

TOKEN, SHARED, POSITION, COMPARED, MOVED, HIDDEN, OUTPUT = range(7)


@dataclass(frozen=True)
class Correspondence:
    """From one model to the other.

    Attributes:
      heads: for each layer, which of the other's heads each head is; -1 for one that does nothing.
      units: the same of hidden units.
      basis: [d_model of the one, d_model of the other]: each residual direction that is written, in the other's basis.
    """

    heads: list[list[int]]
    units: list[list[int]]
    basis: np.ndarray


def correspond(one: TracrWeights, other: TracrWeights) -> Correspondence:
    """Raises ValueError where the two are not the same model in another basis and order."""
    if one.num_layers != other.num_layers or (one.output_values is None) != (other.output_values is None):
        raise ValueError(f"expected models that correspond, got {one} and {other}")
    parts = _Parts(one), _Parts(other)
    branches = itertools.count()
    found = next(_matchings(*parts, *_first_colours(*parts), branches), None)
    if found is None:
        raise ValueError("expected two models with the same units, got some that read or write differently")
    return _result(*parts, found)


class _Parts:
    """All that reads or writes the residual stream, with the products between each two."""

    def __init__(self, weights: TracrWeights) -> None:
        self.weights = weights
        self.names: list[tuple[int, int, Value | None]] = []  # kind, layer, what is known of it
        self.slots: list[int] = []  # head, or hidden unit, within the layer
        self.vectors: list[np.ndarray] = []  # [3, d_model]: writer, first and second reader
        self._embeddings()
        for layer in range(weights.num_layers):
            self._layer(layer)
        values = weights.output_values or (None,)
        for value, reader in zip(values, weights.unembedding.T, strict=True):
            self._add((OUTPUT, weights.num_layers, repr(value)), 0, first=reader)

    def _add(self, name, slot, writer=None, first=None, second=None) -> None:
        zero = np.zeros(self.weights.d_model, np.float32)
        vectors = np.stack([zero if vector is None else vector for vector in (writer, first, second)])
        if np.abs(vectors).max() > EMPTY:
            self.names.append(name)
            self.slots.append(slot)
            self.vectors.append(vectors)

    def _embeddings(self) -> None:
        weights = self.weights
        rows = weights.tensors["token_embed/embeddings"]
        shared = rows[weights.vocab.index(weights.pad)]  # nothing but the constant direction
        self._add((SHARED, 0, None), 0, writer=shared)
        for token, row in zip(weights.vocab, rows, strict=True):
            self._add((TOKEN, 0, repr(token)), 0, writer=row - shared)
        for position, row in enumerate(weights.tensors["pos_embed/embeddings"]):
            self._add((POSITION, 0, position), 0, writer=row)

    def _layer(self, layer: int) -> None:
        weights = self.weights
        query, key, value, moved = (
            weights.layer(layer, f"attn/{part}/w") for part in ("query", "key", "value", "linear")
        )
        for column in range(query.shape[1]):
            head = column // weights.key_size
            self._add((COMPARED, layer, None), head, None, query[:, column] / COLDNESS, key[:, column])
            self._add((MOVED, layer, None), head, moved[column], value[:, column])
        first, second = weights.layer(layer, "mlp/linear_1/w"), weights.layer(layer, "mlp/linear_2/w")
        for unit in range(first.shape[1]):
            self._add((HIDDEN, layer, None), unit, second[unit], first[:, unit])

    @cached_property
    def writers(self) -> np.ndarray:
        return np.stack(self.vectors)[:, 0]

    @cached_property
    def products(self) -> np.ndarray:
        """[relation, part, part]: what the first reader takes of a writer, what the second does, writers with writers,
        readers with readers, whether of one head."""
        writers, first, second = np.stack(self.vectors, 1)
        kinds, layers = (np.array([name[i] for name in self.names]) for i in (0, 1))
        slots, in_head = np.array(self.slots), np.isin(kinds, (COMPARED, MOVED))
        heads = np.where(in_head, layers * self.weights.num_heads + slots, -1)
        one_head = (heads[:, None] == heads) & in_head
        products = np.stack([first @ writers.T, second @ writers.T, writers @ writers.T, first @ first.T])
        return np.concatenate([np.sign(products) * np.log1p(np.abs(products)), one_head[None]])


def _first_colours(one: _Parts, other: _Parts) -> tuple[np.ndarray, np.ndarray]:
    numbers: dict[tuple, int] = {}
    colours = [np.array([numbers.setdefault(name, len(numbers)) for name in parts.names]) for parts in (one, other)]
    return colours[0], colours[1]


def _matchings(
    one: _Parts, other: _Parts, colours: np.ndarray, others: np.ndarray, branches: Iterator[int]
) -> Iterator[np.ndarray]:
    """For each part of the one, the other's that it is."""
    refined = _refined(one, other, colours, others)
    if refined is None or next(branches) > MAX_BRANCHES:
        return
    colours, others = refined
    numbers, counts = np.unique(colours, return_counts=True)
    if counts.max() == 1:
        matching = others.argsort()[colours.argsort().argsort()]
        if np.abs(one.products - other.products[:, matching[:, None], matching]).max() < NEAR:
            yield matching
        return
    tied = numbers[np.where(counts > 1, counts, len(colours) + 1).argmin()]
    fixed = np.flatnonzero(colours == tied)[0]
    for candidate in np.flatnonzero(others == tied):
        first, second = colours.copy(), others.copy()
        first[fixed] = second[candidate] = numbers.max() + 1
        yield from _matchings(one, other, first, second, branches)


def _refined(
    one: _Parts, other: _Parts, colours: np.ndarray, others: np.ndarray
) -> tuple[np.ndarray, np.ndarray] | None:
    """Colours that cannot be told apart further; None where the two models' do not come out in equal numbers."""
    rng = np.random.default_rng(0)
    while True:
        if not np.array_equal(np.sort(colours), np.sort(others)):
            return None
        count = int(colours.max()) + 1
        codes = rng.standard_normal((count, COLOUR_SIZE))
        seen = [_neighbourhoods(parts, codes[c]) for parts, c in ((one, colours), (other, others))]
        mixed = np.concatenate(seen) @ rng.standard_normal((seen[0].shape[1], 2))
        joint = np.concatenate([colours, others])
        for projection in mixed.T:
            joint = _split(joint, projection)
        after = joint[: len(colours)], joint[len(colours) :]
        if len(np.unique(joint)) == len(np.unique(colours)):
            return after if np.array_equal(np.sort(after[0]), np.sort(after[1])) else None
        colours, others = after


def _neighbourhoods(parts: _Parts, codes: np.ndarray) -> np.ndarray:
    """What each part reads from and writes to parts of each colour, as sums of `codes` [part, COLOUR_SIZE]."""
    products = parts.products
    sums = [matrix @ codes for relation in products for matrix in (relation, relation.T, relation**2)]
    return np.concatenate(sums, 1) / np.sqrt(len(codes))


def _split(colours: np.ndarray, projection: np.ndarray) -> np.ndarray:
    """Colours, parted where the sorted projection of one colour has a gap."""
    order = np.lexsort((projection, colours))
    new = np.diff(colours[order]) != 0
    gap = np.diff(projection[order]) > NEAR
    numbers = np.concatenate([[0], np.cumsum(new | gap)])
    result = np.empty_like(colours)
    result[order] = numbers
    return result


def _result(one: _Parts, other: _Parts, matching: np.ndarray) -> Correspondence:
    weights = one.weights
    heads = [[-1] * weights.num_heads for _ in range(weights.num_layers)]
    units = [[-1] * weights.mlp_size for _ in range(weights.num_layers)]
    for part, (kind, layer, _) in enumerate(one.names):
        if kind in (COMPARED, MOVED):
            heads[layer][one.slots[part]] = other.slots[matching[part]]
        elif kind == HIDDEN:
            units[layer][one.slots[part]] = other.slots[matching[part]]
    basis = np.linalg.pinv(one.writers, rcond=1e-4) @ other.writers[matching]
    return Correspondence(heads, units, basis.astype(np.float32))
