"""The page about a trained model: its program, how far the two agree, and where in the model each line is.

trade decompile FOLDER --report report.html
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from trade_hf.rasp.program import RaspError
from trade_hf.report.heatmaps import pattern_svg
from trade_hf.report.highlight import code_html
from trade_hf.report.markup import Html, block, definitions, download, element, join, listed, shown, table
from trade_hf.report.page import page, verdict_html
from trade_hf.trained.answers import Answers, spoken
from trade_hf.trained.causality import Mechanism, selectors, verdict
from trade_hf.trained.decompilation import TrainedDecompilation
from trade_hf.trained.domain import PADDING, Domain
from trade_hf.trained.evidence import patterns
from trade_hf.trained.program import Program
from trade_hf.trained.transformer import Transformer

EXAMPLES = 8  # inputs that are shown
LONGEST = 16  # tokens of an input whose attention is drawn


def report(result: TrainedDecompilation, model: Transformer, domain: Domain, name: str = "model", seed: int = 0) -> str:
    """The page of one model.

    Args:
      result: what `decompile_trained` gave for the model.
      model, domain: the model and its inputs.
      name: of its folder, for the title.
      seed: of the inputs that are shown.
    """
    rows = example_rows(domain, seed)
    sections = {
        "The program": _program_section(result),
        "How far they agree": agreement_html(result),
        "Where each line is": mechanism_html(result),
        "Attention beside the selectors": attention_html(result, model, domain.input(rows[-1])),
        "Inputs and outputs": examples_html(result.program, model, domain.rows(rows)),
        "The model": model_html(model, domain),
    }
    return page(f"Decompiled: {name}", lead_html(result), sections)


def lead_html(result: TrainedDecompilation) -> Html:
    """The verdict, and whether the model uses the lines."""
    words = verdict(result.mechanism) if result.mechanism else "where in the model each line is was not looked for"
    sentence = f"{words[:1].upper()}{words[1:]}."
    return join([verdict_html(_status(result), result.certificate), element("p", sentence)])


def _status(result: TrainedDecompilation) -> str:
    """Of a program that is too large to explain anything, nothing is called proven."""
    return result.status.value if result.is_small or result.comparison.first else "too large"


def decompilation_html(result: TrainedDecompilation) -> Html:
    """What a notebook shows of a result."""
    return block(lead_html(result), code_html(result.code), mechanism_html(result))


def _program_section(result: TrainedDecompilation) -> Html:
    compiles = "Tracr compiles it" if result.program.compiles(result.vocab, result.max_seq_len) else "Tracr runs it"
    words = f"{len(result.program)} lines, {result.program.table_cells:,} table cells; {compiles}."
    link = download(result.code, "program.py", "text/x-python")
    return join([code_html(result.code, anchors=True), element("p", words, " ", link, class_="note")])


def agreement_html(result: TrainedDecompilation) -> Html:
    """How many inputs were run, on how many they agree, and the first on which they do not."""
    found = result.comparison
    share = 100 * found.agreeing / found.inputs
    pairs: list[tuple[object, object]] = [
        ("Inputs of the domain", f"{found.of:,}, of which {found.inputs:,} were run"),
        ("All answers equal", f"{found.agreeing:,} ({share:.2f} %)"),
        ("Differ in double precision", f"{found.double:,} inputs"),
        ("Answers", f"{found.answers:,}, in {result.program.table_cells:,} table cells of the program"),
        ("Smallest logit gap", f"{found.gap:.3g}"),
        ("Seconds", f"{result.seconds:.1f}"),
    ]
    rows = [[listed(one.input), listed(one.program), listed(one.model)] for one in found.first]
    differing = table(["input", "program", "model"], rows, "The first inputs that differ") if rows else ""
    return join([definitions(pairs), differing])


def mechanism_html(result: TrainedDecompilation) -> Html:
    """For each line: its place, how well it is held there, and what exchanging it does."""
    if not result.mechanism:
        return element("p", "Not looked for.", class_="note")
    calls = result.code.splitlines()[2:]
    rows = [
        [
            element("a", line.line, href=f"#{line.line}", data_line=line.line),
            element("div", element("code", _call(call)), class_="words"),
            line.where,
            f"{line.held:.2f}",
            *_exchanged(line),
        ]
        for line, call in zip(result.mechanism, calls, strict=False)
    ]
    head = ["line", "", "place", "held", "interchange accuracy", "answers that should change", "others kept"]
    note = (
        "Held: of an s-op, the share of its variance that a linear map reads at the place; of a selector, the squared "
        "correlation of the head's attention with it. Interchange accuracy: of the answers that should change when "
        "the value is exchanged for another input's, the share that do as the program says, with its 95 % interval, on "
        "inputs that were not used to find the place."
    )
    return join([table(head, rows, label="where each line is"), element("p", note, class_="note")])


def _call(text: str) -> str:
    return text.partition(" = ")[2].partition(".named(")[0]


def _exchanged(line: Mechanism) -> list[object]:
    if line.interchange is None or line.interval is None:
        return ["–", "0" if not line.where.startswith("head") else "–", "–"]
    low, high = line.interval
    kept = "–" if line.kept is None else f"{line.kept:.2f}"
    return [f"{line.interchange:.2f} ({low:.2f} to {high:.2f})", f"{line.cases:,}", kept]


def attention_html(result: TrainedDecompilation, model: Transformer, tokens: Sequence[int]) -> Html:
    """Each selector of the program on one input, beside the attention of the head that follows it best.

    Raises ValueError for an input that the model does not take.
    """
    tokens = list(tokens)[:LONGEST]
    alone = Domain.of([tokens], positions=[-1], columns=1)
    model.check(alone)
    heads = patterns(model, alone)
    places = {line.line: line.where for line in result.mechanism}
    labels = [shown(token) for token in tokens]
    figures: list[Html] = []
    try:
        chosen = selectors(result.program, alone)
    except RaspError as error:
        return element("p", f"The program has no value on this input: {error}", class_="note")
    for number, selected in chosen.items():
        line = f"v{number + 1}"
        weights = selected[0] / np.maximum(selected[0].sum(-1, keepdims=True), 1)
        figures.append(_figure(weights, labels, line, "what the program selects", line))
        if (head := places.get(line)) in heads:
            figures.append(_figure(heads[head][0], labels, str(head), f"follows {line} best", line))
    if not figures:
        return element("p", "The program selects nothing.", class_="note")
    words = f"On the input {listed(tokens)}. Rows are queries, columns the keys that they attend to, in percent."
    return join([element("p", words, class_="note"), element("div", *figures, class_="maps")])


def _figure(pattern: np.ndarray, labels: Sequence[str], name: str, words: str, line: str) -> Html:
    caption = element("figcaption", element("strong", name), f" {words}")
    return element("figure", pattern_svg(pattern, labels, name), caption, data_line=line, tabindex=0)


def examples_html(program: Program, model: Transformer, domain: Domain) -> Html:
    """What program and model answer on some inputs."""
    said, given = program.evaluate(domain.tokens), Answers.of(model.logits(domain), domain).values
    rows = []
    for row in range(len(domain)):
        at = np.flatnonzero(domain.is_answer[row])
        ours, theirs = ([spoken(values[row, p], domain) for p in at] for values in (said, given))
        rows.append([listed(domain.input(row)), listed(ours), listed(theirs), "" if ours == theirs else "≠"])
    return table(["input", "program", "model", ""], rows, "Answers, one for each position that has one")


def example_rows(domain: Domain, seed: int = 0) -> np.ndarray:
    """A few inputs, the shortest first; the last one is short enough for its attention to be drawn, if any is."""
    rng = np.random.RandomState(seed)
    fits = np.flatnonzero(domain.lengths <= LONGEST)
    rows = rng.permutation(fits if len(fits) else len(domain))[: EXAMPLES * 8]
    varied = [len(np.unique(domain.tokens[row][domain.tokens[row] != PADDING])) for row in rows]
    best = rows[np.lexsort((domain.lengths[rows], varied))[-1]]
    others = [row for row in rows if row != best][: EXAMPLES - 1]
    return np.array([*sorted(others, key=lambda row: domain.lengths[row]), best])


def model_html(model: Transformer, domain: Domain) -> Html:
    """The model's shape and what it was trained on, as far as its folder says."""
    about: list[tuple[object, object]] = [(name, _short(value)) for name, value in domain.about]
    shape: list[tuple[object, object]] = [(name, shown(value)) for name, value in vars(model.config).items()]
    return definitions([*about, *shape])


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 200 else f"{text[:199]}…"
