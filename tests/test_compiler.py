"""Our compiler, evaluator and forward pass against the tracr package, the oracle."""

import itertools
import tracemalloc

import numpy as np
import pytest
from cases import CASES, LENGTH, VOCAB
from tracr.compiler import compiling, lib, test_cases
from tracr.rasp import rasp

from dataset_builder.corpus import CONFIGS
from dataset_builder.sampler import sample_programs
from trade_hf.cli import main
from trade_hf.compiled.bridge import from_tracr, from_tracr_model, same_as_tracr, to_tracr
from trade_hf.compiled.compiler import compile_program
from trade_hf.compiled.forward import run
from trade_hf.compiled.weights import TracrWeights
from trade_hf.rasp.evaluate import all_inputs, evaluate
from trade_hf.rasp.folding import folded
from trade_hf.rasp.tables import UnsupportedError, sort_values
from trade_hf.rasp.text import parse, to_text

LIBRARY = {case["testcase_name"]: case for case in test_cases.TEST_CASES}
LIBRARY["length of lib"] = {"program": lib.length, "vocab": {"a", "b"}, "max_seq_len": 4}
RANDOM, WIDE = 60, 15
UNSUPPORTED = {case["testcase_name"]: case for case in test_cases.UNSUPPORTED_TEST_CASES}


def assert_same_weights(ours, theirs):
    assert ours.tensors.keys() == theirs.tensors.keys()
    for name, tensor in theirs.tensors.items():
        assert np.array_equal(ours.tensors[name], tensor), name
    assert np.array_equal(ours.unembedding, theirs.unembedding)
    assert (ours.vocab, ours.output_values, ours.max_seq_len) == (
        theirs.vocab,
        theirs.output_values,
        theirs.max_seq_len,
    )


def same(first, second):
    return len(first) == len(second) and all(
        a == b or (isinstance(a, float) and abs(a - b) < 1e-4) for a, b in zip(first, second, strict=True)
    )


def check_against_tracr(program, sop, model, vocab, length, seed=0):
    """Evaluator and forward pass on a few inputs of full length (JAX compiles each length anew)."""
    ours = compile_program(program, vocab, length)
    inputs = np.random.default_rng(seed).integers(0, len(vocab), (4, length))
    meant, given = evaluate(program, inputs, vocab, length), run(ours, inputs)
    for i, codes in enumerate(inputs):
        tokens = [vocab[code] for code in codes]
        if meant.valid[i]:
            assert same(meant.decode(i), sop(tokens)), tokens
        assert same_as_tracr(given, i, model.apply([ours.bos, *tokens]), ours.unembedding), tokens


@pytest.mark.parametrize("name", LIBRARY)
def test_library_programs(name):
    case = LIBRARY[name]
    vocab, length = case["vocab"], case["max_seq_len"]
    model = compiling.compile_rasp_to_model(case["program"], vocab, length)
    imported = from_tracr(case["program"], vocab, length)
    ours = compile_program(imported.program, vocab, length, imported.labels)
    assert_same_weights(ours, from_tracr_model(model))
    assert parse(to_text(imported.program)) == imported.program
    if "test_input" in case and len(case["test_input"]) <= length:
        order = tuple(sort_values(vocab))
        codes = np.array([[order.index(token) for token in case["test_input"]]])
        assert evaluate(imported.program, codes, order, length).decode(0) == case["expected_output"]


def test_another_output_is_not_taken_for_tracrs():
    case = next(case for case in CASES if case.name == "reverse")
    model = compiling.compile_rasp_to_model(to_tracr(case.program), set(VOCAB), LENGTH)
    ours, inputs = compile_program(case.program, VOCAB, LENGTH), all_inputs(len(VOCAB), LENGTH)
    full = inputs[(inputs >= 0).all(1)]
    theirs = model.apply([ours.bos, *(VOCAB[code] for code in full[7])])
    given = run(ours, full)
    assert same_as_tracr(given, 7, theirs, ours.unembedding)
    different = next(row for row in range(len(full)) if given.decode(row) != given.decode(7))
    assert not same_as_tracr(given, different, theirs, ours.unembedding)


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_table_of_cases(case):
    namespace = {}
    exec(to_text(case.program), namespace)  # our own text, built from a Program, run as a user would
    model = compiling.compile_rasp_to_model(namespace["program"], set(VOCAB), LENGTH)
    assert_same_weights(compile_program(case.program, VOCAB, LENGTH), from_tracr_model(model))
    check_against_tracr(case.program, namespace["program"], model, VOCAB, LENGTH)


# Texts that do not say simplify=False: tracr folds a map of a map into one.
FOLDED = {
    "a map of a map": """v1 = rasp.Map(lambda x: x + 1, rasp.tokens).named("v1")
v2 = rasp.Map(lambda x: x * 2, v1).named("v2")""",
    "of a map of a map": """v1 = rasp.Map(lambda x: x % 3, rasp.indices).named("v1")
v2 = rasp.Map(lambda x: x + 1, rasp.Map(lambda x: x * x, v1)).named("v2")
v3 = rasp.SequenceMap(lambda x, y: x + y, v2, rasp.tokens).named("v3")""",
    "the lower one is read by another line too": """v1 = rasp.Map(lambda x: x % 3, rasp.tokens).named("v1")
v2 = rasp.Map(lambda x: x + 1, v1).named("v2")
v3 = rasp.SequenceMap(lambda x, y: x * y, v1, v2).named("v3")""",
    "one of them is kept": """v1 = rasp.Map(lambda x: x % 3, rasp.tokens).named("v1")
v2 = rasp.Map(lambda x: x + 1, v1, simplify=False).named("v2")
v3 = rasp.Map(lambda x: x > 1, v2, simplify=True).named("v3")""",
    "a number between them": """v1 = rasp.numerical(rasp.Map(lambda x: x / 2, rasp.tokens)).named("v1")
v2 = rasp.Map(lambda x: x > 1, v1).named("v2")""",
    "of a number": """v1 = rasp.numerical(rasp.Map(lambda x: x == 2, rasp.tokens)).named("v1")
v2 = rasp.Select(rasp.indices, rasp.indices, rasp.Comparison.LEQ).named("v2")
v3 = rasp.numerical(rasp.Aggregate(v2, v1, default=0)).named("v3")
v4 = rasp.Map(lambda x: x * 2, v3).named("v4")
v5 = rasp.numerical(rasp.Map(lambda x: x > 1, v4)).named("v5")""",
    "of what is undefined": """v1 = rasp.Map(lambda x: {0: 0, 1: 2}.get(x), rasp.tokens).named("v1")
v2 = rasp.Map(lambda x: x == 0, v1).named("v2")""",
}


@pytest.mark.parametrize("name", FOLDED)
def test_maps_of_maps_are_folded_as_tracr_folds_them(name, tmp_path):
    text = "\n".join(["from tracr.rasp import rasp", FOLDED[name], f"program = v{FOLDED[name].count('named')}"])
    namespace = {}
    exec(text, namespace)  # this table's own text
    theirs = from_tracr_model(compiling.compile_rasp_to_model(namespace["program"], set(VOCAB), LENGTH))
    program = parse(text)
    assert_same_weights(compile_program(folded(program, VOCAB, LENGTH), VOCAB, LENGTH), theirs)
    (tmp_path / "program.py").write_text(text)
    assert main(["compile", str(tmp_path / "program.py"), "-o", str(tmp_path / "model.safetensors")]) == 0
    assert_same_weights(TracrWeights.load(tmp_path / "model.safetensors"), theirs)
    kept = parse(to_text(program))
    assert folded(kept, VOCAB, LENGTH) is kept, "what is written here says simplify=False"


def test_folding_says_what_tracr_fails_on_and_ends():
    undefined = "v1 = rasp.Map(lambda x: {0: 0}.get(x), rasp.tokens)\nprogram = rasp.Map(lambda x: x + 1, v1)"
    with pytest.raises(UnsupportedError, match=r"line 2: expected simplify=False to keep .*NoneType"):
        folded(parse(undefined), VOCAB, LENGTH)
    squares = "v = rasp.Map(lambda x: x + 2, rasp.tokens)\n" + "v = rasp.Map(lambda x: x * x, v)\n" * 90
    with pytest.raises(UnsupportedError, match="expected numbers of up to"):
        folded(parse(f"{squares}program = v"), VOCAB, LENGTH)


@pytest.fixture(scope="module")
def random_samples():
    """Most over one vocabulary, others over vocabularies (strings too) and lengths of their own, which take longer."""
    streams = [sample_programs("compiler", CONFIGS[name].sampler) for name in ("base", "wide")]
    return [*itertools.islice(streams[0], RANDOM - WIDE), *itertools.islice(streams[1], WIDE)]


@pytest.mark.parametrize("number", range(RANDOM))
def test_random_programs(random_samples, number):
    sample = random_samples[number]
    sop = to_tracr(sample.spelled)
    model = compiling.compile_rasp_to_model(sop, set(sample.vocab), sample.max_seq_len)
    assert_same_weights(sample.compile(), from_tracr_model(model))
    if number % 3 == 0:
        check_against_tracr(sample.spelled, sop, model, sample.vocab, sample.max_seq_len, number)


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_what_tracr_refuses_is_refused(name):
    case = UNSUPPORTED[name]
    with pytest.raises(UnsupportedError):
        from_tracr(case["program"], case["vocab"], case["max_seq_len"])


def test_refusals():
    with pytest.raises(UnsupportedError, match="must read tokens"):
        compile_program(parse("program = rasp.Map(lambda x: x + 1, rasp.indices)"), VOCAB, LENGTH)
    with pytest.raises(ValueError, match="must not contain 'compiler_bos'"):
        compile_program(parse("program = rasp.Map(lambda x: x, rasp.tokens)"), {"a", "compiler_bos"}, LENGTH)
    with pytest.raises(UnsupportedError, match="averages 0 and 1 alone"):
        text = """v1 = rasp.numerical(rasp.Map(lambda x: x, rasp.tokens))
v2 = rasp.Select(rasp.tokens, rasp.tokens, rasp.Comparison.EQ)
program = rasp.numerical(rasp.Aggregate(v2, v1, default=0))"""
        compile_program(parse(text), VOCAB, LENGTH)
    with pytest.raises(UnsupportedError, match="more than the key size"):
        text = """v1 = rasp.SequenceMap(lambda x, y: x + y, rasp.tokens, rasp.indices)
v2 = rasp.SequenceMap(lambda x, y: x * y, v1, rasp.tokens)
v3 = rasp.Map(lambda x: x == 1, rasp.tokens)
v4 = rasp.Select(v3, v3, rasp.Comparison.EQ)
program = rasp.Aggregate(v4, v2)"""
        compile_program(parse(text), VOCAB, LENGTH)
    with pytest.raises(TypeError, match="expected a tracr s-op"):
        from_tracr("tokens", VOCAB, LENGTH)
    with pytest.raises(TypeError, match="expected a tracr AssembledTransformerModel"):
        from_tracr_model(rasp.tokens)


def test_mixed_lengths_in_one_batch(samples):
    for sample in samples[:10]:
        weights = compile_program(sample.program, sample.vocab, sample.max_seq_len)
        inputs = all_inputs(len(sample.vocab), sample.max_seq_len)[::37]
        together = run(weights, inputs, dtype="float64")  # a product of one row is rounded otherwise
        for row in range(0, len(inputs), 9):
            alone = run(weights, inputs[row : row + 1], dtype="float64")
            assert alone.decode(0) == pytest.approx(together.decode(row), abs=1e-5)


HUNGRY = {
    "a format": ("program = rasp.Map(lambda x: x % 2, rasp.tokens)", ("%999999999d", "b"), 3),
    "a text many times": ("program = rasp.SequenceMap(lambda x, y: x * y, rasp.tokens, rasp.tokens)", ("a", 10**9), 3),
    "many long texts": (
        "program = rasp.SequenceMap(lambda x, y: x + y, rasp.tokens, rasp.tokens)",
        [f"{number:0500}" for number in range(400)],
        3,
    ),
    "a length of millions": ("program = rasp.Map(lambda x: x, rasp.tokens)", (0, 1), 30_000_000),
    "a vocabulary of thousands": ("program = rasp.Map(lambda x: x, rasp.tokens)", range(100_000), 3),
}


@pytest.mark.parametrize("name", HUNGRY)
def test_what_would_take_too_much_is_refused_at_once(name):
    text, vocab, length = HUNGRY[name]
    tracemalloc.start()
    with pytest.raises(UnsupportedError, match="expected"):
        compile_program(parse(text), vocab, length)
    assert tracemalloc.get_traced_memory()[1] < 20_000_000
    tracemalloc.stop()
