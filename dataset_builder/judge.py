"""What a compiled transformer answers, by code that shares nothing with the package's own: plain NumPy, one length at a
time, every part of every layer. And by the tracr package's own transformer, given the same weights.

For studies that ask whether a certificate is true.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from trade_hf.compiled.weights import TracrWeights
from trade_hf.rasp.functions import Value

SHOWN = 0.1  # the least logit of a value that is shown; where none is, the answer is None
APART = 1e-3  # numbers that differ by no more are the same


def logits_of(weights: TracrWeights, inputs: np.ndarray, dtype: type = np.float32) -> np.ndarray:
    """[input, position, output] of inputs of one length, rows of the token embedding [input, position]."""
    part: dict[str, np.ndarray] = {name: tensor.astype(dtype) for name, tensor in weights.tensors.items()}
    rows = np.insert(inputs, 0, weights.vocab.index(weights.bos), axis=1)
    x = part["token_embed/embeddings"][rows] + part["pos_embed/embeddings"][: rows.shape[1]]
    heads, size = weights.num_heads, weights.key_size
    with np.errstate(all="ignore"):
        for layer in range(weights.num_layers):
            at = f"transformer/layer_{layer}"

            def linear(name: str, of: np.ndarray, at: str = at) -> np.ndarray:
                return of @ part[f"{at}/{name}/w"] + part[f"{at}/{name}/b"]

            query, key, value = (
                linear(f"attn/{name}", x).reshape(*x.shape[:2], heads, size) for name in ("query", "key", "value")
            )
            scores = np.einsum("bqhd,bkhd->bhqk", query, key) / np.sqrt(dtype(size))
            if weights.causal:
                scores = np.where(np.tril(np.ones(scores.shape[-2:], bool)), scores, dtype(-1e30))
            shares = np.exp(scores - scores.max(-1, keepdims=True))
            shares /= shares.sum(-1, keepdims=True)
            attended = np.einsum("bhqk,bkhd->bqhd", shares, value).reshape(*x.shape[:2], heads * size)
            x = x + linear("attn/linear", attended)
            x = x + linear("mlp/linear_2", np.maximum(linear("mlp/linear_1", x), dtype(0)))
        return (x @ weights.unembedding.astype(dtype))[:, 1:]


def tracr_logits(weights: TracrWeights, tokens: Sequence[Value]) -> np.ndarray:
    """[position, output] of one input, by the tracr package's transformer. Needs the tracr package."""
    import haiku as hk
    import jax
    from tracr.transformer import model

    config = model.TransformerConfig(
        num_heads=weights.num_heads,
        num_layers=weights.num_layers,
        key_size=weights.key_size,
        mlp_hidden_size=weights.mlp_size,
        dropout_rate=0.0,
        activation_function=jax.nn.relu,
        layer_norm=False,
        causal=weights.causal,
    )
    rows = [weights.vocab.index(token) for token in (weights.bos, *tokens)]
    embedded = weights.tensors["token_embed/embeddings"][rows] + weights.tensors["pos_embed/embeddings"][: len(rows)]
    params: dict[str, dict[str, np.ndarray]] = {}
    for name, tensor in weights.tensors.items():
        module, _, kind = name.rpartition("/")
        if module.startswith("transformer/"):
            params.setdefault(module, {})[kind] = tensor
    forward: Any = hk.without_apply_rng(
        hk.transform(lambda x, mask: model.Transformer(config, name="transformer")(x, mask, use_dropout=False).output)
    )
    output = forward.apply(params, embedded[None], np.ones((1, len(rows)), np.int32))
    with np.errstate(all="ignore"):
        return (np.asarray(output)[0] @ weights.unembedding)[1:]


def answers_of(
    weights: TracrWeights, inputs: Iterable[tuple[Value, ...]], dtype: type = np.float32
) -> list[np.ndarray]:
    """[position, output] logits of each input, in their order."""
    inputs = list(inputs)
    found: dict[int, np.ndarray] = {}
    for length in {len(tokens) for tokens in inputs}:
        places = [n for n, tokens in enumerate(inputs) if len(tokens) == length]
        rows = np.array([[weights.vocab.index(token) for token in inputs[n]] for n in places])
        for start in range(0, len(rows), 2_000):
            some = logits_of(weights, rows[start : start + 2_000], dtype)
            found |= dict(zip(places[start : start + 2_000], some, strict=True))
    return [found[n] for n in range(len(inputs))]


def differ(meant: np.ndarray, given: np.ndarray, values: tuple[tuple | None, tuple | None]) -> bool:
    """Whether two models' logits [position, output] say different things at any position.

    Args:
      meant, given: logits of the program as Tracr compiles it, and of the model.
      values: what the outputs of each stand for; None for numbers.

    Where the first shows a value, the second must decode to it, by its largest logit, as Tracr decodes; where the first
    shows none, the second must not show one either. What is not finite is a difference.
    """
    if not np.isfinite(given).all() or (values[0] is None) != (values[1] is None):
        return True
    if values[0] is None or values[1] is None:
        return bool((np.abs(meant - given) > APART).any())
    pairs = ((values[0], meant), (values[1], given))
    decoded = [[of[code] for code in logits.argmax(-1).tolist()] for of, logits in pairs]
    shows = meant.max(-1) > SHOWN
    return any(
        (one != other) if is_shown else logits.max() > SHOWN
        for one, other, is_shown, logits in zip(*decoded, shows, given, strict=True)
    )
