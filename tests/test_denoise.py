"""Noise is taken off where it can be told from the weights, and nothing else is changed."""

import numpy as np
import pytest
from cases import CASES, LENGTH, VOCAB

from trade_hf.compiled.compiler import compile_program
from trade_hf.compiled.denoise import denoise
from trade_hf.compiled.transforms import add_noise, permute, rotate
from trade_hf.decompiler import decompile


def test_models_without_noise_and_rotated_ones_stay_as_they_are(samples):
    for seed, sample in enumerate(samples[:20]):
        for weights in (sample.compile(), permute(sample.compile(), seed), rotate(sample.compile(), seed)):
            assert denoise(weights) is weights


@pytest.mark.parametrize("level", [1e-5, 1e-3])
def test_noise_is_taken_off(samples, level):
    for seed, sample in enumerate(samples[:20]):
        weights = permute(sample.compile(), seed)
        clean = denoise(add_noise(weights, level, seed))
        for name, tensor in weights.tensors.items():
            assert np.array_equal(clean.tensors[name] == 0, tensor == 0), name
            close = np.abs(clean.tensors[name] - tensor) <= 10 * level * np.sqrt((tensor**2).mean())
            assert close.all(), name
            assert (clean.tensors[name] == tensor).mean() > 0.9  # but for some thresholds


def test_a_noisy_model_is_decompiled_and_judged_as_it_is():
    """Its program is found at either level. With more noise five equal keys are no longer attended to alike."""
    case = next(case for case in CASES if case.name == "histogram")
    weights = compile_program(case.program, VOCAB, LENGTH)
    program = decompile(weights).program
    for level, verdict in ((1e-4, "equivalent on all 3,905 inputs"), (1e-3, "refuted by [2, 2, 2, 2, 2]")):
        result = decompile(add_noise(weights, level, seed=1))
        assert (result.program, str(result.verdict)) == (program, verdict)
