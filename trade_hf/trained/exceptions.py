"""A program that is right but for a few inputs, made equal: those inputs are listed, as cells of a table.

A model's own errors follow no rule. An input is packed into one number, the mean of its tokens times powers of a base,
and a table says what the model answers there.
"""

from __future__ import annotations

import numpy as np

from trade_hf.rasp.program import INDICES, TOKENS, RaspError
from trade_hf.trained.answers import Answers
from trade_hf.trained.domain import Domain
from trade_hf.trained.expression import Expression, Table, to_set
from trade_hf.trained.program import Line, Op, Program

LINES = 6  # that a list of exceptions takes


def with_exceptions(program: Program, domain: Domain, answers: Answers, most_cells: int) -> Program | None:
    """The program with a table of the answers that it gets wrong; None where they are too many.

    Args:
      program: gives most answers.
      domain, answers: the model's.
      most_cells: of the program, exceptions included.
    """
    wrong = answers.differ(program.evaluate(domain.tokens))
    rows, places = np.nonzero(wrong)
    if not 0 < len(rows) <= most_cells - program.table_cells:
        return None
    base = int(domain.tokens.max()) + 2
    lines = [
        Line(Op.MAP, (INDICES,), Expression(f"{base} ** x", ("x",))),
        Line(Op.SEQUENCE_MAP, (TOKENS, 0), Expression("(x + 1) * y", ("x", "y"))),
        Line(Op.SELECT, (INDICES, INDICES), Expression("True", ("k", "q"))),
        Line(Op.AGGREGATE, (2, 1)),
    ]
    try:
        packed = Program(tuple(lines)).evaluate(domain.tokens)[rows, places]
        keys = list(zip(packed.tolist(), places.astype(float).tolist(), strict=True))
        listed = answers.values[rows, places].tolist()
        value = to_set if answers.are_sets else float
        nothing: float | frozenset[int] = frozenset() if answers.are_sets else -1.0
        entries = tuple((key, value(answer)) for key, answer in zip(keys, listed, strict=True))
        start = len(lines)
        lines += [
            Line(line.op, tuple(a + start if a >= 0 else a for a in line.args), line.function, line.default)
            for line in program.lines
        ]
        lines.append(Line(Op.SEQUENCE_MAP, (3, INDICES), Table(entries, nothing, ("x", "y"))))
        text = "x if x else y" if answers.are_sets else "y if x < 0 else x"
        lines.append(Line(Op.SEQUENCE_MAP, (len(lines) - 1, len(lines) - 2), Expression(text, ("x", "y"))))
        return Program(tuple(lines))
    except RaspError:  # inputs too long to be one exact number, or two of them with the same
        return None
