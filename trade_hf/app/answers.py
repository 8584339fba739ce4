"""What the demo answers, as parts of a page. Everything here runs in the worker, within its limits of time and memory.

A model is asked about as {"code", "vocab", "length", "scramble"}, which is compiled, or as {"file"}.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from trade_hf.app.keep import keep_html
from trade_hf.app.settings import MAX_CODE, SCRAMBLES, domain, named
from trade_hf.app.silence import silence_html
from trade_hf.certificate import Certificate, certify
from trade_hf.compiled.compiler import compile_program
from trade_hf.compiled.weights import TracrWeights
from trade_hf.decompiler import Decompilation, decompile_with, load_model
from trade_hf.drawing import draw_layers
from trade_hf.provenance import LineOrigin, confirm, provenance
from trade_hf.rasp.folding import folded
from trade_hf.rasp.functions import Value
from trade_hf.rasp.program import Program, variable_name
from trade_hf.rasp.text import parse
from trade_hf.report.graph import graph_svg
from trade_hf.report.heatmaps import attention_html, weights_html
from trade_hf.report.highlight import code_html
from trade_hf.report.markup import Html, element, join, listed, scrolling
from trade_hf.report.page import (
    attempts_html,
    certificate_html,
    counterexample_html,
    example_inputs,
    examples_html,
    reservations_html,
    values_on,
    verdict_html,
)
from trade_hf.report.shape import shape_html
from trade_hf.verification import Status

MAX_STEPS, BUDGET_SECONDS = 10_000, 8.0  # of the search: some 1 s, and a limit where the machine is busy
SEED = 0  # of the scramble
Say = Callable[[str], object]


def decompile_answer(request: dict[str, Any], say: Say) -> dict[str, str]:
    """Parts of the page by name: lead, places, input, known, weights, tried, keep; the program's code as `found`; and
    as `tokens` the input that is shown, which is the request's where the model takes that.

    Raises ValueError with one line for a bad request.
    """
    plain, given = _models(request, say)
    say("Reading the weights: candidates are written, compiled and compared")
    result = decompile_with(load_model(), given, budget_seconds=BUDGET_SECONDS, max_steps=MAX_STEPS)
    say("Writing the certificate")
    certificate = certify(result.program, given)
    say("Finding each line in the layers; silencing parts to confirm it")
    origins = _origins(result.program, given)
    say("Drawing")
    tokens = _fitting(request["tokens"], given)
    return {
        "found": result.code,
        "lead": _lead(result, certificate),
        "known": join(
            [certificate_html(certificate), counterexample_html(result.verdict), reservations_html(result.verdict)]
        ),
        "places": _places(result.program, given, origins),
        "tokens": ", ".join(map(str, tokens)),
        "input": _on_input(result.program, given, tokens, origins),
        "weights": _weights(result.program, plain, given, origins, request.get("scramble", "")),
        "tried": attempts_html(result),
        "keep": keep_html(request, result, certificate, given),
    }


def input_answer(request: dict[str, Any], say: Say) -> str:
    """What the model of a request does on `tokens`, with `found`, the code that was recovered from it.

    Raises ValueError with one line for an input that the model does not take.
    """
    _, given = _models(request, say)
    program, tokens = parse(request["found"]), _tokens(request["tokens"], given)
    say("Running the model")
    return _on_input(program, given, tokens, _origins(program, given))


def silence_answer(request: dict[str, Any], say: Say) -> str:
    """What the model of a request gives on `tokens` without the parts of `line`, as in `v2`, of the program `found`.

    Raises ValueError with one line for an input that the model does not take, or for no such line.
    """
    _, given = _models(request, say)
    program, tokens = parse(request["found"]), _tokens(request["tokens"], given)
    names = [variable_name(line) for line in range(len(program))]
    if request["line"] not in names:
        raise ValueError(f"line: expected one of {', '.join(names)}, got {str(request['line'])[:80]}")
    say("Silencing the line's parts")
    return silence_html(program, given, tokens, names.index(request["line"]), _origins(program, given))


def _models(request: dict[str, Any], say: Say) -> tuple[TracrWeights, TracrWeights]:
    """The model as it was compiled and as it is given to the decompiler."""
    if "file" in request:
        say("Reading the file")
        weights = TracrWeights.load(Path(request["file"]))
        return weights, weights
    say("Compiling")
    weights = _compiled(request["code"], request["vocab"], request["length"])
    return weights, SCRAMBLES[request["scramble"]](weights, SEED)


def _compiled(code: str, vocab: str, length: int) -> TracrWeights:
    if not code.strip():
        raise ValueError("expected a RASP program, got none: write one, or choose an example")
    if len(code) > MAX_CODE:
        raise ValueError(f"expected a program of at most {MAX_CODE:,} characters, got {len(code):,}")
    over = domain(vocab, length)
    return compile_program(folded(parse(code), *over), *over)


def _tokens(text: str, weights: TracrWeights) -> tuple[Value, ...]:
    """The tokens of an input; a number that the vocabulary holds as a string is that string."""
    known, tokens = weights.input_vocab, []
    for token in named("input", text):
        token = token if token in known else str(token)
        if token not in known:
            raise ValueError(f"input: expected tokens of {', '.join(map(str, known))}, got {str(token)[:80]}")
        tokens.append(token)
    if len(tokens) > weights.max_seq_len:
        raise ValueError(f"input: expected at most {weights.max_seq_len} tokens, got {len(tokens)}")
    return tuple(tokens)


def _fitting(text: str, weights: TracrWeights) -> tuple[Value, ...]:
    try:
        return _tokens(text, weights)
    except ValueError:
        return example_inputs(weights)[-1]


# ---------------------------------------------------------------- parts


def _lead(result: Decompilation, certificate: Certificate) -> Html:
    heading = element("h2", "The program, read from the weights alone")
    tried = f"{result.candidates} tried in {result.seconds:.2g} s"
    about = f"{len(result.program)} lines, {result.source.value}; {tried}. "
    if result.status is Status.REFUTED:
        about = f"The best program that was found; the model computes something else. {about}"
    verdict = verdict_html(certificate.verdict, certificate.summary)
    copy = element("button", "Copy the program", type="button", class_="copy")
    return join([heading, verdict, code_html(result.code, anchors=True), element("p", about, copy, class_="note")])


def _origins(program: Program, weights: TracrWeights) -> tuple[LineOrigin, ...] | None:
    """Where each line is; None where the model's parts are not those of the program."""
    try:
        return provenance(program, weights)
    except ValueError:
        return None


def _places(program: Program, weights: TracrWeights, origins: Sequence[LineOrigin] | None) -> Html:
    graph = element("figure", graph_svg(program, origins or ()))
    if origins is None:
        words = "Its parts are not those that Tracr makes of this program, so no line is assigned to a layer."
        return join([element("p", words, class_="note"), graph])
    drawing = scrolling(Html(draw_layers(program, weights, origins)), "the program beside the layers")
    where = [element("h3", "Where each line is"), element("figure", drawing), _confirmed(program, weights, origins)]
    return join([*where, element("h3", "Data flow"), graph])


def _confirmed(program: Program, weights: TracrWeights, origins: Sequence[LineOrigin]) -> Html:
    """Which lines' places silencing confirms."""
    sure = confirm(program, weights, origins)
    unsure = [variable_name(origin.line) for origin, is_sure in zip(origins, sure, strict=True) if not is_sure]
    test = "with its parts silenced, its own values change, and of the others only those that depend on it"
    words = f"Not confirmed by silencing: {', '.join(unsure)}." if unsure else f"Confirmed for each line: {test}."
    return element("p", words, class_="note")


def _on_input(
    program: Program, weights: TracrWeights, tokens: tuple[Value, ...], origins: Sequence[LineOrigin] | None
) -> Html:
    outputs = examples_html(program, weights, [tokens, *example_inputs(weights)])
    heading = element("h3", "What the heads attend to on ", listed(tokens))
    lines = [element("h3", "What each line gives on ", listed(tokens)), values_on(program, weights, tokens)]
    return join([*lines, heading, attention_html(weights, tokens, origins or ()), outputs])


def _weights(
    program: Program,
    plain: TracrWeights,
    given: TracrWeights,
    origins: Sequence[LineOrigin] | None,
    scramble: str,
) -> Html:
    if given is plain:
        return join([shape_html(given), weights_html(given, origins or ())])
    words = f"The decompiler sees only the weights under “after”. The change: {scramble}, with seed {SEED}."
    after = element("section", element("h2", "After the scramble"), weights_html(given, origins or ()))
    before = weights_html(plain, _origins(program, plain) or ())
    before = element("section", element("h2", "Before, as Tracr compiles it"), before)
    return join([shape_html(given), element("p", words, class_="note"), after, before])
