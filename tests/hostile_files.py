"""Files that are no models, or models that cost too much: whoever serves others has to refuse them in words."""

import io
import json
import struct
import zipfile

import numpy as np

from trade_hf.compiled.weights import TracrWeights


def safetensors(header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def tensor(shape, *offsets):
    return {"dtype": "F32", "shape": shape, "data_offsets": list(offsets)}


def zip_bomb():
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("model.safetensors", bytes(50_000_000))
    return packed.getvalue()


HOSTILE = {
    "zip bomb": (zip_bomb(), "got a pickle or an archive, which is never opened"),
    "pickle": (b"\x80\x04K\x01.", "got a pickle or an archive"),
    "huge header": (struct.pack("<Q", 2**62) + b"{}", "got a header of 4,611,686,018,427,387,904 in 10 bytes"),
    "huge shape": (safetensors({"a": tensor([2**40], 0, 4)}, bytes(4)), "parameters; the limit is 50,000,000"),
    "shape past 64 bits": (safetensors({"a": tensor([2**63, 2**63], 0, 4)}, bytes(4)), "the limit is 50,000,000"),
    "empty and wide": (
        safetensors({"token_embed/embeddings": tensor([0, 2**40], 0, 0), "__metadata__": {"trade": "{}"}}),
        "expected Tracr's parameters",
    ),
    "overlapping": (safetensors({"a": tensor([2], 0, 8), "b": tensor([2], 4, 12)}, bytes(12)), "safetensors file"),
    "beyond the end": (safetensors({"a": tensor([100], 0, 400)}, bytes(8)), "expected a safetensors file"),
    "negative offset": (safetensors({"a": tensor([1], -4, 0)}, bytes(8)), "expected a safetensors file"),
    "negative shape": (safetensors({"a": tensor([-1], 0, 4)}, bytes(4)), "expected a safetensors file"),
    "deep header": (safetensors(b"[" * 100_000), "expected a safetensors file"),
    "no header": (b"", "expected a safetensors file"),
    "header is a list": (safetensors([]), "expected a safetensors file"),
    "no metadata": (safetensors({"a": tensor([1], 0, 4)}, bytes(4)), "expected Tracr's parameters"),
}


def noise(length, d_model=64, layers=8, heads=8, seed=0):
    """A model of random weights: each of its inputs costs much, and no program is found."""
    rng = np.random.RandomState(seed)
    tensors = {}
    for layer in range(layers):
        for name in ("attn/key", "attn/query", "attn/value", "attn/linear", "mlp/linear_1", "mlp/linear_2"):
            prefix = f"transformer/layer_{layer}/{name}"
            tensors[f"{prefix}/w"], tensors[f"{prefix}/b"] = rng.randn(d_model, d_model), rng.randn(d_model)
    tensors |= {
        "token_embed/embeddings": rng.randn(12, d_model),
        "pos_embed/embeddings": rng.randn(length + 1, d_model),
    }
    return TracrWeights(
        tensors={name: tensor.astype(np.float32) for name, tensor in tensors.items()},
        num_heads=heads,
        vocab=(*range(10), "compiler_bos", "compiler_pad"),
        max_seq_len=length,
        output_values=tuple(range(5)),
        unembedding=rng.randn(d_model, 5).astype(np.float32),
    )
