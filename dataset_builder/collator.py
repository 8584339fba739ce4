"""Rows of the corpus, as `load_dataset` gives them, to batches for the model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dataset_builder.online import Example, collate_examples, example_of
from dataset_builder.rows import to_weights
from trade_hf.tokenization_rasp import from_words


def read_example(row: Mapping[str, Any], encoder: str = "units") -> Example:
    """What the model with this `config.encoder` is trained on, from a row."""
    return example_of(from_words(row["tokens"].split()), to_weights(row), encoder)


@dataclass(frozen=True)
class DataCollator:
    """Rows → a padded batch for `TraDeForConditionalGeneration` with this `config.encoder`, with `labels` and
    `unit_labels`."""

    encoder: str = "units"

    def __call__(self, rows: list[Mapping[str, Any]]) -> dict[str, Any]:
        return collate_examples([read_example(row, self.encoder) for row in rows])
