"""The checkpoint that ships, the figures that are claimed for it, and the demo."""

import json
import re
from pathlib import Path

import pytest

from dataset_builder.splits import pinned
from trade_hf.cli import main
from trade_hf.compiled.compiler import compile_program
from trade_hf.compiled.transforms import permute
from trade_hf.decompiler import DEFAULT_CHECKPOINT, greedy_programs, load_model
from trade_hf.rasp.text import parse

ROOT = Path(__file__).resolve().parent.parent
RESULTS = json.loads((ROOT / "results" / "test-permuted.json").read_text())


def test_it_is_small_and_safe():
    files = list(DEFAULT_CHECKPOINT.rglob("*"))
    assert sum(path.stat().st_size for path in files if path.is_file()) < 16_000_000
    assert {path.suffix for path in files if path.is_file()} <= {".json", ".safetensors", ".md"}


def test_it_decompiles_unseen_programs_about_as_well_as_claimed():
    items = pinned("test", 40)
    weights = [
        permute(compile_program(item.sample.program, item.sample.vocab, item.sample.max_seq_len), seed)
        for seed, item in enumerate(items)
    ]
    found = greedy_programs(weights, load_model())
    exact = sum(c is not None and c.program == i.sample.program for c, i in zip(found, items, strict=True)) / len(items)
    assert exact == pytest.approx(RESULTS["free_running_exact"], abs=0.2)


@pytest.mark.parametrize("document", ["README.md", "model_card.md"])
def test_the_figures_of_the_documents_are_those_of_the_results(document):
    text = (ROOT / document).read_text()
    for name in ("teacher_forced_exact", "free_running_exact", "identical_weights", "functional_equivalence"):
        shown = re.search(rf"`{name}`[^|]*\|[^|]*\|\s*\*\*([\d.]+) %\*\*", text)
        assert shown, f"{document} does not show {name}"
        assert float(shown[1]) == pytest.approx(100 * RESULTS[name], abs=0.051)


def test_the_demo_shows_true_and_decompiled_programs(capsys):
    assert main(["demo", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert len(rows) >= 6
    for row in rows:
        assert {"name", "true_code", "code", "status", "certificate", "score"} <= set(row)
        parse(row["code"])
        parse(row["true_code"])
    proven = [row for row in rows if row["status"] in ("identical weights", "equivalent")]
    assert len(proven) >= len(rows) // 2
