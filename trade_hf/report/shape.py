"""A model's shape, its vocabulary and its output; needs neither torch nor the neural model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from trade_hf.rasp.functions import Value
from trade_hf.report.markup import Html, block, definitions, element, shown

if TYPE_CHECKING:
    from trade_hf.compiled.weights import TracrWeights

MAX_TOKENS = 30  # of a vocabulary that are listed


def weights_summary_html(weights: TracrWeights) -> Html:
    """What a notebook shows of a model."""
    return block(element("p", element("strong", "A model that Tracr compiled")), shape_html(weights))


def shape_html(weights: TracrWeights) -> Html:
    """The model's shape, its vocabulary and its output."""
    tensors = list(weights.tensors.values())
    size, filled = sum(t.size for t in tensors), sum(int(np.count_nonzero(t)) for t in tensors)
    outputs = weights.output_values
    return definitions(
        [
            ("Layers", weights.num_layers),
            ("Heads a layer", f"{weights.num_heads}, key size {weights.key_size}"),
            ("Attention", "to tokens before and to itself (causal)" if weights.causal else "to all tokens"),
            ("MLP units a layer", weights.mlp_size),
            ("Residual stream", f"{weights.d_model} dimensions"),
            ("Parameters", f"{size:,}, of which {filled:,} are not zero"),
            ("Tokens", _some(weights.input_vocab)),
            ("Longest input", f"{weights.max_seq_len} tokens"),
            ("Output", "a number" if outputs is None else _some(outputs)),
        ]
    )


def _some(values: Sequence[Value]) -> str:
    rest = len(values) - MAX_TOKENS
    return f"{len(values)}: " + ", ".join(map(shown, values[:MAX_TOKENS])) + (f", … {rest} more" if rest > 0 else "")
