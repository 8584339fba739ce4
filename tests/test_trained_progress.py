"""Searches that are killed and go on: the best so far is kept, a file is checked, another model's is refused."""

import json
from pathlib import Path

import numpy as np
import pytest
from test_trained_search import model_of

from dataset_builder.tasks import RULES, rule_task
from trade_hf.cli import main
from trade_hf.compiled.weights import WeightsError
from trade_hf.trained.answers import Answers
from trade_hf.trained.decompilation import decompile_trained
from trade_hf.trained.domain import Domain
from trade_hf.trained.progress import Progress, identity
from trade_hf.trained.synthesis import Search

MODELS = Path(__file__).parent / "trained"
SORT = rule_task(next(rule for rule in RULES if rule.name == "sort"))


class Killed(Exception):
    """As a signal that ends the process."""


@pytest.fixture(scope="module")
def problem():
    domain = Domain.from_dict(SORT.domain)
    return model_of(domain), domain, Answers(np.where(domain.is_answer, SORT.answers, np.nan), False, 1.0)


def test_a_search_that_is_killed_goes_on_and_ends_with_the_same_program(problem):
    kept = []

    def keep(done):
        kept.append(done)
        if done.steps == 2:
            raise Killed

    with pytest.raises(Killed):
        Search(*problem, keep=keep).run()
    assert kept[-1].programs and not kept[-1].is_over
    later = []
    found = Search(*problem, begun=kept[-1], keep=later.append).run()
    assert not found.wrong.any() and later[-1].is_over and later[-1].steps > 2
    assert found.program.code == later[-1].programs[0]
    again = Search(*problem, begun=later[-1])
    assert again.run().program == found.program and len(again.space.lines) < 100  # nothing is sought again
    whole = Search(*problem).run()
    assert abs(whole.length - found.length) <= 2


def test_programs_of_a_file_are_checked_before_they_count(problem):
    _, domain, _ = problem
    claimed = Progress("x", programs=("v1 = rasp.Map(lambda x: x, rasp.tokens)\nprogram = v1",), is_over=True)
    found = Search(*problem, begun=claimed).run()
    assert found.wrong.sum() > 1_000 and found.agreeing < len(domain)


def test_a_file_comes_back_and_another_models_is_refused(tmp_path, problem):
    model, domain, _ = problem
    of = identity(model, domain, 0)
    done = Progress(of, 3, ("text",), (4, 9), True)
    done.save(tmp_path / "progress.json")
    assert Progress.load(tmp_path / "progress.json", of) == done
    assert Progress.load(tmp_path / "none.json", of) == Progress(of)
    assert identity(model, domain, 1) != of != identity(model, domain.rows(np.arange(9)), 0)
    with pytest.raises(WeightsError, match="belongs to another model, domain or seed"):
        Progress.load(tmp_path / "progress.json", "other")
    told = json.loads((tmp_path / "progress.json").read_text())
    for change in ({"format": 2}, {"steps": -1}, {"steps": "3"}, {"programs": [1]}, {"counterexamples": [-1]}):
        (tmp_path / "bad.json").write_text(json.dumps(told | change))
        with pytest.raises(WeightsError, match="expected what `--resume` writes"):
            Progress.load(tmp_path / "bad.json", of)
    (tmp_path / "bad.json").write_text("[]")
    with pytest.raises(WeightsError, match="expected what `--resume` writes"):
        Progress.load(tmp_path / "bad.json", of)


def test_the_command_line_keeps_a_file_and_answers_from_it(tmp_path, capsys):
    path, folder = tmp_path / "progress.json", MODELS / "reverse"
    assert main(["decompile", str(folder), "--resume", str(path)]) == 0
    first = capsys.readouterr()
    assert json.loads(path.read_text())["is_over"] is True and " s  round 1" in first.err
    assert main(["decompile", str(folder), "--resume", str(path), "--json"]) == 0
    again = capsys.readouterr()
    assert "round 1" not in again.err
    code = json.loads(again.out)["code"]
    assert first.out.startswith("# PROVEN: ") and code in first.out
    other = MODELS / "more_ones"
    assert main(["decompile", str(other), "--resume", str(path)]) == 2
    assert "belongs to another model" in capsys.readouterr().err


def test_a_search_without_time_keeps_what_it_has(tmp_path):
    path = tmp_path / "progress.json"
    result = decompile_trained(MODELS / "reverse", seconds=1e-6, with_mechanism=False, resume=path)
    told = json.loads(path.read_text())
    assert not result.is_proven and told["programs"][0] == result.code and told["is_over"] is False
