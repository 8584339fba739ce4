"""Which parts of one model are which of another's, whatever basis the residual stream of each has?

All that a model computes follows from its products: what each head dimension, hidden unit and output reads of each
embedding, head dimension, hidden unit and bias that writes before it. Parts correspond if their products do. Products
are snapped to the compiled model's, parts without effect are left out, and the rest is matched as a graph
(`isomorphism.py`).

This is a search, with tolerances that rest on experience. Nothing follows from what it finds: `comparison.py` bounds
how far the two models can be apart with their parts so paired, those without a partner included.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field

import numpy as np

from trade_hf.circuit.isomorphism import Graph, domain_of, find_reordering, plain
from trade_hf.compiled.transforms import read_directions
from trade_hf.compiled.weights import TracrWeights

ROUNDING = 3e-7  # of the lengths of the two vectors of a product; models of up to 500 dimensions are off by 6e-8
UNREAD = 1.0  # of a length that nothing reads, what may leave rounding: Tracr's directions are of length 1
SMALLEST = 1e-4  # of the smallest product, up to which one may be off
DUST = 1e-7  # products up to this are taken for 0
MOST_PRODUCTS = 20_000_000  # of a model; of a larger one nothing is said

_COMPARED, _MOVED, _HIDDEN, _OUTPUT = "compared", "moved", "hidden", "output"


class TooManyProductsError(Exception):
    """There are more products than MOST_PRODUCTS."""


@dataclass(frozen=True)
class Matching:
    """Pairs [pair, 2] of a layer's parts, the compiled model's first; parts that have no partner are not named.

    Attributes:
      compared, moved: columns of W_Q and W_K, and of W_V with rows of W_O.
      units: hidden units.
    """

    compared: np.ndarray
    moved: np.ndarray
    units: np.ndarray


def match_parts(compiled: TracrWeights, weights: TracrWeights) -> list[Matching] | None:
    """For each layer of the model that has more of them, which part of `compiled` is which of `weights`; None if no
    matching is found. Raises TooManyProductsError."""
    if domain_of(compiled) != domain_of(weights):
        return None
    meant, given = _products(compiled), _products(weights)
    values = _values(meant)
    for parts in (meant, given):
        _snap(parts, values)
        _leave_out_what_is_idle(parts)
    (first, owners), (second, partners) = _graph(compiled, meant), _graph(weights, given)
    found = find_reordering(first, second)
    if found is None:
        return None
    pairs: dict[tuple[str, int], list[tuple[int, int]]] = {}
    for one, other in zip(*map(np.ndarray.tolist, found), strict=True):
        if one in owners:
            (kind, layer, mine), (_, _, theirs) = owners[one], partners[other]
            pairs.setdefault((kind, layer), []).extend(zip(mine, theirs, strict=True))
    layers = range(max(compiled.num_layers, weights.num_layers))
    kinds = (_COMPARED, _MOVED, _HIDDEN)
    return [Matching(*(np.array(pairs.get((k, n), []), int).reshape(-1, 2) for k in kinds)) for n in layers]


def do_parts_correspond(compiled: TracrWeights, weights: TracrWeights) -> bool:
    """Whether a matching is found. This proves nothing (see the module)."""
    try:
        return match_parts(compiled, weights) is not None
    except TooManyProductsError:
        return False


@dataclass
class _Parts:
    """Head dimensions of one layer that are compared or moved, its hidden units, or the outputs.

    Attributes:
      reads: products of each reader, [writer, part]; writers are the biases so far, as one, the embeddings, then what
        parts wrote. Those that are compared have two readers, queries and keys.
      bounds: how far rounding may take each product.
      start: which writer the first part is; None for parts that write nothing.
      head: [part]; -1 where there is none.
      place: [part] its column of the model's tensors.
      works: [part] whether it has any effect.
    """

    kind: str
    layer: int
    reads: list[np.ndarray]
    bounds: list[np.ndarray]
    start: int | None
    head: np.ndarray
    place: np.ndarray
    works: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        self.works = np.ones(len(self.head), bool)


def _products(weights: TracrWeights) -> list[_Parts]:
    """Of all parts that read and write anything, in order of computation. Raises TooManyProductsError."""
    writers = [np.zeros((1, weights.d_model))]
    writers += [weights.tensors[f"{name}/embeddings"].astype(np.float64) for name in ("token_embed", "pos_embed")]
    heads = np.repeat(np.arange(weights.num_heads), weights.key_size)
    found: list[_Parts] = []
    count, seen = 0, read_directions(weights)

    def read(kind: str, layer: int, used: np.ndarray, *readers: tuple[np.ndarray, ...]) -> _Parts:
        nonlocal count
        place = np.flatnonzero(used)
        head = heads[place] if kind in (_COMPARED, _MOVED) else np.full(len(place), -1)
        count += sum(map(len, writers)) * len(head) * len(readers)
        if count > MOST_PRODUCTS:
            raise TooManyProductsError
        written, reads, bounds = np.concatenate(writers), [], []
        for w, b in readers:
            products = written @ w
            products[0] += b
            whole, read_of_it = (np.linalg.norm(rows, axis=1) for rows in (written, written @ seen))
            lengths = np.outer(np.minimum(whole, read_of_it + UNREAD), np.linalg.norm(w, axis=0))
            lengths[0] += np.abs(b)
            reads.append(products)
            bounds.append(ROUNDING * lengths)
        found.append(_Parts(kind, layer, reads, bounds, None, head, place))
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
        read(_COMPARED, layer, used, _only(scaled, used), _only(key, used))
        used = _is_used(*value) & moved[0].any(1)
        write(read(_MOVED, layer, used, _only(value, used)), moved[0][used], moved[1])
        used = _is_used(*first) & second[0].any(1)
        write(read(_HIDDEN, layer, used, _only(first, used)), second[0][used], second[1])
    outputs = weights.unembedding.astype(np.float64)
    read(_OUTPUT, 0, np.ones(outputs.shape[1], bool), (outputs, np.zeros(outputs.shape[1])))
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
    most = max(DUST, SMALLEST * np.abs(values[values != 0]).min(initial=np.inf))
    for part in parts:
        for number, (reads, bounds) in enumerate(zip(part.reads, part.bounds, strict=True)):
            nearest = values[np.searchsorted((values[1:] + values[:-1]) / 2, reads)]
            part.reads[number] = np.where(np.abs(nearest - reads) <= np.minimum(bounds + DUST, most), nearest, reads)


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


def _graph(weights: TracrWeights, parts: list[_Parts]) -> tuple[Graph, dict[int, tuple[str, int, list[int]]]]:
    """Vertices: the biases, embeddings, parts that have an effect, and their heads. With it, of each vertex that stands
    for parts, their kind, layer and places."""
    owners: dict[int, tuple[str, int, list[int]]] = {}
    colours: list[tuple] = [("biases",), *(("token", plain(token)) for token in weights.vocab)]
    colours += [("position", number) for number in range(weights.max_seq_len + 1)]
    vertex_of_writer = list(range(len(colours)))  # -1: it has no effect
    edges: list[tuple[np.ndarray, np.ndarray, np.ndarray, int]] = []
    kinds = itertools.count()
    for part in parts:
        alike = (
            _alike(part, parts)
            if part.kind == _HIDDEN
            else {int(number): [number] for number in np.flatnonzero(part.works)}
        )
        shown = np.array(list(alike), int)
        vertices = np.arange(len(colours), len(colours) + len(shown))
        names = [(plain(value),) for value in weights.output_values or (None,)] if part.kind == _OUTPUT else None
        colours += [(part.kind, part.layer, *(names[n] if names else (len(alike[n]),))) for n in shown.tolist()]
        for vertex, number in zip(vertices.tolist(), shown.tolist(), strict=True):
            owners[vertex] = part.kind, part.layer, part.place[alike[number]].tolist()
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
    return Graph.of(colours, edges), owners


def _alike(part: _Parts, parts: list[_Parts]) -> dict[int, list[int]]:
    """Hidden units that have an effect: the first of those with equal products, and all of them."""
    assert part.start is not None
    later = [reads[:, other.works] for other in parts for reads in other.reads if len(reads) > part.start]
    first: dict[tuple, int] = {}
    alike: dict[int, list[int]] = {}
    for number in np.flatnonzero(part.works).tolist():
        own = part.reads[0][:, number].tobytes(), *(reads[part.start + number].tobytes() for reads in later)
        alike.setdefault(first.setdefault(own, number), []).append(number)
    return alike
