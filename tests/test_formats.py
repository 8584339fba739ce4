"""Models as people hold them: each is read as what it is, or what it does not tell is asked for by name."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from cases import CASES, LENGTH, VOCAB
from safetensors.torch import save_file as save_torch_file
from test_weights import assert_equal

from trade_hf.candidates import lifted_programs
from trade_hf.circuit.denoise import denoise
from trade_hf.compiled import transformer_lens as lens
from trade_hf.compiled.bridge import to_tracr
from trade_hf.compiled.compiler import compile_program
from trade_hf.compiled.formats import to_weights
from trade_hf.compiled.transforms import permute, rotate
from trade_hf.compiled.weights import TracrWeights, WeightsError
from trade_hf.decompiler import decompile, spelled
from trade_hf.verification import verify

CASE = next(case for case in CASES if case.name == "sort of distinct tokens")
WEIGHTS = replace(compile_program(CASE.program, VOCAB, LENGTH), residual_labels=())
DIRECTIONS = WEIGHTS.metadata()["output_directions"]
KNOWN = {
    "vocab": list(WEIGHTS.vocab),
    "max_seq_len": LENGTH,
    "output_values": list(WEIGHTS.output_values),
    "output_directions": DIRECTIONS,
    "num_heads": WEIGHTS.num_heads,
}
LENS_KNOWN = {name: KNOWN[name] for name in ("vocab", "output_values")} | {"causal": False}
STATE = {name: torch.tensor(tensor) for name, tensor in lens.to_state_dict(WEIGHTS).items()}


def haiku():
    """As `model.params` of tracr: a dictionary of dictionaries."""
    params = {}
    for name, tensor in WEIGHTS.tensors.items():
        module, parameter = name.rsplit("/", 1)
        params.setdefault(module, {})[parameter] = tensor
    return params


def prefixed(prefix, tensors):
    return {f"{prefix}{name}": tensor for name, tensor in tensors.items()}


def numpy_scalars():
    return {
        "vocab": [np.int64(token) if isinstance(token, int) else np.str_(token) for token in KNOWN["vocab"]],
        "max_seq_len": np.int32(LENGTH),
        "output_values": np.array(KNOWN["output_values"]),
        "output_directions": np.array(DIRECTIONS),
        "num_heads": np.int64(WEIGHTS.num_heads),
    }


def longer():
    """A state dict with room for 12 positions: those after the fifth are zeros."""
    return STATE | {"pos_embed.W_pos": torch.cat([STATE["pos_embed.W_pos"], torch.zeros(7, WEIGHTS.d_model)])}


MASK = torch.tril(torch.ones(LENGTH + 1, LENGTH + 1)).bool()
# What there is, and what has to be said beside it.
SOURCES = {
    "Haiku's parameters": (haiku(), KNOWN),
    "Haiku's parameters, flat": (WEIGHTS.tensors, KNOWN),
    "Haiku's parameters, with dots": (
        {name.replace("/", "."): tensor for name, tensor in WEIGHTS.tensors.items()},
        KNOWN,
    ),
    "Haiku's parameters inside others": ({"params": {"compiled_model/~": haiku()}}, KNOWN),
    "Haiku's parameters, half precision": (
        {name: tensor.astype(np.float16) for name, tensor in WEIGHTS.tensors.items()},
        KNOWN,
    ),
    "Haiku's parameters, double precision": (
        {name: tensor.astype(np.float64) for name, tensor in WEIGHTS.tensors.items()},
        KNOWN,
    ),
    "all in one dictionary": ({**haiku(), **KNOWN}, {}),
    "numpy's scalars": (haiku(), numpy_scalars()),
    "numpy's scalars in the dictionary": ({**haiku(), **numpy_scalars()}, {}),
    "a state dict": (STATE, LENS_KNOWN),
    "bfloat16": ({name: tensor.bfloat16() for name, tensor in STATE.items()}, LENS_KNOWN),
    "a gradient": ({name: torch.nn.Parameter(tensor) for name, tensor in STATE.items()}, LENS_KNOWN),
    "a compiled module": (prefixed("_orig_mod.", STATE), LENS_KNOWN),
    "a module of several devices": (prefixed("module.", STATE), LENS_KNOWN),
    "a wrapped module": (prefixed("module._orig_mod.", STATE), LENS_KNOWN),
    "a state dict inside another": ({"state_dict": STATE, **LENS_KNOWN}, {}),
    "a mask that hides nothing": (
        STATE | {"blocks.0.attn.mask": torch.ones_like(MASK)},
        {name: KNOWN[name] for name in ("vocab", "output_values")},
    ),
    "an older version's mask": (
        STATE | {"blocks.0.attn.mask": MASK, "blocks.0.attn.IGNORE": torch.tensor(-1e5)},
        LENS_KNOWN,
    ),
    "more positions": (longer(), LENS_KNOWN | {"max_seq_len": LENGTH}),
    "itself": (WEIGHTS, {}),
}


@pytest.mark.parametrize("name", SOURCES)
def test_what_is_held_in_other_ways_is_read_as_it_is(name):
    source, known = SOURCES[name]
    if name == "Haiku's parameters, half precision":  # 0.01 and the like are other numbers there
        half = {name: tensor.astype(np.float32) for name, tensor in source.items()}
        assert_equal(to_weights(source, **known), replace(WEIGHTS, tensors=half))
    elif name == "bfloat16":
        rounded = {name: tensor.bfloat16().float() for name, tensor in STATE.items()}
        assert_equal(to_weights(source, **known), to_weights(rounded, **known))
    else:
        assert_equal(to_weights(source, **known), WEIGHTS)


def test_files(tmp_path):
    np.savez(tmp_path / "flat.npz", **WEIGHTS.tensors)
    np.savez_compressed(tmp_path / "told.npz", **WEIGHTS.tensors, **numpy_scalars() | {"vocab": KNOWN["vocab"][:5]})
    save_torch_file(STATE, tmp_path / "state.safetensors", metadata={"format": "pt"})
    save_torch_file({n: t.bfloat16() for n, t in STATE.items()}, tmp_path / "bfloat16.safetensors")
    for name, known in (
        ("flat.npz", KNOWN),
        ("told.npz", {"vocab": KNOWN["vocab"]}),
        ("state.safetensors", LENS_KNOWN),
    ):
        assert_equal(to_weights(tmp_path / name, **known), WEIGHTS)
        assert_equal(to_weights((tmp_path / name).read_bytes(), **known), WEIGHTS)
    rounded = {name: tensor.bfloat16().float() for name, tensor in STATE.items()}
    assert_equal(to_weights(tmp_path / "bfloat16.safetensors", **LENS_KNOWN), to_weights(rounded, **LENS_KNOWN))


@pytest.mark.filterwarnings("ignore:HookedTransformer is deprecated:DeprecationWarning")
@pytest.mark.parametrize(
    "change", [lambda model: model, lambda model: model.bfloat16(), torch.compile], ids=["as it is", "bf16", "compiled"]
)
def test_models_of_transformer_lens(change):
    model = change(lens.to_hooked_transformer(WEIGHTS))
    read = to_weights(model, vocab=KNOWN["vocab"], output_values=KNOWN["output_values"])
    assert verify(CASE.program, read).is_verified


def test_models_of_tracr():
    from tracr.compiler.compiling import compile_rasp_to_model

    model = compile_rasp_to_model(to_tracr(CASE.program), set(VOCAB), LENGTH, compiler_bos="BOS", compiler_pad="PAD")
    whole = to_weights(model)
    known = {"bos": "BOS", "pad": "PAD", "vocab": whole.vocab, "output_directions": DIRECTIONS}
    raw = to_weights(model.params, **{**KNOWN, **known})
    assert_equal(replace(whole, residual_labels=()), raw)
    assert to_weights(model, max_seq_len=3).max_seq_len == 3


def test_a_model_without_a_row_for_pad(tiny_checkpoint):
    row = WEIGHTS.vocab.index("compiler_pad")
    vocab = [token for token in WEIGHTS.vocab if token != "compiler_pad"]
    state = STATE | {"embed.W_E": torch.tensor(np.delete(STATE["embed.W_E"].numpy(), row, 0))}
    read = to_weights(state, vocab=vocab, output_values=KNOWN["output_values"], causal=False, pad=None)
    assert read.vocab == (*vocab, "compiler_pad") and verify(CASE.program, read).is_verified
    result = decompile(read, tiny_checkpoint)
    assert result.verdict.is_verified


@pytest.mark.parametrize("change", [lambda weights, seed: weights, permute, rotate], ids=["own", "permuted", "rotated"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_model_without_a_row_for_pad_is_read_in_any_basis(case, change):
    weights = change(compile_program(case.program, VOCAB, LENGTH), 1)
    row = weights.vocab.index("compiler_pad")
    name = "token_embed/embeddings"
    tensors = weights.tensors | {name: np.delete(weights.tensors[name], row, 0), "unembed/w": weights.unembedding}
    known = {"vocab": [*VOCAB, "compiler_bos"], "output_values": weights.output_values, "num_heads": weights.num_heads}
    read = to_weights(tensors, **known, max_seq_len=LENGTH, pad=None)
    program = next(lifted_programs(denoise(read)))
    assert verify(spelled(program, read), read).is_verified


def test_what_the_caller_knows_counts():
    other = to_weights(WEIGHTS, output_values=["a", "b", "c", "d", "e"], max_seq_len=2, causal=True)
    assert (other.output_values, other.max_seq_len, other.causal) == (("a", "b", "c", "d", "e"), 2, True)
    assert to_weights(WEIGHTS, output_directions=DIRECTIONS[::-1]).metadata()["output_directions"] == DIRECTIONS[::-1]


def without(*names, known=KNOWN):
    return {name: part for name, part in known.items() if name not in names}


ASKED = {
    "nothing is known": (
        haiku(),
        {},
        r"^expected beside the tensors vocab or --vocab \(a token for each of the 7 rows of the embedding, BOS and pad "
        r"among them; got none\), num_heads or --num-heads \(how many there are in a layer\), output_values or "
        r"--output-values \(.*\), output_directions or --output-directions \(the residual direction of each output "
        rf"value; written and never read: {', '.join(map(str, DIRECTIONS))}\)$",
    ),
    "a token too few": (haiku(), KNOWN | {"vocab": KNOWN["vocab"][1:]}, "each of the 7 rows .*; got 6"),
    "BOS has another name": (
        haiku(),
        KNOWN | {"bos": "BOS"},
        "expected 'BOS' once in the vocabulary .bos or --bos",
    ),
    "no pad": (haiku(), KNOWN | {"pad": "PAD"}, "pad or --pad names another one; None or --no-pad for no row"),
    "unused positions": (
        longer(),
        LENS_KNOWN,
        "beside the tensors max_seq_len or --max-seq-len .*the last 7 positions are embedded as",
    ),
    "too long": (haiku(), KNOWN | {"max_seq_len": 9}, "max_seq_len: expected at most 5 positions, got 9"),
    "an older version's mask": (
        STATE | {"blocks.0.attn.mask": MASK},
        without("causal", known=LENS_KNOWN),
        r"^expected beside the tensors causal or --causal \(is the attention causal\? The tensors do not tell\)$",
    ),
    "no mask": (STATE, without("causal", known=LENS_KNOWN), "beside the tensors causal or --causal"),
    "heads that do not divide": (haiku(), KNOWN | {"num_heads": 97}, "a width of W_Q that 97 heads divide"),
    "directions that are not there": (haiku(), KNOWN | {"output_directions": [10**6]}, "output_directions below 25"),
    "too few directions": (haiku(), KNOWN | {"output_directions": DIRECTIONS[:2]}, "unembed/w: expected shape"),
    "whole numbers": ({"token_embed": {"embeddings": np.ones((2, 2), int)}}, KNOWN, "that it holds exactly, got int64"),
    "too precise": (
        WEIGHTS.tensors | {"token_embed/embeddings": np.full((7, WEIGHTS.d_model), 0.1)},
        KNOWN,
        "token_embed/embeddings: expected float32 or numbers that it holds exactly, got float64",
    ),
    "texts": ({"token_embed/embeddings": np.array(["a"])}, KNOWN, "token_embed/embeddings: expected float32"),
    "an object": ({"token_embed/embeddings": np.array([{}])}, KNOWN, "token_embed/embeddings: expected float32"),
    "a list": ([1], {}, "expected a safetensors or npz file, .*, got list"),
    "a number": (5, {}, "expected a safetensors or npz file, .*, got int"),
    "nothing": ({}, {}, r"expected Tracr's parameters \(token_embed/embeddings, …\), got no tensor"),
    "GPT-2's": ({"wte.weight": np.ones((2, 2), np.float32)}, {}, "expected Tracr's parameters .*, got wte.weight"),
}


@pytest.mark.parametrize("name", ASKED)
def test_what_is_missing_is_asked_for_in_one_line(name):
    source, known, message = ASKED[name]
    with pytest.raises(WeightsError, match=message) as error:
        to_weights(source, **known)
    assert "\n" not in str(error.value) and len(str(error.value)) <= 601


def test_arguments_of_other_names():
    with pytest.raises(TypeError, match="expected arguments among vocab, bos, .*, got vocabulary"):
        to_weights(WEIGHTS, vocabulary=[1])
    nested = {}
    nested["a"] = nested
    with pytest.raises(WeightsError, match="in at most 8 dictionaries"):
        to_weights(nested)


def test_numpys_numbers_are_numbers():
    vocab, length = {np.int64(token) for token in VOCAB}, np.int64(LENGTH)
    compiled = compile_program(CASE.program, vocab, length)
    assert_equal(compiled, compile_program(CASE.program, VOCAB, LENGTH))
    built = TracrWeights(
        WEIGHTS.tensors,
        np.int64(WEIGHTS.num_heads),
        numpy_scalars()["vocab"],
        length,
        list(np.arange(5)),
        WEIGHTS.unembedding,
    )
    assert_equal(built, WEIGHTS)
    assert {*map(type, built.vocab)} == {int, str} and type(built.max_seq_len) is int
    assert verify(CASE.program, built).status.value == "identical weights"
