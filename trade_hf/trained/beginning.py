"""The first s-ops of a search: what follows from tokens and positions alone, and from counting and adding them up."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

from trade_hf.rasp.program import INDICES, TOKENS
from trade_hf.trained.space import Kind, Node, Space

MOST_CONSTANTS = 8  # of one s-op that tests compare with


class Beginning:
    """Adds the first nodes to a space.

    Args:
      space: the nodes.
      is_over: whether the time or the steps are used up.
    """

    def __init__(self, space: Space, is_over: Callable[[], bool]) -> None:
        self.space, self.is_over = space, is_over
        self.low = self._low_tokens()
        self.everywhere = space.select("True", INDICES, INDICES)
        self.positions = self._position_selectors()
        self.same = space.select("k == q", TOKENS, TOKENS)
        self.occurrences = self._occurrences()
        self.lengths: list[Node] = []
        self.counts: list[Node] = []  # how often each token occurs
        self.totals: list[Node] = []  # sums of tokens
        self.holding: list[Node] = []  # tests of the token here

    def _low_tokens(self) -> Node:
        """Tokens with special ones as -1, below all others; the tokens themselves where there are no special ones."""
        space = self.space
        above = [token for token in space.specials if token > max(space.vocab)]
        if not above:
            return TOKENS
        node = space.map(f"x if x < {min(above)} else -1", TOKENS, Kind.TOKEN)
        return TOKENS if node is None else node

    def _position_selectors(self) -> list[Node | None]:
        """Conditions on positions; None stands for all positions that are seen."""
        texts = ["k < q", "k == q - 1"]
        texts += [] if self.space.causal else ["k <= q", "k > q", "k == q + 1", "k >= q"]
        return [None, *(n for text in texts if (n := self.space.select(text, INDICES, INDICES)) is not None)]

    def _occurrences(self) -> list[Node]:
        """How often the token here occurred before, and how often it occurs."""
        space = self.space
        before = space.both(self.same, self.positions[1]) if self.same is not None and len(self.positions) > 1 else None
        counted = [space.width(node) for node in (before, self.same) if node is not None]
        return [node for node in counted if node is not None]

    # ------------------------------------------------------------ the first round

    def begin(self) -> None:
        """What follows from tokens and positions alone."""
        space = self.space
        for node in (self.everywhere, *self.positions[1:]):
            if node is not None:
                self._read(node, [TOKENS])
        length = space.width(self.everywhere) if self.everywhere is not None else None
        if length is not None:
            left = space.pair("x - y", length, INDICES, Kind.POSITION)
            self.lengths = [node for node in (length, left) if node is not None]
        for selector in self._token_selectors():
            for where in self.positions:
                if (both := space.both(selector, where)) is not None:
                    self._read(both, [TOKENS, INDICES])
        self._extremes()
        self._differences()
        self._sums()
        for text in ("k == q - 2", *(f"k == {place}" for place in range(min(space.tokens.shape[1], 6)))):
            if (node := space.select(text, INDICES, INDICES)) is not None:
                space.gather(node, TOKENS)
        self.holding = self.tests([TOKENS])[: 2 * MOST_CONSTANTS]
        self.tests([INDICES])

    def _extremes(self) -> None:
        """Means of powers of tokens: the largest token outweighs all others, as in a sharp softmax."""
        space, base = self.space, self.space.tokens.shape[1] + 1
        highest = space.vocab[-1]
        if base ** (highest + 1) > 2**50:
            return
        for text in (f"{base} ** x", f"{base} ** ({highest} - x)"):
            powers = space.map(text, self.low if text.endswith("x") else TOKENS)
            for where in (self.everywhere, *self.positions[1:]):
                if powers is not None and where is not None:
                    space.mean(where, powers)

    def _sums(self) -> None:
        """The sum of the tokens, everywhere and up to here, special ones counted as 0."""
        space = self.space
        counted: Node | None = TOKENS
        if space.specials:
            tests = " or ".join(f"x == {token}" for token in space.specials[:4])
            counted = space.map(f"0 if {tests} else x", TOKENS)
        up_to = self.everywhere if space.causal else space.select("k <= q", INDICES, INDICES)
        for where in dict.fromkeys((self.everywhere, up_to)):
            mean = None if where is None or counted is None else space.mean(where, counted)
            width = None if where is None else space.width(where)
            if mean is not None and width is not None:
                self._signs(space.pair("round(x * y)", mean, width))

    def _signs(self, total: Node | None) -> None:
        """A sum, less a multiple of how many it is of."""
        space = self.space
        if total is None:
            return
        self.totals.append(total)
        for count in (INDICES, *self.lengths):
            for factor in ("y", *(f"{token} * y" for token in space.vocab[2:6])):
                space.pair(f"x - {factor}", total, count)

    def _differences(self) -> None:
        """How much more often one token occurs than another, everywhere and so far: as numbers, and as a share of all
        positions, which is what a head that attends to all of them alike gives."""
        space, up_to = self.space, self.space.select("k <= q", INDICES, INDICES)
        for where in {None, None if space.causal else up_to}:
            counts = []
            for token in space.vocab[:6]:
                selector = space.both(space.select(f"k == {token}", TOKENS, TOKENS), where)
                count = None if selector is None else space.width(selector)
                counts += [] if count is None else [count]
            self.counts += counts
            for place, second in enumerate(counts):
                for first in counts[:place]:
                    space.pair("x - y", first, second)
            everything = self.everywhere if where is None else where
            for second, first in itertools.combinations(space.vocab[:6], 2):
                balance = space.map(f"(x == {first}) - (x == {second})", TOKENS)
                if balance is not None and everything is not None:
                    space.mean(everything, balance)

    def grams(self) -> list[Node]:
        """Two and three tokens in a row as one number, and tests of them."""
        space, count = self.space, max(self.space.tokens.max(), 1) + 1
        selector = space.select("k == q - 1", INDICES, INDICES)
        before = None if selector is None else space.gather(selector, TOKENS)
        if selector is None or before is None or len(space.vocab) > 4:
            return []
        two = space.pair(f"{count} * x + y", before, TOKENS, Kind.TOKEN)
        earlier = None if two is None else space.gather(selector, two)
        three = None if earlier is None else space.pair(f"{count} * x + y", earlier, TOKENS, Kind.TOKEN)
        found = []
        for node in (two, three if len(space.vocab) < 3 else None):
            if node is None:
                continue
            for value in np.unique(space.values[node][space.run.is_token]).astype(int)[:40]:
                test = space.map(f"x == {value}", node, Kind.TRUTH)
                found += [] if test is None else [test]
        return found

    def _token_selectors(self) -> Iterator[Node]:
        space, low = self.space, self.low
        texts = [("k == q", TOKENS), ("k < q", TOKENS), ("k > q", low), ("k <= q", TOKENS), ("k >= q", low)]
        vocab = space.vocab[:MOST_CONSTANTS]
        texts += [(f"k == {token}", TOKENS) for token in vocab]
        texts += [(f"k >= {token}", low) for token in vocab[1:]] + [(f"k <= {token}", TOKENS) for token in vocab[:-1]]
        texts += [("k % 2 == 0", low)] if len(vocab) > 3 else []
        texts += [("k == q + 1", TOKENS), ("k == q - 1", low)]
        for text, node in texts:
            if (selector := space.select(text, node, node)) is not None:
                yield selector

    def _read(self, selector: Node, values: Iterable[Node]) -> None:
        """What a selector counts, and what it gathers of `values`."""
        self.space.width(selector)
        for value in values:
            self.space.gather(selector, value)

    def tests(self, pool: Sequence[Node]) -> list[Node]:
        """Tests of one s-op against constants; those for equality."""
        space = self.space
        equal: list[Node] = []
        for node in pool:
            if self.is_over():
                return equal
            kind = space.kinds[node]
            if kind is Kind.TRUTH:
                space.map("not x", node, Kind.TRUTH)
                continue
            values = np.unique(space.values[node][space.run.is_token])
            constants = [int(v) for v in values if float(v).is_integer()][:MOST_CONSTANTS]
            for constant in constants:
                test = space.map(f"x == {constant}", node, Kind.TRUTH)
                equal += [] if test is None else [test]
            for constant in constants[1:]:
                space.map(f"x >= {constant}", node, Kind.TRUTH)
            if len(constants) == len(values) > 2:
                space.map("x % 2", node, Kind.NUMBER)
                if len(values) > 3:
                    space.map("x % 3", node, Kind.NUMBER)
        return equal
