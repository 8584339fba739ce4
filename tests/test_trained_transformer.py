"""The forward pass of ordinary transformers, held against transformer_lens and transformers; bad input in words."""

import itertools
import json

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from tests.hostile_files import HOSTILE
from trade_hf.compiled.weights import WeightsError
from trade_hf.trained.config import Config
from trade_hf.trained.domain import Domain
from trade_hf.trained.transformer import Transformer

SMALL = {"n_layers": 2, "n_heads": 2, "d_model": 12, "d_head": 5, "n_ctx": 6, "d_vocab": 7, "d_vocab_out": 4}
ARCHITECTURES = [
    {"act_fn": act, "d_mlp": 9, "normalization_type": norm, "attention_dir": direction, "attn_only": False}
    for act, norm, direction in itertools.product(
        ("relu", "gelu", "gelu_new"), (None, "LN", "LNPre"), ("causal", "bidirectional")
    )
] + [{"attn_only": True, "normalization_type": norm, "attention_dir": "causal"} for norm in (None, "LN")]
TOKENS = np.random.RandomState(0).randint(7, size=(5, 6))


def hooked(**architecture):
    from transformer_lens import HookedTransformer, HookedTransformerConfig

    torch.manual_seed(0)
    model = HookedTransformer(HookedTransformerConfig(**SMALL, **architecture, device="cpu"))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.4 * torch.randn(parameter.shape))
    return model.eval()


def close(got, expected):
    assert np.abs(got - expected).max() <= 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=lambda a: "-".join(map(str, a.values())))
def test_every_activation_is_transformer_lens_own(architecture):
    model = hooked(**architecture)
    with torch.no_grad():
        expected, theirs = model.run_with_cache(torch.tensor(TOKENS))
    ours: dict[str, torch.Tensor] = {}
    for source in (model, (model.state_dict(), vars(model.cfg))):
        read = Transformer.of(source) if source is model else Transformer.from_state_dict(*source)
        close(read.run(TOKENS, cache=ours).numpy(), expected.numpy())
    for name, activation in ours.items():
        close(activation.numpy(), theirs[name].numpy())
    close(read.run(TOKENS, torch.float64).numpy(), expected.numpy())


@pytest.mark.parametrize("name", ["blocks.0.hook_resid_mid", "blocks.1.attn.hook_pattern", "blocks.1.attn.hook_z"])
def test_patches_do_what_hooks_do(name):
    model = hooked(**ARCHITECTURES[1])
    swap = lambda value, hook=None: value.flip(0)  # noqa: E731
    with torch.no_grad():
        expected = model.run_with_hooks(torch.tensor(TOKENS), fwd_hooks=[(name, swap)])
    close(Transformer.of(model).run(TOKENS, patches={name: swap}).numpy(), expected.numpy())


@pytest.mark.parametrize("tied", [True, False])
def test_gpt2_of_transformers(tied, tmp_path):
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    shape = {"vocab_size": 7, "n_positions": 6, "n_embd": 12, "n_layer": 2, "n_head": 3}
    config = GPT2Config(**shape, tie_word_embeddings=tied, bos_token_id=0, eos_token_id=0)
    model = GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.4 * torch.randn(parameter.shape))
        expected = model(torch.tensor(TOKENS)).logits.numpy()
    model.save_pretrained(tmp_path)
    for source in (model, tmp_path):
        close(Transformer.of(source).run(TOKENS).numpy(), expected)


def test_transformer_bridge():
    from transformer_lens.model_bridge import TransformerBridge

    shape = {**SMALL, "d_head": 6, **ARCHITECTURES[2]}
    model = TransformerBridge.boot_native(shape, device="cpu")
    with torch.no_grad():
        expected = model(torch.tensor(TOKENS)).numpy()
    close(Transformer.of(model).run(TOKENS).numpy(), expected)


def test_compiled_models_are_transformers_too():
    from trade_hf import compile_program, parse
    from trade_hf.compiled.forward import run

    text = "v1 = rasp.Select(rasp.tokens, rasp.tokens, rasp.Comparison.EQ)\nv2 = rasp.SelectorWidth(v1)\nprogram = v2"
    weights = compile_program(parse(text), (0, 1, 2), 4)
    inputs = np.array([[0, 1, 1, 2], [2, 2, 2, 0]])
    with_bos = np.concatenate([np.full((2, 1), weights.vocab.index(weights.bos)), inputs], 1)
    logits = Transformer.of(weights).run(with_bos).numpy()[:, 1:]
    expected = run(weights, inputs)
    assert [[weights.output_values[c] for c in row] for row in logits.argmax(-1)] == [[1, 2, 2, 1], [3, 3, 3, 1]]
    assert expected is not None


ENUMERATED = {
    "enumerate": {"prefix": [5], "vocab": [0, 1], "lengths": [1, 2]},
    "answer": {"positions": {"from": 1}, "columns": 4},
}


def test_domains_enumerate_and_mark_answers():
    domain = Domain.from_dict(ENUMERATED)
    assert [domain.input(n) for n in range(len(domain))] == [
        [5, 0],
        [5, 1],
        *([5, a, b] for a in (0, 1) for b in (0, 1)),
    ]
    assert (len(domain), domain.answers, domain.is_exhaustive) == (6, 10, True)
    last = Domain.from_dict({"inputs": [[1], [1, 2, 3]], "answer": {"positions": [-1], "columns": 4}})
    assert last.is_answer.tolist() == [[True, False, False], [False, False, True]]


def test_a_domain_too_large_is_sampled_with_a_seed():
    told = {"enumerate": {"vocab": list(range(10)), "lengths": [1, 12]}, "answer": {"positions": [-1], "columns": 4}}
    domain = Domain.from_dict(told)
    assert domain.size == sum(10**n for n in range(1, 13)) and not domain.is_exhaustive
    assert 10_000 < len(domain) <= 50_000 and len(np.unique(domain.tokens, axis=0)) == len(domain)
    assert np.array_equal(domain.tokens, Domain.from_dict(told).tokens)


ANSWER = {"positions": [-1], "reads": "argmax", "columns": 4}
BAD_DOMAINS = {
    "no answer": ({"inputs": [[0]]}, "expected an object with `answer`"),
    "no inputs": ({"answer": ANSWER}, "expected either `inputs` or `enumerate`"),
    "both": ({"answer": ANSWER, "inputs": [[0]], "enumerate": {}}, "expected either `inputs` or `enumerate`"),
    "empty": ({"answer": ANSWER, "inputs": []}, "inputs: expected a list of at least one"),
    "empty input": ({"answer": ANSWER, "inputs": [[]]}, "expected at least one token in each input"),
    "text": ({"answer": ANSWER, "inputs": [["a"]]}, "expected a whole number from 0"),
    "twice": ({"answer": ANSWER, "inputs": [[0], [0]]}, "expected distinct inputs"),
    "columns": ({"answer": {**ANSWER, "columns": -1}, "inputs": [[0]]}, "answer.columns: expected a whole number"),
    "reads": ({"answer": {**ANSWER, "reads": "softmax"}, "inputs": [[0]]}, "answer.reads: expected one of argmax"),
    "positions": ({"answer": {**ANSWER, "positions": "last"}, "inputs": [[0]]}, "answer.positions: expected a list"),
    "outside": ({"answer": {**ANSWER, "positions": [7]}, "inputs": [[0]]}, "expected a position within the inputs"),
    "lengths": ({"answer": ANSWER, "enumerate": {"vocab": [0], "lengths": [3, 1]}}, "enumerate.lengths: expected"),
    "vocab": ({"answer": ANSWER, "enumerate": {"vocab": [0, 0], "lengths": [1, 2]}}, "expected distinct token ids"),
    "huge": ({"answer": ANSWER, "enumerate": {"vocab": [0], "lengths": [1, 10**9]}}, "enumerate.lengths: expected"),
}


@pytest.mark.parametrize("told, message", BAD_DOMAINS.values(), ids=BAD_DOMAINS)
def test_bad_domains_are_refused_in_words(told, message):
    with pytest.raises(WeightsError, match=message.replace("[", r"\[")):
        Domain.from_dict(told)


BAD_CONFIGS = {
    "rotary": ({"positional_embedding_type": "rotary"}, "positional_embedding_type: expected 'standard'"),
    "norm": ({"normalization_type": "RMS"}, "normalization_type: expected one of"),
    "activation": ({"act_fn": "swish"}, "act_fn: expected one of"),
    "direction": ({"attention_dir": "sideways"}, "attention_dir: expected one of"),
    "heads": ({"n_heads": 0}, "n_heads: expected a whole number from 1"),
    "layers": ({"n_layers": 10**6}, "n_layers: expected a whole number from 1"),
    "d_model": ({"d_model": "12"}, "d_model: expected a whole number"),
    "eps": ({"eps": -1.0}, "eps: expected a number between 0 and 1"),
    "scale": ({"attn_scale": 3.0}, "attn_scale: expected the square root"),
}


@pytest.mark.parametrize("change, message", BAD_CONFIGS.values(), ids=BAD_CONFIGS)
def test_bad_configs_are_refused_in_words(change, message):
    with pytest.raises(WeightsError, match=message):
        Config.of({**SMALL, "d_mlp": 9, **change})


def write(folder, config=SMALL, change=lambda tensors: tensors):
    shapes = Config.of({**config, "d_mlp": 9}).shapes()
    rng = np.random.RandomState(0)
    save_file(
        change({name: rng.randn(*shape).astype(np.float32) for name, shape in shapes.items()}),
        folder / "model.safetensors",
    )
    (folder / "config.json").write_text(json.dumps({**config, "d_mlp": 9}))
    return folder


def without(name):
    return lambda tensors: {key: part for key, part in tensors.items() if key != name}


def with_part(name, part):
    return lambda tensors: {**tensors, name: part}


BAD_TENSORS = {
    "missing": (without("embed.W_E"), "embed.W_E is missing"),
    "unknown": (with_part("lora.A", np.zeros(3, np.float32)), "lora.A is not one"),
    "shape": (with_part("unembed.b_U", np.zeros(5, np.float32)), r"unembed.b_U: expected shape \[4\], got \[5\]"),
    "NaN": (with_part("unembed.b_U", np.full(4, np.nan, np.float32)), "expected finite numbers"),
}


@pytest.mark.parametrize("change, message", BAD_TENSORS.values(), ids=BAD_TENSORS)
def test_bad_tensors_are_refused_in_words(change, message, tmp_path):
    with pytest.raises(WeightsError, match=message):
        Transformer.load(write(tmp_path, change=change))


@pytest.mark.parametrize("content", [content for content, _ in HOSTILE.values()], ids=HOSTILE)
def test_hostile_files_are_refused(content, tmp_path):
    write(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(WeightsError):
        Transformer.load(tmp_path)


def test_missing_files_are_named(tmp_path):
    with pytest.raises(WeightsError, match=r"config\.json: no such file"):
        Transformer.load(tmp_path)
    write(tmp_path)
    (tmp_path / "config.json").write_text("[")
    with pytest.raises(WeightsError, match="expected JSON"):
        Transformer.load(tmp_path)


def test_inputs_outside_the_model_are_refused(tmp_path):
    model = Transformer.load(write(tmp_path))
    for tokens, message in ((np.zeros((1, 7), int), "at most 6 tokens"), (np.array([[7]]), "token ids below 7")):
        with pytest.raises(WeightsError, match=message):
            model.run(tokens)


def test_batches_do_not_change_logits(tmp_path, monkeypatch):
    model = Transformer.load(write(tmp_path))
    domain = Domain.from_dict(ENUMERATED)
    whole = model.logits(domain)
    monkeypatch.setattr("trade_hf.trained.transformer.MOST_CELLS", 1)
    assert np.abs(model.logits(domain) - whole).max() <= 1e-5 * np.abs(whole).max()
