"""Functions read from the weights, given operations and arguments: in any order and any orthogonal basis."""

import itertools

import pytest
from cases import CASES, LENGTH, VOCAB

from trade_hf.circuit.reading import read_structures
from trade_hf.compiled.compiler import compile_program
from trade_hf.compiled.transforms import permute, rotate
from trade_hf.rasp.canonical import canonicalise, name_functions, spell
from trade_hf.rasp.functions import FUNCTIONS, Kind
from trade_hf.rasp.program import Line, Program
from trade_hf.rasp.text import parse
from trade_hf.verification import verify


def forgetful(program):
    """The same operations and arguments, all functions replaced (those of linear sequence maps stay: factors)."""
    blank = {kind: next(iter(names.values()), None) for kind, names in FUNCTIONS.items()}
    return Program(
        tuple(
            Line(line.op, line.args, blank[line.op.kind] if line.op.kind not in (None, Kind.LINEAR) else line.function)
            for line in program.lines
        )
    )


def readings(program, weights):
    return [name_functions(structure) for structure in itertools.islice(read_structures(program, weights), 50)]


# A partly undefined table writes nothing where it is undefined; which values those are is not looked for.
READABLE = [case for case in CASES if "partly undefined" not in case.name]


@pytest.mark.parametrize("case", READABLE, ids=lambda c: c.name)
@pytest.mark.parametrize("change", [permute, rotate])
def test_cases(case, change):
    canonical = canonicalise(case.program, VOCAB, LENGTH)
    weights = change(compile_program(canonical, VOCAB, LENGTH), 7)
    assert any(verify(program, weights).is_verified for program in readings(forgetful(canonical), weights))


def test_random_programs(samples):
    found = 0
    for seed, sample in enumerate(samples):
        weights = (permute, rotate)[seed % 2](compile_program(sample.program, sample.vocab, sample.max_seq_len), seed)
        found += sample.program in readings(forgetful(sample.program), weights)
    assert found >= 0.9 * len(samples)


@pytest.mark.parametrize("change", [permute, rotate])
def test_both_widths_of_one_selector(change):
    """Their heads read the same, and only what is behind them tells which is which."""
    text = """v1 = rasp.Select(rasp.tokens, rasp.indices, lambda k, q: q == k + 1)
v2 = rasp.SelectorWidth(v1)
v3 = rasp.numerical(rasp.SelectorWidth(v1))
v4 = rasp.Map(lambda x: x != 4, v3)
program = rasp.SequenceMap(lambda x, y: x != y, v4, v2)"""
    canonical = canonicalise(parse(text), VOCAB, LENGTH)
    assert canonical in readings(forgetful(canonical), change(compile_program(canonical, VOCAB, LENGTH), 1))


@pytest.mark.parametrize("change", [permute, rotate])
@pytest.mark.parametrize("third", ["rasp.Map(lambda x: x == 3, v2)", "rasp.numerical(rasp.Map(lambda x: x < 2, v2))"])
def test_several_maps_of_one_number(third, change):
    text = f"""v1 = rasp.Select(rasp.indices, rasp.tokens, rasp.Comparison.LEQ)
v2 = rasp.numerical(rasp.SelectorWidth(v1))
v3 = rasp.Map(lambda x: x // 2, v2)
v4 = rasp.Map(lambda x: x % 2, v2)
v5 = {third}
v6 = rasp.SequenceMap(lambda x, y: x - y, v3, v4)
v7 = rasp.Map(lambda x: x == 0, v5, simplify=False)
program = rasp.SequenceMap(lambda x, y: x + y, v6, v7)"""
    canonical = canonicalise(parse(text), VOCAB, LENGTH)
    found = readings(forgetful(canonical), change(compile_program(canonical, VOCAB, LENGTH), 1))
    assert any(canonicalise(program, VOCAB, LENGTH) == canonical for program in found)


def test_sums_of_shares_are_those_that_tracr_computes():
    """1/3 - 1 is not the float nearest to -2/3, and what reads it shows the difference in its values."""
    text = """v1 = rasp.numerical(rasp.Map(lambda x: x < 4, rasp.indices))
v2 = rasp.Select(rasp.indices, rasp.tokens, lambda k, q: q == k + 2)
v3 = rasp.numerical(rasp.Aggregate(v2, v1, default=0))
v4 = rasp.numerical(rasp.LinearSequenceMap(v1, v3, -1, 1))
v5 = rasp.Map(lambda x: x % 2, v4)
program = rasp.SequenceMap(lambda x, y: min(x, y), rasp.tokens, v5)"""
    canonical = canonicalise(parse(text), VOCAB, LENGTH)
    assert canonical in readings(forgetful(canonical), permute(compile_program(canonical, VOCAB, LENGTH), 1))


def test_a_lambda_without_a_name_becomes_a_table():
    text = """v1 = rasp.Map(lambda x: {0: 3, 1: 0, 2: 3, 3: 1, 4: 0}.get(x), rasp.tokens)
v2 = rasp.Select(v1, rasp.indices, lambda k, q: (k, q) in [(3, 0), (1, 2), (0, 1), (3, 4)])
program = rasp.SelectorWidth(v2)"""
    program = parse(text)
    weights = permute(compile_program(program, VOCAB, LENGTH), 3)
    [read] = readings(forgetful(program), weights)
    assert any(line.function and line.function.table for line in read.lines)
    assert str(verify(read, weights)) == "identical weights"


def test_strings():
    text = """v1 = rasp.Map(lambda x: {'a': 0, 'b': 1, 'c': 0}.get(x), rasp.tokens)
v2 = rasp.Select(rasp.indices, v1, rasp.Comparison.EQ)
program = rasp.Aggregate(v2, rasp.tokens)"""
    program, vocab = parse(text), ("a", "b", "c")
    weights = rotate(compile_program(program, vocab, 4), 3)
    [read] = readings(forgetful(program), weights)
    assert verify(spell(read, vocab, 4, weights.output_values), weights).is_verified


def test_what_does_not_fit_gives_nothing(samples):
    weights = compile_program(samples[0].program, samples[0].vocab, samples[0].max_seq_len)
    others = [sample for sample in samples[1:20] if len(sample.program) > len(samples[0].program)]
    for sample in others:
        assert not any(verify(program, weights).is_verified for program in readings(sample.program, weights))
