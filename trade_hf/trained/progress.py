"""How far a search has come, in a file: one that was killed at any moment goes on from there.

The file holds programs as text, and inputs by their numbers. Nothing in it is believed: programs are parsed and run
again on all inputs before they count.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from trade_hf.compiled.weights import WeightsError
from trade_hf.files import write_text
from trade_hf.trained.domain import Domain, read_json
from trade_hf.trained.transformer import Transformer

FORMAT = 1
MAX_BYTES = 10_000_000
MOST_PROGRAMS = 100


@dataclass(frozen=True)
class Progress:
    """What was done.

    Attributes:
      of: a hash of the model, its domain and the seed.
      steps: parts of the search that are finished.
      programs: as text: the best one so far, then others that are equal on all inputs.
      counterexamples: numbers of inputs that joined the sample.
      is_over: whether the search has ended.
    """

    of: str
    steps: int = 0
    programs: tuple[str, ...] = ()
    counterexamples: tuple[int, ...] = ()
    is_over: bool = False

    def save(self, path: Path) -> None:
        """Writes the file, whole or not at all."""
        write_text(path, json.dumps({"format": FORMAT, **asdict(self)}, indent=1) + "\n")

    @classmethod
    def load(cls, path: Path, of: str) -> Progress:
        """What a file holds; nothing where there is none. Raises WeightsError for another model's, or for no such
        file."""
        if not path.exists():
            return cls(of)
        told = read_json(path, MAX_BYTES)
        if not _is_well_formed(told):
            raise WeightsError(f"{path}: expected what `--resume` writes, got something else; choose another file")
        if told["of"] != of:
            raise WeightsError(f"{path}: belongs to another model, domain or seed; choose another file")
        return cls(of, told["steps"], tuple(told["programs"]), tuple(told["counterexamples"]), told["is_over"])


def _is_well_formed(told: Any) -> bool:
    if not isinstance(told, dict) or told.get("format") != FORMAT:
        return False
    kinds = {"of": str, "steps": int, "programs": list, "counterexamples": list, "is_over": bool}
    if not all(type(told.get(name)) is kind for name, kind in kinds.items()):
        return False
    texts, rows = told["programs"], told["counterexamples"]
    return (
        told["steps"] >= 0
        and len(texts) <= MOST_PROGRAMS
        and all(isinstance(text, str) for text in texts)
        and all(type(row) is int and row >= 0 for row in rows)
    )


def identity(model: Transformer, domain: Domain, seed: int) -> str:
    """A hash of a model, its domain and a seed."""
    found = hashlib.sha256(repr((model.config, domain.reads, domain.columns, domain.size, seed)).encode())
    for name, part in sorted(model.parameters.items()):
        found.update(name.encode() + part.numpy().tobytes())
    found.update(np.ascontiguousarray(domain.tokens).tobytes() + np.ascontiguousarray(domain.is_answer).tobytes())
    return found.hexdigest()
