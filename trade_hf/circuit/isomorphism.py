"""Are two models' weights equal up to the order of residual directions, hidden units, head dimensions and heads?

Colour refinement (Weisfeiler–Leman) on the graph whose vertices are those things and whose edges are the weights;
where colours tie, one vertex is fixed and refinement goes on. The reordering that is found is applied and every entry
compared, so a positive answer never rests on colours.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np

from trade_hf.compiled.weights import TracrWeights
from trade_hf.rasp.functions import Value

MAX_BRANCHES = 64


@dataclass(frozen=True)
class Graph:
    """Vertices with a fixed colour, and weighted edges of a fixed kind, in no particular order."""

    colours: list
    sources: np.ndarray
    targets: np.ndarray
    labels: np.ndarray  # [edge, 2]: kind, weight

    @classmethod
    def of(cls, colours: list, edges: list[tuple[np.ndarray, np.ndarray, np.ndarray, int]]) -> Graph:
        """`edges`: sources, targets, weights and a kind for each."""
        sources, targets, weights = (np.concatenate([edge[i] for edge in edges]) for i in (0, 1, 2))
        kind = np.concatenate([np.full(len(edge[0]), edge[3]) for edge in edges])
        return cls(colours, sources, targets, np.stack([kind, weights.astype(np.float64)], 1))


def are_identical(first: TracrWeights, second: TracrWeights) -> bool:
    """Whether one is the other in another order; vocabulary, lengths, output values, the mask and the size of heads, by
    whose root attention is divided, must be the same too."""
    sizes = [(model.d_model, model.key_size, model.num_layers) for model in (first, second)]
    if sizes[0] != sizes[1] or domain_of(first) != domain_of(second):
        return False
    # Reordering leaves as many entries as there were: a rotated basis is told apart before any graph is made.
    if any(np.count_nonzero(first.tensors[n]) != np.count_nonzero(tensor) for n, tensor in second.tensors.items()):
        return False
    return find_reordering(_graph(first), _graph(second)) is not None


def domain_of(weights: TracrWeights) -> tuple:
    """What a model speaks of, which is the same for models that are to be compared. The order of outputs counts, since
    the first of equal ones is decoded."""
    outputs = weights.output_values and [*map(plain, weights.output_values)]
    return weights.max_seq_len, weights.bos, weights.pad, weights.causal, set(weights.vocab), outputs


def find_reordering(first: Graph, second: Graph) -> tuple[np.ndarray, np.ndarray] | None:
    """Vertices of both graphs, paired so that one graph becomes the other, every edge and weight compared; None where
    no such pairs are found."""
    if len(first.sources) != len(second.sources):
        return None
    if sorted(map(repr, first.colours)) != sorted(map(repr, second.colours)):
        return None
    return _match(first, second, budget=itertools.count())


def _graph(weights: TracrWeights) -> Graph:
    """Vertices: residual directions first, then tokens, positions, outputs and one for all biases, then for each layer
    its heads, head dimensions and hidden units."""
    colours: list = [("direction",)] * weights.d_model
    edges: list[tuple[np.ndarray, np.ndarray, np.ndarray, int]] = []
    kinds = itertools.count()

    def vertices(colour: list) -> np.ndarray:
        start = len(colours)
        colours.extend(colour)
        return np.arange(start, len(colours))

    def connect(rows: np.ndarray, columns: np.ndarray, matrix: np.ndarray, kind: int) -> None:
        row, column = np.nonzero(matrix)
        edges.append((rows[row], columns[column], matrix[row, column], kind))

    residual = np.arange(weights.d_model)
    tokens = vertices([("token", plain(token)) for token in weights.vocab])
    connect(tokens, residual, weights.tensors["token_embed/embeddings"], next(kinds))
    positions = vertices([("position", i) for i in range(weights.max_seq_len + 1)])
    connect(positions, residual, weights.tensors["pos_embed/embeddings"], next(kinds))
    outputs = vertices([("output", plain(value)) for value in weights.output_values or (None,)])
    connect(residual, outputs, weights.unembedding, next(kinds))
    bias = vertices([("bias",)])
    for layer in range(weights.num_layers):
        _add_attention(weights, layer, residual, bias, vertices, connect, kinds)
        names = [f"transformer/layer_{layer}/mlp/linear_{i}" for i in (1, 2)]
        reads, bias_of, writes, alike = _distinct_units(weights, names)
        hidden = vertices([("hidden", layer, count) for count in alike.tolist()])
        connect(residual, hidden, reads.T, next(kinds))
        connect(hidden, residual, writes, next(kinds))
        connect(bias, hidden, bias_of[None], next(kinds))
        connect(bias, residual, weights.tensors[f"{names[1]}/b"][None], next(kinds))
    return Graph.of(colours, edges)


def _distinct_units(weights: TracrWeights, names: list[str]) -> tuple[np.ndarray, ...]:
    """Of the hidden units that read or write anything: what they read, their biases, what they write, and how many
    there are of each. Those that are equal in all (steps of two maps of one number where neither changes) are one
    vertex, or each would have to be told from the others."""
    first, second = (weights.tensors[f"{name}/w"] for name in names)
    units = np.concatenate([first.T, weights.tensors[f"{names[0]}/b"][:, None], second], 1) + 0.0  # no -0.0
    units, alike = np.unique(units[units.any(1)], axis=0, return_counts=True)
    size = weights.d_model
    return units[:, :size], units[:, size], units[:, size + 1 :], alike


def plain(value: Value | None) -> object:
    """Equal values in one form: True is 1."""
    return float(value) if isinstance(value, int | float) else value


def _add_attention(weights, layer, residual, bias, vertices, connect, kinds) -> None:
    size = weights.key_size
    prefix = f"transformer/layer_{layer}/attn"
    kinds_of = {name: next(kinds) for name in ("query", "key", "value", "linear", "qb", "kb", "vb", "lb", "qk", "ov")}
    connect(bias, residual, weights.tensors[f"{prefix}/linear/b"][None], kinds_of["lb"])
    for h in range(weights.num_heads):
        columns = slice(h * size, (h + 1) * size)
        parts = {name: weights.tensors[f"{prefix}/{name}/w"][:, columns] for name in ("query", "key", "value")}
        parts["linear"] = weights.tensors[f"{prefix}/linear/w"][columns].T
        biases = {name: weights.tensors[f"{prefix}/{name}/b"][columns] for name in ("query", "key", "value")}
        if not any(np.any(matrix) for matrix in (*parts.values(), *biases.values())):
            continue
        head = vertices([("head", layer)])
        for dims, names in (("qk", ("query", "key")), ("ov", ("value", "linear"))):
            used = np.flatnonzero(sum(np.abs(parts[name]).max(0) for name in names))
            dimensions = vertices([(dims, layer)] * len(used))
            connect(head, dimensions, np.ones((1, len(used)), np.float32), kinds_of[dims])
            connect(residual, dimensions, parts[names[0]][:, used], kinds_of[names[0]])
            connect(residual, dimensions, parts[names[1]][:, used], kinds_of[names[1]])
            for name in names:
                if name in biases:
                    connect(bias, dimensions, biases[name][None, used], kinds_of[f"{name[0]}b"])


def _refine(graphs: tuple[Graph, Graph], colours: list[np.ndarray]) -> list[np.ndarray] | None:
    """Stable colours of both graphs, numbered alike; None as soon as they tell the graphs apart."""
    offset = len(colours[0])
    colour = np.concatenate(colours)
    sources = np.concatenate([graphs[0].sources, graphs[1].sources + offset])
    targets = np.concatenate([graphs[0].targets, graphs[1].targets + offset])
    labels = np.unique(np.concatenate([graph.labels for graph in graphs]), axis=0, return_inverse=True)[1].reshape(-1)
    ends = np.concatenate([sources, targets])
    others = np.concatenate([targets, sources])
    marks = np.concatenate([2 * labels, 2 * labels + 1])
    count = len(np.unique(colour))
    while True:
        order = np.lexsort((colour[others], marks, ends))
        seen: list[list] = [[] for _ in range(len(colour))]
        for end, mark, other in zip(
            ends[order].tolist(), marks[order].tolist(), colour[others[order]].tolist(), strict=True
        ):
            seen[end].append((mark, other))
        signatures = [(old, *neighbours) for old, neighbours in zip(colour.tolist(), seen, strict=True)]
        number = {signature: i for i, signature in enumerate(sorted(set(signatures)))}
        colour = np.array([number[signature] for signature in signatures])
        if not np.array_equal(np.sort(colour[:offset]), np.sort(colour[offset:])):
            return None
        if len(number) == count:
            return [colour[:offset], colour[offset:]]
        count = len(number)


def _match(
    first: Graph, second: Graph, budget: itertools.count, fixed: list[np.ndarray] | None = None
) -> tuple[np.ndarray, np.ndarray] | None:
    if next(budget) > MAX_BRANCHES:
        return None
    if fixed is None:
        number = {colour: i for i, colour in enumerate(sorted({repr(c) for c in first.colours}))}
        fixed = [np.array([number[repr(c)] for c in graph.colours]) for graph in (first, second)]
    colours = _refine((first, second), fixed)
    if colours is None:
        return None
    values, counts = np.unique(colours[0], return_counts=True)
    if (counts == 1).all():
        pairs = np.argsort(colours[0]), np.argsort(colours[1])
        return pairs if _is_reordering(first, second, *pairs) else None
    tied = values[counts > 1][0]
    mine = np.flatnonzero(colours[0] == tied)[0]
    for theirs in np.flatnonzero(colours[1] == tied):
        trial = [colours[0].copy(), colours[1].copy()]
        trial[0][mine] = trial[1][theirs] = len(first.colours)
        found = _match(first, second, budget, trial)
        if found is not None:
            return found
    return None


def _is_reordering(first: Graph, second: Graph, mine: np.ndarray, theirs: np.ndarray) -> bool:
    """Whether sending mine[i] to theirs[i] makes one graph the other, every edge and weight compared."""
    if any(first.colours[a] != second.colours[b] for a, b in zip(mine.tolist(), theirs.tolist(), strict=True)):
        return False
    send = np.empty_like(mine)
    send[mine] = theirs

    def rows(sources: np.ndarray, targets: np.ndarray, labels: np.ndarray) -> np.ndarray:
        table = np.column_stack([sources, targets, labels])
        return table[np.lexsort(table.T)]

    return np.array_equal(
        rows(send[first.sources], send[first.targets], first.labels),
        rows(second.sources, second.targets, second.labels),
    )
