"""Shared, made once: a tiny checkpoint that knows nothing, sampled programs, a tiny corpus, a client that publishes."""

import contextlib
import importlib
import itertools
import json
import os
import shutil
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from cases import CASES, LENGTH, VOCAB

from dataset_builder import corpus
from dataset_builder.card import write_card
from dataset_builder.sampler import sample_programs
from trade_hf.compiled.compiler import compile_program
from trade_hf.compiled.transforms import add_noise, rotate
from trade_hf.configuration_trade import TraDeConfig
from trade_hf.modeling_trade import TraDeForConditionalGeneration
from trade_hf.processing_trade import TraDeProcessor
from trade_hf.tokenization_rasp import VOCABULARY, build_tokenizer


@pytest.fixture
def script(monkeypatch):
    """Imports a module of scripts/."""
    monkeypatch.syspath_prepend(Path(__file__).resolve().parent.parent / "scripts")
    return importlib.import_module


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory):
    torch.manual_seed(0)
    config = TraDeConfig(
        vocab_size=len(VOCABULARY),
        d_model=32,
        encoder_layers=1,
        decoder_layers=1,
        num_heads=2,
        message_size=8,
        ffn_size=32,
    )
    folder = tmp_path_factory.mktemp("tiny")
    TraDeForConditionalGeneration(config).save_pretrained(folder)
    TraDeProcessor(build_tokenizer()).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def spoiled():
    """A model that no program explains: so much noise that nothing can be read from it."""
    reverse = next(case.program for case in CASES if case.name == "reverse")
    return add_noise(rotate(compile_program(reverse, VOCAB, LENGTH), 0), 0.5, 0)


@pytest.fixture(scope="session")
def samples():
    return list(itertools.islice(sample_programs("tests"), 60))


@pytest.fixture(scope="session")
def tiny_corpus(tmp_path_factory):
    """A folder as build_dataset.py leaves it."""
    folder = tmp_path_factory.mktemp("tiny") / "corpus"
    config = replace(corpus.CONFIGS["small"], rows=60, long_rows=2, shard_rows=60)
    corpus.build(config, folder, progress=False)
    write_card(folder)
    return folder


# A process that reads HF_ENDPOINT when it starts, as all clients do. It does not wait before it tries again.
PUBLISHER = """
import contextlib, io, json, os, sys, time
sys.path.insert(0, sys.argv[1])
import push_to_hub
time.sleep = lambda seconds: None
for line in sys.stdin:
    arguments, token = json.loads(line)
    os.environ["HF_TOKEN"] = token or ""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = push_to_hub.main(arguments)
    print(json.dumps([status, out.getvalue(), err.getvalue()]), flush=True)
"""


@pytest.fixture(scope="session")
def publisher(tmp_path_factory):
    """Starts scripts/push_to_hub.py for a Hub; what it gives runs it and tells exit status, stdout and stderr."""
    started = []

    def start(hub):
        root = Path(__file__).resolve().parent.parent
        environment = hub.environment(tmp_path_factory.mktemp("publisher"))
        process = subprocess.Popen(
            [sys.executable, "-c", PUBLISHER, str(root / "scripts")],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        started.append(process)

        def push(*arguments, token=hub.token):
            process.stdin.write(json.dumps([list(map(str, arguments)), token]) + "\n")
            process.stdin.flush()
            return json.loads(process.stdout.readline())

        push.process = process
        return push

    yield start
    for process in started:
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()
        process.wait(30)
        process.stdout.close()


DEMO_TIME_LIMIT = 20  # seconds; more than the search may take, so that a busy machine gets to the end of its answer


@pytest.fixture(scope="session")
def demo(tmp_path_factory):
    """The address of `trade app`, in a process of its own."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "GRADIO_TEMP_DIR": str(tmp_path_factory.mktemp("demo"))}
    command = [sys.executable, "-m", "trade_hf.cli", "app", "--port", str(port), "--time-limit", str(DEMO_TIME_LIMIT)]
    root = Path(__file__).resolve().parent.parent
    with subprocess.Popen(command, env=environment, cwd=root, stdout=subprocess.PIPE, text=True) as process:
        assert f"http://127.0.0.1:{port}" in process.stdout.readline()
        yield f"http://127.0.0.1:{port}"
        process.terminate()


@pytest.fixture(scope="session")
def browser():
    """Debian's Chromium, driven by Playwright. Tests that need it are skipped where it is missing, or fail there if
    TRADE_NEEDS_BROWSER is set, as `.ci/run` does."""
    chromium = shutil.which("chromium")
    if chromium is None and not os.environ.get("TRADE_NEEDS_BROWSER"):
        pytest.skip("no chromium on this machine: apt-get install chromium")
    assert chromium, "expected chromium on the path: apt-get install chromium"
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        # Chromium's own sandbox does not start for root, as whom CI's containers run.
        yield playwright.chromium.launch(executable_path=chromium, chromium_sandbox=os.geteuid() != 0)
