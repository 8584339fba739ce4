"""Programs that the demo begins with."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Example:
    """A program's text, tokens separated by commas, the longest input, how the basis is scrambled, and an input."""

    name: str
    code: str
    vocab: str = "0, 1, 2, 3, 4"
    length: int = 5
    scramble: str = "permute"
    tokens: str = "3, 1, 0, 4"


EXAMPLES = (
    Example(
        "Reverse",
        """v1 = rasp.Select(rasp.tokens, rasp.tokens, rasp.Comparison.TRUE)
v2 = rasp.SelectorWidth(v1)
v3 = rasp.SequenceMap(lambda x, y: x - y, v2, rasp.indices)
v4 = rasp.Map(lambda x: x - 1, v3)
v5 = rasp.Select(rasp.indices, v4, rasp.Comparison.EQ)
program = rasp.Aggregate(v5, rasp.tokens)
""",
    ),
    Example(
        "Histogram",
        """v1 = rasp.Select(rasp.tokens, rasp.tokens, rasp.Comparison.EQ)
program = rasp.SelectorWidth(v1)
""",
        scramble="rotate",
        tokens="3, 1, 1, 4",
    ),
    Example(
        "Sort",
        """v1 = rasp.Select(rasp.tokens, rasp.tokens, rasp.Comparison.LT)
v2 = rasp.SelectorWidth(v1)
v3 = rasp.Select(v2, rasp.indices, rasp.Comparison.EQ)
program = rasp.Aggregate(v3, rasp.tokens)
""",
    ),
    Example(
        "Share of 2s so far",
        """v1 = rasp.Select(rasp.indices, rasp.indices, rasp.Comparison.LEQ)
v2 = rasp.numerical(rasp.Map(lambda x: x == 2, rasp.tokens))
program = rasp.numerical(rasp.Aggregate(v1, v2, default=0))
""",
        tokens="2, 1, 2, 2",
    ),
    Example(
        "Words",
        """v1 = rasp.Map(lambda x: {"the": 0, "cat": 1, "dog": 1, "sees": 2}.get(x), rasp.tokens)
v2 = rasp.Select(v1, v1, rasp.Comparison.EQ)
program = rasp.SelectorWidth(v2)
""",
        vocab="the, cat, dog, sees",
        length=5,
        tokens="the, cat, sees, the, dog",
    ),
    Example(
        "Noisy: refuted",
        """v1 = rasp.Select(rasp.tokens, rasp.tokens, rasp.Comparison.EQ)
program = rasp.SelectorWidth(v1)
""",
        vocab="a, b, c",
        scramble="noise 1 %",
        tokens="a, b, b, a",
    ),
    Example(
        "Noisy and long: only sampled",
        """v1 = rasp.Select(rasp.tokens, rasp.tokens, rasp.Comparison.EQ)
program = rasp.SelectorWidth(v1)
""",
        vocab="a, b, c, d, e, f, g, h, i, j, k, l",
        length=6,
        scramble="noise 0.1 %",
        tokens="a, b, b, c, a",
    ),
)
