"""What the search for last lines takes and gives: the answers of a sample, and candidate programs."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from trade_hf.trained.expression import to_set
from trade_hf.trained.program import Line, Program
from trade_hf.trained.space import Node, Space

CELLS_PER_LINE = 4.0  # table cells that count as much as a line
MOST_LINES = 15
MOST_CELL_SHARE = 0.05  # of the answers: a table of more is no explanation


@dataclass(frozen=True, order=True)
class Candidate:
    """A program, as a node and what comes after it, with its description length."""

    length: float
    lines: int
    cells: int
    output: Node = field(compare=False)
    extra: tuple[Line, ...] = field(compare=False)

    def program(self, space: Space) -> Program:
        return space.to_program(self.output, self.extra)


@dataclass(frozen=True)
class Cells:
    """The answers of a sample, and where they are.

    Attributes:
      rows, places: of each answer: input and position.
      answers: [answer] the model's.
      are_sets: whether these are sets.
      most_cells: of a table.
    """

    rows: np.ndarray
    places: np.ndarray
    answers: np.ndarray
    are_sets: bool
    most_cells: int

    def shown(self, value: float) -> str:
        """An answer as a program spells it."""
        if self.are_sets:
            columns = sorted(to_set(value))
            return f"{{{', '.join(map(str, columns))}}}" if columns else "set()"
        return f"{value:g}"


def cells_of(rows: np.ndarray, places: np.ndarray, answers: np.ndarray, are_sets: bool, total: int) -> Cells:
    """Cells of a sample, of a domain with `total` answers."""
    return Cells(rows, places, answers, are_sets, max(int(np.ceil(MOST_CELL_SHARE * total)) - 1, 0))
