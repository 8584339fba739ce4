"""The embedding of the pad token for a model that has none, so that it is read as one of Tracr's that has.

In Tracr a token's embedding is a direction of its own and, where anything reads it, the constant, which all tokens
share (arXiv:2301.05062). No input holds pad: its row says what the constant is, and nothing reads or writes its own
direction.
"""

from __future__ import annotations

import numpy as np

NEAR = 0.2  # of products of embeddings: they are 0, 1 or 2
SMALL = 1e-3  # of a length
MOST_DIRECTIONS, MOST_READERS = 512, 8_192  # larger models get a row that is near


def pad_row(tokens: np.ndarray, writers: np.ndarray, readers: np.ndarray) -> np.ndarray:
    """[d_model] in any orthogonal basis: the constant and an idle direction, or what all tokens have in common.

    Args:
      tokens: [token, d_model] embeddings, BOS's among them.
      writers: [writer, d_model] all else that writes.
      readers: [reader, d_model] all that reads.
    """
    tokens, writers, readers = (rows.astype(np.float64) for rows in (tokens, writers, readers))
    is_own_basis = bool((tokens >= 0).all())
    shared = tokens @ tokens.T - np.eye(len(tokens))
    amount = round(float(shared.mean()))
    is_tracrs = amount in (0, 1) and np.abs(shared - amount).max() < NEAR and len(tokens) > 1
    if not is_tracrs or tokens.shape[1] > MOST_DIRECTIONS or len(readers) + len(writers) > MOST_READERS:
        return tokens.min(0) if is_own_basis else tokens.mean(0)
    written = _basis(np.concatenate([tokens, writers]))
    constant = np.zeros(tokens.shape[1])
    if amount:
        constant = tokens.min(0) if is_own_basis else _constant(tokens, readers, written)
        written = _basis(np.concatenate([tokens, writers, constant[None]]))
    return constant + _idle(_basis(np.concatenate([written, readers])))


def _constant(tokens: np.ndarray, readers: np.ndarray, written: np.ndarray) -> np.ndarray:
    """Most of it is the sum of all embeddings over their number and 1. The rest is at right angles to all that is
    written, where what reads tokens shows its direction; of the two signs, and of several such readers, that counts by
    which tokens alone are read as whole numbers."""
    inside = tokens.sum(0) / (len(tokens) + 1)
    outside = readers - (readers @ written.T) @ written
    lengths = np.linalg.norm(outside, axis=1)
    ways = [outside[i] / lengths[i] for i in np.argsort(-lengths, kind="stable")[:8] if lengths[i] > SMALL]
    rest = (len(tokens) + 1) ** -0.5
    choices = [inside + sign * rest * way for way in ways for sign in (1, -1)] or [inside]

    def off(constant: np.ndarray) -> float:
        alone = readers @ (tokens - constant).T
        return round(float(np.abs(alone - np.round(alone)).mean()), 4)

    return min(choices, key=off)


def _basis(rows: np.ndarray) -> np.ndarray:
    """[number, d_model] orthonormal rows that make up the same."""
    lengths = np.linalg.norm(rows, axis=1)
    rows = rows[lengths > SMALL] / lengths[lengths > SMALL, None]
    if not len(rows):
        return np.zeros((0, rows.shape[1]))
    squares, directions = np.linalg.eigh(rows.T @ rows)
    return directions[:, squares > SMALL**2].T


def _idle(used: np.ndarray) -> np.ndarray:
    """[d_model] a direction of length 1 that none of these rows has a part of; zeros if there is none."""
    left = np.eye(used.shape[1]) - used.T @ used
    place = int(np.round(np.diag(left), 4).argmax())  # the first of equal ones, on any machine
    length = float(left[place, place]) ** 0.5
    return left[place] / length if length > NEAR / 2 else np.zeros(used.shape[1])
