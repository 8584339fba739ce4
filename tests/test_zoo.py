"""Trained models with known tasks: tasks are right, models are what their rows say, a killed build goes on."""

import dataclasses
import json
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from dataset_builder.architectures import ARCHITECTURES, Architecture
from dataset_builder.corpus import CorpusError, in_processes
from dataset_builder.learners import Learners, Schedule, train
from dataset_builder.sampler import SamplerConfig, sample_programs
from dataset_builder.tasks import LANGUAGES, PAD, RULES, language_task, program_task, rule_task
from dataset_builder.zoo import (
    ZooConfig,
    build,
    groups,
    learn_group,
    make_group,
    read_rows,
    task_groups,
    to_folder,
    to_state_dict,
)

ROOT = Path(__file__).resolve().parent.parent
RUN = partial(in_processes, processes=1, progress=False)
RULE = {rule.name: rule for rule in RULES}
LANGUAGE = {language.name: language for language in LANGUAGES}

# A rule, an input, and the answer that a person expects.
ANSWERS = [
    ("hist", (1, 2, 1), [2, 1, 2]),
    ("double_hist", (1, 2, 1, 3), [1, 2, 1, 2]),
    ("reverse", (1, 2, 3), [3, 2, 1]),
    ("shift_two", (4, 3, 2), [0, 0, 4]),
    ("second_largest", (4,), [5]),
    ("second_largest", (4, 4, 1), [4, 4, 4]),
    ("most_frequent", (3, 1, 3, 1), [1] * 4),
    ("first_unique", (2, 2), [5, 5]),
    ("induction", (1, 3, 1, 4, 1), [0, 0, 3, 0, 4]),
    ("cumulative_sign", (2, 0, 4, 4), [1, 0, 1, 2]),
    ("run_length", (1, 1, 1, 2), [0, 1, 2, 0]),
    ("first_largest", (1, 4, 4), [0, 1, 0]),
]
# A language, a prefix of one of its strings, and what may come next; "." where the string may end.
ALLOWED = [
    ("ab_repeated", "", "a."),
    ("ab_repeated", "a", "b"),
    ("brackets_2", "((", ")"),
    ("brackets_2", "()", "(."),
    ("two_brackets_2", "([", "]"),
    ("as_many_b", "aab", "b"),
    ("as_many_b", "aabb", "."),
    ("as_many_b_and_c", "aabb", "c"),
    ("starts_and_ends_alike", "ab", "ab"),
    ("starts_and_ends_alike", "aba", "ab."),
    ("no_three_equal", "abb", "a."),
    ("one_c", "ab", "abc"),
    ("one_c", "c", "ab."),
]


@pytest.mark.parametrize(("name", "given", "expected"), ANSWERS)
def test_rules_say_what_people_expect(name, given, expected):
    assert list(RULE[name].answers(given)) == expected


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_answers_fit_their_columns_and_causal_rules_do_not_look_ahead(rule):
    task = rule_task(rule)
    asked = task.answers != PAD
    assert (asked == (task.inputs != PAD) & (np.arange(6) > 0)).all()
    assert set(np.unique(task.answers[asked])) <= set(range(rule.columns)) and len(np.unique(task.answers[asked])) > 1
    ahead = any(
        list(rule.answers(x))[:-1] != list(rule.answers(x[:-1])) for x in map(tuple, task.inputs[-3125:, 1:].tolist())
    )
    assert ahead is not rule.is_causal


@pytest.mark.parametrize(("name", "prefix", "allowed"), ALLOWED)
def test_languages_allow_what_people_expect(name, prefix, allowed):
    language = LANGUAGE[name]
    task = language_task(language)
    ids = [len(language.letters), *map(language.letters.index, prefix)]
    row = task.domain["inputs"].index(ids)
    found = [column for column, on in enumerate(task.answers[row, len(ids) - 1]) if on]
    wanted = [len(language.letters) + 1 if c == "." else language.letters.index(c) for c in allowed]
    assert found == sorted(wanted)


def test_a_program_is_a_task_whose_answers_are_the_programs():
    for sample in sample_programs(3, SamplerConfig(min_lines=4, max_lines=5)):
        try:
            task = program_task(sample, "p")
        except Exception as error:
            assert type(error).__name__ == "Rejected"
            continue
        break
    assert task.inputs.shape == (3905, 6) and (task.answers[:, 0] == PAD).all() and task.columns >= 2
    assert task.program is not None and "program = " in task.program


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_logits_are_those_of_transformer_lens(name):
    from transformer_lens import HookedTransformer, HookedTransformerConfig

    architecture = ARCHITECTURES[name]
    task = rule_task(RULE["prefix_max"])
    learners = Learners.new(architecture, task.d_vocab, 6, task.columns, [1, 2])
    generator = torch.Generator().manual_seed(0)
    for part in learners.tensors.values():
        part += 0.1 * torch.randn(part.shape, generator=generator)
    config = {key: value for key, value in architecture.config(task).items() if key != "n_ctx"}
    model = HookedTransformer(HookedTransformerConfig(n_ctx=6, **config))
    given = {key: torch.from_numpy(value) for key, value in learners.state(1).items()}
    assert set(given) == {key for key in model.state_dict() if not key.endswith(("mask", "IGNORE"))}
    model.load_state_dict(given, strict=False)
    inputs = torch.from_numpy(task.inputs[-40:])
    with torch.no_grad():
        assert torch.allclose(learners(inputs)[1], model(inputs), atol=1e-4)
        short = torch.from_numpy(task.inputs[5:30])  # of one and two tokens, padded
        for row in short:
            alone = row[row != PAD][None]
            assert torch.allclose(learners(row[None])[1, :, : alone.shape[1]], model(alone), atol=1e-4)


SMALL = Architecture(n_layers=1, d_model=16, d_mlp=32)


def test_models_that_are_trained_together_learn_their_own_tasks_and_end_by_themselves():
    tasks = [rule_task(RULE[name], vocab=2, length=3) for name in ("first_equals_last", "shift", "reverse")]
    found = {one.number: one for one in train(tasks, SMALL, [1, 2, 3], Schedule(steps=400, batch=32, check=25))}
    assert sorted(found) == [0, 1, 2] and all(one.right == 14 and one.gap > 0 for one in found.values())
    assert len({one.steps for one in found.values()}) > 1
    for number, one in found.items():  # what is returned is the model that was scored
        tensors = {name: torch.from_numpy(part)[None] for name, part in one.tensors.items()}
        logits = Learners(SMALL, tensors)(torch.from_numpy(tasks[number].inputs))[0]
        asked = torch.from_numpy(tasks[number].answers) != PAD
        assert (logits.argmax(-1)[asked] == torch.from_numpy(tasks[number].answers)[asked]).all()


def test_a_group_is_the_same_each_time(tmp_path):
    config = ZooConfig("tasks", 100_000, seed=1, least_right=0.0, steps=10)
    number, size = next((n, s) for n, s in groups(config) if make_group(config, n, s)[0].tasks[0].name == "only_a")
    for name in ("one", "two"):
        learn_group(config, number, size, tmp_path / name)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


@pytest.fixture
def tiny(monkeypatch):
    """Two groups of a language each."""
    from dataset_builder import zoo

    chosen = [("causal-one-layer", [LANGUAGE[name]]) for name in ("only_a", "ab_repeated")]
    monkeypatch.setattr(zoo, "task_groups", lambda config: chosen)
    return ZooConfig("tasks", 2, seed=3, least_right=1.0, steps=300)


def test_a_build_that_was_killed_ends_with_the_same_rows(tiny, tmp_path):
    report = build(tiny, tmp_path / "whole", RUN)
    assert report["rows"] == report["right_on_all_inputs"] == 2 and report["left_out"] == {}
    assert build(tiny, tmp_path / "whole", RUN) == report  # it is finished

    def killed(function, tasks, name):
        yield function(*tasks[0])
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(tiny, tmp_path / "killed", killed)
    with pytest.raises(CorpusError, match="other settings"):
        build(dataclasses.replace(tiny, seed=4), tmp_path / "killed", RUN)
    build(tiny, tmp_path / "killed", RUN)
    for path in (tmp_path / "whole" / tiny.name).glob("*.parquet"):
        assert path.read_bytes() == (tmp_path / "killed" / tiny.name / path.name).read_bytes()
    with pytest.raises(CorpusError, match="other settings"):
        build(dataclasses.replace(tiny, seed=4), tmp_path / "whole", RUN)


def test_rows_become_folders_and_models_that_do_not_learn_are_counted(tiny, tmp_path):
    from safetensors.numpy import load_file

    build(tiny, tmp_path, RUN)
    row = next(read_rows(tmp_path / tiny.name))
    to_folder(row, tmp_path / "folder")
    tensors = load_file(tmp_path / "folder" / "model.safetensors")
    assert tensors.keys() == to_state_dict(row).keys() and tensors["embed.W_E"].shape == (4, 32)
    assert json.loads((tmp_path / "folder" / "domain.json").read_text())["answer"]["reads"] == "positive"
    report = build(dataclasses.replace(tiny, steps=1), tmp_path / "untrained", RUN)
    assert report["rows"] == 0 and report["left_out"] == {"not learned": 2}


def test_load_dataset_reads_a_build(tiny, tmp_path):
    import datasets

    from dataset_builder.card import write_card

    report = build(tiny, tmp_path, RUN)
    write_card(tmp_path)
    split = next(split for split, count in report["splits"].items() if count)
    rows = datasets.load_dataset(str(tmp_path), tiny.name, split=split, cache_dir=str(tmp_path / "cache"))
    assert len(rows) == report["splits"][split] and to_state_dict(rows[0])["unembed.b_U"].shape == (4,)
    every = datasets.load_dataset(str(tmp_path), "trained", split=split, cache_dir=str(tmp_path / "cache"))
    assert every["id"] == rows["id"]


def test_the_command_line_says_what_is_wrong(tmp_path):
    (tmp_path / "file").write_text("")
    call = [sys.executable, str(ROOT / "scripts" / "train_zoo.py"), "--part", "tasks", "--out", str(tmp_path / "file")]
    done = subprocess.run([*call, "--models", "0"], capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.strip() == (
        "train_zoo: models, steps: expected at least 1, got 0 and 4000"
    )
    done = subprocess.run([*call, "--models", "1"], capture_output=True, text=True)
    assert done.returncode == 2 and "Not a directory" in done.stderr and "Traceback" not in done.stderr


def test_rows_have_the_columns_that_the_card_describes(tiny, tmp_path):
    build(tiny, tmp_path, RUN)
    card = (ROOT / "dataset_builder" / "card_template.md").read_text()
    path = next((tmp_path / tiny.name).glob("*.parquet"))
    assert all(f"`{name}`" in card for name in pq.read_schema(path).names)


def test_pairs_of_tasks_and_architectures_are_drawn_by_the_seed():
    def drawn(models, seed):
        groups = task_groups(ZooConfig("tasks", models, seed=seed))
        return {(architecture, task.name) for architecture, tasks in groups for task in tasks}

    first, other = drawn(40, 1), drawn(40, 2)
    assert len(first) == len(other) == 40 and len(first & other) < 20
    assert first == drawn(40, 1) and drawn(10, 1) < first
    assert len({name for name, _ in first}) >= 6 and len({name for _, name in first}) >= 20
    causal = [name for kind, name in drawn(10_000, 0) if ARCHITECTURES[kind].is_causal]
    assert "sort" not in causal and "prefix_max" in causal and "two_brackets_2" in causal
