"""Models and texts that nobody meant: each is answered in words, in time and in little memory (scripts/fuzz.py)."""

import contextlib
import json
import subprocess
import sys
import time
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from cases import CASES, LENGTH, VOCAB

from trade_hf.compiled.compiler import compile_program
from trade_hf.compiled.formats import to_weights
from trade_hf.compiled.forward import run
from trade_hf.compiled.weights import WeightsError
from trade_hf.decompiler import UNLIKE, decompile
from trade_hf.limits import EndedBy
from trade_hf.provenance import provenance
from trade_hf.rasp.evaluate import all_inputs
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
    wider = tensors["token_embed/embeddings"].shape[1] - PLAIN.d_model
    unembedding = np.pad(PLAIN.unembedding, [(0, wider), (0, 0)])
    return replace(
        PLAIN, tensors=tensors, unembedding=unembedding, num_heads=PLAIN.num_heads * heads, residual_labels=()
    )


def unit_axis(name, ndim):
    if "linear_1" in name:
        return ndim - 1
    return 0 if name.endswith("linear_2/w") else None


def head_axis(name, ndim):
    if name.endswith("attn/linear/w"):
        return 0
    return ndim - 1 if any(part in name for part in ("query", "key", "value")) else None


def directions_axis(name, ndim):
    if name.endswith(("query/w", "key/w", "value/w", "linear_1/w")):
        return 0
    return None if name.endswith(("query/b", "key/b", "value/b", "linear_1/b")) else ndim - 1


DEGENERATE = {
    "zeros": of_all(np.zeros_like),
    "ones": of_all(np.ones_like),
    "the largest number everywhere": of_all(lambda tensor: np.full_like(tensor, 1e9)),
    "a million times larger": of_all(lambda tensor: tensor * 1e6),
    "next to nothing": of_all(lambda tensor: tensor * 1e-30),
    "noise": of_all(noise),
    "negative": of_all(lambda tensor: -tensor),
    "no output": lambda: replace(PLAIN, unembedding=np.zeros_like(PLAIN.unembedding)),
    "one output everywhere": lambda: replace(PLAIN, unembedding=np.ones_like(PLAIN.unembedding)),
    "60,000 hidden units": lambda: padded(unit_axis, 60_000),
    "1,000 heads": lambda: padded(head_axis, 999 * PLAIN.key_size, heads=1_000),
}


def test_a_search_ends_where_nothing_is_like_the_model(tiny_checkpoint):
    result = decompile(to_weights(DEGENERATE["noise"]()), tiny_checkpoint)
    assert (result.ended_by, result.candidates) == (EndedBy.REFUTED, UNLIKE)


@pytest.mark.filterwarnings("error::RuntimeWarning")
@pytest.mark.parametrize("name", DEGENERATE)
def test_degenerate_models_get_a_verdict(name, tiny_checkpoint):
    weights = to_weights(DEGENERATE[name]())
    is_same = name in ("60,000 hidden units", "1,000 heads")
    assert verify(CASES[1].program, weights).is_verified == is_same
    result = decompile(weights, tiny_checkpoint, max_candidates=3)
    assert result.verdict.is_verified or not is_same
    with contextlib.suppress(ValueError):  # the parts of most are no program's
        provenance(result.program, weights)


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


def narrow(width, hidden, num_heads):
    """Zeros in a residual stream of one direction: a small file of very many heads or hidden units."""
    shapes = {f"attn/{part}/w": (1, width) for part in ("query", "key", "value")} | {"attn/linear/w": (width, 1)}
    shapes |= {f"attn/{part}/b": (width,) for part in ("query", "key", "value")} | {"attn/linear/b": (1,)}
    shapes |= {"mlp/linear_1/w": (1, hidden), "mlp/linear_1/b": (hidden,)}
    shapes |= {"mlp/linear_2/w": (hidden, 1), "mlp/linear_2/b": (1,)}
    tensors = {f"transformer/layer_0/{name}": np.zeros(shape, np.float32) for name, shape in shapes.items()}
    tensors |= {f"{name}_embed/embeddings": np.zeros((3, 1), np.float32) for name in ("token", "pos")}
    return tensors | {
        "vocab": [0, "compiler_bos", "compiler_pad"],
        "num_heads": num_heads,
        "output_values": None,
        "output_directions": [0],
    }


NARROW = {
    "100,000 heads": (narrow(100_000, 1, 100_000), "heads is 100,000; the limit is 2,048"),
    "5,000,000 hidden units": (narrow(1, 5_000_000, 1), "hidden_units is 5,000,000; the limit is 131,072"),
}


@pytest.mark.parametrize("name", NARROW)
def test_zeros_of_one_direction_are_refused_in_time_and_memory(name):
    source, message = NARROW[name]
    tracemalloc.start()
    start = time.process_time()
    with pytest.raises(WeightsError, match=message):
        to_weights(source)
    assert time.process_time() - start < 2
    assert tracemalloc.get_traced_memory()[1] < 200_000_000
    tracemalloc.stop()


def test_most_directions_of_a_wide_model_may_be_idle(tiny_checkpoint):
    """2,000 of them: what nothing reads and nothing writes takes no time."""
    wide = padded(directions_axis, 2_000)
    start = time.process_time()
    assert verify(CASES[1].program, wide).is_verified
    assert decompile(wide, tiny_checkpoint).verdict.is_verified
    assert time.process_time() - start < 8
    inputs = all_inputs(len(VOCAB), LENGTH)[::97]
    assert np.allclose(run(wide, inputs).logits, run(PLAIN, inputs).logits, atol=1e-5)


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
