"""State dicts of other libraries' transformers, in HookedTransformer's names and shapes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from trade_hf.compiled.weights import WeightsError
from trade_hf.trained.config import Config


def to_array(name: str, part: Any) -> np.ndarray:
    if hasattr(part, "detach"):
        part = part.detach().cpu()
        part = part if part.dtype == torch.bool else part.float()
    return np.asarray(part)


def checked(config: Config, tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The parameters of a config, float32, biases that are missing as zeros. Raises WeightsError."""
    shapes = config.shapes()
    given = {name: part for name, part in tensors.items() if not name.endswith((".attn.mask", ".attn.IGNORE"))}
    if unknown := sorted(set(given) - set(shapes)):
        raise WeightsError(f"the tensor {unknown[0]} is not one of such a model's: expected {', '.join(shapes)[:200]}")
    found = {}
    for name, shape in shapes.items():
        is_bias = name.rsplit(".", 1)[1].startswith("b_")
        if name not in given and not is_bias:
            raise WeightsError(f"the tensor {name} is missing")
        array = np.asarray(given.get(name, np.zeros(shape, np.float32)))
        if array.shape != shape:
            raise WeightsError(f"{name}: expected shape {list(shape)}, got {list(array.shape)}")
        if array.dtype != np.float32:
            raise WeightsError(f"{name}: expected float32, got {array.dtype}")
        if not np.isfinite(array).all():
            raise WeightsError(f"{name}: expected finite numbers, got NaN or infinity")
        found[name] = array
    return found


def from_gpt2(tensors: dict[str, np.ndarray], told: Mapping[str, Any]) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """GPT-2 of transformers in HookedTransformer's names (its Conv1D layers are [in, out])."""
    if told.get("model_type", "gpt2") != "gpt2":
        raise WeightsError(f"model_type: expected gpt2, got {told.get('model_type')!r}")
    plain_values = {"scale_attn_weights": True, "add_cross_attention": False, "scale_attn_by_inverse_layer_idx": False}
    for name, plain in plain_values.items():
        if told.get(name, plain) is not plain:
            raise WeightsError(f"{name}: expected {plain}, got {told[name]!r}")
    if missing := [name for name in ("n_layer", "n_head", "n_embd") if not isinstance(told.get(name), int)]:
        raise WeightsError(f"config: expected {', '.join(missing)}")
    tensors = {name.removeprefix("transformer."): part for name, part in tensors.items()}
    heads, d_model = told["n_head"], told["n_embd"]
    if heads < 1 or d_model % heads:
        raise WeightsError(f"n_embd: expected a multiple of n_head {heads}, got {d_model}")
    state: dict[str, np.ndarray] = {}
    try:
        state["embed.W_E"], state["pos_embed.W_pos"] = tensors.pop("wte.weight"), tensors.pop("wpe.weight")
        state["unembed.W_U"] = np.ascontiguousarray(tensors.pop("lm_head.weight", state["embed.W_E"]).T)
        for part, ours in (("weight", "w"), ("bias", "b")):
            state[f"ln_final.{ours}"] = tensors.pop(f"ln_f.{part}")
        for layer in range(told["n_layer"]):
            block, theirs = f"blocks.{layer}", f"h.{layer}"
            weight, bias = tensors.pop(f"{theirs}.attn.c_attn.weight"), tensors.pop(f"{theirs}.attn.c_attn.bias")
            for part, w, b in zip("QKV", np.split(weight, 3, 1), np.split(bias, 3), strict=True):
                state[f"{block}.attn.W_{part}"] = w.reshape(d_model, heads, -1).swapaxes(0, 1)
                state[f"{block}.attn.b_{part}"] = b.reshape(heads, -1)
            state[f"{block}.attn.W_O"] = tensors.pop(f"{theirs}.attn.c_proj.weight").reshape(heads, -1, d_model)
            state[f"{block}.attn.b_O"] = tensors.pop(f"{theirs}.attn.c_proj.bias")
            for ours, name in (("in", "c_fc"), ("out", "c_proj")):
                state[f"{block}.mlp.W_{ours}"] = tensors.pop(f"{theirs}.mlp.{name}.weight")
                state[f"{block}.mlp.b_{ours}"] = tensors.pop(f"{theirs}.mlp.{name}.bias")
            for norm in ("1", "2"):
                for part, ours in (("weight", "w"), ("bias", "b")):
                    state[f"{block}.ln{norm}.{ours}"] = tensors.pop(f"{theirs}.ln_{norm}.{part}")
    except KeyError as error:
        raise WeightsError(f"the tensor {error.args[0]} is missing") from None
    except ValueError as error:
        raise WeightsError(f"expected GPT-2's tensors: {error}") from None
    if left := [name for name in tensors if not name.endswith((".attn.bias", ".attn.masked_bias"))]:
        raise WeightsError(f"the tensor {left[0]} is not one of GPT-2's")
    act = told.get("activation_function", "gelu_new")
    config = {
        "n_layers": told["n_layer"],
        "n_heads": heads,
        "d_model": d_model,
        "d_head": d_model // heads,
        "n_ctx": len(state["pos_embed.W_pos"]),
        "d_vocab": len(state["embed.W_E"]),
        "d_vocab_out": state["unembed.W_U"].shape[1],
        "d_mlp": told.get("n_inner") or 4 * d_model,
        "act_fn": "gelu_new" if act == "gelu_pytorch_tanh" else act,
        "normalization_type": "LN",
        "eps": told.get("layer_norm_epsilon", 1e-5),
        "attention_dir": "causal",
    }
    return state, config


_BRIDGE_PARTS = {"q": "Q", "k": "K", "v": "V"}


def from_bridge(tensors: dict[str, np.ndarray], told: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """TransformerBridge's own layout ([out, in], as torch's linear layers) in HookedTransformer's names."""
    heads = int(told.get("n_heads") or 1)
    state = {}
    for name, part in tensors.items():
        *where, last, kind = name.split(".")
        prefix = ".".join(where)
        weight = kind == "weight"
        match last:
            case "embed" | "pos_embed":
                state[f"{last}.{'W_E' if last == 'embed' else 'W_pos'}"] = part
            case "unembed":
                state[f"unembed.{'W_U' if weight else 'b_U'}"] = part.T
            case "q" | "k" | "v":
                split = part.reshape(heads, -1, *part.shape[1:])
                state[f"{prefix}.{'W' if weight else 'b'}_{_BRIDGE_PARTS[last]}"] = split.swapaxes(1, -1)
            case "o":
                state[f"{prefix}.{'W' if weight else 'b'}_O"] = (
                    part.T.reshape(heads, -1, part.shape[0]) if weight else part
                )
            case "in" | "out":
                state[f"{prefix}.{'W' if weight else 'b'}_{last}"] = part.T
            case "ln1" | "ln2" | "ln_final":
                state[".".join([*where, last, "w" if weight else "b"])] = part
            case _:
                state[name] = part
    return {name: np.ascontiguousarray(part) for name, part in state.items()}
