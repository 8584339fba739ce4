"""In which order a search's s-ops are made: cheap ones first, and of later ones those that the model holds."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from trade_hf.rasp.program import INDICES, TOKENS
from trade_hf.trained.evidence import Evidence
from trade_hf.trained.grow import Grower
from trade_hf.trained.space import Kind, Node, Space

ROUNDS = ((6, 16), (12, 40), (24, 80), (48, 160))  # how many s-ops something is built on: of one kind, of all
HELD_IN_LINES = 4  # by how many lines an s-op that the model holds fully comes before one that it does not hold
MOST_TESTED = 6  # tests of how often a token occurs


class Rounds:
    """Grows a space, part by part.

    Args:
      space, grower: the nodes, and what adds some.
      evidence: what the model holds, on the first inputs of the space.
    """

    def __init__(self, space: Space, grower: Grower, evidence: Evidence) -> None:
        self.space, self.grower, self.evidence = space, grower, evidence
        self._gains: dict[Node, float] = {}

    def steps(self) -> Iterator[str]:
        """Adds nodes; yields after each part of a round."""
        grow = self.grower
        inputs = list(dict.fromkeys([TOKENS, grow.low]))
        grow.begin()
        yield "tokens and positions"
        yield from self._first_round(inputs)
        for number, (few, many) in enumerate(ROUNDS):
            numbers = self.pool(2 * few, Kind.NUMBER, Kind.POSITION)
            grow.alike(numbers[:few])
            grow.tests(numbers)
            yield f"round {number + 2}, like with like"
            grow.across(numbers, [TOKENS, *numbers[:few]])
            grow.shifts(self.pool(few, Kind.NUMBER, Kind.TOKEN, Kind.TRUTH))
            grow.comparisons([*inputs, *self.pool(few, Kind.TOKEN)])
            grow.comparisons([INDICES, *self.pool(2 * few, Kind.NUMBER, Kind.POSITION)])
            yield f"round {number + 2}, comparisons"
            grow.truths(self.pool(many, Kind.TRUTH))
            grow.tests(self.pool(many, Kind.NUMBER))
            yield f"round {number + 2}, where something holds"
            grow.scores(self.pool(few, Kind.NUMBER, Kind.TRUTH))
            grow.joined(self.pool(few, Kind.NUMBER))
            yield f"round {number + 2}, orders"

    def _first_round(self, inputs: list[Node]) -> Iterator[str]:
        """What is made of tokens, of positions, and of how often a token occurs."""
        grow = self.grower
        grow.alike(inputs)
        grow.scores([*inputs, INDICES])
        grow.joined(grow.occurrences)
        yield "round 1, orders"
        grow.truths(grow.tests(grow.occurrences)[:MOST_TESTED])
        neighbours = grow.shifts([TOKENS])
        grow.comparisons([*inputs, *neighbours])
        grow.comparisons([INDICES, *grow.occurrences, *grow.lengths])
        grow.shifts([*grow.occurrences, *neighbours])
        grow.across([*grow.occurrences, *grow.lengths], inputs)
        yield "round 1, comparisons"
        grow.alike(grow.occurrences)
        grow.scores(grow.occurrences)
        yield "round 1, how often tokens occur"
        grow.truths(grow.holding)
        grow.truths(self.pool(60, Kind.TRUTH))
        grow.truths(grow.grams())
        yield "round 1, where something holds"

    def pool(self, most: int, *kinds: Kind) -> list[Node]:
        """S-ops of these kinds, the cheap ones and those that the model holds first; none that follow from the token
        and the position here."""
        nodes = [n for n, kind in self.space.kinds.items() if kind in kinds]
        self._weigh(nodes)
        nodes = [n for n in nodes if not np.isnan(self._gains[n])]
        return sorted(nodes, key=lambda n: (self.space.cost(n) - HELD_IN_LINES * self._gains[n], n))[:most]

    def _weigh(self, nodes: list[Node]) -> None:
        new = [n for n in nodes if n not in self._gains]
        for start in range(0, len(new), 500):
            part = new[start : start + 500]
            gains = self.evidence.gain(np.stack([self.space.values[n][: len(self.evidence.is_token)] for n in part]))
            self._gains.update(zip(part, gains.tolist(), strict=True))
