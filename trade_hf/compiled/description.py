"""What a model's tensors do not say: vocabulary, lengths, output. Read from untrusted metadata, checked, completed.

What follows from the tensors' shapes need not be given; all else that is missing is asked for by name, in one line.
"""

from __future__ import annotations

import json
import math
from typing import Any, TypeGuard

import numpy as np

from trade_hf.compiled.pad_row import pad_row
from trade_hf.compiled.tensor_files import LIMITS, WeightsError
from trade_hf.rasp.functions import Value, plain

BOS = "compiler_bos"
PAD = "compiler_pad"
UNEMBED = "unembed/w"
FORMAT = "tracr-weights-1"
MAX_NUMBER = 2**53  # of a token or an output value: all whole numbers up to it are floats
MAX_DEPTH = 8  # of tuples in tuples


def describe(weights: Any, output_directions: list[int] | None) -> dict[str, Any]:
    """The metadata of a TracrWeights, or of anything with its attributes other than tensors."""
    return {
        "format": FORMAT,
        "vocab": list(weights.vocab),
        "bos": weights.bos,
        "pad": weights.pad,
        "max_seq_len": weights.max_seq_len,
        "num_heads": weights.num_heads,
        "input_encoding": "categorical",
        "output_encoding": "numerical" if weights.output_values is None else "categorical",
        "output_values": None if weights.output_values is None else list(weights.output_values),
        "output_directions": output_directions,
        "residual_labels": list(weights.residual_labels),
        **({"causal": True} if getattr(weights, "causal", False) else {}),
    }


def read_description(metadata: dict[str, str]) -> Any:
    """What a file's metadata say of the model, from JSON; a format and nothing more where they say nothing of it."""
    if "trade" not in metadata:
        return {"format": FORMAT}
    try:
        return {"format": FORMAT, "causal": False, **json.loads(metadata["trade"])}
    except (TypeError, ValueError, RecursionError):
        raise WeightsError("the metadata under `trade` is not a JSON object") from None


# What is asked for where it does not follow from the tensors.
_ASKED = {
    "vocab": "a token for each of the {rows} rows of the embedding, BOS and pad among them; got {vocab}",
    "num_heads": "how many there are in a layer",
    "output_values": "the value of each output; None or --numerical for a number",
    "output_directions": "the residual direction of each output value{hint}",
    "max_seq_len": "the longest input without BOS: the last {unused} positions are embedded as zeros",
    "causal": "is the attention causal? The tensors do not tell",
}


def completed(tensors: dict[str, np.ndarray], meta: dict[str, Any]) -> dict[str, Any]:
    """The metadata, with what follows from the tensors' shapes.

    Raises WeightsError that asks for all that is missing, each by the name of its argument and option.
    """
    rows, unused = len(tensors["token_embed/embeddings"]), _unused_positions(tensors["pos_embed/embeddings"])
    tokens = len(meta["vocab"]) if isinstance(meta.get("vocab"), list | tuple) else None
    is_missing = {
        "vocab": tokens != rows,
        "num_heads": "num_heads" not in meta,
        "output_values": "output_values" not in meta,
        "output_directions": UNEMBED not in tensors and meta.get("output_directions") is None,
        "max_seq_len": "max_seq_len" not in meta and unused,
        "causal": meta.get("causal", False) is None,
    }
    known = {"rows": rows, "vocab": tokens or "none", "unused": unused, "hint": _unread_directions(tensors)}
    asked = [
        f"{name} or --{name.replace('_', '-')} ({_ASKED[name].format(**known)})"
        for name, missing in is_missing.items()
        if missing
    ]
    if asked:
        raise WeightsError(f"expected beside the tensors {', '.join(asked)}")
    derived = {
        "max_seq_len": len(tensors["pos_embed/embeddings"]) - 1,
        "output_encoding": "numerical" if meta["output_values"] is None else "categorical",
    }
    return {**derived, **meta}


def _unused_positions(positions: np.ndarray) -> int:
    """How many of the last rows are zeros, where not all are."""
    used = np.flatnonzero(positions[1:].any(1))
    return len(positions) - 2 - int(used[-1]) if used.size else 0


def _unread_directions(tensors: dict[str, np.ndarray]) -> str:
    """A hint at the output: the directions that are written and never read, in Tracr's own basis."""
    width = tensors["token_embed/embeddings"].shape[1]
    readers, writers = _readers_and_writers(tensors)
    if not all(t.ndim == 2 and t.shape[0] == width for t in readers) or any(t.shape[-1:] != (width,) for t in writers):
        return ""
    is_read = np.any([t.any(1) for t in readers], axis=0)
    is_written = np.any([t.any(0) for t in writers], axis=0)
    found = np.flatnonzero(is_written & ~is_read).tolist()
    return f"; written and never read: {', '.join(map(str, found))}" if found and is_read.any() else ""


def _readers_and_writers(tensors: dict[str, np.ndarray]) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Matrices of heads and hidden units, [d_model, unit] and [unit, d_model]; their shapes may be any."""
    readers = [t for name, t in tensors.items() if name.endswith(("query/w", "key/w", "value/w", "linear_1/w"))]
    return readers, [t for name, t in tensors.items() if name.endswith(("attn/linear/w", "linear_2/w"))]


def fitted(tensors: dict[str, np.ndarray], meta: dict[str, Any]) -> dict[str, np.ndarray]:
    """The tensors without positions beyond the longest input, and with a row for pad where the model has none.

    Raises WeightsError where there are fewer positions.
    """
    name, length = "pos_embed/embeddings", read_integer(meta, "max_seq_len")
    if length >= len(tensors[name]):
        raise WeightsError(f"max_seq_len: expected at most {len(tensors[name]) - 1} positions, got {length:,}")
    tensors = {**tensors, name: tensors[name][: length + 1]}
    if meta.get("pad", PAD) is None:
        name, embedding = "token_embed/embeddings", tensors["token_embed/embeddings"]
        meta["vocab"] = [*meta["vocab"], PAD]
        tensors = {**tensors, name: np.concatenate([embedding, _pad_row(embedding, tensors)[None]])}
    return tensors


def _pad_row(embedding: np.ndarray, tensors: dict[str, np.ndarray]) -> np.ndarray:
    """As `pad_row`; zeros where tensors are not of the shapes of a model, which is refused later."""
    width, (readers, writers) = embedding.shape[1], _readers_and_writers(tensors)
    read = [t.T for t in (*readers, *([tensors[UNEMBED]] if UNEMBED in tensors else []))]
    rows = [tensors["pos_embed/embeddings"][1:], *writers, *read]
    if not all(t.ndim == 2 and t.shape[1] == width and np.isfinite(t).all() for t in [embedding, *rows]):
        return np.zeros(width, np.float32)
    writing = np.concatenate(rows[: 1 + len(writers)])
    return pad_row(embedding, writing, np.concatenate([np.zeros((0, width)), *read])).astype(np.float32)


def is_whole(value: Any, least: int, most: float = math.inf) -> TypeGuard[int]:
    """Whether a value is a whole number within bounds; `True` is none."""
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def read_integer(meta: dict, key: str) -> int:
    """A whole number above 0 from metadata. Raises WeightsError for anything else."""
    value = plain(meta.get(key))
    if not is_whole(value, 1):
        raise WeightsError(f"expected a whole number above 0 for {key}, got {value!r}")
    return value


def read_values(meta: dict, key: str) -> tuple[Value, ...] | None:
    """Tokens or output values from metadata, None where there are none. Raises WeightsError for anything else."""
    values = meta.get(key)
    if values is None:
        return None
    if not isinstance(values, list | tuple):
        raise WeightsError(f"expected a list for {key}, got {type(values).__name__}")
    if len(values) > LIMITS["outputs"]:
        raise WeightsError(f"{key} has {len(values):,} values; the limit is {LIMITS['outputs']:,}")
    return tuple(_hashable(value, key) for value in values)


def read_name(meta: dict, key: str, default: Value) -> Value:
    """What BOS or pad is called. Raises WeightsError for what is no token."""
    return default if meta.get(key) is None else _hashable(meta[key], key)


def _hashable(value: Any, key: str, depth: int = 0) -> Value:
    value = plain(value)
    if isinstance(value, list | tuple) and depth < MAX_DEPTH:
        return tuple(_hashable(part, key, depth + 1) for part in value)
    if isinstance(value, str) or (isinstance(value, int | float) and -MAX_NUMBER <= value <= MAX_NUMBER):
        return value
    raise WeightsError(f"expected numbers and strings for {key}, got {value!r}")


def one_hot_columns(matrix: np.ndarray) -> list[int] | None:
    """The row of the 1 in each column, or None if a column is not one-hot."""
    rows = matrix.argmax(0)
    expected = np.zeros_like(matrix)
    expected[rows, np.arange(matrix.shape[1])] = 1.0
    return rows.tolist() if np.array_equal(matrix, expected) else None


def from_one_hot_columns(rows: Any, d_model: int) -> np.ndarray:
    """[d_model, output] with a 1 in each column, at its row. Raises WeightsError for rows that are none."""
    rows = [plain(row) for row in rows] if isinstance(rows, list | tuple | np.ndarray) else []
    if not 0 < len(rows) <= LIMITS["outputs"] or not all(is_whole(row, 0, d_model - 1) for row in rows):
        wanted = f"expected 1 to {LIMITS['outputs']:,} output_directions below {d_model:,}"
        raise WeightsError(f"{wanted}, or a tensor {UNEMBED}")
    matrix = np.zeros((d_model, len(rows)), np.float32)
    matrix[rows, np.arange(len(rows))] = 1.0
    return matrix
