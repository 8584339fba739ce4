"""Models that are made to differ from a program: none is certified, and the judge says that they differ."""

import numpy as np
import pytest
from cases import CASES, LENGTH, VOCAB

from dataset_builder.attacks import KINDS, LARGE, SMALL, Attack, Surgery, attacks, mutated
from dataset_builder.judge import answers_of, differ, logits_of, tracr_logits
from trade_hf.circuit.comparison import compare
from trade_hf.compiled.compiler import compile_program
from trade_hf.compiled.forward import run
from trade_hf.compiled.transforms import rotate
from trade_hf.rasp.evaluate import all_inputs

SAME = {"pad changed"}  # controls
ALONE = {"slope of one unit", "step off by little beside a long reader", "fires in single precision alone"}


@pytest.fixture(scope="module")
def study(request):
    import importlib
    import sys
    from pathlib import Path

    sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "scripts"))
    return importlib.import_module("attack_study")


@pytest.mark.parametrize("attack", attacks(), ids=lambda a: f"{a.kind}, {a.basis}, {a.domain.name}")
def test_no_attack_is_certified(study, attack: Attack):
    row = study.attack_row(attack, with_tracr=False)
    assert not row["wrong"], row
    if attack.kind not in SAME | ALONE:
        assert row["differs_float32"] or row["differs_float64"]


@pytest.mark.parametrize("kind", [kind for kind in KINDS if "one input alone" in kind])
def test_no_sample_shows_what_fires_on_one_input_alone(kind):
    """So that the bound is all that keeps it from a certificate: the parts of the two correspond, or they do not."""
    program, model = KINDS[kind](LARGE)
    found = compare(LARGE.compile(program), model)
    assert not found.precisions and found.reason


def test_the_judge_agrees_with_the_forward_pass_and_with_tracr(samples):
    inputs = all_inputs(len(VOCAB), LENGTH)
    inputs = inputs[(inputs >= 0).all(1)][:200]
    for number, sample in enumerate(samples[:5]):
        model = rotate(sample.compile(), number)
        rows = np.array([model.vocab.index(token) for token in VOCAB])[inputs]
        judged = logits_of(model, rows)
        assert np.allclose(judged, run(model, inputs).logits, atol=1e-3)
        by_tracr = tracr_logits(model, [VOCAB[code] for code in inputs[0]])
        assert np.allclose(judged[0], by_tracr, atol=1e-3)


def test_the_judge_tells_what_differs():
    reverse = next(case for case in CASES if case.name == "reverse").program
    model = compile_program(reverse, VOCAB, LENGTH)
    [logits] = answers_of(model, [(3, 1, 0, 4)])
    values = model.output_values, model.output_values
    assert not differ(logits, logits * 0.25 + 1e-3, values)
    for other in (logits[::-1], np.full_like(logits, np.nan), np.where(np.isfinite(logits), np.inf, 0)):
        assert differ(logits, other, values)
    assert differ(np.zeros_like(logits), logits, values)
    assert differ(logits[:, :1], logits[:, :1] + 0.01, (None, None))


def test_random_mutations(study):
    row = study.mutations_row(study.Mutations(number=0, seed=1, count=12))
    assert row["count"] == 12 and row["wrong"] == 0 and sum(row["by_status"].values()) == 12


def test_a_mutation_that_hangs_on_the_order_of_sums(study):
    """A bias of three million, before logits that are nearly equal: one library's sums give the program, another's
    not."""
    row = study.mutations_row(study.Mutations(number=1500, seed=0, count=25))
    assert row["wrong"] == 0 and "equivalent in one precision" in row["by_status"]


def test_a_mutation_changes_something():
    model = SMALL.compile("program = rasp.Map(lambda x: x + 1, rasp.tokens)")
    rng = np.random.default_rng(0)
    changed = [mutated(model, rng) for _ in range(20)]
    assert sum(any((one.tensors[n] != tensor).any() for n, tensor in model.tensors.items()) for one in changed) > 10


def test_surgery_adds_parts_that_do_nothing_by_themselves():
    model = SMALL.compile("program = rasp.Map(lambda x: x + 1, rasp.tokens)")
    surgery = Surgery(model)
    surgery.direction()
    surgery.unit(0, {"tokens:1": 1.0}, 0.0, {})
    surgery.head(0, {"tokens:1": 1.0}, {})
    assert compare(model, surgery.done()).is_proven
