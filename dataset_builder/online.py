"""Training examples made while the model trains: sample, compile, read the units, in the data loader's processes."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import IterableDataset, get_worker_info

from dataset_builder.sampler import Sample, SamplerConfig
from dataset_builder.splits import stream
from trade_hf.compiled.compiler import compile_program
from trade_hf.processing_trade import Units, collate, pad_labels, to_units
from trade_hf.tokenization_rasp import to_ids

BUCKET_BATCHES = 16  # batches that are sorted by size together, so that little is padded


@dataclass(frozen=True)
class Example:
    """The model's input and the tokens it should write."""

    units: Units
    labels: list[int]


def to_example(sample: Sample) -> Example:
    weights = compile_program(sample.program, sample.vocab, sample.max_seq_len)
    return Example(to_units(weights), to_ids(sample.program))


class OnlineExamples(IterableDataset):
    """An endless stream of training examples, in runs of `batch_size` of similar size.

    Args:
      seed: with the worker's number it decides everything that is drawn.
      batch_size: examples a batch.
      reuse: how often each example is shown, some batches apart; 2 halves the cost of making data.
      config: what is sampled.
    """

    def __init__(
        self, seed: int | str, batch_size: int, reuse: int = 1, config: SamplerConfig = SamplerConfig()
    ) -> None:
        self.seed, self.batch_size, self.reuse, self.config = seed, batch_size, reuse, config

    def __iter__(self) -> Iterator[Example]:
        worker = get_worker_info()
        seed = f"{self.seed}-{worker.id if worker else 0}"
        rng = random.Random(seed)
        fresh = (to_example(item.sample) for item in stream("train", seed, self.config))
        held: list[Example] = []
        while True:
            wanted = BUCKET_BATCHES * self.batch_size
            new = [next(fresh) for _ in range(-(-wanted // self.reuse))]
            held += new * self.reuse
            rng.shuffle(held)
            bucket, held = sorted(held[:wanted], key=lambda e: len(e.units.features)), held[wanted:]
            batches = [bucket[i : i + self.batch_size] for i in range(0, wanted, self.batch_size)]
            rng.shuffle(batches)
            for batch in batches:
                yield from batch


def collate_examples(examples: list[Example]) -> dict[str, Any]:
    """A padded batch of tensors with `labels` [batch, token], -100 where there is none."""
    batch = {name: torch.from_numpy(array) for name, array in collate([e.units for e in examples]).items()}
    return {**batch, "labels": pad_labels([example.labels for example in examples])}


def read_corpus(folder: Path) -> list[Example]:
    """Examples of a folder of JSON files as `trade sample --json` writes them."""
    import json

    from trade_hf.rasp.canonical import canonicalise
    from trade_hf.rasp.text import parse

    examples = []
    for path in sorted(folder.glob("*.json")):
        for row in json.loads(path.read_text()):
            vocab, length = row["vocab"], row["max_seq_len"]
            program = canonicalise(parse(row["code"]), vocab, length)
            examples.append(Example(to_units(compile_program(program, vocab, length)), to_ids(program)))
    if not examples:
        raise FileNotFoundError(f"{folder}: expected JSON files as `trade sample --json` writes them, found none")
    return examples
