"""The language of programs for trained models: text and back, tracr's evaluator as the oracle, hostile text."""

import numpy as np
import pytest

from trade_hf.rasp.program import RaspError
from trade_hf.trained.expression import Expression, Table, to_set
from trade_hf.trained.program import Line, Op, Program
from trade_hf.trained.text import parse

HEADER = "from tracr.rasp import rasp\n\n"
TOKENS = np.array([[5, 0, 3, 1, 3], [5, 2, 2, 0, -1], [5, 4, -1, -1, -1]])


def text(*lines):
    numbered = [f'v{n + 1} = rasp.{line}.named("v{n + 1}")' for n, line in enumerate(lines)]
    return HEADER + "\n".join([*numbered, f"program = v{len(lines)}", ""])


EARLIER = "Select(rasp.indices, rasp.indices, lambda k, q: k < q)"
SAME = "Select(rasp.tokens, rasp.tokens, lambda k, q: k == q)"
PROGRAMS = {
    "a map": text("Map(lambda x: (x + 3) % 4, rasp.tokens)"),
    "a table": text("Map(lambda x: {0: 7, 3: -2}.get(x, 1), rasp.tokens)"),
    "a table of two": text("SequenceMap(lambda x, y: {(0, 1): 7, (3, 2): 5}.get((x, y), 1), rasp.tokens, rasp.indices)"),  # noqa: E501
    "conjunction": text(SAME, EARLIER, "SelectorAnd(v1, v2)", "SelectorWidth(v3)"),
    "disjunction": text(SAME, EARLIER, "SelectorOr(v1, v2)", "SelectorWidth(v3)"),
    "negation": text(SAME, "SelectorNot(v1)", "SelectorWidth(v2)"),
    "means of numbers": text(EARLIER, "Aggregate(v1, rasp.tokens, default=0)", "Aggregate(v1, v2, default=-1)"),
    "a fraction compared": text(EARLIER, "Aggregate(v1, rasp.tokens, default=0)", "Map(lambda x: x >= 2.5, v2)"),
    "key alone": text("Select(rasp.tokens, rasp.tokens, lambda k, q: k == 5)", "Aggregate(v1, rasp.indices, default=9)"),  # noqa: E501
    "and, or, not": text("SequenceMap(lambda x, y: x and (not y) or 3, rasp.tokens, rasp.indices)"),
    "minimum": text("SequenceMap(lambda x, y: min(abs(x - y), 2) + max(x, y), rasp.tokens, rasp.indices)"),
    "nested": text("SequenceMap(lambda x, y: 1 if x > y else 2 if x == y else 0, rasp.tokens, rasp.indices)"),
    "a set": text("Map(lambda x: {1, 3} if x > 2 else set(), rasp.tokens)"),
    "a union": text("Map(lambda x: {1} if x > 2 else set(), rasp.tokens)", "SequenceMap(lambda x, y: y | {0} if x else y, rasp.indices, v1)"),  # noqa: E501
    "a table of sets": text("Map(lambda x: {0: {1, 2}, 3: set()}.get(x, {0}), rasp.tokens)"),
}  # fmt: skip


@pytest.mark.parametrize("code", PROGRAMS.values(), ids=PROGRAMS)
def test_text_and_back(code):
    assert parse(code).code == code


@pytest.mark.parametrize("code", PROGRAMS.values(), ids=PROGRAMS)
def test_tracrs_evaluator_gives_the_same(code):
    program, names = parse(code), {}
    exec(code, names)  # the tests' own text
    for row, found in zip(TOKENS, program.evaluate(TOKENS), strict=True):
        expected = names["program"](row[row >= 0].tolist())
        got = found[~np.isnan(found)].tolist()
        assert [to_set(value) for value in got] == expected if program.gives_sets else got == expected


def test_means_round_as_tracrs_do():
    program, names = parse(PROGRAMS["means of numbers"]), {}
    exec(program.code, names)
    rng = np.random.RandomState(0)
    for tokens in rng.randint(1000, size=(50, 9)):
        assert program.evaluate(tokens[None])[0].tolist() == names["program"](tokens.tolist())


@pytest.mark.parametrize("name, cells", [("a map", 0), ("a table", 2), ("a table of two", 2), ("a table of sets", 2)])
def test_table_cells_are_entries(name, cells):
    assert parse(PROGRAMS[name]).table_cells == cells


def test_a_program_knows_whether_tracr_compiles_it():
    assert parse(text(SAME, "SelectorWidth(v1)")).compiles((0, 1, 2), 4)
    assert not parse(PROGRAMS["conjunction"]).compiles((0, 1, 2), 4)


REFUSED = {
    "no program": ("", "expected `program = …` as the last line"),
    "syntax": ("program = (", "line 1, column 11"),
    "a call": (text("Map(lambda x: open('f'), rasp.tokens)"), "expected numbers, x and operators, got `open"),
    "an attribute": (text("Map(lambda x: x.__class__, rasp.tokens)"), "expected numbers, x and operators"),
    "a comprehension": (text("Map(lambda x: [x for x in x], rasp.tokens)"), "expected numbers, x and operators"),
    "another name": (text("Map(lambda x: y, rasp.tokens)"), "expected numbers, x and operators, got `y`"),
    "text": (text("Map(lambda x: 'a', rasp.tokens)"), "expected numbers, x and operators"),
    "a huge number": (text("Map(lambda x: x + 10**400, rasp.tokens)").replace("10**400", "1" + "0" * 400), "expected numbers"),  # noqa: E501
    "a long expression": (text(f"Map(lambda x: {' + '.join('x' * 40)}, rasp.tokens)"), "expected an expression of at most"),  # noqa: E501
    "another operation": (text("Full(3)"), "expected one of rasp.Map"),
    "a selector as value": (text(SAME, "Map(lambda x: x, v1)"), "Map expects an s-op, got v1"),
    "a selector at the end": (text(SAME), "the output must be an s-op, got a selector"),
    "a value as selector": (text("SelectorWidth(rasp.tokens)"), "SelectorWidth expects a selector"),
    "too early": (text("SelectorWidth(v2)"), "expected rasp.tokens, rasp.indices or an earlier line"),
    "arguments": (text("Map(rasp.tokens)"), "expected 2 argument(s) of Map"),
    "lambda": (text("Map(lambda y: y, rasp.tokens)"), "expected `lambda x: …`"),
    "a default": (text(SAME, "Aggregate(v1, rasp.tokens, default='a')"), "expected no keyword but"),
    "twice in a table": (text("Map(lambda x: {0: 1, 0: 2}.get(x, 1), rasp.tokens)"), "expected distinct arguments"),
    "a statement": (HEADER + "import os\n", "expected `v1 = rasp.Select(…)`"),
    "after the end": (text("Map(lambda x: x, rasp.tokens)") + "v2 = v1\n", "expected nothing after"),
}  # fmt: skip


@pytest.mark.parametrize("code, message", REFUSED.values(), ids=REFUSED)
def test_other_text_is_refused_in_words(code, message):
    with pytest.raises(RaspError) as error:
        parse(code)
    assert message in str(error.value)


def test_a_value_that_is_none_is_an_error():
    line = Line(Op.MAP, (-2,), Expression("1 / x", ("x",)))
    with pytest.raises(RaspError, match="expected a number at every argument"):
        Program((line,)).evaluate(TOKENS)


def test_tables_are_bounded():
    with pytest.raises(RaspError, match="at most 2,000 entries"):
        Table(tuple((n, 1.0) for n in range(2001)), 0.0, ("x",))
