"""The last lines of a program: the answers as a function of nodes that are known.

Tried in turn: a node itself, a named function of one or two nodes, a list of rules (`3 if x == 2 else …`), for sets a
union, and tables. What is shorter is better: lines, and a part of a line for each table cell.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from trade_hf.rasp.program import RaspError
from trade_hf.trained.expression import Expression, Function, Table, to_set
from trade_hf.trained.program import Line, Op, Program
from trade_hf.trained.space import FIRST_EXTRA, Kind, Node, Space

CELLS_PER_LINE = 4.0  # table cells that count as much as a line
MOST_LINES = 15
MOST_CELL_SHARE = 0.05  # of the answers: a table of more is no explanation
MOST_PAIRED = 140  # nodes of which all pairs are tried
MOST_REDUCED = 400  # nodes of which sums are taken modulo the number of answers
MOST_TESTS = 8_000
MOST_RULES = 5
MOST_IN_TABLES = 240  # nodes that tables are made of
MOST_SAMPLED = 500  # answers that say which node to take next
MOST_STAIRS = 9  # answers that are told apart by thresholds of one number
MOST_TABLED = 4  # nodes of one table
BEAM = 6  # of them that are looked at further
FEW_VALUES = 40  # of a node that tests are made of


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


class Solver:
    """Finds what last lines give the answers from the nodes of a space.

    Args:
      space: the nodes.
      cells: the answers on the space's sample.
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
        self.bound = np.inf  # description length of the best candidate so far
        self.partial: list[tuple[int, ...]] = []  # nodes whose table gives most answers
        self._tried: set[tuple[int, int]] = set()
        self._seen: set[bytes] = set()
        self._tests = np.zeros((0, len(self.codes)), bool)
        self._texts: list[tuple[int, str]] = []
        # Whole numbers up to 2 ** 20: sums of their products with whole numbers are exact.
        self._hash = np.random.RandomState(0).randint(1, 2**20, len(self.codes)).astype(np.float64)

    def solutions(self, nodes: Sequence[Node]) -> Iterator[Candidate]:
        """Programs that give all answers of the sample, from the nodes so far and new ones."""
        yield from self.add(nodes)
        yield from self.sums()
        yield from self.pairs()
        yield from self.rules()
        if self.cells.are_sets:
            yield from self.unions()
        yield from self.tables()

    # ------------------------------------------------------------ one node

    def add(self, nodes: Sequence[Node]) -> Iterator[Candidate]:
        """Takes new nodes; gives the candidates that are a function of one of them."""
        known = set(self.nodes)
        nodes = [node for node in nodes if node not in known]
        if not nodes:
            return
        first, count = len(self.nodes), len(self.classes)
        found = np.stack([self.space.values[node][self.cells.rows, self.cells.places] for node in nodes])
        self.nodes += nodes
        self.found = np.concatenate([self.found, found])
        self.hashes = np.concatenate([self.hashes, found @ self._hash])
        self.costs = np.concatenate([self.costs, [self.space.cost(node) for node in nodes]])
        purity = np.zeros(len(nodes))
        for number, row in enumerate(found):
            values, codes = np.unique(row, return_inverse=True)
            self.coded.append(codes)
            self.sizes.append(len(values))
            table = np.bincount(codes * count + self.codes, minlength=len(values) * count).reshape(-1, count)
            purity[number] = table.max(1).sum() / len(codes)
            if purity[number] == 1:
                yield from self.unary(first + number, values, self.classes[table.argmax(1)])
        self.purity = np.concatenate([self.purity, purity])
        self._add_tests(first)

    def unary(self, number: int, values: np.ndarray, answers: np.ndarray) -> Iterator[Candidate]:
        node = self.nodes[number]
        if not self.cells.are_sets and np.array_equal(values, answers):
            yield self.candidate(node, ())
            return
        name = named_unary(values, answers, self.cells)
        if name is not None:
            yield self.candidate(node, (Line(Op.MAP, (node,), Expression(name, ("x",))),))
            return
        changes = np.flatnonzero(np.diff(answers))
        if len(changes) + 1 == len(self.classes) < MOST_STAIRS:
            yield self.stairs(node, (values[changes] + values[changes + 1]) / 2, answers[np.append(changes, -1)])
        if table := self.table(values.tolist(), answers, ("x",)):
            yield self.candidate(node, (Line(Op.MAP, (node,), table),))

    def stairs(self, node: Node, thresholds: np.ndarray, answers: np.ndarray) -> Candidate:
        """The candidate whose answers rise or fall with a number, from one threshold to the next."""
        shown = [self.cells.shown(answer) for answer in answers]
        extra = [Line(Op.MAP, (node,), Expression(f"{shown[1]} if x >= {thresholds[0]:g} else {shown[0]}", ("x",)))]
        for threshold, answer in zip(thresholds[1:], shown[2:], strict=True):
            text = f"{answer} if x >= {threshold:g} else y"
            last = FIRST_EXTRA - len(extra) + 1
            extra.append(Line(Op.SEQUENCE_MAP, (node, last), Expression(text, ("x", "y"))))
        return self.candidate(node, tuple(extra))

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

    # ------------------------------------------------------------ two nodes

    def sums(self) -> Iterator[Candidate]:
        """Sums and differences of any two nodes: what is missing from one is looked up among all, by a hash."""
        if self.cells.are_sets:
            return
        aim, everything = self.cells.answers @ self._hash, np.arange(len(self.nodes))
        yield from self._looked_up("x + y", everything, self.hashes, aim - self.hashes, lambda x, y: x + y)
        yield from self._looked_up("x - y", everything, self.hashes, self.hashes - aim, lambda x, y: x - y)
        modulus = int(self.cells.answers.max()) + 1
        if modulus > 2:
            chosen = np.argsort(self.costs, kind="stable")[:MOST_REDUCED]
            rest = self.found[chosen] % modulus
            wanted = ((self.cells.answers - rest) % modulus) @ self._hash
            text = f"(x + y) % {modulus}"
            yield from self._looked_up(text, chosen, rest @ self._hash, wanted, lambda x, y: (x + y) % modulus)
            wanted = ((rest - self.cells.answers) % modulus) @ self._hash
            text = f"(x - y) % {modulus}"
            yield from self._looked_up(text, chosen, rest @ self._hash, wanted, lambda x, y: (x - y) % modulus)

    def _looked_up(
        self, text: str, nodes: np.ndarray, known: np.ndarray, wanted: np.ndarray, function: Callable
    ) -> Iterator[Candidate]:
        """Pairs of nodes, the hash of the second of which is the one that the first one wants."""
        known, wanted = known.round(2), wanted.round(2)
        order = np.argsort(known, kind="stable")
        place = np.minimum(np.searchsorted(known[order], wanted), len(order) - 1)
        for first in np.flatnonzero(known[order][place] == wanted):
            one, other = int(nodes[first]), int(nodes[order[place[first]]])
            if np.array_equal(function(self.found[one], self.found[other]), self.cells.answers):
                yield self.binary(text, one, other)

    def binary(self, text: str, first: int, second: int) -> Candidate:
        args = (self.nodes[first], self.nodes[second])
        return self.candidate(args[0], (Line(Op.SEQUENCE_MAP, args, Expression(text, ("x", "y"))),))

    def paired(self) -> list[int]:
        """Nodes of which all pairs are tried: those that say most about the answer, and the cheapest."""
        by_purity = np.argsort(self.costs * 0.01 - self.purity, kind="stable")[: MOST_PAIRED // 2]
        by_cost = np.argsort(self.costs, kind="stable")[: MOST_PAIRED // 2]
        chosen = dict.fromkeys([*by_purity.tolist(), *by_cost.tolist()])
        return [number for number in chosen if self.sizes[number] <= 4 * FEW_VALUES]

    def pairs(self) -> Iterator[Candidate]:
        count, few = len(self.classes), min(64, len(self.codes))
        chosen = self.paired()
        for first, second in itertools.combinations(sorted(chosen), 2):
            if (first, second) in self._tried:
                continue
            self._tried.add((first, second))
            size = self.sizes[second]
            joint = self.coded[first] * size + self.coded[second]
            # A few answers first: most pairs fail on them.
            if not _is_pure(joint[:few], self.codes[:few], count, self.sizes[first] * size):
                continue
            if not _is_pure(joint, self.codes, count, self.sizes[first] * size):
                continue
            if self.space.cost(self.nodes[first], self.nodes[second]) + 1 >= self.bound:
                continue
            _, where = np.unique(joint, return_index=True)
            x, y, answers = self.found[first][where], self.found[second][where], self.cells.answers[where]
            name = named_binary(x, y, answers, self.cells)
            if name is not None:
                yield self.binary(name, first, second)
            elif table := self.table(list(zip(x.tolist(), y.tolist(), strict=True)), answers, ("x", "y")):
                args = (self.nodes[first], self.nodes[second])
                yield self.candidate(args[0], (Line(Op.SEQUENCE_MAP, args, table),))

    # ------------------------------------------------------------ rules

    def _add_tests(self, start: int) -> None:
        """Tests of the nodes from number `start` on: whether each holds at each answer, and what it is."""
        rows = []
        for number in range(start, len(self.nodes)):
            found, node = self.found[number], self.nodes[number]
            if self.space.kinds[node] is Kind.TRUTH:
                options = [("x", found != 0), ("not x", found == 0)]
            elif self.sizes[number] > FEW_VALUES:
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
        costs = np.array([self.costs[number] for number, _ in texts])
        leaves = [number for number in range(len(self.nodes)) if not self.cells.are_sets]
        agrees = self.found == self.cells.answers if leaves else np.zeros((0, len(self.codes)), bool)
        for appetite in (0.0, 0.05, 0.3):
            left = np.ones(len(self.codes), bool)
            chosen: list[tuple[int, str, float]] = []
            for _ in range(MOST_RULES + 1):
                yield from self._ends(left, chosen, agrees)
                if len(chosen) == MOST_RULES:
                    break
                rule = self._best_rule(as_float, costs, left, appetite, chosen, texts)
                if rule is None:
                    break
                test, code = rule
                chosen.append((*texts[test], float(self.classes[code])))
                left &= ~holds[test]
                if not left.any():
                    break

    def _best_rule(self, holds, costs, left, appetite, chosen, texts) -> tuple[int, int] | None:
        """The test and the class that decide most of what is left, less what the test costs."""
        classes = (self.codes[:, None] == np.arange(len(self.classes))) & left[:, None]
        counts = holds @ classes.astype(np.float32)  # [test, class]
        total = counts.sum(1, keepdims=True)
        is_pure = (counts == total) & (total > 0)
        used = {number for number, _, _ in chosen}
        price = np.array([0 if number in used else cost for cost, (number, _) in zip(costs, texts, strict=True)])
        gain = np.where(is_pure, counts / left.sum() - appetite * price[:, None] * 0.2 - 1e-4 * price[:, None], -np.inf)
        best = int(gain.argmax())
        if not np.isfinite(gain.flat[best]):
            return None
        return divmod(best, len(self.classes))

    def _ends(self, left: np.ndarray, chosen: list, agrees: np.ndarray) -> Iterator[Candidate]:
        """The list of rules so far with what ends it: one answer, or a node that gives all that is left."""
        if not chosen:
            return
        remaining = np.unique(self.codes[left])
        if len(remaining) <= 1:
            value = self.classes[remaining[0]] if len(remaining) else chosen[-1][2]
            yield self.chain(chosen, None, float(value))
        elif len(agrees):
            fits = np.flatnonzero(agrees[:, left].all(1))
            for number in fits[np.argsort(self.costs[fits], kind="stable")[:2]]:
                yield self.chain(chosen, int(number), 0.0)

    def chain(self, rules: list[tuple[int, str, float]], leaf: int | None, default: float) -> Candidate:
        """The candidate of a list of rules, written from its end."""
        extra: list[Line] = []
        rules = list(rules)
        if leaf is None:
            number, test, value = rules.pop()
            text = f"{self.cells.shown(value)} if {test} else {self.cells.shown(default)}"
            extra.append(Line(Op.MAP, (self.nodes[number],), Expression(text, ("x",))))
            last = FIRST_EXTRA
        else:
            last = self.nodes[leaf]
        for number, test, value in reversed(rules):
            text = f"{self.cells.shown(value)} if {test} else y"
            extra.append(Line(Op.SEQUENCE_MAP, (self.nodes[number], last), Expression(text, ("x", "y"))))
            last = FIRST_EXTRA - len(extra) + 1
        return self.candidate(self.nodes[rules[0][0]] if rules else self.nodes[number], tuple(extra))

    # ------------------------------------------------------------ sets as unions

    def unions(self) -> Iterator[Candidate]:
        """Sets put together: columns that go together are in where one test holds."""
        bits = (self.classes[:, None].astype(np.int64) >> np.arange(53)) & 1  # [class, column]
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
            wanted = bits[self.codes, columns[0]].astype(bool)
            fits = np.flatnonzero((holds == wanted).all(1))
            if not len(fits):
                return
            chosen.append((columns, *texts[min(fits, key=lambda n: (self.costs[texts[n][0]], n))]))
        extra: list[Line] = []
        for columns, number, test in chosen:
            node, shown = self.nodes[number], self.cells.shown(float(sum(2**c for c in columns)))
            if not extra:
                with_always = self.cells.shown(float(sum(2**c for c in {*columns, *always})))
                text = f"{with_always} if {test} else {self.cells.shown(float(sum(2**c for c in always)))}"
                extra.append(Line(Op.MAP, (node,), Expression(text, ("x",))))
            else:
                text = f"y | {shown} if {test} else y"
                extra.append(Line(Op.SEQUENCE_MAP, (node, FIRST_EXTRA - len(extra) + 1), Expression(text, ("x", "y"))))
        yield self.candidate(self.nodes[chosen[0][1]], tuple(extra))

    # ------------------------------------------------------------ tables

    def tables(self) -> Iterator[Candidate]:
        """Tables of up to four nodes, by a beam search: right answers first, then few cells and few lines."""
        whole = [n for n in range(len(self.nodes)) if self.sizes[n] <= 2 * FEW_VALUES and _is_whole(self.found[n])]
        by_purity = sorted(whole, key=lambda n: (0.01 * self.costs[n] - self.purity[n], n))[: MOST_IN_TABLES // 2]
        by_cost = sorted(whole, key=lambda n: (self.costs[n], -self.purity[n], n))[: MOST_IN_TABLES // 2]
        whole = list(dict.fromkeys([*by_purity, *by_cost]))
        few = np.random.RandomState(0).permutation(len(self.codes))[:MOST_SAMPLED]
        beam: list[tuple[float, tuple[int, ...]]] = [(0.0, ())]
        self.partial = []
        for _ in range(MOST_TABLED):
            grown: dict[frozenset[int], tuple[float, tuple[int, ...]]] = {}
            for _, chosen in beam:
                joint = self._joint(chosen)
                for node in whole:
                    if node not in chosen and frozenset((*chosen, node)) not in grown:
                        score = self._impurity(joint[few], node, few)
                        score += 0.004 * self.space.cost(*(self.nodes[n] for n in (*chosen, node)))
                        grown[frozenset((*chosen, node))] = score, (*chosen, node)
            beam = sorted(grown.values())[:BEAM]
            self.partial += [chosen for _, chosen in beam[:2] if len(chosen) > 1]
            for _, chosen in beam:
                if len(chosen) > 1 and _is_pure(self._joint(chosen), self.codes, len(self.classes)):
                    yield from self._packed(chosen)

    def _joint(self, chosen: Sequence[int]) -> np.ndarray:
        """[answer] a code of the values of several nodes at once."""
        joint = np.zeros(len(self.codes), np.int64)
        for number in chosen:
            joint = np.unique(joint * self.sizes[number] + self.coded[number], return_inverse=True)[1]
        return joint

    def _impurity(self, joint: np.ndarray, number: int, few: np.ndarray) -> float:
        """The share of a few answers that the best table of what is joint and a node gets wrong, and its size."""
        count = len(self.classes)
        codes = joint * self.sizes[number] + self.coded[number][few]
        table = np.bincount(codes * count + self.codes[few]).astype(np.int32)
        table = np.concatenate([table, np.zeros(-len(table) % count, np.int32)]).reshape(-1, count).max(1)
        cells = np.count_nonzero(table) / max(self.cells.most_cells, 1)
        return 1 - table.sum() / len(few) + max(0.15 * cells, 0.0003 * np.count_nonzero(table))

    def nearest(self) -> Iterator[Candidate]:
        """Programs that give most answers of the sample: functions and tables of one node, and the commonest answer."""
        count = len(self.classes)
        for number in sorted(range(len(self.nodes)), key=lambda n: (0.002 * self.costs[n] - self.purity[n], n))[:20]:
            values = np.unique(self.found[number])
            table = np.bincount(self.coded[number] * count + self.codes, minlength=len(values) * count)
            yield from self.unary(number, values, self.classes[table.reshape(-1, count).argmax(1)])
        for chosen in self.partial:
            yield from self._packed(chosen)
        commonest = np.full(1, self.classes[np.bincount(self.codes).argmax()])
        yield from self.unary(0, np.unique(self.found[0])[:1], commonest)

    def _packed(self, chosen: Sequence[int]) -> Iterator[Candidate]:
        """A table of several nodes, packed into one number first; where it is not pure, of the commonest answers."""
        extra: list[Line] = []
        code, last = self.found[chosen[0]], self.nodes[chosen[0]]
        for number in chosen[1:-1]:
            least = min(self.found[number].min(), 0)
            factor = int(self.found[number].max() - least) + 1
            text = f"{factor} * x + y"
            extra.append(Line(Op.SEQUENCE_MAP, (last, self.nodes[number]), Expression(text, ("x", "y"))))
            code, last = factor * code + self.found[number], FIRST_EXTRA - len(extra) + 1
        count = len(self.classes)
        keys, places = np.unique(np.stack([code, self.found[chosen[-1]]]), axis=1, return_inverse=True)
        votes = np.bincount(places.ravel() * count + self.codes, minlength=keys.shape[1] * count).reshape(-1, count)
        table = self.table(list(map(tuple, keys.T.tolist())), self.classes[votes.argmax(1)], ("x", "y"))
        if table is not None:
            extra.append(Line(Op.SEQUENCE_MAP, (last, self.nodes[chosen[-1]]), table))
            yield self.candidate(self.nodes[chosen[0]], tuple(extra))


def _is_whole(values: np.ndarray) -> bool:
    return bool((values == np.round(values)).all() and values.min() >= -1)


def _is_pure(joint: np.ndarray, codes: np.ndarray, count: int, size: int | None = None) -> bool:
    """Whether each joint value has one answer."""
    size = int(joint.max()) + 1 if size is None else size
    first = np.full(size, -1, np.int64)
    first[joint] = codes
    return bool((first[joint] == codes).all())


# ---------------------------------------------------------------- names


def named_unary(x: np.ndarray, answers: np.ndarray, cells: Cells) -> str | None:
    """A named function that gives the answers at distinct numbers `x`, the simplest first; None where there is none."""
    for text in _unary_texts(x, answers, cells):
        if _gives(Expression(text, ("x",)), answers, x):
            return text
    return None


def named_binary(x: np.ndarray, y: np.ndarray, answers: np.ndarray, cells: Cells) -> str | None:
    """The same of two numbers."""
    for text in _binary_texts(answers, cells):
        if _gives(Expression(text, ("x", "y")), answers, x, y):
            return text
    return None


def _gives(function: Function, answers: np.ndarray, *args: np.ndarray) -> bool:
    try:
        return bool((function(*args) == answers).all())
    except RaspError:
        return False


def _tests_of(x: np.ndarray) -> Iterator[str]:
    values = sorted({int(v) for v in x if float(v).is_integer()})
    yield from (f"x == {v}" for v in values)
    yield from (f"x >= {v}" for v in values[1:])
    for modulus in (2, 3, 4):
        yield from (f"x % {modulus} == {rest}" for rest in range(modulus))


def _unary_texts(x: np.ndarray, answers: np.ndarray, cells: Cells) -> Iterator[str]:
    classes = np.unique(answers)
    if len(classes) == 1:
        yield cells.shown(classes[0]) if not cells.are_sets else f"{cells.shown(classes[0])} if x == x else set()"
        return
    if len(classes) == 2:
        low, high = map(cells.shown, classes)
        if (low, high) == ("0", "1"):
            yield from _tests_of(x)
        for test in _tests_of(x):
            yield f"{high} if {test} else {low}"
            yield f"{low} if {test} else {high}"
    if cells.are_sets:
        return
    shift = answers[0] - x[0]
    for constant in {f"{shift:g}"} if float(shift).is_integer() else set():
        yield f"x + {constant}" if shift > 0 else f"x - {abs(shift):g}"
    yield f"{answers[0] + x[0]:g} - x"
    top = int(answers.max())
    yield "abs(x)"
    yield from (f"max(x, {c})" for c in range(top + 1))
    yield from (f"min(x, {c})" for c in range(1, top + 1))
    yield from (f"x {'+' if c > 0 else '-'} {abs(c)} if x >= {t} else 0" for c in (-2, -1, 1) for t in range(1, 4))
    yield from (f"max(x - {c}, 0)" for c in (1, 2, 3))
    yield from (f"{c} * x" for c in (2, 3))
    yield from (f"x // {c}" for c in (2, 3, 4))
    yield from (f"(x + 1) // {c}" for c in (2, 3))
    yield "x * x"
    for modulus in range(2, 13):
        yield f"x % {modulus}"
        yield from (f"(x + {c}) % {modulus}" for c in range(1, modulus))
        yield from (f"({c} - x) % {modulus}" for c in range(modulus))
        yield from (f"({c} * x) % {modulus}" for c in range(2, min(modulus, 4)))
    values = sorted({int(v) for v in x if float(v).is_integer()})
    for c in map(int, classes):
        yield from (f"{c} if x == {v} else x" for v in values)
        yield from (f"{c} if x == {v} else x > {v}" for v in values)
        yield from (f"{c} if x == {v} else x < {v}" for v in values)


_PAIR_TESTS = (
    "x == y", "x != y", "x < y", "x <= y", "x > y", "x >= y", "x and y", "x or y", "2 * x > y", "2 * y > x",
    "2 * x >= y", "2 * x == y", "2 * y == x", "2 * y >= x", "(x + y) % 2",
)  # fmt: skip


def _binary_texts(answers: np.ndarray, cells: Cells) -> Iterator[str]:
    classes = np.unique(answers)
    if len(classes) == 2:
        low, high = map(cells.shown, classes)
        for test in _PAIR_TESTS:
            if (low, high) == ("0", "1") and "==" not in test and "and" not in test and "or" not in test:
                yield test
            yield f"{high} if {test} else {low}"
            yield f"{low} if {test} else {high}"
    if cells.are_sets:
        return
    yield from ("x + y", "x - y", "y - x", "x * y", "max(x, y)", "min(x, y)", "abs(x - y)", "x // y", "y // x")
    yield from ("x - y + 1", "y - x + 1", "x + y - 1", "x - y - 1", "y - x - 1", "max(x - y, 0)", "max(y - x, 0)")
    if len(classes) == 3:
        shown = [cells.shown(c) for c in classes]
        for order in itertools.permutations(shown):
            yield f"{order[0]} if x > y else {order[1]} if x == y else {order[2]}"
    for modulus in range(2, 13):
        yield f"(x + y) % {modulus}"
        yield f"(x - y) % {modulus}"
        yield f"(y - x) % {modulus}"
        yield f"(x * y) % {modulus}"
    for c in map(int, classes):
        yield f"x if y else {c}"
        yield f"y if x else {c}"
        yield f"{c} if x else y"
        yield f"{c} if y else x"
        for v in range(3):
            yield f"x if y == {v} else {c}"
            yield f"y if x == {v} else {c}"


def cells_of(rows: np.ndarray, places: np.ndarray, answers: np.ndarray, are_sets: bool, total: int) -> Cells:
    """Cells of a sample, of a domain with `total` answers."""
    return Cells(rows, places, answers, are_sets, max(int(np.ceil(MOST_CELL_SHARE * total)) - 1, 0))
