"""TransformerLens, the real package: its models of ours give what ours give, and what goes there comes back the same.

constraints.txt pins 3.9, which has both HookedTransformer and TransformerBridge; 4.0 dropped the former.
"""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from cases import CASES, LENGTH, VOCAB
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file
from test_weights import assert_equal

from trade_hf.cli import main
from trade_hf.compiled import transformer_lens as lens
from trade_hf.compiled.bridge import from_tracr_model
from trade_hf.compiled.compiler import compile_program
from trade_hf.compiled.formats import to_weights
from trade_hf.compiled.forward import residual_stream, run
from trade_hf.compiled.transforms import permute, rotate
from trade_hf.compiled.weights import TracrWeights, WeightsError
from trade_hf.decompiler import decompile
from trade_hf.rasp.evaluate import PADDING, all_inputs
from trade_hf.rasp.text import to_text
from trade_hf.verification import verify

pytestmark = pytest.mark.filterwarnings("ignore:HookedTransformer is deprecated:DeprecationWarning")
TO_MODEL = {"hooked": lens.to_hooked_transformer, "bridge": lens.to_transformer_bridge}
every_model = pytest.mark.parametrize("to_model", TO_MODEL.values(), ids=TO_MODEL)


def of(case):
    return compile_program(case.program, VOCAB, LENGTH)


def lens_outputs(model, weights, inputs):
    """Logits [input, position, output] and the residual stream after the last layer, BOS position left out."""
    tokens = [lens.encode(weights, [weights.input_vocab[code] for code in row]) for row in inputs]
    with torch.inference_mode():
        logits, cache = model.run_with_cache(torch.tensor(tokens))
    stream = cache[f"blocks.{weights.num_layers - 1}.hook_resid_post"]
    return logits[:, 1:].numpy(), stream[:, 1:].numpy()


def by_length(weights, some):
    """The inputs of each length, `some` of them at most, without padding."""
    inputs = all_inputs(len(weights.input_vocab), weights.max_seq_len)
    lengths = (inputs != PADDING).sum(1)
    rng = np.random.default_rng(0)
    for length in range(1, weights.max_seq_len + 1):
        rows = inputs[lengths == length][:, :length]
        yield rows[rng.permutation(len(rows))[:some]]


def assert_agrees(model, weights, some=30):
    for inputs in by_length(weights, some):
        logits, stream = lens_outputs(model, weights, inputs)
        ours = run(weights, inputs)
        assert np.allclose(stream, residual_stream(weights, inputs), atol=2e-4)
        assert np.allclose(logits, ours.logits, rtol=1e-5, atol=2e-4)
        if ours.values is not None:  # where no direction is on, the largest is rounding's choice
            assert (logits.argmax(-1) == ours.codes)[~ours.undefined].all()


def test_tracrs_own_decoding():
    """Not through our forward pass: what tracr's `apply` decodes, of named s-ops."""
    from tracr.compiler.compiling import compile_rasp_to_model
    from tracr.rasp import rasp

    same = rasp.Select(rasp.tokens, rasp.tokens, rasp.Comparison.EQ).named("a_select")
    program = rasp.SelectorWidth(same).named("zz_width")
    tracr = compile_rasp_to_model(program, set(VOCAB), LENGTH, compiler_bos="compiler_bos")
    weights = from_tracr_model(tracr)
    for to_model in TO_MODEL.values():
        logits, _ = lens_outputs(to_model(weights), weights, np.array([[3, 1, 1, 4]]))
        assert [weights.output_values[code] for code in logits[0].argmax(-1)] == [1, 2, 2, 1]
    assert tracr.apply(["compiler_bos", 3, 1, 1, 4]).decoded[1:] == [1, 2, 2, 1]


@every_model
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_forward_passes_agree(case, to_model):
    weights = of(case)
    model = to_model(weights)
    assert_agrees(model, weights)
    inputs = np.array([[VOCAB.index(token) for token in case.given]])
    decoded, _ = lens_outputs(model, weights, inputs)
    for expected, logits in zip(case.expect, decoded[0], strict=True):
        if expected is None:
            assert logits.max() < 0.5
        elif weights.output_values is None:
            assert logits[0] == pytest.approx(expected, abs=1e-3)
        else:
            assert weights.output_values[logits.argmax()] == expected


@every_model
@pytest.mark.parametrize("change", [permute, rotate])
def test_forward_passes_agree_in_other_bases(samples, change, to_model):
    for seed, sample in enumerate(samples[:6]):
        weights = change(compile_program(sample.program, sample.vocab, sample.max_seq_len), seed)
        assert_agrees(to_model(weights), weights, some=10)


def test_random_programs(samples):
    for sample in samples[6:16]:
        weights = compile_program(sample.program, sample.vocab, sample.max_seq_len)
        assert_agrees(lens.to_hooked_transformer(weights), weights, some=10)


def test_the_first_directions_are_not_the_output():
    """As reported to TransformerLens (no. 481): with named s-ops the output stands where its name sorts."""
    for name in ("reverse", "histogram", "sort of distinct tokens"):
        case = next(case for case in CASES if case.name == name)
        weights = of(case)
        model = lens.to_hooked_transformer(weights)
        inputs = np.array([[VOCAB.index(token) for token in case.given]])

        def decoded(model=model, weights=weights, inputs=inputs):
            logits, _ = lens_outputs(model, weights, inputs)
            return [weights.output_values[code] for code in logits[0].argmax(-1)]

        assert decoded() == case.expect
        first = torch.eye(*weights.unembedding.shape)
        assert not torch.equal(first, model.W_U)
        model.unembed.W_U.data = first
        assert decoded() != case.expect, name


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_there_and_back_is_the_same_bit_for_bit(case, tmp_path):
    for version in (of(case), permute(of(case), 1), rotate(of(case), 1)):
        lens.save(version, tmp_path / "lens.safetensors")
        assert_equal(TracrWeights.load(tmp_path / "lens.safetensors"), version)


@every_model
def test_from_a_model(samples, to_model):
    for sample in samples[:5]:
        weights = rotate(compile_program(sample.program, sample.vocab, sample.max_seq_len), 1)  # has no labels
        assert_equal(lens.from_transformer_lens(to_model(weights), weights.vocab, weights.output_values), weights)


def test_the_file_is_what_transformer_lens_loads(tmp_path):
    from transformer_lens import HookedTransformer, HookedTransformerConfig

    path, weights = tmp_path / "lens.safetensors", of(CASES[2])
    lens.save(weights, path)
    size = int.from_bytes(path.read_bytes()[:8], "little")
    config = json.loads(json.loads(path.read_bytes()[8 : 8 + size])["__metadata__"]["transformer_lens"])
    model = HookedTransformer(HookedTransformerConfig(**config, device="cpu"))
    left_out = model.load_state_dict({name: torch.tensor(t) for name, t in load_file(path).items()}, strict=False)
    assert not left_out.unexpected_keys and all(key.endswith(("mask", "IGNORE")) for key in left_out.missing_keys)
    assert_agrees(model, weights)


def test_decompiles(tiny_checkpoint):
    weights = of(CASES[1])
    model = lens.to_hooked_transformer(weights)
    known = {"vocab": list(weights.vocab), "output_values": list(weights.output_values)}
    beside = {**model.state_dict(), **known, "causal": False}  # torch's tensors, buffers among them
    for source, arguments in ((beside, {}), (model, known)):
        result = decompile(source, tiny_checkpoint, budget_seconds=60, **arguments)
        assert str(verify(result.program, weights)) == "identical weights"


def test_command_line(tmp_path, capsys):
    program, model = tmp_path / "program.py", tmp_path / "lens.safetensors"
    program.write_text(to_text(CASES[1].program))
    assert main(["compile", str(program), "-o", str(model), "--format", "transformer-lens"]) == 0
    assert "blocks.0.attn.W_Q" in load_file(model)
    assert main(["verify", str(model), str(program)]) == 0
    assert "identical weights" in capsys.readouterr().out


def spoilt(state, **changes):
    return {name: part for name, part in {**state, **changes}.items() if part is not None}


def test_one_clear_line_for_what_is_none(tmp_path):
    weights = of(CASES[1])
    state = lens.to_state_dict(weights)
    good = {**state, "vocab": weights.vocab, "output_values": weights.output_values, "causal": False}
    causal = np.tril(np.ones((6, 6), bool))
    for changes, message in [
        ({"vocab": None}, r"beside the tensors vocab or --vocab \(a token for each of the 7 rows .*; got none\)"),
        ({"vocab": VOCAB}, "BOS and pad among them; got 5"),
        ({"output_values": None}, "beside the tensors output_values or --output-values"),
        ({"blocks.0.mlp.W_in": None}, "the tensor blocks.0.mlp.W_in is missing"),
        ({"blocks.0.mlp.W_gate": np.ones(3)}, "the tensor blocks.0.mlp.W_gate is not one of"),
        ({"unembed.b_U": np.ones(6, np.float32)}, "unembed.b_U: expected zeros"),
        ({"blocks.0.attn.mask": ~causal}, "blocks.0.attn.mask: expected attention to all positions or a causal mask"),
        ({"blocks.0.attn.mask": causal, "causal": None}, "beside the tensors causal or --causal"),
        ({"causal": None}, "beside the tensors causal or --causal"),
        ({"causal": 1}, "expected true or false for causal in the metadata, got 1"),
        ({"blocks.0.attn.W_Q": np.ones((7, 6), np.float32)}, "expected heads first"),
        ({"embed.W_E": np.float32(1)}, "token_embed/embeddings has the wrong shape: expected .row, d_model., got .."),
    ]:
        with pytest.raises(WeightsError, match=message):
            to_weights(spoilt(good, **changes))
    save_file(state, tmp_path / "bare.safetensors")
    with pytest.raises(WeightsError, match="expected beside the tensors vocab .*output_values .*causal"):
        to_weights(tmp_path / "bare.safetensors")
    with pytest.raises(TypeError, match="expected a HookedTransformer or a TransformerBridge, got dict"):
        lens.from_transformer_lens({}, weights.vocab, weights.output_values)


@pytest.mark.parametrize(
    "change",
    [{"act_fn": "gelu"}, {"use_attn_scale": False}, {"normalization_type": "LN"}],
    ids=str,
)
def test_models_that_are_not_built_as_tracrs_are_refused(change):
    from transformer_lens import HookedTransformer, HookedTransformerConfig

    weights = of(CASES[1])
    config = {**lens.to_config(weights), **change}
    model = HookedTransformer(HookedTransformerConfig(**config, device="cpu"))
    with pytest.raises(WeightsError, match=next(iter(change)).removeprefix("use_")):
        lens.from_transformer_lens(model, weights.vocab, weights.output_values)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_hostile_state_dicts_give_one_line(data):
    weights = of(CASES[0])
    state = lens.to_state_dict(weights)
    name = data.draw(st.sampled_from(sorted(state)))
    shape = data.draw(st.lists(st.integers(0, 4), max_size=4))
    state[name] = np.zeros(shape, np.float32)
    try:
        to_weights({**state, "vocab": weights.vocab, "output_values": weights.output_values})
    except WeightsError as error:
        assert "\n" not in str(error)
    else:
        assert name == "unembed.b_U" or state[name].shape == lens.to_state_dict(weights)[name].shape


@every_model
def test_a_causal_mask(to_model):
    histogram = next(case.program for case in CASES if case.name == "histogram")
    weights = replace(compile_program(histogram, VOCAB, LENGTH, causal=True), residual_labels=())
    model = to_model(weights)
    assert_agrees(model, weights)
    back = lens.from_transformer_lens(model, weights.vocab, weights.output_values)
    assert back.causal
    assert_equal(back, weights)
