"""Do two models compute the same because their parts read the same of each other, in whatever basis?

All that a model computes follows from its products: what each head dimension, hidden unit and output reads of each
embedding, head dimension, hidden unit and bias that writes before it. No coordinate of the residual stream matters, nor
how many there are. So two models are one function if their parts correspond, one to one, and all products are equal;
parts that never give anything and parts that nothing reads are left out. The correspondence is found, and every product
compared, as `isomorphism.py` does with weights.

Rounding is that of single precision, as a change of basis leaves it: products may be off by a few times 1e-7 of the
lengths of their vectors. What a model makes of its own rounding is not looked at: where outputs tie, or where long
chains of large numbers amplify it, a model in another basis may differ from Tracr's, as any other copy of it would.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field

import numpy as np

from trade_hf.compiled.isomorphism import Graph, are_equal, domain_of, plain
from trade_hf.compiled.transforms import read_directions
from trade_hf.compiled.weights import TracrWeights

ROUNDING = 3e-7  # of the lengths of the two vectors of a product; models of up to 500 dimensions are off by 6e-8
UNREAD = 1.0  # of a length that nothing reads, what may leave rounding: Tracr's directions are of length 1
TOLD = 1e-4  # of the smallest product, up to which one may be off
DUST = 1e-7  # products up to this are taken for 0
MOST_PRODUCTS = 20_000_000  # of a model; of a larger one nothing is said

_COMPARED, _MOVED, _HIDDEN, _OUTPUT = "compared", "moved", "hidden", "output"


def have_same_products(compiled: TracrWeights, weights: TracrWeights) -> bool:
    """Whether `weights` has the same products as `compiled`, up to rounding; vocabulary, length, mask and output values
    must be the same too. True proves that both compute the same but for their rounding; False says nothing."""
    if domain_of(compiled) != domain_of(weights):
        return False
    try:
        meant, given = _products(compiled), _products(weights)
    except _TooManyError:
        return False
    values = _values(meant)
    for parts in (meant, given):
        _snap(parts, values)
        _leave_out_what_is_idle(parts)
    return are_equal(_graph(compiled, meant), _graph(weights, given))


class _TooManyError(Exception):
    """There are more products than MOST_PRODUCTS."""


@dataclass
class _Parts:
    """Head dimensions of one layer that are compared or moved, its hidden units, or the outputs.

    Attributes:
      reads: products of each reader, [writer, part]; writers are the biases so far, as one, the embeddings, then what
        parts wrote. Those that are compared have two readers, queries and keys.
      bounds: how far rounding may take each product.
      start: which writer the first part is; None for parts that write nothing.
      head: [part]; -1 where there is none.
      works: [part] whether it has any effect.
    """

    kind: str
    layer: int
    reads: list[np.ndarray]
    bounds: list[np.ndarray]
    start: int | None
    head: np.ndarray
    works: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        self.works = np.ones(len(self.head), bool)


def _products(weights: TracrWeights) -> list[_Parts]:
    """Of all parts that read and write anything, in the order in which they are computed. Raises _TooManyError."""
    writers = [np.zeros((1, weights.d_model))]
    writers += [weights.tensors[f"{name}/embeddings"].astype(np.float64) for name in ("token_embed", "pos_embed")]
    heads = np.repeat(np.arange(weights.num_heads), weights.key_size)
    found: list[_Parts] = []
    count, seen = 0, read_directions(weights)

    def read(kind: str, layer: int, head: np.ndarray, *readers: tuple[np.ndarray, ...]) -> _Parts:
        nonlocal count
        count += sum(map(len, writers)) * len(head) * len(readers)
        if count > MOST_PRODUCTS:
            raise _TooManyError
        written, reads, bounds = np.concatenate(writers), [], []
        for w, b in readers:
            products = written @ w
            products[0] += b
            whole, read_of_it = (np.linalg.norm(rows, axis=1) for rows in (written, written @ seen))
            lengths = np.outer(np.minimum(whole, read_of_it + UNREAD), np.linalg.norm(w, axis=0))
            lengths[0] += np.abs(b)
            reads.append(products)
            bounds.append(ROUNDING * lengths)
        found.append(_Parts(kind, layer, reads, bounds, None, head))
        return found[-1]

    def write(parts: _Parts, rows: np.ndarray, bias: np.ndarray) -> None:
        parts.start = sum(map(len, writers))
        writers.append(rows)
        writers[0] = writers[0] + bias

    for layer in range(weights.num_layers):
        query, key, value, moved, first, second = (
            tuple(weights.layer(layer, f"{part}/{kind}").astype(np.float64) for kind in "wb")
            for part in ("attn/query", "attn/key", "attn/value", "attn/linear", "mlp/linear_1", "mlp/linear_2")
        )
        used = _is_used(*query) & _is_used(*key)
        scaled = tuple(part * weights.key_size**-0.5 for part in query)
        read(_COMPARED, layer, heads[used], _only(scaled, used), _only(key, used))
        used = _is_used(*value) & moved[0].any(1)
        write(read(_MOVED, layer, heads[used], _only(value, used)), moved[0][used], moved[1])
        used = _is_used(*first) & second[0].any(1)
        write(read(_HIDDEN, layer, np.full(used.sum(), -1), _only(first, used)), second[0][used], second[1])
    outputs = weights.unembedding.astype(np.float64)
    read(_OUTPUT, 0, np.full(outputs.shape[1], -1), (outputs, np.zeros(outputs.shape[1])))
    return found


def _is_used(weights: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """[part] whether a reader reads anything; Tracr fills up layers with zeros to the size of the largest."""
    return weights.any(0) | (bias != 0)


def _only(reader: tuple[np.ndarray, ...], used: np.ndarray) -> tuple[np.ndarray, ...]:
    return tuple(part[..., used] for part in reader)


def _values(parts: list[_Parts]) -> np.ndarray:
    """All that products are, ascending, each once."""
    values = np.unique(np.concatenate([reads.astype(np.float32).ravel() for part in parts for reads in part.reads]))
    return np.unique(np.append(values[np.abs(values) > DUST], 0.0)).astype(np.float64)


def _snap(parts: list[_Parts], values: np.ndarray) -> None:
    """Make each product that of `values` which it is up to rounding."""
    told = max(DUST, TOLD * np.abs(values[values != 0]).min(initial=np.inf))
    for part in parts:
        for number, (reads, bounds) in enumerate(zip(part.reads, part.bounds, strict=True)):
            nearest = values[np.searchsorted((values[1:] + values[:-1]) / 2, reads)]
            part.reads[number] = np.where(np.abs(nearest - reads) <= np.minimum(bounds + DUST, told), nearest, reads)


def _leave_out_what_is_idle(parts: list[_Parts]) -> None:
    """Mark what never gives anything and what nothing reads that has an effect, until nothing more is found."""
    count = len(parts[-1].reads[0])  # outputs read of all that is written
    while True:
        writes, is_read = np.ones(count, bool), np.zeros(count, bool)
        for part in parts:
            if part.start is not None:
                writes[part.start : part.start + len(part.head)] = part.works
        for part in parts:
            for reads in part.reads:
                is_read[: len(reads)] |= reads[:, part.works].any(1)
        before = [part.works for part in parts]
        for part, moved in zip(parts, [*parts[1:], parts[-1]], strict=True):
            given = [reads[writes[: len(reads)]] for reads in part.reads]
            if part.kind == _COMPARED:
                used = np.isin(part.head, moved.head[moved.works])
                part.works = part.works & given[0].any(0) & given[1].any(0) & used
            elif part.kind != _OUTPUT:
                assert part.start is not None
                gives = given[0].any(0) if part.kind == _MOVED else given[0][1:].any(0) | (given[0][0] > 0)
                part.works = part.works & gives & is_read[part.start : part.start + len(part.head)]
        if all(np.array_equal(old, part.works) for old, part in zip(before, parts, strict=True)):
            return


def _graph(weights: TracrWeights, parts: list[_Parts]) -> Graph:
    """Vertices: the biases, embeddings, parts that have an effect, and their heads."""
    colours: list[tuple] = [("biases",), *(("token", plain(token)) for token in weights.vocab)]
    colours += [("position", number) for number in range(weights.max_seq_len + 1)]
    vertex_of_writer = list(range(len(colours)))  # -1: it has no effect
    edges: list[tuple[np.ndarray, np.ndarray, np.ndarray, int]] = []
    kinds = itertools.count()
    for part in parts:
        alike = (
            _alike(part, parts) if part.kind == _HIDDEN else {int(number): 1 for number in np.flatnonzero(part.works)}
        )
        shown = np.array(list(alike), int)
        vertices = np.arange(len(colours), len(colours) + len(shown))
        names = [(plain(value),) for value in weights.output_values or (None,)] if part.kind == _OUTPUT else None
        colours += [(part.kind, part.layer, *(names[n] if names else (alike[n],))) for n in shown.tolist()]
        sources = np.array(vertex_of_writer)
        for reads in part.reads:
            rows = np.flatnonzero(sources >= 0)
            row, column = np.nonzero(reads[np.ix_(rows, shown)])
            edges.append((sources[rows[row]], vertices[column], reads[rows[row], shown[column]], next(kinds)))
        if part.start is not None:
            own = np.full(len(part.head), -1)
            own[shown] = vertices
            vertex_of_writer += own.tolist()
        if part.kind == _COMPARED:
            compared = vertices, part.head[shown]
        if part.kind == _MOVED:
            heads = np.unique(part.head[shown])
            at = np.arange(len(colours), len(colours) + len(heads))
            colours += [("head", part.layer)] * len(heads)
            for own, of in (compared, (vertices, part.head[shown])):
                edges.append((at[np.searchsorted(heads, of)], own, np.ones(len(own)), next(kinds)))
    return Graph.of(colours, edges)


def _alike(part: _Parts, parts: list[_Parts]) -> dict[int, int]:
    """Hidden units that have an effect, those with equal products as one, and how many each stands for."""
    assert part.start is not None
    later = [reads[:, other.works] for other in parts for reads in other.reads if len(reads) > part.start]
    first: dict[tuple, int] = {}
    count: dict[int, int] = {}
    for number in np.flatnonzero(part.works).tolist():
        own = part.reads[0][:, number].tobytes(), *(reads[part.start + number].tobytes() for reads in later)
        shown = first.setdefault(own, number)
        count[shown] = count.get(shown, 0) + 1
    return count
