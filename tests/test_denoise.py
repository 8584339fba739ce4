"""Tracr's basis is found again, noise is taken off where it can be told, and nothing else is changed."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
from cases import CASES, LENGTH, VOCAB

from dataset_builder import corpus
from dataset_builder.library import library_programs
from dataset_builder.sampler import sample_programs
from dataset_builder.splits import LONG, UP_TO_TEN
from trade_hf.circuit.alignment import align
from trade_hf.circuit.denoise import denoise, is_aligned
from trade_hf.circuit.isomorphism import are_identical
from trade_hf.compiled.compiler import compile_program
from trade_hf.compiled.transforms import add_noise, permute, rotate, skew
from trade_hf.decompiler import decompile
from trade_hf.provenance import confirm, provenance
from trade_hf.verification import Status

CONFIGS = {
    "base": UP_TO_TEN,
    "wide": corpus.CONFIGS["wide"].sampler,
    "long": LONG,
}


def test_models_in_tracrs_basis_stay_as_they_are(samples):
    for seed, sample in enumerate(samples[:20]):
        for weights in (sample.compile(), permute(sample.compile(), seed)):
            assert denoise(weights) is weights


def same_up_to_signs(first, second, tolerance):
    """Whether tensors hold the same entries, but for the signs of numbers' directions."""
    return all(
        np.allclose(np.sort(np.abs(first.tensors[name]), None), np.sort(np.abs(tensor), None), atol=tolerance)
        for name, tensor in second.tensors.items()
    )


@pytest.mark.parametrize("turn", [rotate, skew])
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_tracrs_basis_is_found_again(config, turn):
    identical = 0
    for seed, sample in enumerate(itertools.islice(sample_programs("alignment", config), 20)):
        weights = sample.compile()
        found = denoise(turn(weights, seed))
        assert is_aligned(found) and same_up_to_signs(found, weights, 0.01), sample.program
        identical += are_identical(found, weights)
    assert identical >= 10  # the others have thresholds that rounding moved, or a number whose sign no reader tells


@pytest.mark.parametrize("turn", [rotate, skew])
def test_tracrs_basis_is_found_in_programs_that_nobody_here_wrote(turn):
    for seed, item in enumerate(library_programs()):
        weights = compile_program(item.program, item.vocab, item.max_seq_len)
        assert same_up_to_signs(denoise(turn(weights, seed)), weights, 0.01), item.name


def test_models_in_any_basis_are_decompiled_and_each_line_is_found_in_them(samples):
    for seed, sample in enumerate(samples[:8]):
        given = skew(sample.compile(), seed)
        result = decompile(given)
        assert result.verdict.is_verified, sample.program
        origins = provenance(result.program, given)
        assert [origin.line for origin in origins] == list(result.program.live_lines)
        assert all(confirm(result.program, given, origins)), sample.program


def scrambled(weights):
    rng = np.random.default_rng(0)
    tensors = {name: rng.standard_normal(tensor.shape, np.float32) for name, tensor in weights.tensors.items()}
    return replace(weights, tensors=tensors, residual_labels=())


@pytest.mark.parametrize(
    "change",
    [
        scrambled,
        lambda w: add_noise(rotate(w, 1), 1, 1),
    ],
    ids=["not Tracr's", "too much noise"],
)
def test_where_no_such_basis_is_found_the_model_stays_as_it_is(change, samples):
    weights = change(samples[0].compile())
    assert align(weights) is weights and denoise(weights) is weights


@pytest.mark.parametrize("change", [permute, rotate])
@pytest.mark.parametrize("level", [1e-5, 1e-3])
def test_noise_is_taken_off(samples, level, change):
    for seed, sample in enumerate(samples[:20]):
        weights = sample.compile()
        found = denoise(add_noise(change(weights, seed), level, seed))
        for name, tensor in weights.tensors.items():
            assert np.count_nonzero(found.tensors[name]) == np.count_nonzero(tensor), name
            one, other = (np.sort(np.abs(some), None) for some in (found.tensors[name], tensor))
            assert np.abs(one - other).max() <= 10 * level * np.sqrt((tensor**2).mean()), name
            assert (one == other).mean() > 0.9  # but for some thresholds


def test_a_noisy_model_is_decompiled_and_judged_as_it_is():
    """Its program is found at either level. With more noise five equal keys are no longer attended to alike."""
    case = next(case for case in CASES if case.name == "histogram")
    weights = compile_program(case.program, VOCAB, LENGTH)
    program = decompile(weights).program
    for level, verdict in ((1e-4, "equivalent on all 3,905 inputs"), (1e-3, "refuted by [2, 2, 2, 2, 2]")):
        result = decompile(add_noise(weights, level, seed=1))
        assert (result.program, str(result.verdict)) == (program, verdict)


def test_a_noisy_models_program_is_in_canonical_form_though_noise_refutes_it():
    sample = next(itertools.islice(sample_programs(5, UP_TO_TEN), 8, None))
    result = decompile(add_noise(permute(sample.compile(), 8), 0.001, 8))
    assert result.status is Status.REFUTED  # noise leaves no exact None
    assert result.program == sample.program
