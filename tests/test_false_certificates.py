"""Models and programs that were made to differ where a careless comparison does not look. None may be called proven."""

import json
from dataclasses import replace

import numpy as np
import pytest
from cases import CASES, LENGTH, VOCAB

from trade_hf.certificate import Certificate, certify, recheck
from trade_hf.cli import main
from trade_hf.compiled.compiler import compile_program
from trade_hf.compiled.forward import is_bounded, run
from trade_hf.compiled.transforms import add_noise, permute, rotate
from trade_hf.rasp.evaluate import all_inputs
from trade_hf.rasp.reference import NoAnswerError, answer
from trade_hf.rasp.text import parse, to_text
from trade_hf.report.page import reservations_html
from trade_hf.verification import Status, verify, verify_weights

PROGRAMS = {case.name: case.program for case in CASES}
REVERSE, SHIFT = PROGRAMS["reverse"], PROGRAMS["shift, None where nothing is selected"]
INPUTS = all_inputs(len(VOCAB), LENGTH)
HUGE = 1e9  # the largest weight of a file


def widened(weights, directions=1, units=1):
    """The same model with more residual directions and hidden units, which read and write nothing."""
    tensors = {}
    for name, tensor in weights.tensors.items():
        is_bias = name.endswith("/b")
        rows = name.endswith(("query/w", "key/w", "value/w", "linear_1/w")) * directions
        columns = (
            name.endswith(("embeddings", "attn/linear/w", "attn/linear/b", "linear_2/w", "linear_2/b")) * directions
        )
        rows += name.endswith("linear_2/w") * units
        columns += name.endswith(("linear_1/w", "linear_1/b")) * units
        tensors[name] = np.pad(tensor, [(0, columns)] if is_bias else [(0, rows), (0, columns)])
    unembedding = np.pad(weights.unembedding, [(0, directions), (0, 0)])
    return replace(weights, tensors=tensors, unembedding=unembedding, residual_labels=())


def changed(weights, **entries):
    """With entries set: layer, tensor and place → value."""
    tensors = {name: tensor.copy() for name, tensor in weights.tensors.items()}
    for (layer, part), places in entries["at"].items():
        for place, value in places.items():
            tensors[f"transformer/layer_{layer}/{part}"][place] = value
    return replace(weights, tensors=tensors)


def hidden_by_a_large_number(weights):
    """2 ** 24 is added to the outputs before the last block and taken away after it: float32 has lost them by then."""
    tensors, last = dict(weights.tensors), f"transformer/layer_{weights.num_layers - 1}"
    outputs = weights.unembedding.any(1)
    for part, number in (("attn/linear/b", 2.0**24), ("mlp/linear_2/b", -(2.0**24))):
        tensors[f"{last}/{part}"] = tensors[f"{last}/{part}"] + np.float32(number) * outputs
    return replace(weights, tensors=tensors)


def overflowing(weights):
    """A hidden unit that nothing reads is infinite in float32: in Tracr infinity times zero is in every output."""
    weights = widened(weights)
    tokens = weights.tensors["token_embed/embeddings"].copy()
    tokens[:, -1] = HUGE
    chain = {
        (layer, part): {place: HUGE}
        for layer in range(weights.num_layers)
        for part, place in (("mlp/linear_1/w", (-1, -1)), ("mlp/linear_2/w", (-1, -1)))
        if (layer, part) != (weights.num_layers - 1, "mlp/linear_2/w")
    }
    grown = changed(weights, at=chain)
    return replace(grown, tensors={**grown.tensors, "token_embed/embeddings": tokens})


def seen_in_double_precision_alone(weights):
    """What a trigger adds to 2 ** 24 is lost in float32; in float64 it turns an output off."""
    weights = widened(weights, directions=1, units=1)
    trigger = weights.tensors["token_embed/embeddings"][weights.vocab.index(3)].nonzero()[0]
    output = int(weights.unembedding[:, 0].argmax())
    one = {(trigger[0], -1): 1.0, (trigger[1], -1): 1.0}
    return changed(
        weights,
        at={
            (0, "attn/linear/b"): {-1: 2.0**24},
            (0, "mlp/linear_1/w"): one,
            (0, "mlp/linear_1/b"): {-1: -1.0},
            (0, "mlp/linear_2/w"): {(-1, -1): 1.0},
            (0, "mlp/linear_2/b"): {-1: -(2.0**24)},
            (1, "mlp/linear_1/w"): {(-1, -1): 1.0},
            (1, "mlp/linear_2/w"): {(-1, output): -5.0},
        },
    )


DEEP = next(case.program for case in CASES if case.name.startswith("more than nine"))
ONE_PRECISION = {
    "2 ** 24 before the last block": (hidden_by_a_large_number, REVERSE, "float64"),
    "2 ** 24, a categorical output with None": (hidden_by_a_large_number, SHIFT, "float64"),
    "a dead part overflows": (overflowing, DEEP, "float64"),
    "lost in float32": (seen_in_double_precision_alone, PROGRAMS["reverse"], "float32"),
}


@pytest.mark.parametrize("basis", [lambda w: w, lambda w: permute(w, 1)], ids=["Tracr's order", "permuted"])
@pytest.mark.parametrize(("change", "program", "precision"), ONE_PRECISION.values(), ids=ONE_PRECISION)
def test_what_holds_in_one_precision_alone(change, program, precision, basis):
    model = basis(change(compile_program(program, VOCAB, LENGTH)))
    verdict = verify(program, model)
    assert verdict.status is Status.EQUIVALENT_IN_ONE_PRECISION and verdict.precision == precision
    assert not verdict.is_verified and verdict.elsewhere.inputs > 0
    assert f" inputs, the first {list(verdict.elsewhere.first)}" in str(verdict)
    assert (verdict.elsewhere.got != verdict.elsewhere.expected) or change is overflowing, "NaN has no value"
    assert f"equivalent on all 3,905 inputs in {precision} alone; in " in str(verdict)
    sampled = verify(program, model, limit=1, samples=2_000)
    assert sampled.status is Status.AGREES and sampled.precision == precision, "no proof by products either"
    assert not verify_weights(model, compile_program(program, VOCAB, LENGTH)).is_verified


def test_what_is_not_finite_is_the_same_as_nothing():
    model = overflowing(compile_program(DEEP, VOCAB, LENGTH))
    assert not is_bounded(model) and is_bounded(compile_program(DEEP, VOCAB, LENGTH))
    assert np.isnan(run(model, INPUTS).logits).any(-1)[INPUTS >= 0].all()
    assert verify(DEEP, model).elsewhere.inputs == len(INPUTS)
    again = verify_weights(model, rotate(model, 1))
    assert not again.is_verified, "NaN is not even the same as itself"
    json.dumps(verify(DEEP, model).to_dict(), allow_nan=False)


# ---------------------------------------------------------------- None, and the scale of the logits


def scaled(factor):
    return lambda unembedding: unembedding * np.float32(factor)


SCALES = {
    "a quarter": scaled(0.25),
    "ten times": scaled(10),
    "a hundredth": scaled(0.01),
    "centred": lambda unembedding: unembedding - unembedding.mean(1, keepdims=True),
    "shifted": lambda unembedding: unembedding + np.float32(0.5),
    "centred, a quarter": lambda unembedding: (unembedding - unembedding.mean(1, keepdims=True)) * np.float32(0.25),
}
NONE_EVERYWHERE = parse(
    "v1 = rasp.Select(rasp.tokens, rasp.tokens, rasp.Comparison.FALSE)\nprogram = rasp.Aggregate(v1, rasp.tokens)"
)
NONE_OF_TWO = parse("program = rasp.Map(lambda x: {0: 0, 1: 1, 3: 3, 4: 4}.get(x), rasp.tokens)")
IDENTITY = parse("program = rasp.Map(lambda x: x, rasp.tokens)")


@pytest.mark.parametrize("turn", [lambda w: w, lambda w: rotate(w, 1)], ids=["Tracr's order", "rotated"])
@pytest.mark.parametrize("scale", SCALES.values(), ids=SCALES)
def test_programs_are_judged_at_any_scale(scale, turn):
    for program in (REVERSE, SHIFT, IDENTITY):
        given = turn(compile_program(program, VOCAB, LENGTH))
        model = replace(given, unembedding=scale(given.unembedding))
        assert verify(program, model).is_verified
        for other in {REVERSE, SHIFT, IDENTITY, NONE_EVERYWHERE, NONE_OF_TWO} - {program}:
            verdict = verify(other, model)
            assert verdict.status is Status.REFUTED, (to_text(other), str(verdict))


@pytest.mark.parametrize("factor", [1e-4, 1e-6, 0.0])
def test_a_scale_that_cannot_be_read_is_said(factor):
    given = compile_program(IDENTITY, VOCAB, LENGTH)
    model = replace(given, unembedding=scaled(factor)(given.unembedding))
    for program in (IDENTITY, NONE_OF_TWO, REVERSE):
        verdict = verify(program, model)
        assert verdict.status is Status.NOT_COMPARABLE and "outside Tracr's scale" in str(verdict)
    assert verify(NONE_EVERYWHERE, model).is_verified == (factor == 0)


@pytest.mark.parametrize("factor", [0.6, 0.25, 0.01])
def test_a_faint_output_is_no_none(factor):
    """One column of the unembedding is scaled: Tracr decodes its value all the same."""
    given = compile_program(IDENTITY, VOCAB, LENGTH)
    unembedding = given.unembedding.copy()
    unembedding[:, given.output_values.index(2)] *= np.float32(factor)
    model = replace(given, unembedding=unembedding)
    assert verify(IDENTITY, model).is_verified
    verdict = verify(NONE_OF_TWO, model)
    assert not verdict.is_verified
    assert verdict.status is (Status.REFUTED if factor > 0.5 else Status.EQUIVALENT_BUT_FOR_NONE)
    if verdict.faint:
        assert verdict.faint.first == (2,) and verdict.faint.expected == (None,) and verdict.faint.got == (2,)
        assert "where the program gives None, the model decodes to a faint value on " in str(verdict)


@pytest.mark.parametrize("size", [0.01, 0.4, 5.0])
def test_no_proof_in_another_basis_lets_a_faint_output_pass(size):
    """A hidden unit without a partner writes an output where the program gives None; few inputs are run."""
    weights = widened(compile_program(SHIFT, VOCAB, LENGTH))
    token = weights.tensors["token_embed/embeddings"][weights.vocab.index(3)].nonzero()[0]
    last, output = weights.num_layers - 1, int(weights.unembedding[:, 0].argmax())
    model = changed(
        weights,
        at={
            (last, "mlp/linear_1/w"): {(direction, -1): 1.0 for direction in token},
            (last, "mlp/linear_1/b"): {-1: -1.0},
            (last, "mlp/linear_2/w"): {(-1, output): size},
        },
    )
    assert not verify(SHIFT, model).is_verified
    for given in (model, rotate(model, 1)):
        assert not verify(SHIFT, given, limit=1, samples=2).is_verified


def test_noise_leaves_no_none():
    model = add_noise(compile_program(SHIFT, VOCAB, LENGTH), 0.01, 0)
    assert verify(SHIFT, model).status is Status.EQUIVALENT_BUT_FOR_NONE


# ---------------------------------------------------------------- numbers that float32 cannot hold

ODD = 2**24 + 1
ONE_NUMBER = "v1 = rasp.numerical(rasp.Map(lambda x: {{0: 0, 1: {0}, 2: 0, 3: 0, 4: 0}}.get(x), rasp.tokens))\n"
NUMBERS = {
    "an output value": ONE_NUMBER + "program = v1",
    "an intermediate number": ONE_NUMBER + "program = rasp.Map(lambda x: {{0: 0, {0}: 1}}.get(x), v1)",
    "a coefficient": """v1 = rasp.numerical(rasp.Map(lambda x: x, rasp.tokens))
v2 = rasp.numerical(rasp.Map(lambda x: x, rasp.indices))
program = rasp.numerical(rasp.LinearSequenceMap(v1, v2, {0}, 1))""",
    "a sum": ONE_NUMBER
    + """v2 = rasp.numerical(rasp.Map(lambda x: x, rasp.indices))
program = rasp.numerical(rasp.LinearSequenceMap(v1, v2, 1, 1))""",
}


@pytest.mark.parametrize("text", NUMBERS.values(), ids=NUMBERS)
def test_numbers_that_float32_does_not_hold_are_refused(text):
    odd, even = (parse(text.format(number)) for number in (ODD, ODD - 1))
    models = [compile_program(program, VOCAB, LENGTH) for program in (odd, even)]
    for program in (odd, even):
        for model in models:
            verdict = verify(program, model)
            if verdict.is_verified and verdict.departure is None:
                assert_says_the_same(program, model)
    verdict = verify(odd, models[1])
    assert verdict.status is Status.NOT_COMPARABLE
    assert "expected numbers that float32 holds to within 0.001, got 1677721" in str(verdict)


def assert_says_the_same(program, model):
    """Without the verifier: RASP's own answers, and the model in float32."""
    for row, codes in enumerate(INPUTS[:200]):
        tokens = [VOCAB[code] for code in codes if code >= 0]
        given = run(model, INPUTS[row : row + 1]).defined(0)
        assert answer(program, tokens) == pytest.approx(given, abs=1e-3)


@pytest.mark.parametrize("number", [ODD, 2**40 + 1])
def test_large_categorical_values_are_names(number):
    """A token or a categorical output is a direction, whose name is exact."""
    vocab = (0, number, number - 1)
    text = "program = rasp.Map(lambda x: {{0: {}, {}: 0}}.get(x), rasp.tokens)"
    program, wrong = (parse(text.format(of_zero, number)) for of_zero in (number, number - 1))
    model = compile_program(program, vocab, 2)
    assert verify(program, model).is_verified
    assert verify(wrong, model).status is Status.REFUTED


# ---------------------------------------------------------------- where RASP says another thing than Tracr makes of it

IS_ONE = "v1 = rasp.numerical(rasp.Map(lambda x: x == 1, rasp.tokens))\n"
SHARE = (
    IS_ONE
    + """v2 = rasp.Select(rasp.tokens, rasp.tokens, rasp.Comparison.TRUE)
v3 = rasp.numerical(rasp.Aggregate(v2, v1, default=0))
"""
)
DEPARTURES = {
    "a length that cannot be counted": (
        "program = rasp.SelectorWidth(rasp.Select(rasp.tokens, rasp.tokens, rasp.Comparison.TRUE))",
        (0, 1),
        12,
        (0,) * 10,
    ),
    "a table without an entry for two thirds": (
        SHARE + "program = rasp.Map(lambda x: {0.0: 0, 0.5: 1, 1.0: 1}.get(x), v3)",
        (0, 1),
        3,
        (0, 0, 1),
    ),
    "a table whose keys are a little off": (
        SHARE.replace("TRUE", "EQ")
        + "program = rasp.Map(lambda x: {0.0: 0, 1.0000000001: 1, 0.5: 0, 1.0: 1}.get(x), v3)",
        (0, 1),
        3,
        None,
    ),
    "an average of different values": (
        "v1 = rasp.Select(rasp.tokens, rasp.tokens, rasp.Comparison.TRUE)\nprogram = rasp.Aggregate(v1, rasp.tokens)",
        (0, 1),
        3,
        (0, 1),
    ),
    "a comparison with None": (
        """v1 = rasp.Map(lambda x: {0: 0}.get(x), rasp.tokens)
program = rasp.SelectorWidth(rasp.Select(v1, v1, rasp.Comparison.EQ))""",
        (0, 1),
        3,
        (1,),
    ),
    "a number below 0 that the ReLU cuts off": (
        "program = rasp.numerical(rasp.Map(lambda x: x - 1, rasp.tokens))",
        (0, 1),
        3,
        (0,),
    ),
}


# In single precision, what these give hangs on the order of the sums: slopes above a hundred thousand, or millions.
ORDERED = {
    "a step that float32 cannot take": """v1 = rasp.numerical(
    rasp.Map(lambda x: {0: 4000000, 1: 4000001, 2: 4000002}.get(x), rasp.tokens)
)
program = rasp.Map(lambda x: {4000000: 0, 4000001: 1, 4000002: 2}.get(x), v1, simplify=False)""",
    "steps between numbers that are close": """v1 = rasp.numerical(
    rasp.Map(lambda x: {0: 0.1, 1: 0.1005, 2: 999}.get(x), rasp.tokens)
)
program = rasp.numerical(rasp.Map(lambda x: {0.1: 252, 0.1005: 1004, 999: 100}.get(x), v1, simplify=False))""",
}


@pytest.mark.parametrize("text", ORDERED.values(), ids=ORDERED)
@pytest.mark.parametrize("change", [lambda w: w, lambda w: permute(w, 1)], ids=["Tracr's order", "permuted"])
def test_identical_weights_are_no_proof_where_the_order_of_sums_decides(text, change):
    program = parse(text)
    verdict = verify(program, change(compile_program(program, (0, 1, 2), 2)))
    assert verdict.status is Status.EQUIVALENT_IN_ONE_PRECISION and verdict.precision == "float64"
    assert not verdict.is_verified and verdict.elsewhere.inputs > 0


@pytest.mark.parametrize(("text", "vocab", "length", "first"), DEPARTURES.values(), ids=DEPARTURES)
def test_where_rasp_says_another_thing_the_verdict_says_so(text, vocab, length, first, tmp_path, capsys):
    program = parse(text)
    model = compile_program(program, vocab, length)
    verdict = verify(program, model)
    if first is None:
        assert verdict.departure is None
        return
    assert verdict.is_verified and verdict.departure.first == first
    assert "RASP itself gives another answer than Tracr's model on" in str(verdict)
    assert "Where RASP itself says something else" in reservations_html(verdict)
    try:
        assert verdict.departure.expected == tuple(answer(program, first))
    except NoAnswerError:
        assert verdict.departure.expected is None
    codes = np.array([[vocab.index(token) for token in first]])
    assert list(verdict.departure.got) == pytest.approx(run(model, codes).defined(0))
    certificate = Certificate.from_json(certify(program, model).to_json())
    assert certificate.departure["first"] == list(first) and certificate.summary == str(verdict)
    recheck(certificate, model)
    model.save(tmp_path / "model.safetensors")
    (tmp_path / "program.py").write_text(text)
    assert main(["verify", str(tmp_path / "model.safetensors"), str(tmp_path / "program.py"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["departure"]["first"] == list(first)


# ---------------------------------------------------------------- exit status


EXITS = {
    "identical": (REVERSE, lambda w: w, [], 0, True),
    "equivalent": (REVERSE, lambda w: rotate(w, 1), [], 0, True),
    "refuted": (IDENTITY, lambda w: w, [], 1, False),
    "sampled": (REVERSE, lambda w: add_noise(w, 1e-4, 0), ["--limit", "1", "--samples", "1"], 3, False),
    "one precision": (REVERSE, hidden_by_a_large_number, [], 3, False),
    "not comparable": (parse(NUMBERS["an output value"].format(ODD)), lambda w: w, [], 3, False),
}


@pytest.mark.parametrize(("program", "change", "options", "status", "proven"), EXITS.values(), ids=EXITS)
def test_the_exit_status_says_what_is_proven(program, change, options, status, proven, tmp_path, capsys):
    model, code, document = (tmp_path / name for name in ("model.safetensors", "program.py", "certificate.json"))
    change(compile_program(REVERSE, VOCAB, LENGTH)).save(model)
    code.write_text(to_text(program))
    command = ["verify", str(model), str(code), "--json", *options]
    assert main([*command, "--write-certificate", str(document)]) == status
    assert json.loads(capsys.readouterr().out)["proven"] is proven
    assert main(["verify", "--certificate", str(document)]) == status
