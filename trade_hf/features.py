"""The encoder's input features: one unit for each reader or writer of the residual stream, and their dot products.

The basis of the residual stream is arbitrary, so no coordinate is kept. A unit is a token's or a position's embedding,
a dimension of a head's W_Q and W_K, one of its W_V and W_O, a hidden unit of an MLP, or a column of the unembedding.
What is kept of its vectors are their dot products: reader · writer (read compositions, not coordinates), and which
units write or read alike. They are the same in any orthogonal basis.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import numpy as np

from trade_hf.circuit.units import MAX_UNITS, CircuitUnits, signed_log, to_circuit_units
from trade_hf.compiled.weights import COLDNESS, UNEMBED, WeightsError

TOKEN, BOS, POSITION, QUERY_KEY, VALUE_OUTPUT, HIDDEN, OUTPUT = range(1, 8)
COLUMNS = ("type", "layer", "value", "bias_a", "bias_b", "amount", "merged", "self")
CIRCUIT_COLUMNS = ("type", "layer", "value", "bias", "steepness", "amount", "merged", "is_threshold")
INTEGER_COLUMNS = 3
EDGE_CHANNELS = 5  # reader a, reader b, same head, writers alike, readers alike
MAX_LAYERS = 32
VALUE_BUCKETS = 64
VALUE_OFFSET = 20  # bucket of the value 0; bucket 0 is for what is no whole number in range
EPSILON = 1e-4
PIECE_SIZE = 256
PARAMETERS = (
    "token_embed/embeddings",
    "pos_embed/embeddings",
    *(f"attn/{part}/{kind}" for part in ("query", "key", "value", "linear") for kind in "wb"),
    *(f"mlp/{part}/{kind}" for part in ("linear_1", "linear_2") for kind in "wb"),
    UNEMBED,
)


@dataclass(frozen=True)
class Units:
    """The encoder's input for one model.

    Attributes:
      features: [unit, len(COLUMNS)] float32.
      edges: [unit, unit, EDGE_CHANNELS] float32; edges[i, j, 0] is what i's first reader takes from j's writer,
        on a signed logarithmic scale; the last two are the cosines of i's and j's writers and of their first readers.
      vectors: [unit, 3, d_model] float32: writer, first and second reader (zero where there is none). The model never
        sees them; they tell which direction is whose where the basis is known, as in training.
      origin: of a circuit, in place of vectors: [unit, 4] number of the head in its layer, -1 where there is none;
        kind, layer and number of what it is, moves or compares.
    """

    features: np.ndarray
    edges: np.ndarray
    vectors: np.ndarray | None = None
    origin: np.ndarray | None = None


def to_units(weights: Any) -> Units:
    """The units of a TracrWeights (anything with its attributes). Raises WeightsError for more than MAX_UNITS."""
    builder = _Builder(weights)
    builder.embeddings()
    for layer in range(weights.num_layers):
        builder.attention(layer)
        builder.mlp(layer)
    builder.outputs()
    if len(builder.rows) > MAX_UNITS:
        raise WeightsError(f"the model has {len(builder.rows):,} units; the limit is {MAX_UNITS:,}")
    return builder.units()


def to_units_of_circuit(weights: Any) -> Units:
    """The units of a model's circuit, equal for all models that compute the same in another basis, split or scale.

    Raises WeightsError for more than MAX_UNITS.
    """
    found = to_circuit_units(weights)
    values = _values_of(weights, found)
    is_number = [isinstance(value, int | float) for value in values]
    amounts = np.array([float(value) if number else 0.0 for value, number in zip(values, is_number, strict=True)])
    layers = np.where(found.layer < 0, MAX_LAYERS - 1, np.minimum(found.layer, MAX_LAYERS - 1))
    integers = np.stack([found.kind, layers, [value_bucket(value) for value in values]], 1)
    scalars = [
        signed_log(found.bias),
        found.steepness / 4,
        signed_log(amounts),
        signed_log(found.merged),
        found.rise > 0,
    ]
    features = np.concatenate([integers, np.stack(scalars, 1)], 1)
    channels = [
        signed_log(found.reads),
        signed_log(found.keys),
        found.in_head,
        found.writers_alike,
        found.readers_alike,
    ]
    origin = np.concatenate([found.head[:, None], found.source], 1)
    return Units(features.astype(np.float32), np.stack(channels, 2).astype(np.float32), origin=origin)


def _values_of(weights: Any, units: CircuitUnits) -> list[Any]:
    """What each token, position and output stands for, words by their place in the vocabulary; None for other units."""
    tokens = [token for token in weights.vocab if token not in (weights.bos, weights.pad)]
    outputs = weights.output_values
    if outputs is not None and not all(isinstance(value, int | float) for value in outputs):
        outputs = [tokens.index(value) if value in tokens else None for value in outputs]
    if not all(isinstance(token, int | float) for token in tokens):
        tokens = list(range(len(tokens)))
    values: list[Any] = []
    for kind, (_, _, number) in zip(units.kind.tolist(), units.source.tolist(), strict=True):
        if kind == TOKEN:
            values.append(tokens[number])
        elif kind == POSITION:
            values.append(number)
        else:
            values.append(outputs[number] if kind == OUTPUT and outputs is not None else None)
    return values


class _Builder:
    """Collects units: their integer columns, value, writer, readers a and b, head."""

    def __init__(self, weights: Any) -> None:
        self.weights = weights
        self.d_model = weights.tensors["token_embed/embeddings"].shape[1]
        self.rows: list[tuple[int, int, int, float, float]] = []  # type, layer, value bucket, amount, merged units
        self.writers: list[np.ndarray] = []
        self.readers: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
        self.heads: list[int] = []
        embeddings = weights.tensors["token_embed/embeddings"]
        # Nothing reads the pad token: its row stands for what all tokens share, the constant direction `one`.
        self.shared = embeddings[weights.vocab.index(weights.pad)]

    def add(self, kind: int, layer: int, writer=None, a=None, b=None, value=None, merged=1, head=-1) -> None:
        zero = np.zeros(self.d_model, np.float32)
        amount = float(value) if isinstance(value, int | float) else 0.0
        self.rows.append((kind, layer, value_bucket(value), amount, float(merged)))
        self.writers.append(zero if writer is None else writer)
        self.readers[0].append(zero if a is None else a)
        self.readers[1].append(zero if b is None else b)
        self.heads.append(head)

    def embeddings(self) -> None:
        weights = self.weights
        plain = weights.input_vocab
        numeric = all(isinstance(token, int | float) for token in plain)
        for token, row in zip(weights.vocab, weights.tensors["token_embed/embeddings"], strict=True):
            if token == weights.bos:
                self.add(BOS, 0, writer=row - self.shared)
            elif token != weights.pad:
                value = token if numeric else plain.index(token)
                self.add(TOKEN, 0, writer=row - self.shared, value=value)
        for position, row in enumerate(weights.tensors["pos_embed/embeddings"][1:]):
            self.add(POSITION, 0, writer=row, value=position)

    def attention(self, layer: int) -> None:
        parts = ("query", "key", "value", "linear")
        query, key, value, linear = (self.weights.layer(layer, f"attn/{part}/w") for part in parts)
        size = query.shape[1] // self.weights.num_heads
        reads = np.abs(key).max(0) > EPSILON
        moves = np.maximum(np.abs(value).max(0), np.abs(linear).max(1)) > EPSILON
        for column in range(query.shape[1]):
            head = layer * self.weights.num_heads + column // size
            if reads[column]:
                self.add(QUERY_KEY, layer, a=query[:, column] / COLDNESS, b=key[:, column], head=head)
            if moves[column]:
                self.add(VALUE_OUTPUT, layer, writer=linear[column], a=value[:, column], head=head)

    def mlp(self, layer: int) -> None:
        first, second = self.weights.layer(layer, "mlp/linear_1/w"), self.weights.layer(layer, "mlp/linear_2/w")
        used = np.flatnonzero(np.maximum(np.abs(first).max(0), np.abs(second).max(1)) > EPSILON)
        for members in _merge(used, first.T @ self.shared, second):
            self.add(HIDDEN, layer, second[members[0]], a=first[:, members].sum(1), merged=len(members))

    def outputs(self) -> None:
        values = self.weights.output_values
        plain = self.weights.input_vocab
        if values is not None and not all(isinstance(value, int | float) for value in values):
            values = [plain.index(value) if value in plain else None for value in values]
        for column, reader in enumerate(self.weights.unembedding.T):
            self.add(OUTPUT, MAX_LAYERS - 1, a=reader, value=None if values is None else values[column])

    def units(self) -> Units:
        writers, *readers = (np.stack(vectors) for vectors in (self.writers, *self.readers))
        rows = np.array(self.rows, np.float32)
        products = [reader @ writers.T for reader in readers]
        biases = [reader @ self.shared for reader in readers]
        heads = np.array(self.heads)
        same_head = (heads[:, None] == heads[None, :]) & (heads[:, None] >= 0)
        features = np.stack(
            [
                rows[:, 0],
                np.minimum(rows[:, 1], MAX_LAYERS - 1),
                rows[:, 2],
                signed_log(biases[0]),
                signed_log(biases[1]),
                signed_log(rows[:, 3]),
                signed_log(rows[:, 4]),
                signed_log(np.diag(products[0])),
            ],
            1,
        )
        alike = [_cosines(writers), _cosines(readers[0])]
        edges = np.stack([*map(signed_log, products), same_head, *alike], 2)
        vectors = np.stack([writers, *readers], 1)
        return Units(features.astype(np.float32), edges.astype(np.float32), vectors.astype(np.float32))


def _cosines(vectors: np.ndarray) -> np.ndarray:
    """Cosine of each two rows, 0 for rows that are zero and on the diagonal."""
    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), EPSILON)
    cosines = unit @ unit.T
    np.fill_diagonal(cosines, 0)
    return cosines


def value_bucket(value: Any) -> int:
    """The embedding of a whole number in range; 0 for anything else."""
    if not isinstance(value, int | float) or int(value) != value:
        return 0
    bucket = int(value) + VALUE_OFFSET
    return bucket if 0 < bucket < VALUE_BUCKETS else 0


def _merge(used: np.ndarray, biases: np.ndarray, second: np.ndarray) -> list[list[int]]:
    """Hidden units that are one unit to the reader of the residual stream.

    A sequence map has one unit for each pair of values, ReLU(x + y - 1); those that write the same output are summed.
    """
    groups: list[list[int]] = []
    pairs = [u for u in used.tolist() if abs(biases[u] + 1.0) < 0.1]
    groups.extend([u] for u in used.tolist() if abs(biases[u] + 1.0) >= 0.1)
    while pairs:
        close = np.abs(second[pairs] - second[pairs[0]]).max(1) < 0.05
        groups.append([u for u, same in zip(pairs, close, strict=True) if same])
        pairs = [u for u, same in zip(pairs, close, strict=True) if not same]
    return groups


def to_pieces(weights: Any) -> Units:
    """The baseline's input: each parameter flattened, in Tracr's order, and cut into pieces of PIECE_SIZE entries.

    So arXiv:2410.00061 reads weights. What is kept of a piece: parameter, layer, its place among the parameter's pieces
    (three integers), and the entries on a signed logarithmic scale; there are no edges. The unembedding, which Tracr
    keeps out of its parameters, comes last.

    Raises WeightsError for more than MAX_UNITS pieces.
    """
    rows = []
    for name, tensor in {**weights.tensors, UNEMBED: weights.unembedding}.items():
        layer = re.search(r"layer_(\d+)", name)
        kind = PARAMETERS.index(name.split("/", 2)[-1] if layer else name)
        entries = signed_log(tensor.reshape(-1))
        pieces = np.pad(entries, (0, -len(entries) % PIECE_SIZE)).reshape(-1, PIECE_SIZE)
        integers = np.zeros((len(pieces), INTEGER_COLUMNS), np.float32)
        integers[:, 0] = kind
        integers[:, 1] = min(int(layer[1]), MAX_LAYERS - 1) if layer else 0
        integers[:, 2] = np.minimum(np.arange(len(pieces)), VALUE_BUCKETS - 1)
        rows.append(np.concatenate([integers, pieces], 1))
    features = np.concatenate(rows).astype(np.float32)
    if len(features) > MAX_UNITS:
        raise WeightsError(f"the model has {len(features):,} pieces; the limit is {MAX_UNITS:,}")
    nothing = np.zeros((len(features), len(features), 0), np.float32)
    return Units(features, nothing, nothing)


READINGS = {"circuit": to_units_of_circuit, "units": to_units, "flat": to_pieces}


def collate(units: list[Units], multiple: int = 1) -> dict[str, np.ndarray]:
    """A padded batch: weight_features [batch, unit, column], weight_edges [batch, channel, unit, unit], attention_mask
    [batch, unit]; as many units as the largest has, up to the next `multiple`."""
    size = -(-max(len(u.features) for u in units) // multiple) * multiple
    features = np.zeros((len(units), size, units[0].features.shape[1]), np.float32)
    edges = np.zeros((len(units), units[0].edges.shape[2], size, size), np.float32)
    mask = np.zeros((len(units), size), np.int64)
    for i, unit in enumerate(units):
        n = len(unit.features)
        features[i, :n] = unit.features
        edges[i, :, :n, :n] = unit.edges.transpose(2, 0, 1)
        mask[i, :n] = 1
    return {"weight_features": features, "weight_edges": edges, "attention_mask": mask}
