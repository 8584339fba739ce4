"""Whether a direction of the residual stream holds a number or one value of a categorical s-op, by what reads it.

Tracr's parts read the two in different ways (arXiv:2301.05062 section 3). Numbers are compared with thresholds by pairs
of hidden units whose weights differ by the constant direction alone, enter linear maps as they are and with a minus, or
are moved by a head alone. Values are what selects compare and maps look up; heads move all those of an s-op together.
"""

from __future__ import annotations

import numpy as np

from trade_hf.compiled.weights import TracrWeights

NEAR = 0.1
ON = 0.5  # of a product: something is read
MOST_COMPARED = 4096  # hidden units of a layer that are held against each other
STEEP = 5.0  # times a direction's length: a threshold's slope, which is 10 at least


def _has_partner(first: np.ndarray, biases: np.ndarray, among: np.ndarray, is_threshold: bool) -> np.ndarray:
    """[unit] of those `among` whether another one of them is the second of a threshold's pair, or its opposite; of more
    than MOST_COMPARED units nothing is said."""
    found, places = np.zeros(len(first), bool), np.flatnonzero(among)
    if not 0 < len(places) <= MOST_COMPARED:
        return found
    rows, squares = first[places], (first[places] ** 2).sum(1)
    products = (rows @ rows.T) * (-2 if is_threshold else 2)
    distances = squares[:, None] + squares + products  # squares of distances, or of sums
    if is_threshold:
        steps = np.abs(np.abs(biases[places, None] - biases[places]) - 1)
        found[places] = ((steps < NEAR) & (distances < 2)).any(1)
    else:
        found[places] = (distances < NEAR).any(1)
    return found


class Encodings:
    """All parts of a model that read numbers, and all that read values."""

    def __init__(self, weights: TracrWeights) -> None:
        embeddings = weights.tensors["token_embed/embeddings"]
        pad, bos = (embeddings[weights.vocab.index(name)] for name in (weights.pad, weights.bos))
        compared: list[np.ndarray] = []
        thresholds: list[np.ndarray] = []
        numbers: list[np.ndarray] = []
        values: list[np.ndarray] = []
        for layer in range(weights.num_layers):
            first = weights.layer(layer, "mlp/linear_1/w").T.astype(np.float64)
            biases, lengths = first @ pad, np.linalg.norm(first, axis=1)
            is_threshold = (lengths > STEEP) & _has_partner(first, biases, lengths > STEEP, is_threshold=True)
            is_plain = ~is_threshold & (np.abs(biases) < NEAR) & (lengths > NEAR)
            is_unit = is_plain & (np.abs(lengths - 1) < NEAR)
            is_linear = is_unit & _has_partner(first, biases, is_unit, is_threshold=False)
            thresholds.append(first[is_threshold])
            numbers.append(first[is_linear])
            values.append(first[is_plain & ~is_linear])
            compared.append(first[~is_threshold & (np.abs(biases + 1) < NEAR)])
            for head in range(weights.num_heads):
                columns = slice(head * weights.key_size, (head + 1) * weights.key_size)
                query, key, moved = (
                    weights.layer(layer, f"attn/{part}/w")[:, columns].T for part in ("query", "key", "value")
                )
                moved = moved[(np.linalg.norm(moved, axis=1) > NEAR) & (np.abs(moved @ (bos - pad)) < ON)]
                (numbers if len(moved) == 1 else compared).append(moved)
                values.append(query)
                compared.append(key)
        (numbers if weights.output_values is None else compared).append(weights.unembedding.T)
        self.thresholds, self.numbers = np.concatenate(thresholds), np.concatenate(numbers)
        self.compared = np.concatenate(compared)  # read all values of an s-op, as 0 or 1
        self.values = np.concatenate([self.compared, *values])

    def is_number(self, row: np.ndarray) -> bool | None:
        """Whether a row that some part writes is of a number; None where that cannot be told."""
        length = float(np.linalg.norm(row))
        reads = [np.abs(readers @ row).max(initial=0) for readers in (self.thresholds, self.numbers, self.values)]
        is_number, is_value = max(reads[0] / STEEP, reads[1] / ON) > length, reads[2] / ON > length
        return None if is_number == is_value else bool(is_number)

    def is_value(self, row: np.ndarray) -> bool:
        """Whether a row can be one value of a categorical s-op: those that read all values read it as 0 or 1."""
        read = self.compared @ row
        return bool((np.abs(read - (read > ON)) < NEAR).all()) and not (np.abs(self.thresholds @ row) > ON).any()
