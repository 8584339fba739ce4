"""Tracr models as people hold them, read as TracrWeights.

- a safetensors file or its bytes: as `TracrWeights.save` writes it, or of any tensors below
- Haiku's parameters, as Tracr's `model.params`: a dictionary of dictionaries or flat, in memory or from `numpy.savez`
- TransformerLens: a state dict in any floating type, also of a module in a wrapper (`module.`, `_orig_mod.`), or the
  model itself (`transformer_lens.py`)
- an AssembledTransformerModel of the tracr package

What tensors do not tell stands beside them in the dictionary or is an argument (`Known`); whatever is missing is asked
for by name.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from typing import Any, TypedDict, Unpack

import numpy as np

from trade_hf.compiled.description import FORMAT, UNEMBED, read_description
from trade_hf.compiled.tensor_files import WeightsError, read_file, read_tensors, to_array
from trade_hf.compiled.weights import TracrWeights, check_limits
from trade_hf.rasp.functions import Value

MAX_NESTING = 8  # of dictionaries
_ANCHOR = "token_embed/embeddings"
_SEPARATOR = re.compile(r"[/.:]+(?:~[/.:]+)?")  # Haiku writes ~ for a module's constructor


class Known(TypedDict, total=False):
    """What tensors do not tell. What is given here counts, whatever a file says.

    vocab: the token of each row of the embedding, BOS and pad among them, in the order of the rows.
    bos, pad: what these two are called there; pad is None where the embedding has no row for it.
    max_seq_len: the longest input without BOS; positions beyond are left out.
    output_values: the value of each output, in order; None for a numerical output.
    output_directions: the residual direction of each output value; in `model.residual_labels` of Tracr's own model they
      stand as `name:value`.
    num_heads: of each layer.
    causal: whether the attention is causal.
    """

    vocab: Sequence[Value]
    bos: str
    pad: str | None
    max_seq_len: int
    output_values: Sequence[Value] | None
    output_directions: Sequence[int]
    num_heads: int
    causal: bool


def to_weights(source: Any, **known: Unpack[Known]) -> TracrWeights:
    """A TracrWeights from a model that is held in any of the ways above, or itself.

    Raises WeightsError with what was expected and what came, TypeError for an argument of another name.
    """
    if unknown := sorted(known.keys() - Known.__annotations__.keys()):
        raise TypeError(f"expected arguments among {', '.join(Known.__annotations__)}, got {', '.join(unknown)}")
    if hasattr(source, "tensors") and not known:  # by what it has: code from the Hub may be loaded twice
        check_limits(source)
        return source
    where = f"{os.fspath(source)}: " if isinstance(source, str | os.PathLike) else ""
    try:
        tensors, described = _read(source)
        return TracrWeights.from_metadata(*_with(tensors, described, known))
    except WeightsError as error:
        raise WeightsError(f"{where}{error}") from None


def _read(source: Any) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Tensors, and what stands beside them."""
    match source:
        case str() | os.PathLike():
            return _read_bytes(read_file(source))
        case bytes() | bytearray() | memoryview():
            return _read_bytes(bytes(source))
        case Mapping():
            return _read_mapping(source)
    if hasattr(source, "params"):
        source = _bridge().from_tracr_model(source)
    if hasattr(source, "tensors"):
        return {**source.tensors, UNEMBED: source.unembedding}, {"causal": False, **source.metadata()}
    if hasattr(source, "cfg") and hasattr(source, "state_dict"):
        return _lens().read_model(source)
    wanted = (
        "expected a safetensors or npz file, its bytes, a dictionary of arrays or a model of tracr or TransformerLens"
    )
    raise WeightsError(f"{wanted}, got {type(source).__name__}")


def _bridge() -> Any:
    try:  # what is in a `try` stays behind when the code goes to the Hub (see remote_code.py)
        from trade_hf.compiled import bridge
    except ImportError:
        raise WeightsError("a model of the tracr package can be read where trade-hf is installed") from None
    return bridge


def _lens() -> Any:
    try:
        from trade_hf.compiled import transformer_lens
    except ImportError:
        raise WeightsError("a model of TransformerLens can be read where trade-hf is installed") from None
    return transformer_lens


def _read_bytes(content: bytes) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    tensors, metadata = read_tensors(content)
    described = read_description(metadata)
    arrays, beside = _read_mapping(tensors)
    return arrays, {**beside, **described}


def _read_mapping(given: Mapping[Any, Any]) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Arrays, of dictionaries in dictionaries too, and all else of the outermost one."""
    described = {"format": FORMAT} | {str(name): part for name, part in given.items() if not isinstance(part, Mapping)}
    if "format" in given:  # as `TracrWeights.metadata` gives it, which leaves out what is the rule
        described = {"causal": False} | described
    tensors = {}
    for name, part in _flattened(given):
        if name in Known.__annotations__:
            described[name] = part.tolist()
        else:
            described.pop(name, None)
            tensors[name] = to_array(name, part)
    return _in_plain_names(tensors), described


def _flattened(given: Mapping[Any, Any], depth: int = 0) -> list[tuple[str, Any]]:
    if depth > MAX_NESTING:
        raise WeightsError(f"expected dictionaries in at most {MAX_NESTING} dictionaries")
    found = []
    for name, part in given.items():
        if isinstance(part, Mapping):
            found += [(f"{name}/{inner}", array) for inner, array in _flattened(part, depth + 1)]
        elif getattr(part, "shape", None) is not None and (part.shape or str(name) not in Known.__annotations__):
            found.append((str(name), part))
    return found


def _in_plain_names(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Tracr's parameters under its own names, without what all of them stand in; other tensors as they are."""
    plain = {_SEPARATOR.sub("/", name): tensor for name, tensor in tensors.items()}
    anchor = next((name for name in plain if name == _ANCHOR or name.endswith(f"/{_ANCHOR}")), None)
    if anchor is None or len(plain) != len(tensors):
        return tensors
    return {name.removeprefix(anchor.removesuffix(_ANCHOR)): tensor for name, tensor in plain.items()}


def _with(
    tensors: dict[str, np.ndarray], described: dict[str, Any], known: Known
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """With what the caller knows in the place of what is there."""
    if "output_directions" in known:
        tensors = {name: tensor for name, tensor in tensors.items() if name != UNEMBED}
    if "output_values" in known:
        described = {name: part for name, part in described.items() if name != "output_encoding"}
    given = {name: list(part) if isinstance(part, tuple | np.ndarray) else part for name, part in known.items()}
    return tensors, {**described, **given}
