"""Programs and their text: round trips, errors with line and column, nothing that a user feeds in gets through."""

import itertools

import pytest
from cases import CASES, LENGTH, VOCAB
from hypothesis import given, settings
from hypothesis import strategies as st

from dataset_builder.sampler import sample_programs
from trade_hf.compiled.compiler import compile_program
from trade_hf.compiled.transforms import permute
from trade_hf.decompiler import decompile
from trade_hf.rasp.evaluate import evaluate
from trade_hf.rasp.functions import FUNCTIONS, Function, Kind, find_named, linear, named_by_text, tabulated
from trade_hf.rasp.program import TOKENS, Line, Op, Program, RaspError
from trade_hf.rasp.tables import Domain, first_appearance, forget_domains, unary_image
from trade_hf.rasp.text import RaspSyntaxError, parse, to_text
from trade_hf.tokenization_rasp import VOCABULARY, allowed_next, build_tokenizer, from_ids, to_ids, to_tokens
from trade_hf.verification import Status

SAMPLES = list(itertools.islice(sample_programs("language"), 100))


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_text_round_trip_and_meaning(case):
    program = case.program
    assert parse(to_text(program)) == program
    codes = [[VOCAB.index(token) for token in case.given] + [-1] * (LENGTH - len(case.given))]
    import numpy as np

    result = evaluate(program, np.array(codes), VOCAB, LENGTH)
    got = result.decode(0)
    assert got == pytest.approx(case.expect) if result.values is None else got == case.expect


@pytest.mark.parametrize("sample", SAMPLES, ids=range(len(SAMPLES)))
def test_round_trips_of_random_programs(sample):
    assert parse(to_text(sample.program)) == sample.program
    ids = to_ids(sample.program)
    assert from_ids(ids) == sample.program
    assert all(ids[i] in allowed_next(ids[:i]) for i in range(len(ids)))
    tokenizer = build_tokenizer()
    assert tokenizer(" ".join(to_tokens(sample.program)))["input_ids"] + [tokenizer.eos_token_id] == ids
    assert tokenizer.decode(ids, skip_special_tokens=True).split() == to_tokens(sample.program)


WORDS = {
    "program = rasp.Map(lambda x: x == 'b', rasp.tokens)": "lambda x: x == 'b'",
    'program = rasp.Map(lambda x: x != "b\'s", rasp.tokens)': 'lambda x: x != "b\'s"',
    "v1 = rasp.Select(rasp.tokens, rasp.indices, lambda k, q: k == 'b')\nprogram = rasp.Aggregate(v1, rasp.indices)": (
        "lambda k, q: k == 'b'"
    ),
    "v1 = rasp.Select(rasp.indices, rasp.tokens, lambda k, q: q != 'b')\nprogram = rasp.Aggregate(v1, rasp.indices)": (
        "lambda k, q: q != 'b'"
    ),
    "v1 = rasp.Select(rasp.tokens, rasp.tokens, rasp.Comparison.TRUE)\nprogram = rasp.SelectorWidth(v1)": (
        "rasp.Comparison.TRUE"
    ),
    "v1 = rasp.Select(rasp.tokens, rasp.tokens, lambda a, b: a == b)\nprogram = rasp.SelectorWidth(v1)": (
        "rasp.Comparison.EQ"
    ),
}


@pytest.mark.parametrize("text", WORDS)
def test_comparisons_of_words_are_said_by_name(text):
    vocab = ["a", "b", "b's"]
    program = parse(text)
    assert parse(to_text(program)) == program
    result = decompile(permute(compile_program(program, vocab, 4), 0))
    assert result.status is Status.IDENTICAL and WORDS[text] in result.code and "(x)" not in result.code


@pytest.mark.parametrize(
    "name", ["x == 'a' or 'b'", "x == 'a' == 'b'", "y == 'a'", "x == 'a' + 'b'", "x == f('a')", "x < 'a'"]
)
def test_nothing_but_a_comparison_with_one_text_is_a_name(name):
    assert named_by_text(Kind.UNARY, name) is None
    with pytest.raises(ValueError, match="no function of"):
        Function(Kind.UNARY, name=name)


def test_what_a_program_gives_does_not_depend_on_what_was_computed_before():
    """True, 1 and 1.0 are equal and hash alike, so a careless cache would answer one with the other."""
    same = FUNCTIONS[Kind.UNARY]["x"]
    for values in ((0, 1), (False, True), (0.0, 1.0), (0, 1)):
        assert list(map(type, unary_image(same, values))) == list(map(type, values))
        assert list(map(type, first_appearance(values)[1])) == list(map(type, values))
        assert list(map(type, Domain.of(values).values)) == list(map(type, values))
    forget_domains()
    assert Domain.of((0, 1)) is Domain.of((0, 1)) is not Domain.of((False, True))
    negative = unary_image(FUNCTIONS[Kind.UNARY]["-x"], (0.0,))
    assert str(negative[0]) == "0.0"


ERRORS = [
    ("x = 1", "line 1, column 5: expected a variable or a call of rasp.…, got `1`"),
    ("program = rasp.tokens", "line 1, column 1: expected a line of its own as the output"),
    ("v1 = rasp.Map(lambda x: x + 100, rasp.tokens)", "line 1, column 25: expected a named function such as `x`"),
    ("v1 = rasp.Map(lambda n: n + 100, rasp.tokens)", "got `n + 100`"),
    ("v1 = rasp.Map(lambda n: x, rasp.tokens)", "line 1, column 25: expected an argument of `lambda n: …`, got `x`"),
    ("v1 = rasp.SequenceMap(lambda a, a: a, rasp.tokens, rasp.tokens)", "expected `lambda x, y: …`"),
    ("v1 = rasp.Map(lambda x, y: x, rasp.tokens)", "expected `lambda x: …`, got `lambda x, y: …`"),
    ("v1 = rasp.Map(lambda x=1: x, rasp.tokens)", "expected `lambda x: …`, got `lambda x=1: …`"),
    ("v1 = rasp.Map(lambda *x: x, rasp.tokens)", "expected `lambda x: …`, got `lambda *x: …`"),
    ("v1 = rasp.Aggregate(rasp.tokens, rasp.tokens)", "expected a selector as an argument of aggregate, got tokens"),
    (
        "v1 = rasp.Select(rasp.tokens, rasp.tokens, rasp.Comparison.EQ)\nprogram = v1",
        "line 2, column 1: expected an s-op as the output, got a selector",
    ),
    (
        "v1 = rasp.numerical(rasp.Map(lambda x: x, rasp.tokens))\n"
        "v2 = rasp.Select(v1, rasp.tokens, rasp.Comparison.EQ)",
        "line 2, column 6: expected a categorical s-op as an argument of select, got v1, a numerical s-op",
    ),
    ("import os", "line 1, column 1: expected `name = rasp.…`, got `import os`"),
    ("from os import system", "expected `from tracr.rasp import rasp`"),
    ("\n\nv1 = (", "line 3, column 6"),
    ("program = v9", "line 1, column 11: expected a variable that is defined above, got `v9`"),
    ("é = rasp.tokens; program = v9", "line 1, column 28: expected a variable that is defined above, got `v9`"),
    ("v1 = rasp.Length(rasp.tokens)", "expected one of rasp.{numerical"),
    ("v1 = rasp.Map(lambda x: __import__('os').system('ls'), rasp.tokens)", "expected a named function"),
    ("v1 = rasp.Map(lambda x: {0: open('f')}.get(x), rasp.tokens)", "expected a named function"),
    ("v1 = rasp.Map(lambda x: x, rasp.tokens, 3)", "expected simplify=False"),
    ("v1 = rasp.Map(lambda x: x)", "expected rasp.Map(f, inner, simplify=…), got `rasp.Map(lambda x: x)`"),
    ("v1 = rasp.Map(lambda x: x, rasp.tokens, f=3)", "expected rasp.Map(f, inner, simplify=…)"),
    ("v1 = rasp.Map(lambda x: x, rasp.tokens, **{})", "expected rasp.Map(f, inner, simplify=…)"),
    ("v1 = rasp.Map(*rasp.tokens, rasp.tokens)", "with its arguments one by one"),
    ("v1 = rasp.Map(lambda x: x, rasp.tokens).named()", "expected rasp.named(name)"),
    ("v1 = rasp.numerical(rasp.SequenceMap(lambda x, y: x + y, rasp.tokens, rasp.indices))", "Tracr has no numerical"),
    ("v1 = rasp.LinearSequenceMap(rasp.tokens, rasp.indices, 1, 2)", "Tracr has no categorical one"),
    (
        "v1 = rasp.numerical(rasp.LinearSequenceMap(rasp.tokens, rasp.indices, 1, 2))",
        "expected a numerical s-op as an argument of linear_sequence_map, got tokens",
    ),
    ("v1 = rasp.Map(lambda x: x, rasp.tokens)", "expected `program = …` as the last line"),
    ("def f(x):\n    return rasp.tokens", "line 1, column 1: expected a function without arguments"),
    ("def f():\n    v1 = rasp.tokens", "line 2, column 5: expected `return …` as the last line of a function"),
    ("def f():\n    v1 = rasp.tokens\n    return v1\nprogram = v1", "line 4, column 11: expected a variable"),
    ("def f():\n    return f()", "line 2, column 12: expected a variable or a call of rasp.…, got `f()`"),
    ("```\nx\n```\n```\ny\n```", "line 4, column 1: expected one block of code"),
    ("\0", "expected Python that builds a RASP program"),
    ("(" * 5000, "expected Python that builds a RASP program"),
    ("x = " + "-" * 20000 + "1", "expected"),
    ("", "expected `program = …`"),
]
SELECT = "v1 = rasp.Select(rasp.tokens, rasp.tokens, rasp.Comparison.EQ)\n"
NUMBER = "v2 = rasp.numerical(rasp.Map(lambda x: x == 1, rasp.tokens))\n"
DEFAULTS_THAT_TRACR_REFUSES = [
    ("rasp.Aggregate(v1, rasp.tokens, default=0)", "column 51: expected no default but None", "got `0`"),
    ("rasp.Aggregate(v1, rasp.tokens, 0)", "expected no default but None", "got `0`"),
    ("rasp.Aggregate(v1, rasp.tokens, default='a')", "expected no default but None", "got `'a'`"),
    ("rasp.numerical(rasp.Aggregate(v1, v2))", "expected default=0", "got `None`"),
    ("rasp.numerical(rasp.Aggregate(v1, v2, default=None))", "expected default=0", "got `None`"),
    ("rasp.numerical(rasp.Aggregate(v1, v2, default=1))", "expected default=0", "got `1`"),
]


@pytest.mark.parametrize(("line", "wanted", "got"), DEFAULTS_THAT_TRACR_REFUSES)
def test_a_default_that_tracr_refuses_is_refused(line, wanted, got):
    with pytest.raises(RaspSyntaxError) as error:
        parse(f"{SELECT}{NUMBER}program = {line}")
    assert wanted in str(error.value) and got in str(error.value)
    from tracr.compiler import validating
    from tracr.rasp import rasp

    names = {"rasp": rasp}
    exec(f"{SELECT}{NUMBER}program = {line}", names)  # this table's own text
    assert "default value" in validating.static_validate(names["program"])[0].reason


# What people and language models write, and what `to_text` writes of it.
SPELLINGS = [
    ("rasp.Map(f=lambda x: x + 1, inner=rasp.tokens)", "rasp.Map(lambda x: x + 1, rasp.tokens)"),
    ("rasp.Map(inner=rasp.tokens, f=lambda x: x + 1)", "rasp.Map(lambda x: x + 1, rasp.tokens)"),
    ("rasp.Map(lambda x: x, rasp.tokens).named(name='n')", "rasp.Map(lambda x: x, rasp.tokens)"),
    ("rasp.Map(lambda x: x + (2 - 1), rasp.tokens)", "lambda x: x + 1"),
    ("rasp.Map(lambda x: {2 * 3: -(4 // 2), 2 ** 3: 1 / 4}.get(x), rasp.tokens)", "{6: -2, 8: 0.25}.get(x)"),
    ("rasp.SequenceMap(f=lambda x, y: x - y, snd=rasp.indices, fst=rasp.tokens)", "x - y, rasp.tokens, rasp.indices"),
    (
        "rasp.SelectorWidth(selector=rasp.Select(rasp.tokens, queries=rasp.indices, predicate=rasp.Comparison.LT))",
        "rasp.Select(rasp.tokens, rasp.indices, rasp.Comparison.LT)",
    ),
    ("rasp.Aggregate(sop=rasp.tokens, selector=v1)", "rasp.Aggregate(v1, rasp.tokens)"),
    ("rasp.Aggregate(v1, rasp.tokens, default=None)", "rasp.Aggregate(v1, rasp.tokens)"),
    ("rasp.numerical(rasp.Aggregate(v1, v2, 0.0))", "rasp.numerical(rasp.Aggregate(v1, v2, default=0))"),
    ("rasp.numerical(rasp.Aggregate(v1, v2, default=2 - 2))", "rasp.numerical(rasp.Aggregate(v1, v2, default=0))"),
    ("rasp.numerical(sop=rasp.categorical(rasp.Map(lambda x: x, v2)))", "rasp.numerical(rasp.Map(lambda x: x, v2"),
    (
        "rasp.numerical(rasp.LinearSequenceMap(v2, rasp.numerical(rasp.SelectorWidth(v1)), fst_fac=1/2, snd_fac=3-5))",
        "rasp.LinearSequenceMap(v2, v3, 0.5, -2)",
    ),
]


@pytest.mark.parametrize(("line", "written"), SPELLINGS)
def test_other_spellings_are_read(line, written):
    assert written in to_text(parse(f"{SELECT}{NUMBER}program = {line}"))


WIDTH = "rasp.SelectorWidth(v1)"
FUNCTION = f"def make() -> rasp.SOp:\n    '''Counts.'''\n    {SELECT}    return {WIDTH}\n"
FORMS = {
    "a function": FUNCTION,
    "a function that is called": f"{FUNCTION}program = make()",
    "one that uses another": f"def a():\n    {SELECT}    return v1\n\ndef b():\n    return rasp.SelectorWidth(a())",
    "a fence": f"Here it is:\n```python\n{SELECT}program = {WIDTH}\n```\nIt's simple.",
    "a fence without an end": f"```\n{SELECT}program = {WIDTH}",
    "a fence inside a docstring": f"'''\n```\nno program\n```\n'''\n{SELECT}program = {WIDTH}",
    "annotations": f"v1: rasp.Selector = {SELECT.removeprefix('v1 = ')}program: rasp.SOp = {WIDTH}",
    "a byte order mark": f"\ufeff{SELECT}program = {WIDTH}",
    "Windows' ends of lines": f"{SELECT}program = {WIDTH}".replace("\n", "\r\n"),
}


@pytest.mark.parametrize("form", FORMS)
def test_other_forms_of_a_text_are_read(form):
    assert parse(FORMS[form]) == CASES[1].program


def test_errors_have_fields_and_show_their_place():
    with pytest.raises(RaspSyntaxError) as error:
        parse("```\nv1 = rasp.Map(lambda x: x + 100, rasp.tokens)\n```")
    found = error.value
    assert (found.line, found.column, found.got) == (2, 25, "`x + 100`")
    assert found.expected.startswith("a named function such as `x` or a table")
    source, caret = found.place.splitlines()
    assert source.strip() == found.source == "v1 = rasp.Map(lambda x: x + 100, rasp.tokens)"
    assert source[caret.index("^") :].startswith("x + 100")


def test_a_long_line_is_shown_in_part():
    with pytest.raises(RaspSyntaxError) as error:
        parse("program = rasp.Map(lambda x: {" + "0: 1, " * 10_000 + "1: y}.get(x), rasp.tokens)")
    assert max(map(len, [str(error.value), *error.value.place.splitlines()])) < 250


TOO_LARGE = ["9**9**9", "10**100", "2**-9999999", "(-1)**0.5", "1/0", "'a'*10**9", "'%999999999d'%1", "1e300*1e300"]


@pytest.mark.parametrize("number", TOO_LARGE)
def test_a_constant_that_is_too_large_or_none_is_refused(number):
    with pytest.raises(RaspSyntaxError, match="expected a named function"):
        parse(f"program = rasp.Map(lambda x: {{0: {number}}}.get(x), rasp.tokens)")


OTHER_NAMES = [
    ("rasp.Map(lambda n: n + 1, rasp.tokens)", "lambda x: x + 1"),
    ("rasp.Map(lambda n: {0: 1}.get(n), rasp.tokens)", "lambda x: {0: 1}.get(x)"),
    ("rasp.SequenceMap(lambda y, x: y - x, rasp.tokens, rasp.indices)", "lambda x, y: x - y"),
    ("rasp.SequenceMap(lambda a, b: {(0, 1): 2}.get((a, b)), rasp.tokens, rasp.indices)", ".get((x, y))"),
    ("rasp.SelectorWidth(rasp.Select(rasp.tokens, rasp.indices, lambda key, query: key < query))", "Comparison.LT"),
]


@pytest.mark.parametrize(("line", "written"), OTHER_NAMES)
def test_arguments_may_have_any_name(line, written):
    assert written in to_text(parse(f"v1 = {line}\nprogram = v1"))


@pytest.mark.parametrize(("text", "message"), ERRORS, ids=range(len(ERRORS)))
def test_errors_say_where_and_what(text, message):
    with pytest.raises(RaspError) as error:
        parse(text)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet=st.sampled_from("vrasp.=()lambdx:, 0123\n{}[]'\"MTSelctAgk<>+-*_\0é"), max_size=120))
def test_no_text_gets_past_the_parser(text):
    try:
        parse(text)
    except RaspError as error:
        assert str(error)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_broken_programs_give_errors_not_crashes(data):
    text = to_text(data.draw(st.sampled_from(SAMPLES)).program)
    start = data.draw(st.integers(0, len(text) - 1))
    end = data.draw(st.integers(start, min(len(text), start + 12)))
    broken = text[:start] + data.draw(st.text(max_size=4)) + text[end:]
    try:
        parse(broken)
    except RaspError as error:
        assert str(error)


def test_wrong_lines_are_refused():
    identity = FUNCTIONS[Kind.UNARY]["x"]
    with pytest.raises(RaspError, match="map takes 1 argument"):
        Line(Op.MAP, (TOKENS, TOKENS), identity)
    with pytest.raises(RaspError, match="select takes a function of"):
        Line(Op.SELECT, (TOKENS, TOKENS), identity)
    with pytest.raises(RaspError, match="line 1: expected tokens, indices or an earlier line, got v3"):
        Program((Line(Op.MAP, (2,), identity),))
    with pytest.raises(RaspError, match="at least one line"):
        Program(())
    with pytest.raises(RaspError, match="two different s-ops"):
        number = Line(Op.MAP_NUMERICAL, (TOKENS,), identity)
        Program((number, Line(Op.LINEAR_SEQUENCE_MAP, (0, 0), linear(1, 1))))


def test_functions_name_themselves():
    assert find_named(Kind.UNARY, {0: False, 1: True, 2: False}) == FUNCTIONS[Kind.UNARY]["x == 1"]
    assert find_named(Kind.UNARY, {"a": 1}).table == (("a", 1),)
    assert find_named(Kind.PREDICATE, {(0, 0): True, (0, 1): False, (1, 1): True}).name == "k == q"
    with pytest.raises(ValueError, match="exactly one"):
        Function(Kind.UNARY)
    assert tabulated(Kind.UNARY, {1: 2})(5) is None


def test_grammar_refuses_what_does_not_type_check():
    words = [VOCABULARY[i] for i in allowed_next([])]
    assert "aggregate" not in words and "</s>" not in words and "select" in words
    ids = [VOCABULARY.index(word) for word in ("select", "tokens", "tokens")]
    assert all(VOCABULARY[i].startswith("p:") for i in allowed_next(ids))
    for source, may_end in (("tokens", True), ("indices", False)):
        ids = [VOCABULARY.index(word) for word in ("map", source, "_", "u:x")]
        assert (VOCABULARY.index("</s>") in allowed_next(ids)) == may_end
    with pytest.raises(RaspSyntaxError):
        parse("x")
    with pytest.raises(RaspError, match="no token for the function"):
        to_ids(Program((Line(Op.MAP, (TOKENS,), tabulated(Kind.UNARY, {0: 5})),)))
