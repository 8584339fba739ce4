"""Tracr's own basis of the residual stream, found again in a model that stands in another orthogonal one.

Tracr gives each value of a categorical s-op, each numerical s-op and the constant a direction of its own, all at right
angles. What embeddings, heads and hidden units write is one of these directions, a multiple of one, or the step from
one to another; so those that are known tell the next ones. Directions that nothing writes are taken from what is read.
"""

from __future__ import annotations

import numpy as np

from trade_hf.circuit.ties import basis_of, first_of_largest
from trade_hf.compiled.transforms import WRITERS, all_readers, change_basis, residual_vectors
from trade_hf.compiled.weights import UNEMBED, TracrWeights

NEAR = 0.2  # of a length: rows are equal, or a number is 0 or 1
SMALLEST = 0.02  # length of a row that tells a direction
MOST_DIRECTIONS, MOST_ROWS = 512, 8_192  # of the residual stream, and written to it; larger models stay as they are
SETTLING, FAR = 4, 4.0  # turns; times the reach of noise that an entry is off at most before them
SPREADS = 5.0  # standard deviations that noise may reach: one entry in two million goes beyond
TO_DEVIATION = 1.4826  # of a normal distribution, the standard deviation over the median of absolute values


class NotTracrsError(Exception):
    """What is written does not go along directions at right angles."""


def align(weights: TracrWeights) -> TracrWeights:
    """The model in a basis that is Tracr's up to order, and up to the sign of numbers that no reader tells; the model
    itself where no such basis is found, as where its residual stream has fewer dimensions than it had."""
    try:
        basis = _Directions(weights).basis()
    except NotTracrsError:
        return weights
    return _settled(change_basis(weights, basis.T))


def _settled(weights: TracrWeights) -> TracrWeights:
    """The model in the basis close to its own in which what noise may have made of 0 is least. Single directions are
    known as well as what writes them; readers, whose entries are a hundred times larger, tell them better."""
    for _ in range(SETTLING):
        moments = np.zeros((weights.d_model, weights.d_model))
        for name, vectors in residual_vectors(weights).items():
            size = np.sqrt((vectors**2).mean())
            if size:
                is_plain = name == UNEMBED or name.endswith("embeddings")
                meant = np.round(vectors) if is_plain else np.where(np.abs(vectors) < FAR * reach(vectors), 0, vectors)
                moments += vectors.T @ meant / size**2
        left, _, right = np.linalg.svd(moments)
        turn = (left @ right).astype(np.float32)
        weights = change_basis(weights, turn)
    return weights


def reach(tensor: np.ndarray) -> float:
    """How far noise takes an entry at most."""
    return SPREADS * TO_DEVIATION * float(np.median(np.abs(tensor)))


class _Directions:
    """The directions found so far, [direction, d_model]."""

    def __init__(self, weights: TracrWeights) -> None:
        self.weights = weights
        self.d_model = weights.d_model
        self.found = np.zeros((0, self.d_model))
        vectors = residual_vectors(weights)
        self.readers = all_readers(vectors)
        self.writers = np.concatenate([part for name, part in vectors.items() if name.endswith(WRITERS)])

    def basis(self) -> np.ndarray:
        """[d_model, d_model] orthogonal. Raises NotTracrsError."""
        if self.d_model > MOST_DIRECTIONS or len(self.writers) > MOST_ROWS:
            raise NotTracrsError
        for position in self.weights.tensors["pos_embed/embeddings"][1:]:
            self.add(position)
        self.add_written()
        self.add_tokens()
        self.add_read()
        if len(self.found) > self.d_model:
            raise NotTracrsError
        left, lengths, right = np.linalg.svd(self.found, full_matrices=False)
        if np.abs(lengths - 1).max() > NEAR:
            raise NotTracrsError
        nearest = left @ right  # the closest directions that are at right angles
        self.turn_numbers(nearest)
        outside = basis_of(np.eye(self.d_model) - nearest.T @ nearest, self.d_model - len(nearest))
        return np.concatenate([nearest, outside]).astype(np.float32)

    def add(self, row: np.ndarray) -> None:
        size = float(np.linalg.norm(row))
        if size < SMALLEST:  # a compressed model has lost it
            raise NotTracrsError
        self.found = np.concatenate([self.found, (row / size)[None]])

    def split(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Of each row its parts along the known directions, and what is left of it."""
        along = rows @ self.found.T
        return along, rows - along @ self.found

    def add_written(self) -> None:
        """What heads and hidden units write: values first, then steps between values, then multiples of numbers."""
        rows = self.writers[np.linalg.norm(self.writers, axis=1) > SMALLEST]
        along, left = self.split(rows)
        lengths = np.linalg.norm(rows, axis=1)
        while len(waiting := np.flatnonzero(np.linalg.norm(left, axis=1) > np.maximum(SMALLEST, NEAR * lengths))):
            row, sign = self.next_of(rows, along, left, waiting)
            self.add(sign * left[row])
            along = np.concatenate([along, rows @ self.found[-1:].T], 1)
            left -= (left @ self.found[-1])[:, None] * self.found[-1]

    @staticmethod
    def next_of(rows: np.ndarray, along: np.ndarray, left: np.ndarray, waiting: np.ndarray) -> tuple[int, int]:
        """Of the rows that are not explained by known directions, the next to tell a new one, and its sign there."""
        sizes, known = np.linalg.norm(left[waiting], axis=1), np.abs(along[waiting]).sum(1)
        most = np.abs(along[waiting]).max(1)
        is_whole = np.abs(sizes - 1) < NEAR
        for value in waiting[is_whole & (known < NEAR)][:1]:
            return value, 1
        for step in waiting[is_whole & (np.abs(most - 1) < NEAR) & (known < 1 + 2 * NEAR)]:
            # Both units of a threshold write the step, one of them backwards; the one that cleans BOS is alone.
            if np.linalg.norm(rows + rows[step], axis=1).min() < NEAR:
                return step, -int(np.sign(along[step][np.abs(along[step]).argmax()]))
        multiples = known < NEAR * sizes
        if not multiples.any():
            raise NotTracrsError
        return waiting[multiples][first_of_largest(sizes[multiples])], 1

    def add_tokens(self) -> None:
        """Tokens, BOS, pad, and the constant, which they share if anything reads it."""
        tokens = self.weights.tensors["token_embed/embeddings"].astype(np.float64)
        shared = tokens @ tokens.T - np.eye(len(tokens))
        amount = round(float(shared.mean()))
        if amount not in (0, 1) or np.abs(shared - amount).max() > NEAR:
            raise NotTracrsError
        if amount:
            constant = self.constant(tokens)
            self.add(constant)
            tokens = tokens - constant
        for row in tokens:
            self.add(row)

    def constant(self, tokens: np.ndarray) -> np.ndarray:
        """The direction that is at right angles to what tells tokens apart. Their embeddings hold all of it but a part
        that only its readers show."""
        inside = np.linalg.pinv(tokens) @ np.ones(len(tokens))
        length = max(0.0, 1 - float(inside @ inside)) ** 0.5
        known, _ = np.linalg.qr(np.concatenate([tokens, self.found]).T)
        outside = self.readers - (self.readers @ known) @ known.T
        # Nothing reads the pad token, so its embedding tells how much of the constant is read. What is read of another
        # token lies outside backwards, since its embedding, with the constant added, does not.
        read = self.readers @ tokens.T
        constants = read[:, self.weights.vocab.index(self.weights.pad)]
        amounts = constants - (read - constants[:, None]).sum(1)
        sizes = np.linalg.norm(outside, axis=1)
        # The units of a threshold, whose biases may hide what else they read, read a number with their slope.
        alone = (np.abs(constants) > 0.5) & (np.linalg.norm(self.readers, axis=1) < 1.02 * self.weights.exactness)
        alone &= np.abs(sizes - length * np.abs(amounts)) < NEAR * sizes
        if not alone.any():
            raise NotTracrsError
        rest = amounts[alone] @ outside[alone]
        return inside + length * rest / np.linalg.norm(rest)

    def add_read(self) -> None:
        """Directions that are read and that nothing writes: of values that no input gives."""
        for reader in self.readers[np.abs(np.linalg.norm(self.readers, axis=1) - 1) < NEAR]:
            if len(self.found) == self.d_model:
                return
            along, left = self.split(reader)
            if np.abs(along).sum() < NEAR:
                self.add(left)

    def turn_numbers(self, directions: np.ndarray) -> None:
        """Give numbers, which are written forwards and backwards, the sign that their readers tell: Tracr's read with a
        plus, but for those of linear maps, which tell none; then what is written forwards alone tells it."""
        along = self.writers @ directions.T
        alone = np.abs(along).sum(1) < (1 + NEAR) * np.abs(along).max(1)
        written, read = along[alone], (self.readers @ directions.T).sum(0)
        told = np.where(np.abs(read) > 0.5, read, written.sum(0))
        directions[(written < -SMALLEST).any(0) & (told < -0.5)] *= -1
