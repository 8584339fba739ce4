"""Reports: whatever the weights hold, the page is whole, shows it as text, and takes nothing from elsewhere."""

import base64
import html
import io
import re
from dataclasses import replace
from html.parser import HTMLParser

import matplotlib.image
import numpy as np
import pytest
from cases import CASES, LENGTH, VOCAB

from trade_hf.certificate import Certificate, recheck
from trade_hf.cli import main
from trade_hf.compiled.compiler import compile_program
from trade_hf.compiled.forward import attention
from trade_hf.compiled.transforms import add_noise, permute, rotate
from trade_hf.compiled.weights import TracrWeights
from trade_hf.decompiler import decompile
from trade_hf.provenance import provenance
from trade_hf.rasp.program import Type
from trade_hf.rasp.text import parse, to_text
from trade_hf.report.graph import graph_svg
from trade_hf.report.heatmaps import attention_html, matrix_png, shrunk, weights_html
from trade_hf.report.highlight import code_html, highlighted
from trade_hf.report.markup import Html, element, listed, script, shown
from trade_hf.report.page import attempts_html, counterexample_html, examples_html, report
from trade_hf.report.values import line_values, values_html
from trade_hf.verification import Status, Verdict

HOSTILE = ("<script>alert(1)</script>", "\"'><img src=x onerror=alert(1)>", "a\u202eb\n\x00", "&amp;", "\ud800")
TAGS = """html head meta link title style body main footer section h1 h2 h3 p strong a div pre code span dl dt dd table
    caption thead tbody tr th td figure figcaption svg g rect path text tspan line circle desc img i details summary
    script"""
_VOID = {"meta", "link", "img"}
BY_NAME = {case.name: case.program for case in CASES}


class Page(HTMLParser):
    """Checks that elements are closed in order; collects text, tags, attributes and identifiers."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.attributes, self.words = [], [], [], []
        self.feed(text)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += attributes
        if tag not in _VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self):
        return "".join(self.words)

    def all(self, name):
        return [value for key, value in self.attributes if key == name]


def check_page(text):
    text.encode("utf-8")  # no lone surrogates
    page = Page(text)
    assert set(page.tags) <= set(TAGS.split())
    assert not [key for key, _ in page.attributes if key.startswith("on")]
    targets = page.all("href") + page.all("src")
    assert all(target.startswith(("#v", "data:")) for target in targets)
    assert not re.search(r"@import|url\(", text)
    scripts = [script()] if "html" in page.tags else []  # of a whole page its own one alone; parts of one have none
    assert re.findall("<script>(.*?)</script>", text, re.DOTALL) == scripts
    assert page.tags.count("script") == len(scripts)
    ids = page.all("id")
    assert len(ids) == len(set(ids))
    assert {target[1:] for target in targets if target[0] == "#"} <= set(ids)
    return page


@pytest.fixture(scope="module")
def histogram():
    weights = compile_program(BY_NAME["histogram"], VOCAB, LENGTH)
    return weights, decompile(weights)


def test_a_report_says_what_was_found(histogram):
    weights, result = histogram
    text = report(result, weights, "a <b> & c.safetensors")
    page = check_page(text)
    assert "Proven identical weights" in page.text and "a <b> & c.safetensors" in page.text
    assert result.code.strip() in page.text
    assert len(text) < 100_000
    [document] = [href for href in page.all("href") if href.startswith("data:application/json")]
    certificate = Certificate.from_json(base64.b64decode(document.split(",")[1]).decode())
    assert recheck(certificate, weights).summary == "identical weights"


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_any_program_and_vocabulary_makes_a_whole_page(case, histogram):
    """Here the program is known: what is tested is the page."""
    weights = rotate(compile_program(case.program, VOCAB, LENGTH), 0)
    origins = provenance(case.program, weights)
    page = check_page(report(replace(histogram[1], program=case.program), weights, origins=origins))
    assert "Where each line is" in page.text
    assert "Proven equivalent on all 3,905 inputs" in page.text
    assert {f"v{n + 1}" for n in range(len(case.program))} == set(page.all("id"))


def test_a_sample_is_called_a_sample(histogram):
    weights = rotate(compile_program(BY_NAME["histogram"], tuple("abcdefghijklmnopqrst"), 6), 0)
    assert "Proven identical weights in another basis" in check_page(report(histogram[1], weights)).text
    page = check_page(report(histogram[1], add_noise(weights, 1e-4, 0)))
    assert "Not proven agrees on 10,000 of 67,368,420 inputs" in page.text and "Proven agrees" not in page.text
    assert "May differ onat most 0.00" in page.text


def test_hostile_tokens_are_text():
    program = parse(to_text(BY_NAME["sort of distinct tokens"]).replace("rasp.Comparison.EQ", "lambda k, q: k == q"))
    weights = replace(compile_program(program, HOSTILE, 3), residual_labels=HOSTILE)
    result = decompile(weights)
    page = check_page(report(result, weights, HOSTILE[0], provenance(result.program, weights)))
    for token in HOSTILE:
        assert shown(token) in page.text
    assert "\\ud800" in page.text and "\u202e" not in page.text and "\x00" not in page.text
    assert page.text.count(HOSTILE[0]) > 1  # as text


def test_the_command_writes_a_page(histogram, tmp_path, capsys):
    model, target = tmp_path / "<i>.safetensors", tmp_path / "report.html"
    histogram[0].save(model)
    assert main(["decompile", str(model), "--report", str(target)]) == 0
    assert "identical weights" in capsys.readouterr().out
    assert "Decompiled: <i>.safetensors" in check_page(target.read_text(encoding="utf-8")).text
    assert main(["decompile", str(model), "--report", str(tmp_path / "no" / "report.html")]) == 2
    assert capsys.readouterr().err == f"trade: {tmp_path / 'no'}: expected a folder to write report.html to\n"


def test_what_is_not_proven_says_so(tiny_checkpoint, spoiled):
    page = check_page(report(decompile(spoiled, tiny_checkpoint, max_candidates=3), spoiled))
    assert "Not proven refuted" in page.text and "Proven identical" not in page.text


def test_attempts_hold_the_returned_one(tiny_checkpoint, spoiled):
    result = decompile(spoiled, tiny_checkpoint, max_candidates=3, budget_seconds=600)
    assert len(result.attempts) == result.candidates == 3
    assert result.program == result.attempts[result.chosen].program
    many = replace(result, attempts=result.attempts * 10, chosen=29)
    text = Page(attempts_html(many)).text
    assert "30, returned" in text and "21 of them listed" in text


def test_counterexamples_stand_position_by_position():
    verdict = Verdict(Status.REFUTED, 1, 9, None, ("<a>", "b"), (1, None), (1, 0))
    page = Page(counterexample_html(verdict))
    assert "<a>" in page.text and page.text.count("≠") == 1 and "None" in page.text
    assert counterexample_html(Verdict(Status.REFUTED, 0, 9, reason="does not compile")) == ""


def test_examples_show_what_the_model_gives():
    case = CASES[2]
    weights = compile_program(case.program, VOCAB, LENGTH)
    assert Page(examples_html(case.program, weights, [case.given])).text.count(str(case.expect)) == 2
    shift = next(case for case in CASES if case.name.startswith("shift"))
    wrong = Page(examples_html(shift.program, weights, [(2, 1, 4)])).text
    assert "[None, 2, 1]" in wrong and "[4, 1, 2]" in wrong  # the program's, the model's
    assert "None: no output direction is on" in wrong
    does_not_compile = parse("program = rasp.Map(lambda x: x, rasp.indices)")
    assert "does not compile" in Page(examples_html(does_not_compile, weights, [(2,)])).text


def test_notebooks_show_code_certificate_and_shape(histogram):
    weights, result = histogram
    page = check_page(result._repr_html_())
    assert result.code.strip() in page.text and "identical weights" in page.text
    assert not page.all("id")  # many of these stand on one page
    assert "Layers1" in check_page(weights._repr_html_()).text
    assert re.fullmatch(
        r"Decompilation\(2 lines, identical weights, read from the weights, 1 tried, .* s\)", repr(result)
    )
    many = compile_program(BY_NAME["histogram"], tuple(range(100)), 2)
    assert "10, 11, … 100 in all]" in repr(many) and len(repr(many)) < 250


# ---------------------------------------------------------------- parts


def test_markup_escapes_all_but_html():
    assert element("p", "<a>", Html("<b>"), 3, title='"&') == '<p title="&#34;&amp;">&lt;a&gt;<b>3</p>'
    assert listed((1, "a" * 100, None, -0.00001, 1 / 3)) == "[1, '" + "a" * 22 + "…, None, 0, 0.3333]"


def test_highlighting_keeps_the_text(samples):
    programs = [to_text(case.program) for case in CASES] + [to_text(sample.spelled) for sample in samples[:20]]
    for code in [*programs, "v1 = '<b>' # &\n", "(((", "'''open", "\t x\n  y", "a = $"]:
        shown_text = "\n".join(html.unescape(re.sub(r"<[^>]*>", "", line)) for line in highlighted(code))
        assert shown_text == code.rstrip("\n")
        Page(code_html(code))
    line = highlighted(programs[0])[3]
    assert line.startswith('<span class="nv">v2</span>') and '<span class="nf">SelectorWidth</span>' in line


def test_graphs_hold_every_line_and_arrow(samples):
    for program in [case.program for case in CASES] + [sample.spelled for sample in samples]:
        svg = graph_svg(program)
        assert Page(svg).all("href") == [f"#v{n + 1}" for n in range(len(program))]
        assert svg.count('class="head"') == sum(len(line.args) for line in program.lines)
        assert svg.count('class="node selector"') == sum(line.op.result is Type.SELECTOR for line in program.lines)
        assert svg.count(' output"') == 2  # the box and the legend
        boxes = [
            tuple(map(float, box)) for box in re.findall(r'<rect x="(.*?)" y="(.*?)" width="(.*?)" height="(.*?)"', svg)
        ]
        for i, (x, y, width, height) in enumerate(boxes):
            assert x >= 0 and y >= 0
            for other_x, other_y, other_width, other_height in boxes[:i]:
                apart = x + width <= other_x or other_x + other_width <= x
                assert apart or y + height <= other_y or other_y + other_height <= y


def test_parts_of_the_model_are_named_where_they_are_known():
    program, weights = BY_NAME["reverse"], permute(compile_program(BY_NAME["reverse"], VOCAB, LENGTH), 0)
    origins = provenance(program, weights)
    graph = Page(graph_svg(program, origins)).text
    assert graph.count("head 0") == 2 * 4 and "layer 3 head 0" in graph  # a title and a text in each of four boxes
    assert "layer 1 MLP, 30 units" in graph or "layer 1 MLP units" in graph
    assert "layer 3 head 0 v5 v6" in Page(attention_html(weights, (0, 1), origins)).text
    assert "layer 3 head 0 v5" not in Page(attention_html(weights, (0, 1))).text


def test_attention_is_what_the_program_says():
    weights = compile_program(BY_NAME["histogram"], VOCAB, LENGTH)
    # Selector width: BOS is always selected too.
    expected = [[1, 0, 0, 0], [1 / 2, 1 / 2, 0, 0], [1 / 3, 0, 1 / 3, 1 / 3], [1 / 3, 0, 1 / 3, 1 / 3]]
    np.testing.assert_allclose(attention(weights, (3, 1, 1)), [[expected]], atol=1e-4)
    reverse = compile_program(BY_NAME["reverse"], VOCAB, LENGTH)
    patterns = attention(reverse, (4, 0, 2))
    assert patterns.shape == (reverse.num_layers, reverse.num_heads, 4, 4)
    np.testing.assert_allclose(patterns[-1, 0, 1:, 1:], np.eye(3)[::-1], atol=1e-4)
    drawn = Page(attention_html(weights, (3, 1, 1)))
    assert (
        "layer 0 head 0" in drawn.text
        and "compiler_bos to compiler_bos; 3 to compiler_bos; 1 to compiler_bos" in drawn.text
    )
    for tokens in ((), (0,) * 6, (7,)):
        with pytest.raises(ValueError, match="expected 1 to 5 tokens of the model's vocabulary"):
            attention(weights, tokens)


def test_pictures_of_matrices():
    picture = matplotlib.image.imread(io.BytesIO(matrix_png(np.array([[0, 100, 0.001], [-50, 0, -100]]))))
    assert picture.shape == (2, 3, 4)
    assert picture[..., 3].round(2).tolist() == [[0, 1, pytest.approx(0.3)], [pytest.approx(0.6), 0, 1]]
    assert (picture[0, 1:, 2] > picture[0, 1:, 0]).all()  # above 0: blue
    assert (picture[1, ::2, 0] > picture[1, ::2, 2]).all()  # below 0: orange
    matrix = np.zeros((100, 7))
    matrix[33, 3], matrix[34, 3] = 2, -5
    smaller = shrunk(matrix, 10)
    assert smaller.shape == (10, 7) and smaller[3, 3] == -5 and np.count_nonzero(smaller) == 1


def test_pictures_of_a_large_model_stay_small():
    rng, d_model, layers = np.random.default_rng(0), 512, 12
    shapes = {"token_embed/embeddings": (7, d_model), "pos_embed/embeddings": (LENGTH + 1, d_model)}
    for layer in range(layers):
        for name, shape in {
            **{f"attn/{part}": (d_model, 64) for part in ("query", "key", "value")},
            "attn/linear": (64, d_model),
            "mlp/linear_1": (d_model, 256),
            "mlp/linear_2": (256, d_model),
        }.items():
            shapes |= {f"transformer/layer_{layer}/{name}/w": shape, f"transformer/layer_{layer}/{name}/b": shape[1:]}
    tensors = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    unembedding = rng.standard_normal((d_model, 3)).astype(np.float32)
    vocab = (*VOCAB, "compiler_bos", "compiler_pad")
    weights = TracrWeights(tensors, 16, vocab, LENGTH, ("x", "y", "z"), unembedding)
    text = weights_html(weights) + attention_html(weights, (0, 1, 2))
    Page(text)
    assert len(text) < 1_000_000 and "more heads are not drawn" in text


HISTOGRAM = "v1 = rasp.Select(rasp.tokens, rasp.tokens, rasp.Comparison.EQ)\nprogram = rasp.SelectorWidth(v1)"


@pytest.mark.parametrize(
    ("causal", "selected", "counted"),
    [(False, [[0, 2], [1], [0, 2]], [2, 1, 2]), (True, [[0], [1], [0, 2]], [1, 1, 2])],
)
def test_the_value_of_each_line_at_each_position(causal, selected, counted):
    assert line_values(parse(HISTOGRAM), ("b", "a", "b"), ("a", "b"), 4, causal) == [selected, counted]
    shown_values = Page(values_html(parse(HISTOGRAM), ("b", "a", "b"), ("a", "b"), 4, causal)).text
    assert "position 2" in shown_values and "v2" in shown_values
