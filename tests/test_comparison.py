"""The bound that a proof rests on: no model is ever further off than it says, and what it says is not far from that."""

from dataclasses import replace

import numpy as np
import pytest
from cases import CASES, LENGTH, VOCAB

from dataset_builder.attacks import SMALL
from dataset_builder.judge import answers_of
from trade_hf.circuit.comparison import DOUBLE, SINGLE, _with_itself, compare
from trade_hf.circuit.errors import Errors
from trade_hf.circuit.ideal import Ideal, UnboundedError
from trade_hf.circuit.products import match_parts
from trade_hf.compiled.compiler import compile_program
from trade_hf.compiled.transforms import compress, permute, rotate, skew
from trade_hf.rasp.evaluate import PADDING, all_inputs
from trade_hf.rasp.tables import UnsupportedError
from trade_hf.rasp.text import parse

CHANGES = {
    "permuted": permute,
    "rotated": rotate,
    "skewed": skew,
    "compressed": lambda weights, seed: rotate(compress(weights), seed),
}
PRECISIONS = ((np.float32, SINGLE), (np.float64, DOUBLE))


def with_noise(weights, level, seed):
    """Each entry off by a share of itself."""
    rng = np.random.default_rng(seed)
    tensors = {
        name: (tensor * (1 + level * rng.standard_normal(tensor.shape))).astype(np.float32)
        for name, tensor in weights.tensors.items()
    }
    return replace(weights, tensors=tensors)


@pytest.fixture(scope="module")
def compiled(samples):
    """Models over a domain whose inputs can all be run, a quarter of them causal, with what they give."""
    inputs = [tuple(row[row != PADDING].tolist()) for row in all_inputs(len(SMALL.vocab), SMALL.length)]
    found = []
    for number, sample in enumerate(samples[:16]):
        try:
            model = compile_program(sample.spelled, SMALL.vocab, SMALL.length, causal=number % 4 == 3)
            ideal = Ideal.of(model)
        except (UnsupportedError, UnboundedError):
            continue
        found.append((model, ideal, inputs, np.concatenate(answers_of(model, inputs, np.float64))))
    assert len(found) >= 10
    return found


def test_all_that_a_compiled_model_gives_is_near_an_ideal_state(compiled):
    for model, ideal, _, meant in compiled:
        off = Errors(ideal, model, _with_itself(ideal), DOUBLE).of_outputs()
        for logits in meant:
            assert (np.abs(ideal.outputs - logits) <= off + 1e-12).all(1).any()


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_no_model_is_further_off_than_its_bound(compiled, change):
    ratios = []
    for number, (model, ideal, inputs, meant) in enumerate(compiled):
        changed = change(model, number)
        matching = match_parts(model, changed)
        if matching is None:
            continue
        for level in (0.0, 1e-6, 1e-4):
            given = with_noise(changed, level, number)
            for dtype, unit in PRECISIONS:
                try:
                    off = Errors(ideal, given, matching, unit).of_outputs()
                    off += Errors(ideal, model, _with_itself(ideal), DOUBLE).of_outputs()
                except UnboundedError:
                    continue
                ratios.append((np.abs(np.concatenate(answers_of(given, inputs, dtype)) - meant).max(0) / off).max())
    assert len(ratios) > 40 and max(ratios) <= 1
    assert np.mean(np.array(ratios) > 0.02) > 0.5  # it is not far from what is so


@pytest.mark.parametrize(
    ("lines", "vocab", "length"),
    [
        # Equal ranks belong to equal tokens, so that no two values are averaged.
        (next(case.lines for case in CASES if case.name == "sort of distinct tokens"), VOCAB, 6),
        # The number of tokens is one for all positions of an input.
        (
            """v1 = rasp.Select(rasp.tokens, rasp.tokens, rasp.Comparison.TRUE)
v2 = rasp.SelectorWidth(v1)
v3 = rasp.Aggregate(v1, v2)""",
            VOCAB,
            6,
        ),
        # Each query selects its own position at least.
        (
            """v1 = rasp.numerical(rasp.Map(lambda x: x == 2, rasp.tokens))
v2 = rasp.Select(rasp.indices, rasp.indices, rasp.Comparison.LEQ)
v3 = rasp.numerical(rasp.Aggregate(v2, v1, default=0))""",
            VOCAB,
            8,
        ),
        # No token is less than itself: there is no key for what is true.
        (
            """v1 = rasp.Map(lambda x: x, rasp.tokens)
v2 = rasp.SequenceMap(lambda x, y: x < y, rasp.tokens, v1)
v3 = rasp.Map(lambda x: x * 2, v2)
v4 = rasp.Select(v3, rasp.indices, lambda k, q: q == k + 1)
v5 = rasp.SelectorWidth(v4)""",
            VOCAB[:3],
            4,
        ),
        # The longest inputs are longer than the width of a selector is told; what then comes out is still one value.
        (next(case.lines for case in CASES if case.name == "reverse"), VOCAB[:3], 9),
    ],
)
def test_what_is_no_average_is_found(lines, vocab, length):
    text = "\n".join(line.strip() for line in lines.strip().splitlines())
    program = parse(f"{text}\nprogram = {text.splitlines()[-1].split(' = ')[0]}")
    model = compile_program(program, vocab, length)
    assert compare(model, rotate(model, 0)).precisions


def test_tokens_are_paired_by_what_they_are():
    """Not by how they are written: 1 and True are one token."""
    program = parse("program = rasp.Map(lambda x: {1: 3, 2: 4, 'n': 4}.get(x), rasp.tokens)")
    model = compile_program(program, (1, 2, "n"), 4)
    for exchanged, is_same in (((True, 2), True), ((2, True), False)):
        names = dict(zip((1, 2), exchanged, strict=True))
        other = replace(rotate(model, 0), vocab=tuple(names.get(token, token) for token in model.vocab))
        assert bool(compare(model, other).precisions) is is_same


def test_what_may_tie_is_not_proven():
    votes = parse(
        "v1 = rasp.Select(rasp.tokens, rasp.tokens, rasp.Comparison.TRUE)\nprogram = rasp.Aggregate(v1, rasp.tokens)"
    )
    model = compile_program(votes, (0, 1), 4)
    found = compare(model, rotate(model, 0))
    assert not found.precisions and found.margin == 0


def test_limits_are_named():
    votes = parse(
        "v1 = rasp.Select(rasp.tokens, rasp.tokens, rasp.Comparison.TRUE)\nprogram = rasp.Aggregate(v1, rasp.tokens)"
    )
    model = compile_program(votes, tuple(range(12)), 12)
    assert compare(model, rotate(model, 0)).reason == "head 0 of layer 0 may average values in 2,704,155 ways"
    model = compile_program(CASES[0].program, VOCAB, LENGTH)
    assert compare(model, replace(model, causal=True)).reason.startswith("the two models differ in vocabulary")
    other = compile_program(CASES[1].program, VOCAB, LENGTH)
    assert compare(model, other).reason == "the parts of the two models do not correspond"
