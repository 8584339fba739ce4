"""Any decompiler can be scored, and what it does to itself costs it one model."""

import importlib.util
import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from hostile_methods import GOOD

from dataset_builder import controls
from trade_hf.compiled.compiler import compile_program
from trade_hf.compiled.weights import TracrWeights
from trade_hf.methods import Limits, Method, MethodError
from trade_hf.rasp.text import parse

LIMITS = Limits(seconds=1.5, memory=1 << 30)
HOSTILE = {
    "crash": "ended with status -11",
    "leave": "ended with status 3",
    "leave_politely": "SystemExit: done",
    "hang": "took more than 1.5 s",
    "spin": "took more than 1.5 s",
    "fail": "RuntimeError: no idea xxx",
    "allocate": "MemoryError: ",
    "write_to_every_file": "gave more than it was asked for",
    "give_a_number": "expected code as a string or None, got int",
    "give_a_megabyte": "expected at most 100,000 characters of code, got 1,000,000",
    "give_up": "gave up",
    "nest": "gave something else than it was asked for",
    "answer_another": "gave something else than it was asked for",
    "answer_a_number": "gave something else than it was asked for",
}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    for size in (3, 4):
        compile_program(parse(GOOD), range(size), 3).save(folder / f"{size}.safetensors")
    return folder


@pytest.fixture(autouse=True)
def methods_are_found(monkeypatch, request):
    monkeypatch.setenv("PYTHONPATH", str(request.path.parent))


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_method_loses_one_model(name, models):
    with Method(f"hostile_methods:{name}", LIMITS) as method:
        assert method.run(models / "4.safetensors").code == GOOD
        bad = method.run(models / "3.safetensors")
        assert bad.code is None and bad.reason.startswith(HOSTILE[name]) and len(bad.reason) <= 200
        assert "\n" not in bad.reason and bad.seconds < 4
        assert method.run(models / "4.safetensors").code == GOOD


def test_what_a_method_keeps_counts(models):
    with Method("hostile_methods:fill_memory", Limits(seconds=60, memory=1 << 30)) as method:
        assert method.run(models / "4.safetensors").code == GOOD
        assert method.run(models / "3.safetensors").reason.startswith("MemoryError: ")
        assert method.run(models / "4.safetensors").code == GOOD


def test_memory_that_an_earlier_model_filled_costs_no_other_model(models):
    with Method("hostile_methods:crowd", Limits(seconds=60, memory=1 << 30)) as method:
        method.run(models / "3.safetensors")
        for _ in range(2):
            assert method.run(models / "4.safetensors").code == GOOD


def test_shared_memory_counts(models):
    with Method("hostile_methods:share_memory", Limits(seconds=60, memory=1 << 30)) as method:
        assert method.run(models / "3.safetensors").reason == "took more than 2 GB in all"
        assert method.run(models / "4.safetensors").code == GOOD


@pytest.mark.parametrize("name", ["close_input", "answer_twice", "take_few_files"])
def test_what_a_method_did_to_its_process_costs_no_other_model(name, models):
    with Method(f"hostile_methods:{name}", LIMITS) as method:
        method.run(models / "3.safetensors")
        for _ in range(3):
            assert method.run(models / "4.safetensors").code == GOOD


def test_a_method_ends_with_the_run(models):
    """However that ends: a method that is busy would never look for its end."""
    code = f"""import os, signal
from pathlib import Path
from trade_hf.methods import Limits, Method
with Method("hostile_methods:spin", Limits(60)) as method:
    print(method.process.pid, flush=True)
    method.run(Path({str(models / "3.safetensors")!r}))"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as run:
        pid = int(run.stdout.readline())
        run.kill()
    for _ in range(100):
        if not Path(f"/proc/{pid}").exists() or " Z " in Path(f"/proc/{pid}/stat").read_text():
            return
        time.sleep(0.05)
    raise AssertionError("the method outlived the run")


def test_what_a_method_prints_is_not_its_answer(models):
    with Method("hostile_methods:print_megabytes", LIMITS) as method:
        assert method.run(models / "3.safetensors").code == GOOD


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("hostile_methods", "expected a method as MODULE:FUNCTION"),
        ("no_such_module:f", "could not be started: ModuleNotFoundError"),
        ("hostile_methods:no_such_function", "could not be started: AttributeError"),
    ],
)
def test_a_method_that_cannot_be_started_is_refused(name, message):
    with pytest.raises(MethodError, match=message), Method(name, LIMITS):
        pass


def test_the_control_gives_a_program_that_compiles(models, monkeypatch):
    monkeypatch.setattr(controls, "SEEN", 200)
    weights = TracrWeights.load(models / "3.safetensors")
    compile_program(parse(controls.most_common(weights)), weights.input_vocab, weights.max_seq_len)


@pytest.fixture
def evaluation(monkeypatch):
    """scripts/evaluate.py; the evaluate library has its name."""
    folder = Path(__file__).resolve().parent.parent / "scripts"
    monkeypatch.setattr(sys, "path", [*sys.path, str(folder)])
    spec = importlib.util.spec_from_file_location("evaluate_script", folder / "evaluate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_check_of_what_is_certified_sees_a_wrong_none(evaluation):
    program = parse("program = rasp.Map(lambda x: x % 2, rasp.tokens)")
    weights = compile_program(program, range(5), 3)
    name = "transformer/layer_0/mlp/linear_2/w"
    silent = weights.tensors[name].copy()
    silent[:, weights.residual_labels.index("v1_:0")] = 0
    assert not evaluation._differs(program, weights)
    assert evaluation._differs(program, replace(weights, tensors={**weights.tensors, name: silent}))


def test_a_program_too_large_to_compile_is_no_error(evaluation):
    product = "rasp.SequenceMap(lambda x, y: x * y, {}, {})"
    difference = "rasp.SequenceMap(lambda x, y: x - y, {}, {})"
    program = parse(
        f"v1 = {product.format('rasp.tokens', 'rasp.indices')}\nv2 = {difference.format('v1', 'rasp.tokens')}\n"
        f"v3 = {product.format('v2', 'rasp.tokens')}\nv4 = {difference.format('v3', 'v1')}\n"
        f"v5 = {product.format('v4', 'v3')}\nprogram = {difference.format('v5', 'v4')}"
    )
    small = compile_program(parse("program = rasp.Map(lambda x: x, rasp.tokens)"), range(5), 5)
    assert evaluation._compiled(program, small) is None


def test_a_run_that_was_killed_goes_on(tmp_path, evaluation, monkeypatch):
    progress = tmp_path / "most-common.progress.jsonl"
    arguments = ("hostile_methods:leave_politely", "test", "permuted", 3, LIMITS)
    whole = evaluation.evaluate_method(*arguments, None)
    evaluation.evaluate_method(*arguments[:3], 2, LIMITS, progress)
    progress.write_text(progress.read_text() + '{"of": "cut o')  # as a kill leaves it
    asked = []
    monkeypatch.setattr(Method, "run", lambda self, path, run=Method.run: (asked.append(path), run(self, path))[1])
    resumed = evaluation.evaluate_method(*arguments, progress)
    assert len(asked) == 1
    assert len([json.loads(line) for line in progress.read_text().splitlines()]) == 3
    assert {k: v for k, v in resumed.items() if k != "seconds"} == {k: v for k, v in whole.items() if k != "seconds"}
    assert whole["compiles"] == 1.0 and whole["n"] == 3
