"""The training script: online and from a corpus folder, killed and resumed."""

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from dataset_builder.card import write_card
from dataset_builder.corpus import CorpusConfig, build
from trade_hf.decompiler import DEFAULT_CHECKPOINT, load_model

ROOT = Path(__file__).resolve().parent.parent
CONFIG = """
model: {d_model: 32, encoder_layers: 1, decoder_layers: 1, num_heads: 2, message_size: 8, ffn_size: 32}
training:
  seed: 3
  per_device_train_batch_size: 4
  learning_rate: 0.001
  lr_scheduler_type: constant
  max_steps: 6
  logging_steps: 1
  save_steps: 2
  save_total_limit: 2
  eval_strategy: steps
  eval_steps: 6
  dataloader_num_workers: 1
  validation_size: 4
  disable_tqdm: true
"""


def command(tmp_path, *source):
    (tmp_path / "config.yaml").write_text(CONFIG)
    script = [sys.executable, str(ROOT / "scripts" / "train.py"), "--config", str(tmp_path / "config.yaml")]
    return [*script, "--output", str(tmp_path / "run"), *source]


def logged(tmp_path):
    return [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]


def test_online_killed_and_resumed(tmp_path):
    arguments = command(tmp_path, "--online", "--max-steps", "100000")
    with subprocess.Popen(
        arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    ) as run:
        deadline = time.monotonic() + 120
        while not list((tmp_path / "run").glob("checkpoint-*/trainer_state.json")):
            assert time.monotonic() < deadline and run.poll() is None
            time.sleep(0.2)
        os.killpg(run.pid, signal.SIGKILL)
    before = max(row["step"] for row in logged(tmp_path))
    last = max(
        int(path.parent.name.split("-")[1]) for path in (tmp_path / "run").glob("checkpoint-*/trainer_state.json")
    )
    (tmp_path / "run" / f"checkpoint-{last + 1000}").mkdir()  # as a kill in the middle of a save leaves it
    goal = before + 4
    result = subprocess.run(
        command(tmp_path, "--online", "--max-steps", str(goal)),
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-2000:]
    assert f"checkpoint-{last}\n" in result.stdout
    assert max(row["step"] for row in logged(tmp_path)) == goal
    assert load_model(tmp_path / "run" / "final").config.d_model == 32
    record = json.loads((tmp_path / "run" / "final" / "training.json").read_text())
    assert (record["steps"], record["examples"]) == (goal, 4 * goal)
    assert [call["from_step"] for call in record["calls"]] == [0, last]
    assert record["calls"][1].keys() >= {"commit", "torch", "transformers", "numpy", "python", "device", "threads"}


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_finished_run_is_left_as_it_is(tmp_path):
    """Started again, and killed after its last checkpoint: no step more, and the model stays the same."""

    def start(*options):
        started = [*command(tmp_path, "--online"), *options]
        result = subprocess.run(started, capture_output=True, text=True, timeout=240, check=False)
        assert result.returncode == 0, result.stderr[-2000:]
        return result.stdout

    run = tmp_path / "run"
    start()
    finished = contents(run)
    assert "finished at step 6, its model is in" in start() and contents(run) == finished
    shutil.rmtree(run / "final")
    assert "trained to its end, step 6: its model is saved" in start()
    again = contents(run)
    assert again.keys() == finished.keys()
    assert {path for path in again if again[path] != finished[path]} <= {
        Path("training.json"),
        Path("final/training.json"),
    }
    assert max(row["step"] for row in logged(tmp_path)) == 6
    start("--max-steps", "8")
    assert max(row["step"] for row in logged(tmp_path)) == 8
    assert json.loads((run / "final" / "training.json").read_text())["steps"] == 8


@pytest.mark.parametrize(
    ("settings", "minutes", "is_last"),
    [
        ({"max_steps": 6}, None, True),
        ({"max_steps": 4}, None, True),
        ({"max_steps": 7}, None, False),
        ({"num_train_epochs": 2}, None, True),
        ({"num_train_epochs": 3}, None, False),
        ({"max_steps": 10**9}, 0.5, True),
        ({"max_steps": 10**9}, 0.6, False),
    ],
    ids=str,
)
def test_the_last_checkpoint_of_a_run(script, tmp_path, settings, minutes, is_last):
    train = script("train")
    (tmp_path / "trainer_state.json").write_text(json.dumps({"global_step": 6, "epoch": 2.0}))
    (tmp_path / "seconds.json").write_text("30.0")
    arguments = train.arguments_of(tmp_path, {**settings, "use_cpu": True}, ignore_data_skip=True)
    assert train.was_last(tmp_path, arguments, minutes) == is_last


def test_examples_are_counted_over_the_calls_of_a_run(script, tmp_path):
    """Two calls of different sizes, and one whose steps a kill lost."""
    record = script("training_record")
    for step, size in ((0, 4), (6, 8), (8, 2)):
        record.begin(tmp_path, {"config": {}}, step, size, torch.device("cpu"))
    assert record.record_at(tmp_path, 10)["examples"] == 6 * 4 + 2 * 8 + 2 * 2
    assert record.record_at(tmp_path, 7)["examples"] == 6 * 4 + 8
    record.begin(tmp_path, {"config": {}}, 6, 4, torch.device("cpu"))
    assert record.record_at(tmp_path, 10)["examples"] == 10 * 4
    assert len(record.record_at(tmp_path, 10)["calls"]) == 2


def test_the_newest_model_of_a_run_is_exported_where_it_is_better(script, tmp_path, tiny_checkpoint, monkeypatch):
    export, merits = script("export_checkpoint"), {}
    run, latest = tmp_path / "run", tmp_path / "training" / "latest"
    shutil.copytree(tiny_checkpoint, run / "checkpoint-20")
    (run / "checkpoint-20" / "trainer_state.json").write_text('{"global_step": 20}')
    (run / "log.jsonl").write_text("".join(json.dumps({"step": step}) + "\n" for step in (10, 20, 30)))
    with pytest.raises(ValueError, match="training.json: not there; train.py writes it when a run is started"):
        export.save(run, latest, True, 4)
    config = {"training": {"validation_size": 3, "validation_long_size": 2}}
    script("training_record").begin(run, {"config": config}, 0, 96, torch.device("cpu"))

    def step_of_latest():
        return json.loads((latest / "training.json").read_text())["steps"]

    export.save(run, latest, True, 4)
    record = json.loads((latest / "training.json").read_text())
    assert (record["steps"], record["examples"]) == (20, 1920)
    assert record["validation"]["programs"] == {"eval": 3, "eval_long": 2}
    assert [json.loads(line)["step"] for line in (latest / "log.jsonl").read_text().splitlines()] == [10, 20]
    assert load_model(latest).config.d_model == 32
    assert {path.name for path in latest.parent.iterdir()} == {"latest"}
    with (latest / "model.safetensors").open("rb") as file:
        assert b'"BF16"' in file.read(2000) and b'"F32"' not in (latest / "model.safetensors").read_bytes()[:2000]

    shutil.copytree(run / "checkpoint-20", run / "checkpoint-30")
    (run / "checkpoint-30" / "trainer_state.json").write_text('{"global_step": 30}')
    (run / "checkpoint-40").mkdir()  # as a kill in the middle of a save leaves it
    export.save(run, latest, True, 4)
    assert step_of_latest() == 20  # the same weights are not better
    merits.update({"new": (5, -0.1), "there": (5, -0.2)})
    measured = iter(["new", "there"])
    monkeypatch.setattr(export, "validate", lambda *_: {"programs": {}, "name": next(measured)})
    monkeypatch.setattr(export, "merit", lambda validation: merits[validation["name"]])
    export.save(run, latest, True, 4)
    assert step_of_latest() == 30
    monkeypatch.setattr(export, "MAX_BYTES", 1000)
    before = contents(latest)
    with pytest.raises(ValueError, match="expected a model of at most 1,000 bytes in bf16, got"):
        export.save(run, latest, False, 4)
    assert contents(latest) == before


def test_of_two_models_the_one_that_reads_more_is_better(script):
    export = script("export_checkpoint")

    def merit(exact, long_exact, loss):
        values = {"eval_free_running_exact": exact, "eval_long_free_running_exact": long_exact}
        return export.merit(
            {"programs": {"eval": 200, "eval_long": 100}, **values, "eval_loss": loss, "eval_long_loss": 0.3}
        )

    assert merit(0.84, 0.30, 0.03) > merit(0.835, 0.30, 0.02)
    assert merit(0.84, 0.31, 0.02) > merit(0.84, 0.31, 0.03) > merit(0.84, 0.30, 0.01)


def machine(folder):
    """A copy of what training takes, as on a machine of its own."""
    for part in ("trade_hf", "dataset_builder", "scripts"):
        shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "out").mkdir()
    return folder


def train_in_calls(folder, *options):
    environment = {**os.environ, "OUT": str(folder / "out"), "CONFIG": str(folder.parent / "config.yaml")}
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    call = ["bash", str(folder / "scripts" / "train_in_calls.sh"), *options]
    return subprocess.run(call, env=environment, capture_output=True, text=True, timeout=240, check=False)


def test_two_machines_one_after_the_other(tmp_path):
    by_the_clock = CONFIG.replace("max_steps: 6", "minutes: 0.5").replace("save_steps: 2", "validation_long_size: 2")
    (tmp_path / "config.yaml").write_text(by_the_clock + "  reuse: 2\n  long_share: 0.5\n")
    here, there = machine(tmp_path / "here"), machine(tmp_path / "there")
    first = train_in_calls(here, "0.1")
    assert "of 0.5 minutes: start it again to go on" in first.stdout, first.stderr[-2000:]
    assert not (here / "runs" / "gpu" / "final").exists()
    [checkpoint] = (here / "runs" / "gpu").glob("checkpoint-*")
    assert 6 <= json.loads((checkpoint / "seconds.json").read_text()) < 30
    (there / "runs").mkdir()
    shutil.copytree(here / "out", there / "runs" / "parts")
    second = train_in_calls(there, "5")
    assert f"from runs/gpu/{checkpoint.name}\n" in second.stdout, second.stderr[-2000:]
    packed = b"".join(path.read_bytes() for path in sorted((there / "out").iterdir()))
    with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
        archive.extractall(tmp_path / "end", filter="data")
    run = tmp_path / "end" / "runs" / "gpu"
    assert (run / "final" / "model.safetensors").exists()
    rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert any("eval_long_free_running_exact" in row for row in rows)
    rates = [row["learning_rate"] for row in rows if "loss" in row]
    assert rates[0] < max(rates) <= 0.001 and rates[-1] < max(rates)
    export = [sys.executable, str(ROOT / "scripts" / "export_checkpoint.py"), run / "final", tmp_path / "exported"]
    subprocess.run(export, capture_output=True, timeout=240, check=True)
    assert load_model(tmp_path / "exported").config.d_model == 32


def test_what_a_failed_call_has_is_brought_back(tmp_path):
    (tmp_path / "config.yaml").write_text("model: {d_modle: 32}\n" + CONFIG.split("\n", 2)[2])
    here = machine(tmp_path / "here")
    (here / "runs" / "gpu" / "checkpoint-3").mkdir(parents=True)
    for name, text in {
        "trainer_state.json": '{"global_step": 3}',
        "seconds.json": "3.0",
        "model.safetensors": "",
    }.items():
        (here / "runs" / "gpu" / "checkpoint-3" / name).write_text(text)
    (here / "runs" / "gpu" / "log.jsonl").touch()
    failed = train_in_calls(here, "0.05", "--minutes", "1")
    assert failed.returncode == 1 and "expected sizes of a TraDeConfig, got d_modle" in failed.stderr
    assert [path.name for path in (here / "out").iterdir()] == ["part-aa"]


LAUNCH = "--multi_gpu --num_processes 2 --num_machines 1 --mixed_precision no --dynamo_backend no --main_process_port 0"


def test_two_processes_killed_and_resumed_end_with_the_losses_of_an_undisturbed_run(tmp_path, tiny_checkpoint):
    build(CorpusConfig("small", 60, long_rows=1, shard_rows=40), tmp_path / "corpus", progress=False)
    write_card(tmp_path / "corpus")
    steps = 12
    launch = [sys.executable, "-m", "accelerate.commands.launch", *LAUNCH.split()]
    environment = {**os.environ, "HF_HOME": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}

    def start(name):
        (tmp_path / name).mkdir(exist_ok=True)
        source = ["--corpus", str(tmp_path / "corpus"), "--warm-start", str(tiny_checkpoint)]
        arguments = command(tmp_path / name, *source, "--max-steps", str(steps))[1:]
        (tmp_path / name / "config.yaml").write_text(
            CONFIG + "  use_cpu: true\n  muon_learning_rate: 0.002\n  bf16: true\n"
        )
        return subprocess.Popen(
            [*launch, *arguments],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def finish(name):
        with start(name) as run:
            printed, _ = run.communicate(timeout=240)
        assert run.returncode == 0, printed[-2000:]
        return printed

    def losses(name):
        return {row["step"]: row["loss"] for row in logged(tmp_path / name) if "loss" in row}

    with start("killed") as run:
        deadline = time.monotonic() + 120
        while not list((tmp_path / "killed" / "run").glob("checkpoint-*/trainer_state.json")):
            assert time.monotonic() < deadline and run.poll() is None
            time.sleep(0.05)
        os.killpg(run.pid, signal.SIGKILL)
    assert not (tmp_path / "killed" / "run" / "final").exists()
    assert "checkpoint-" in finish("killed")
    assert f"from {tiny_checkpoint}\n" in finish("undisturbed")
    assert len(losses("undisturbed")) == steps
    assert losses("killed") == losses("undisturbed")
    assert any("eval_free_running_exact" in row for row in logged(tmp_path / "undisturbed"))
    assert all(0 <= row["waiting_for_data"] < 1 for row in logged(tmp_path / "killed") if "loss" in row)


def test_a_corpus_that_is_not_there_is_refused(tmp_path):
    result = subprocess.run(
        command(tmp_path, "--corpus", str(tmp_path / "none")), capture_output=True, text=True, timeout=240, check=False
    )
    assert result.returncode == 2 and "expected a folder as scripts/build_dataset.py writes it" in result.stderr


def test_muon_moves_the_matrices_of_layers_and_adamw_all_else(tiny_checkpoint, script):
    muon = script("muon")
    model = load_model(tiny_checkpoint)
    optimizer = muon.MuonWithAdamW(model, muon_learning_rate=0.002, learning_rate=0.001, weight_decay=0.01, beta2=0.98)
    names = {id(weight): name for name, weight in model.named_parameters()}
    matrices, others = ([names[id(weight)] for weight in group["params"]] for group in optimizer.param_groups)
    assert sorted(matrices + others) == sorted(names.values())
    assert {name.split(".")[-1] for name in matrices} == {"weight"} and all(".layers." in name for name in matrices)
    assert "model.decoder.embedding.weight" in others
    assert [group["lr"] for group in optimizer.param_groups] == [0.002, 0.001]


@pytest.mark.parametrize("is_fast", [True, False])
def test_muon_moves_as_torchs(script, monkeypatch, is_fast):
    muon = script("muon")
    monkeypatch.setattr(muon, "has_fast_bf16", lambda device: is_fast)
    generator = torch.Generator().manual_seed(0)
    shapes = [(6, 6), (6, 6), (4, 10), (10, 4)]
    ours, theirs = ([torch.nn.Parameter(torch.ones(shape)) for shape in shapes] for _ in range(2))
    settings = {"lr": 0.01, "weight_decay": 0.1, "adjust_lr_fn": "match_rms_adamw"}
    optimizers = muon.Muon(ours, **settings), torch.optim.Muon(theirs, **settings)
    for _ in range(3):
        for own, other in zip(ours, theirs, strict=True):
            own.grad = torch.randn(own.shape, generator=generator)
            other.grad = own.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    for own, other in zip(ours, theirs, strict=True):
        assert (own - 1).abs().max() > 0.005
        torch.testing.assert_close(own, other, atol=1e-3, rtol=0)


def test_exact_match_counts_programs_and_their_structures(script):
    train = script("train")
    label = [10, 11, 12, 13, 20, 21, 22, 23, 2, -100]
    wrong_function = [10, 11, 12, 13, 20, 21, 22, 99, 2, 0]
    wrong_argument = [10, 11, 99, 13, 20, 21, 22, 23, 2, 0]
    too_short = [10, 11, 12, 13, 2, 0, 0]
    rows = [[1, *row, *[0] * (10 - len(row))] for row in (label[:9], wrong_function, wrong_argument, too_short)]
    found = train.exact_match(SimpleNamespace(predictions=np.array(rows), label_ids=np.array([label] * 4)))
    assert found == {"free_running_exact": 0.25, "structure_exact": 0.5}
    as_the_trainer_pads = np.array([[*label[:9], 0]])  # the longest of a batch has no -100
    whole = train.exact_match(SimpleNamespace(predictions=np.array([rows[0][:10]]), label_ids=as_the_trainer_pads))
    assert whole == {"free_running_exact": 1.0, "structure_exact": 1.0}
    cut = train.exact_match(SimpleNamespace(predictions=np.array([[1, 10, 11]]), label_ids=np.array([label])))
    assert cut == {"free_running_exact": 0.0, "structure_exact": 0.0}


def test_a_warm_start_is_in_single_precision_and_of_the_configs_size(script):
    train = script("train")
    model = train.build_model({"lines_before": 5}, DEFAULT_CHECKPOINT)
    assert {weight.dtype for weight in model.parameters()} == {torch.float32} and model.config.lines_before == 5
    with pytest.raises(SystemExit, match="another size than the config's model: {'d_model': 192}"):
        train.build_model({"d_model": 192}, DEFAULT_CHECKPOINT)
