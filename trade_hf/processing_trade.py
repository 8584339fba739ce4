"""Weights to the model's tensors, and its tokens to code: the processor, as transformers has them."""

from __future__ import annotations

from typing import Any

import torch
from transformers import BatchFeature, ProcessorMixin

from trade_hf.compiled.formats import to_weights
from trade_hf.features import READINGS, collate
from trade_hf.rasp.canonical import spell
from trade_hf.rasp.text import to_text
from trade_hf.tokenization_rasp import allowed_next, from_ids
from trade_hf.with_code import SavedWithCode


class TraDeProcessor(SavedWithCode, ProcessorMixin):
    """Compiled transformers in, the model's tensors out; token ids in, words of a program out."""

    def __init__(self, tokenizer: Any = None, **kwargs: Any) -> None:
        super().__init__(tokenizer, **kwargs)

    def __call__(
        self, weights: Any, programs: list[str] | None = None, encoder: str = "units", **kwargs: Any
    ) -> BatchFeature:
        """A padded batch for `TraDeForConditionalGeneration`.

        Args:
          weights: one of what `to_weights` takes (a safetensors path, its bytes, a dictionary, a TracrWeights), or a
            list of them.
          programs: for training: the words of each program, as `tokenization_rasp.to_tokens` gives them, joined by
            spaces. They become `labels` [batch, token], closed by the end token, -100 where there is none.
          encoder: the model's `config.encoder`.
        """
        items = weights if isinstance(weights, list) else [weights]
        batch = collate([READINGS[encoder](to_weights(item)) for item in items])
        tensors = {name: torch.from_numpy(array) for name, array in batch.items()}
        if programs is not None:
            tensors["labels"] = pad_labels(
                [[*ids, self.tokenizer.eos_token_id] for ids in self.tokenizer(programs)["input_ids"]]
            )
        return BatchFeature(tensors)

    @staticmethod
    def allowed_next(row: int, ids: torch.Tensor) -> list[int]:
        """For `generate(prefix_allowed_tokens_fn=…)`: the ids that the grammar lets follow `ids` [token]."""
        return allowed_next(ids[1:].tolist())

    @staticmethod
    def to_code(ids: torch.Tensor, weights: Any) -> str:
        """The program that `ids` [token] spell, over the vocabulary of `weights`, as Python for the tracr package.

        Raises RaspError if they spell none, UnsupportedError if Tracr cannot compile it.
        """
        read = to_weights(weights)
        return to_text(spell(from_ids(ids.tolist()), read.input_vocab, read.max_seq_len, read.output_values))


def pad_labels(rows: list[list[int]]) -> torch.Tensor:
    """Token ids [batch, token], -100 (no loss) after the end of each."""
    labels = torch.full((len(rows), max(map(len, rows))), -100)
    for label, row in zip(labels, rows, strict=True):
        label[: len(row)] = torch.tensor(row)
    return labels
