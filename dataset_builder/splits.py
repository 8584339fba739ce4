"""Which split a program belongs to: decided by its canonical hash alone, so that no split ever shares a program."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from dataset_builder.sampler import Sample, SamplerConfig, sample_programs
from trade_hf.rasp.canonical import hash_canonical

SHARES = {"test": 10, "validation": 5}  # per cent of all canonical programs; the rest is `train`
UP_TO_TEN = SamplerConfig(max_lines=10)
LONG = SamplerConfig(min_lines=11, max_lines=15, max_d_model=160)
# Splits that are drawn anew wherever they are needed: seed, and what is sampled. No program of `test_long` can be in
# train, which has none of so many lines.
PINNED = {
    "test": ("test-1", UP_TO_TEN),
    "validation": ("validation-1", UP_TO_TEN),
    "test_long": ("test-long-1", LONG),
}


def split_of(canonical_hash: str) -> str:
    """`train`, `validation` or `test`."""
    bucket = int(canonical_hash[:8], 16) % 100
    for split, share in SHARES.items():
        if bucket < share:
            return split
        bucket -= share
    return "train"


@dataclass(frozen=True)
class Item:
    """A sample with its identity."""

    sample: Sample
    canonical_hash: str


def stream(
    split: str | None, seed: int | str, config: SamplerConfig = SamplerConfig(), reasons: Counter | None = None
) -> Iterator[Item]:
    """An endless stream of one split's programs, or of all; programs may come again."""
    for sample in sample_programs(seed, config, reasons):
        canonical_hash = hash_canonical(sample.program, sample.vocab, sample.max_seq_len)
        if split is None or split_of(canonical_hash) == split:
            yield Item(sample, canonical_hash)


def pinned(split: str, count: int, config: SamplerConfig | None = None) -> list[Item]:
    """The first `count` distinct programs of a held-out split, the same ones everywhere and always; of other settings
    than the split's own if `config` is given."""
    seed, own = PINNED[split]
    items: dict[str, Item] = {}
    for item in stream(split if split in SHARES else None, seed, config or own):
        items.setdefault(item.canonical_hash, item)
        if len(items) == count:
            return list(items.values())
    raise AssertionError("the stream is endless")
