"""A model under any mix of lossless edits is read as its original."""

import functools
import itertools
from dataclasses import replace

import numpy as np
import pytest
from cases import CASES, LENGTH, VOCAB
from hypothesis import given, settings
from hypothesis import strategies as st

from dataset_builder.sampler import sample_programs
from dataset_builder.splits import UP_TO_TEN
from trade_hf.candidates import lifted_programs
from trade_hf.circuit.chains import pair_up
from trade_hf.circuit.circuit import Circuit
from trade_hf.circuit.denoise import denoise, is_aligned
from trade_hf.circuit.realisation import NotTracrsError, realise
from trade_hf.compiled.compiler import compile_program
from trade_hf.compiled.transforms import EDITS, add_noise, compress, permute, readable_dimensions, rotate, skew
from trade_hf.decompiler import spelled
from trade_hf.rasp.canonical import canonicalise_spoken
from trade_hf.rasp.text import parse
from trade_hf.verification import PROVEN, verify

SAMPLES = list(itertools.islice(sample_programs("realisation", UP_TO_TEN), 20))
BASES = {"permute": permute, "rotate": rotate, "skew": skew, "skew by 1,000": functools.partial(skew, condition=1000.0)}


def read(weights):
    return next(lifted_programs(denoise(weights)))


def canonical(program, weights):
    return canonicalise_spoken(program, weights.input_vocab, weights.max_seq_len)


@settings(max_examples=15, deadline=None)
@given(
    number=st.integers(0, 19),
    seed=st.integers(0, 1000),
    edits=st.sets(st.sampled_from(EDITS)),
    basis=st.sampled_from(sorted(BASES)),
)
def test_a_model_is_read_as_its_original_under_any_mix_of_edits(number, seed, edits, basis):
    original = SAMPLES[number].compile()
    changed = BASES[basis](original, seed)
    for edit in sorted(edits, key=EDITS.index):
        changed = edit(changed, seed)
    own, found = (canonical(read(weights), original) for weights in (original, changed))
    if found != own:  # two programs that these edits make the same: none tells who is asked where all is selected
        verdict = verify(spelled(own, changed), changed)
        assert verify(spelled(found, changed), changed).status.strength >= verdict.status.strength


@pytest.mark.parametrize("edit", EDITS, ids=lambda edit: edit.__name__)
def test_each_edit_is_undone(samples, edit):
    for seed, sample in enumerate(samples[:10]):
        original = sample.compile()
        changed = edit(original, seed)
        assert read(changed) == read(original), sample.program


def test_what_is_read_of_a_compressed_and_edited_model_is_proven(samples):
    """As far as its own program is: rounding may have altered the model in single precision."""
    for seed, sample in enumerate(samples[:5]):
        changed = compress(skew(sample.compile(), seed), readable_dimensions(sample.compile()))
        for edit in EDITS:
            changed = edit(changed, seed)
        status = verify(spelled(read(changed), changed), changed).status
        assert status in PROVEN or status is verify(sample.program, changed).status, sample.program


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_model_in_tracrs_basis_with_other_scales_is_not_taken_for_tracrs(case):
    weights = compile_program(case.program, VOCAB, LENGTH)
    assert is_aligned(weights)
    for edit in EDITS:
        changed = edit(weights, 1)
        same = all(np.array_equal(tensor, weights.tensors[name]) for name, tensor in changed.tensors.items())
        assert is_aligned(changed) == (same and np.array_equal(changed.unembedding, weights.unembedding))


def test_a_noisy_model_is_left_to_others(samples):
    with pytest.raises(NotTracrsError, match="there is noise"):
        realise(noisy := add_noise(samples[0].compile(), 0.01, 0), Circuit.of(noisy))


def test_a_head_with_too_many_keys_is_not_tracrs(samples):
    """All that a head may compare are as many values as it has dimensions."""
    weights = next(weights for weights in (sample.compile() for sample in samples) if weights.key_size > 2)
    tensors = {
        name: np.random.RandomState(0).standard_normal(tensor.shape).astype(np.float32) if "attn" in name else tensor
        for name, tensor in weights.tensors.items()
        if not name.endswith("/b")
    } | {name: tensor for name, tensor in weights.tensors.items() if name.endswith("/b")}
    with pytest.raises(NotTracrsError):
        realise(other := replace(weights, tensors=tensors), Circuit.of(other))


def test_thresholds_closer_than_their_rise_are_told_apart():
    """Between 1/11 and 1/12, the two units of a threshold are farther apart than two thresholds are."""
    begins = np.array([0.0, -1.0, -0.8, -1.8, -1.7, -2.7])
    writes = np.array([[1.0], [-1.0], [1.0], [-1.0], [1.0], [-1.0]])
    pairs, rise = pair_up(begins, writes)
    assert pairs == [(0, 1), (2, 3), (4, 5)] and rise == pytest.approx(1.0)


def test_a_number_whose_one_reader_writes_nothing_is_a_number():
    """v5 is mapped to 4, whatever it is: what rounding leaves at its reader's steps does not make it a value."""
    program = parse("""
v1 = rasp.numerical(rasp.Map(lambda x: {0: 0, 1: 1, 2: 0, 3: 1, 4: 1}.get(x), rasp.tokens))
v2 = rasp.Select(rasp.indices, rasp.indices, rasp.Comparison.LEQ)
v3 = rasp.numerical(rasp.Aggregate(v2, v1, default=0))
v4 = rasp.Map(lambda x: {0.0: 3, 0.3333333333333333: 3, 0.5: 3, 1.0: 3}.get(x), v3)
v5 = rasp.numerical(rasp.Map(lambda x: {0.0: 1, 0.3333333333333333: 0, 0.5: 0, 1.0: 1}.get(x), v3))
v6 = rasp.Map(lambda x: {0.0: 0, 0.3333333333333333: 4, 0.5: 3, 1.0: 3}.get(x), v3)
v7 = rasp.Map(lambda x: {0.0: 2, 0.3333333333333333: 0, 0.5: 0, 1.0: 1}.get(x), v3)
v8 = rasp.SequenceMap(lambda x, y: x or y, v6, v4)
v9 = rasp.Map(lambda x: {0: 4, 1: 4}.get(x), v5, simplify=False)
v10 = rasp.SequenceMap(lambda x, y: y - x, v9, v8)
program = rasp.SequenceMap(lambda x, y: x + y, v10, v7)""")
    model = rotate(compile_program(program, VOCAB, 3), 392)
    assert verify(spelled(read(model), model), model).status in PROVEN
