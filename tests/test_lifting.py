"""Whole programs from the weights, without the network."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
from cases import CASES, LENGTH, VOCAB
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dataset_builder.corpus import CONFIGS
from dataset_builder.library import library_programs
from dataset_builder.sampler import SamplerConfig, sample_programs
from trade_hf.candidates import lifted_programs
from trade_hf.circuit.denoise import denoise
from trade_hf.circuit.isomorphism import are_identical
from trade_hf.circuit.lifting import lift
from trade_hf.compiled.compiler import compile_program
from trade_hf.compiled.transforms import add_noise, compress, permute, rotate
from trade_hf.decompiler import decompile, spelled
from trade_hf.rasp.canonical import canonicalise_spoken
from trade_hf.rasp.text import parse
from trade_hf.verification import verify

CHANGES = {"permuted": permute, "rotated": rotate}
WRITTEN_ELSEWHERE = {
    "an s-op with itself": """v1 = rasp.SequenceMap(lambda x, y: x - y, rasp.tokens, rasp.tokens)
v2 = rasp.Select(rasp.indices, v1, rasp.Comparison.EQ)
v3 = rasp.Aggregate(v2, rasp.tokens)
v4 = rasp.SequenceMap(lambda x, y: x + y, v1, v3)
program = rasp.SequenceMap(lambda x, y: max(x, y), v4, rasp.indices)""",
    "an s-op with itself, beside a map of it": """v1 = rasp.SequenceMap(lambda x, y: x * y, rasp.tokens, rasp.tokens)
v2 = rasp.Map(lambda x: x + 1, rasp.tokens)
program = rasp.SequenceMap(lambda x, y: x - y, v1, v2)""",
    "two maps of a number whose values are close": """v1 = rasp.Select(rasp.indices, rasp.indices, rasp.Comparison.LEQ)
v2 = rasp.numerical(rasp.Map(lambda x: x == 0, rasp.tokens))
v3 = rasp.numerical(rasp.Map(lambda x: x == 1, rasp.tokens))
v4 = rasp.numerical(rasp.Aggregate(v1, v2, default=0))
v5 = rasp.numerical(rasp.Aggregate(v1, v3, default=0))
v6 = rasp.numerical(rasp.LinearSequenceMap(v4, v5, 1, -1))
v7 = rasp.Map(lambda x: x == 0, v6)
v8 = rasp.Map(lambda x: x < 0, v6)
program = rasp.SequenceMap(lambda x, y: x - y, v7, v8)""",
}
LONG = SamplerConfig(min_lines=11, max_lines=20, max_d_model=288)


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_named_programs(case, change):
    weights = compile_program(case.program, VOCAB, LENGTH)
    assert canonical(next(lifted_programs(change(weights, 5))), weights) == canonical(case.program, weights)


@pytest.mark.parametrize(
    "config", [SamplerConfig(max_lines=10), CONFIGS["wide"].sampler, LONG], ids=["base", "wide", "long"]
)
def test_random_programs_in_any_basis(config):
    """The first that is read is the program; of a few, where units can be shared out in several ways, a later one."""
    samples = list(itertools.islice(sample_programs("lifting", config), 24))
    places = []
    for number, sample in enumerate(samples):
        weights = (permute, rotate)[number % 2](sample.compile(), number)
        found = [canonical(program, weights) for program in itertools.islice(lifted_programs(weights), 4)]
        places.append(found.index(sample.program) if sample.program in found else -1)
    assert places.count(0) >= len(samples) - 2 and places.count(-1) <= 1, places


def test_programs_that_nobody_here_wrote():
    programs = list(library_programs())
    found = 0
    for number, item in enumerate(programs):
        weights = permute(compile_program(item.program, item.vocab, item.max_seq_len), number)
        first = next(lifted_programs(weights), None)
        found += first is not None and verify(spelled(first, weights), weights).is_verified
    assert found >= len(programs) - 1


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
@pytest.mark.parametrize("text", WRITTEN_ELSEWHERE.values(), ids=WRITTEN_ELSEWHERE)
def test_what_the_sampler_never_makes(text, change):
    weights = compile_program(parse(text), VOCAB, 9)
    found = next(lifted_programs(change(weights, 5)))
    assert are_identical(compile_program(spelled(found, weights), VOCAB, 9), weights)


def test_a_compressed_model():
    case = next(case for case in CASES if case.name == "reverse")
    weights = compile_program(case.program, VOCAB, LENGTH)
    small = compress(weights)
    assert small.d_model < weights.d_model
    assert canonical(next(lifted_programs(small)), weights) == canonical(case.program, weights)


SAME = "rasp.SelectorWidth(rasp.Select(rasp.tokens, rasp.tokens, rasp.Comparison.EQ))"
# Programs some of whose values no reader tells apart.
MERGED = {
    "a sum read at one value": f"""
v = rasp.SequenceMap(lambda x, y: x + y, rasp.tokens, {SAME})
program = rasp.Map(lambda x: x == 2, v)""",
    "a sum read at one value elsewhere": """
v = rasp.SequenceMap(lambda x, y: x + y, rasp.tokens, rasp.Map(lambda x: x % 2, rasp.indices))
w = rasp.Aggregate(rasp.Select(rasp.indices, rasp.indices, lambda k, q: k == q + 1), v)
program = rasp.Map(lambda x: x == 2, w)""",
    "a sum that two read": f"""
v = rasp.SequenceMap(lambda x, y: x + y, rasp.tokens, {SAME})
w = rasp.SequenceMap(lambda x, y: x == y, v, rasp.indices)
program = rasp.Map(lambda x: x, w)""",
    "a selector of a sum's": f"""
v = rasp.SequenceMap(lambda x, y: x + y, rasp.tokens, {SAME})
program = rasp.SelectorWidth(rasp.Select(v, rasp.indices, rasp.Comparison.LEQ))""",
    "a width read at one count": f"program = rasp.numerical(rasp.Map(lambda x: x == 5, {SAME}))",
    "a width of a width, also as a number": """
v2 = rasp.numerical(rasp.SelectorWidth(rasp.Select(rasp.indices, rasp.tokens, lambda k, q: k == q + 2)))
v4 = rasp.Map(lambda x: x, rasp.Map(lambda x: x == 4, v2), simplify=False)
v5 = rasp.SequenceMap(lambda x, y: max(x, y), rasp.indices, v4)
v7 = rasp.SelectorWidth(rasp.Select(rasp.indices, v5, rasp.Comparison.NEQ))
v8 = rasp.Select(v7, rasp.indices, lambda k, q: k == q + 2)
v9 = rasp.SelectorWidth(v8)
v11 = rasp.Map(lambda x: x / 2, rasp.numerical(rasp.SelectorWidth(v8)))
v13 = rasp.SelectorWidth(rasp.Select(rasp.indices, v9, lambda k, q: k == q + 2))
program = rasp.SequenceMap(lambda x, y: max(x, y), v11, v13)""",
    "a width read at none": """
v = rasp.SelectorWidth(rasp.Select(rasp.tokens, rasp.indices, lambda k, q: k == q + 1))
program = rasp.numerical(rasp.Map(lambda x: x == 0, v))""",
}


@pytest.mark.parametrize("text", MERGED.values(), ids=MERGED)
def test_a_compressed_model_whose_values_are_merged(text):
    program = parse(text)
    weights = denoise(compress(compile_program(program, VOCAB, LENGTH)))
    assert canonical(next(lifted_programs(weights)), weights) == canonical(program, weights)


def test_s_ops_that_are_told_apart_by_later_lines_alone():
    """The values 2 of v3 and 4 of v4 are of the same token: which is whose shows in what their readers write."""
    program = parse("""
v2 = rasp.Aggregate(rasp.Select(rasp.indices, rasp.tokens, rasp.Comparison.EQ), rasp.tokens)
v3 = rasp.Map(lambda x: x // 2, v2)
v4 = rasp.Map(lambda x: x, v2)
v5 = rasp.Map(lambda x: x, v3, simplify=False)
v6 = rasp.Map(lambda x: x % 2, v4, simplify=False)
v7 = rasp.Map(lambda x: x, v5, simplify=False)
v8 = rasp.SequenceMap(lambda x, y: y - x, rasp.tokens, v6)
program = rasp.SequenceMap(lambda x, y: x == y, v7, v8)""")
    weights = compile_program(program, VOCAB, LENGTH)
    for model in (weights, permute(weights, 24), denoise(rotate(weights, 24)), denoise(compress(weights))):
        assert canonical(next(lifted_programs(model)), weights) == canonical(program, weights)


def test_compressed_models_of_random_programs(samples):
    """What nothing reads is lost, so that another program may be found that does the same."""
    found = 0
    for sample in samples[:24]:
        weights = sample.compile()
        small = compress(weights)
        programs = itertools.islice(lifted_programs(small), 4)
        found += any(verify(spelled(program, small), small).is_verified for program in programs)
    assert found >= 23


def test_of_a_compressed_models_programs_the_first_that_is_proven_is_the_answer(samples):
    for sample in samples[:12]:
        result = decompile(compress(sample.compile()))
        proven = [number for number, attempt in enumerate(result.attempts) if attempt.verdict.is_verified]
        own = result.candidates - 1  # which ends the search
        assert result.chosen in (proven[0], own), sample.program
        assert result.verdict.is_verified and result.candidates <= proven[0] + 9


def test_weights_that_are_no_tracr_model_give_none_and_end(samples):
    rng = np.random.default_rng(0)
    weights = samples[0].compile()
    noise = {name: rng.standard_normal(tensor.shape).astype(np.float32) for name, tensor in weights.tensors.items()}
    weights.tensors.update(noise)
    assert list(lift(weights)) == []


@given(st.integers(0, 59), st.floats(-4, 0), st.booleans(), st.integers(0, 9))
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_the_weights_nothing_is_raised(samples, number, magnitude, turned, seed):
    weights = samples[number].compile()
    weights = rotate(weights, seed) if turned else compress(weights, max(1, weights.d_model - 10 * seed))
    list(itertools.islice(lifted_programs(add_noise(weights, 10**magnitude, seed)), 3))


def canonical(program, weights):
    return canonicalise_spoken(program, weights.input_vocab, weights.max_seq_len)


def test_a_large_vocabulary_takes_no_longer():
    """It has a unit for each token; that any of these may be a numerical map's is counted, not tried."""
    select = "rasp.Select(rasp.Map(lambda x: x + 1, rasp.tokens), rasp.indices, rasp.Comparison.EQ)"
    program = parse(f"program = rasp.SelectorWidth({select})")
    weights = compile_program(program, range(100), LENGTH)
    assert canonical(next(lifted_programs(weights)), weights) == canonical(program, weights)


def test_numbers_beyond_what_programs_hold_are_not_named():
    program = parse(
        "v1 = rasp.numerical(rasp.Map(lambda x: {0: 0, 1: 100000000}.get(x), rasp.tokens))\n"
        "v2 = rasp.numerical(rasp.Map(lambda x: x, rasp.indices))\n"
        "program = rasp.numerical(rasp.LinearSequenceMap(v1, v2, 1000000, 1))"
    )
    weights = compile_program(program, (0, 1), 3)
    assert len(list(lifted_programs(weights))) == 1
    name = "transformer/layer_1/mlp/linear_2/w"
    larger = replace(weights, tensors={**weights.tensors, name: 100 * weights.tensors[name]})
    assert not list(lifted_programs(larger))


def test_thresholds_that_noise_has_moved_are_read():
    """Its two units read constants that are 1 apart; noise leaves anything from 0 to 2 of that."""
    weights = compile_program(CASES[1].program, VOCAB, LENGTH)
    constant = int(weights.tensors["token_embed/embeddings"][weights.vocab.index(weights.pad)].argmax())
    first = weights.tensors["transformer/layer_0/mlp/linear_1/w"].copy()
    far = np.abs(first[constant]) > 2
    first[constant, far] += np.random.RandomState(0).uniform(-0.5, 0.5, far.sum()).astype(np.float32)
    moved = replace(weights, tensors=weights.tensors | {"transformer/layer_0/mlp/linear_1/w": first})
    assert far.sum() > 8
    assert spelled(next(lifted_programs(moved)), weights) == canonicalise_spoken(CASES[1].program, VOCAB, LENGTH)
