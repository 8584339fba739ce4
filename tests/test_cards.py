"""README, docs/ and cards: valid for the Hub, true to `results/`, and whatever they tell the reader to run runs.

The cards are those that the tests' Hub holds after scripts/push_to_hub.py has put them there; what loads from the Hub
loads from it.
"""

import json
import math
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from hub_server import hub_server
from huggingface_hub import ModelCard, parse_eval_result_entries

from trade_hf.compiled.compiler import compile_program
from trade_hf.compiled.transforms import permute
from trade_hf.decompiler import decompile
from trade_hf.rasp.text import parse

ROOT = Path(__file__).resolve().parent.parent
SPACES = ["space"] if (ROOT / "scripts" / "space" / "README.md").exists() else []
PAGES = ["README.md", *sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").glob("*.md"))]
REPOSITORIES = {
    "model": "trade-base",
    "dataset": "tracr-rasp",
    "metric": "functional_equivalence",
    "space": "decompiler",
}
KINDS = ["model", "dataset", "metric", *SPACES]
RESULTS = json.loads((ROOT / "results" / "test-permuted.json").read_text())

BLOCK = re.compile(r"^( *)```(\w*)\n(.*?)^ *```", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`(?:HF_\w+=\S+ )?((?:python scripts/|trade |make |pip )[^`]+)`")

# What is named and not run here, and why.
NOT_RUN = {
    "make demo": "installs everything; tests/test_checkpoint.py runs the demo",
    "make test": "runs this",
    "make latest RUN=runs/cpu": "tests/test_train.py runs what is behind it",
    "trade demo": "tests/test_checkpoint.py runs it",
    "trade app": "serves until it is stopped; tests/test_app_browser.py opens it",
    "trade app --host 0.0.0.0 --port 7860": "the same",
    "trade compile": "the name alone, in a sentence",
}


def blocks(text, *languages):
    """(line, code) of each block of a document."""
    for match in BLOCK.finditer(text):
        if match[2] in languages:
            code = "".join(line.removeprefix(match[1]) for line in match[3].splitlines(keepends=True))
            yield text[: match.start()].count("\n") + 1, code


def commands(text):
    """(line, words) of each command in blocks of shell and between backticks."""
    found = [
        (number + at, line)
        for number, code in blocks(text, "sh", "bash", "shell")
        for at, line in enumerate(code.splitlines(), 1)
    ]
    prose = BLOCK.sub(lambda match: "\n" * match[0].count("\n"), text)
    found += [(prose[: match.start()].count("\n") + 1, match[1]) for match in INLINE.finditer(prose)]
    return [(line, words) for line, text in found if (words := shlex.split(text, comments=True))]


@pytest.fixture(scope="module")
def hub():
    with hub_server() as hub:
        yield hub


@pytest.fixture(scope="module")
def documents(hub, publisher, tiny_corpus, tmp_path_factory):
    """The text of pages and cards by name, the cards as they are on the Hub."""
    results = tmp_path_factory.mktemp("cards") / "results"
    shutil.copytree(ROOT / "results", results)
    shutil.copy(tiny_corpus / "small" / "report.json", results / "corpus-small.json")
    push = publisher(hub)
    for kind in KINDS:  # the tiny corpus has results of its own, and no other card is to be rendered from these
        options = ("--corpus", tiny_corpus, "--results", results) if kind == "dataset" else ()
        assert push("--only", kind, "--visibility", "public", *options)[::2] == [0, ""]
    types = {kind: "space" if kind in ("metric", "space") else kind for kind in KINDS}
    cards = {kind: hub.files(types[kind], f"trade/{REPOSITORIES[kind]}")["README.md"].decode() for kind in KINDS}
    return {**{page: (ROOT / page).read_text() for page in PAGES}, **cards}


@pytest.fixture(scope="module")
def followed(hub, documents, tiny_corpus, tmp_path_factory):
    """What one process found when it followed all documents in a folder with a model, a program and a corpus."""
    folder = tmp_path_factory.mktemp("follow")
    shutil.copytree(tiny_corpus, folder / "corpus")
    text = "v1 = rasp.Select(rasp.tokens, rasp.tokens, rasp.Comparison.EQ)\nprogram = rasp.SelectorWidth(v1)\n"
    (folder / "program.py").write_text(f"from tracr.rasp import rasp\n\n{text}")
    compile_program(parse(text), (0, 1, 2, 3, 4), 5).save(folder / "model.safetensors")
    shutil.copytree(ROOT / "tests" / "trained", folder / "tests" / "trained")
    work = {
        "cards": [
            (name, name if name in ("model", "dataset") else "space", text)
            for name, text in documents.items()
            if name not in PAGES
        ],
        "python": [(name, *block) for name, text in documents.items() for block in blocks(text, "python", "py")],
        "commands": [
            (name, line, words)
            for name, text in documents.items()
            for line, words in commands(text)
            if " ".join(words) not in NOT_RUN and words[0] != "pip"
        ],
    }
    environment = hub.environment(folder / "home") | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    process = subprocess.run(
        [sys.executable, str(ROOT / "tests" / "follow_documents.py")],
        input=json.dumps(work),
        env=environment,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    return work, json.loads(process.stdout.splitlines()[-1])


def test_cards_are_valid_code_runs_and_commands_are_understood(followed):
    work, found = followed
    assert not found["wrong"], "\n\n".join(f"{name}, line {line}: {error}" for name, line, error in found["wrong"])
    assert {name for name, *_ in work["python"]} >= {"README.md", *KINDS}
    assert "identical weights" in found["said"] and "0.5 refuted" not in found["said"]


def test_every_block_has_a_language_that_is_followed(documents):
    for name, text in documents.items():
        assert {match[2] for match in BLOCK.finditer(text)} <= {"python", "sh", "bibtex"}, name


def test_each_command_is_a_script_a_subcommand_or_a_target(documents):
    makefile, seen = (ROOT / "Makefile").read_text(), set()
    extras = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"])
    for name, text in documents.items():
        for line, words in commands(text):
            where = f"{name}, line {line}: {' '.join(words)}"
            seen.add(" ".join(words))
            assert words[0] in ("make", "python", "trade", "pip"), where
            if words[0] == "make":
                assert f"\n{words[1]}:" in makefile, where
            if words[0] == "python":
                assert (ROOT / words[1]).is_file(), where
            if words[0] == "pip":
                assert words[1] == "install" and set(re.findall(r"\[(\w+)\]", words[2])) <= extras, where
    assert any(command.startswith("python scripts/evaluate.py") for command in seen) and set(NOT_RUN) <= seen


def test_scores_in_the_models_card_and_beside_it_are_those_of_the_results(hub, documents):
    card = ModelCard(documents["model"])
    scores = {score.metric_type: score.metric_value for score in card.data.eval_results}
    entries = yaml.safe_load(hub.files("model", "trade/trade-base")[".eval_results/tracr-rasp.yaml"])
    beside = {entry.task_id: entry.value for entry in parse_eval_result_entries(entries)}
    assert scores == beside == {name: pytest.approx(100 * RESULTS[name]) for name in scores}
    assert {"teacher_forced_exact", "free_running_exact", "certified_equivalence"} <= set(scores)


def test_the_models_card_says_what_a_card_has_to(documents):
    data = ModelCard(documents["model"]).data
    assert (data.license, data.library_name, data.datasets) == ("apache-2.0", "transformers", ["trade/tracr-rasp"])
    assert data.pipeline_tag and data.tags and data.metrics == ["trade/functional_equivalence"]
    headings = re.findall(r"^## (.+)$", documents["model"], re.MULTILINE)
    wanted = ("Use", "Intended use", "Figures", "Failures", "Training", "Limits", "Licence and citation")
    assert set(wanted) <= set(headings)
    assert f"{100 * RESULTS['free_running_exact']:.1f} %" in documents["model"]
    assert (ROOT / "model_card.md").read_text().count("\n") <= 250
    assert re.search(r"^\| 1 \| 9,000 \| 0\.\d+ \| [\d.]+ % \| █+ \|", documents["docs/training.md"], re.MULTILINE)


def test_no_document_holds_a_comment(documents):
    assert not [name for name, text in documents.items() if "<!--" in text]


def links(text):
    """Targets of links and pictures outside of blocks of code."""
    return re.findall(r"\]\(([^)\s]+)\)", BLOCK.sub("", text))


def anchors(text):
    """What links to headings can name."""
    headings = re.findall(r"^#+ (.+)$", BLOCK.sub("", text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("name", PAGES)
def test_links_of_pages_lead_to_files_and_headings(name):
    for target in links((ROOT / name).read_text()):
        if target.startswith("https://"):
            continue
        file, _, anchor = target.partition("#")
        path = (ROOT / name).parent / file if file else ROOT / name
        assert path.is_file(), f"{name}: {target}"
        assert not anchor or anchor in anchors(path.read_text()), f"{name}: {target}"


@pytest.mark.parametrize("kind", KINDS)
def test_links_of_cards_lead_to_files_that_are_published_with_them(hub, documents, kind):
    files = hub.files("space" if kind in ("metric", "space") else kind, f"trade/{REPOSITORIES[kind]}")
    found = links(documents[kind])
    assert not [target for target in found if not target.startswith("https://") and target not in files]


def test_a_section_is_written_below_its_heading_alone(script):
    with_section = script("render_figures").with_section
    text = "# A\n\n## One\n\nold\n\n### Part\n\nold\n\n## Two\n\nkept\n"
    assert with_section(text, "One", "new\n") == "# A\n\n## One\n\nnew\n\n## Two\n\nkept\n"
    with pytest.raises(ValueError, match="expected a section '## Three'"):
        with_section(text, "Three", "new")


def test_another_figure_in_a_document_is_noticed(script, tmp_path):
    render_figures = script("render_figures")
    results = tmp_path / "results"
    shutil.copytree(ROOT / "results", results)
    assert not render_figures.render(ROOT / "model_card.md", write=False, results=results)
    row = RESULTS | {"free_running_exact": 0.123}
    (results / "test-permuted.json").write_text(json.dumps(row))
    assert render_figures.render(ROOT / "model_card.md", write=False, results=results)


def test_the_widgets_outputs_are_what_the_checkpoint_gives(documents):
    for example in ModelCard(documents["model"]).data.to_dict()["widget"]:
        result = decompile(permute(compile_program(parse(example["text"]), (0, 1, 2, 3, 4), 5), 0))
        assert result.verdict.is_verified and result.code.strip() == example["output"]["text"].strip()


def test_the_forecast_goes_on_as_the_loss_did(tmp_path, script):
    """Of a loss of 4 over the root of the examples, where exp(-10 · loss) of the programs are exact."""
    learning = script("learning")
    seen = 0
    for name, run in learning.NEXT.items():
        rows = []
        for step in (1000, 2000, 4000):
            loss = 4 / math.sqrt(seen + run.batch * step)
            rows.append({"step": step, "eval_loss": loss, "eval_free_running_exact": math.exp(-10 * loss)})
        seen += run.batch * 4000
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    forecast = learning.forecast(tmp_path)
    assert forecast.slope == pytest.approx(0.5)
    for examples in (1e6, 1e8):
        assert forecast.loss(examples) == pytest.approx(4 / math.sqrt(examples))
        assert forecast.exact(examples) == pytest.approx(math.exp(-40 / math.sqrt(examples)))
        assert forecast.examples(forecast.exact(examples)) == pytest.approx(examples)


@pytest.mark.parametrize(
    ("share", "shown"), [(0, "0.0 %"), (0.0004, "0.04 %"), (0.705, "70.5 %"), (0.9995, "99.95 %"), (1, "100.0 %")]
)
def test_none_and_all_are_said_of_none_and_all_alone(share, shown, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    from figure_tables import percent

    (tmp_path / "study.json").write_text(json.dumps({"share": share}))
    assert percent(tmp_path, "study", "share") == shown
