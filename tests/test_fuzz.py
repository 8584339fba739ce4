"""Models and texts that nobody meant: each is answered in words, in time and in little memory (scripts/fuzz.py)."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from cases import CASES, LENGTH, VOCAB

from trade_hf.compiled.compiler import compile_program
from trade_hf.compiled.formats import to_weights
from trade_hf.compiled.weights import WeightsError
from trade_hf.decompiler import decompile
from trade_hf.verification import verify

ROOT = Path(__file__).resolve().parent.parent
PLAIN = compile_program(CASES[1].program, VOCAB, LENGTH)


def of_all(change):
    return lambda: replace(PLAIN, tensors={name: np.float32(change(tensor)) for name, tensor in PLAIN.tensors.items()})


def noise(tensor):
    return np.random.RandomState(0).randn(*tensor.shape) * 1e4


def padded(grown, more, heads=1):
    """Zeros in place of nothing: `grown` gives the axis of a tensor that has `more` entries, None for none."""
    tensors = {}
    for name, tensor in PLAIN.tensors.items():
        pads = [(0, more * (axis == grown(name, tensor.ndim))) for axis in range(tensor.ndim)]
        tensors[name] = np.pad(tensor, pads)
    return replace(PLAIN, tensors=tensors, num_heads=PLAIN.num_heads * heads)


def unit_axis(name, ndim):
    if "linear_1" in name:
        return ndim - 1
    return 0 if name.endswith("linear_2/w") else None


def head_axis(name, ndim):
    if name.endswith("attn/linear/w"):
        return 0
    return ndim - 1 if any(part in name for part in ("query", "key", "value")) else None


DEGENERATE = {
    "zeros": of_all(np.zeros_like),
    "ones": of_all(np.ones_like),
    "the largest number everywhere": of_all(lambda tensor: np.full_like(tensor, 1e9)),
    "next to nothing": of_all(lambda tensor: tensor * 1e-30),
    "noise": of_all(noise),
    "negative": of_all(lambda tensor: -tensor),
    "no output": lambda: replace(PLAIN, unembedding=np.zeros_like(PLAIN.unembedding)),
    "one output everywhere": lambda: replace(PLAIN, unembedding=np.ones_like(PLAIN.unembedding)),
    "60,000 hidden units": lambda: padded(unit_axis, 60_000),
    "1,000 heads": lambda: padded(head_axis, 999 * PLAIN.key_size, heads=1_000),
}


@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning", "ignore:invalid value:RuntimeWarning")
@pytest.mark.parametrize("name", DEGENERATE)
def test_degenerate_models_get_a_verdict(name, tiny_checkpoint):
    weights = to_weights(DEGENERATE[name]())
    is_same = name in ("60,000 hidden units", "1,000 heads")
    assert verify(CASES[1].program, weights).is_verified == is_same
    result = decompile(weights, tiny_checkpoint, max_candidates=3)
    assert result.verdict.is_verified or not is_same


TOO_LARGE = {
    "heads": (
        lambda: padded(head_axis, 99_999 * PLAIN.key_size, heads=100_000),
        "heads is 100,000; the limit is 2,048",
    ),
    "hidden units": (lambda: padded(unit_axis, 500_000), "hidden_units is 500,0.*; the limit is 131,072"),
    "outputs": (
        lambda: replace(
            PLAIN, output_values=tuple(range(5_000)), unembedding=np.zeros((PLAIN.d_model, 5_000), np.float32)
        ),
        "outputs is 5,000; the limit is 4,096",
    ),
}


@pytest.mark.parametrize("name", TOO_LARGE)
def test_models_that_are_too_large_are_refused_before_anything_is_built(name):
    build, message = TOO_LARGE[name]
    with pytest.raises(WeightsError, match=message):
        to_weights(build())


def test_mutated_files_and_texts(tmp_path):
    """In a process of its own: a case is a fork, and counts the memory of what it is forked from."""
    call = [sys.executable, ROOT / "scripts" / "fuzz.py", "--files", "40", "--texts", "80", "--seed", "1"]
    done = subprocess.run([*call, "--json", tmp_path / "rows.json"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "rows.json").read_text())
    assert not summary["bad"]
    assert (summary["files"], summary["texts"], summary["tracebacks"]) == (40, 80, 0)
    assert all(len(statuses) > 1 for statuses in summary["exit_statuses"].values())


# Another test of this process may have imported JAX, which warns of forks; cases do not use it.
@pytest.mark.filterwarnings("ignore:os.fork:RuntimeWarning")
def test_a_case_that_fails_is_counted(script, monkeypatch):
    fuzz = script("fuzz")

    def fail(sample, rng, number, folder):
        raise RuntimeError("no idea")

    monkeypatch.setitem(fuzz.KINDS, "text", fail)
    rows = list(fuzz.run_cases(files=0, texts=1, seed=0))
    assert "RuntimeError: no idea" in rows[0]["traceback"] and fuzz.summarise(rows)["tracebacks"] == 1


@pytest.mark.parametrize("swapped", [(PLAIN, CASES[1].program), ("program = v1", PLAIN), (CASES[1].program, "a.npz")])
def test_arguments_of_other_types(swapped):
    with pytest.raises(TypeError, match="expected a program and a model, got"):
        verify(*swapped)
