"""The nodes of a space at the answers of a sample, in the forms in which many are held against the answers at once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from trade_hf.trained.candidate import CELLS_PER_LINE, Candidate, Cells
from trade_hf.trained.expression import Table, to_set
from trade_hf.trained.program import Line
from trade_hf.trained.space import FIRST_EXTRA, Node, Space

FEW_VALUES = 40  # of a node that tests are made of


class Columns:
    """Nodes at the answers; a node's number is its place in `nodes`.

    Args:
      space: the nodes.
      cells: the answers on the space's sample.

    Attributes:
      classes, codes: the distinct answers, and which of them each answer is.
      found: [node, answer] values.
      costs, purity: [node] lines that it takes; the share of answers that its best table gives.
      coded, sizes: of each node, which of its distinct values stands at each answer, and how many it has.
      hashes: [node] a hash of its values that is linear in them.
      bound: description length of the best candidate so far.
    """

    def __init__(self, space: Space, cells: Cells) -> None:
        self.space, self.cells = space, cells
        self.classes, self.codes = np.unique(cells.answers, return_inverse=True)
        self.nodes: list[Node] = []
        self.found = np.zeros((0, len(self.codes)))
        self.hashes = np.zeros(0)
        self.costs = np.zeros(0, int)
        self.purity = np.zeros(0)
        self.coded: list[np.ndarray] = []
        self.sizes: list[int] = []
        self.bound = np.inf
        # Whole numbers up to 2 ** 20: sums of their products with whole numbers are exact.
        self._hash = np.random.RandomState(0).randint(1, 2**20, len(self.codes)).astype(np.float64)

    def add(self, nodes: Sequence[Node]) -> range:
        """Takes nodes that are new; gives their numbers."""
        known = set(self.nodes)
        nodes = [node for node in nodes if node not in known]
        first, count = len(self.nodes), len(self.classes)
        if not nodes:
            return range(first, first)
        found = np.stack([self.space.values[node][self.cells.rows, self.cells.places] for node in nodes])
        self.nodes += nodes
        self.found = np.concatenate([self.found, found])
        self.hashes = np.concatenate([self.hashes, self.hash(found)])
        self.costs = np.concatenate([self.costs, [self.space.cost(node) for node in nodes]])
        purity = np.zeros(len(nodes))
        for number, row in enumerate(found):
            values, codes = np.unique(row, return_inverse=True)
            self.coded.append(codes)
            self.sizes.append(len(values))
            table = np.bincount(codes * count + self.codes, minlength=len(values) * count).reshape(-1, count)
            purity[number] = table.max(1).sum() / len(codes)
        self.purity = np.concatenate([self.purity, purity])
        return range(first, len(self.nodes))

    def hash(self, found: np.ndarray) -> np.ndarray:
        """A number for [..., answer] values."""
        return np.asarray(found @ self._hash)

    def best_answers(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """A node's distinct values, and the commonest answer at each."""
        values, count = np.unique(self.found[number]), len(self.classes)
        table = np.bincount(self.coded[number] * count + self.codes, minlength=len(values) * count)
        return values, self.classes[table.reshape(-1, count).argmax(1)]

    def joint(self, chosen: Sequence[int]) -> np.ndarray:
        """[answer] a code of the values of several nodes at once."""
        joint = np.zeros(len(self.codes), np.int64)
        for number in chosen:
            joint = np.unique(joint * self.sizes[number] + self.coded[number], return_inverse=True)[1]
        return joint

    def table(self, keys: list, answers: np.ndarray, names: tuple[str, ...]) -> Table | None:
        """The table of keys and answers, the most frequent answer its default; None where it is too large."""
        classes, counts = np.unique(answers, return_counts=True)
        default = classes[counts.argmax()]
        entries = [(key, answer) for key, answer in zip(keys, answers.tolist(), strict=True) if answer != default]
        if len(entries) > self.cells.most_cells:
            return None
        value = to_set if self.cells.are_sets else float
        return Table(tuple((key, value(answer)) for key, answer in entries), value(default), names)

    def candidate(self, node: Node, extra: tuple[Line, ...]) -> Candidate:
        arguments = {a for line in extra for a in line.args if a > FIRST_EXTRA} | ({node} if node >= 0 else set())
        lines = self.space.cost(*arguments) + len(extra)
        cells = sum(line.function.cells for line in self.space.lines_of(*arguments) if line.function)
        cells += sum(line.function.cells for line in extra if line.function)
        self.bound = min(self.bound, lines + cells / CELLS_PER_LINE)
        return Candidate(lines + cells / CELLS_PER_LINE, lines, cells, node, extra)


def is_pure(joint: np.ndarray, codes: np.ndarray, count: int, size: int | None = None) -> bool:
    """Whether each joint value has one answer."""
    size = int(joint.max()) + 1 if size is None else size
    first = np.full(size, -1, np.int64)
    first[joint] = codes
    return bool((first[joint] == codes).all())
