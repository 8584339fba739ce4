"""Tracr's own directions found again where the residual stream stands in a basis that need not be orthogonal.

Lengths and angles of what is written say nothing there. What holds in any basis are the products of what one part
writes and another reads, and whether vectors are parallel or linearly independent. So directions are found in the order
in which a model writes them. What heads and the units of categorical maps write are directions as they are. Step
functions write the differences of directions, which are added up along the thresholds. A number's scale is told by its
readers, which take it as it is or with the slope of the model's steps.

`alignment.py` does the same by lengths and angles, where the basis is orthogonal, and bears noise.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from trade_hf.compiled.alignment import MOST_DIRECTIONS, MOST_ROWS, NotTracrsError, align
from trade_hf.compiled.ties import basis_of, first_of_largest, first_of_smallest, in_order
from trade_hf.compiled.transforms import all_readers, change_coordinates, residual_vectors
from trade_hf.compiled.weights import UNEMBED, TracrWeights
from trade_hf.limits import GaveUpError, Limits, Patience

SMALL = 1e-3  # of a vector's length: what is left of it where it is none of its own
NEAR = 0.1  # of a product: it is 0, 1 or, in hundreds, 100
PLAIN, HIDDEN = ("attn/key/w", "attn/value/w", UNEMBED), ("mlp/linear_1/w",)
SAME = 0.02  # of biases: they are one threshold's
DUST = 0.01  # of a product: rounding, where it should be 0 or 1
ALIKE = SMALL / 2  # of costs
DRAWN = 8  # directions that may be the pad token's
STEPS = 20_000  # for one model; nearly all take some hundred


def in_tracrs_basis(weights: TracrWeights, limits: Limits | None = None) -> Iterator[TracrWeights]:
    """The model in coordinates that may be Tracr's own, as `align` and as `straighten` find them."""
    if (aligned := align(weights)) is not weights:
        yield aligned
    if (straight := straighten(weights, limits)) is not weights:
        yield straight


def straighten(weights: TracrWeights, limits: Limits | None = None) -> TracrWeights:
    """The model in coordinates along Tracr's own directions, up to their order and to what nothing reads; the model
    itself where they are not found."""
    try:
        directions = _Directions(weights, limits).all()
        return change_coordinates(weights, np.linalg.inv(directions), directions)
    except (NotTracrsError, GaveUpError, np.linalg.LinAlgError):
        return weights


@dataclass(frozen=True)
class _Chain:
    """A step function of a number: what it writes below the first threshold, [d_model], and what it adds at each,
    [threshold, d_model]."""

    start: np.ndarray
    steps: np.ndarray

    @property
    def has_start(self) -> bool:
        return bool(np.linalg.norm(self.start) > SMALL)

    @property
    def is_straight(self) -> bool:
        """Whether all of it is along one direction."""
        return _are_parallel([row for row in (self.start, *self.steps) if np.linalg.norm(row) > SMALL])

    @property
    def is_number(self) -> bool:
        """Whether it gives numbers: there is no start, or the steps, of which there are some, are along it."""
        return not self.has_start or (self.is_straight and bool((np.linalg.norm(self.steps, axis=1) > SMALL).any()))

    @property
    def is_possible(self) -> bool:
        return self.has_start or self.is_straight

    @property
    def values(self) -> np.ndarray:
        """[threshold + 1, d_model] what it gives, from the lowest input up."""
        return np.concatenate([self.start[None], self.steps]).cumsum(0)

    @property
    def last(self) -> _Chain:
        """Its last step, from where it was."""
        return _Chain(self.start + self.steps[:-1].sum(0), self.steps[-1:])

    def with_step(self, step: np.ndarray) -> _Chain:
        return _Chain(self.start, np.concatenate([self.steps, step[None]]))


_Way = tuple[float, tuple[int, ...], list[_Chain]]  # what it costs, the starts that it takes, and the step functions


class _Directions:
    """The directions found so far.

    Attributes:
      vectors: as `residual_vectors`.
      found: [direction, d_model], tokens in the order of the vocabulary first.
      span: [d_model, direction] orthonormal columns that make up the same.
      plain, hidden: [d_model, reader] of those that read a number as it is and a value as 0 or 1; of hidden units.
    """

    def __init__(self, weights: TracrWeights, limits: Limits | None = None) -> None:
        self.vectors = vectors = residual_vectors(weights)
        if weights.d_model > MOST_DIRECTIONS or sum(map(len, vectors.values())) > MOST_ROWS:
            raise NotTracrsError
        self.weights, self.patience = weights, Patience(STEPS, limits)
        self.readers = all_readers(vectors).T
        self.plain, self.hidden = (
            np.concatenate([some for name, some in vectors.items() if name.endswith(kind)]).T
            for kind in (PLAIN, HIDDEN)
        )
        self.tokens, self.positions = (vectors[f"{name}_embed/embeddings"] for name in ("token", "pos"))
        self.pad = self.tokens[weights.vocab.index(weights.pad)]
        self.found, self.span = np.zeros((0, weights.d_model)), np.zeros((weights.d_model, 0))

    def all(self) -> np.ndarray:
        """[d_model, d_model] invertible. Raises NotTracrsError, GaveUpError."""
        unread = self.unread()
        self.add_inputs(unread)
        for layer in range(self.weights.num_layers):
            self.add_heads(layer)
            self.add_hidden(layer)
        self.add(unread.T)  # nothing is written there
        outside = np.eye(self.weights.d_model) - self.span @ self.span.T
        self.add(basis_of(outside, self.weights.d_model - len(self.found)))
        if len(self.found) != self.weights.d_model:
            raise NotTracrsError
        return self.found

    def add_inputs(self, unread: np.ndarray) -> None:
        """Tokens, the constant if there is one, and positions. Nothing reads the pad token: its own direction is one of
        those that nothing reads, and what its embedding holds beside it is the constant."""
        tokens, constant = self.tokens, np.zeros_like(self.pad)
        if np.abs(self.pad @ self.readers).max() > NEAR:
            constant = self.pad - self._own_of_pad(unread)
        self.add(tokens - constant)
        if len(self.found) != len(tokens):  # a token's number is that of its direction
            raise NotTracrsError
        self.add(self.positions[1:])
        before = len(self.found)
        self.add(constant[None])
        self.constant = slice(before, len(self.found))

    def _own_of_pad(self, unread: np.ndarray) -> np.ndarray:
        """[d_model] what may be the pad token's own direction. Any that nothing reads will do, as long as others do not
        make it up; of some that are drawn at random, the one that is furthest from that."""
        others = np.concatenate([self.tokens - self.pad, self.positions[1:]])
        known, sizes, _ = np.linalg.svd(others.T, full_matrices=False)
        known = known[:, sizes > SMALL * sizes[0]]
        drawn = np.random.RandomState(0).standard_normal((DRAWN, unread.shape[1])) @ unread.T

        def apart(rows: np.ndarray) -> np.ndarray:
            left = rows - rows @ known @ known.T
            return np.linalg.norm(left, axis=1) / np.linalg.norm(rows, axis=1)

        return drawn[first_of_largest(np.minimum(apart(drawn), apart(self.pad - drawn)))]

    def unread(self) -> np.ndarray:
        """[d_model, number] orthonormal columns: all that no reader sees."""
        readers = self.readers / np.maximum(np.linalg.norm(self.readers, axis=0), 1e-9)
        squares, directions = np.linalg.eigh(readers @ readers.T)
        unread = directions[:, squares < SMALL**2 * squares[-1]]
        if not unread.shape[1]:
            raise NotTracrsError
        return basis_of(unread @ unread.T, unread.shape[1]).T

    def add(self, rows: np.ndarray) -> None:
        """Directions, but for those that the known ones make up."""
        left, lengths = self.left_of(rows), np.linalg.norm(rows, axis=1)
        for row, length in enumerate(lengths):
            self.patience()
            if np.linalg.norm(left[row]) > SMALL * length:
                column = left[row] / np.linalg.norm(left[row])
                left -= np.outer(left @ column, column)
                self.found = np.concatenate([self.found, rows[[row]]])
                self.span = np.concatenate([self.span, column[:, None]], 1)

    def left_of(self, rows: np.ndarray) -> np.ndarray:
        """Of each row what is at right angles to all known directions."""
        left = rows - rows @ self.span @ self.span.T
        return left - left @ self.span @ self.span.T

    def add_heads(self, layer: int) -> None:
        reads, written = (self.vectors[f"transformer/layer_{layer}/attn/{name}/w"] for name in ("value", "linear"))
        self.add(written[np.linalg.norm(reads, axis=1) > SMALL])

    def add_hidden(self, layer: int) -> None:
        """What hidden units write. Those of step functions read a number with the slope, or the constant alone; one
        takes back what stands at BOS."""
        first, second = (self.vectors[f"transformer/layer_{layer}/mlp/linear_{i}/w"] for i in (1, 2))
        biases, reads = first @ self.pad, first @ self.found.T
        reads[:, self.constant] = 0
        strongest = (np.abs(reads) > np.abs(reads).max(1, keepdims=True) - NEAR).argmax(1)
        is_step = np.abs(reads[np.arange(len(reads)), strongest] / self.weights.exactness - 1) < NEAR
        is_start = (np.abs(biases - 1) < NEAR) & (np.abs(reads).max(1) < NEAR)
        is_own = ~is_step & ~is_start & (np.abs(reads[:, self.weights.vocab.index(self.weights.bos)]) < NEAR)
        is_linear = is_own & np.isin(strongest, strongest[is_own & _takes_away(reads)]) & (np.abs(biases) < NEAR)
        self.add(second[is_own & ~is_linear])
        self.add(np.array([row / self.scale(row) for row in second[is_linear]]).reshape(-1, len(self.span)))
        sources = sorted(set(strongest[is_step].tolist()))
        groups = [_thresholds(biases, second, np.flatnonzero(is_step & (strongest == source))) for source in sources]
        for chain in self.shared_out([row for row in second[is_start] if np.any(row)], groups):
            self.add_chain(chain)
        if (np.linalg.norm(self.left_of(second), axis=1) > 10 * SMALL * np.linalg.norm(second, axis=1)).any():
            raise NotTracrsError

    def add_chain(self, chain: _Chain) -> None:
        if chain.is_number:
            rows = np.stack([chain.start, *chain.steps])
            row = rows[first_of_largest(np.linalg.norm(rows, axis=1))]
            self.add((row / self.scale(row))[None])
        else:
            self.add(chain.values)

    def shared_out(self, starts: list[np.ndarray], groups: list[np.ndarray]) -> list[_Chain]:
        """Starts and steps of a layer as step functions, shared out so that what these give is read as values are. A
        number that is 0 at first has no start."""
        missing = sum(steps.shape[1] for steps in groups) - len(starts)
        if missing < 0:
            raise NotTracrsError
        starts = [*starts, *[np.zeros(len(self.span))] * missing]
        ways = []
        for steps in groups:
            chosen: Iterator[tuple[int, ...]] = itertools.permutations(range(len(starts)), steps.shape[1])
            found = [(some, self.chains([starts[i] for i in some], steps)) for some in chosen]
            costs = [self.cost(chains) for _, chains in found]
            ways.append([(costs[i], *found[i]) for i in in_order(costs, ALIKE)])
        return self.cheapest(ways, frozenset())[1]

    def cheapest(self, ways: list[list[_Way]], taken: frozenset[int]) -> tuple[float, list[_Chain]]:
        """Of each number's functions one way, so that none takes a start that another has, and what it costs."""
        if not ways:
            return 0.0, []
        best: tuple[float, list[_Chain]] = math.inf, []
        for cost, starts, chains in ways[0]:
            self.patience()
            if cost < best[0] - ALIKE and not taken & {*starts}:
                more, others = self.cheapest(ways[1:], taken | {*starts})
                if cost + more < best[0] - ALIKE:
                    best = cost + more, chains + others
        return best

    def chains(self, starts: list[np.ndarray], steps: np.ndarray) -> list[_Chain]:
        """The step functions of one number that go from these starts: at each threshold the steps that fit best."""
        chains = [_Chain(start, steps[:0, 0]) for start in starts]
        for some in steps:
            orders = itertools.permutations(some)
            ways = [[c.with_step(step) for c, step in zip(chains, order, strict=True)] for order in orders]
            chains = ways[first_of_smallest([self.cost([chain.last for chain in way]) for way in ways], ALIKE)]
        return chains

    def cost(self, chains: list[_Chain]) -> float:
        """How far values are from being read as values are: as 0 or 1 or by heads as 100 times it, by none with a
        product below 0, by no hidden unit with the slope. A number without a start costs a little."""
        self.patience()
        if not all(chain.is_possible for chain in chains):
            return math.inf
        values = np.concatenate([np.zeros((0, len(self.span))), *(c.values for c in chains if not c.is_number)])
        plain, sloped = values @ self.plain, np.abs(values @ self.hidden) > self.weights.exactness / 2
        off = np.minimum(np.abs(plain), np.abs(plain - 1))
        below = -np.clip(values @ self.readers, -1, 0)
        bare = sum(not chain.has_start for chain in chains)
        return float(off[off > DUST].sum() + sloped.sum() + below[below > DUST].sum() + SMALL * bare)

    def scale(self, row: np.ndarray) -> float:
        """How many times a number's direction a row is, from what reads it: as it is, or times
        the slope where it is compared with thresholds. 1 where nothing does."""
        plain, hidden = (_nonzero(row @ readers) for readers in (self.plain, self.hidden))
        sizes = np.abs(np.concatenate([plain, hidden]))
        if not len(sizes):
            return 1.0
        is_read_as_it_is = len(plain) or ((hidden > 0).any() and (hidden < 0).any())
        size = float(sizes.min()) if is_read_as_it_is else float(np.median(sizes)) / self.weights.exactness
        return -size if plain.sum() + hidden.sum() < -NEAR else size


def _takes_away(reads: np.ndarray) -> np.ndarray:
    """Units that read one thing alone, with -1, as one of the two of a linear map does."""
    return (np.abs(reads.min(1) + 1) < NEAR) & ((np.abs(reads) > NEAR).sum(1) == 1)


def _thresholds(biases: np.ndarray, second: np.ndarray, units: np.ndarray) -> np.ndarray:
    """[threshold, function, d_model] what the step functions of one number add. Two units of each stand at a threshold:
    the upper one writes the step, the lower one, whose bias is 1 less, takes it back."""
    left = units[in_order(-biases[units], SAME)].tolist()
    found: list[tuple[float, list[np.ndarray]]] = []
    while left:
        upper = left.pop(0)
        lower = [
            unit
            for unit in left
            if abs(biases[upper] - biases[unit] - 1) < SAME
            and np.linalg.norm(second[upper] + second[unit]) <= SMALL * np.linalg.norm(second[upper])
        ]
        if not lower:
            raise NotTracrsError
        left.remove(lower[0])
        if found and abs(found[-1][0] - biases[upper]) < SAME:
            found[-1][1].append(second[upper])
        else:
            found.append((biases[upper], [second[upper]]))
    if len({len(steps) for _, steps in found}) > 1:
        raise NotTracrsError
    return np.stack([np.stack(steps) for _, steps in found])


def _nonzero(products: np.ndarray) -> np.ndarray:
    return products[np.abs(products) > SMALL * np.abs(products).max(initial=1.0)]


def _are_parallel(rows: list[np.ndarray]) -> bool:
    if not rows:
        return True
    along = rows[0] / np.linalg.norm(rows[0])
    return all(np.linalg.norm(row - (row @ along) * along) < SMALL * np.linalg.norm(row) for row in rows)
