"""The last lines of a program: the answers as a function of nodes that are known.

Tried in turn: a node itself, a named function of one or two nodes, a list of rules (`3 if x == 2 else …`), for sets a
union, and tables. What is shorter is better: lines, and a part of a line for each table cell.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from trade_hf.trained.candidate import Candidate, Cells
from trade_hf.trained.columns import FEW_VALUES, Columns, is_pure
from trade_hf.trained.expression import Expression
from trade_hf.trained.names import named_binary, named_unary
from trade_hf.trained.program import Line, Op
from trade_hf.trained.rules import Rules
from trade_hf.trained.space import FIRST_EXTRA, Node, Space
from trade_hf.trained.tables import Tables

MOST_PAIRED = 140  # nodes of which all pairs are tried
MOST_REDUCED = 400  # nodes of which sums are taken modulo the number of answers
MOST_STAIRS = 9  # answers that are told apart by thresholds of one number


class Solver:
    """Finds what last lines give the answers from the nodes of a space.

    Args:
      space: the nodes.
      cells: the answers on the space's sample.
    """

    def __init__(self, space: Space, cells: Cells) -> None:
        self.cells, self.at = cells, Columns(space, cells)
        self.by_rules, self.by_tables = Rules(self.at), Tables(self.at)
        self._tried: set[tuple[int, int]] = set()

    def solutions(self, nodes: Sequence[Node]) -> Iterator[Candidate]:
        """Programs that give all answers of the sample, from the nodes so far and new ones."""
        yield from self.add(nodes)
        yield from self.sums()
        yield from self.pairs()
        yield from self.by_rules.rules()
        if self.cells.are_sets:
            yield from self.by_rules.unions()
        yield from self.by_tables.solutions()

    # ------------------------------------------------------------ one node

    def add(self, nodes: Sequence[Node]) -> Iterator[Candidate]:
        """Takes new nodes; gives the candidates that are a function of one of them."""
        new = self.at.add(nodes)
        for number in new:
            if self.at.purity[number] == 1:
                yield from self.unary(number, *self.at.best_answers(number))
        self.by_rules.add(new)

    def unary(self, number: int, values: np.ndarray, answers: np.ndarray) -> Iterator[Candidate]:
        node = self.at.nodes[number]
        if not self.cells.are_sets and np.array_equal(values, answers):
            yield self.at.candidate(node, ())
            return
        name = named_unary(values, answers, self.cells)
        if name is not None:
            yield self.at.candidate(node, (Line(Op.MAP, (node,), Expression(name, ("x",))),))
            return
        changes = np.flatnonzero(np.diff(answers))
        if len(changes) + 1 == len(self.at.classes) < MOST_STAIRS:
            yield self.stairs(node, (values[changes] + values[changes + 1]) / 2, answers[np.append(changes, -1)])
        if table := self.at.table(values.tolist(), answers, ("x",)):
            yield self.at.candidate(node, (Line(Op.MAP, (node,), table),))

    def stairs(self, node: Node, thresholds: np.ndarray, answers: np.ndarray) -> Candidate:
        """The candidate whose answers rise or fall with a number, from one threshold to the next."""
        shown = [self.cells.shown(answer) for answer in answers]
        extra = [Line(Op.MAP, (node,), Expression(f"{shown[1]} if x >= {thresholds[0]:g} else {shown[0]}", ("x",)))]
        for threshold, answer in zip(thresholds[1:], shown[2:], strict=True):
            text = f"{answer} if x >= {threshold:g} else y"
            last = FIRST_EXTRA - len(extra) + 1
            extra.append(Line(Op.SEQUENCE_MAP, (node, last), Expression(text, ("x", "y"))))
        return self.at.candidate(node, tuple(extra))

    # ------------------------------------------------------------ two nodes

    def sums(self) -> Iterator[Candidate]:
        """Sums and differences of any two nodes: what is missing from one is looked up among all, by a hash."""
        if self.cells.are_sets:
            return
        aim, everything = self.at.hash(self.cells.answers), np.arange(len(self.at.nodes))
        yield from self._looked_up("x + y", everything, self.at.hashes, aim - self.at.hashes, lambda x, y: x + y)
        yield from self._looked_up("x - y", everything, self.at.hashes, self.at.hashes - aim, lambda x, y: x - y)
        modulus = int(self.cells.answers.max()) + 1
        if modulus > 2:
            chosen = np.argsort(self.at.costs, kind="stable")[:MOST_REDUCED]
            rest = self.at.found[chosen] % modulus
            wanted = self.at.hash((self.cells.answers - rest) % modulus)
            text = f"(x + y) % {modulus}"
            yield from self._looked_up(text, chosen, self.at.hash(rest), wanted, lambda x, y: (x + y) % modulus)
            wanted = self.at.hash((rest - self.cells.answers) % modulus)
            text = f"(x - y) % {modulus}"
            yield from self._looked_up(text, chosen, self.at.hash(rest), wanted, lambda x, y: (x - y) % modulus)

    def _looked_up(
        self, text: str, nodes: np.ndarray, known: np.ndarray, wanted: np.ndarray, function: Callable
    ) -> Iterator[Candidate]:
        """Pairs of nodes, the hash of the second of which is the one that the first one wants."""
        known, wanted = known.round(2), wanted.round(2)
        order = np.argsort(known, kind="stable")
        place = np.minimum(np.searchsorted(known[order], wanted), len(order) - 1)
        for first in np.flatnonzero(known[order][place] == wanted):
            one, other = int(nodes[first]), int(nodes[order[place[first]]])
            if np.array_equal(function(self.at.found[one], self.at.found[other]), self.cells.answers):
                yield self.binary(text, one, other)

    def binary(self, text: str, first: int, second: int) -> Candidate:
        args = (self.at.nodes[first], self.at.nodes[second])
        return self.at.candidate(args[0], (Line(Op.SEQUENCE_MAP, args, Expression(text, ("x", "y"))),))

    def paired(self) -> list[int]:
        """Nodes of which all pairs are tried: those that say most about the answer, and the cheapest."""
        by_purity = np.argsort(self.at.costs * 0.01 - self.at.purity, kind="stable")[: MOST_PAIRED // 2]
        by_cost = np.argsort(self.at.costs, kind="stable")[: MOST_PAIRED // 2]
        chosen = dict.fromkeys([*by_purity.tolist(), *by_cost.tolist()])
        return [number for number in chosen if self.at.sizes[number] <= 4 * FEW_VALUES]

    def pairs(self) -> Iterator[Candidate]:
        count, few = len(self.at.classes), min(64, len(self.at.codes))
        chosen = self.paired()
        for first, second in itertools.combinations(sorted(chosen), 2):
            if (first, second) in self._tried:
                continue
            self._tried.add((first, second))
            size = self.at.sizes[second]
            joint = self.at.coded[first] * size + self.at.coded[second]
            # A few answers first: most pairs fail on them.
            if not is_pure(joint[:few], self.at.codes[:few], count, self.at.sizes[first] * size):
                continue
            if not is_pure(joint, self.at.codes, count, self.at.sizes[first] * size):
                continue
            if self.at.space.cost(self.at.nodes[first], self.at.nodes[second]) + 1 >= self.at.bound:
                continue
            _, where = np.unique(joint, return_index=True)
            x, y, answers = self.at.found[first][where], self.at.found[second][where], self.cells.answers[where]
            name = named_binary(x, y, answers, self.cells)
            if name is not None:
                yield self.binary(name, first, second)
            elif table := self.at.table(list(zip(x.tolist(), y.tolist(), strict=True)), answers, ("x", "y")):
                args = (self.at.nodes[first], self.at.nodes[second])
                yield self.at.candidate(args[0], (Line(Op.SEQUENCE_MAP, args, table),))

    def nearest(self) -> Iterator[Candidate]:
        """Programs that give most answers of the sample: functions and tables of one node, and the commonest answer."""
        for number in np.argsort(0.002 * self.at.costs - self.at.purity, kind="stable")[:20].tolist():
            yield from self.unary(number, *self.at.best_answers(number))
        for chosen in self.by_tables.partial:
            yield from self.by_tables.packed(chosen)
        commonest = np.full(1, self.at.classes[np.bincount(self.at.codes).argmax()])
        yield from self.unary(0, np.unique(self.at.found[0])[:1], commonest)
