"""A row of the corpus: a program, what it was made for, and its compiled weights as sparse lists."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from trade_hf.compiled.compiler import compile_sparse
from trade_hf.compiled.sparse import SparseWeights
from trade_hf.compiled.weights import TracrWeights
from trade_hf.rasp.functions import Value
from trade_hf.rasp.program import Program, RaspError
from trade_hf.rasp.text import to_text
from trade_hf.tokenization_rasp import to_tokens

# Weights are parallel flat lists, which Parquet packs well and which read a hundred times faster than lists of structs.
# Tensor number i has the name names[i] and the shape shapes[2 * i : 2 * i + 2], 0 in second place for a vector. Its
# non-zero entries are offsets[i] … offsets[i + 1] of `index` and `value`; `index` counts along the flattened tensor,
# each entry as its distance from the one before.
SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("code", pa.string()),
        ("tokens", pa.string()),
        ("num_lines", pa.int16()),
        ("operations", pa.string()),
        ("vocab", pa.string()),
        ("max_seq_len", pa.int16()),
        ("num_layers", pa.int16()),
        ("num_heads", pa.int16()),
        ("key_size", pa.int16()),
        ("mlp_size", pa.int32()),
        ("d_model", pa.int16()),
        ("metadata", pa.string()),
        ("names", pa.list_(pa.string())),
        ("shapes", pa.list_(pa.int32())),
        ("offsets", pa.list_(pa.int32())),
        ("index", pa.list_(pa.uint32())),
        ("value", pa.list_(pa.float32())),
    ]
)


def to_row(
    identity: str, program: Program, vocab: tuple[Value, ...], max_seq_len: int, canonical: Program | None = None
) -> dict[str, Any]:
    """A program, compiled. `vocab` and `metadata` are JSON (`metadata` that of a weights file).

    `tokens` are those of `canonical`, by default the program itself, and None where a function has no token. The two
    differ where tokens are no numbers: then the canonical program speaks of the k-th token.
    """
    weights = compile_sparse(program, vocab, max_seq_len)
    try:
        tokens = " ".join(to_tokens(canonical or program))
    except RaspError:
        tokens = None
    return {
        "id": identity,
        "code": to_text(program),
        "tokens": tokens,
        "num_lines": len(program),
        "operations": " ".join([line.op.text for line in program.lines]),
        "vocab": json.dumps(vocab),
        "max_seq_len": max_seq_len,
        "num_layers": weights.num_layers,
        "num_heads": weights.num_heads,
        "key_size": weights.key_size,
        "mlp_size": weights.mlp_size,
        "d_model": weights.d_model,
        "metadata": json.dumps(weights.metadata()),
        "names": tuple(weights.shapes),
        "shapes": np.array([(*shape, 0)[:2] for shape in weights.shapes.values()], np.int32).ravel(),
        **_flat_lists(weights),
    }


def _flat_lists(weights: SparseWeights) -> dict[str, np.ndarray]:
    starts, places = weights.starts, weights.places
    offsets = np.searchsorted(places, starts)
    index = places.copy()
    index[1:] -= places[:-1]
    first = np.flatnonzero(np.diff(offsets))  # tensors that hold anything
    index[offsets[first]] = places[offsets[first]] - starts[first]
    return {"offsets": offsets.astype(np.int32), "index": index.astype(np.uint32), "value": weights.values}


def to_table(rows: list[dict[str, Any]]) -> pa.Table:
    """Rows as `to_row` gives them, in Arrow."""
    return pa.Table.from_arrays(
        [_column([row[field.name] for row in rows], field.type) for field in SCHEMA], schema=SCHEMA
    )


def _column(cells: list[Any], kind: pa.DataType) -> pa.Array:
    if not cells or not pa.types.is_list(kind):
        return pa.array(cells, kind)
    offsets = np.cumsum([0, *map(len, cells)]).astype(np.int32)
    if isinstance(cells[0], np.ndarray):
        return pa.ListArray.from_arrays(offsets, pa.array(np.concatenate(cells), kind.value_type), kind)
    return pa.ListArray.from_arrays(offsets, pa.concat_arrays([_strings(cell) for cell in cells]), kind)


@functools.lru_cache(maxsize=1_000)
def _strings(cells: tuple[str, ...]) -> pa.Array:
    """Names of tensors: the same for all models of as many layers."""
    return pa.array(cells, pa.string())


def to_tensors(row: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The dense tensors of a row, float32, by Tracr's names."""
    offsets, index = np.asarray(row["offsets"]), np.asarray(row["index"], np.int64)
    value = np.asarray(row["value"], np.float32)
    tensors = {}
    shapes = np.asarray(row["shapes"]).reshape(-1, 2).tolist()
    for i, (name, shape) in enumerate(zip(row["names"], shapes, strict=True)):
        part, sizes = slice(int(offsets[i]), int(offsets[i + 1])), [size for size in shape if size]
        flat = np.zeros(math.prod(sizes), np.float32)
        flat[np.cumsum(index[part])] = value[part]
        tensors[str(name)] = flat.reshape(sizes)
    return tensors


def to_weights(row: Mapping[str, Any]) -> TracrWeights:
    """The compiled model of a row, equal to Tracr's bit for bit."""
    return TracrWeights.from_metadata(to_tensors(row), json.loads(row["metadata"]))
