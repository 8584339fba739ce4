"""Which part of the residual stream holds a value: projections by regression, and learned by exchanging what they hold.

A projection P takes [d_model] rows to their part in a subspace, along another one: `x @ P`. The two need not be
orthogonal, since nothing in a model says which directions of its stream are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch

MOST_DIRECTIONS = 8  # of the subspace of one value
MOST_CLASSES = 32  # of values that are told apart
RIDGE = 1e-4  # of the stream's variance, added where a map from it is fitted
SMALLEST = 1e-9  # mean square of a stream that varies
STEPS = 40  # of learning
RATE = 0.03

Loss = Callable[[Sequence[torch.Tensor]], torch.Tensor]


def fitted(stream: np.ndarray, values: np.ndarray, groups: np.ndarray) -> Iterator[np.ndarray]:
    """[d_model, d_model] projections, three kinds: to the directions in which the stream's means differ with a value,
    orthogonal ones; to those from which a linear map reads it, likewise; and to the first, as the map reads them.

    What follows from the group alone is taken off first, unless the value itself follows from it.

    Args:
      stream: [cell, d_model].
      values: [cell] of an s-op.
      groups: [cell] the token and the position, as a number.
    """
    classes, codes = np.unique(values, return_inverse=True)
    if len(classes) > MOST_CLASSES:  # as many groups of values, each of its neighbours in order
        codes = codes * MOST_CLASSES // len(classes)
    indicators = np.eye(codes.max() + 1)[codes]
    whole, indicators = stream - stream.mean(0, dtype=np.float64), indicators - indicators.mean(0)
    within, rest = _less_means(whole, groups), _less_means(indicators, groups)
    if np.square(rest).sum() <= 0.01 * np.square(indicators).sum():
        within, rest = whole, indicators
    if np.square(within).sum() < SMALLEST * len(within):  # nothing varies here with the value
        return
    writes = _principal(rest @ np.linalg.lstsq(rest, within, rcond=1e-6)[0])
    yield writes @ writes.T
    reads = _principal((_map(within, rest) @ rest.T).T)
    yield reads @ reads.T
    reads = _principal((_map(whole, indicators) @ indicators.T).T)
    count = min(reads.shape[1], writes.shape[1])
    yield oblique(torch.tensor(reads[:, :count]), torch.tensor(writes[:, :count])).numpy()


def oblique(reads: torch.Tensor, writes: torch.Tensor) -> torch.Tensor:
    """The projection to what `writes` span, along what `reads` do not see; both [d_model, direction]."""
    count = reads.shape[1]
    return reads @ torch.linalg.solve(writes.T @ reads + 1e-6 * torch.eye(count, dtype=reads.dtype), writes.T)


def learned(starts: Sequence[np.ndarray], loss: Loss) -> tuple[np.ndarray, ...]:
    """Projections at some places at once that make a loss small, from `starts` on (as in arXiv:2303.02536, but that
    they need not be orthogonal).

    Args:
      starts: of each place, a projection.
      loss: of projections.
    """
    pairs = []
    for start in starts:
        left, sizes, right = np.linalg.svd(start)
        count = max(1, int((sizes > 1e-3 * sizes.max()).sum()))
        parts = (left[:, :count], right[:count].T)
        pairs.append([torch.tensor(part, dtype=torch.float32, requires_grad=True) for part in parts])
    optimizer = torch.optim.Adam([part for pair in pairs for part in pair], lr=RATE)
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss([oblique(*pair) for pair in pairs]).backward()
        optimizer.step()
    return tuple(oblique(*pair).detach().numpy() for pair in pairs)


def _map(stream: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """[d_model, column] the linear map that gives what is wanted, regularised a little."""
    moments = stream.T @ stream
    moments += RIDGE * np.trace(moments) / len(moments) * np.eye(len(moments))
    return np.asarray(np.linalg.solve(moments, stream.T @ wanted))


def _principal(rows: np.ndarray) -> np.ndarray:
    """[d_model, direction] the directions in which [row, d_model] vectors are large."""
    _, sizes, directions = np.linalg.svd(rows, full_matrices=False)
    return directions[: max(1, min(MOST_DIRECTIONS, int((sizes > 0.02 * sizes.max()).sum())))].T


def _less_means(rows: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Rows less the mean of their group."""
    means = np.zeros((groups.max() + 1, rows.shape[1]))
    np.add.at(means, groups, rows)
    return rows - (means / np.maximum(np.bincount(groups), 1)[:, None])[groups]
