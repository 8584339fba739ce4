"""New s-ops from known ones, kind by kind: what a RASP program could compute next.

One round takes a pool of s-ops, the likelier first, and adds: tests of one and comparisons of two; selectors that
compare keys with queries, alone and together with a condition on positions or on tokens; what they count and gather;
and the last and the first position at which something holds. Two rounds give most algorithms of two attention layers.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from trade_hf.rasp.program import INDICES, TOKENS
from trade_hf.trained.beginning import Beginning
from trade_hf.trained.space import Kind, Node

MOST_COST = 13  # lines of an s-op that something is built on


class Grower(Beginning):
    """Adds nodes to a space, round by round."""

    # ------------------------------------------------------------ functions

    def comparisons(self, pool: Sequence[Node]) -> None:
        """Functions of two s-ops that are alike."""
        space = self.space
        for place, second in enumerate(pool):
            for first in pool[:place]:
                if self.is_over():
                    return
                kinds = space.kinds[first], space.kinds[second]
                if space.cost(first, second) >= MOST_COST:
                    continue
                texts: tuple[str, ...]
                if kinds == (Kind.TOKEN, Kind.TOKEN):
                    texts = ("x == y", "x < y", "x > y", "x != y")
                elif kinds == (Kind.TRUTH, Kind.TRUTH):
                    texts = ("x and y", "x or y", "x == y")
                elif all(kind.is_numeric for kind in kinds):
                    texts = ("x == y", "x < y", "x > y")
                    for text in ("x - y", "2 * x - y", "2 * y - x"):
                        space.pair(text, first, second, Kind.NUMBER)
                    if kinds == (Kind.NUMBER, Kind.NUMBER):
                        space.pair("x + y", first, second, Kind.NUMBER)
                else:
                    continue
                for text in texts:
                    space.pair(text, first, second, Kind.TRUTH)

    # ------------------------------------------------------------ attention

    def truths(self, pool: Sequence[Node]) -> None:
        """How often something holds, and the last and the first position where it does."""
        space = self.space
        for truth in pool:
            if self.is_over():
                return
            key = space.select("k", truth, INDICES)
            if key is None:
                continue
            for where in self.positions:
                if (both := space.both(key, where)) is not None:
                    self._read(both, [TOKENS])
            up_to = None if space.causal else space.select("k <= q", INDICES, INDICES)
            self.last_of(truth, space.both(key, up_to), [TOKENS, INDICES])
            if not space.causal:
                after = space.select("k == q + 1", INDICES, INDICES)
                following = None if after is None else space.gather(after, TOKENS)
                self.first_of(key, [TOKENS, INDICES, *([following] if following is not None else [])])

    def last_of(self, truth: Node, selector: Node | None, values: Iterable[Node]) -> None:
        """What stands at the last position up to this one where `truth` holds, and at the first one."""
        space = self.space
        count = None if selector is None else space.width(selector)
        if count is None:
            return
        numbered = space.pair("x * y", truth, count)
        if numbered is None:
            return
        for text in ("k == q", "k == 1", "k == q - 1"):
            if (found := space.select(text, numbered, count)) is not None:
                for value in values:
                    space.gather(found, value)

    def first_of(self, key: Node, values: Iterable[Node]) -> None:
        """What stands at the first and at the last position of all where `key` holds."""
        space = self.space
        for text in ("k < q", "k > q"):
            before = space.select(text, INDICES, INDICES)
            others = space.width(space.both(key, before)) if before is not None else None  # type: ignore[arg-type]
            for count in ("k == 0", "k == 1"):
                so_many = space.select(count, others, others) if others is not None else None
                if so_many is not None and (found := space.both(key, so_many)) is not None:
                    for value in values:
                        space.gather(found, value)

    def alike(self, pool: Sequence[Node]) -> None:
        """Selectors that compare an s-op with itself, and what they count and gather."""
        space = self.space
        for node in pool:
            if self.is_over():
                return
            if space.kinds[node] is Kind.TRUTH or space.cost(node) >= MOST_COST - 2:
                continue
            for text in ("k < q", "k > q", "k == q", "k == q - 1", "k <= q", "k >= q"):
                if (selector := space.select(text, node, node)) is None:
                    continue
                for where in (None, *self.positions[1:], self.same):
                    both = space.both(selector, where)
                    if both is None:
                        continue
                    self._read(both, [TOKENS, INDICES, node])
                    if where in (None, self.same) and text in ("k < q", "k > q"):
                        self.ranked(both)

    def ranked(self, selector: Node) -> None:
        """What stands where a rank is the least, the next one, or the number of the position."""
        space = self.space
        rank = space.width(selector)
        if rank is None:
            return
        for text in ("k == 0", "k == 1", "k == 2"):
            if (found := space.select(text, rank, rank)) is not None:
                self._read(found, [TOKENS, INDICES])
        for text in ("k == q", "k == q - 1"):
            if (found := space.select(text, rank, INDICES)) is not None:
                space.gather(found, TOKENS)

    def across(self, pool: Sequence[Node], values: Sequence[Node]) -> None:
        """Gathering by a number that is another position's place, and what is moved by it."""
        space = self.space
        for node in pool:
            if self.is_over():
                return
            if not space.kinds[node].is_numeric or node == INDICES or space.cost(node) >= MOST_COST - 2:
                continue
            for text in ("k == q", "k == q - 1", "k == q + 1"):
                for key, query in ((INDICES, node), (node, INDICES)):
                    if (selector := space.select(text, key, query)) is not None:
                        self._read(selector, values)
            for text in ("k > q", "k < q", "k >= q"):
                if (selector := space.select(text, INDICES, node)) is not None:
                    for where in (None, self.same, self.positions[1]):
                        if (both := space.both(selector, where)) is not None:
                            space.width(both)

    def shifting(self) -> list[Node]:
        """Selectors of the position before, the one after, the first, the last and the mirrored one."""
        space = self.space
        first = 1 if space.tokens[0, 0] in space.specials else 0
        texts = ["k == q - 1", f"k == {first}"] + ([] if space.causal else ["k == q + 1"])
        selectors = [space.select(text, INDICES, INDICES) for text in texts]
        if len(self.lengths) == 2 and not space.causal:
            length, left = self.lengths
            selectors.append(space.select("k == q - 1", INDICES, length))
            selectors += [space.select(text, INDICES, left) for text in ("k == q", "k == q - 1")]
        return [selector for selector in selectors if selector is not None]

    def shifts(self, pool: Sequence[Node]) -> list[Node]:
        """S-ops of the position before, the one after, the first, the last and the mirrored one."""
        found: list[Node | None] = []
        selectors = self.shifting()
        for node in pool:
            for selector in selectors:
                if self.is_over():
                    break
                found.append(self.space.gather(selector, node))
        return list(dict.fromkeys(node for node in found if node is not None))

    def scores(self, pool: Sequence[Node]) -> None:
        """Numbers that order positions by two s-ops, the first one first, and what stands where they are least."""
        space, widths = self.space, self.space.tokens.shape[1]
        spread = max(space.vocab[-1] + 2 + len(space.specials), widths)
        for node in pool:
            if self.is_over():
                return
            if not (space.kinds[node].is_numeric or space.kinds[node] in (Kind.TOKEN, Kind.TRUTH)):
                continue
            for other in {TOKENS, self.low, INDICES} - {node}:
                for text in (f"{spread} * x + y", f"{spread} * x - y"):
                    score = space.pair(text, node, other, Kind.NUMBER)
                    if score is None:
                        continue
                    for comparison in ("k < q", "k > q"):
                        selector = space.select(comparison, score, score)
                        if selector is not None:
                            self.ranked(selector)

    def joined(self, pool: Sequence[Node]) -> None:
        """Two conditions on keys and queries at once: the same token, and numbers that follow one another."""
        space = self.space
        if self.same is None:
            return
        for node in pool:
            if self.is_over():
                return
            if not space.kinds[node].is_numeric:
                continue
            for text in ("k == q", "k == q - 1", "k == q + 1", "k == 0", "k == 1"):
                selector = space.select(text, node, node)
                both = space.both(self.same, selector) if selector is not None else None
                if both is None:
                    continue
                after = space.select("k == q + 1", INDICES, INDICES)
                following = None if space.causal or after is None else space.gather(after, TOKENS)
                for where in (None, *self.positions[1:]):
                    third = space.both(both, where)
                    if third is not None:
                        self._read(third, [TOKENS, INDICES, *([following] if following is not None else [])])
