"""Step functions of numbers: which starts and steps belong together, so that what they give is read as values are."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from trade_hf.circuit.ties import first_of_smallest, in_order
from trade_hf.limits import Patience

SMALL = 1e-3  # of a vector's length: vectors that are no further apart are one
NEAR = 0.1  # of how far a threshold's units are apart
DUST = 0.02  # of a product: rounding, where it should be 0 or 1
ALIKE = SMALL / 2  # of costs


@dataclass(frozen=True)
class Piece:
    """What a unit adds: the start of a step function, or one of its steps.

    Attributes:
      unit: its number; -1 for nothing at all.
      vector: [d_model] what is added.
      as_value, as_number: [product] what is read of it in the end, by what reads values and by what reads numbers.
    """

    unit: int
    vector: np.ndarray
    as_value: np.ndarray
    as_number: np.ndarray

    @property
    def nothing(self) -> Piece:
        """One that adds nothing."""
        return Piece(-1, 0 * self.vector, 0 * self.as_value, 0 * self.as_number)


@dataclass(frozen=True)
class Chain:
    """A step function: what it gives below the first threshold, and what it adds at each."""

    start: Piece
    steps: tuple[Piece, ...] = ()

    @property
    def vectors(self) -> np.ndarray:
        """[piece, d_model]"""
        return np.stack([self.start.vector, *(step.vector for step in self.steps)])

    @property
    def has_start(self) -> bool:
        return bool(np.any(self.start.vector))

    @property
    def is_number(self) -> bool:
        """Whether it gives numbers: there is no start, or the steps, of which there are some, are along it."""
        return not self.has_start or (self.is_straight and bool(np.any(self.vectors[1:])))

    @property
    def is_straight(self) -> bool:
        """Whether all of it is along one direction."""
        return are_parallel(self.vectors)

    @property
    def is_even(self) -> bool:
        """Whether all steps are one, as where selected keys are counted."""
        steps = self.vectors[1:]
        return bool(np.abs(steps - steps.mean(0)).max(initial=0) <= NEAR * np.abs(steps).max(initial=0))

    @property
    def is_possible(self) -> bool:
        return self.has_start or self.is_straight

    @property
    def values(self) -> np.ndarray:
        """[threshold + 1, d_model] what it gives, from the lowest input up."""
        return self.vectors.cumsum(0)

    def read(self, name: str) -> np.ndarray:
        """[threshold + 1, product] what is read of its values."""
        return np.stack([getattr(piece, name) for piece in (self.start, *self.steps)]).cumsum(0)

    @property
    def is_read_as_value(self) -> bool:
        """Whether what reads values reads any of what it gives, besides rounding."""
        return bool((np.abs(self.read("as_value")) > DUST).any())


def pair_up(begins: np.ndarray, writes: np.ndarray) -> tuple[list[tuple[int, int]], float]:
    """The upper and the lower unit of each threshold of a number, and how far the number goes from where the first
    begins to where the second does, which is the same for all thresholds.

    Args:
      begins: [unit] biases, for units that read the number once.
      writes: [unit, d_model] what these write.
    """
    lengths = np.linalg.norm(writes, axis=1)
    apart = np.linalg.norm(writes[:, None] + writes, axis=2) if len(writes) else np.zeros((0, 0))
    opposite = apart <= 10 * SMALL * np.maximum(lengths[:, None], lengths)
    order = in_order(-begins, 0.0)
    best: list[tuple[int, int]] = []
    for number, first in enumerate(order):
        if 2 * len(best) >= len(order) - number:
            break
        rises = sorted(
            {float(begins[first] - begins[unit]) for unit in order[number:] if opposite[first, unit]} - {0.0}
        )
        for rise in rises:
            pairs = _pairs_of(rise, order[number:], begins, opposite)
            best = max(best, pairs, key=len)
            if 2 * len(best) == len(order) - number:
                break
    rise = float(np.median([begins[upper] - begins[lower] for upper, lower in best])) if best else 0.0
    return best, rise


def _pairs_of(rise: float, order: list[int], begins: np.ndarray, opposite: np.ndarray) -> list[tuple[int, int]]:
    """Pairs of units that are so far apart, and write the opposite."""
    left = np.ones(len(begins), bool)
    pairs = []
    for upper in order:
        if not left[upper]:
            continue
        off = np.where(left & opposite[upper], np.abs(begins[upper] - begins - rise), np.inf)
        lower = int(off.argmin())
        if off[lower] < NEAR * rise:
            left[[upper, lower]] = False
            pairs.append((upper, lower))
    return pairs


_Way = tuple[float, tuple[int, ...], list[Chain]]  # what it costs, the starts that it takes, and the step functions


def share_out(starts: list[Piece], groups: list[list[list[Piece]]], patience: Patience) -> list[Chain]:
    """Starts and steps of a layer as step functions, those of each number in `groups` [number][threshold][function];
    they are shared out so that what the functions give is read as values are. A number that is 0 at first has no start:
    the last function may be without.
    """
    missing = sum(len(steps[0]) for steps in groups) - len(starts)
    if groups and missing > 0:
        starts = [*starts, *[groups[0][0][0].nothing] * missing]
    ways = []
    for steps in groups:
        chosen: Iterator[tuple[int, ...]] = itertools.permutations(range(len(starts)), len(steps[0]))
        found = [(some, _chains([starts[i] for i in some], steps, patience)) for some in chosen]
        costs = [_cost(chains, patience) for _, chains in found]
        ways.append([(costs[i], *found[i]) for i in in_order(costs, ALIKE)])
    return _cheapest(ways, frozenset(), patience)[1]


def _cheapest(ways: list[list[_Way]], taken: frozenset[int], patience: Patience) -> tuple[float, list[Chain]]:
    """Of each number's functions one way, so that none takes a start that another has, and what it costs."""
    if not ways:
        return 0.0, []
    best: tuple[float, list[Chain]] = math.inf, []
    for cost, starts, chains in ways[0]:
        patience()
        if cost < best[0] - ALIKE and not taken & {*starts}:
            more, others = _cheapest(ways[1:], taken | {*starts}, patience)
            if cost + more < best[0] - ALIKE:
                best = cost + more, chains + others
    return best


def _chains(starts: list[Piece], steps: list[list[Piece]], patience: Patience) -> list[Chain]:
    """The step functions of one number that go from these starts: at each threshold the steps that fit best."""
    chains = [Chain(start) for start in starts]
    for some in steps:
        orders = itertools.permutations(some)
        ways = [[Chain(c.start, (*c.steps, step)) for c, step in zip(chains, order, strict=True)] for order in orders]
        chains = ways[first_of_smallest([_cost(way, patience, is_last=True) for way in ways], ALIKE)]
    return chains


def _cost(chains: list[Chain], patience: Patience, is_last: bool = False) -> float:
    """How far values are from being read as 0 or 1 by what reads values, and not at all by what reads numbers. A number
    without a start costs a little. With `is_last` the last value of each alone is looked at."""
    patience()
    if not all(chain.is_possible for chain in chains):
        return math.inf
    cost = SMALL * sum(not chain.has_start for chain in chains)
    for chain in chains:
        if not chain.is_number:
            read, number = chain.read("as_value"), chain.read("as_number")
            if is_last:
                read, number = read[-1:], number[-1:]
            off = np.minimum(np.abs(read), np.abs(read - 1))
            cost += off[off > DUST].sum() + (np.abs(number) > DUST).sum()
    return float(cost)


def are_parallel(rows: np.ndarray) -> bool:
    """Whether all rows that are not zero go along one line."""
    lengths = np.linalg.norm(rows, axis=1)
    rows, lengths = rows[lengths > 0], lengths[lengths > 0]
    if len(rows) < 2:
        return True
    along = rows[lengths.argmax()] / lengths.max()
    left = rows - np.outer(rows @ along, along)
    return bool((np.linalg.norm(left, axis=1) < SMALL * lengths).all())
