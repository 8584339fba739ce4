"""The inputs that a statement about a trained model is about, and which of the model's outputs are answers.

`domain.json` lists token ids, `{"inputs": [[5, 0], [5, 1]]}`, or enumerates every sequence between a prefix and a
suffix, `{"enumerate": {"prefix": [5], "vocab": [0, 1], "suffix": [], "lengths": [1, 5]}}`. Its answer is
`{"positions": [-1], "reads": "argmax", "columns": 5}`: which positions (`{"from": 1}`: from that one on), and whether
the answer is the largest column or the set of columns above 0 (`"positive"`).
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from trade_hf.compiled.description import is_whole
from trade_hf.compiled.weights import LIMITS, WeightsError

PADDING = -1  # token after the end of an input
MOST_INPUTS = 50_000  # that are run; a larger domain is sampled
MOST_COUNTED = 10**15  # inputs of an enumerated domain
MAX_DOMAIN_BYTES = 50_000_000
READS = ("argmax", "positive")


@dataclass(frozen=True)
class Domain:
    """Inputs and answer positions.

    Attributes:
      tokens: [input, position] token ids, PADDING after the end of an input.
      is_answer: [input, position] whether the model's output there is an answer.
      reads: "argmax" (the answer is the number of the largest column) or "positive" (the set of columns above 0).
      columns: how many columns an output has.
      size: inputs of the whole domain; more than there are rows where those are a sample.
      about: what people should know: task, rule, tokens.
      told: what `domain.json` holds, where the inputs are a sample of those that it enumerates.
    """

    tokens: np.ndarray
    is_answer: np.ndarray
    reads: str
    columns: int
    size: int
    about: tuple[tuple[str, Any], ...] = ()
    told: Any = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        if self.reads not in READS:
            raise WeightsError(f"answer.reads: expected one of {', '.join(READS)}, got {self.reads!r}")
        if not self.is_answer.any():
            raise WeightsError("answer.positions: expected a position within the inputs, got none in any of them")

    @classmethod
    def of(
        cls,
        inputs: Sequence[Sequence[int]],
        positions: Any = (-1,),
        reads: str = "argmax",
        columns: int = 1,
        size: int | None = None,
        **about: Any,
    ) -> Domain:
        """A domain from lists of token ids. Raises WeightsError for positions or inputs of another form."""
        tokens = _padded(inputs)
        lengths = (tokens != PADDING).sum(1)
        return cls(
            tokens, _answers(positions, lengths, tokens.shape[1]), reads, columns,
            len(tokens) if size is None else size, tuple(about.items()),
        )  # fmt: skip

    @classmethod
    def from_dict(cls, told: Any, seed: int = 0) -> Domain:
        """A domain from what `domain.json` holds. Raises WeightsError with what was expected and what came."""
        if not isinstance(told, dict) or not isinstance(told.get("answer"), dict):
            raise WeightsError("expected an object with `answer` and with `inputs` or `enumerate`")
        answer = told["answer"]
        columns = _count(answer.get("columns"), "answer.columns", LIMITS["outputs"])
        if ("inputs" in told) == ("enumerate" in told):
            raise WeightsError("expected either `inputs` or `enumerate`")
        if "inputs" in told:
            inputs, size = told["inputs"], None
        else:
            inputs, size = _enumerated(told["enumerate"], np.random.RandomState(seed))
        about = {key: told[key] for key in ("task", "rule", "tokens") if key in told}
        found = cls.of(inputs, answer.get("positions"), answer.get("reads", "argmax"), columns, size, **about)
        return found if found.is_exhaustive else replace(found, told=told)

    @classmethod
    def load(cls, path: str | os.PathLike) -> Domain:
        """Read `domain.json`. Raises WeightsError with what was expected and what came."""
        return cls.from_dict(read_json(Path(path), MAX_DOMAIN_BYTES))

    @property
    def is_exhaustive(self) -> bool:
        return self.size == len(self.tokens)

    @cached_property
    def lengths(self) -> np.ndarray:
        """[input] tokens in each input."""
        return (self.tokens != PADDING).sum(1)

    @cached_property
    def answers(self) -> int:
        """Answer positions of all inputs at hand: the cells of the table of inputs and outputs."""
        return int(self.is_answer.sum())

    @cached_property
    def worth(self) -> float:
        """How many inputs drawn alike from the whole domain this sample is worth where none of it fails.

        Lengths are sampled apart. Where a share b of all inputs fails, a share p of those of a length (n inputs here,
        w of all), no input of the sample does so with a probability of at most exp(-sum of n p). This is at most
        exp(-worth b), with the smallest n / w as the worth. Lengths of which all inputs are here cannot hide one.
        """
        if self.told is None:
            return float(len(self.tokens))
        spec = self.told["enumerate"]
        around = len(spec.get("prefix", ())) + len(spec.get("suffix", ()))
        found = []
        for length in range(spec["lengths"][0], spec["lengths"][1] + 1):
            total, here = len(spec["vocab"]) ** length, int((self.lengths == length + around).sum())
            found += [here * self.size / total] if here < total else []
        return min(found, default=math.inf)

    def halves(self, seed: int) -> tuple[Domain, Domain]:
        """A sample in two parts."""
        order = np.random.RandomState(seed).permutation(len(self))
        parts = (np.sort(order[: len(self) // 2]), np.sort(order[len(self) // 2 :]))
        first, second = (replace(self.rows(part), size=self.size) for part in parts)
        return first, second

    def fresh(self, seed: int) -> Domain | None:
        """Another sample of the same domain; None where all its inputs are here, or where it is not known."""
        return None if self.told is None else Domain.from_dict(self.told, seed)

    def joined(self, other: Domain) -> Domain:
        """This sample with the inputs of another one that are not in it."""
        known = {tuple(tokens) for tokens in self.tokens.tolist()}
        new = [row for row, tokens in enumerate(other.tokens.tolist()) if tuple(tokens) not in known]
        return replace(
            self,
            tokens=np.concatenate([self.tokens, other.tokens[new]]),
            is_answer=np.concatenate([self.is_answer, other.is_answer[new]]),
        )

    def rows(self, chosen: np.ndarray) -> Domain:
        """The domain of some of the inputs alone."""
        return Domain(
            self.tokens[chosen], self.is_answer[chosen], self.reads, self.columns, len(self.tokens[chosen]), self.about
        )

    def input(self, row: int) -> list[int]:
        """One input as token ids."""
        return self.tokens[row, : self.lengths[row]].tolist()

    def __len__(self) -> int:
        return len(self.tokens)


def read_json(path: Path, most_bytes: int) -> Any:
    """What a JSON file holds. Raises WeightsError where there is none, where it is too large or no JSON."""
    if not path.is_file():
        raise WeightsError(f"{path}: no such file")
    if path.stat().st_size > most_bytes:
        raise WeightsError(f"{path}: expected at most {most_bytes:,} bytes, got {path.stat().st_size:,}")
    try:
        return json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        raise WeightsError(f"{path}: expected JSON") from None


def _count(value: Any, what: str, most: int, least: int = 1) -> int:
    if not is_whole(value, least, most):
        raise WeightsError(f"{what}: expected a whole number from {least} to {most:,}, got {value!r}")
    return value


def _token_list(value: Any, what: str) -> list[int]:
    if not isinstance(value, list | tuple):
        raise WeightsError(f"{what}: expected a list of token ids, got {value!r:.60}")
    return [_count(token, what, 10**9, 0) for token in value]


def _padded(inputs: Any) -> np.ndarray:
    """[input, position] of lists of token ids; short ones end in PADDING."""
    if isinstance(inputs, np.ndarray):
        return inputs
    if not isinstance(inputs, list | tuple) or not inputs:
        raise WeightsError("inputs: expected a list of at least one list of token ids")
    rows = [_token_list(tokens, "inputs") for tokens in inputs]
    if not all(rows):
        raise WeightsError("inputs: expected at least one token in each input, got an empty one")
    width = max(map(len, rows))
    _count(width, "the longest input", LIMITS["max_seq_len"])
    tokens = np.full((len(rows), width), PADDING, np.int64)
    for row, filled in zip(rows, tokens, strict=True):
        filled[: len(row)] = row
    if len(np.unique(tokens, axis=0)) != len(tokens):
        raise WeightsError("inputs: expected distinct inputs, got one twice")
    if len(tokens) > MOST_INPUTS:
        raise WeightsError(f"inputs: expected at most {MOST_INPUTS:,}, got {len(tokens):,}")
    return tokens


def _answers(positions: Any, lengths: np.ndarray, width: int) -> np.ndarray:
    """[input, position] whether there is an answer."""
    place = np.arange(width)
    if isinstance(positions, dict) and set(positions) == {"from"}:
        first = _count(positions["from"], "answer.positions.from", width, 0)
        return (place >= first) & (place < lengths[:, None])
    if not isinstance(positions, list | tuple) or not all(type(p) is int for p in positions):
        raise WeightsError(
            f'answer.positions: expected a list of whole numbers or {{"from": 1}}, got {positions!r:.60}'
        )
    chosen = np.zeros((len(lengths), width), bool)
    for position in positions:
        at = lengths + position if position < 0 else np.full_like(lengths, position)
        fits = (at >= 0) & (at < lengths)
        chosen[np.flatnonzero(fits), at[fits]] = True
    return chosen


def _enumerated(told: Any, rng: np.random.RandomState) -> tuple[np.ndarray, int]:
    """[input, position] every sequence, the shortest first, and how many there are; a sample where they are many."""
    if not isinstance(told, dict):
        raise WeightsError(f"enumerate: expected an object with vocab and lengths, got {told!r:.60}")
    prefix, suffix = (_token_list(told.get(key, []), f"enumerate.{key}") for key in ("prefix", "suffix"))
    vocab = _token_list(told.get("vocab"), "enumerate.vocab")
    if not vocab or len(set(vocab)) != len(vocab):
        raise WeightsError(f"enumerate.vocab: expected distinct token ids, got {vocab!r:.60}")
    lengths = told.get("lengths")
    if not isinstance(lengths, list) or len(lengths) != 2:
        raise WeightsError(f"enumerate.lengths: expected [shortest, longest], got {lengths!r:.60}")
    least = 0 if prefix or suffix else 1
    longest = _count(lengths[1], "enumerate.lengths", LIMITS["max_seq_len"], least)
    shortest = _count(lengths[0], "enumerate.lengths", longest, least)
    counts = {n: len(vocab) ** n for n in range(shortest, longest + 1)}
    size, left, parts = sum(counts.values()), MOST_INPUTS, []
    for place, (n, count) in enumerate(counts.items()):
        share = left // (len(counts) - place)  # what short lengths do not use is left to longer ones
        codes = np.arange(count) if count <= share else None
        digits = rng.randint(len(vocab), size=(share, n)) if codes is None else _digits(codes, len(vocab), n)
        middle = np.unique(np.asarray(vocab)[digits], axis=0) if codes is None else np.asarray(vocab)[digits]
        left -= len(middle)
        full = np.full((len(middle), longest + len(prefix) + len(suffix)), PADDING, np.int64)
        full[:, : len(prefix)] = prefix
        full[:, len(prefix) : len(prefix) + n] = middle
        full[:, len(prefix) + n : len(prefix) + n + len(suffix)] = suffix
        parts.append(full)
    return np.concatenate(parts), size


def _digits(codes: np.ndarray, base: int, width: int) -> np.ndarray:
    return codes[:, None] // base ** np.arange(width - 1, -1, -1) % base
