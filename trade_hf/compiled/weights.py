"""TracrWeights: a compiled transformer's tensors and what they need to be read, in one safetensors file.

Tensors carry Tracr's own parameter names, module and parameter joined by a slash (`token_embed/embeddings`,
`transformer/layer_0/attn/query/w`, …), float32. Everything else is JSON in the file's metadata under the key `trade`.
Models that others hold in other ways are read by `formats.py`.
"""

from __future__ import annotations

import json
import operator
import os
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from trade_hf.compiled.description import (
    BOS,
    FORMAT,
    PAD,
    UNEMBED,
    completed,
    describe,
    fitted,
    from_one_hot_columns,
    one_hot_columns,
    read_description,
    read_integer,
    read_name,
    read_values,
)
from trade_hf.compiled.exactness import exactness_of
from trade_hf.compiled.tensor_files import LIMITS as LIMITS
from trade_hf.compiled.tensor_files import MAX_BYTES as MAX_BYTES
from trade_hf.compiled.tensor_files import MAX_HEADER_BYTES as MAX_HEADER_BYTES
from trade_hf.compiled.tensor_files import WeightsError as WeightsError
from trade_hf.compiled.tensor_files import read_file, read_tensors
from trade_hf.compiled.tensor_files import write_file as write_file
from trade_hf.rasp.functions import Value, plain
from trade_hf.rasp.tables import sort_values

COLDNESS = 100.0  # the attention logit of a selected key, times the root of the key size: tracr's `softmax_coldness`

MAX_WEIGHT = 1e9  # products of two, summed, stay far from float32's largest number
_ATTENTION = ("key", "linear", "query", "value")
_MLP = ("linear_1", "linear_2")


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
    bos: Value = BOS
    pad: Value = PAD
    causal: bool = False

    def __post_init__(self) -> None:
        numbers = {"num_heads": operator.index(self.num_heads), "max_seq_len": operator.index(self.max_seq_len)}
        outputs = self.output_values
        outputs = None if outputs is None else tuple(map(plain, outputs))
        names = {"vocab": tuple(map(plain, self.vocab)), "bos": plain(self.bos), "pad": plain(self.pad)}
        for name, value in {**numbers, **names, "output_values": outputs}.items():
            object.__setattr__(self, name, value)
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

    @cached_property
    def input_vocab(self) -> tuple[Value, ...]:
        """The tokens that an input can hold, in order of their values (`sort_values`), which need not be that of the
        embedding's rows."""
        return tuple(sort_values(token for token in self.vocab if token not in (self.bos, self.pad)))

    @cached_property
    def exactness(self) -> float:
        """The slope of the steps that maps of numbers are made of, tracr's `mlp_exactness`, read from the weights."""
        return exactness_of(self)

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

    def _repr_html_(self) -> str | None:
        """What a notebook shows: the shape."""
        try:  # what is in a `try` stays behind when the code goes to the Hub, and its requirements with it
            from trade_hf.report.shape import weights_summary_html
        except ImportError:
            return None
        return weights_summary_html(self)

    def metadata(self) -> dict[str, Any]:
        """All but the tensors, for JSON."""
        return describe(self, one_hot_columns(self.unembedding))

    # ------------------------------------------------------------ files

    def save(self, path: str | os.PathLike) -> None:
        """Write one safetensors file, whole or not at all."""
        meta = self.metadata()
        own = {} if meta["output_directions"] is not None else {UNEMBED: self.unembedding}
        write_file(path, {**self.tensors, **own}, {"trade": json.dumps(meta)})

    @classmethod
    def load(cls, path: str | os.PathLike) -> TracrWeights:
        """Read a safetensors file. Raises WeightsError with one line that says what was expected and what came."""
        try:
            return cls.from_bytes(read_file(path))
        except WeightsError as error:
            raise WeightsError(f"{os.fspath(path)}: {error}") from None

    @classmethod
    def from_bytes(cls, content: bytes) -> TracrWeights:
        """From what a safetensors file holds. Raises WeightsError with what was expected and what came."""
        tensors, metadata = read_tensors(content)
        return cls.from_metadata(tensors, read_description(metadata))

    @classmethod
    def from_metadata(cls, tensors: dict[str, np.ndarray], meta: Any) -> TracrWeights:
        """From tensors and what `metadata` gave. Raises WeightsError with what was expected and what came."""
        if not isinstance(meta, dict) or meta.get("format") != FORMAT:
            raise WeightsError(f"expected metadata of format {FORMAT!r}")
        tensors, meta = _in_tracrs_names(dict(tensors), meta)
        _check_embeddings(tensors)
        meta = completed(tensors, meta)
        tensors = fitted(tensors, meta)
        if meta["output_encoding"] not in ("categorical", "numerical"):
            raise WeightsError("expected output_encoding `categorical` or `numerical` in the metadata")
        output_values = read_values(meta, "output_values")
        if (output_values is None) != (meta["output_encoding"] == "numerical"):
            raise WeightsError("expected output_values for a categorical output, and none for a numerical one")
        unembedding = tensors.pop(UNEMBED, None)
        if unembedding is None:
            d_model = tensors["token_embed/embeddings"].shape[1]
            unembedding = from_one_hot_columns(meta.get("output_directions"), d_model)
        labels = meta.get("residual_labels") or []
        weights = cls(
            tensors=tensors,
            num_heads=read_integer(meta, "num_heads"),
            vocab=read_values(meta, "vocab") or (),
            max_seq_len=read_integer(meta, "max_seq_len"),
            output_values=output_values,
            unembedding=unembedding,
            residual_labels=tuple(map(str, labels)) if isinstance(labels, list) else (),
            bos=read_name(meta, "bos", BOS),
            pad=read_name(meta, "pad", PAD),
            causal=plain(meta.get("causal", False)),
        )
        check_limits(weights)
        return weights


def _in_tracrs_names(
    tensors: dict[str, np.ndarray], meta: dict[str, Any]
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Tensors and metadata, translated where they are a TransformerLens state dict."""
    if any(name.endswith("token_embed/embeddings") for name in tensors):
        return tensors, meta
    try:  # what is in a `try` stays behind when the code goes to the Hub (see remote_code.py)
        from trade_hf.compiled.transformer_lens import from_state_dict, is_state_dict
    except ImportError:
        return tensors, meta
    return from_state_dict(tensors, meta) if is_state_dict(tensors) else (tensors, meta)


# ---------------------------------------------------------------- checks


def _check_embeddings(tensors: dict[str, np.ndarray]) -> None:
    if "token_embed/embeddings" not in tensors or not any(name.endswith("/attn/query/w") for name in tensors):
        raise WeightsError(f"expected Tracr's parameters (token_embed/embeddings, …), got {_some(tensors)}")
    for name in ("token_embed/embeddings", "pos_embed/embeddings"):
        if name not in tensors:
            raise WeightsError(f"the tensor {name} is missing")
        if tensors[name].ndim != 2 or not tensors[name].size:
            raise WeightsError(f"{name} has the wrong shape: expected [row, d_model], got {list(tensors[name].shape)}")


def check_limits(weights: TracrWeights) -> None:
    """Raises WeightsError for a model that is larger than what is run here, or has larger numbers.

    It is asked of what is given, not of what is made of it on the way.
    """
    sizes = {
        "layers": weights.num_layers,
        "heads": weights.num_layers * weights.num_heads,
        "head_width": weights.num_heads * weights.key_size,
        "hidden_units": weights.num_layers * weights.mlp_size,
        "d_model": weights.d_model,
        "vocab": len(weights.vocab),
        "max_seq_len": weights.max_seq_len,
        "outputs": weights.unembedding.shape[1],
        "parameters": sum(tensor.size for tensor in weights.tensors.values()),
    }
    for what, size in sizes.items():
        if size > LIMITS[what]:
            raise WeightsError(f"{what} is {size:,}; the limit is {LIMITS[what]:,}")
    for name, tensor in {**weights.tensors, UNEMBED: weights.unembedding}.items():
        if tensor.size and np.abs(tensor).max() > MAX_WEIGHT:
            raise WeightsError(f"{name}: expected numbers up to {MAX_WEIGHT:g}, got {np.abs(tensor).max():g}")


def _check(weights: TracrWeights) -> None:
    """Every tensor there, of the right shape and type, finite; raises WeightsError."""
    tensors = weights.tensors
    if not isinstance(weights.causal, bool):
        raise WeightsError(f"expected true or false for causal in the metadata, got {weights.causal!r}")
    for name, size in (("num_heads", weights.num_heads), ("max_seq_len", weights.max_seq_len)):
        if size < 1:
            raise WeightsError(f"expected {name} of at least 1, got {size}")
    if weights.output_values == ():
        raise WeightsError("expected output_values of at least one value, got none")
    _check_embeddings(tensors)
    if weights.bos == weights.pad:
        raise WeightsError(f"expected two names for BOS and pad, got {weights.bos!r} for both")
    for name, token in (("bos", weights.bos), ("pad", weights.pad)):
        if weights.vocab.count(token) != 1:
            hint = f"{name} or --{name} names another one" + ("; None or --no-pad for no row" if name == "pad" else "")
            raise WeightsError(f"expected {token!r} once in the vocabulary ({hint}), got {weights.vocab}")
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


def _check_tensor(name: str, tensor: np.ndarray, shape: tuple[int, ...]) -> None:
    if tensor.dtype != np.float32:
        raise WeightsError(f"{name}: expected float32, got {tensor.dtype}")
    if tensor.shape != shape:
        raise WeightsError(f"{name}: expected shape {list(shape)}, got {list(tensor.shape)}")
    if not np.isfinite(tensor).all():
        raise WeightsError(f"{name}: expected finite numbers, got NaN or infinity")


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
