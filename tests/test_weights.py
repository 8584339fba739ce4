"""Weights files: round trips, and one clear line for everything that is none."""

import json
import pickle
from dataclasses import replace

import numpy as np
import pytest
from cases import CASES, LENGTH, VOCAB
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from trade_hf.compiled import tensor_files
from trade_hf.compiled.compiler import compile_program
from trade_hf.compiled.formats import to_weights
from trade_hf.compiled.forward import run
from trade_hf.compiled.transforms import add_noise, compress, permute, readable_dimensions, rotate
from trade_hf.compiled.weights import TracrWeights, WeightsError
from trade_hf.rasp.evaluate import all_inputs
from trade_hf.rasp.text import parse


@pytest.fixture(scope="module")
def compiled():
    return compile_program(CASES[2].program, VOCAB, LENGTH)


@pytest.fixture
def file(compiled, tmp_path):
    path = tmp_path / "model.safetensors"
    compiled.save(path)
    return path


def assert_equal(first, second):
    assert first.tensors.keys() == second.tensors.keys()
    assert all(np.array_equal(first.tensors[name], second.tensors[name]) for name in first.tensors)
    assert np.array_equal(first.unembedding, second.unembedding)
    for name in ("num_heads", "vocab", "max_seq_len", "output_values", "residual_labels", "bos", "pad", "causal"):
        assert getattr(first, name) == getattr(second, name), name


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_round_trip(case, tmp_path):
    weights = compile_program(case.program, VOCAB, LENGTH)
    for number, version in enumerate((weights, permute(weights, 1), rotate(weights, 1))):
        path = tmp_path / f"{number}.safetensors"
        version.save(path)
        assert_equal(TracrWeights.load(path), version)
    assert {p.name for p in tmp_path.iterdir()} == {"0.safetensors", "1.safetensors", "2.safetensors"}


def test_tuples_and_strings_survive(tmp_path):
    table = {("a", 0): ("a", 0), ("b", 1): "c"}
    text = f"program = rasp.SequenceMap(lambda x, y: {table}.get((x, y)), rasp.tokens, rasp.indices)"
    weights = compile_program(parse(text), {"a", "b"}, 2)
    weights.save(tmp_path / "m.safetensors")
    assert TracrWeights.load(tmp_path / "m.safetensors").output_values == weights.output_values


def all_that_is_read(weights, seed):
    return compress(weights)


@pytest.mark.parametrize("change", [permute, rotate, all_that_is_read])
def test_transforms_keep_the_function(samples, change):
    for seed, sample in enumerate(samples[:15]):
        weights = compile_program(sample.program, sample.vocab, sample.max_seq_len)
        inputs = all_inputs(len(sample.vocab), sample.max_seq_len)[::41]
        before, after = run(weights, inputs), run(change(weights, seed), inputs)
        assert np.allclose(before.logits, after.logits, atol=2e-3)


def test_compression_and_noise(samples):
    sample = samples[3]
    weights = compile_program(sample.program, sample.vocab, sample.max_seq_len)
    inputs = all_inputs(len(sample.vocab), sample.max_seq_len)[::41]
    exact = run(weights, inputs).logits

    def error(changed):
        return float(np.abs(run(changed, inputs).logits - exact).max())

    kept = readable_dimensions(weights)
    assert kept < weights.d_model == compress(weights, weights.d_model).d_model
    assert compress(weights, kept).d_model == kept
    assert error(compress(weights, kept)) < 2e-3 < error(compress(weights, kept // 2))
    assert (
        error(add_noise(weights, 0.0, 1)) == 0.0 < error(add_noise(weights, 0.001, 1)) < error(add_noise(weights, 1, 1))
    )
    for dimensions in (0, weights.d_model + 1):
        with pytest.raises(ValueError, match=f"expected 1 to {weights.d_model} dimensions, got {dimensions}"):
            compress(weights, dimensions)


def _rewrite(path, change_tensors=None, change_meta=None):
    from safetensors import safe_open

    tensors = load_file(path)
    with safe_open(path, "numpy") as opened:
        meta = json.loads(opened.metadata()["trade"])
    if change_tensors:
        change_tensors(tensors)
    if change_meta:
        change_meta(meta)
    save_file(tensors, path, metadata={"trade": json.dumps(meta)})


QUERY = "transformer/layer_0/attn/query/w"

BAD_TENSORS = {
    "missing": (lambda t: t.pop("transformer/layer_0/mlp/linear_2/w"), "layer_0/mlp/linear_2/w is missing"),
    "no embedding": (lambda t: t.pop("token_embed/embeddings"), "token_embed/embeddings"),
    "shape": (
        lambda t: t.update({"pos_embed/embeddings": t["pos_embed/embeddings"][:-1]}),
        "expected at most 4 positions, got 5",
    ),
    "other shape": (lambda t: t.update({QUERY: t[QUERY][:-1]}), "expected shape"),
    "whole numbers": (lambda t: t.update({QUERY: t[QUERY].astype(np.int32)}), "expected float32 (F32) or another type"),
    "too precise": (lambda t: t.update({QUERY: t[QUERY] + np.float64(0.1)}), "that it holds exactly, got float64"),
    "NaN": (lambda t: t[QUERY].__setitem__((0, 0), np.nan), "got NaN or infinity"),
    "infinity": (lambda t: t[QUERY].__setitem__((0, 0), np.inf), "got NaN or infinity"),
    "large": (lambda t: t[QUERY].__setitem__((0, 0), 1e30), "expected numbers up to 1e+09, got 1e+30"),
    "extra": (lambda t: t.update({"lm_head": np.zeros(3, np.float32)}), "lm_head is not one of Tracr's"),
    "not Tracr's": (lambda t: (t.clear(), t.update({"h.0.w": np.zeros(3, np.float32)})), "expected Tracr's parameters"),
    "one dimension": (lambda t: t.update({QUERY: np.zeros(3, np.float32)}), "wrong shape"),
    "one-dimensional embedding": (
        lambda t: t.update({"token_embed/embeddings": np.zeros(3, np.float32)}),
        "wrong shape",
    ),
}
BAD_METADATA = {
    "no vocabulary": (lambda m: m.pop("vocab"), "vocab or --vocab (a token for each of the 7 rows"),
    "no BOS": (lambda m: m.update(vocab=[0, 1, 2, 3, 4, 5, 6]), "expected 'compiler_bos' once"),
    "BOS twice": (lambda m: m["vocab"].__setitem__(0, "compiler_bos"), "expected 'compiler_bos' once"),
    "same token twice": (lambda m: m["vocab"].__setitem__(0, m["vocab"][1]), "expected distinct tokens"),
    "heads": (lambda m: m.update(num_heads=0), "expected a whole number above 0 for num_heads"),
    "heads do not divide": (lambda m: m.update(num_heads=97), "heads divide"),
    "length": (lambda m: m.update(max_seq_len="5"), "expected a whole number above 0 for max_seq_len"),
    "long": (lambda m: m.update(max_seq_len=100_000), "max_seq_len: expected at most 5 positions, got 100,000"),
    "format": (lambda m: m.update(format="x"), "expected metadata of format"),
    "encoding": (lambda m: m.update(output_encoding="x"), "expected output_encoding"),
    "output values": (lambda m: m.update(output_values=None), "expected output_values"),
    "output directions": (
        lambda m: m.update(output_directions=[10**6]),
        "output_directions below 45, or a tensor unembed/w",
    ),
    "true for a direction": (lambda m: m.update(output_directions=[True]), "output_directions below 45, or a tensor"),
    "strange value": (lambda m: m["vocab"].__setitem__(0, {"a": 1}), "expected numbers and strings for vocab"),
    "infinite value": (lambda m: m["vocab"].__setitem__(0, float("inf")), "expected numbers and strings for vocab"),
    "huge value": (lambda m: m["vocab"].__setitem__(0, 10**300), "expected numbers and strings for vocab"),
    "line breaks": (lambda m: m.update(num_heads="a\nb"), "got 'a\\nb'"),
    "values no list": (lambda m: m.update(output_values="abc"), "expected a list for output_values"),
}


@pytest.mark.parametrize("name", BAD_TENSORS)
def test_bad_tensors(file, name):
    change, message = BAD_TENSORS[name]
    _rewrite(file, change_tensors=change)
    check(file, message)


@pytest.mark.parametrize("name", BAD_METADATA)
def test_bad_metadata(file, name):
    change, message = BAD_METADATA[name]
    _rewrite(file, change_meta=change)
    check(file, message)


def check(path, message):
    with pytest.raises(WeightsError) as error:
        TracrWeights.load(path)
    assert message in str(error.value) and str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_other_files(file, compiled, tmp_path, monkeypatch):
    check(tmp_path / "nothing", "no such file")
    check(tmp_path, "expected a file, got a folder")
    whole = file.read_bytes()
    for name, content, message in [
        ("pickle", pickle.dumps({"a": 1}), "got a pickle or an archive, which is never opened"),
        ("gzip", b"\x1f\x8b" + bytes(50), "got a pickle or an archive"),
        ("zip", b"PK\x03\x04" + bytes(50), "got a pickle or an archive"),
        ("json", b'{"a": 1}', "got JSON"),
        ("empty", b"", "expected a safetensors file"),
        ("text", b"hello, this is text", "expected a safetensors file"),
        ("truncated", whole[:-100], "expected a safetensors file"),
        ("cut in the header", whole[:60], "expected a safetensors file"),
        ("huge header", (2**60).to_bytes(8, "little") + b"{}", "expected a safetensors file"),
    ]:
        path = tmp_path / name
        path.write_bytes(content)
        check(path, message)
    save_file({"token_embed/embeddings": np.zeros((2, 2), np.float32)}, tmp_path / "bare")
    check(tmp_path / "bare", "expected Tracr's parameters")
    monkeypatch.setattr(tensor_files, "MAX_BYTES", 100)
    check(file, f"expected a file of at most 100 bytes, got {len(whole):,}")
    monkeypatch.undo()
    monkeypatch.setitem(tensor_files.LIMITS, "parameters", 100)
    check(file, "parameters; the limit is 100")
    monkeypatch.setitem(tensor_files.LIMITS, "parameters", 10**9)
    monkeypatch.setitem(tensor_files.LIMITS, "d_model", 4)
    check(file, "d_model is")
    with pytest.raises(WeightsError, match="the limit is 4"):
        to_weights(compiled)
    replace(compiled, num_heads=1)  # what is made of a model is not held against the limits


@pytest.mark.parametrize("magic", [b"PK", b"\x80\x04", b" {"], ids=["zip", "pickle", "json"])
def test_a_header_whose_length_begins_as_another_format_does(file, compiled, tmp_path, magic):
    wanted, length = (int.from_bytes(start, "little") for start in (magic, file.read_bytes()[:8]))
    first, *labels = compiled.residual_labels
    longer = replace(compiled, residual_labels=(first + "x" * ((wanted - length) % 2**16), *labels))
    longer.save(tmp_path / "longer")
    assert (tmp_path / "longer").read_bytes()[:2] == magic
    assert_equal(TracrWeights.load(tmp_path / "longer"), longer)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_corrupted_files_give_errors_not_crashes(data, compiled, tmp_path_factory):
    path = tmp_path_factory.mktemp("fuzz") / "m.safetensors"
    compiled.save(path)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, min(len(content) - 1, 4000)))] = data.draw(st.integers(0, 255))
    path.write_bytes(bytes(content))
    try:
        TracrWeights.load(path)
    except WeightsError as error:
        assert "\n" not in str(error)
