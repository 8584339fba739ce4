"""Training examples made while the model trains: sample, compile, read the units, in the data loader's processes."""

from __future__ import annotations

import ast
import functools
import itertools
import math
import random
import re
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch.utils.data import IterableDataset, get_worker_info

from dataset_builder.sampler import WIDE, Sample, SamplerConfig
from dataset_builder.splits import stream
from trade_hf.compiled.transforms import add_noise, compress, readable_dimensions, rotate, skew
from trade_hf.compiled.weights import TracrWeights
from trade_hf.features import (
    HIDDEN,
    MAX_LAYERS,
    POSITION,
    QUERY_KEY,
    READINGS,
    TOKEN,
    VALUE_OUTPUT,
    Units,
    collate,
    value_bucket,
)
from trade_hf.processing_trade import pad_labels
from trade_hf.rasp.program import Program, variable_name
from trade_hf.tokenization_rasp import LINE_SIZE, MAX_LINES, VOCABULARY, to_ids

# Batches that are sorted by size together, so that little is padded; of large ones fewer, or a worker would take
# minutes and gigabytes for the first.
MOST_BATCHES, FEWEST_BATCHES, BUCKET = 16, 4, 512
LATER = 1_000  # examples that are waiting to be shown again, before the first of them is
NUMBERS = 2**20  # then they begin anew: many more than are waiting


@dataclass(frozen=True)
class Example:
    """The model's input and the tokens it should write.

    `lines_before`: as if so many lines stood before them; `number`: which of its stream it is.
    """

    units: Units
    labels: list[int]
    unit_labels: np.ndarray
    lines_before: int = 0
    number: int | None = None


def to_example(sample: Sample, encoder: str = "units") -> Example:
    return example_of(sample.program, sample.compile(), encoder)


def example_of(
    program: Program, weights: TracrWeights, encoder: str = "units", seen: TracrWeights | None = None
) -> Example:
    """`encoder`: the model's `config.encoder`; units have labels, pieces of flattened weights belong to many things.

    `weights` are as `compile_program` makes them; `seen`, if given, is what the model sees in their place: the same
    heads and hidden units in another basis, with noise or in fewer dimensions.
    """
    units, ids = READINGS[encoder](weights if seen is None else seen), to_ids(program)
    if encoder == "circuit":
        return Example(units, ids, label_circuit(units, weights, program, ids))
    if encoder != "units":
        return Example(units, ids, np.full((len(units.features), 3), -100, np.int64))
    return Example(units, ids, label_units(units, weights.residual_labels, program, ids))


def label_units(units: Units, directions: tuple[str, ...], program: Program, ids: list[int]) -> np.ndarray:
    """What each unit belongs to, which only the compiler knows: [unit, 3] ids of its line's variable and function, and
    the bucket of the value that it writes (for a dimension of W_K: reads); -100 where there is none.

    Args:
      units: of weights as `compile_program` makes them, in Tracr's own basis.
      directions: the names of that basis, `v3_:7` for the value 7 of line 3.
      program: the program and
      ids: its tokens.
    """
    labels = np.full((len(units.features), 3), -100, np.int64)
    assert units.vectors is not None
    kinds, same_head = units.features[:, 0], units.edges[:, :, 2] > 0
    # A threshold's unit writes one value in place of another: what it adds counts.
    written = [row.argmax() if row.max() > 0 else np.abs(row).argmax() for row in units.vectors[:, 0]]
    for unit, direction in enumerate(written):
        line, value = _line_and_value(directions[direction]) if units.vectors[unit, 0].any() else (None, -100)
        if kinds[unit] == QUERY_KEY:
            movers = np.flatnonzero(same_head[unit] & (kinds == VALUE_OUTPUT))
            line, _ = _line_and_value(directions[written[movers[0]]])
            line = None if line is None else program.lines[line].args[0]
            _, value = _line_and_value(directions[np.abs(units.vectors[unit, 2]).argmax()])
        if line is not None:
            labels[unit] = _ID[variable_name(line)], ids[LINE_SIZE * line + LINE_SIZE - 1], value
    return labels


def label_circuit(units: Units, weights: TracrWeights, program: Program, ids: list[int]) -> np.ndarray:
    """As `label_units`, for the units of a circuit; `weights` are as `compile_program` makes them."""
    assert units.origin is not None
    labels = np.full((len(units.features), 3), -100, np.int64)
    names, size = weights.residual_labels, weights.key_size
    moved = [np.abs(weights.layer(n, "attn/linear/w")) for n in range(weights.num_layers)]
    written = [_most(weights.layer(n, "mlp/linear_2/w")) for n in range(weights.num_layers)]
    kinds, layers = units.features[:, 0].astype(int).tolist(), units.features[:, 1].astype(int).tolist()
    for unit, (head, root, layer, number) in enumerate(units.origin.tolist()):
        if kinds[unit] not in INNER:
            continue
        line, value = None, -100
        if root == HIDDEN:
            line, value = _line_and_value(names[written[layer][number]])
        elif root == TOKEN:
            token = weights.input_vocab[number]
            value = value_bucket(token) if not isinstance(token, str) else -100
        elif root == POSITION:
            value = value_bucket(number)
        if head >= 0:
            rows = moved[layers[unit]][head * size : (head + 1) * size]
            line, _ = _line_and_value(names[int(rows.max(0).argmax())])
            if kinds[unit] == QUERY_KEY and line is not None:
                line = program.lines[line].args[0]
        if line is None:  # noise made it of what Tracr left empty
            continue
        labels[unit] = _ID[variable_name(line)], ids[LINE_SIZE * line + LINE_SIZE - 1], value
    return labels


def _most(rows: np.ndarray) -> list[int]:
    """The direction in which each row [row, d_model] adds most; if in none, that in which it takes away most."""
    adds = rows.max(1) > 0
    return np.where(adds, rows.argmax(1), np.abs(rows).argmax(1)).tolist()


def with_lines_before(example: Example, lines: int, layers: int) -> Example:
    """The example as if so many lines, in so many layers, stood before it: later names, and layers further up.

    Training programs have few lines; so the names and layers of long ones are learned too. Raises ValueError where
    that is more than there are.
    """
    inner = np.isin(example.units.features[:, 0], INNER)
    last_line, last_layer = (
        len(example.labels) // LINE_SIZE + lines,
        example.units.features[inner, 1].max(initial=0) + layers,
    )
    if last_line > MAX_LINES or last_layer >= MAX_LAYERS - 1:
        raise ValueError(f"expected up to {MAX_LINES} lines and {MAX_LAYERS - 1} layers, got {last_line}, {last_layer}")
    features = example.units.features.copy()
    features[inner, 1] += layers
    unit_labels = example.unit_labels.copy()
    unit_labels[:, 0] += lines * np.isin(unit_labels[:, 0], _LINES)
    labels = [token + lines * (token in _LINES) for token in example.labels]
    units = replace(example.units, features=features)
    return replace(example, units=units, labels=labels, unit_labels=unit_labels, lines_before=lines)


_ID = {token: number for number, token in enumerate(VOCABULARY)}
_LINES = range(_ID[variable_name(0)], _ID[variable_name(MAX_LINES - 1)] + 1)
INNER = (QUERY_KEY, VALUE_OUTPUT, HIDDEN)  # units of layers
NOISE = (0.0003, 0.03)  # of the root mean square of a tensor
LEFT = (0.85, 1.0)  # of the dimensions that are read
SHIFTED = 0.6  # of the examples, where any are


@functools.lru_cache(maxsize=10_000)
def _line_and_value(direction: str) -> tuple[int | None, int]:
    """`v3_:7` → line 2 (counted from 0), the bucket of 7; no line for what belongs to none, -100 for no value."""
    name, _, value = direction.partition(":")
    line = re.match(r"v(\d+)_", name)
    try:
        bucket = value_bucket(ast.literal_eval(value)) if value else -100
    except (ValueError, SyntaxError):  # a token that is a word
        bucket = -100
    return (int(line[1]) - 1 if line else None), bucket


class OnlineExamples(IterableDataset):
    """An endless stream of training examples, in runs of `batch_size` of similar size.

    Args:
      seed: with the worker's number it decides everything that is drawn.
      batch_size: examples a batch.
      reuse: how often an example is shown at most, many batches apart; 2 halves the cost of making data.
      config: what is sampled.
      encoder: the model's `config.encoder`.
      lines_before: the model's `config.lines_before`.
      long_share: of the programs come from the longer half of the config's lengths alone.
      wide_share: of the programs have a vocabulary and a length of their own, words among the tokens.
      noisy_share, lossy_share: of the models have noise, in some basis, or have lost some of the dimensions that are
        read. What loses nothing is the same to a circuit.
      order: of small and large batches; processes that train together take the same, or they wait for each other.

    Attributes:
      known: by number, whether an example need not be shown again, for the trainer to say; workers see it.
    """

    def __init__(
        self,
        seed: int | str,
        batch_size: int,
        reuse: int = 1,
        config: SamplerConfig = SamplerConfig(),
        encoder: str = "units",
        lines_before: int = 0,
        long_share: float = 0.0,
        order: int | str = 0,
        wide_share: float = 0.0,
        noisy_share: float = 0.0,
        lossy_share: float = 0.0,
    ) -> None:
        if lines_before and encoder == "flat":
            raise ValueError(f"lines_before: expected the encoder 'circuit' or 'units', got {encoder!r}")
        self.seed, self.batch_size, self.reuse, self.config = seed, batch_size, reuse, config
        self.encoder, self.lines_before, self.long_share, self.order = encoder, lines_before, long_share, order
        self.wide_share, self.noisy_share, self.lossy_share = wide_share, noisy_share, lossy_share
        self.known = torch.zeros(NUMBERS, dtype=torch.bool).share_memory_()

    def __iter__(self) -> Iterator[Example]:
        info = get_worker_info()
        worker, workers = (info.id, info.num_workers) if info else (0, 1)
        seed = f"{self.seed}-{worker}"
        rng = random.Random(seed)
        fresh = self.fresh(seed, rng, itertools.count(worker, workers))
        count = min(MOST_BATCHES, max(FEWEST_BATCHES, BUCKET // self.batch_size)) * self.batch_size
        order = random.Random(self.order)
        waiting: deque[tuple[Example, int]] = deque()  # what is to be shown again, and how often
        while True:
            shown = self.to_show_again(waiting, count - count // self.reuse)
            shown += [(example, self.reuse - 1) for example in itertools.islice(fresh, count - len(shown))]
            waiting.extend(one for one in shown if one[1])
            rng.shuffle(shown)
            shown.sort(key=lambda one: len(one[0].units.features))
            batches = [shown[i : i + self.batch_size] for i in range(0, count, self.batch_size)]
            order.shuffle(batches)
            for example, _ in itertools.chain.from_iterable(batches):
                yield self.shifted(example, rng) if self.lines_before else example

    def to_show_again(self, waiting: deque[tuple[Example, int]], most: int) -> list[tuple[Example, int]]:
        """Those that have waited long enough and are not known, with how often they are to be shown after that."""
        again: list[tuple[Example, int]] = []
        while len(waiting) > LATER and len(again) < most:
            example, times = waiting.popleft()
            if not self.known[example.number]:
                again.append((example, times - 1))
        return again

    def fresh(self, seed: str, rng: random.Random, numbers: Iterator[int]) -> Iterator[Example]:
        """Each once, in the order in which they are drawn."""
        longer = replace(self.config, min_lines=(self.config.min_lines + self.config.max_lines + 1) // 2)
        wide = replace(WIDE, min_lines=self.config.min_lines, max_lines=self.config.max_lines)
        of_all, of_longer = stream("train", seed, self.config), stream("train", f"{seed}-longer", longer)
        of_wide = stream("train", f"{seed}-wide", wide)
        for number in numbers:
            if rng.random() < self.wide_share:
                item = next(of_wide)
            else:
                item = next(of_longer if rng.random() < self.long_share else of_all)
            self.known[number % NUMBERS] = False
            weights = item.sample.compile()
            example = example_of(item.sample.program, weights, self.encoder, self.spoiled(weights, rng))
            yield replace(example, number=number % NUMBERS)

    def spoiled(self, weights: TracrWeights, rng: random.Random) -> TracrWeights | None:
        """Some models with noise or in fewer dimensions, in a random basis; None for the others."""
        drawn, seed = rng.random(), rng.getrandbits(32)
        if drawn >= self.noisy_share + self.lossy_share:
            return None
        if drawn < self.lossy_share:
            read = readable_dimensions(weights)
            return compress(weights, max(1, round(read * rng.uniform(*LEFT))))
        change = rng.choice((None, rotate, skew))
        low, high = map(math.log, NOISE)
        return add_noise(change(weights, seed) if change else weights, math.exp(rng.uniform(low, high)), seed)

    def shifted(self, example: Example, rng: random.Random) -> Example:
        """Some examples begin at a later line and layer."""
        if rng.random() > SHIFTED:
            return example
        lines = rng.randint(1, self.lines_before)
        return with_lines_before(example, lines, layers=rng.randint(0, lines))


def collate_examples(examples: list[Example], multiple: int = 1) -> dict[str, Any]:
    """A padded batch of tensors with `labels` [batch, token] and `unit_labels` [batch, unit, 3], -100 for none, and
    `lines_before` [batch]; of a stream also `numbers` [batch].

    `multiple`: of units, for libraries that prepare each size of a product anew.
    """
    batch = {name: torch.from_numpy(array) for name, array in collate([e.units for e in examples], multiple).items()}
    unit_labels = torch.full((*batch["attention_mask"].shape, 3), -100)
    for row, example in zip(unit_labels, examples, strict=True):
        row[: len(example.unit_labels)] = torch.from_numpy(example.unit_labels)
    if examples[0].number is not None:
        batch["numbers"] = torch.tensor([example.number for example in examples])
    return {
        **batch,
        "labels": pad_labels([example.labels for example in examples]),
        "unit_labels": unit_labels,
        "lines_before": torch.tensor([example.lines_before for example in examples]),
    }
