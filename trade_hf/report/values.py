"""What each line of a program gives on an input, position by position, as RASP means it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from trade_hf.rasp.evaluate import evaluate
from trade_hf.rasp.functions import Value
from trade_hf.rasp.program import INDICES, TOKENS, Line, Program, Type, Variable, variable_name
from trade_hf.rasp.tables import sort_values
from trade_hf.report.markup import Html, element, join, shown, table

Row = list[Value | None]


def values_html(program: Program, tokens: Sequence[Value], vocab: Sequence[Value], length: int, causal: bool) -> Html:
    """A table with a row for each line: an s-op's values, and for a selector the positions that each one selects."""
    rows: list[list[object]] = [["tokens", *map(shown, tokens)]]
    for number, values in enumerate(line_values(program, tokens, vocab, length, causal)):
        is_selector = program.lines[number].op.result is Type.SELECTOR
        cells = [_positions(value) if is_selector else _number(value) for value in values]
        name = variable_name(number)
        rows.append([element("span", name, data_line=name), *cells])
    head = ["", *(f"position {position}" for position in range(len(tokens)))]
    words = "What each line gives; for a selector, the positions that each position selects"
    return join([table(head, rows, words)])


def line_values(
    program: Program, tokens: Sequence[Value], vocab: Sequence[Value], length: int, causal: bool
) -> list[list]:
    """For each line its value at each position: of a selector the positions that are selected.

    Args:
      program: over the tokens of `vocab`.
      tokens: the input.
      vocab, length: the model's tokens, and its longest input.
      causal: whether selectors select no key after the query.
    """
    known: dict[Variable, Row] = {TOKENS: list(tokens), INDICES: list(range(len(tokens)))}
    ordered = tuple(sort_values(vocab))
    codes = np.array([[ordered.index(token) for token in tokens]])
    found: list[list] = []
    for number, line in enumerate(program.lines):
        if line.op.result is Type.SELECTOR:
            found.append(_selected(line, known, causal))
            continue
        part = Program(program.lines[: number + 1])
        known[number] = evaluate(part, codes, ordered, length, causal).decode(0)
        found.append(known[number])
    return found


def _selected(line: Line, known: dict[Variable, Row], causal: bool) -> list[list[int]]:
    """For each position the positions that a select selects there."""
    assert line.function is not None
    keys, queries = (known[argument] for argument in line.args)
    return [
        [
            position
            for position, key in enumerate(keys[: place + 1] if causal else keys)
            if key is not None and query is not None and line.function(key, query)
        ]
        for place, query in enumerate(queries)
    ]


def _positions(positions: list[int]) -> str:
    return ", ".join(map(str, positions)) or "none"


def _number(value: Value | None) -> str:
    return f"{round(value, 4) + 0.0:g}" if isinstance(value, float) else shown(value)
