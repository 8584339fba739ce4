"""One table of programs feeds every test: a new bug is a new row."""

from __future__ import annotations

from dataclasses import dataclass

from trade_hf.rasp.program import Program
from trade_hf.rasp.text import parse

VOCAB = (0, 1, 2, 3, 4)
LENGTH = 5


@dataclass(frozen=True)
class Case:
    """A program's text (without header and last line), an input and what RASP gives for it."""

    name: str
    lines: str
    given: tuple
    expect: list

    @property
    def program(self) -> Program:
        last = self.lines.strip().splitlines()[-1].split(" = ")[0].strip()
        return parse("\n".join(line.strip() for line in self.lines.strip().splitlines()) + f"\nprogram = {last}\n")


CASES = [
    Case(
        "length",
        """v1 = rasp.Select(rasp.tokens, rasp.tokens, rasp.Comparison.TRUE)
        v2 = rasp.SelectorWidth(v1)""",
        (3, 1, 1),
        [3, 3, 3],
    ),
    Case(
        "histogram",
        """v1 = rasp.Select(rasp.tokens, rasp.tokens, rasp.Comparison.EQ)
        v2 = rasp.SelectorWidth(v1)""",
        (3, 1, 1, 4),
        [1, 2, 2, 1],
    ),
    Case(
        "reverse",
        """v1 = rasp.Select(rasp.tokens, rasp.tokens, rasp.Comparison.TRUE)
        v2 = rasp.SelectorWidth(v1)
        v3 = rasp.SequenceMap(lambda x, y: x - y, v2, rasp.indices)
        v4 = rasp.Map(lambda x: x - 1, v3)
        v5 = rasp.Select(rasp.indices, v4, rasp.Comparison.EQ)
        v6 = rasp.Aggregate(v5, rasp.tokens)""",
        (3, 1, 0, 4),
        [4, 0, 1, 3],
    ),
    Case(
        "sort of distinct tokens",
        """v1 = rasp.Select(rasp.tokens, rasp.tokens, rasp.Comparison.LT)
        v2 = rasp.SelectorWidth(v1)
        v3 = rasp.Select(v2, rasp.indices, rasp.Comparison.EQ)
        v4 = rasp.Aggregate(v3, rasp.tokens)""",
        (3, 1, 0, 4),
        [0, 1, 3, 4],
    ),
    Case(
        "fraction of previous tokens that are 2",
        """v1 = rasp.numerical(rasp.Map(lambda x: x == 2, rasp.tokens))
        v2 = rasp.Select(rasp.indices, rasp.indices, rasp.Comparison.LEQ)
        v3 = rasp.numerical(rasp.Aggregate(v2, v1, default=0))""",
        (2, 1, 2, 2),
        [1.0, 0.5, 2 / 3, 0.75],
    ),
    Case(
        "shift, None where nothing is selected",
        """v1 = rasp.Select(rasp.indices, rasp.indices, lambda k, q: q == k + 1)
        v2 = rasp.Aggregate(v1, rasp.tokens)""",
        (2, 1, 4),
        [None, 2, 1],
    ),
    Case(
        "None through maps and sequence maps",
        """v1 = rasp.Select(rasp.indices, rasp.indices, lambda k, q: q == k + 1)
        v2 = rasp.Aggregate(v1, rasp.tokens)
        v3 = rasp.Map(lambda x: x * 2, v2)
        v4 = rasp.SequenceMap(lambda x, y: x + y, v3, rasp.tokens)""",
        (2, 1, 4),
        [None, 5, 6],
    ),
    Case(
        "a map of a map stays two lines",
        """v1 = rasp.Map(lambda x: x % 3, rasp.tokens)
        v2 = rasp.Map(lambda x: x + 1, v1, simplify=False)""",
        (4, 3, 2),
        [2, 1, 3],
    ),
    Case(
        "numbers: map, linear sequence map, back to categorical",
        """v1 = rasp.numerical(rasp.Map(lambda x: x / 2, rasp.tokens))
        v2 = rasp.numerical(rasp.Map(lambda x: x, rasp.indices))
        v3 = rasp.numerical(rasp.LinearSequenceMap(v1, v2, 2, -1))
        v4 = rasp.Map(lambda x: x > 0, v3)""",
        (0, 1, 3, 4),
        [False, False, True, True],
    ),
    Case(
        "map of numbers to numbers",
        """v1 = rasp.numerical(rasp.Map(lambda x: x == 3, rasp.tokens))
        v2 = rasp.numerical(rasp.Map(lambda x: 1 - x, v1, simplify=False))""",
        (3, 1),
        [0, 1],
    ),
    Case(
        "two selector widths in one layer, one numerical",
        """v1 = rasp.Select(rasp.tokens, rasp.tokens, rasp.Comparison.GT)
        v2 = rasp.SelectorWidth(v1)
        v3 = rasp.Select(rasp.tokens, rasp.indices, rasp.Comparison.NEQ)
        v4 = rasp.numerical(rasp.SelectorWidth(v3))
        v5 = rasp.numerical(rasp.Map(lambda x: x * 2, v2))
        v6 = rasp.numerical(rasp.LinearSequenceMap(v4, v5, 1, -1))""",
        (2, 0),
        [1, 0],
    ),
    Case(
        "explicit tables, partly undefined",
        """v1 = rasp.Map(lambda x: {0: 7, 1: 7, 3: -2}.get(x), rasp.tokens)
        v2 = rasp.SequenceMap(lambda x, y: {(7, 0): 1, (-2, 1): 2, (7, 2): 1}.get((x, y)), v1, rasp.indices)""",
        (0, 3, 2, 4),
        [1, 2, None, None],
    ),
    Case(
        "an arbitrary predicate as a table",
        """v1 = rasp.Select(rasp.tokens, rasp.indices, lambda k, q: (k, q) in [(0, 0), (2, 1), (4, 1)])
        v2 = rasp.SelectorWidth(v1)""",
        (2, 4, 0),
        [1, 2, 0],
    ),
    Case(
        "every comparison that is left",
        """v1 = rasp.Select(rasp.tokens, rasp.indices, rasp.Comparison.GEQ)
        v2 = rasp.SelectorWidth(v1)
        v3 = rasp.Select(rasp.indices, rasp.tokens, rasp.Comparison.LEQ)
        v4 = rasp.SelectorWidth(v3)
        v5 = rasp.SequenceMap(lambda x, y: max(x, y), v2, v4)""",
        (3, 1, 0),
        [3, 2, 1],
    ),
    Case(
        "more than nine lines, so that v10 sorts before v2",
        "\n".join(
            ["v1 = rasp.Map(lambda x: x % 3, rasp.tokens)"]
            + [f"v{n} = rasp.SequenceMap(lambda x, y: max(x, y), v{n - 1}, rasp.indices)" for n in range(2, 11)]
            + ["v11 = rasp.SequenceMap(lambda x, y: x + y, v10, rasp.tokens)"]
        ),
        (2, 4),
        [4, 5],
    ),
]
