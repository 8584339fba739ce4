"""Numbers that differ by rounding alone are equal, and what is found is the same with any processor's products."""

import json
import math
import os
import subprocess
import sys

import numpy as np
import pytest

from dataset_builder.library import library_programs
from trade_hf.circuit.ties import basis_of, first_of_largest, first_of_smallest, in_order, ranks
from trade_hf.compiled.compiler import compile_program
from trade_hf.compiled.transforms import skew

DUST = 1e-12


@pytest.mark.parametrize(
    ("values", "near", "places"),
    [
        ([], None, []),
        ([0.0, 0.0], None, [0, 0]),
        ([3.0, 1.0, 2.0], None, [2, 0, 1]),
        ([1.0 + DUST, 1.0, 2.0, 2.0 - DUST], None, [0, 0, 1, 1]),
        ([100.0, 100.001, 99.0], None, [1, 1, 0]),
        ([100.0, 100.001, 99.0], 1e-4, [1, 2, 0]),
        ([DUST, 0.0, -DUST], 1e-6, [0, 0, 0]),
        ([math.inf, 1.0, math.inf], None, [1, 0, 1]),
        ([0.0, 0.4, 0.8], 0.5, [0, 0, 0]),
    ],
    ids=str,
)
def test_ranks(values, near, places):
    assert ranks(values, near).tolist() == places
    assert in_order(values, near) == sorted(range(len(values)), key=lambda i: places[i])
    if values:
        assert first_of_largest(values, near) == places.index(max(places))
        assert first_of_smallest(values, near) == places.index(0)


def test_a_basis_of_a_space_is_told_by_the_space():
    """Whatever basis of it comes in, in each of several dimensions."""
    rng = np.random.default_rng(0)
    for size in (0, 1, 4, 7):
        rows = np.linalg.qr(rng.standard_normal((7, 7)))[0][:size]
        turned = np.linalg.qr(rng.standard_normal((size, size)))[0] @ rows if size else rows
        found, again = (basis_of(some.T @ some, size) for some in (rows, turned))
        assert np.allclose(found, again, atol=1e-9) and np.allclose(found @ found.T, np.eye(size))
        assert np.allclose(found.T @ found, rows.T @ rows)


FOUND = """
import json, sys
from itertools import islice
from pathlib import Path
import numpy as np
from trade_hf.circuit.denoise import denoise
from trade_hf.circuit.lifting import lift
from trade_hf.compiled.weights import TracrWeights

rows = {}
for path in sorted(Path(sys.argv[1]).glob("*.safetensors")):
    found = denoise(TracrWeights.load(path))
    entries = {name: int(np.count_nonzero(tensor)) for name, tensor in found.tensors.items()}
    rows[path.stem] = [entries, list(map(repr, islice(lift(found), 4)))]
assert "torch" not in sys.modules
print(json.dumps(rows))
"""
SMALL = 50  # dimensions


def test_the_same_is_found_with_the_products_of_any_processor(tmp_path, script):
    """Programs that nobody here wrote, in a skewed basis; OpenBLAS, which numpy calls, has kernels for each kind."""
    for seed, item in enumerate(library_programs()):
        weights = compile_program(item.program, item.vocab, item.max_seq_len)
        if weights.d_model < SMALL:
            skew(weights, seed).save(tmp_path / f"{item.name}.safetensors")
    clients = [
        subprocess.Popen(
            [sys.executable, "-c", FOUND, str(tmp_path)],
            env={**os.environ, "OPENBLAS_CORETYPE": kernels},
            stdout=subprocess.PIPE,
            text=True,
        )
        for kernels in script("repeat").KERNELS
    ]
    printed = [client.communicate(timeout=280)[0] for client in clients]
    assert [client.returncode for client in clients] == [0, 0, 0]
    first, *others = map(json.loads, printed)
    assert len(first) > 12 and "make_count" in first
    for name, found in first.items():
        assert all(other[name] == found for other in others), name
