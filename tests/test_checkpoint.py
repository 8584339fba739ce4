"""The checkpoint that ships, the figures that are claimed for it, and the demo."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from dataset_builder.splits import pinned
from trade_hf.cli import main
from trade_hf.compiled.compiler import compile_program
from trade_hf.compiled.transforms import permute
from trade_hf.decompiler import DEFAULT_CHECKPOINT, decompile, load_model
from trade_hf.rasp.text import parse
from trade_hf.search import greedy_programs
from trade_hf.verification import verify

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


def test_the_figures_of_the_documents_are_those_of_the_results():
    subprocess.run([sys.executable, str(ROOT / "scripts" / "render_figures.py"), "--check"], check=True)
    for document in ("README.md", "model_card.md", "docs/figures.md"):
        assert f"{100 * RESULTS['free_running_exact']:.1f} %" in (ROOT / document).read_text()


def test_other_vocabularies_and_lambdas_without_a_name():
    histogram = "v1 = rasp.Select(rasp.tokens, rasp.tokens, rasp.Comparison.EQ)\nprogram = rasp.SelectorWidth(v1)"
    odd = "v1 = rasp.Select(rasp.tokens, rasp.indices, lambda k, q: (k, q) in [(0, 0), (2, 1), (4, 1)])\n"
    odd += "program = rasp.SelectorWidth(v1)"
    for text, vocab, length in ((histogram, ("a", "b", "c"), 4), (odd, (0, 1, 2, 3, 4), 5)):
        weights = permute(compile_program(parse(text), vocab, length), 5)
        result = decompile(weights)
        assert result.verdict.is_verified
        assert verify(parse(result.code), weights).is_verified


def test_the_demo_shows_true_and_decompiled_programs(capsys):
    assert main(["demo", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert len(rows) >= 6
    for row in rows:
        assert {"name", "true_code", "code", "status", "certificate", "score"} <= set(row)
        parse(row["code"])
        parse(row["true_code"])
    assert all(row["proven"] for row in rows)
