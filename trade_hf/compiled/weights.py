"""TracrWeights: a compiled transformer's tensors and what they need to be read, in one safetensors file.

Tensors carry Tracr's own parameter names, module and parameter joined by a slash (`token_embed/embeddings`,
`transformer/layer_0/attn/query/w`, …), float32. Everything else is JSON in the file's metadata under the key `trade`.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from trade_hf.files import write_whole
from trade_hf.rasp.functions import Value
from trade_hf.rasp.tables import MAX_SEQ_LEN, MAX_VOCAB

BOS = "compiler_bos"
PAD = "compiler_pad"
UNEMBED = "unembed/w"
FORMAT = "tracr-weights-1"
# The attention logit of a selected key, times the root of the key size, and the slope of the units of a threshold.
COLDNESS = 100.0

# What a file may hold; a larger model is refused before its tensors are read.
LIMITS = {
    "layers": 64,
    "d_model": 4096,
    "parameters": 50_000_000,
    "vocab": MAX_VOCAB,
    "max_seq_len": MAX_SEQ_LEN,
    "outputs": 4096,
}
MAX_HEADER_BYTES = 4_000_000
MAX_BYTES = 4 * LIMITS["parameters"] + MAX_HEADER_BYTES
MAX_MESSAGE = 500  # characters
MAX_NUMBER = 2**53  # of a token or an output value: all whole numbers up to it are floats
MAX_WEIGHT = 1e9  # products of two, summed, stay far from float32's largest number
MAX_DEPTH = 8  # of tuples in tuples

_ATTENTION = ("key", "linear", "query", "value")
_MLP = ("linear_1", "linear_2")


class WeightsError(ValueError):
    """A file or a set of tensors that is no Tracr model; the message says what was expected and what came.

    It is one line, cut off where a file's own words would make it long.
    """

    def __init__(self, message: str) -> None:
        line = " ".join(message.split())
        super().__init__(line if len(line) <= MAX_MESSAGE else f"{line[:MAX_MESSAGE]}…")


@dataclass(frozen=True, repr=False)
class TracrWeights:
    """A compiled transformer.

    Attributes:
      tensors: Tracr's parameters by name, float32.
      num_heads: heads in every layer; the key size is the width of W_Q over this.
      vocab: the token of each row of the token embedding, BOS and pad among them.
      max_seq_len: the longest input, BOS not counted (positions are embedded 0 … max_seq_len).
      output_values: the value that each column of the unembedding stands for; None for a numerical output.
      unembedding: [d_model, output], the projection that Tracr keeps in a closure.
      residual_labels: names of the residual directions where they are known; for people, never read by the model.
      causal: whether each position attends to itself and those before it alone, as with Tracr's `causal=True`. Such a
        model means its program with each selector so restricted.
    """

    tensors: dict[str, np.ndarray]
    num_heads: int
    vocab: tuple[Value, ...]
    max_seq_len: int
    output_values: tuple[Value, ...] | None
    unembedding: np.ndarray
    residual_labels: tuple[str, ...] = field(default=())
    bos: str = BOS
    pad: str = PAD
    causal: bool = False

    def __post_init__(self) -> None:
        _check(self)

    @property
    def d_model(self) -> int:
        return self.tensors["token_embed/embeddings"].shape[1]

    @property
    def num_layers(self) -> int:
        return sum(name.endswith("/attn/query/w") for name in self.tensors)

    @property
    def key_size(self) -> int:
        return self.tensors["transformer/layer_0/attn/query/w"].shape[1] // self.num_heads

    @property
    def mlp_size(self) -> int:
        return self.tensors["transformer/layer_0/mlp/linear_1/w"].shape[1]

    @property
    def input_vocab(self) -> tuple[Value, ...]:
        """The tokens that an input can hold, in the order of the embedding."""
        return tuple(token for token in self.vocab if token not in (self.bos, self.pad))

    def layer(self, number: int, part: str) -> np.ndarray:
        """A layer's tensor, such as `layer(0, "attn/query/w")`."""
        return self.tensors[f"transformer/layer_{number}/{part}"]

    def __repr__(self) -> str:
        output = "numerical" if self.output_values is None else f"{len(self.output_values)} values"
        return (
            f"TracrWeights({self.num_layers} layers, {self.num_heads} heads, key size {self.key_size}, "
            f"MLP size {self.mlp_size}, d_model {self.d_model}, vocabulary {_listed(self.input_vocab)}, "
            f"up to {self.max_seq_len} tokens, output {output}{', causal' if self.causal else ''})"
        )

    def _repr_html_(self) -> str:
        """What a notebook shows: the shape."""
        from trade_hf.report.shape import weights_summary_html

        return weights_summary_html(self)

    def metadata(self) -> dict[str, Any]:
        """All but the tensors, for JSON."""
        return describe(self, _one_hot_columns(self.unembedding))

    # ------------------------------------------------------------ files

    def save(self, path: str | os.PathLike) -> None:
        """Write one safetensors file, whole or not at all."""
        meta = self.metadata()
        own = {} if meta["output_directions"] is not None else {UNEMBED: self.unembedding}
        write_file(path, {**self.tensors, **own}, {"trade": json.dumps(meta)})

    @classmethod
    def load(cls, path: str | os.PathLike) -> TracrWeights:
        """Read a safetensors file. Raises WeightsError with one line that says what was expected and what came."""
        path = Path(path)
        if not path.is_file():
            raise WeightsError(f"{path}: no such file")
        try:
            _check_bytes(path.stat().st_size)
            return cls.from_bytes(path.read_bytes())
        except WeightsError as error:
            raise WeightsError(f"{path}: {error}") from None

    @classmethod
    def from_bytes(cls, content: bytes) -> TracrWeights:
        """From what a safetensors file holds. Raises WeightsError with what was expected and what came."""
        _check_bytes(len(content))
        _refuse_other_formats(content)
        tensors, metadata = read_tensors(content)
        return cls.from_metadata(tensors, _read_json(metadata))

    @classmethod
    def from_metadata(cls, tensors: dict[str, np.ndarray], meta: Any) -> TracrWeights:
        """From tensors and what `metadata` gave. Raises WeightsError with what was expected and what came."""
        if not isinstance(meta, dict) or meta.get("format") != FORMAT:
            raise WeightsError(f"expected metadata of format {FORMAT!r}")
        tensors, meta = _in_tracrs_names(tensors, meta)
        vocab = _values(meta, "vocab")
        if not vocab:
            raise WeightsError("expected a vocabulary in the metadata, found none")
        output_values = _values(meta, "output_values")
        if meta.get("output_encoding") not in ("categorical", "numerical"):
            raise WeightsError("expected output_encoding `categorical` or `numerical` in the metadata")
        if (output_values is None) != (meta["output_encoding"] == "numerical"):
            raise WeightsError("expected output_values for a categorical output, and none for a numerical one")
        unembedding = tensors.pop(UNEMBED, None)
        if unembedding is None:
            embedding = tensors.get("token_embed/embeddings")
            if embedding is None:
                raise WeightsError(f"expected Tracr's parameters (token_embed/embeddings, …), got {_some(tensors)}")
            if embedding.ndim != 2:
                raise WeightsError("token_embed/embeddings has the wrong shape: expected [token, d_model]")
            unembedding = _from_one_hot_columns(meta.get("output_directions"), embedding.shape[1])
        labels = meta.get("residual_labels") or []
        return cls(
            tensors=tensors,
            num_heads=_integer(meta, "num_heads"),
            vocab=vocab,
            max_seq_len=_integer(meta, "max_seq_len"),
            output_values=output_values,
            unembedding=unembedding,
            residual_labels=tuple(map(str, labels)) if isinstance(labels, list) else (),
            bos=str(meta.get("bos")),
            pad=str(meta.get("pad")),
            causal=meta.get("causal", False),
        )


def write_file(path: str | os.PathLike, tensors: Mapping[str, np.ndarray], metadata: dict[str, str]) -> None:
    """Write one safetensors file, whole or not at all."""
    from safetensors.numpy import save

    content = save({name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}, metadata=metadata)
    write_whole(Path(path), lambda partial: partial.write_bytes(content))


def read_weights(source: Any) -> TracrWeights:
    """A TracrWeights from a safetensors path or its bytes, from a dictionary, or itself.

    The dictionary has arrays under Tracr's parameter names and, beside them, what `TracrWeights.metadata` gives: at
    least `vocab`, `max_seq_len`, `num_heads`, `output_encoding`, `output_values` and `output_directions` (or the array
    `unembed/w`). Or it is a TransformerLens state dict with at least `vocab` and `output_values` beside the tensors
    (see `transformer_lens.py`). Raises WeightsError with what was expected and what came.
    """
    if hasattr(source, "tensors"):  # by what it has: code from the Hub may be loaded twice, and with it this class
        return source
    match source:
        case str() | os.PathLike():
            return TracrWeights.load(source)
        case bytes() | bytearray() | memoryview():
            return TracrWeights.from_bytes(bytes(source))
        case Mapping():
            tensors = {str(name): _to_array(name, part) for name, part in source.items() if hasattr(part, "shape")}
            described = {name: part for name, part in source.items() if not hasattr(part, "shape")}
            return TracrWeights.from_metadata(tensors, {"format": FORMAT, "bos": BOS, "pad": PAD, **described})
    expected = "expected a safetensors path, its bytes, or a dictionary of arrays with its metadata"
    raise WeightsError(f"{expected}, got {type(source).__name__}")


def _in_tracrs_names(
    tensors: dict[str, np.ndarray], meta: dict[str, Any]
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Tensors and metadata, translated where they are a TransformerLens state dict."""
    if not {"embed.W_E", "embed.weight"} & set(tensors):
        return tensors, meta
    try:  # what is in a `try` stays behind when the code goes to the Hub (see remote_code.py)
        from trade_hf.compiled.transformer_lens import from_state_dict
    except ImportError:
        raise WeightsError("a TransformerLens state dict can be read where trade-hf is installed") from None
    return from_state_dict(tensors, meta)


def _to_array(name: str, tensor: Any) -> np.ndarray:
    try:
        return np.asarray(tensor)
    except (TypeError, ValueError, RuntimeError) as error:  # torch: bfloat16, needs a gradient, on another device
        raise WeightsError(f"{name}: expected a float32 array in memory: {error}") from None


def describe(weights: Any, output_directions: list[int] | None) -> dict[str, Any]:
    """The metadata of a TracrWeights, or of anything with its attributes other than tensors."""
    return {
        "format": FORMAT,
        "vocab": list(weights.vocab),
        "bos": getattr(weights, "bos", BOS),
        "pad": getattr(weights, "pad", PAD),
        "max_seq_len": weights.max_seq_len,
        "num_heads": weights.num_heads,
        "input_encoding": "categorical",
        "output_encoding": "numerical" if weights.output_values is None else "categorical",
        "output_values": None if weights.output_values is None else list(weights.output_values),
        "output_directions": output_directions,
        "residual_labels": list(weights.residual_labels),
        **({"causal": True} if getattr(weights, "causal", False) else {}),
    }


def _read_json(metadata: dict[str, str]) -> Any:
    if "trade" not in metadata:
        raise WeightsError("expected the vocabulary and the lengths in the metadata under `trade`, found none")
    try:
        return json.loads(metadata["trade"])
    except (ValueError, RecursionError):
        raise WeightsError("the metadata under `trade` is not JSON") from None


def _check_bytes(size: int) -> None:
    if size > MAX_BYTES:
        raise WeightsError(f"expected a file of at most {MAX_BYTES:,} bytes, got {size:,}")


def _refuse_other_formats(content: bytes) -> None:
    head = content[:16]
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= MAX_HEADER_BYTES:
        return  # a header's length may begin as another format does
    if head[:2] in (b"PK", b"\x1f\x8b", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"):
        raise WeightsError("expected a safetensors file, got a pickle or an archive, which is never opened")
    if head.lstrip()[:1] in (b"{", b"["):
        raise WeightsError("expected a safetensors file, got JSON")


def read_tensors(content: bytes) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Tensors and metadata; nothing is allocated before the header is known to be within bounds."""
    from safetensors import SafetensorError
    from safetensors.numpy import load

    # The header: its length in 8 bytes, then JSON (safetensors' documentation, "Format"). The library's function for
    # bytes does not give the metadata.
    size = int.from_bytes(content[:8], "little")
    if not 0 < size <= min(MAX_HEADER_BYTES, len(content) - 8):
        raise WeightsError(f"expected a safetensors file, got a header of {size:,} in {len(content):,} bytes")
    try:
        header = json.loads(content[8 : 8 + size])
        metadata = header.pop("__metadata__", None) or {}
        _check_header(header)
        return load(content), metadata
    except WeightsError:
        raise
    except (SafetensorError, AttributeError, KeyError, OverflowError, RecursionError, TypeError, ValueError) as error:
        raise WeightsError(f"expected a safetensors file: {error}") from None


def _check_header(header: dict[str, Any]) -> None:
    for name, entry in header.items():
        if entry["dtype"] != "F32" and not name.endswith(".attn.mask"):  # TransformerLens's, of truth values
            raise WeightsError(f"{name}: expected float32 (F32), got {entry['dtype']}")
    parameters = sum(math.prod(entry["shape"]) for entry in header.values())
    if parameters > LIMITS["parameters"]:
        raise WeightsError(f"{parameters:,} parameters; the limit is {LIMITS['parameters']:,}")


def _integer(meta: dict, key: str) -> int:
    value = meta.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise WeightsError(f"expected a whole number above 0 for {key} in the metadata, got {value!r}")
    return value


def _values(meta: dict, key: str) -> tuple[Value, ...] | None:
    values = meta.get(key)
    if values is None:
        return None
    if not isinstance(values, list | tuple):
        raise WeightsError(f"expected a list for {key} in the metadata")
    if len(values) > LIMITS["outputs"]:
        raise WeightsError(f"{key} has {len(values):,} values; the limit is {LIMITS['outputs']:,}")
    return tuple(_hashable(value, key) for value in values)


def _hashable(value: Any, key: str, depth: int = 0) -> Value:
    if isinstance(value, list | tuple) and depth < MAX_DEPTH:
        return tuple(_hashable(part, key, depth + 1) for part in value)
    if isinstance(value, str) or (isinstance(value, int | float) and -MAX_NUMBER <= value <= MAX_NUMBER):
        return value
    raise WeightsError(f"expected numbers and strings for {key} in the metadata, got {value!r}")


def _one_hot_columns(matrix: np.ndarray) -> list[int] | None:
    """The row of the 1 in each column, or None if a column is not one-hot."""
    rows = matrix.argmax(0)
    expected = np.zeros_like(matrix)
    expected[rows, np.arange(matrix.shape[1])] = 1.0
    return rows.tolist() if np.array_equal(matrix, expected) else None


def _from_one_hot_columns(rows: Any, d_model: int) -> np.ndarray:
    if not isinstance(rows, list) or not rows or not all(isinstance(r, int) and 0 <= r < d_model for r in rows):
        raise WeightsError(f"expected output_directions below {d_model} in the metadata, or a tensor {UNEMBED}")
    for what, size in (("d_model", d_model), ("outputs", len(rows))):
        _check_size(what, size)
    matrix = np.zeros((d_model, len(rows)), np.float32)
    matrix[rows, np.arange(len(rows))] = 1.0
    return matrix


# ---------------------------------------------------------------- checks


def _check(weights: TracrWeights) -> None:
    """Every tensor there, of the right shape and type, finite; raises WeightsError."""
    tensors = weights.tensors
    if not isinstance(weights.causal, bool):
        raise WeightsError(f"expected true or false for causal in the metadata, got {weights.causal!r}")
    if "token_embed/embeddings" not in tensors or not any(name.endswith("/attn/query/w") for name in tensors):
        raise WeightsError(f"expected Tracr's parameters (token_embed/embeddings, …), got {_some(tensors)}")
    if tensors["token_embed/embeddings"].ndim != 2:
        raise WeightsError("token_embed/embeddings: expected two dimensions [token, d_model]")
    sizes = {"layers": weights.num_layers, "d_model": weights.d_model}
    sizes |= {"vocab": len(weights.vocab), "max_seq_len": weights.max_seq_len}
    for what, size in sizes.items():
        _check_size(what, size)
    for special in (weights.bos, weights.pad):
        if weights.vocab.count(special) != 1:
            raise WeightsError(f"expected {special!r} once in the vocabulary of the embedding, got {weights.vocab}")
    if len(set(weights.vocab)) != len(weights.vocab):
        raise WeightsError(f"expected distinct tokens in the vocabulary, got {weights.vocab}")
    if not weights.input_vocab:
        raise WeightsError(f"expected a token beside {weights.bos!r} and {weights.pad!r} in the vocabulary, found none")
    expected = _expected_shapes(weights)
    for name in sorted(set(tensors) ^ set(expected)):
        state = "missing" if name in expected else "not one of Tracr's"
        raise WeightsError(f"the tensor {name} is {state}")
    for name, shape in expected.items():
        _check_tensor(name, tensors[name], shape)
    outputs = 1 if weights.output_values is None else len(weights.output_values)
    _check_tensor(UNEMBED, weights.unembedding, (weights.d_model, outputs))


def _check_size(what: str, size: int) -> None:
    if not 0 < size <= LIMITS[what]:
        raise WeightsError(f"{what} is {size:,}; the limit is {LIMITS[what]:,}")


def _check_tensor(name: str, tensor: np.ndarray, shape: tuple[int, ...]) -> None:
    if tensor.dtype != np.float32:
        raise WeightsError(f"{name}: expected float32, got {tensor.dtype}")
    if tensor.shape != shape:
        raise WeightsError(f"{name}: expected shape {list(shape)}, got {list(tensor.shape)}")
    if not np.isfinite(tensor).all():
        raise WeightsError(f"{name}: expected finite numbers, got NaN or infinity")
    if tensor.size and np.abs(tensor).max() > MAX_WEIGHT:
        raise WeightsError(f"{name}: expected numbers up to {MAX_WEIGHT:g}, got {np.abs(tensor).max():g}")


def _expected_shapes(weights: TracrWeights) -> dict[str, tuple[int, ...]]:
    d_model, tensors = weights.d_model, weights.tensors
    width = _width(tensors, "transformer/layer_0/attn/query/w")
    if width == 0 or width % weights.num_heads:
        raise WeightsError(f"expected a width of W_Q that {weights.num_heads} heads divide, got {width}")
    hidden = _width(tensors, "transformer/layer_0/mlp/linear_1/w")
    shapes: dict[str, tuple[int, ...]] = {
        "token_embed/embeddings": (len(weights.vocab), d_model),
        "pos_embed/embeddings": (weights.max_seq_len + 1, d_model),
    }
    for layer in range(weights.num_layers):
        prefix = f"transformer/layer_{layer}"
        for name in _ATTENTION:
            rows, columns = (width, d_model) if name == "linear" else (d_model, width)
            shapes[f"{prefix}/attn/{name}/w"], shapes[f"{prefix}/attn/{name}/b"] = (rows, columns), (columns,)
        for name in _MLP:
            rows, columns = (d_model, hidden) if name == "linear_1" else (hidden, d_model)
            shapes[f"{prefix}/mlp/{name}/w"], shapes[f"{prefix}/mlp/{name}/b"] = (rows, columns), (columns,)
    return shapes


def _width(tensors: dict[str, np.ndarray], name: str) -> int:
    if name not in tensors or tensors[name].ndim != 2:
        raise WeightsError(f"the tensor {name} is missing or has the wrong shape")
    return tensors[name].shape[1]


def _listed(tokens: tuple[Value, ...], most: int = 12) -> str:
    """As a list; long vocabularies are cut."""
    if len(tokens) <= most:
        return str(list(tokens))
    return f"[{', '.join(map(repr, tokens[:most]))}, … {len(tokens):,} in all]"


def _some(tensors: dict[str, np.ndarray]) -> str:
    names = sorted(tensors)
    return ", ".join(names[:3]) + (f", … ({len(names)} tensors)" if len(names) > 3 else "") if names else "no tensor"
