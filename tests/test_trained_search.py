"""The search, given what a model answers: tasks of many kinds, errors that follow no rule, and its parts alone."""

import numpy as np
import pytest

from dataset_builder.tasks import LANGUAGES, RULES, language_task, rule_task
from trade_hf.trained.answers import Answers
from trade_hf.trained.candidate import Cells
from trade_hf.trained.config import Config
from trade_hf.trained.domain import PADDING, Domain
from trade_hf.trained.exceptions import with_exceptions
from trade_hf.trained.names import named_binary, named_unary
from trade_hf.trained.solve import Solver
from trade_hf.trained.space import Kind, Space, split_vocab
from trade_hf.trained.synthesis import Search
from trade_hf.trained.text import parse
from trade_hf.trained.transformer import Transformer

SECONDS = 60
WANTED_RULES = ["sort", "previous_plus", "prefix_max"]
WANTED_LANGUAGES = ["ab_repeated", "no_three_equal", "brackets_3"]


def model_of(domain, direction="bidirectional"):
    """A model that has learned nothing: the search has the answers alone to go by."""
    shape = {"n_layers": 1, "n_heads": 1, "d_model": 8, "d_head": 4, "attn_only": True}
    shape |= {"n_ctx": domain.tokens.shape[1], "d_vocab": int(domain.tokens.max()) + 1, "d_vocab_out": domain.columns}
    config, rng = Config(**shape, attention_dir=direction), np.random.RandomState(0)
    return Transformer(config, {name: rng.randn(*size).astype(np.float32) for name, size in config.shapes().items()})


def search(domain, values, are_sets=False):
    return Search(model_of(domain), domain, Answers(values, are_sets, 1.0), seconds=SECONDS).run()


@pytest.mark.parametrize("name", WANTED_RULES)
def test_rules_over_lists(name):
    task = rule_task(next(rule for rule in RULES if rule.name == name))
    domain = Domain.from_dict(task.domain)
    found = search(domain, np.where(domain.is_answer, task.answers, np.nan))
    assert not found.wrong.any() and len(found.program) <= 15 and found.program.table_cells < 0.05 * domain.answers


@pytest.mark.parametrize("name", WANTED_LANGUAGES)
def test_next_tokens_of_languages(name):
    task = language_task(next(language for language in LANGUAGES if language.name == name))
    domain = Domain.from_dict(task.domain)
    values = np.full(domain.tokens.shape, np.nan)
    values[domain.is_answer] = task.answers[domain.is_answer] @ 2.0 ** np.arange(task.columns)
    found = search(domain, values, are_sets=True)
    assert not found.wrong.any() and len(found.program) <= 15 and found.program.gives_sets
    assert found.program.table_cells < max(0.05 * domain.answers, 1)


def test_a_models_own_errors_are_listed():
    task = rule_task(next(rule for rule in RULES if rule.name == "reverse"))
    domain, rng = Domain.from_dict(task.domain), np.random.RandomState(1)
    values = np.where(domain.is_answer, task.answers, np.nan)
    rows = rng.permutation(len(domain))[:9]
    values[rows, 1] = (values[rows, 1] + 1) % 5
    found = search(domain, values)
    assert not found.wrong.any() and found.program.table_cells == 9 and len(found.program) <= 12


def test_exceptions_are_right_on_every_input():
    domain = Domain.from_dict(
        {
            "enumerate": {"prefix": [3], "vocab": [0, 1, 2], "lengths": [1, 4]},
            "answer": {"positions": {"from": 1}, "columns": 3},
        }
    )
    program = parse("v1 = rasp.Map(lambda x: x, rasp.tokens)\nprogram = v1")
    values = np.where(domain.is_answer, domain.tokens, np.nan).astype(float)
    values[[5, 40, 99], [1, 2, 3]] = [2, 0, 1]
    answers = Answers(values, False, 1.0)
    wrong = int(answers.differ(program.evaluate(domain.tokens)).sum())
    repaired = with_exceptions(program, domain, answers, most_cells=wrong)
    assert repaired.table_cells == wrong and not answers.differ(repaired.evaluate(domain.tokens)).any()
    assert with_exceptions(program, domain, answers, most_cells=wrong - 1) is None


def test_nothing_found_is_said_to_be_just_that():
    domain = Domain.from_dict(
        {"enumerate": {"vocab": [0, 1, 2, 3], "lengths": [4, 4]}, "answer": {"positions": [-1], "columns": 4}}
    )
    values = np.full(domain.tokens.shape, np.nan)
    values[:, -1] = np.random.RandomState(0).randint(4, size=len(domain))
    found = Search(model_of(domain), domain, Answers(values, False, 1.0), seconds=3).run()
    assert found.wrong.any() and 0 < found.agreeing < len(domain)


def test_the_same_search_finds_the_same():
    task = rule_task(next(rule for rule in RULES if rule.name == "sort"))
    domain = Domain.from_dict(task.domain)
    values = np.where(domain.is_answer, task.answers, np.nan)
    assert search(domain, values).program.code == search(domain, values).program.code


# ---------------------------------------------------------------- parts

LISTS = np.array([[a, b, c] for a in range(3) for b in range(3) for c in range(3)])
LAST_TWO = {
    "sum": lambda x, y: x + y,
    "sum modulo 3": lambda x, y: (x + y) % 3,
    "difference": lambda x, y: abs(x - y),
    "maximum": max,
    "comparison": lambda x, y: int(x > y),
    "rule": lambda x, y: 2 if x == 1 else y,
}


@pytest.mark.parametrize("function", LAST_TWO.values(), ids=LAST_TWO)
def test_the_solver_names_functions_of_two(function):
    space = Space(LISTS, causal=False)
    before = space.gather(space.select("k == q - 1", -1, -1), -2)
    rows = np.arange(len(LISTS))
    answers = np.array([float(function(x, y)) for _, x, y in LISTS])
    solver = Solver(space, Cells(rows, np.full(len(rows), 2), answers, False, 3))
    best = min(solver.solutions([-2, -1, before]))
    assert best.cells == 0 and best.lines <= 4
    assert (best.program(space).evaluate(LISTS)[:, 2] == answers).all()


def test_a_causal_space_spells_out_its_mask():
    space = Space(LISTS, causal=True)
    count = space.width(space.select("k == q", -2, -2))
    program = space.to_program(count)
    assert [line.op.name for line in program.lines] == ["SELECT", "SELECT", "AND", "WIDTH"]
    assert program.evaluate(np.array([[1, 1, 0]])).tolist() == [[1, 2, 1]]


def test_special_tokens_are_those_that_stand_at_one_place():
    padded = np.array([[5, 0, 6, PADDING], [5, 1, 1, 6], [5, 2, 6, PADDING]])
    assert split_vocab(padded) == ([0, 1, 2], [5, 6])


def test_equal_values_are_one_node():
    space = Space(LISTS, causal=False)
    assert space.map("x == 0", -2, Kind.TRUTH) == space.map("x < 1", -2, Kind.TRUTH)
    assert space.map("x * 0", -2) is None


@pytest.mark.parametrize(
    "x, answers, name",
    [
        ([0, 1, 2], [1, 2, 3], "x + 1"),
        ([0, 1, 2, 3], [0, 1, 0, 1], "x % 2 == 1"),
        ([-1, 0, 3, 4], [0, 0, 3, 4], "max(x, 0)"),
    ],
)
def test_names_of_one(x, answers, name):
    cells = Cells(np.arange(3), np.arange(3), np.array(answers, float), False, 3)
    assert named_unary(np.array(x, float), np.array(answers, float), cells) == name


def test_names_of_two():
    x, y = np.array([1.0, 2, 3]), np.array([2.0, 2, 2])
    cells = Cells(np.arange(3), np.arange(3), np.array([0.0, 1, 0]), False, 3)
    assert named_binary(x, y, cells.answers, cells) == "1 if x == y else 0"


def test_sums_of_tokens_leave_special_ones_out():
    task = rule_task(next(rule for rule in RULES if rule.name == "cumulative_sign"))
    domain = Domain.from_dict(task.domain)
    found = search(domain, np.where(domain.is_answer, task.answers, np.nan))
    assert not found.wrong.any() and found.program.table_cells == 0 and len(found.program) <= 8
