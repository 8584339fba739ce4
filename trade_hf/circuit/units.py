"""A circuit as a graph for the network: one unit for each thing that writes or reads, and the products between them.

Units are tokens, BOS, positions, the keys that a head tells apart, the writers that a head moves, hidden units and
outputs. All that is kept of them are products of a `Circuit`, so units are the same in any basis, for any split and
scale of weights, and wherever constants sit. What has no effect on any output is left out, and the hidden units of a
sequence map that write the same are one unit.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from trade_hf.circuit.circuit import BOS, MOVED, POSITION, TOKEN, UNIT, Circuit, Head
from trade_hf.compiled.weights import COLDNESS, TracrWeights, WeightsError

TOKEN_UNIT, BOS_UNIT, POSITION_UNIT, QUERY_KEY, VALUE_OUTPUT, HIDDEN, OUTPUT = range(1, 8)
KIND_OF_WRITER = {TOKEN: TOKEN_UNIT, BOS: BOS_UNIT, POSITION: POSITION_UNIT, MOVED: VALUE_OUTPUT, UNIT: HIDDEN}
MAX_UNITS = 2048  # memory grows with the square: 2,048 units take about a gigabyte
NOTHING, NOISE = 1e-3, 0.02  # products up to this are none, in a clean and in a noisy model
ALIKE = 0.1  # products of two hidden units that write the same differ by less
FAINT = 0.3  # lengths of vectors of products: shorter ones are like no other


@dataclass(frozen=True)
class CircuitUnits:
    """What the circuit tells of each unit.

    Attributes:
      kind, layer: [unit]; outputs have layer -1.
      head: [unit] number of the head in its layer; -1 where there is none.
      bias: [unit] of its reader.
      rise: [unit] of a threshold's unit, how far its reader goes from none to all; 0 for others.
      merged: [unit] how many hidden units it is.
      reads: [unit, unit] products of the first one's reader with the second one's writer. A key's reader is what
        queries give it; a moved writer reads what is moved.
      keys: [unit, unit] 1 where the first is the key of a head, and the second the writer that is looked for.
      in_head: [unit, unit] 1 for two units of one head, and for a key and the writers that the head reads of queries,
        whatever it makes of them.
      writers_alike, readers_alike: [unit, unit] cosines of what all readers take of two, and of what two read of all.
      source: [unit, 3] kind (as units'), layer and number of the token, position, hidden unit or output that it is,
        moves or compares.
    """

    kind: np.ndarray
    layer: np.ndarray
    head: np.ndarray
    bias: np.ndarray
    rise: np.ndarray
    merged: np.ndarray
    reads: np.ndarray
    keys: np.ndarray
    in_head: np.ndarray
    writers_alike: np.ndarray
    readers_alike: np.ndarray
    source: np.ndarray

    @property
    def steepness(self) -> np.ndarray:
        """[unit] for thresholds, the logarithm of how steeply their readers rise, over Tracr's slope; 0 for others."""
        step = self.rise > 0
        return np.log(np.where(step, 1 / np.where(step, self.rise, 1), COLDNESS) / COLDNESS)


def signed_log(x: np.ndarray) -> np.ndarray:
    """sign(x) · log(1 + |x|): keeps 0 and small numbers apart and large ones in range."""
    return np.sign(x) * np.log1p(np.abs(x))


def to_circuit_units(weights: TracrWeights) -> CircuitUnits:
    """The units of a model's circuit. Raises WeightsError as `Circuit.of`, and for more than MAX_UNITS."""
    circuit = Circuit.of(weights)
    return _Assembly(circuit, weights.output_values is not None and len(circuit.outputs) > 1).units()


class _Assembly:
    """Builds the units of a circuit.

    Attributes:
      comparisons: for each head its products and biases [key, writer + 1], the largest made 1.
      outputs: [output, writer] products, the largest made 1 for a categorical output.
    """

    def __init__(self, circuit: Circuit, is_categorical: bool) -> None:
        self.circuit = circuit
        self.size = len(circuit.writers.kind)
        self.nothing = NOISE if circuit.is_noisy else NOTHING
        self.comparisons = [_compared(head) for head in circuit.heads]
        scale = max(np.abs(circuit.outputs).max(initial=0), 1e-6) if is_categorical else 1.0
        self.outputs, self.output_bias = circuit.outputs / scale, circuit.output_bias / scale

    @cached_property
    def works(self) -> np.ndarray:
        """[writer] whether it has an effect on an output. Tokens, positions and BOS count as if they had."""
        works = np.abs(self.outputs).max(0, initial=0) > self.nothing
        works[: self.circuit.tokens + self.circuit.positions + 1] = True
        for part in reversed(self.circuit.parts):
            if isinstance(part, Head):
                moved = part.values[works[part.out : part.out + len(part.values)]]
                works[moved] = True
                if len(moved):
                    works[part.keys] = works[part.queries] = True
            else:
                products = part.products[works[part.out : part.out + len(part.bias)]]
                works[: products.shape[1]] |= np.abs(products).max(0, initial=0) > self.nothing
        return works

    def head_works(self, head: Head) -> bool:
        return bool(self.works[head.out : head.out + len(head.values)].any())

    # ------------------------------------------------------------ units of a sequence map

    @cached_property
    def classes(self) -> np.ndarray:
        """[writer] the first of those that write the same; itself for most."""
        classes = np.arange(self.size)
        for block in self.circuit.blocks:
            own = np.arange(block.out, block.out + len(block.bias))
            is_pair = self.works[own] & np.isinf(block.ceiling) & (np.abs(block.bias + 1) < ALIKE)
            if is_pair.sum() < 2:
                continue
            pairs = own[is_pair]
            read = self.read_of(pairs)
            while len(pairs):
                same = np.abs(read - read[0]).max(1) < ALIKE
                classes[pairs[same]] = pairs[0]
                pairs, read = pairs[~same], read[~same]
        for head in self.circuit.heads:
            own = head.out + np.arange(len(head.values))
            place = self.places(head.values)[classes[head.values]]
            classes[own] = np.where(place >= 0, head.out + place, own)
        return classes

    def places(self, writers: np.ndarray) -> np.ndarray:
        """[writer] where each stands among `writers`, -1 for others."""
        places = np.full(self.size, -1)
        places[writers] = np.arange(len(writers))
        return places

    def read_of(self, writers: np.ndarray) -> np.ndarray:
        """[writer, product] all that is read of each, directly or where a head moves it; -1 stands for none."""
        is_there = writers >= 0
        rows = [self.readers_of_all[:, writers].T * is_there[:, None]]
        for head, compared in zip(self.circuit.heads, self.comparisons, strict=True):
            if head.out <= writers.max() or not self.head_works(head):
                continue
            for parts, reading in ((head.keys, None), (head.values, head.out)):
                places = np.where(is_there, self.places(parts)[writers], -1)
                if not (places >= 0).any():
                    continue
                if reading is None:
                    rows.append(compared[places] * (places >= 0)[:, None])
                else:
                    rows.append(self.read_of(np.where(places >= 0, reading + places, -1)))
        return np.concatenate(rows, 1)

    @cached_property
    def readers_of_all(self) -> np.ndarray:
        """[reader, writer] products of all hidden units and outputs, and of the keys of all heads with queries."""
        rows = [self.outputs]
        for block in self.circuit.blocks:
            rows.append(self.padded(block.products[self.works[block.out : block.out + len(block.bias)]]))
        for head, compared in zip(self.circuit.heads, self.comparisons, strict=True):
            if self.head_works(head):
                rows.append(self.padded(compared[:, :-1]))
        return np.concatenate(rows)

    def padded(self, products: np.ndarray) -> np.ndarray:
        """With nothing read of later writers."""
        return np.pad(products, ((0, 0), (0, self.size - products.shape[1])))

    # ------------------------------------------------------------ all units

    def units(self) -> CircuitUnits:
        """Writers that work come first, then the keys of heads, then outputs."""
        circuit = self.circuit
        classes = np.where(self.works, self.classes, -1)
        kept = np.flatnonzero(classes == np.arange(self.size))
        unit = np.where(classes >= 0, self.places(kept)[classes], -1)  # [writer]
        belongs = (unit[:, None] == np.arange(len(kept))) * 1.0
        merged = belongs.sum(0)
        mean = belongs / merged  # of what is read of the writers that are one unit
        heads = [
            _HeadUnits.of(head, compared, unit, mean)
            for head, compared in zip(circuit.heads, self.comparisons, strict=True)
            if self.head_works(head)
        ]
        keys, outputs = sum(len(head.keys) for head in heads), len(self.outputs)
        size = len(kept) + keys + outputs
        if size > MAX_UNITS:
            raise WeightsError(f"the model has {size:,} units; the limit is {MAX_UNITS:,}")
        reads, looked_for = np.zeros((size, size)), np.zeros((size, size))
        in_head = np.zeros((size, size))
        bias, rise, of_head = np.zeros(size), np.zeros(size), np.full(size, -1)
        for block in circuit.blocks:
            own = unit[block.out : block.out + len(block.bias)]
            works = own >= 0
            rows, before = own[works], block.products.shape[1]
            np.add.at(reads[:, : len(kept)], rows, block.products[works] @ mean[:before])
            np.add.at(bias, rows, block.bias[works])
            rise[rows] = np.where(np.isfinite(block.ceiling), block.ceiling, 0)[works]
        layer, source = self.circuit.writers.layer[kept], self.roots[kept]
        layers, sources, start = [layer], [source], len(kept)
        for head in heads:
            rows = np.arange(start, start := start + len(head.keys))
            reads[rows, : len(kept)], bias[rows] = head.products, head.bias
            looked_for[rows, head.keys] = 1
            reads[head.moved, head.values] = 1
            own = np.concatenate([rows, head.moved])
            in_head[np.ix_(own, own)] = in_head[np.ix_(rows, head.queries)] = 1
            of_head[own] = head.number
            layers.append(np.full(len(rows), head.layer))
            sources.append(source[head.keys])
        reads[start:, : len(kept)], bias[start:] = self.outputs @ mean, self.output_bias
        kinds = [KIND_OF_WRITER[kind] for kind in circuit.writers.kind[kept].tolist()]
        numbers = np.arange(outputs)
        alike = np.zeros((size, size))
        alike[: len(kept), : len(kept)] = self.writers_alike(reads, heads, len(kept))
        return CircuitUnits(
            kind=np.array([*kinds, *[QUERY_KEY] * keys, *[OUTPUT] * outputs]),
            layer=np.concatenate([*layers, np.full(outputs, -1)]),
            head=of_head,
            bias=bias,
            rise=rise,
            merged=np.concatenate([merged, np.ones(keys + outputs)]),
            reads=reads,
            keys=looked_for,
            in_head=in_head,
            writers_alike=alike,
            readers_alike=cosines(reads @ reads.T),
            source=np.concatenate([*sources, np.stack([np.full(outputs, OUTPUT), 0 * numbers, numbers], 1)]),
        )

    def writers_alike(self, reads: np.ndarray, heads: list[_HeadUnits], count: int) -> np.ndarray:
        """[writer, writer] cosines of what is read of two: by hidden units, keys and outputs, by heads that compare
        them, and of what heads make of them."""
        is_direct = np.ones(len(reads), bool)
        for head in heads:
            is_direct[head.moved] = False
        direct = reads[is_direct, :count]
        products = direct.T @ direct
        for head in reversed(heads):
            queries = np.concatenate([head.products, head.bias[:, None]], 1)
            products[np.ix_(head.keys, head.keys)] += queries @ queries.T
            products[np.ix_(head.values, head.values)] += products[np.ix_(head.moved, head.moved)]
        return cosines(products)

    @cached_property
    def roots(self) -> np.ndarray:
        """[writer, 3] kind, layer and number of what each is, or of what is moved in the end."""
        writers = self.circuit.writers
        kinds = np.array([KIND_OF_WRITER[kind] for kind in writers.kind.tolist()])
        roots = np.stack([kinds, writers.layer, writers.source], 1)
        for head in self.circuit.heads:
            roots[head.out : head.out + len(head.values)] = roots[head.values]
        return roots


@dataclass(frozen=True)
class _HeadUnits:
    """A head in terms of units: the keys and queries that it reads, its products with queries [key, writer] and biases
    for each key, the values, and what they become."""

    layer: int
    number: int
    keys: np.ndarray
    queries: np.ndarray
    products: np.ndarray
    bias: np.ndarray
    values: np.ndarray
    moved: np.ndarray

    @classmethod
    def of(cls, head: Head, compared: np.ndarray, unit: np.ndarray, mean: np.ndarray) -> _HeadUnits:
        own = unit[head.keys]
        keys = np.unique(own[own >= 0])
        share = (own == keys[:, None]) * 1.0
        rows = share / share.sum(1, keepdims=True) @ compared
        moved, values = unit[head.out : head.out + len(head.values)], unit[head.values]
        moved, first = np.unique(moved, return_index=True)
        works = moved >= 0
        return cls(
            layer=head.layer,
            number=head.number,
            keys=keys,
            queries=unit[head.queries],
            products=rows[:, :-1] @ mean[: rows.shape[1] - 1],
            bias=rows[:, -1],
            values=values[first[works]],
            moved=moved[works],
        )


def _compared(head: Head) -> np.ndarray:
    """[key, writer + 1] products and biases of a head's keys, the largest made 1."""
    compared = np.concatenate([head.products, head.bias[:, None]], 1)
    return compared / max(np.abs(compared).max(initial=0), 1e-6)


def cosines(products: np.ndarray) -> np.ndarray:
    """Cosines from the products [row, row] of all pairs; short ones are like no other, and none is like itself."""
    lengths = np.sqrt(np.diag(products))
    safe = np.maximum(lengths, FAINT)
    found = products / safe / safe[:, None]
    np.fill_diagonal(found, 0)
    return found
