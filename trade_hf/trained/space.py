"""S-ops and selectors with what they give on a sample of inputs: each value once, under its shortest program.

Kinds keep apart what is compared with what: tokens with tokens, positions and numbers with each other, truth values
with nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum

import numpy as np

from trade_hf.rasp.program import INDICES, TOKENS, RaspError, Variable
from trade_hf.trained.domain import PADDING
from trade_hf.trained.expression import Expression
from trade_hf.trained.program import Line, Op, Program, Run

# Names of nodes beside the two inputs: numbers of lines, in the order in which they were found.
Node = Variable


class Kind(Enum):
    TOKEN = "token"
    POSITION = "position"
    NUMBER = "number"
    TRUTH = "truth value"
    SELECTOR = "selector"

    __hash__ = object.__hash__

    @property
    def is_numeric(self) -> bool:
        return self in (Kind.POSITION, Kind.NUMBER)


class Space:
    """A growing set of nodes over a sample of inputs.

    Attributes:
      tokens: [input, position] the sample, PADDING after the end of an input.
      causal: whether selectors see no later position. Such a node means its line with that restriction;
        `to_program` spells it out.
      vocab: the tokens that are no special ones, ascending. A special token is one that stands at the same position,
        from the front or from the end, of every input, and nowhere else.
    """

    def __init__(self, tokens: np.ndarray, causal: bool) -> None:
        self.tokens, self.causal = tokens, causal
        self.run = Run(tokens)
        self.vocab, self.specials = split_vocab(tokens)
        self.lines: dict[Node, Line] = {}
        self.kinds: dict[Node, Kind] = {TOKENS: Kind.TOKEN, INDICES: Kind.POSITION}
        self.values: dict[Node, np.ndarray] = {TOKENS: self.run.tokens, INDICES: self.run.indices}
        self._closures: dict[Node, int] = {TOKENS: 0, INDICES: 0}  # lines that a node needs, as bits
        self._known: dict[bytes, Node] = {self._key(v): node for node, v in self.values.items()}
        self._spelled: dict[Line, Node | None] = {}

    # ------------------------------------------------------------ adding lines

    def map(self, text: str, argument: Node, kind: Kind = Kind.NUMBER) -> Node | None:
        return self.add(Line(Op.MAP, (argument,), Expression(text, ("x",))), kind)

    def pair(self, text: str, first: Node, second: Node, kind: Kind = Kind.NUMBER) -> Node | None:
        return self.add(Line(Op.SEQUENCE_MAP, (first, second), Expression(text, ("x", "y"))), kind)

    def select(self, text: str, key: Node, query: Node) -> Node | None:
        return self.add(Line(Op.SELECT, (key, query), Expression(text, ("k", "q"))), Kind.SELECTOR)

    def both(self, first: Node | None, second: Node | None) -> Node | None:
        """The conjunction of two selectors; None stands for all positions."""
        if first is None or second is None:
            return second if first is None else first
        return self.add(Line(Op.AND, (first, second)), Kind.SELECTOR)

    def width(self, selector: Node) -> Node | None:
        return self.add(Line(Op.WIDTH, (selector,)), Kind.NUMBER)

    def gather(self, selector: Node, value: Node, default: float = -1) -> Node | None:
        """An aggregate, where all that is selected at once has one value."""
        chosen, values = self.values[selector], self.values[value][:, None, :]
        if not chosen.any() or not chosen.sum(-1).max() > 0:
            return None
        highest = np.where(chosen, values, -np.inf).max(-1)
        lowest = np.where(chosen, values, np.inf).min(-1)
        if (highest > lowest).any():
            return None
        gathered = np.where(chosen.any(-1), highest, default)
        gathered = np.where(self.run.is_token, gathered, gathered[:, :1])
        return self.add(Line(Op.AGGREGATE, (selector, value), default=default), self.kinds[value], gathered)

    def mean(self, selector: Node, value: Node) -> Node | None:
        return self.add(Line(Op.AGGREGATE, (selector, value), default=0), Kind.NUMBER)

    def add(self, line: Line, kind: Kind, values: np.ndarray | None = None) -> Node | None:
        """The node of a line, or of an earlier one with the same values; None where it has no value or just one."""
        if line in self._spelled:
            return self._spelled[line]
        node = self._spelled[line] = self._add(line, kind, values)
        return node

    def _add(self, line: Line, kind: Kind, values: np.ndarray | None) -> Node | None:
        try:
            values = self._compute(line, self.values) if values is None else values
        except RaspError:
            return None
        if kind is not Kind.SELECTOR and np.ptp(values[self.run.is_token]) == 0:
            return None
        key = self._key(values)
        if key in self._known:
            same = self._known[key]
            if kind is Kind.TRUTH and self.kinds[same] is Kind.NUMBER:  # a number that is 0 or 1 says whether
                self.kinds[same] = kind
            return same
        node = len(self.lines)
        self.lines[node], self.kinds[node], self.values[node] = line, kind, values
        self._known[key] = node
        closure = 1 << node
        for argument in line.args:
            closure |= self._closures[argument]
        self._closures[node] = closure
        return node

    def _compute(self, line: Line, values: dict[Node, np.ndarray]) -> np.ndarray:
        found = self.run.compute(line, [values[argument] for argument in line.args])
        return np.tril(found) if self.causal and line.op is Op.SELECT else found

    def _key(self, values: np.ndarray) -> bytes:
        return values.tobytes() if values.ndim == 3 else (values[self.run.is_token] + 0.0).tobytes()

    # ------------------------------------------------------------ what nodes cost and give

    def cost(self, *nodes: Node) -> int:
        """Lines that a program of all these nodes has."""
        closure = 0
        for node in nodes:
            closure |= self._closures[node]
        return closure.bit_count()

    def lines_of(self, *nodes: Node) -> list[Line]:
        """The lines that a program of all these nodes has."""
        closure = 0
        for node in nodes:
            closure |= self._closures[node]
        return [line for node, line in self.lines.items() if closure >> node & 1]

    def extend(self, tokens: np.ndarray) -> None:
        """More inputs: every node's values there are added."""
        width = max(self.tokens.shape[1], tokens.shape[1])
        pad = [
            np.pad(part, ((0, 0), (0, width - part.shape[1])), constant_values=PADDING)
            for part in (self.tokens, tokens)
        ]
        self.tokens = np.concatenate(pad)
        self.run = Run(self.tokens)
        self.values = {TOKENS: self.run.tokens, INDICES: self.run.indices}
        for node, line in self.lines.items():
            try:
                self.values[node] = self._compute(line, self.values)
            except RaspError:  # it has no value on the new inputs: of no use any more, as all that is made of it
                shape = (len(self.tokens), width, width)[: 3 if line.op.gives_selector else 2]
                self.values[node] = np.zeros(shape, bool if line.op.gives_selector else float)
        self._known = {}
        for node, values in self.values.items():
            self._known.setdefault(self._key(values), node)

    def to_program(self, output: Node, extra: Iterable[Line] = ()) -> Program:
        """The program of a node; `extra` lines come after it, the last of them the output.

        Their arguments are nodes, and -3, -4, … for the first of them, the second, …
        """
        extra = list(extra)
        wanted = self._closures[output] if output >= 0 else 0
        for line in extra:
            for argument in line.args:
                wanted |= self._closures.get(argument, 0)
        return program_of(self.lines, wanted, output, extra, self.causal)


FIRST_EXTRA = -3  # the name of the first extra line; further ones count down


def program_of(lines: dict[Node, Line], wanted: int, output: Node, extra: list[Line], causal: bool) -> Program:
    """The program of the lines whose bits are set in `wanted`, and of extra ones, causal selectors spelled out."""
    made: list[Line] = []
    place: dict[Node, Variable] = {TOKENS: TOKENS, INDICES: INDICES}
    mask: Variable | None = None
    for node, line in lines.items():
        if not wanted >> node & 1:
            continue
        made.append(Line(line.op, tuple(place[a] for a in line.args), line.function, line.default))
        place[node] = len(made) - 1
        if causal and line.op is Op.SELECT and not _is_causal(line):
            if mask is None:
                made.append(CAUSAL)
                mask = len(made) - 1
            made.append(Line(Op.AND, (place[node], mask)))
            place[node] = len(made) - 1
    for number, line in enumerate(extra):
        made.append(Line(line.op, tuple(place[a] for a in line.args), line.function, line.default))
        place[FIRST_EXTRA - number] = len(made) - 1
    if not extra and output < 0:
        made.append(Line(Op.MAP, (output,), Expression("x", ("x",))))
    return Program(tuple(made))


CAUSAL = Line(Op.SELECT, (INDICES, INDICES), Expression("k <= q", ("k", "q")))
_CAUSAL_TEXTS = ("k <= q", "k < q", "k == q", "k == q - 1", "k == q - 2")


def _is_causal(line: Line) -> bool:
    return line.args == (INDICES, INDICES) and str(line.function) in _CAUSAL_TEXTS


def split_vocab(tokens: np.ndarray) -> tuple[list[int], list[int]]:
    """The ordinary tokens and the special ones, ascending."""
    lengths = (tokens != PADDING).sum(1)
    from_end = np.where(tokens != PADDING, np.arange(tokens.shape[1]) - lengths[:, None], 0)
    present = np.unique(tokens[tokens != PADDING]).tolist()
    specials = []
    for token in present:
        rows, places = np.nonzero(tokens == token)
        in_each_once = len(rows) == len(tokens) and len(np.unique(rows)) == len(tokens)
        if in_each_once and (np.ptp(places) == 0 or np.ptp(from_end[rows, places]) == 0) and len(present) > 1:
            specials.append(token)
    if len(specials) == len(present):
        specials = []
    return [token for token in present if token not in specials], specials
