"""Answers as tables of up to four nodes of a space, packed into one number."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from trade_hf.trained.candidate import Candidate
from trade_hf.trained.columns import FEW_VALUES, Columns, is_pure
from trade_hf.trained.expression import Expression
from trade_hf.trained.program import Line, Op
from trade_hf.trained.space import FIRST_EXTRA

MOST_IN_TABLES = 240  # nodes that tables are made of
MOST_SAMPLED = 500  # answers that say which node to take next
MOST_TABLED = 4  # nodes of one table
BEAM = 6  # of them that are looked at further


class Tables:
    """Finds tables.

    Args:
      at: the nodes at the answers.

    Attributes:
      partial: nodes whose table gives most answers.
    """

    def __init__(self, at: Columns) -> None:
        self.at = at
        self.partial: list[tuple[int, ...]] = []

    def solutions(self) -> Iterator[Candidate]:
        """Tables of up to four nodes, by a beam search: right answers first, then few cells and few lines."""
        whole = [
            n for n in range(len(self.at.nodes)) if self.at.sizes[n] <= 2 * FEW_VALUES and _is_whole(self.at.found[n])
        ]
        by_purity = sorted(whole, key=lambda n: (0.01 * self.at.costs[n] - self.at.purity[n], n))[: MOST_IN_TABLES // 2]
        by_cost = sorted(whole, key=lambda n: (self.at.costs[n], -self.at.purity[n], n))[: MOST_IN_TABLES // 2]
        whole = list(dict.fromkeys([*by_purity, *by_cost]))
        few = np.random.RandomState(0).permutation(len(self.at.codes))[:MOST_SAMPLED]
        beam: list[tuple[float, tuple[int, ...]]] = [(0.0, ())]
        self.partial = []
        for _ in range(MOST_TABLED):
            grown: dict[frozenset[int], tuple[float, tuple[int, ...]]] = {}
            for _, chosen in beam:
                joint = self.at.joint(chosen)
                for node in whole:
                    if node not in chosen and frozenset((*chosen, node)) not in grown:
                        score = self._impurity(joint[few], node, few)
                        score += 0.004 * self.at.space.cost(*(self.at.nodes[n] for n in (*chosen, node)))
                        grown[frozenset((*chosen, node))] = score, (*chosen, node)
            beam = sorted(grown.values())[:BEAM]
            self.partial += [chosen for _, chosen in beam[:2] if len(chosen) > 1]
            for _, chosen in beam:
                if len(chosen) > 1 and is_pure(self.at.joint(chosen), self.at.codes, len(self.at.classes)):
                    yield from self.packed(chosen)

    def _impurity(self, joint: np.ndarray, number: int, few: np.ndarray) -> float:
        """The share of a few answers that the best table of what is joint and a node gets wrong, and its size."""
        count = len(self.at.classes)
        codes = joint * self.at.sizes[number] + self.at.coded[number][few]
        table = np.bincount(codes * count + self.at.codes[few]).astype(np.int32)
        table = np.concatenate([table, np.zeros(-len(table) % count, np.int32)]).reshape(-1, count).max(1)
        cells = np.count_nonzero(table) / max(self.at.cells.most_cells, 1)
        return 1 - table.sum() / len(few) + max(0.15 * cells, 0.0003 * np.count_nonzero(table))

    def packed(self, chosen: Sequence[int]) -> Iterator[Candidate]:
        """A table of several nodes, packed into one number first; where it is not pure, of the commonest answers."""
        extra: list[Line] = []
        code, last = self.at.found[chosen[0]], self.at.nodes[chosen[0]]
        for number in chosen[1:-1]:
            least = min(self.at.found[number].min(), 0)
            factor = int(self.at.found[number].max() - least) + 1
            text = f"{factor} * x + y"
            extra.append(Line(Op.SEQUENCE_MAP, (last, self.at.nodes[number]), Expression(text, ("x", "y"))))
            code, last = factor * code + self.at.found[number], FIRST_EXTRA - len(extra) + 1
        count = len(self.at.classes)
        keys, places = np.unique(np.stack([code, self.at.found[chosen[-1]]]), axis=1, return_inverse=True)
        votes = np.bincount(places.ravel() * count + self.at.codes, minlength=keys.shape[1] * count).reshape(-1, count)
        table = self.at.table(list(map(tuple, keys.T.tolist())), self.at.classes[votes.argmax(1)], ("x", "y"))
        if table is not None:
            extra.append(Line(Op.SEQUENCE_MAP, (last, self.at.nodes[chosen[-1]]), table))
            yield self.at.candidate(self.at.nodes[chosen[0]], tuple(extra))


def _is_whole(values: np.ndarray) -> bool:
    return bool((values == np.round(values)).all() and values.min() >= -1)
