"""Verdicts: proofs where there are any, counterexamples that hold, never a wrong "equivalent"."""

import itertools
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from cases import CASES, LENGTH, VOCAB

from dataset_builder.corpus import CONFIGS
from dataset_builder.mutants import mutants
from dataset_builder.sampler import Draw, sample_programs
from trade_hf.circuit.comparison import are_alike
from trade_hf.compiled.compiler import compile_program
from trade_hf.compiled.faithful import may_depart
from trade_hf.compiled.forward import run
from trade_hf.compiled.transforms import add_noise, permute, rotate, skew
from trade_hf.limits import Limits
from trade_hf.rasp.canonical import canonicalise
from trade_hf.rasp.evaluate import all_inputs, count_inputs, evaluate, random_inputs
from trade_hf.rasp.reference import answer
from trade_hf.rasp.tables import UnsupportedError, tabulate
from trade_hf.rasp.text import parse
from trade_hf.verification import (
    TOLERANCE,
    Status,
    Verifier,
    steps_of_input,
    verify,
    verify_programs,
    verify_weights,
)


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_a_program_agrees_with_its_weights_in_any_basis(case):
    weights = compile_program(case.program, VOCAB, LENGTH)
    assert verify(case.program, weights).status is Status.IDENTICAL
    assert verify(case.program, permute(weights, 3)).status is Status.IDENTICAL
    rotated = verify(case.program, rotate(weights, 3))
    assert str(rotated) == "equivalent on all 3,905 inputs" and rotated.is_verified


def test_refutations_show_an_input_that_differs():
    reverse = next(case for case in CASES if case.name == "reverse").program
    weights = compile_program(reverse, VOCAB, LENGTH)
    other = next(case for case in CASES if case.name.startswith("sort")).program
    verdict = verify(other, weights)
    assert verdict.status is Status.REFUTED and verdict.expected != verdict.got
    assert str(verdict) == f"refuted by {list(verdict.counterexample)}"
    assert not verdict.is_verified


@pytest.mark.parametrize("token", VOCAB)
def test_one_differing_input_is_found(token):
    """Two programs that differ on a single input of 3,905."""
    select = f"rasp.Select(rasp.tokens, rasp.indices, lambda k, q: (k, q) in [({token}, 0)])"
    head = f"v1 = {select}\nv2 = rasp.SelectorWidth(v1)\n"
    first = parse(head + "program = rasp.Map(lambda x: {5: 1, 0: 0, 1: 0, 2: 0, 3: 0, 4: 0}.get(x), v2)")
    second = parse(head + "program = rasp.Map(lambda x: {5: 0, 0: 0, 1: 1, 2: 0, 3: 0, 4: 0}.get(x), v2)")
    third = parse(head + "program = rasp.Map(lambda x: {5: 0, 0: 0, 1: 0, 2: 0, 3: 0, 4: 0}.get(x), v2)")
    weights = compile_program(first, VOCAB, LENGTH)
    assert verify(second, weights).status is Status.REFUTED
    verdict = verify(third, weights)
    assert verdict.status is Status.REFUTED and verdict.counterexample == (token,) * 5


STEPS = "program = rasp.numerical(rasp.Map(lambda x: {{0: 0, 1: {0}, 2: {1}, 3: 0, 4: 0}}.get(x), rasp.tokens))"
FIRST_ZERO = """v1 = rasp.Map(lambda x: x == 0, rasp.indices)
v2 = rasp.SequenceMap(lambda x, y: x and y, v1, rasp.Map(lambda x: x == 0, rasp.tokens))
v3 = rasp.numerical(rasp.Map(lambda x: x, v2))
program = rasp.numerical(rasp.Aggregate(rasp.Select({}), v3, default=0))"""
CLOSE = {
    "numbers 0.02 apart": (STEPS.format(0, 0), STEPS.format(0.01, 0.02)),
    "a fifth and a quarter": (
        FIRST_ZERO.format("rasp.indices, rasp.indices, rasp.Comparison.TRUE"),
        FIRST_ZERO.format(
            "rasp.Map(lambda x: x < 4, rasp.indices), rasp.indices, "
            "lambda k, q: (k, q) in [(True, 0), (True, 1), (True, 2), (True, 3), (True, 4)]"
        ),
    ),
}


@pytest.mark.parametrize("codes", CLOSE.values(), ids=CLOSE)
def test_numbers_that_are_close_are_not_the_same(codes):
    first, second = map(parse, codes)
    weights = compile_program(second, VOCAB, LENGTH)
    for verdict in (
        verify_programs(first, second, VOCAB, LENGTH),
        verify(first, weights),
        verify(first, rotate(weights, 1)),
        verify_weights(compile_program(first, VOCAB, LENGTH), weights),
    ):
        assert verdict.status is Status.REFUTED


def test_what_wide_heads_leave_on_bos_belongs_to_the_program():
    """151 keys: the softmax of a query that selects none leaves 0.065 of an average there."""
    pairs, triples = (
        ", ".join(f"({a}, {b}): {n * a + b}" for a in range(m) for b in range(n)) for m, n in ((5, 5), (25, 6))
    )
    program = parse(f"""v1 = rasp.SequenceMap(lambda x, y: {{{pairs}}}.get((x, y)), rasp.tokens, rasp.indices)
v2 = rasp.SelectorWidth(rasp.Select(rasp.tokens, rasp.tokens, rasp.Comparison.EQ))
v3 = rasp.SequenceMap(lambda x, y: {{{triples}}}.get((x, y)), v1, v2)
v4 = rasp.numerical(rasp.Map(lambda x: x > 0, rasp.tokens))
program = rasp.numerical(rasp.Aggregate(rasp.Select(v3, v3, rasp.Comparison.FALSE), v4, default=0))""")
    weights = compile_program(program, VOCAB, LENGTH)
    assert weights.key_size > 150
    assert verify(program, rotate(weights, 1)).is_verified


def test_mutants_are_judged_as_brute_force_judges_them(samples):
    draw, seen = Draw("verify"), set()
    inputs = all_inputs(len(VOCAB), LENGTH)
    for sample in samples[:12]:
        weights = compile_program(sample.program, sample.vocab, sample.max_seq_len)
        truth = evaluate(sample.program, inputs, sample.vocab, sample.max_seq_len)
        for mutant in itertools.islice(mutants(sample.program, draw), 3):
            try:
                verdict = verify(mutant, weights)
                meant = evaluate(mutant, inputs, sample.vocab, sample.max_seq_len)
            except UnsupportedError:
                continue
            seen.add(verdict.status)
            if (meant.values is None) != (truth.values is None):
                assert verdict.status is Status.REFUTED
                continue
            valid = meant.valid & truth.valid
            agree = all(
                meant.decode(r) == pytest.approx(truth.decode(r), nan_ok=True)
                if meant.values is None
                else meant.decode(r) == truth.decode(r)
                for r in np.flatnonzero(valid)[::3]
            )
            if verdict.is_verified:
                assert agree
            elif agree and meant.valid.all() and truth.valid.all():
                assert verdict.counterexample is not None
    assert Status.REFUTED in seen


def test_above_the_limit_a_sample_is_taken_and_said_so():
    weights = add_noise(rotate(compile_program(CASES[1].program, VOCAB, LENGTH), 1), 3e-4, 1)
    verdict = verify(CASES[1].program, weights, limit=100, samples=1_000)
    assert verdict.status is Status.AGREES and not verdict.is_verified
    assert str(verdict) == "agrees on 1,000 of 3,905 inputs"
    # All 155 inputs of up to 3 tokens, 845 of the others: no difference seen, so at most 0.35 % of these differ.
    assert verdict.bound == pytest.approx((1 - 0.05 ** (1 / 845)) * 3750 / 3905)


def test_more_inputs_than_memory_holds_are_refused():
    weights = compile_program(CASES[1].program, VOCAB, 20)
    with pytest.raises(ValueError, match="expected at most 5,000,000 inputs of 20 tokens, got 1,000,000,000"):
        verify(CASES[1].program, weights, limit=1, samples=10**9)


@pytest.mark.parametrize("turn", [rotate, skew])
def test_weights_in_another_basis_are_told_from_all_others(samples, turn):
    """Above the limit; with two inputs run, most mutants agree."""
    found: Counter = Counter()
    draw, mutants_agree = Draw("turned"), 0
    for seed, sample in enumerate(samples[:20]):
        weights = turn(sample.compile(), seed)
        verdict = verify(sample.spelled, weights, limit=1, samples=2)
        found[verdict.status] += 1
        for mutant in itertools.islice(mutants(sample.program, draw), 5):
            try:
                same = canonicalise(mutant, VOCAB, LENGTH) == sample.program
                verdict = verify(mutant, weights, limit=1, samples=2)
            except UnsupportedError:
                continue
            mutants_agree += verdict.status is not Status.REFUTED
            assert same or not verdict.is_verified or verify(mutant, sample.compile()).is_verified
    # Rounding in single precision is bounded for most; a numerical output or two is too near its tolerance.
    assert found[Status.SAME_IN_ANOTHER_BASIS] >= 10 and mutants_agree > 5
    assert found[Status.SAME_IN_ANOTHER_BASIS] + found[Status.EQUIVALENT_IN_ONE_PRECISION] >= 18


def with_larger_heads(weights, size):
    """The same matrices, with columns of zeros; attention is divided by the root of the size."""
    tensors = dict(weights.tensors)
    for name, tensor in weights.tensors.items():
        if "/attn/" in name and not name.endswith("linear/b"):
            axis = 0 if name.endswith("linear/w") else -1
            heads = np.split(tensor, weights.num_heads, axis)
            padding = [(0, 0)] * tensor.ndim
            padding[axis] = (0, size - weights.key_size)
            tensors[name] = np.concatenate([np.pad(head, padding) for head in heads], axis)
    return replace(weights, tensors=tensors)


@pytest.mark.parametrize("size", [64, 256])
def test_larger_heads_are_not_identical(size):
    fractions = next(case for case in CASES if "frac" in case.name).program
    weights = compile_program(fractions, VOCAB, LENGTH)
    larger = with_larger_heads(weights, size)
    assert larger.key_size == size
    given = [run(model, all_inputs(len(VOCAB), LENGTH)).codes for model in (weights, larger)]
    differ = (np.abs(given[0] - given[1]) > TOLERANCE).any()
    for verdict in (verify(fractions, larger), verify_weights(weights, larger)):
        assert verdict.status is (Status.REFUTED if differ else Status.EQUIVALENT)


REVERSE = next(case for case in CASES if case.name == "reverse").program


@pytest.mark.parametrize(
    ("inputs", "seconds", "status", "checked"),
    [
        (87_380, None, Status.EQUIVALENT, 87_380),
        (87_380, 600, Status.EQUIVALENT, 87_380),
        (87_379, None, Status.EQUIVALENT_IN_ONE_PRECISION, 10_000),
        (9_999, None, Status.EQUIVALENT_IN_ONE_PRECISION, 1_000),
        (-1, None, Status.EQUIVALENT_IN_ONE_PRECISION, 1_000),
        (87_380, 0, Status.EQUIVALENT_IN_ONE_PRECISION, 256),
    ],
)
def test_what_takes_more_than_the_limits_is_compared_on_a_sample(inputs, seconds, status, checked):
    """Steps for so many inputs, and so many seconds."""
    turned = rotate(compile_program(REVERSE, VOCAB[:4], 8), 0)
    limits = Limits((inputs + 0.5) * steps_of_input(turned), seconds)
    verdict = Verifier(turned, limits=limits).verify(REVERSE)
    assert (verdict.status, verdict.checked, verdict.inputs) == (status, checked, 87_380)


def test_a_smaller_sample_bounds_less():
    once = parse("program = rasp.Map(lambda x: x + 1, rasp.tokens)")
    twice = parse(
        "v1 = rasp.Map(lambda x: x + 2, rasp.tokens)\nprogram = rasp.Map(lambda x: x - 1, v1, simplify=False)"
    )
    given = compile_program(twice, VOCAB, 9)
    limits = (Limits(seconds=0), Limits(steps=0), Limits())
    verdicts = [Verifier(given, limits=some).verify(once) for some in limits]
    assert [(v.status, v.checked) for v in verdicts] == [(Status.AGREES, n) for n in (256, 1_000, 10_000)]
    bounds = [v.bound for v in verdicts]
    assert sorted(bounds, reverse=True) == bounds and len({*bounds}) == 3


def test_counterexamples_of_a_sample_are_made_short():
    first = parse("v1 = rasp.Select(rasp.tokens, rasp.tokens, rasp.Comparison.EQ)\nprogram = rasp.SelectorWidth(v1)")
    second = parse("v1 = rasp.Select(rasp.tokens, rasp.tokens, rasp.Comparison.TRUE)\nprogram = rasp.SelectorWidth(v1)")
    verdict = verify_programs(first, second, VOCAB, 12, samples=1_000)
    assert len(set(verdict.counterexample)) == 2 == len(verdict.counterexample)  # two different tokens are enough
    assert verdict.expected == (1, 1) and verdict.got == (2, 2)


def test_programs_with_programs_and_models_with_models(samples):
    for first, second in itertools.pairwise(samples[:10]):
        domain = (first.vocab, first.max_seq_len)
        same = verify_programs(first.program, first.program, *domain)
        assert same.status is Status.EQUIVALENT and same.checked == same.inputs
        models = [compile_program(sample.program, *domain) for sample in (first, second)]
        assert verify_weights(models[0], rotate(models[0], 1)).status is Status.EQUIVALENT
        assert verify_weights(models[0], permute(models[0], 1)).status is Status.IDENTICAL
        verdicts = verify_programs(first.program, second.program, *domain), verify(first.program, models[1])
        assert verdicts[0].is_verified == verdicts[1].is_verified == verify_weights(*models).is_verified
    other = compile_program(samples[0].program, (0, 1, 2, 3, 4, 5), 5)
    with pytest.raises(ValueError, match="expected two models over one vocabulary"):
        verify_weights(models[0], other)


@pytest.mark.parametrize(
    ("number", "other", "alike"),
    [
        (1.0, 1.0009, True),
        (1.0, 1.0011, False),
        (300.0, 300.0029, True),
        (300.0, 300.0031, False),
        (2.0e6, 2.0e6 + 0.009, True),
        (2.0e6, 2.0e6 + 1, False),
        (np.inf, np.inf, False),
        (np.nan, np.nan, False),
    ],
)
def test_numbers_are_alike_in_proportion_to_their_size_and_never_whole_ones(number, other, alike):
    assert are_alike(number, other) == are_alike(-number, -other) == alike


def test_programs_that_do_not_fit_are_refuted_with_a_reason():
    weights = compile_program(CASES[1].program, VOCAB, LENGTH)
    numerical = next(case for case in CASES if case.name.startswith("fraction")).program
    assert "numerical" in str(verify(numerical, weights))
    indices_only = parse("program = rasp.Map(lambda x: x + 1, rasp.indices)")
    assert "must read tokens" in str(verify(indices_only, weights))
    many, plus = tuple(range(120)), "v1 = rasp.Map(lambda x: x + 1, rasp.tokens)\n"
    large = parse(f"{plus}program = rasp.SequenceMap(lambda x, y: x * y, rasp.tokens, v1)")
    weights = compile_program(parse(f"{plus}program = v1"), many, LENGTH)
    assert "parameters; the limit is" in str(verify(large, weights))


def test_inputs_are_listed_completely():
    assert count_inputs(5, 5) == 3905 == len(np.unique(all_inputs(5, 5), axis=0))
    drawn = random_inputs(5, 5, 2000, 0)
    assert np.array_equal(drawn, random_inputs(5, 5, 2000, 0))
    lengths = (drawn >= 0).sum(1)
    assert (lengths == 5).mean() == pytest.approx(3125 / 3905, abs=0.05) and lengths.min() >= 1


# Programs whose compiled models depart from RASP at BOS: a map of a number is on there, two widths of a layer clean it
# twice. What is compared with a model is then what Tracr makes of the program.
DEPARTING = {
    "two widths in one layer": """v1 = rasp.Select(rasp.indices, rasp.tokens, lambda k, q: k == q + 2)
v2 = rasp.SelectorWidth(v1)
v3 = rasp.Select(rasp.indices, rasp.indices, lambda k, q: q == k + 2)
v4 = rasp.SelectorWidth(v3)
v5 = rasp.Select(v2, v4, rasp.Comparison.GEQ)
program = rasp.numerical(rasp.SelectorWidth(v5))""",
    "a map of a number that is moved": """v1 = rasp.Select(rasp.tokens, rasp.indices, lambda k, q: q == k + 2)
v2 = rasp.numerical(rasp.SelectorWidth(v1))
v3 = rasp.numerical(rasp.Map(lambda x: x == 0, v2))
v4 = rasp.Select(rasp.indices, rasp.tokens, lambda k, q: k == q + 1)
program = rasp.numerical(rasp.Aggregate(v4, v3, default=0))""",
}


@pytest.mark.parametrize("text", DEPARTING.values(), ids=DEPARTING)
def test_where_tracr_departs_from_rasp(text):
    program = parse(text)
    weights = compile_program(program, VOCAB, LENGTH)
    inputs = all_inputs(len(VOCAB), LENGTH)
    meant, given = evaluate(program, inputs, VOCAB, LENGTH), run(weights, inputs)
    assert may_depart(tabulate(program, VOCAB, LENGTH))
    assert not np.allclose(meant.codes[meant.real], given.codes[meant.real], atol=0.1)
    for verdict in (verify(program, weights), verify(program, rotate(weights, 1))):
        assert verdict.is_verified and "; RASP itself gives another answer than Tracr's model on" in str(verdict)
        assert verdict.departure.expected == tuple(answer(program, verdict.departure.first))
        assert verdict.departure.got != verdict.departure.expected


def test_sampled_programs_do_not_depart(samples):
    """But for what the screen's inputs do not show: all that can read BOS there is refused."""
    wide = itertools.islice(sample_programs("depart", CONFIGS["wide"].sampler), 10)
    for sample in [*samples[:30], *wide]:
        tables = tabulate(sample.spelled, sample.vocab, sample.max_seq_len)
        inputs = random_inputs(len(sample.vocab), sample.max_seq_len, 500, seed=1)
        meant, given = evaluate(tables, inputs), run(sample.compile(), inputs)
        compared = meant.real & meant.valid[:, None]
        if meant.values is None:
            assert np.allclose(meant.codes[compared], given.codes[compared], atol=0.05)
        else:
            places = np.array([*map(given.values.index, meant.values), -1])
            assert np.array_equal(meant.codes[compared] < 0, given.undefined[compared])
            defined = compared & (meant.codes >= 0)
            assert np.array_equal(places[meant.codes[defined]], given.codes[defined])


def test_a_number_on_a_threshold_is_above_it():
    """3/4 lies half way between 1/2 and 1, the nearest shares that tracr knows of an s-op that holds 0 and 1."""
    text = """v1 = rasp.numerical(rasp.Map(lambda x: x != 1, rasp.tokens))
v2 = rasp.numerical(rasp.Aggregate(rasp.Select(rasp.tokens, rasp.tokens, rasp.Comparison.TRUE), v1, default=0))
program = rasp.Map(lambda x: x == 1, v2)"""
    program = parse(text)
    meant = evaluate(program, np.array([[0, 0, 0, 1, -1]]), VOCAB, LENGTH)
    given = run(compile_program(program, VOCAB, LENGTH), np.array([[0, 0, 0, 1, -1]]))
    assert given.decode(0) == [True] * 4  # RASP says False
    assert not meant.valid[0]


def test_what_holds_in_double_precision_alone_is_no_proof():
    """In this basis single precision gives other outputs on some hundred inputs, double precision on none."""
    program = parse("""v1 = rasp.SequenceMap(lambda x, y: x < y, rasp.tokens, rasp.indices)
v3 = rasp.SelectorWidth(rasp.Select(rasp.indices, rasp.tokens, lambda k, q: k == q + 2))
v5 = rasp.SequenceMap(lambda x, y: min(x, y), rasp.indices, rasp.SequenceMap(lambda x, y: x * y, v1, v3))
v6 = rasp.SequenceMap(lambda x, y: x * y, v3, v5)
v8 = rasp.SequenceMap(lambda x, y: x > y, v6, rasp.Map(lambda x: x == 0, v6))
program = rasp.SelectorWidth(rasp.Select(v8, v6, rasp.Comparison.EQ))""")
    weights = compile_program(program, VOCAB, LENGTH)
    rotated, inputs = rotate(weights, 1), all_inputs(len(VOCAB), LENGTH)
    meant = evaluate(program, inputs, VOCAB, LENGTH)
    single, double = (run(rotated, inputs, dtype=dtype) for dtype in ("float32", "float64"))
    assert any(single.defined(row) != meant.decode(row) for row in range(len(inputs)))
    assert all(double.defined(row) == meant.decode(row) for row in range(len(inputs)))
    verdict = verify(program, rotated)
    assert verdict.status is Status.EQUIVALENT_IN_ONE_PRECISION and not verdict.is_verified
    assert str(verdict).startswith("equivalent on all 3,905 inputs in float64 alone; in float32 they differ on ")
    assert 1 <= verdict.elsewhere.inputs < verdict.elsewhere.checked == 3_905
    assert verdict.elsewhere.expected != verdict.elsewhere.got


def test_fractions_are_the_same_up_to_rounding():
    """(0.2 + 2) % 2 is 0.20000000000000018."""
    share = """v1 = rasp.numerical(rasp.Map(lambda x: x == 4, rasp.indices))
v2 = rasp.numerical(rasp.Aggregate(rasp.Select(rasp.tokens, rasp.tokens, rasp.Comparison.LEQ), v1, default=0))
"""
    first = parse(share + "program = rasp.Map(lambda x: x % 2, rasp.Map(lambda x: x + 2, v2), simplify=False)")
    second = parse(share + "program = rasp.Map(lambda x: x % 2, v2)")
    assert verify_programs(first, second, VOCAB, LENGTH).is_verified
    assert verify(second, compile_program(first, VOCAB, LENGTH)).is_verified


@pytest.mark.parametrize("width", [6, 7, 10])
def test_tracr_reads_large_widths_wrongly(width):
    """A width is read off 1 / (width + 1) by steps that rise over 0.01: from 7 on the next step has begun to rise."""
    program = parse("program = rasp.SelectorWidth(rasp.Select(rasp.tokens, rasp.tokens, rasp.Comparison.TRUE))")
    inputs = np.where(np.arange(12) < width, 0, -1)[None]
    meant, given = evaluate(program, inputs, (0, 1), 12), run(compile_program(program, (0, 1), 12), inputs)
    assert meant.decode(0) == [width] * width
    assert meant.valid[0] == (given.logits[0, 0].max() > 0.99)
    assert given.decode(0) == [width if width < 10 else width - 1] * width


def test_values_that_differ_by_rounding_alone_are_one():
    """As output values both 0.3 and 0.1 + 0.2, which is 0.30000000000000004, have a direction."""
    table = "{{0: 0.5, 1: 0.3, 2: {}, 3: 0.25, 4: 3}}.get(x)"
    texts = [f"program = rasp.Map(lambda x: {table.format(two)}, rasp.tokens)" for two in (0.1 + 0.2, 0.3, 0.31)]
    given = rotate(compile_program(parse(texts[0]), VOCAB, LENGTH), 0)
    assert len(given.output_values) == 5
    same, other = (verify(parse(text), given) for text in texts[1:])
    assert same.status is Status.EQUIVALENT and other.status is Status.REFUTED
