"""A circuit computes what its model does, and is the same for all models that differ by what no input shows."""

from dataclasses import replace
from functools import partial
from itertools import islice
from random import Random

import numpy as np
import pytest
from cases import CASES, LENGTH, VOCAB
from hypothesis import given, settings
from hypothesis import strategies as st

from dataset_builder.online import OnlineExamples, example_of
from dataset_builder.sampler import sample_programs
from trade_hf.circuit import circuit as circuit_module
from trade_hf.circuit import units as units_module
from trade_hf.circuit.circuit import Circuit
from trade_hf.circuit.units import HIDDEN, OUTPUT, QUERY_KEY, TOKEN_UNIT, VALUE_OUTPUT, to_circuit_units
from trade_hf.compiled.compiler import compile_program
from trade_hf.compiled.forward import run
from trade_hf.compiled.transforms import (
    EDITS,
    add_noise,
    compress,
    edit,
    permute,
    rotate,
    skew,
)
from trade_hf.compiled.weights import WeightsError
from trade_hf.features import to_units_of_circuit
from trade_hf.rasp.program import variable_name
from trade_hf.rasp.text import parse
from trade_hf.tokenization_rasp import LINE_SIZE, VOCABULARY, to_ids

LOSSLESS = {
    **{change.__name__: change for change in EDITS},
    "edit": edit,
    "permute": permute,
    "rotate": rotate,
    "skew": skew,
    "skew by 1,000": partial(skew, condition=1000.0),
    "compress": lambda weights, seed: compress(weights),
}
# Each entry of a model is rounded to single precision; in a basis of condition number c, products are off by some c
# times as much.
EXACT, ROUNDED = 1e-4, 1e-2
quick = settings(deadline=None, max_examples=60)
SAMPLES = list(islice(sample_programs("tests"), 60))


def inputs_of(weights, length):
    return np.random.default_rng(length).integers(0, len(weights.input_vocab), (16, length))


def up_to_what_outputs_share(logits, weights):
    is_shared = weights.output_values is not None and len(weights.output_values) > 1
    return logits - np.median(logits, -1, keepdims=True) if is_shared else logits


def logits_of(weights, length, compute=None):
    inputs = inputs_of(weights, length)
    logits = run(weights, inputs, dtype="float64").logits if compute is None else compute(inputs)
    return up_to_what_outputs_share(logits, weights)


def difference(one, other):
    """Between the network's inputs for two models; infinite where they have other units."""
    if one.features.shape != other.features.shape:
        return np.inf
    return max(np.abs(one.features - other.features).max(), np.abs(one.edges - other.edges).max())


@pytest.mark.parametrize("name", LOSSLESS)
def test_what_loses_nothing_leaves_the_outputs_as_they_are(name):
    is_changed = []
    for seed, sample in enumerate(SAMPLES[:30]):
        weights = sample.compile()
        changed = LOSSLESS[name](weights, seed)
        is_changed.append(not are_equal(weights, changed))
        given, logits = (logits_of(one, weights.max_seq_len) for one in (weights, changed))
        if weights.output_values is not None and name in ("edit", "scale_logits"):
            logits = logits * np.abs(given).max() / np.abs(logits).max()
        assert np.allclose(logits, given, atol=ROUNDED * max(1, np.abs(given).max()))
    assert np.mean(is_changed) > 0.5


def are_equal(one, other):
    pairs = zip(one.tensors.values(), other.tensors.values(), strict=True)
    return np.array_equal(one.unembedding, other.unembedding) and all(np.array_equal(*pair) for pair in pairs)


@quick
@given(
    number=st.integers(0, 59),
    seed=st.integers(0, 2**31),
    name=st.sampled_from(sorted(LOSSLESS)),
    length=st.integers(1, 5),
)
def test_a_circuit_computes_what_its_model_does(number, seed, name, length):
    weights = LOSSLESS[name](SAMPLES[number].compile(), seed)
    length = min(length, weights.max_seq_len)
    logits, own = logits_of(weights, length), logits_of(weights, length, Circuit.of(weights).run)
    # Where rounding has moved the two units of a threshold apart, a circuit takes their mean.
    tolerance = ROUNDED if name == "skew by 1,000" else 1e-3
    assert np.abs(logits - own).max() < tolerance * max(1, np.abs(logits).max())


def test_a_causal_circuit_computes_what_its_model_does():
    for sample in SAMPLES[:20]:
        weights = replace(sample.compile(), causal=True)
        length = weights.max_seq_len
        assert np.allclose(logits_of(weights, length), logits_of(weights, length, Circuit.of(weights).run), atol=1e-6)


@quick
@given(
    number=st.integers(0, 59),
    seed=st.integers(0, 2**31),
    is_compressed=st.booleans(),
    is_edited=st.booleans(),
    condition=st.sampled_from([1.0, 4.0, 30.0, 1000.0]),
)
def test_the_networks_input_is_the_same_for_all_that_loses_nothing(number, seed, is_compressed, is_edited, condition):
    weights = SAMPLES[number].compile()
    changed = LOSSLESS["compress"](weights, seed) if is_compressed else weights
    changed = edit(changed, seed) if is_edited else changed
    changed = skew(changed, seed, condition)
    found = difference(to_units_of_circuit(weights), to_units_of_circuit(changed))
    assert found < (EXACT if condition == 1 and not is_edited else ROUNDED)


@pytest.mark.parametrize("name", ["rebase_heads", "move_constants", "fold_constant", "scale_logits", "rotate"])
def test_the_networks_input_is_the_same_up_to_rounding(name):
    for seed, sample in enumerate(SAMPLES):
        weights = sample.compile()
        units = to_units_of_circuit(weights), to_units_of_circuit(LOSSLESS[name](weights, seed))
        assert difference(*units) < EXACT


def test_order_alone_changes_the_order_of_units():
    for seed, sample in enumerate(SAMPLES[:30]):
        weights = sample.compile()
        one, other = (signature(to_units_of_circuit(model)) for model in (weights, permute(weights, seed)))
        assert np.allclose(one, other, atol=1e-3)


def signature(units):
    """A number for each unit, of its features and its sorted products with all others; ascending."""
    rows = np.concatenate([units.features, np.sort(units.edges, 1).reshape(len(units.features), -1)], 1)
    return np.sort(rows @ np.random.RandomState(0).standard_normal(rows.shape[1]))


def test_other_programs_have_other_units():
    found = {tuple(np.round(signature(to_units_of_circuit(sample.compile())), 3)) for sample in SAMPLES}
    assert len(found) == len({sample.program for sample in SAMPLES})


@pytest.mark.parametrize(
    ("text", "one", "other"),
    [
        # Of queries all of which select the same, a constant of positions tells as much as tokens do.
        (
            "program = rasp.SelectorWidth(rasp.Select(rasp.tokens, {}, rasp.Comparison.TRUE))",
            "rasp.tokens",
            "rasp.indices",
        ),
        # Values that all readers treat alike.
        (
            "v1 = rasp.SequenceMap(lambda x, y: {}, rasp.tokens, rasp.indices)\n"
            "program = rasp.Map(lambda x: x == 0, v1)",
            "max(x, y)",
            "x + y",
        ),
    ],
)
def test_what_units_do_not_tell(text, one, other):
    """The model of one program has the circuit of the other's."""
    models = [compile_program(parse(text.format(part)), range(5), 5) for part in (one, other)]
    assert np.allclose(*[signature(to_units_of_circuit(model)) for model in models], atol=1e-3)


@pytest.mark.parametrize("level", [0.001, 0.01, 0.03])
def test_noise_changes_little(level):
    """Nearly all units are found again, and few are made of nothing."""
    for seed, sample in enumerate(SAMPLES[:30]):
        weights = sample.compile()
        clean = to_circuit_units(weights)
        for change in (rotate, skew):
            noisy = to_circuit_units(add_noise(change(weights, seed), level, seed))
            known = {
                tuple(row) for row in np.column_stack([noisy.kind, noisy.layer, noisy.head, noisy.source]).tolist()
            }
            own = np.column_stack([clean.kind, clean.layer, clean.head, clean.source]).tolist()
            assert np.mean([tuple(row) in known for row in own]) > 0.8
            assert len(noisy.kind) < 2 * len(clean.kind) + 10
            assert np.isfinite(noisy.reads).all()
            assert np.abs(noisy.reads[np.isin(noisy.kind, (QUERY_KEY, VALUE_OUTPUT))]).max(initial=0) <= 1 + 1e-9


def test_units_belong_to_lines():
    """Each line of a program has units, also where the model was changed."""
    for seed, sample in enumerate(SAMPLES):
        weights, ids = sample.compile(), to_ids(sample.program)
        for seen in (None, skew(weights, seed), add_noise(rotate(weights, seed), 0.001, seed)):
            example = example_of(sample.program, weights, "circuit", seen)
            labelled = {tuple(row[:2]) for row in example.unit_labels.tolist() if row[0] >= 0}
            lines = range(len(sample.program))
            names = {(VOCABULARY.index(variable_name(n)), ids[LINE_SIZE * n + LINE_SIZE - 1]) for n in lines}
            assert labelled == names if seen is None else len(labelled & names) >= 0.7 * len(names)
            kinds = example.units.features[:, 0]
            assert (example.unit_labels[(kinds < QUERY_KEY) | (kinds == OUTPUT)] == -100).all()
            assert (example.unit_labels[kinds == HIDDEN, 2] >= -100).all()


@pytest.mark.parametrize(
    ("module", "limit", "most", "message"),
    [
        (circuit_module, "MAX_WRITERS", 20, "write more than 20 things"),
        (circuit_module, "MAX_PRODUCTS", 500, "have more than 500 products"),
        (units_module, "MAX_UNITS", 20, "units; the limit is 20"),
    ],
)
def test_a_model_beyond_a_limit_is_refused(monkeypatch, module, limit, most, message):
    monkeypatch.setattr(module, limit, most)
    weights = max((sample.compile() for sample in SAMPLES), key=lambda w: w.num_layers)
    with pytest.raises(WeightsError, match=message):
        to_units_of_circuit(weights)


def test_a_stream_draws_all_sizes_and_noisy_and_lossy_models():
    shares = {"wide_share": 0.5, "noisy_share": 0.5, "lossy_share": 0.3}
    stream = OnlineExamples("test", batch_size=4, encoder="circuit", lines_before=3, **shares)
    examples = list(islice(iter(stream), 48))
    assert {example.lines_before for example in examples} == {0, 1, 2, 3}
    assert len({(example.units.features[:, 0] == TOKEN_UNIT).sum() for example in examples}) > 4
    weights = compile_program(CASES[0].program, VOCAB, LENGTH)
    drawn = [stream.spoiled(weights, Random(number)) for number in range(60)]
    assert 0.05 < np.mean([one is None for one in drawn]) < 0.4
    assert len({one.d_model for one in drawn if one is not None}) > 1
