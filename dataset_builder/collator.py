"""Rows of the corpus, as `load_dataset` gives them, to batches for the model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dataset_builder.online import Example, collate_examples, example_of
from dataset_builder.rows import to_weights
from trade_hf.tokenization_rasp import from_words


def read_example(row: Mapping[str, Any]) -> Example:
    """What the model is trained on, from a row."""
    return example_of(from_words(row["tokens"].split()), to_weights(row))


class DataCollator:
    """Rows → a padded batch for `TraDeForConditionalGeneration`, with `labels` and `unit_labels`."""

    def __call__(self, rows: list[Mapping[str, Any]]) -> dict[str, Any]:
        return collate_examples([read_example(row) for row in rows])
