"""The report: one page that says what was recovered from a model, how that is known, and how the model does it.

It opens from disk: no font, nothing from elsewhere, and one script, which marks what is of the same line (a content
security policy forbids all else). Its parts are functions that return HTML, for notebooks and the demo too; `block`
gives one of them its style.

trade decompile model.safetensors --report report.html
"""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from trade_hf.certificate import Certificate, certify
from trade_hf.compiled.compiler import compile_like
from trade_hf.compiled.forward import run
from trade_hf.compiled.weights import TracrWeights
from trade_hf.drawing import draw_layers
from trade_hf.rasp.evaluate import PADDING, Evaluation, evaluate
from trade_hf.rasp.functions import Value
from trade_hf.rasp.program import Program, RaspError
from trade_hf.rasp.tables import UnsupportedError, sort_values
from trade_hf.rasp.text import to_text
from trade_hf.report.graph import graph_svg
from trade_hf.report.heatmaps import attention_html, weights_html
from trade_hf.report.highlight import code_html
from trade_hf.report.markup import (
    Html,
    block,
    definitions,
    download,
    element,
    join,
    listed,
    script,
    scrolling,
    shown,
    style,
    table,
)
from trade_hf.report.shape import shape_html
from trade_hf.report.values import values_html
from trade_hf.verification import PROVEN, TOLERANCE, Status, Verdict

if TYPE_CHECKING:
    from trade_hf.decompiler import Attempt, Decompilation
    from trade_hf.provenance import LineOrigin

EXAMPLES, EXAMPLE_LENGTH = 6, 8  # inputs that are shown, tokens in them at most
NO_ANSWER = "no answer"
MAX_ATTEMPTS = 20  # that are listed
_PROVEN = tuple(status.value for status in PROVEN)


def report(
    result: Decompilation, weights: TracrWeights, name: str = "model.safetensors", origins: Sequence[LineOrigin] = ()
) -> str:
    """The page, of one model and what was recovered from it.

    Args:
      result: what `decompile` gave for the model.
      weights: the model.
      name: of its file, for the title.
      origins: which parts of the model each line is, where that is known.
    """
    certificate = certify(result.program, weights)
    examples = example_inputs(weights)
    sections = {
        "The program": _program_section(result),
        "How it is known": _certificate_section(certificate, result.verdict),
        "Data flow": graph_svg(result.program, origins),
        **({"Where each line is": _layers_html(result.program, weights, origins)} if origins else {}),
        "Inputs and outputs": examples_html(result.program, weights, examples),
        "What each line gives": values_on(result.program, weights, examples[-1]),
        "What the heads attend to": attention_html(weights, examples[-1], origins),
        "What was tried": attempts_html(result),
        "The model": join([shape_html(weights), weights_html(weights, origins)]),
    }
    return page(f"Decompiled: {name}", verdict_html(certificate.verdict, certificate.summary), sections)


def page(title: str, lead: Html, sections: dict[str, Html]) -> str:
    """A whole document out of parts."""
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=_policy()),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("link", rel="icon", href="data:,"),
        element("title", title),
        style(),
        element("script", Html(script())),
    )
    parts = [element("section", element("h2", heading), content) for heading, content in sections.items()]
    main = element("main", element("h1", title), lead, *parts, class_="trade page")
    footer = element("footer", "Made by trade decompile --report. Numbers of layers, heads and units count from 0.")
    body = element("body", main, footer, class_="trade-page")
    return f"<!doctype html>\n{element('html', head, body, lang='en')}\n"


def _policy() -> str:
    """Of the page's content: no script but its own."""
    digest = base64.b64encode(hashlib.sha256(script().encode()).digest()).decode()
    return f"default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src 'sha256-{digest}'"


# ---------------------------------------------------------------- parts


def verdict_html(status: str, summary: str) -> Html:
    """The verdict in words, with a plain word in front: proven or not."""
    if status in _PROVEN:
        return element("p", element("strong", "Proven"), " ", summary, class_="verdict proven")
    kind = "refuted" if status == Status.REFUTED.value else "doubtful"
    return element("p", element("strong", "Not proven"), " ", summary, class_=f"verdict {kind}")


def decompilation_html(result: Decompilation) -> Html:
    """What a notebook shows of a result."""
    about = f"{len(result.program)} lines · {result.candidates} tried · {result.seconds:.2g} s"
    return block(
        verdict_html(result.status.value, result.certificate),
        code_html(result.code),
        element("p", about, class_="note"),
    )


def _program_section(result: Decompilation) -> Html:
    form = "in canonical form" if result.verdict.is_verified else "the best that was found"
    words = f"{len(result.program)} lines, {form}; {result.source.value}. It runs with the tracr package."
    link = download(result.code, "program.py", "text/x-python")
    return join([code_html(result.code, anchors=True), element("p", words, " ", link, class_="note")])


def _layers_html(program: Program, weights: TracrWeights, origins: Sequence[LineOrigin]) -> Html:
    return element("figure", scrolling(Html(draw_layers(program, weights, origins)), "the program beside the layers"))


def _certificate_section(certificate: Certificate, verdict: Verdict) -> Html:
    return join([certificate_html(certificate), counterexample_html(verdict), reservations_html(verdict)])


def certificate_html(certificate: Certificate) -> Html:
    """The certificate in words, the document itself to save, and how to check it again."""
    share = f"{certificate.checked:,} of {certificate.inputs:,}"
    pairs: list[tuple[object, object]] = [
        ("Inputs covered", f"all {certificate.inputs:,}" if certificate.checked == certificate.inputs else share),
    ]
    if certificate.bound is not None:
        bound = f"at most {certificate.bound:.2g} of all inputs, with {certificate.confidence:.0%} confidence"
        pairs += [("May differ on", bound), ("Seed of the sample", certificate.seed)]
    pairs += [
        ("Arithmetic", " and ".join(certificate.holds_in) or "nothing was run"),
        ("Tolerance for numbers", certificate.tolerance),
        ("SHA-256 of the weights", element("code", certificate.weights_sha256)),
        ("SHA-256 of the program", element("code", certificate.program_sha256)),
        ("Versions", ", ".join(f"{name} {version}" for name, version in certificate.versions.items())),
    ]
    again = "trade verify MODEL.safetensors --certificate certificate.json"
    link = download(certificate.to_json(), "certificate.json", "application/json")
    words = element("p", "To check it again: ", link, ", and beside the model run")
    found = element("p", certificate.summary[:1].upper() + certificate.summary[1:], ": ", certificate.method, ".")
    return join([found, definitions(pairs), words, scrolling(element("pre", element("code", again)), "command")])


def reservations_html(verdict: Verdict) -> Html:
    """What the verdict is to be read with: where the precisions disagree, faint outputs, and where RASP itself says
    something else, with the first input of each; and what the model cannot tell apart."""
    titles = {
        "elsewhere": "Where they differ in the other precision",
        "faint": "Where the program gives None and the model something faint",
        "departure": "Where RASP itself says something else than what Tracr makes of the program",
    }
    sides = {"departure": ("RASP", "Tracr's model")}
    found = []
    for name, difference in verdict.reservations.items():
        if difference is not None:
            rows = _rows_of_outputs(difference.first, difference.expected, difference.got)
            head = ["position", "token", *sides.get(name, ("program", "model")), ""]
            found.append(table(head, rows, f"{titles[name]}: {difference}"))
    found += [element("p", limit[:1].upper() + limit[1:], ".", class_="note") for limit in verdict.limits]
    return join(found)


def _rows_of_outputs(tokens: tuple, expected: tuple | None, got: tuple | None) -> list[list[object]]:
    """What two sides give, position by position; nothing for a side that has no answer."""
    sides = [side or (NO_ANSWER,) * len(tokens) for side in (expected, got)]
    rows = []
    for position, (token, ours, theirs) in enumerate(zip(tokens, *sides, strict=True)):
        words = [NO_ANSWER if value is NO_ANSWER else shown(value) for value in (ours, theirs)]
        rows.append([position, shown(token), *words, "≠" if ours != theirs else ""])
    return rows


def counterexample_html(verdict: Verdict) -> Html:
    """Where program and model differ, position by position; nothing if no such input is known."""
    if verdict.counterexample is None:
        return Html("")
    rows = _rows_of_outputs(verdict.counterexample, verdict.expected, verdict.got)
    head = ["position", "token", "program", "model", ""]
    return table(head, rows, "A counterexample: an input on which program and model differ")


def example_inputs(weights: TracrWeights, count: int = EXAMPLES, seed: int = 0) -> list[tuple[Value, ...]]:
    """A few inputs of growing length, of `EXAMPLE_LENGTH` tokens at most."""
    rng = np.random.RandomState(seed)
    longest, tokens = min(weights.max_seq_len, EXAMPLE_LENGTH), sort_values(weights.input_vocab)
    lengths = np.linspace(1, longest, count).round().astype(int)
    drawn = [tuple(tokens[i] for i in rng.randint(0, len(tokens), length)) for length in lengths]
    return list(dict.fromkeys(drawn))


def examples_html(program: Program, weights: TracrWeights, inputs: Sequence[Sequence[Value]]) -> Html:
    """What program and model give on some inputs. As in a certificate, a program means what Tracr makes of it; where
    RASP says something else, that stands beside it."""
    head = "Outputs, one for each token"
    given = run(weights, _encoded(inputs, weights.input_vocab))
    try:
        compiled = compile_like(program, weights)
    except UnsupportedError as error:
        rows = [[listed(tokens), listed(given.defined(row))] for row, tokens in enumerate(inputs)]
        return table(["input", "model"], rows, f"{head}; the program does not compile: {error}")
    made = run(compiled, _encoded(inputs, compiled.input_vocab))
    vocab = tuple(sort_values(weights.input_vocab))
    meant = evaluate(program, _encoded(inputs, vocab), vocab, weights.max_seq_len, weights.causal)
    rows = []
    for row, tokens in enumerate(inputs):
        ours, theirs = made.defined(row), given.defined(row)
        rows.append([listed(tokens), listed(ours), listed(theirs), _in_rasp(meant, row, ours)])
    has_none = any("None" in row[1] + row[2] for row in rows)
    note = element("p", "None: no output direction is on.", class_="note") if has_none else ""
    return join([table(["input", "program", "model", ""], rows, head), note])


def values_on(program: Program, weights: TracrWeights, tokens: Sequence[Value]) -> Html:
    """What each line gives on an input; a word instead where the program cannot be run."""
    try:
        return values_html(program, tokens, weights.input_vocab, weights.max_seq_len, weights.causal)
    except (UnsupportedError, RaspError) as error:
        return element("p", f"The program cannot be run: {error}.", class_="note")


def _encoded(inputs: Sequence[Sequence[Value]], vocab: Sequence[Value]) -> np.ndarray:
    """[input, position] places in a vocabulary."""
    codes = np.full((len(inputs), max(map(len, inputs))), PADDING, np.int64)
    for row, tokens in enumerate(inputs):
        codes[row, : len(tokens)] = [vocab.index(token) for token in tokens]
    return codes


def _in_rasp(meant: Evaluation, row: int, made: Sequence[Value | None]) -> str:
    if not meant.valid[row]:
        return "no defined answer in RASP"
    said = meant.decode(row)
    if meant.values is None:
        return "" if np.allclose(said, made, atol=TOLERANCE) else f"RASP: {listed(said)}"  # type: ignore[arg-type]
    return "" if said == made else f"RASP: {listed(said)}"


def attempts_html(result: Decompilation) -> Html:
    """The programs that were tried, in order, each with its code to open; the returned one is always among them."""
    numbered = list(enumerate(result.attempts))
    listed_ones = numbered[:MAX_ATTEMPTS]
    if result.chosen >= MAX_ATTEMPTS:
        listed_ones.append(numbered[result.chosen])
    rows = [_attempt_row(number, attempt, number == result.chosen) for number, attempt in listed_ones]
    head = ["", "verdict", "code", "where it comes from", "log-likelihood"]
    words = f"{len(numbered)} tried in {result.seconds:.2g} s"
    return table(
        head, rows, words if len(listed_ones) == len(numbered) else f"{words}; {len(listed_ones)} of them listed"
    )


def _attempt_row(number: int, attempt: Attempt, is_chosen: bool) -> list[object]:
    label = element("strong", f"{number + 1}, returned") if is_chosen else str(number + 1)
    code = element("details", element("summary", f"{len(attempt.program)} lines"), code_html(to_text(attempt.program)))
    return [
        label,
        element("div", attempt.verdict, class_="words"),
        code,
        element("div", attempt.source.value, class_="words"),
        "–" if math.isnan(attempt.score) else f"{attempt.score:.3g}",
    ]
