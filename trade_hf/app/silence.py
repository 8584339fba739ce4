"""What a line's parts are for: the model's output on one input as it is, and with the parts silenced."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from trade_hf.circuit.comparison import are_alike
from trade_hf.compiled.forward import run
from trade_hf.compiled.weights import TracrWeights
from trade_hf.provenance import LineOrigin, readers, without
from trade_hf.rasp.functions import Value
from trade_hf.rasp.program import Op, Program, Variable, variable_name
from trade_hf.report.markup import Html, element, join, listed, short, shown, table

UNKNOWN = "Its parts are not those that Tracr makes of this program, so no line has parts that could be silenced."
OF_TRAINED = "Of a trained model it is known where lines are held, not which parts could be silenced for one alone."


def silence_html(
    program: Program,
    weights: TracrWeights,
    tokens: Sequence[Value],
    line: Variable,
    origins: Sequence[LineOrigin] | None,
) -> Html:
    """The model's output on `tokens` before and after the parts of a line are silenced, and where it changes; one
    sentence for a line that has none of its own.

    Args:
      program: of the model, over its own tokens.
      line: of the program, counted from 0.
      origins: of `provenance`; None where the model's parts are not known.
    """
    if origins is None:
        return _sentence(UNKNOWN)
    origin = next((origin for origin in origins if origin.line == line), LineOrigin(line, ()))
    name = variable_name(line)
    if program.lines[line].op is Op.SELECT:
        names = ", ".join(map(variable_name, readers(program, line)))
        return _sentence(f"{name} has no part of its own: a select is in the head of the line that reads it, {names}.")
    if not origin.components:
        return _sentence(f"{name} has no part of its own in the model.")
    before, after = (_outputs(model, tokens) for model in (weights, without(weights, origins, line)))
    changes = [not _are_alike(*pair) for pair in zip(before, after, strict=True)]
    at = [str(position) for position, changed in enumerate(changes) if changed]
    words = f"changes at position{'s' if len(at) > 1 else ''} {', '.join(at)}" if at else "changes at no position"
    about = _sentence(f"{name} is {origin}. With that silenced, the model's output on {listed(tokens)} {words}.")
    rows = [
        [position, shown(token), short(ours), short(theirs), "≠" if changed else ""]
        for position, (token, ours, theirs, changed) in enumerate(zip(tokens, before, after, changes, strict=True))
    ]
    head = ["position", "token", "output", f"with {name} silenced", ""]
    return join([about, table(head, rows, label=f"the output with {name} silenced")])


def _sentence(words: str) -> Html:
    return element("p", words, class_="note")


def _outputs(weights: TracrWeights, tokens: Sequence[Value]) -> list[Value | None]:
    codes = [[weights.input_vocab.index(token) for token in tokens]]
    return run(weights, np.array(codes, np.int64)).defined(0)


def _are_alike(before: Value | None, after: Value | None) -> bool:
    if isinstance(before, float) and isinstance(after, float):
        return bool(are_alike(before, after))
    return before == after
