"""The page about a trained model: whole and closed, with program, places, attention beside selectors, differences."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from test_report import check_page

from trade_hf.cli import main
from trade_hf.report.trained import attention_html, example_rows, report
from trade_hf.trained.causality import mechanism
from trade_hf.trained.decompilation import TrainedDecompilation, compare
from trade_hf.trained.domain import Domain
from trade_hf.trained.text import parse
from trade_hf.trained.transformer import Transformer

ROOT = Path(__file__).resolve().parent.parent
MODELS = ROOT / "tests" / "trained"
REVERSE = """
v1 = rasp.Select(rasp.indices, rasp.indices, lambda k, q: k > q)
v2 = rasp.SelectorWidth(v1)
v3 = rasp.Select(v2, rasp.indices, lambda k, q: k == q - 1)
v4 = rasp.Aggregate(v3, rasp.tokens, default=-1)
program = v4
"""


def of(code, name="reverse", with_mechanism=True):
    """A result with a program that a person wrote."""
    model, domain = Transformer.load(MODELS / name), Domain.load(MODELS / name / "domain.json")
    program = parse(code)
    lines = tuple(mechanism(program, model, domain, learn=False)) if with_mechanism else ()
    return TrainedDecompilation(program, compare(program, model, domain), lines, 1.0, (0, 1, 2, 3, 4, 5), 6), (
        model,
        domain,
    )


def test_a_proven_model_has_a_whole_page():
    result, (model, domain) = of(REVERSE)
    page = check_page(report(result, model, domain, "reverse <model>"))
    assert "Decompiled: reverse <model>" in page.text and "Proven" in page.words
    assert "equal on all 3,905 inputs" in page.text and "The model uses all" in page.text
    assert "the input backwards" in page.text  # what domain.json says of the task
    assert page.text.count("Where each line is") == 1  # the heading, and no caption that says the same
    places = [line.where for line in result.mechanism]
    assert all(place in page.text for place in places) and page.text.count("what the program selects") == 2
    assert page.text.count("follows v1 best") == page.text.count("follows v3 best") == 1
    assert "first inputs that differ" not in page.text and "≠" not in page.text


def test_a_wrong_program_is_not_called_proven_and_shows_where():
    result, (model, domain) = of("v1 = rasp.Map(lambda x: x, rasp.tokens)\nprogram = v1", with_mechanism=False)
    page = check_page(report(result, model, domain))
    assert "Not proven" in page.words and "The first inputs that differ" in page.text and "≠" in page.text
    assert "was not looked for" in page.text and "The program selects nothing." in page.text


def test_a_table_of_everything_is_not_called_proven():
    entries = ", ".join(f"({token}, {place}): 0" for token in range(5) for place in range(1, 6))
    code = f"v1 = rasp.SequenceMap(lambda x, y: {{{entries}}}.get((x, y), 0), rasp.tokens, rasp.indices)\nprogram = v1"
    result, (model, domain) = of(code, with_mechanism=False)
    few = domain.rows([0])  # [BOS, 0], whose answer is 0
    small = TrainedDecompilation(result.program, compare(result.program, model, few), (), 1.0, (0,), 6)
    assert small.comparison.agreeing == 1 and not small.is_proven
    assert "Not proven" in check_page(report(small, model, few)).words


def test_sets_are_shown_as_lists():
    code = "v1 = rasp.Map(lambda x: {0, 1, 3} if x == 0 else {3}, rasp.tokens)\nprogram = v1"
    result, (model, domain) = of(code, "lang_no_three", with_mechanism=False)
    assert "[[0, 1, 3]]" in check_page(report(result, model, domain)).text


def test_an_input_that_the_model_does_not_take_is_refused_in_words():
    result, (model, _) = of(REVERSE, with_mechanism=False)
    with pytest.raises(ValueError, match="expected token ids below 7, got 9"):
        attention_html(result, model, [5, 9])
    with pytest.raises(ValueError, match="expected at most 6 tokens, got 8"):
        attention_html(result, model, [5, 1, 1, 1, 1, 1, 1, 1])


def test_examples_are_few_and_the_last_one_is_varied():
    domain = Domain.load(MODELS / "reverse" / "domain.json")
    rows = example_rows(domain)
    assert len(rows) == len(set(rows)) == 8 and len(set(domain.input(rows[-1]))) >= 5
    assert len(example_rows(domain.rows([3, 4]))) == 2


def test_notebooks_show_a_result():
    result, _ = of(REVERSE, with_mechanism=False)
    assert "SelectorWidth" in result._repr_html_() and "Proven" in result._repr_html_()


def test_the_command_line_gives_the_verdict_then_the_code_and_says_what_it_wrote(tmp_path, capsys):
    page, program = tmp_path / "report.html", tmp_path / "program.py"
    files = ["--report", str(page), "--save-program", str(program)]
    assert main(["decompile", str(MODELS / "reverse"), "--quiet", *files]) == 0
    out, err = capsys.readouterr()
    code = program.read_text()
    first, taken, empty, *_ = out.splitlines()
    assert first.startswith("# PROVEN: equal on all 3,905 inputs") and taken.endswith(" s") and not empty
    assert out.split("\n\n", 1)[1].startswith(code) and "\n# the model uses all" in out.partition(code)[2]
    assert "Decompiled: reverse" in check_page(page.read_text()).text
    assert f"trade: {page}: written, a page" in err and f"trade: {program}: written, a program" in err


WITHOUT_TORCH = "import sys; sys.modules['torch'] = None; from trade_hf.cli import main; sys.exit(main())"
FOLDER = str(MODELS / "reverse")
BAD = {
    "a folder without a model": (["/"], "expected a compiled model's file, or the folder of a trained model"),
    "a figure": ([FOLDER, "--figure", "figure.svg"], "--report draws it"),
    "no domain": ([FOLDER, "--domain", "nowhere.json"], "nowhere.json: no such file"),
    "no folder for a file to resume": ([FOLDER, "--resume", "nowhere/at.json"], "expected a folder to write at.json"),
    "no time": ([FOLDER, "--seconds", "0"], "--seconds: expected seconds above 0, got 0"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_arguments_are_answered_before_torch_is_imported(name, tmp_path):
    arguments, words = BAD[name]
    run = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, "decompile", *arguments],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 2 and words in run.stderr and not run.stdout, run.stderr
