"""Answers as lists of rules (`3 if x == 2 else …`), and sets as unions, from tests of the nodes of a space."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from trade_hf.trained.candidate import Candidate
from trade_hf.trained.columns import FEW_VALUES, Columns
from trade_hf.trained.expression import Expression
from trade_hf.trained.program import Line, Op
from trade_hf.trained.space import FIRST_EXTRA, Kind

MOST_TESTS = 8_000
MOST_RULES = 5


class Rules:
    """Finds lists of rules.

    Args:
      at: the nodes at the answers.
    """

    def __init__(self, at: Columns) -> None:
        self.at = at
        self._seen: set[bytes] = set()
        self._tests = np.zeros((0, len(at.codes)), bool)
        self._texts: list[tuple[int, str]] = []

    def add(self, numbers: range) -> None:
        """Takes tests of nodes that are new: whether each holds at each answer, and what it is."""
        rows = []
        for number in numbers:
            found, node = self.at.found[number], self.at.nodes[number]
            if self.at.space.kinds[node] is Kind.TRUTH:
                options = [("x", found != 0), ("not x", found == 0)]
            elif self.at.sizes[number] > FEW_VALUES:
                continue
            else:
                values = [v for v in np.unique(found) if float(v).is_integer()]
                options = [(f"x == {v:g}", found == v) for v in values]
                options += [(f"x != {v:g}", found != v) for v in values]
                options += [(f"x >= {v:g}", found >= v) for v in values[1:]]
                options += [(f"x < {v:g}", found < v) for v in values[1:]]
            for text, holds in options:
                key = np.packbits(holds).tobytes()
                if key not in self._seen and len(self._texts) < MOST_TESTS and 0 < holds.sum() < len(holds):
                    self._seen.add(key)
                    rows.append(holds)
                    self._texts.append((number, text))
        if rows:
            self._tests = np.concatenate([self._tests, np.stack(rows)])

    def rules(self) -> Iterator[Candidate]:
        """Lists of rules: each gives one answer where its test holds, the first that holds counts."""
        holds, texts = self._tests, self._texts
        if not len(holds):
            return
        as_float = holds.astype(np.float32)
        costs = np.array([self.at.costs[number] for number, _ in texts])
        leaves = [number for number in range(len(self.at.nodes)) if not self.at.cells.are_sets]
        agrees = self.at.found == self.at.cells.answers if leaves else np.zeros((0, len(self.at.codes)), bool)
        for appetite in (0.0, 0.05, 0.3):
            left = np.ones(len(self.at.codes), bool)
            chosen: list[tuple[int, str, float]] = []
            for _ in range(MOST_RULES + 1):
                yield from self._ends(left, chosen, agrees)
                if len(chosen) == MOST_RULES:
                    break
                rule = self._best_rule(as_float, costs, left, appetite, chosen, texts)
                if rule is None:
                    break
                test, code = rule
                chosen.append((*texts[test], float(self.at.classes[code])))
                left &= ~holds[test]
                if not left.any():
                    break

    def _best_rule(self, holds, costs, left, appetite, chosen, texts) -> tuple[int, int] | None:
        """The test and the class that decide most of what is left, less what the test costs."""
        classes = (self.at.codes[:, None] == np.arange(len(self.at.classes))) & left[:, None]
        counts = holds @ classes.astype(np.float32)  # [test, class]
        total = counts.sum(1, keepdims=True)
        is_pure = (counts == total) & (total > 0)
        used = {number for number, _, _ in chosen}
        price = np.array([0 if number in used else cost for cost, (number, _) in zip(costs, texts, strict=True)])
        gain = np.where(is_pure, counts / left.sum() - appetite * price[:, None] * 0.2 - 1e-4 * price[:, None], -np.inf)
        best = int(gain.argmax())
        if not np.isfinite(gain.flat[best]):
            return None
        return divmod(best, len(self.at.classes))

    def _ends(self, left: np.ndarray, chosen: list, agrees: np.ndarray) -> Iterator[Candidate]:
        """The list of rules so far with what ends it: one answer, or a node that gives all that is left."""
        if not chosen:
            return
        remaining = np.unique(self.at.codes[left])
        if len(remaining) <= 1:
            value = self.at.classes[remaining[0]] if len(remaining) else chosen[-1][2]
            yield self.chain(chosen, None, float(value))
        elif len(agrees):
            fits = np.flatnonzero(agrees[:, left].all(1))
            for number in fits[np.argsort(self.at.costs[fits], kind="stable")[:2]]:
                yield self.chain(chosen, int(number), 0.0)

    def chain(self, rules: list[tuple[int, str, float]], leaf: int | None, default: float) -> Candidate:
        """The candidate of a list of rules, written from its end."""
        extra: list[Line] = []
        rules = list(rules)
        if leaf is None:
            number, test, value = rules.pop()
            text = f"{self.at.cells.shown(value)} if {test} else {self.at.cells.shown(default)}"
            extra.append(Line(Op.MAP, (self.at.nodes[number],), Expression(text, ("x",))))
            last = FIRST_EXTRA
        else:
            last = self.at.nodes[leaf]
        for number, test, value in reversed(rules):
            text = f"{self.at.cells.shown(value)} if {test} else y"
            extra.append(Line(Op.SEQUENCE_MAP, (self.at.nodes[number], last), Expression(text, ("x", "y"))))
            last = FIRST_EXTRA - len(extra) + 1
        return self.at.candidate(self.at.nodes[rules[0][0]] if rules else self.at.nodes[number], tuple(extra))

    def unions(self) -> Iterator[Candidate]:
        """Sets put together: columns that go together are in where one test holds."""
        bits = (self.at.classes[:, None].astype(np.int64) >> np.arange(53)) & 1  # [class, column]
        groups: dict[bytes, list[int]] = {}
        for column in np.flatnonzero(bits.any(0)):
            groups.setdefault(bits[:, column].tobytes(), []).append(int(column))
        always = [c for c in range(53) if bits[:, c].all()]
        parts = [columns for columns in groups.values() if columns[0] not in always]
        holds, texts = self._tests, self._texts
        if not parts or not len(holds):
            return
        chosen = []
        for columns in parts:
            wanted = bits[self.at.codes, columns[0]].astype(bool)
            fits = np.flatnonzero((holds == wanted).all(1))
            if not len(fits):
                return
            chosen.append((columns, *texts[min(fits, key=lambda n: (self.at.costs[texts[n][0]], n))]))
        extra: list[Line] = []
        for columns, number, test in chosen:
            node, shown = self.at.nodes[number], self.at.cells.shown(float(sum(2**c for c in columns)))
            if not extra:
                with_always = self.at.cells.shown(float(sum(2**c for c in {*columns, *always})))
                text = f"{with_always} if {test} else {self.at.cells.shown(float(sum(2**c for c in always)))}"
                extra.append(Line(Op.MAP, (node,), Expression(text, ("x",))))
            else:
                text = f"y | {shown} if {test} else y"
                extra.append(Line(Op.SEQUENCE_MAP, (node, FIRST_EXTRA - len(extra) + 1), Expression(text, ("x", "y"))))
        yield self.at.candidate(self.at.nodes[chosen[0][1]], tuple(extra))
