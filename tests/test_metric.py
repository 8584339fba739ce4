"""The metric: right scores, a reason for every malformed prediction, and nothing is ever executed."""

import copy
import itertools
import json
import subprocess
import sys
import time
from pathlib import Path

import evaluate
import pytest
from cases import CASES, LENGTH, VOCAB
from hub_server import hub_server
from transformers import Seq2SeqTrainer, Seq2SeqTrainingArguments

import trade_hf
from dataset_builder.mutants import mutants
from dataset_builder.online import collate_examples, to_example
from dataset_builder.sampler import Draw
from trade_hf.compiled.compiler import compile_program
from trade_hf.compiled.transforms import permute, rotate
from trade_hf.decompiler import load_model
from trade_hf.metrics.scoring import score, score_all
from trade_hf.rasp.program import RaspError
from trade_hf.rasp.tables import UnsupportedError
from trade_hf.rasp.text import to_text
from trade_hf.tokenization_rasp import from_ids

FOLDER = Path(trade_hf.__file__).parent / "metrics" / "functional_equivalence"
TEXTS = [to_text(case.program) for case in CASES]
GROWING = "\n".join(
    ["v1 = rasp.SequenceMap(lambda x, y: x * y, rasp.tokens, rasp.indices)"]
    + [f"v{n} = rasp.SequenceMap(lambda x, y: x + y, v{n - 1}, v{n - 1})" for n in range(2, 30)]
    + [f"v{n} = rasp.SequenceMap(lambda x, y: x * y, v{n - 1}, v{n - 2})" for n in range(30, 60)]
    + ["program = v59"]
)


def test_a_program_is_equivalent_to_itself_and_only_to_its_like():
    for text in TEXTS:
        itself = score(text, text, VOCAB, LENGTH)
        assert itself.functional_equivalence and itself.exact_match and itself.proven and itself.edit_distance == 0
    result, scores = score_all(TEXTS, TEXTS[1:] + TEXTS[:1], VOCAB, LENGTH)
    assert result["exact_match"] < 0.2 and result["compiles"] == 1 and result["edit_distance"] > 1
    assert all(item.reason.startswith(("refuted by", "refuted: one output is")) for item in scores if item.reason)


def test_a_reference_that_does_not_compile_is_no_fault_of_the_prediction():
    with pytest.raises(UnsupportedError, match="must read tokens"):
        score(TEXTS[0], "program = rasp.Map(lambda x: x + 1, rasp.indices)", VOCAB, LENGTH)


def test_other_names_for_the_same_program_are_exact():
    first = "v1 = rasp.Map(lambda x: x > 2, rasp.tokens)\nprogram = rasp.SequenceMap(lambda x, y: x and y, v1, v1)"
    second = "v9 = rasp.Map(lambda x: x > 2, rasp.tokens)\nprogram = rasp.SequenceMap(lambda x, y: x and y, v9, v9)"
    assert score(first, second, VOCAB, LENGTH).exact_match


WIDE = "\n".join(
    ["v1 = rasp.SequenceMap(lambda x, y: x * y, rasp.tokens, rasp.indices)"]
    + ["v2 = rasp.SequenceMap(lambda x, y: x + y, rasp.tokens, v1)"]
    + [f"v{n} = rasp.SequenceMap(lambda x, y: x {'+*'[n % 2]} y, v{n - 1}, v{n - 2})" for n in range(3, 9)]
    + ["program = v8"]
)

NUMERICAL = """v1 = rasp.numerical(rasp.Map(lambda x: x == 1, rasp.tokens))
v2 = rasp.numerical(rasp.Map(lambda x: x == 2, rasp.tokens))
"""
TEXT = "v1 = rasp.Map(lambda x: {0: 'a', 1: 'b', 2: 'c', 3: 'd', 4: 'e'}.get(x), rasp.tokens)\n"
MALFORMED = {
    "empty": "",
    "a megabyte": "x = 1\n" * 180_000,
    "more than a megabyte": "a" * 1_100_000,
    "nested lambdas": "program = " + "(lambda x: " * 2_000 + "x" + ")" * 2_000,
    "deep brackets": "program = " + "[" * 50_000,
    "an import": "import os\nos.system('touch {marker}')\nprogram = rasp.tokens",
    "a call": "program = rasp.Map(lambda x: open('{marker}', 'w'), rasp.tokens)",
    "ten thousand lines": "v0 = rasp.Map(lambda x: x + 1, rasp.tokens)\n" * 10_000,
    "a loop": "while True: pass",
    "a loop in a lambda": "program = rasp.Map(lambda x: [y for y in iter(int, 1)], rasp.tokens)",
    "unicode": "прoграмма = ﷽ \u202e\x00 program",
    "values that explode": GROWING,
    "a number of 20,000 bits": "program = 0x" + "f" * 5_000,
    "a factor of 400 digits": NUMERICAL + f"program = rasp.numerical(rasp.LinearSequenceMap(v1, v2, {10**400}, 1))",
    "a number of 400 digits": f"program = rasp.numerical(rasp.Map(lambda x: {{0: {10**400}}}.get(x), rasp.tokens))",
    "an infinite number": "v1 = rasp.numerical(rasp.Map(lambda x: {0: 1e400, 1: 0}.get(x), rasp.tokens))\n"
    "v2 = rasp.Select(rasp.tokens, rasp.tokens, rasp.Comparison.EQ)\n"
    "program = rasp.numerical(rasp.Aggregate(v2, v1, default=0))",
    "numbers that explode": "v1 = rasp.Map(lambda x: x + 2, rasp.tokens)\n"
    + "v1 = rasp.Map(lambda x: x * x, v1, simplify=False)\n" * 39
    + "program = v1",
    "texts that grow": TEXT + "v1 = rasp.Map(lambda x: x * 3, v1, simplify=False)\n" * 40 + "program = v1",
    "a text many times": TEXT
    + "v2 = rasp.Map(lambda x: {0: 100000000000, 1: 1, 2: 1, 3: 1, 4: 1}.get(x), rasp.tokens)\n"
    "program = rasp.SequenceMap(lambda x, y: x * y, v1, v2)",
    "tables without end": "v1 = rasp.SequenceMap(lambda x, y: x * y, rasp.tokens, rasp.indices)\n"
    + "v1 = rasp.SequenceMap(lambda x, y: x + y, v1, v1)\n" * 900
    + "program = v1",
    "weights that explode": WIDE,
}


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_predictions_get_a_reason_in_time_and_run_nothing(name, tmp_path):
    marker, start = tmp_path / "marker", time.monotonic()
    text = MALFORMED[name].replace("{marker}", str(marker))
    result = score(text, TEXTS[0], VOCAB, LENGTH)
    assert time.monotonic() - start < 20
    assert not (result.functional_equivalence or result.exact_match) and result.reason
    assert not marker.exists()


def test_dead_lines_do_not_count():
    dead = "v0 = rasp.Map(lambda x: x + 1, rasp.tokens)\n" * 70
    result = score(dead + TEXTS[0].split("\n", 1)[1], TEXTS[0], VOCAB, LENGTH)
    assert result.exact_match and result.edit_distance == 0


def test_references_may_be_models(tmp_path):
    weights = compile_program(CASES[0].program, VOCAB, LENGTH)
    permute(weights, 1).save(tmp_path / "permuted.safetensors")
    rotate(weights, 1).save(tmp_path / "rotated.safetensors")
    references = [str(tmp_path / f"{name}.safetensors") for name in ("permuted", "rotated", "rotated", "rotated")]
    result, scores = score_all([TEXTS[0], TEXTS[0], TEXTS[1], "?"], references, VOCAB, LENGTH)
    assert [item.status for item in scores] == ["identical weights", "equivalent", "refuted", "malformed"]
    assert result == {"functional_equivalence": 0.5, "exact_match": 0.25, "compiles": 0.75, "proven": 0.75}


def test_mutants_are_scored_as_they_are_verified(samples):
    draw, texts, truths = Draw("metric"), [], []
    for sample in samples[:20]:
        for mutant in itertools.islice(mutants(sample.program, draw), 2):
            try:
                compile_program(mutant, sample.vocab, sample.max_seq_len)
            except UnsupportedError:
                continue
            texts.append(to_text(mutant))
            truths.append(to_text(sample.program))
    result, scores = score_all(texts, truths, (0, 1, 2, 3, 4), 5)
    assert 0 < result["functional_equivalence"] < 1 and result["proven"] == 1
    assert all(item.functional_equivalence for item in scores if item.exact_match)
    assert all((item.edit_distance == 0) == item.exact_match for item in scores)


def test_it_scores_what_a_trainer_generates(tiny_checkpoint, samples, tmp_path, monkeypatch):
    """An untrained model writes no programs, and one that gives the labels back writes the true ones."""
    monkeypatch.setenv("HF_EVALUATE_OFFLINE", "1")
    metric = evaluate.load(str(FOLDER), cache_dir=str(tmp_path / "cache"))

    def code(ids):
        try:
            return to_text(from_ids([int(i) for i in ids if i >= 0]))
        except RaspError as error:
            return str(error)

    def compute(prediction):
        truths = [code(ids) for ids in prediction.label_ids]
        given = {"own": [code(row[1:]) for row in prediction.predictions], "true": truths}
        scores = {name: metric.compute(predictions=some, references=truths) for name, some in given.items()}
        return {name: score["functional_equivalence"] for name, score in scores.items()}

    arguments = Seq2SeqTrainingArguments(
        output_dir=str(tmp_path),
        predict_with_generate=True,
        generation_max_length=50,
        remove_unused_columns=False,
        label_names=["labels"],
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
    )
    trainer = Seq2SeqTrainer(
        model=copy.deepcopy(load_model(tiny_checkpoint)),
        args=arguments,
        eval_dataset=[to_example(sample) for sample in samples[:4]],
        data_collator=collate_examples,
        compute_metrics=compute,
    )
    result = trainer.evaluate()
    assert result["eval_own"] < 1 and result["eval_true"] == 1


def test_it_loads_in_the_evaluate_library(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_EVALUATE_OFFLINE", "1")
    metric = evaluate.load(str(FOLDER), cache_dir=str(tmp_path))
    result = metric.compute(predictions=[TEXTS[0], "import os"], references=[TEXTS[0]] * 2, per_item=True)
    assert result["functional_equivalence"] == result["compiles"] == 0.5
    assert [item["status"] for item in result["items"]] == ["equivalent", "malformed"]
    json.dumps(result)
    with pytest.raises(ValueError, match="expected as many predictions"):
        score_all(["a"], [], VOCAB, LENGTH)


PUBLISH_AND_LOAD = """
import json, sys
from huggingface_hub import HfApi

repo, folder, text = sys.argv[1:]
HfApi().create_repo(repo, repo_type="space", space_sdk="gradio")
HfApi().upload_folder(repo_id=repo, repo_type="space", folder_path=folder)

import evaluate

metric = evaluate.load(repo)
print(json.dumps(metric.compute(predictions=[text, "import os"], references=[text] * 2)))
assert not {"tracr", "jax"} & sys.modules.keys()
"""


def test_it_loads_from_the_hub(tmp_path):
    with hub_server() as hub:
        environment = hub.environment(tmp_path, hub.token) | {"PYTHONPATH": str(FOLDER.parents[2])}
        command = [sys.executable, "-c", PUBLISH_AND_LOAD, "trade/functional_equivalence", str(FOLDER), TEXTS[0]]
        done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["functional_equivalence"] == result["exact_match"] == result["compiles"] == 0.5


SPACE = """
import json, runpy, sys

space = runpy.run_path(sys.argv[1])
wrong = []
for reference, vocab in (("?", "a, b"), (space["TRUE"], "a,,b"), ("/x.safetensors", "a, b")):
    try:
        space["judge"](space["TRUE"], reference, vocab, 3)
    except space["gr"].Error as error:
        wrong.append(str(error))
found = [space["judge"](text, space["TRUE"], "a, b", 3) for text in (space["TRUE"], space["PREDICTED"])]
labels = [part["props"].get("label") for part in space["build"]().get_config_file()["components"]]
print(json.dumps([wrong, found, labels]))
"""


def test_the_space_judges_a_pair(tmp_path):
    """In a process of its own: Gradio leaves event loops behind."""
    command = [sys.executable, "-c", SPACE, str(FOLDER / "app.py")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=True)
    wrong, found, labels = json.loads(done.stdout.splitlines()[-1])
    assert "line 1" in wrong[0] and "vocabulary: expected tokens separated by commas" in wrong[1]
    assert wrong[2] == "'expected a true program, got the path of a model'"
    assert [item["status"] for item in found] == ["equivalent", "refuted"] and "refuted by" in found[1]["reason"]
    assert {"Predicted program", "True program", "Vocabulary", "Longest input", "Score"} <= set(labels)
