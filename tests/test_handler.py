"""The handler for Inference Endpoints, over HTTP on this machine: right answers, and one line for all that is refused.

One server and one worker serve all tests, so each refusal is also followed by requests that are answered.
"""

import base64
import http.client
import json
import socket
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hostile_files import HOSTILE, noise

from trade_hf import compile_program, decompile, parse
from trade_hf.compiled.transforms import permute
from trade_hf.decompiler import DEFAULT_CHECKPOINT
from trade_hf.handler import Worker
from trade_hf.remote_code import export

sys.path.append(str(Path(__file__).resolve().parent.parent / "scripts"))  # last: `evaluate` is the library
from serve_endpoint import MAX_BODY, load_handler, serving

TIME_LIMIT = 3.0
PROGRAMS = {
    "histogram": "v1 = rasp.Select(rasp.tokens, rasp.tokens, rasp.Comparison.EQ)\nprogram = rasp.SelectorWidth(v1)",
    "next": "v1 = rasp.Map(lambda x: x + 1, rasp.indices)\nv2 = rasp.Select(rasp.indices, v1, rasp.Comparison.EQ)\n"
    "program = rasp.Aggregate(v2, rasp.tokens)",
    "sum": "program = rasp.SequenceMap(lambda x, y: x + y, rasp.tokens, rasp.indices)",
}


@pytest.fixture(scope="module")
def handler(tmp_path_factory):
    folder = tmp_path_factory.mktemp("endpoint") / "trade-base"
    export(DEFAULT_CHECKPOINT, folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HOME", str(tmp_path_factory.mktemp("home")))
        handler = load_handler(folder, time_limit=TIME_LIMIT)
    yield handler
    handler.close()


@pytest.fixture(scope="module")
def port(handler):
    with serving(handler, body_limit=1.5) as port:
        yield port


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Each model's file and the answer to it."""
    folder, files = tmp_path_factory.mktemp("models"), []
    for seed, text in enumerate(PROGRAMS.values()):
        path = folder / f"{seed}.safetensors"
        permute(compile_program(parse(text), (0, 1, 2, 3, 4), 5), seed).save(path)
        files.append((path.read_bytes(), decompile(path).to_dict()))
    return files


def post(port, body, **headers):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request("POST", "/", body, headers)
        response = connection.getresponse()
        return response.status, json.loads(response.read())
    finally:
        connection.close()


def ask(port, inputs, **rest):
    return post(port, json.dumps({"inputs": inputs, **rest}))


def encoded(content):
    return base64.b64encode(content).decode()


def test_one_and_several(port, files):
    for content, answer in files:
        assert answer["status"] == "identical weights"
        assert ask(port, encoded(content)) == (200, answer)
    contents, answers = zip(*files, strict=True)
    status, given = ask(port, [*map(encoded, contents)], parameters={"max_candidates": 50, "budget_seconds": 1})
    assert (status, given) == (200, [*answers])


def test_many_at_once(port, files):
    """The study of `scripts/benchmark.py serve`, in small."""
    with ThreadPoolExecutor(16) as pool:
        requests = [files[number % len(files)] for number in range(32)]
        answers = list(pool.map(lambda file: ask(port, encoded(file[0])), requests))
    assert answers == [(200, answer) for _, answer in requests]


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files(port, files, name):
    content, message = HOSTILE[name]
    status, answer = ask(port, [encoded(files[0][0]), encoded(content)])
    assert status == 400 and answer.keys() == {"error"} and message in answer["error"]
    assert answer["error"].startswith("inputs[1]: ") and "\n" not in answer["error"] and len(answer["error"]) < 600


BAD = {
    "no JSON": (b"hello", "expected JSON"),
    "deep JSON": (b"[" * 1_000_000, "expected JSON"),
    "no inputs": (b"{}", 'expected a JSON object with the key "inputs"'),
    "a list": (b"[]", 'expected a JSON object with the key "inputs"'),
    "none": (b'{"inputs": []}', "inputs: expected 1 to 16 files, got 0"),
    "too many": (json.dumps({"inputs": ["AAAA"] * 17}).encode(), "inputs: expected 1 to 16 files, got 17"),
    "a path": (b'{"inputs": "/etc/passwd"}', "inputs[0]: expected base64"),
    "a number": (b'{"inputs": [3]}', "inputs[0]: expected a safetensors file in base64, got int"),
    "large": (json.dumps({"inputs": "A" * 22_000_000}).encode(), "expected at most 16,000,000 bytes, got 16,500,000"),
    "unknown parameter": (b'{"inputs": "AAAA", "parameters": {"beams": 3}}', "parameters: expected an object with"),
    "no candidates": (b'{"inputs": "AAAA", "parameters": {"max_candidates": 0}}', "expected a number above 0"),
    "NaN": (b'{"inputs": "AAAA", "parameters": {"budget_seconds": NaN}}', "expected a number above 0"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_requests(port, name):
    body, message = BAD[name]
    status, answer = post(port, body)
    assert status == 400 and message in answer["error"] and "\n" not in answer["error"]


def test_uploads_that_are_too_large_packed_or_too_slow(port, files):
    assert post(port, bytes(MAX_BODY + 6_000_000)) == (413, {"error": f"expected at most {MAX_BODY:,} bytes, got more"})
    assert post(port, b"x", **{"Content-Encoding": "gzip"})[0] == 415
    with socket.create_connection(("127.0.0.1", port), timeout=10) as slow:
        slow.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n")
        start, answer = time.monotonic(), ask(port, encoded(files[0][0]))
        assert answer == (200, files[0][1])  # others are served in the meantime
        while time.monotonic() - start < 1.0:  # a byte now and then does not keep the connection
            slow.sendall(b" ")
            time.sleep(0.2)
        assert b" 408 " in slow.recv(1000)


def test_a_request_that_would_run_for_minutes(port, files, tmp_path):
    """Each model may be searched for a share of the time, and has its first candidates whatever they cost."""
    noise(length=490, heads=4).save(tmp_path / "long.safetensors")
    start = time.monotonic()
    status, answer = ask(port, [encoded((tmp_path / "long.safetensors").read_bytes())] * 8)
    assert (status, answer["error"]) == (400, "the request ran for more than 3 s: send fewer or smaller models")
    assert time.monotonic() - start < TIME_LIMIT + 5
    assert ask(port, encoded(files[0][0])) == (200, files[0][1])


def test_a_worker_that_could_not_be_started_again_is_started_later(tmp_path):
    script, ill = tmp_path / "worker.py", tmp_path / "ill"
    script.write_text(
        "import json, pathlib, sys\n"
        f"if not pathlib.Path({str(ill)!r}).exists():\n"
        "    print('ready', flush=True)\n"
        "    for line in sys.stdin:\n"
        "        if 'end' in line: sys.exit()\n"
        "        print(json.dumps({'result': 1}), flush=True)\n"
    )
    worker = Worker([sys.executable, str(script)], "it")
    assert worker.ask({}) == 1
    ill.touch()
    with pytest.raises(RuntimeError, match="it: the model could not be loaded"):
        worker.ask({"end": 1})
    with pytest.raises(RuntimeError, match="it: the model could not be loaded"):
        worker.ask({})
    ill.unlink()
    assert worker.ask({}) == 1
    worker.close()


def test_no_handler(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"expected a folder with a handler\.py"):
        load_handler(tmp_path)
