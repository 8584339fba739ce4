"""To and from TransformerLens: a Tracr model as a state dict and a config, or as a model of the library.

TransformerLens has two ways to name and lay out the same parameters, and both are read: HookedTransformer's (up to 3.9;
`blocks.0.attn.W_Q` [head, d_model, d_head]) and TransformerBridge's (`blocks.0.attn.q.weight`, as torch's linear layers
are: [out, in]). Numbers are moved and never changed, so a model there and back is the same bit for bit. The unembedding
is the model's own: the first residual directions, as in a much copied conversion, are the output's only where its name
sorts first (github.com/TransformerLensOrg/TransformerLens/issues/481).

A state dict does not say what tokens and outputs stand for, nor whether the attention is causal: this stands beside the
tensors or is an argument (`formats.py`), in a file that `save` wrote it is in the metadata:

    decompile(state_dict, vocab=[0, 1, "compiler_bos", "compiler_pad"], output_values=[0, 1, 2], causal=False)

The mask among the buffers tells in one case alone, where it hides nothing: older versions keep a causal one beside
`attention_dir="bidirectional"` too.

TransformerLens sees no padding here: inputs of one batch are to be equally long, BOS in front (`encode`).
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from trade_hf.compiled.description import BOS, FORMAT, PAD, UNEMBED, describe
from trade_hf.compiled.tensor_files import MASKS, WeightsError, to_array, write_file
from trade_hf.compiled.weights import TracrWeights
from trade_hf.rasp.functions import Value

# Tracr's name: HookedTransformer's, TransformerBridge's.
_OUTSIDE = {
    "token_embed/embeddings": ("embed.W_E", "embed.weight"),
    "pos_embed/embeddings": ("pos_embed.W_pos", "pos_embed.weight"),
    UNEMBED: ("unembed.W_U", "unembed.weight"),
}
_OUTPUT_BIAS = ("unembed.b_U", "unembed.bias")  # Tracr has none
_LAYER = {
    "attn/query/w": ("attn.W_Q", "attn.q.weight"),
    "attn/query/b": ("attn.b_Q", "attn.q.bias"),
    "attn/key/w": ("attn.W_K", "attn.k.weight"),
    "attn/key/b": ("attn.b_K", "attn.k.bias"),
    "attn/value/w": ("attn.W_V", "attn.v.weight"),
    "attn/value/b": ("attn.b_V", "attn.v.bias"),
    "attn/linear/w": ("attn.W_O", "attn.o.weight"),
    "attn/linear/b": ("attn.b_O", "attn.o.bias"),
    "mlp/linear_1/w": ("mlp.W_in", "mlp.in.weight"),
    "mlp/linear_1/b": ("mlp.b_in", "mlp.in.bias"),
    "mlp/linear_2/w": ("mlp.W_out", "mlp.out.weight"),
    "mlp/linear_2/b": ("mlp.b_out", "mlp.out.bias"),
}
_HOOKED, _BRIDGE = 0, 1

# What Tracr's models are, in the words of TransformerLens's configs.
_ARCHITECTURE = {
    "act_fn": "relu",
    "normalization_type": None,
    "positional_embedding_type": "standard",
    "attn_only": False,
    "gated_mlp": False,
}
_DIRECTIONS = {False: "bidirectional", True: "causal"}  # by whether a model is causal


# ---------------------------------------------------------------- export


def to_state_dict(weights: TracrWeights) -> dict[str, np.ndarray]:
    """HookedTransformer's state dict, float32: all its parameters, none of its buffers (`mask`, `IGNORE`)."""
    return _export(weights, _HOOKED)


def to_config(weights: TracrWeights) -> dict[str, Any]:
    """Keyword arguments for HookedTransformerConfig or TransformerBridgeConfig."""
    return {
        "n_layers": weights.num_layers,
        "d_model": weights.d_model,
        "n_ctx": weights.max_seq_len + 1,
        "n_heads": weights.num_heads,
        "d_head": weights.key_size,  # both scale attention scores by 1 / sqrt of it
        "d_mlp": weights.mlp_size,
        "d_vocab": len(weights.vocab),
        "d_vocab_out": weights.unembedding.shape[1],
        "init_weights": False,
        "attention_dir": _DIRECTIONS[weights.causal],
        **_ARCHITECTURE,
    }


def save(weights: TracrWeights, path: str | os.PathLike) -> None:
    """Write HookedTransformer's state dict as one safetensors file that `TracrWeights.load` reads too.

    The metadata has the config as JSON under `transformer_lens`, beside what all our files have under `trade`.
    """
    metadata = {"trade": json.dumps(describe(weights, None)), "transformer_lens": json.dumps(to_config(weights))}
    write_file(path, to_state_dict(weights), metadata)


def to_hooked_transformer(weights: TracrWeights) -> Any:
    """A HookedTransformer on the CPU. Raises ImportError where transformer_lens is missing or 4.0 and later."""
    try:
        from transformer_lens import HookedTransformer, HookedTransformerConfig
    except ImportError:
        hint = "4.0 and later have to_transformer_bridge alone"
        raise ImportError(f"expected transformer_lens before 4.0: pip install 'transformer_lens<4' ({hint})") from None
    model = HookedTransformer(HookedTransformerConfig(**to_config(weights), device="cpu"))
    return _fill(model, _export(weights, _HOOKED))


def to_transformer_bridge(weights: TracrWeights) -> Any:
    """A TransformerBridge on the CPU. Raises ImportError where transformer_lens is missing or older than 3.9."""
    try:
        from transformer_lens.model_bridge import TransformerBridge
    except ImportError:
        raise ImportError("expected transformer_lens 3.9 or later: pip install transformer_lens") from None
    return _fill(TransformerBridge.boot_native(to_config(weights), device="cpu"), _export(weights, _BRIDGE))


def encode(weights: TracrWeights, tokens: Sequence[Value]) -> list[int]:
    """One input as a model here takes it: rows of the embedding, BOS in front. Raises ValueError for other tokens."""
    return [weights.vocab.index(token) for token in (weights.bos, *tokens)]


def _export(weights: TracrWeights, dialect: int) -> dict[str, np.ndarray]:
    tensors = {**weights.tensors, UNEMBED: weights.unembedding}
    lay_out = _per_head if dialect == _HOOKED else _transposed
    state = {
        theirs[dialect]: np.ascontiguousarray(lay_out(ours, tensors[ours], weights.num_heads))
        for ours, theirs in _names(weights.num_layers).items()
    }
    return {**state, _OUTPUT_BIAS[dialect]: np.zeros(weights.unembedding.shape[1], np.float32)}


def _fill(model: Any, state: dict[str, np.ndarray]) -> Any:
    import torch

    parameters = {name: torch.tensor(array) for name, array in state.items()}
    model.load_state_dict({**model.state_dict(), **parameters}, strict=True)  # buffers stay as they are
    return model.eval()


# ---------------------------------------------------------------- import


def from_transformer_lens(
    model: Any,
    vocab: Sequence[Value],
    output_values: Sequence[Value] | None,
    max_seq_len: int | None = None,
    bos: Value = BOS,
    pad: Value | None = PAD,
) -> TracrWeights:
    """The weights of a Tracr model that is held as a HookedTransformer or a TransformerBridge.

    Args:
      vocab: the token of each row of the embedding, `bos` and `pad` among them.
      output_values: the value that each column of the unembedding stands for; None for a numerical output.
      max_seq_len: the longest input, BOS not counted; by default one less than there are positions.
      pad: None where the embedding has no row for it.

    Raises WeightsError for a model that is not built as Tracr's are, TypeError for what is no such model.
    """
    state, described = read_model(model)
    described |= {"vocab": list(vocab), "output_values": None if output_values is None else list(output_values)}
    described |= {"bos": bos, "pad": pad} | ({} if max_seq_len is None else {"max_seq_len": max_seq_len})
    return TracrWeights.from_metadata(state, described)


def read_model(model: Any) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The state dict of a HookedTransformer or a TransformerBridge in float32, and what its config says.

    Raises as `from_transformer_lens`.
    """
    if not (hasattr(model, "cfg") and hasattr(model, "state_dict")):
        raise TypeError(f"expected a HookedTransformer or a TransformerBridge, got {type(model).__name__}")
    _check_config(model.cfg)
    state = {name: to_array(name, tensor) for name, tensor in model.state_dict().items()}
    is_causal = model.cfg.attention_dir == _DIRECTIONS[True]
    return state, {"format": FORMAT, "num_heads": model.cfg.n_heads, "causal": is_causal}


def is_state_dict(names: Iterable[str]) -> bool:
    """Whether tensors are named as TransformerLens does, perhaps with a prefix (`module.`, `_orig_mod.`)."""
    return _prefix(names) is not None


def _prefix(names: Iterable[str]) -> str | None:
    for name in names:
        for anchor in _OUTSIDE["token_embed/embeddings"]:
            prefix = name.removesuffix(anchor)
            if prefix != name and (not prefix or prefix.endswith((".", "/"))):
                return prefix
    return None


def from_state_dict(state: dict[str, np.ndarray], meta: dict[str, Any]) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """A state dict's tensors under Tracr's names, UNEMBED among them, and `meta` with what follows from their shapes.

    A mask that hides nothing tells that the model is not causal; a causal one tells nothing: `causal` is None there.
    Raises WeightsError for tensors that are missing or unknown, for another mask and for a bias of the output.
    """
    prefix = _prefix(state) or ""
    state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    dialect = _HOOKED if "embed.W_E" in state else _BRIDGE
    masks = [_is_causal(name, mask) for name, mask in state.items() if name.endswith(MASKS[0]) and mask.size]
    state = {name: tensor for name, tensor in state.items() if not name.endswith(MASKS)}
    bias = state.pop(_OUTPUT_BIAS[dialect], np.zeros(0))
    if bias.any():
        raise WeightsError(f"{_OUTPUT_BIAS[dialect]}: expected zeros, since Tracr's output has no bias")
    layers = {name.split(".")[1] for name in state if name.startswith("blocks.")}
    names = _names(len(layers))
    if strange := sorted(set(state) ^ {theirs[dialect] for theirs in names.values()}):
        what = "is not one of a Tracr model's" if strange[0] in state else "is missing"
        raise WeightsError(f"the tensor {strange[0]} {what}")
    take = _merged if dialect == _HOOKED else _transposed
    tensors = {ours: np.ascontiguousarray(take(ours, state[theirs[dialect]], 0)) for ours, theirs in names.items()}
    derived: dict[str, Any] = {"causal": False if masks and not any(masks) else None}
    if dialect == _HOOKED:
        derived["num_heads"] = len(state.get("blocks.0.attn.W_Q", ()))
    return tensors, {**derived, **meta}


def _is_causal(name: str, mask: np.ndarray) -> bool:
    if mask.all():
        return False
    if mask.ndim == 2 and np.array_equal(mask != 0, np.tri(*mask.shape, dtype=bool)):
        return True
    raise WeightsError(f"{name}: expected attention to all positions or a causal mask, got another one")


def _check_config(config: Any) -> None:
    for key, expected in _ARCHITECTURE.items():
        if (got := getattr(config, key, expected)) != expected:
            raise WeightsError(f"{key}: expected {expected!r} as in Tracr's models, got {got!r}")
    if config.attention_dir not in _DIRECTIONS.values():
        raise WeightsError(f"attention_dir: expected one of {[*_DIRECTIONS.values()]}, got {config.attention_dir!r}")
    # -1 is TransformerBridge's word for the square root of d_head.
    if not config.use_attn_scale or not (config.attn_scale == -1 or math.isclose(config.attn_scale**2, config.d_head)):
        got = config.attn_scale if config.use_attn_scale else None
        raise WeightsError(f"attn_scale: expected the square root of d_head {config.d_head}, got {got}")


# ---------------------------------------------------------------- names and layouts


def _names(num_layers: int) -> dict[str, tuple[str, str]]:
    names = dict(_OUTSIDE)
    for layer in range(num_layers):
        for ours, (hooked, bridge) in _LAYER.items():
            names[f"transformer/layer_{layer}/{ours}"] = (f"blocks.{layer}.{hooked}", f"blocks.{layer}.{bridge}")
    return names


def _per_head(name: str, tensor: np.ndarray, heads: int) -> np.ndarray:
    """HookedTransformer's layout of a tensor of Tracr's: a head's dimensions are an axis of their own, heads first."""
    if name.endswith("/attn/linear/w"):
        return tensor.reshape(heads, -1, tensor.shape[1])
    if name.endswith(("/query/w", "/key/w", "/value/w")):
        return tensor.reshape(len(tensor), heads, -1).swapaxes(0, 1)
    return tensor.reshape(heads, -1) if name.endswith(("/query/b", "/key/b", "/value/b")) else tensor


def _merged(name: str, tensor: np.ndarray, _: int) -> np.ndarray:
    """Tracr's layout of a tensor of HookedTransformer's."""
    if "/attn/" not in name or name.endswith("/linear/b"):
        return tensor
    if tensor.ndim != (3 if name.endswith("/w") else 2):
        raise WeightsError(f"{name}: expected heads first, as in HookedTransformer, got shape {list(tensor.shape)}")
    if name.endswith("/linear/w"):
        return tensor.reshape(tensor.shape[0] * tensor.shape[1], tensor.shape[2])
    if name.endswith("/w"):
        return tensor.swapaxes(0, 1).reshape(tensor.shape[1], tensor.shape[0] * tensor.shape[2])
    return tensor.reshape(-1)


def _transposed(name: str, tensor: np.ndarray, _: int) -> np.ndarray:
    """Between Tracr's layout and TransformerBridge's, both ways."""
    return tensor if name.endswith("embeddings") else tensor.T
