"""What the demo answers about a trained model: the same parts of the page. Everything here runs in the worker.

A model is asked about as {"trained": [paths of model.safetensors, config.json and domain.json]}.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from trade_hf.app.settings import FILES
from trade_hf.app.silence import OF_TRAINED
from trade_hf.arguments import parse_vocab
from trade_hf.report.highlight import code_html
from trade_hf.report.markup import Html, download, element, join
from trade_hf.report.trained import (
    agreement_html,
    attention_html,
    example_rows,
    examples_html,
    lead_html,
    mechanism_html,
    model_html,
)
from trade_hf.trained.candidate import MOST_LINES
from trade_hf.trained.causality import mechanism
from trade_hf.trained.decompilation import TrainedDecompilation, compare, decompile_trained
from trade_hf.trained.domain import Domain
from trade_hf.trained.text import parse
from trade_hf.trained.transformer import Transformer

SECONDS = 8.0  # of CPU time, of the search
Say = Callable[[str], object]


def decompile_answer(request: dict[str, Any], say: Say) -> dict[str, str]:
    """Parts of the page by name, as of a compiled model. Raises ValueError with one line for a bad request."""
    say("Reading the files")
    model, domain = _model(request)
    say("Searching a program that gives the model's answers on all inputs")

    def show(text: str) -> None:
        say(f"Searching: {text}")

    result = decompile_trained(model, domain, SECONDS, progress=show, learn=False)
    say("Drawing")
    tokens = domain.input(example_rows(domain)[-1])
    heading = element("h2", "The program that was found")
    return {
        "found": result.code,
        "lead": join([heading, lead_html(result), code_html(result.code, anchors=True), _about(result)]),
        "places": mechanism_html(result),
        "known": agreement_html(result),
        "tokens": ", ".join(map(str, tokens)),
        "input": _on_input(result, model, domain, tokens),
        "weights": model_html(model, domain),
        "tried": element("p", "Of a trained model, the best program is shown alone.", class_="note"),
        "keep": element("p", download(result.code, "program.py", "text/x-python")),
    }


def input_answer(request: dict[str, Any], say: Say) -> str:
    """What model and program do on `tokens`, with `found`, the code that was found for it. Raises ValueError."""
    model, domain = _model(request)
    program = parse(request["found"])
    try:
        tokens = [int(str(token)) for token in parse_vocab(request["tokens"])]
    except ValueError:
        raise ValueError(f"input: expected token ids separated by commas, got {request['tokens'][:80]!r}") from None
    say("Running the model")
    lines = tuple(mechanism(program, model, domain, learn=False))
    result = TrainedDecompilation(program, compare(program, model, domain), lines, 0.0, (), domain.tokens.shape[1])
    return _on_input(result, model, domain, tokens)


def silence_answer(request: dict[str, Any], say: Say) -> str:
    """Why no line's parts are silenced."""
    return element("p", OF_TRAINED, class_="note")


def _about(result: TrainedDecompilation) -> Html:
    words = f"{len(result.program)} lines of at most {MOST_LINES}, in {result.seconds:.2g} s."
    return element("p", words, class_="note")


def _on_input(result: TrainedDecompilation, model: Transformer, domain: Domain, tokens: list[int]) -> Html:
    examples = examples_html(result.program, model, domain.rows(example_rows(domain)))
    return join([attention_html(result, model, tokens), examples])


def _model(request: dict[str, Any]) -> tuple[Transformer, Domain]:
    """The model and its inputs, from files that are told apart by their names."""
    paths = {Path(path).name: Path(path) for path in request["trained"]}
    if set(paths) != set(FILES):
        raise ValueError(f"expected the files {', '.join(FILES)}, got {', '.join(sorted(paths)) or 'none'}")
    return Transformer.from_files(paths[FILES[0]], paths[FILES[1]]), Domain.load(paths[FILES[2]])
