"""Files of named arrays, read as untrusted bytes: safetensors and numpy's npz. No pickle is ever opened.

Sizes are checked before anything is allocated. Numbers become float32; a file with one that would change is refused.
"""

from __future__ import annotations

import io
import json
import math
import os
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from trade_hf.files import read_start, write_whole
from trade_hf.rasp.tables import MAX_SEQ_LEN, MAX_VOCAB

# What a model may hold; a larger one is refused before its tensors are read.
LIMITS = {
    "layers": 64,
    "heads": 2048,  # of all layers
    "head_width": 16_384,  # of a layer: heads times key size
    "hidden_units": 131_072,  # of all layers
    "d_model": 2048,
    "parameters": 50_000_000,
    "vocab": MAX_VOCAB,
    "max_seq_len": MAX_SEQ_LEN,
    "outputs": 4096,
}
MAX_HEADER_BYTES = 4_000_000
MAX_BYTES = 4 * LIMITS["parameters"] + MAX_HEADER_BYTES
MAX_MESSAGE = 600  # characters
_FLOATS = {"F64": "<f8", "F32": "<f4", "F16": "<f2"}  # safetensors' names: numpy's
MASKS = (".attn.mask", ".attn.IGNORE")  # TransformerLens's buffers, of any type
_ARCHIVE = "expected a safetensors file, got a pickle or an archive, which is never opened"


class WeightsError(ValueError):
    """A file or a set of tensors that is no Tracr model; the message says what was expected and what came.

    It is one line, cut off where a file's own words would make it long.
    """

    def __init__(self, message: str) -> None:
        line = " ".join(message.split())
        super().__init__(line if len(line) <= MAX_MESSAGE else f"{line[:MAX_MESSAGE]}…")


def write_file(path: str | os.PathLike, tensors: Mapping[str, np.ndarray], metadata: dict[str, str]) -> None:
    """Write one safetensors file, whole or not at all."""
    from safetensors.numpy import save

    content = save({name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}, metadata=metadata)
    write_whole(Path(path), lambda partial: partial.write_bytes(content))


def read_file(path: str | os.PathLike) -> bytes:
    """A file's bytes. Raises WeightsError for what is no file or is too large."""
    path = Path(path)
    if path.is_dir():
        raise WeightsError("expected a file, got a folder")
    if not path.exists():
        raise WeightsError("no such file")
    _check_bytes(path.stat().st_size)
    try:
        content = read_start(path, MAX_BYTES + 1)
    except OSError as error:
        raise WeightsError(f"{error.strerror}") from None
    _check_bytes(len(content))  # a pipe or a device has no size
    return content


def read_tensors(content: bytes) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Tensors and metadata of a safetensors or an npz file. Raises WeightsError with what was expected and what came.

    An npz file has no metadata; its arrays may be of any type.
    """
    _check_bytes(len(content))
    if is_safetensors(content):
        return _read_safetensors(content)
    if content[:2] == b"PK":
        return _read_npz(content), {}
    if content[:2] in (b"\x1f\x8b", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"):
        raise WeightsError(_ARCHIVE)
    if content[:6] == b"\x93NUMPY":
        raise WeightsError("expected a safetensors or an npz file, got a single array: numpy.savez(path, **arrays)")
    if content[:64].lstrip()[:1] in (b"{", b"["):
        raise WeightsError("expected a safetensors file, got JSON")
    if b"rasp." in content[:10_000]:
        raise WeightsError("expected a safetensors file, got a program: `trade compile` makes a model of it")
    size = int.from_bytes(content[:8], "little")
    raise WeightsError(f"expected a safetensors file, got a header of {size:,} in {len(content):,} bytes")


def to_array(name: str, tensor: Any) -> np.ndarray:
    """A tensor of numpy, JAX or torch, on whatever device, as a float32 array; a mask as it is.

    Raises WeightsError for what is no array of numbers that float32 holds exactly.
    """
    try:
        if hasattr(tensor, "detach"):
            tensor = tensor.detach().cpu()
            tensor = (tensor.float() if tensor.is_floating_point() and tensor.itemsize < 4 else tensor).numpy()
        array = np.asarray(tensor)
    except (TypeError, ValueError, RuntimeError, AttributeError, NotImplementedError) as error:
        raise WeightsError(f"{name}: expected an array of numbers in memory: {error}") from None
    return array if name.endswith(MASKS) else to_float32(name, array)


def to_float32(name: str, array: np.ndarray) -> np.ndarray:
    """The array in float32. Raises WeightsError for what is no array of numbers that float32 holds exactly."""
    if array.dtype == np.float32:
        return array
    try:
        with np.errstate(over="ignore", invalid="ignore"):
            single = array.astype(np.float32)
        is_same = array.dtype.kind in "fV" and bool(((single == array) | (array != array)).all())  # V: JAX's bfloat16
    except (TypeError, ValueError):
        is_same = False
    if not is_same:
        raise WeightsError(f"{name}: expected float32 or numbers that it holds exactly, got {array.dtype}")
    return single


def _check_bytes(size: int) -> None:
    if size > MAX_BYTES:
        raise WeightsError(f"expected a file of at most {MAX_BYTES:,} bytes, got {size:,}")


def _check_parameters(count: int) -> None:
    if count > LIMITS["parameters"]:
        raise WeightsError(f"{count:,} parameters; the limit is {LIMITS['parameters']:,}")


# ---------------------------------------------------------------- safetensors


def is_safetensors(content: bytes) -> bool:
    """Whether a file's header is JSON after its length in 8 bytes, which may begin as another format does."""
    size = int.from_bytes(content[:8], "little")
    return content[8:9] in (b"{", b"[") and 0 < size <= min(MAX_HEADER_BYTES, len(content) - 8)


def _read_safetensors(content: bytes) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """See safetensors' documentation, "Format". The library's function for bytes does not give the metadata."""
    from safetensors import SafetensorError, deserialize

    size = int.from_bytes(content[:8], "little")
    try:
        header = json.loads(content[8 : 8 + size])
        metadata = header.pop("__metadata__", None) or {}
        _check_parameters(sum(math.prod(entry["shape"]) for entry in header.values()))
        tensors = {name: _decoded(name, **entry) for name, entry in deserialize(content)}
    except WeightsError:
        raise
    except (SafetensorError, AttributeError, KeyError, OverflowError, RecursionError, TypeError, ValueError) as error:
        raise WeightsError(f"expected a safetensors file: {error}") from None
    return tensors, metadata


def _decoded(name: str, dtype: str, shape: list[int], data: bytes) -> np.ndarray:
    if name.endswith(MASKS):
        return np.frombuffer(data, np.uint8).reshape(shape if dtype in ("BOOL", "U8", "I8") else -1)
    if dtype == "BF16":  # the upper half of a float32
        return (np.frombuffer(data, "<u2").astype(np.uint32) << 16).view(np.float32).reshape(shape)
    if dtype not in _FLOATS:
        raise WeightsError(f"{name}: expected float32 (F32) or another type of floats, got {dtype}")
    return to_float32(name, np.frombuffer(data, _FLOATS[dtype]).reshape(shape))


# ---------------------------------------------------------------- npz


def _read_npz(content: bytes) -> dict[str, np.ndarray]:
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            members = archive.infolist()
            if not members or not all(member.filename.endswith(".npy") for member in members):
                raise zipfile.BadZipFile
            _check_bytes(sum(member.file_size for member in members))
            return {member.filename.removesuffix(".npy"): _read_npy(archive, member) for member in members}
    except WeightsError:
        raise
    except zipfile.BadZipFile:
        raise WeightsError(_ARCHIVE) from None
    except (zlib.error, NotImplementedError, EOFError, OSError, RuntimeError, ValueError) as error:
        raise WeightsError(f"expected an npz file: {error}") from None


def _read_npy(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> np.ndarray:
    """One array; its shape must be that of what is there, and it holds no Python objects."""
    with archive.open(member) as stream:
        version = np.lib.format.read_magic(stream)
        read_header: Any = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        if version not in read_header:
            raise WeightsError(f"{member.filename}: expected version 1 or 2 of the npy format, got {version}")
        shape, in_columns, dtype = read_header[version](stream)
        if dtype.hasobject:
            raise WeightsError(f"{member.filename}: expected an array of numbers, got Python objects, a pickle")
        data = stream.read(member.file_size)
    if math.prod(shape) * dtype.itemsize != len(data):
        raise WeightsError(f"{member.filename}: expected {list(shape)} of {dtype}, got {len(data):,} bytes")
    return np.frombuffer(data, dtype).reshape(shape, order="F" if in_columns else "C")
