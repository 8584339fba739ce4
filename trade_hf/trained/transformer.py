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
from pathlib import Path
from typing import Any

import numpy as np
import torch

from trade_hf.compiled.weights import MAX_BYTES, MAX_HEADER_BYTES, WeightsError, read_tensors
from trade_hf.trained.config import ACTIVATIONS, Config
from trade_hf.trained.domain import Domain, read_json
from trade_hf.trained.layouts import checked, from_bridge, from_gpt2, to_array

MAX_CONFIG_BYTES = 1_000_000
MOST_CELLS = 8_000_000  # numbers in the largest activation of one batch
# What a part reads, to be patched for it alone; it is not cached, since it is the residual stream.
INPUTS = ("hook_q_input", "hook_k_input", "hook_v_input", "hook_mlp_in")
Patch = Callable[[torch.Tensor], torch.Tensor]


class Transformer:
    """A transformer's weights on the CPU. Raises WeightsError for tensors that do not fit its config.

    Attributes:
      config: its shape.
      parameters: float32 tensors by HookedTransformer's names; biases that were not given are zero.
    """

    def __init__(self, config: Config, tensors: Mapping[str, np.ndarray]) -> None:
        self.config = config
        self.parameters = {name: torch.tensor(array) for name, array in checked(config, tensors).items()}
        self._double = {name: tensor.double() for name, tensor in self.parameters.items()}

    @classmethod
    def load(cls, folder: str | os.PathLike) -> Transformer:
        """Read `model.safetensors` and `config.json`. Raises WeightsError with what was expected and what came."""
        return cls.from_files(Path(folder) / "model.safetensors", Path(folder) / "config.json")

    @classmethod
    def from_files(cls, weights: Path, config: Path) -> Transformer:
        """The same from two files. Raises WeightsError with what was expected and what came."""
        told = read_json(config, MAX_CONFIG_BYTES)
        if not isinstance(told, dict):
            raise WeightsError(f"{config}: expected an object")
        if not weights.is_file():
            raise WeightsError(f"{weights}: no such file")
        if weights.stat().st_size > MAX_BYTES + MAX_HEADER_BYTES:
            raise WeightsError(f"{weights}: expected at most {MAX_BYTES:,} bytes, got {weights.stat().st_size:,}")
        try:
            return cls.from_state_dict(read_tensors(weights.read_bytes())[0], told)
        except WeightsError as error:
            raise WeightsError(f"{weights.parent}: {error}") from None

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Any], told: Mapping[str, Any]) -> Transformer:
        """From a state dict and its config: HookedTransformer's, or GPT-2's of transformers."""
        tensors = {name: to_array(name, part) for name, part in state.items()}
        if any(name.endswith("wte.weight") for name in tensors):
            tensors, told = from_gpt2(tensors, told)
        elif "embed.weight" in tensors:
            tensors = from_bridge(tensors, told)
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
            if cache is not None and not name.endswith(INPUTS):
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
                seen = at(f"{block}.hook_mlp_in", stream)
                hidden = self._norm(seen, f"{block}.ln2", weights) @ weights[f"{block}.mlp.W_in"]
                hidden = ACTIVATIONS[self.config.act_fn](hidden + weights[f"{block}.mlp.b_in"])
                hidden = at(f"{block}.mlp.hook_post", hidden)
                stream = stream + hidden @ weights[f"{block}.mlp.W_out"] + weights[f"{block}.mlp.b_out"]
            stream = at(f"{block}.hook_resid_post", stream)
        return self._norm(stream, "ln_final", weights) @ weights["unembed.W_U"] + weights["unembed.b_U"]

    def _attention(self, stream: torch.Tensor, block: str, weights: Mapping, at: Callable) -> torch.Tensor:
        """[input, position, d_model] what the heads of a layer add to the stream."""

        plain = self._norm(stream, f"{block}.ln1", weights)

        def read(part: str) -> torch.Tensor:
            """[input, head, position, d_head] queries, keys or values."""
            source = at(f"{block}.hook_{part.lower()}_input", stream)
            seen = plain if source is stream else self._norm(source, f"{block}.ln1", weights)
            return seen[:, None] @ weights[f"{block}.attn.W_{part}"] + weights[f"{block}.attn.b_{part}"][:, None]

        query, key, value = map(read, "QKV")
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
