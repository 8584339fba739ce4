"""A transformer's shape, in the names of TransformerLens' HookedTransformerConfig."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

import torch
from torch.nn import functional

from trade_hf.compiled.description import is_whole
from trade_hf.compiled.weights import LIMITS, WeightsError

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
            if not is_whole(value, least, most):
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
