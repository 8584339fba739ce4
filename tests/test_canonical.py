"""Canonical form: idempotent, behaviour-preserving, and equal exactly when the compiled weights are."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
from cases import CASES, LENGTH, VOCAB

from dataset_builder.mutants import mutants
from dataset_builder.sampler import Draw
from trade_hf.circuit.isomorphism import are_identical
from trade_hf.compiled.compiler import compile_program
from trade_hf.compiled.transforms import permute, rotate
from trade_hf.rasp.canonical import canonical_hash, canonicalise, spell
from trade_hf.rasp.evaluate import all_inputs, evaluate
from trade_hf.rasp.tables import UnsupportedError
from trade_hf.rasp.text import parse, to_text


def program_of(*lines):
    return parse("\n".join(lines))


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_cases_keep_their_weights_and_meaning(case):
    canonical = canonicalise(case.program, VOCAB, LENGTH)
    assert canonicalise(canonical, VOCAB, LENGTH) == canonical
    assert are_identical(compile_program(case.program, VOCAB, LENGTH), compile_program(canonical, VOCAB, LENGTH))
    inputs = all_inputs(len(VOCAB), LENGTH)[::7]
    before, after = (evaluate(p, inputs, VOCAB, LENGTH) for p in (case.program, canonical))
    valid = before.valid & after.valid
    assert valid.any()
    for row in np.flatnonzero(valid)[::20]:
        assert (
            after.decode(row) == pytest.approx(before.decode(row))
            if before.values is None
            else (after.decode(row) == before.decode(row))
        )


EQUAL = [
    (
        "names, dead lines, order of lines and operands",
        ["a = rasp.Map(lambda x: x % 2, rasp.tokens)", "b = rasp.Map(lambda x: x % 3, rasp.indices)"]
        + ["program = rasp.SequenceMap(lambda x, y: x - y, a, b)"],
        ["q = rasp.Map(lambda x: x % 3, rasp.indices)", "dead = rasp.Map(lambda x: x * 2, q)"]
        + ["p = rasp.Map(lambda x: x % 2, rasp.tokens)", "program = rasp.SequenceMap(lambda x, y: y - x, q, p)"],
    ),
    (
        "a relabelling that the reader takes back",
        ["a = rasp.Map(lambda x: x + 1, rasp.tokens)", "program = rasp.Map(lambda x: x == 3, a, simplify=False)"],
        ["a = rasp.Map(lambda x: 4 - x, rasp.tokens)", "program = rasp.Map(lambda x: x == 2, a, simplify=False)"],
    ),
    (
        "one selector shared or written twice",
        ["s = rasp.Select(rasp.tokens, rasp.tokens, rasp.Comparison.LT)", "a = rasp.SelectorWidth(s)"]
        + ["b = rasp.numerical(rasp.SelectorWidth(s))", "c = rasp.numerical(rasp.Map(lambda x: x, a))"]
        + ["program = rasp.numerical(rasp.LinearSequenceMap(b, c, 1, 1))"],
        ["s = rasp.Select(rasp.tokens, rasp.tokens, rasp.Comparison.LT)", "a = rasp.SelectorWidth(s)"]
        + ["t = rasp.Select(rasp.tokens, rasp.tokens, lambda k, q: (k, q) in "]
        + [],
    ),
]
EQUAL[2][2][-1] += str([(k, q) for k in VOCAB for q in VOCAB if k < q]) + ")"
EQUAL[2][2].extend(
    ["b = rasp.numerical(rasp.SelectorWidth(t))", "c = rasp.numerical(rasp.Map(lambda x: x, a))"]
    + ["program = rasp.numerical(rasp.LinearSequenceMap(c, b, 1, 1))"]
)

DIFFERENT = [
    (
        "the output's values are told",
        ["program = rasp.Map(lambda x: x + 1, rasp.tokens)"],
        ["program = rasp.Map(lambda x: x + 2, rasp.tokens)"],
    ),
    (
        "equal lines are two components",
        ["a = rasp.Map(lambda x: x % 2, rasp.tokens)", "b = rasp.Map(lambda x: x % 2, rasp.tokens)"]
        + ["program = rasp.SequenceMap(lambda x, y: x + y, a, b)"],
        ["a = rasp.Map(lambda x: x % 2, rasp.tokens)", "program = rasp.SequenceMap(lambda x, y: x + y, a, a)"],
    ),
]


@pytest.mark.parametrize(("_name", "first", "second"), EQUAL, ids=lambda x: x if isinstance(x, str) else "")
def test_what_weights_do_not_tell(_name, first, second):
    first, second = program_of(*first), program_of(*second)
    assert are_identical(compile_program(first, VOCAB, LENGTH), compile_program(second, VOCAB, LENGTH))
    assert canonicalise(first, VOCAB, LENGTH) == canonicalise(second, VOCAB, LENGTH)
    assert canonical_hash(first, VOCAB, LENGTH) == canonical_hash(second, VOCAB, LENGTH)


@pytest.mark.parametrize(("_name", "first", "second"), DIFFERENT, ids=lambda x: x if isinstance(x, str) else "")
def test_what_weights_tell(_name, first, second):
    first, second = program_of(*first), program_of(*second)
    assert not are_identical(compile_program(first, VOCAB, LENGTH), compile_program(second, VOCAB, LENGTH))
    assert canonical_hash(first, VOCAB, LENGTH) != canonical_hash(second, VOCAB, LENGTH)


def test_same_form_exactly_when_same_weights(samples):
    """The study of `scripts/benchmark.py canonical`, in small."""
    draw, compared = Draw("canonical"), 0
    for sample in samples:
        domain = (sample.vocab, sample.max_seq_len)
        weights = compile_program(sample.program, *domain)
        assert canonicalise(sample.program, *domain) == sample.program
        for mutant in itertools.islice(mutants(sample.program, draw), 4):
            try:
                other, canonical = compile_program(mutant, *domain), canonicalise(mutant, *domain)
            except UnsupportedError:
                continue
            compared += 1
            assert (canonical == sample.program) == are_identical(weights, other), to_text(mutant)
            assert are_identical(compile_program(canonical, *domain), other), to_text(mutant)
            assert canonicalise(canonical, *domain) == canonical
    assert compared > 150


def test_identity_of_weights_is_blind_to_order_only(samples):
    for seed, sample in enumerate(samples[:20]):
        weights = compile_program(sample.program, sample.vocab, sample.max_seq_len)
        assert are_identical(weights, permute(weights, seed))
        assert not are_identical(weights, rotate(weights, seed))
        name = "transformer/layer_0/mlp/linear_2/w"
        if weights.tensors[name].any():
            tensor = weights.tensors[name].copy()
            tensor[tuple(np.argwhere(tensor)[0])] += 1
            changed = replace(weights, tensors={**weights.tensors, name: tensor})
            assert not are_identical(weights, changed)


def test_strings_are_spoken_of_by_rank_and_spelled_back():
    text = """v1 = rasp.Map(lambda x: {'a': 'b', 'b': 'b', 'c': 'a'}.get(x), rasp.tokens)
v2 = rasp.Select(v1, rasp.tokens, lambda k, q: (k, q) in [('a', 'a'), ('b', 'b')])
v3 = rasp.SelectorWidth(v2)
v4 = rasp.Select(rasp.indices, v3, rasp.Comparison.EQ)
program = rasp.Aggregate(v4, rasp.tokens)"""
    program, vocab = parse(text), ("a", "b", "c")
    weights = compile_program(program, vocab, 4)
    canonical = canonicalise(program, vocab, 4)
    assert "'" not in to_text(canonical).replace(".named", "").split("lambda", 1)[1].split(",")[0]
    spelled = spell(canonical, vocab, 4, weights.output_values)
    assert are_identical(compile_program(spelled, vocab, 4), weights)
    assert parse(to_text(spelled)) == spelled
    assert canonicalise(spelled, vocab, 4) == canonical


@pytest.mark.parametrize(
    ("predicate", "printed"),
    [
        ("rasp.Comparison.EQ", "rasp.Comparison.EQ"),
        ("rasp.Comparison.TRUE", "rasp.Comparison.TRUE"),
        ("rasp.Comparison.LT", "rasp.Comparison.LT"),  # tokens are ranked as they compare
        ("lambda k, q: (k, q) in [('a', 'b'), ('b', 'c')]", "lambda k, q: (k, q) in [('a', 'b'), ('b', 'c')]"),
    ],
)
def test_comparisons_of_strings_are_printed_by_name(predicate, printed):
    program = parse(f"v1 = rasp.Select(rasp.tokens, rasp.tokens, {predicate})\nprogram = rasp.SelectorWidth(v1)")
    vocab = ("a", "b", "c")
    weights = compile_program(program, vocab, 4)
    spelled = spell(canonicalise(program, vocab, 4), vocab, 4, weights.output_values)
    assert f"rasp.Select(rasp.tokens, rasp.tokens, {printed})" in to_text(spelled)
    assert parse(to_text(spelled)) == spelled
    assert are_identical(compile_program(spelled, vocab, 4), weights)


def test_a_program_that_writes_the_number_of_no_token_cannot_be_spelled():
    program = parse("program = rasp.Map(lambda x: x + 1, rasp.tokens)")
    with pytest.raises(UnsupportedError, match="line 1: 2 is the number of no token"):
        spell(program, ("a", "b"), 3, ("a", "b"))
