"""Sizes and kinds of small transformers, by name. No torch here: who plans a build needs none."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from dataset_builder.tasks import Task

EPS = 1e-5  # of layer norm


@dataclass(frozen=True)
class Architecture:
    """Sizes and kinds, as HookedTransformerConfig names them; `norm` is LN, LNPre or None."""

    n_layers: int = 2
    n_heads: int = 2
    d_model: int = 32
    d_mlp: int | None = 64
    act_fn: str = "gelu"
    norm: str | None = "LN"
    is_causal: bool = False

    @property
    def d_head(self) -> int:
        return self.d_model // self.n_heads

    def config(self, task: Task) -> dict[str, Any]:
        """`config.json` of a model's folder."""
        return {
            "n_layers": self.n_layers,
            "n_heads": self.n_heads,
            "d_model": self.d_model,
            "d_head": self.d_head,
            "d_mlp": self.d_mlp,
            "act_fn": self.act_fn,
            "normalization_type": self.norm,
            "eps": EPS,
            "attention_dir": "causal" if self.is_causal else "bidirectional",
            "n_ctx": task.inputs.shape[1],
            "d_vocab": task.d_vocab,
            "d_vocab_out": task.columns,
            "attn_only": self.d_mlp is None,
            "positional_embedding_type": "standard",
        }


ARCHITECTURES = {
    "two-layers": Architecture(),
    "one-layer": Architecture(n_layers=1, n_heads=4),
    "three-layers": Architecture(n_layers=3),
    "four-layers": Architecture(n_layers=4, act_fn="gelu_new"),
    "no-norm": Architecture(norm=None, act_fn="relu"),
    "attention-only": Architecture(n_layers=3, n_heads=4, d_mlp=None, norm=None),
    "folded-norm": Architecture(norm="LNPre", act_fn="gelu_new"),
    "causal": Architecture(is_causal=True, act_fn="gelu_new"),
    "causal-one-layer": Architecture(n_layers=1, is_causal=True, act_fn="gelu_new"),
    "causal-no-norm": Architecture(is_causal=True, norm=None, act_fn="relu"),
    "causal-attention-only": Architecture(n_layers=2, n_heads=4, d_mlp=None, norm=None, is_causal=True),
}
