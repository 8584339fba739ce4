"""Order among numbers that were computed: those that differ by rounding alone are equal, and the first counts.

The last bits of a product hang on the processor and its library (OpenBLAS sums in another order on each), so no
decision may hang on them. `near` is far above rounding and far below a difference that means something.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

ROUNDING = 1e-4  # of the largest of the numbers, where nothing else is known of them


def ranks(values: Sequence[float] | np.ndarray, near: float | None = None) -> np.ndarray:
    """[value] its place among the distinct ones, ascending; those no further apart than `near` share one.

    Args:
      near: by default ROUNDING times the largest finite value, by size.
    """
    given = np.asarray(values, float)
    order = np.argsort(given, kind="stable")
    if near is None:
        near = ROUNDING * float(np.abs(given[np.isfinite(given)]).max(initial=0.0))
    places = np.zeros(len(given), int)
    if len(given):
        with np.errstate(invalid="ignore"):  # infinity less infinity: they share a place
            places[order[1:]] = np.cumsum(np.diff(given[order]) > near)
    return places


def in_order(values: Sequence[float] | np.ndarray, near: float | None = None) -> list[int]:
    """Where the values stand, ascending; equal ones as they come."""
    return np.argsort(ranks(values, near), kind="stable").tolist()


def first_of_largest(values: Sequence[float] | np.ndarray, near: float | None = None) -> int:
    """Where the largest value stands, the first of equal ones."""
    return int(ranks(values, near).argmax())


def first_of_smallest(values: Sequence[float] | np.ndarray, near: float | None = None) -> int:
    """Where the smallest value stands, the first of equal ones."""
    return int(ranks(values, near).argmin())


def basis_of(projector: np.ndarray, size: int) -> np.ndarray:
    """[size, d_model] orthonormal rows that span the image of an orthogonal projector of that rank, [d_model, d_model].

    An SVD gives any such basis. This one is told by the projector alone: one axis after the other, projected, always
    the one of which most is left.
    """
    rows = np.zeros((0, len(projector)))
    for _ in range(size):
        left = projector - rows.T @ rows
        row = left[first_of_largest(left.diagonal())]
        row = row - row @ rows.T @ rows
        rows = np.concatenate([rows, (row / np.linalg.norm(row))[None]])
    return rows
