"""Whether two models have the same products: in any basis, of however many dimensions; never of another function."""

from dataclasses import replace

import numpy as np
import pytest
from cases import CASES, LENGTH, VOCAB
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_verification import with_larger_heads

from trade_hf.circuit.comparison import compare
from trade_hf.circuit.isomorphism import are_identical
from trade_hf.compiled.compiler import compile_program
from trade_hf.compiled.transforms import add_noise, compress, permute, rotate, skew
from trade_hf.rasp.text import parse
from trade_hf.verification import Status, verify, verify_weights


def have_same_products(compiled, weights):
    """Whether both are proven to be one function, in float64 at least."""
    return bool(compare(compiled, weights).precisions)


CHANGES = {
    "permuted": permute,
    "rotated": rotate,
    "skewed": skew,
    "compressed": lambda weights, seed: rotate(compress(weights), seed),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_in_any_basis(samples, change):
    models = [sample.compile() for sample in samples[:20]]
    found = [compare(model, change(model, number)) for number, model in enumerate(models)]
    # What keeps the others from a proof is that a numerical output may be off by just more than the tolerance.
    assert sum(bool(one.precisions) for one in found) >= 18 and sum(one.is_proven for one in found) >= 10
    assert all(one.reason.startswith("an output may be off") for one in found if not one.precisions)
    assert not any(have_same_products(models[n - 1], change(model, n)) for n, model in enumerate(models))


@pytest.mark.parametrize("level", [1e-3, 1e-2])
def test_noise_is_no_rounding(samples, level):
    assert not any(have_same_products(s.compile(), add_noise(s.compile(), level, 0)) for s in samples[:5])


@given(st.integers(0, 59), st.integers(0, 10**9), st.sampled_from([0.0, 0.5, 1.0, -1.0, 100.0]), st.booleans())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_models_with_the_same_products_compute_the_same(samples, number, place, value, is_compressed):
    """One entry is changed: where that is no difference, it makes none on any input."""
    model = samples[number].compile()
    changed = CHANGES["compressed"](model, 0) if is_compressed else model
    name = sorted(changed.tensors)[place % len(changed.tensors)]
    tensor = changed.tensors[name].copy()
    tensor.flat[place % tensor.size] = value
    changed = replace(changed, tensors={**changed.tensors, name: tensor})
    if have_same_products(model, changed):
        assert not verify_weights(model, changed).counterexample


def test_what_has_no_effect_is_left_out():
    """Of an s-op with itself most pairs of values never come together; who reads it reads what they would give, too."""
    itself = "v1 = rasp.SequenceMap(lambda x, y: x * y, rasp.tokens, rasp.tokens)\n"
    square = "v1 = rasp.Map(lambda x: {0: 0, 1: 1, 2: 4, 3: 9, 4: 16}.get(x), rasp.tokens)\n"
    models = [
        compile_program(parse(f"{first}program = rasp.Map(lambda x: {then}, v1, simplify=False)"), VOCAB, LENGTH)
        for first, then in ((itself, "x % 2"), (square, "x % 2"), (square, "x == 0"))
    ]
    assert models[0].d_model > models[1].d_model and have_same_products(*models[:2])
    assert not verify_weights(*models[:2]).counterexample
    assert not have_same_products(models[0], models[2])


def test_the_size_of_heads_counts():
    fractions = next(case for case in CASES if "frac" in case.name).program
    weights = compile_program(fractions, VOCAB, LENGTH)
    larger = with_larger_heads(weights, 4 * weights.key_size)
    assert not have_same_products(weights, larger)
    doubled = {name: 2 * part if "/query/" in name else part for name, part in larger.tensors.items()}
    assert have_same_products(weights, replace(larger, tensors=doubled))


def test_a_large_weight_hides_no_other(samples):
    compiled = next(s.compile() for s in samples if np.count_nonzero(s.compile().layer(0, "mlp/linear_2/w")) > 4)
    name = "transformer/layer_0/mlp/linear_2/w"
    large, other = np.argwhere(compiled.tensors[name])[[0, -1]]
    assert large[0] != other[0]

    def changed(factor):
        tensor = compiled.tensors[name].copy()
        tensor[tuple(large)] *= 1e6
        tensor[tuple(other)] *= factor
        return replace(compiled, tensors={**compiled.tensors, name: tensor})

    assert not have_same_products(changed(1), changed(0.6))


def test_a_proof_for_a_compressed_model_of_more_inputs_than_can_be_run():
    reverse = next(case for case in CASES if case.name == "reverse").program
    weights = compile_program(reverse, VOCAB, 12)
    small = compress(weights)
    verdict = verify(reverse, small)
    assert small.d_model < weights.d_model and verdict.inputs > 300_000_000 and verdict.checked == 10_000
    assert verdict.status is Status.EQUIVALENT_IN_ONE_PRECISION and not verdict.is_verified
    assert str(verdict).startswith("equivalent on all 305,175,780 inputs in float64 alone; in float32, ")


def test_a_proof_in_both_precisions():
    shift = next(case for case in CASES if case.name.startswith("shift")).program
    weights = compile_program(shift, VOCAB, 12)
    verdict = verify(shift, rotate(weights, 0))
    assert verdict.status is Status.SAME_IN_ANOTHER_BASIS and verdict.is_verified


def test_what_is_no_rounding_is_told():
    """A step of 1,000 numbers' height multiplies what is off by tens of thousands, and no sample may show it."""
    program = parse(
        """v1 = rasp.Map(lambda x: x == 2, rasp.tokens)
v2 = rasp.Select(v1, rasp.tokens, lambda k, q: (k, q) in [(True, 0), (True, 1), (True, 2), (True, 3), (True, 4)])
v3 = rasp.numerical(rasp.SelectorWidth(v2))
v4 = rasp.numerical(rasp.Map(lambda x: {0: 0, 1: 0, 2: 0, 3: 1000}.get(x), v3))
program = rasp.Map(lambda x: {0: 0, 1000: 1}.get(x), v4)"""
    )
    model = compile_program(program, VOCAB, 3)
    name = f"transformer/layer_{model.num_layers - 1}/mlp/linear_2/w"
    for unread in (0, 1000):
        changed = {}
        for part, tensor in model.tensors.items():
            rows = part.endswith(("embeddings", "linear/w", "linear_2/w"))
            columns = part.endswith(("query/w", "key/w", "value/w", "linear_1/w"))
            is_vector = part.endswith(("linear/b", "linear_2/b"))
            padding = [(0, int(columns))] + [(0, int(rows))] * (tensor.ndim - 1)
            changed[part] = np.pad(tensor, [(0, 1)] if is_vector else padding)
        model_too = replace(
            model, tensors=changed, unembedding=np.pad(model.unembedding, [(0, 1), (0, 0)]), residual_labels=()
        )
        assert have_same_products(model, model_too)
        unit = np.flatnonzero((model.tensors[name] < 0).any(1))[0]
        changed[name][unit] *= 1 - 1e-5
        changed[name][unit, -1] = unread
        assert not have_same_products(model, replace(model_too, tensors=changed))


def test_the_order_of_outputs_counts():
    """Of equal outputs the first is decoded."""
    program = parse(
        "v1 = rasp.Select(rasp.tokens, rasp.tokens, rasp.Comparison.TRUE)\nprogram = rasp.Aggregate(v1, rasp.tokens)"
    )
    model = compile_program(program, (0, 1), 3)
    other = replace(model, output_values=model.output_values[::-1], unembedding=model.unembedding[:, ::-1].copy())
    assert not have_same_products(model, other) and not are_identical(model, other)
