"""Transformer: an ordinary trained transformer's weights, and its forward pass with every activation and with patches.

Names, shapes and arithmetic are those of TransformerLens' HookedTransformer: `blocks.0.attn.W_Q` [head, d_model,
d_head], attention logits divided by the root of d_head, layer norm before each part and before the unembedding.
Activations have its hook names (`blocks.0.hook_resid_mid`, `blocks.0.attn.hook_pattern`).

A folder has `model.safetensors`, `config.json` (fields of HookedTransformerConfig, or those of GPT-2 of transformers)
and `domain.json` (see `domain.py`). Nothing else is read, and no pickle ever.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from trade_hf.compiled.weights import LIMITS, MAX_BYTES, MAX_HEADER_BYTES, WeightsError, read_tensors
from trade_hf.trained.domain import Domain, read_json

MAX_CONFIG_BYTES = 1_000_000
MOST_CELLS = 8_000_000  # numbers in the largest activation of one batch
ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "relu": functional.relu,
    "gelu": functional.gelu,
    "gelu_new": partial(functional.gelu, approximate="tanh"),
}
NORMS = (None, "LN", "LNPre")
DIRECTIONS = ("causal", "bidirectional")
# Settings of HookedTransformerConfig that would change the forward pass, and the only value that is understood.
_PLAIN = {
    "positional_embedding_type": "standard",
    "parallel_attn_mlp": False,
    "gated_mlp": False,
    "use_attn_scale": True,
    "scale_attn_by_inverse_layer_idx": False,
    "final_rms": False,
    "attn_types": None,
    "use_local_attn": False,
    "output_logits_soft_cap": -1.0,
    "attn_scores_soft_cap": -1.0,
    "num_experts": None,
    "n_key_value_heads": None,
    "use_normalization_before_and_after": False,
    "use_qk_norm": False,
    "post_embedding_ln": False,
}
Patch = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Config:
    """A transformer's shape, in HookedTransformerConfig's names. Raises WeightsError for another architecture."""

    n_layers: int
    n_heads: int
    d_model: int
    d_head: int
    n_ctx: int
    d_vocab: int
    d_vocab_out: int
    d_mlp: int = 0
    act_fn: str = "relu"
    normalization_type: str | None = None
    eps: float = 1e-5
    attention_dir: str = "causal"
    attn_only: bool = False

    def __post_init__(self) -> None:
        limits = {"n_layers": LIMITS["layers"], "n_heads": 256, "d_model": LIMITS["d_model"], "d_head": 4096}
        limits |= {"n_ctx": LIMITS["max_seq_len"], "d_vocab": 65_536, "d_vocab_out": 65_536, "d_mlp": 16_384}
        for name, most in limits.items():
            value, least = getattr(self, name), 0 if name == "d_mlp" and self.attn_only else 1
            if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
                raise WeightsError(f"{name}: expected a whole number from {least} to {most:,}, got {value!r}")
        choices = {"normalization_type": NORMS, "attention_dir": DIRECTIONS, "attn_only": (False, True)}
        if not self.attn_only:
            choices["act_fn"] = tuple(ACTIVATIONS)
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise WeightsError(f"{name}: expected one of {list(allowed)}, got {getattr(self, name)!r}")
        if not isinstance(self.eps, float) or not 0 < self.eps < 1:
            raise WeightsError(f"eps: expected a number between 0 and 1, got {self.eps!r}")

    @classmethod
    def of(cls, told: Mapping[str, Any]) -> Config:
        """From the fields of HookedTransformerConfig. Raises WeightsError for what is missing or not understood."""
        for name, plain in _PLAIN.items():
            if told.get(name, plain) not in (plain, None):
                raise WeightsError(f"{name}: expected {plain!r}, got {told[name]!r}")
        scale, d_head = told.get("attn_scale", -1), told.get("d_head")
        if scale not in (-1, None) and isinstance(d_head, int) and not math.isclose(float(scale) ** 2, d_head):
            raise WeightsError(f"attn_scale: expected the square root of d_head {d_head}, got {scale}")
        names = [field.name for field in fields(cls)]
        given = {name: told[name] for name in names if name in told}
        if given.get("attn_only"):
            given |= {"d_mlp": 0}
        if missing := [name for name in names[:7] if name not in given]:
            raise WeightsError(f"config: expected {', '.join(missing)}")
        return cls(**given)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of each parameter."""
        heads, d_model, d_head, d_mlp = self.n_heads, self.d_model, self.d_head, self.d_mlp
        shapes: dict[str, tuple[int, ...]] = {
            "embed.W_E": (self.d_vocab, d_model),
            "pos_embed.W_pos": (self.n_ctx, d_model),
            "unembed.W_U": (d_model, self.d_vocab_out),
            "unembed.b_U": (self.d_vocab_out,),
        }
        norms = ["ln_final"]
        for block in (f"blocks.{n}" for n in range(self.n_layers)):
            for part in "QKV":
                shapes[f"{block}.attn.W_{part}"] = (heads, d_model, d_head)
                shapes[f"{block}.attn.b_{part}"] = (heads, d_head)
            shapes[f"{block}.attn.W_O"], shapes[f"{block}.attn.b_O"] = (heads, d_head, d_model), (d_model,)
            norms.append(f"{block}.ln1")
            if not self.attn_only:
                shapes[f"{block}.mlp.W_in"], shapes[f"{block}.mlp.b_in"] = (d_model, d_mlp), (d_mlp,)
                shapes[f"{block}.mlp.W_out"], shapes[f"{block}.mlp.b_out"] = (d_mlp, d_model), (d_model,)
                norms.append(f"{block}.ln2")
        if self.normalization_type == "LN":
            shapes |= {f"{norm}.{part}": (d_model,) for norm in norms for part in "wb"}
        return shapes


class Transformer:
    """A transformer's weights on the CPU. Raises WeightsError for tensors that do not fit its config.

    Attributes:
      config: its shape.
      parameters: float32 tensors by HookedTransformer's names; biases that were not given are zero.
    """

    def __init__(self, config: Config, tensors: Mapping[str, np.ndarray]) -> None:
        self.config = config
        self.parameters = {name: torch.tensor(array) for name, array in _checked(config, tensors).items()}
        self._double = {name: tensor.double() for name, tensor in self.parameters.items()}

    @classmethod
    def load(cls, folder: str | os.PathLike) -> Transformer:
        """Read `model.safetensors` and `config.json`. Raises WeightsError with what was expected and what came."""
        folder = Path(folder)
        told = read_json(folder / "config.json", MAX_CONFIG_BYTES)
        if not isinstance(told, dict):
            raise WeightsError(f"{folder / 'config.json'}: expected an object")
        path = folder / "model.safetensors"
        if not path.is_file():
            raise WeightsError(f"{path}: no such file")
        if path.stat().st_size > MAX_BYTES + MAX_HEADER_BYTES:
            raise WeightsError(f"{path}: expected at most {MAX_BYTES:,} bytes, got {path.stat().st_size:,}")
        try:
            return cls.from_state_dict(read_tensors(path.read_bytes())[0], told)
        except WeightsError as error:
            raise WeightsError(f"{folder}: {error}") from None

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Any], told: Mapping[str, Any]) -> Transformer:
        """From a state dict and its config: HookedTransformer's, or GPT-2's of transformers."""
        tensors = {name: _to_array(name, part) for name, part in state.items()}
        if any(name.endswith("wte.weight") for name in tensors):
            tensors, told = _from_gpt2(tensors, told)
        elif "embed.weight" in tensors:
            tensors = _from_bridge(tensors, told)
        return cls(Config.of(told), tensors)

    @classmethod
    def of(cls, source: Any) -> Transformer:
        """From a folder, a HookedTransformer or TransformerBridge, GPT-2 of transformers, or a TracrWeights.

        Raises WeightsError for another architecture, TypeError for what is no model.
        """
        if isinstance(source, Transformer):
            return source
        if isinstance(source, str | os.PathLike):
            return cls.load(source)
        if hasattr(source, "tensors") and hasattr(source, "unembedding"):
            from trade_hf.compiled.transformer_lens import to_config, to_state_dict

            return cls.from_state_dict(to_state_dict(source), to_config(source))
        if hasattr(source, "state_dict"):
            config = getattr(source, "cfg", None) or getattr(source, "config", None)
            if config is not None:
                told = config.to_dict() if hasattr(config, "to_dict") else vars(config)
                return cls.from_state_dict(source.state_dict(), told)
        raise TypeError(
            f"expected a folder, a HookedTransformer, GPT-2 of transformers or a TracrWeights, "
            f"got {type(source).__name__}"
        )

    # ------------------------------------------------------------ forward pass

    def run(
        self,
        tokens: np.ndarray | torch.Tensor,
        dtype: torch.dtype = torch.float32,
        patches: Mapping[str, Patch] | None = None,
        cache: dict[str, torch.Tensor] | None = None,
    ) -> torch.Tensor:
        """[input, position, column] logits of inputs of one length.

        Args:
          tokens: [input, position] token ids.
          dtype: float32 or float64.
          patches: by hook name, what takes an activation's place.
          cache: filled with every activation by hook name.
        """
        weights = self.parameters if dtype is torch.float32 else self._double
        tokens = torch.as_tensor(tokens)
        if tokens.shape[1] > self.config.n_ctx:
            raise WeightsError(f"inputs: expected at most {self.config.n_ctx} tokens, got {tokens.shape[1]}")
        if tokens.numel() and not 0 <= int(tokens.min()) <= int(tokens.max()) < self.config.d_vocab:
            raise WeightsError(f"inputs: expected token ids below {self.config.d_vocab}, got {int(tokens.max())}")

        def at(name: str, value: torch.Tensor) -> torch.Tensor:
            value = patches[name](value) if patches and name in patches else value
            if cache is not None:
                cache[name] = value
            return value

        stream = at("hook_embed", weights["embed.W_E"][tokens])
        stream = stream + at("hook_pos_embed", weights["pos_embed.W_pos"][: tokens.shape[1]].expand_as(stream))
        for layer in range(self.config.n_layers):
            block = f"blocks.{layer}"
            stream = at(f"{block}.hook_resid_pre", stream)
            stream = stream + self._attention(stream, block, weights, at)
            if not self.config.attn_only:
                stream = at(f"{block}.hook_resid_mid", stream)
                hidden = self._norm(stream, f"{block}.ln2", weights) @ weights[f"{block}.mlp.W_in"]
                hidden = ACTIVATIONS[self.config.act_fn](hidden + weights[f"{block}.mlp.b_in"])
                hidden = at(f"{block}.mlp.hook_post", hidden)
                stream = stream + hidden @ weights[f"{block}.mlp.W_out"] + weights[f"{block}.mlp.b_out"]
            stream = at(f"{block}.hook_resid_post", stream)
        return self._norm(stream, "ln_final", weights) @ weights["unembed.W_U"] + weights["unembed.b_U"]

    def _attention(self, stream: torch.Tensor, block: str, weights: Mapping, at: Callable) -> torch.Tensor:
        """[input, position, d_model] what the heads of a layer add to the stream."""
        seen = self._norm(stream, f"{block}.ln1", weights)[:, None]  # [input, 1, position, d_model]
        query, key, value = (
            seen @ weights[f"{block}.attn.W_{part}"] + weights[f"{block}.attn.b_{part}"][:, None] for part in "QKV"
        )
        scores = query @ key.transpose(-1, -2) / math.sqrt(self.config.d_head)
        if self.config.attention_dir == "causal":
            later = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
            scores = scores.masked_fill(later, -math.inf)
        pattern = at(f"{block}.attn.hook_pattern", scores.softmax(-1))
        moved = at(f"{block}.attn.hook_z", (pattern @ value).transpose(1, 2))  # [input, position, head, d_head]
        return torch.einsum("iphd,hdm->ipm", moved, weights[f"{block}.attn.W_O"]) + weights[f"{block}.attn.b_O"]

    def _norm(self, stream: torch.Tensor, name: str, weights: Mapping) -> torch.Tensor:
        if self.config.normalization_type is None:
            return stream
        stream = stream - stream.mean(-1, keepdim=True)
        stream = stream / (stream.square().mean(-1, keepdim=True) + self.config.eps).sqrt()
        if self.config.normalization_type == "LN":
            stream = stream * weights[f"{name}.w"] + weights[f"{name}.b"]
        return stream

    def batches(self, domain: Domain, rows: np.ndarray | None = None) -> Iterator[np.ndarray]:
        """Numbers of inputs of one length, few enough at a time that no activation exceeds MOST_CELLS numbers."""
        rows = np.arange(len(domain)) if rows is None else rows
        for length in np.unique(domain.lengths[rows]):
            chosen = rows[domain.lengths[rows] == length]
            config = self.config
            widest = max(config.n_heads * max(length, config.d_head), config.d_model, config.d_mlp, config.d_vocab_out)
            step = max(1, MOST_CELLS // (int(length) * widest))
            for start in range(0, len(chosen), step):
                yield chosen[start : start + step]

    def logits(self, domain: Domain, dtype: torch.dtype = torch.float32) -> np.ndarray:
        """[input, position, column] logits; zero where an input has no such position."""
        self.check(domain)
        found = np.zeros((*domain.tokens.shape, domain.columns), np.float32 if dtype is torch.float32 else np.float64)
        with torch.no_grad():
            for rows in self.batches(domain):
                length = domain.lengths[rows[0]]
                found[rows, :length] = self.run(domain.tokens[rows, :length], dtype)[..., : domain.columns].numpy()
        return found

    def check(self, domain: Domain) -> None:
        """Raises WeightsError where a domain is not one of this model's."""
        if domain.columns > self.config.d_vocab_out:
            raise WeightsError(f"answer.columns: expected at most {self.config.d_vocab_out}, got {domain.columns}")

    def __repr__(self) -> str:
        config = self.config
        parts = f"{config.n_layers} layers, {config.n_heads} heads, d_model {config.d_model}, {config.attention_dir}"
        kind = "attention only" if config.attn_only else config.act_fn
        return f"Transformer({parts}, {kind}, norm {config.normalization_type})"


# ---------------------------------------------------------------- tensors


def _to_array(name: str, part: Any) -> np.ndarray:
    if hasattr(part, "detach"):
        part = part.detach().cpu()
        part = part if part.dtype == torch.bool else part.float()
    return np.asarray(part)


def _checked(config: Config, tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The parameters of a config, float32, biases that are missing as zeros. Raises WeightsError."""
    shapes = config.shapes()
    given = {name: part for name, part in tensors.items() if not name.endswith((".attn.mask", ".attn.IGNORE"))}
    if unknown := sorted(set(given) - set(shapes)):
        raise WeightsError(f"the tensor {unknown[0]} is not one of such a model's: expected {', '.join(shapes)[:200]}")
    checked = {}
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
        checked[name] = array
    return checked


def _from_gpt2(tensors: dict[str, np.ndarray], told: Mapping[str, Any]) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
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


def _from_bridge(tensors: dict[str, np.ndarray], told: Mapping[str, Any]) -> dict[str, np.ndarray]:
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
