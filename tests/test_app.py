"""The demo over HTTP, as its page asks: answers, refusals in words, and that the next request is served."""

import base64
import contextlib
import gzip
import html
import json
import re
import socket
import sys
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from conftest import DEMO_TIME_LIMIT
from hostile_files import HOSTILE

from trade_hf.app.answers import decompile_answer, silence_answer
from trade_hf.app.details import PARTS
from trade_hf.app.examples import EXAMPLES
from trade_hf.app.settings import SCRAMBLES
from trade_hf.app.silence import silence_html
from trade_hf.app.trained import FILES
from trade_hf.app.trained import decompile_answer as trained_answer
from trade_hf.app.trained import input_answer as trained_input
from trade_hf.app.trained import silence_answer as trained_silence
from trade_hf.certificate import Certificate, recheck
from trade_hf.circuit.isomorphism import are_identical
from trade_hf.compiled.compiler import compile_program
from trade_hf.compiled.transforms import rotate
from trade_hf.compiled.weights import TracrWeights
from trade_hf.handler import MAX_BYTES, Worker
from trade_hf.rasp.text import parse

HISTOGRAM = EXAMPLES[1].code
GOOD = (HISTOGRAM, "0, 1, 2, 3, 4", 5, "rotate", "3, 1, 1")


def sent(address, path, body, kind="application/json"):
    request = urllib.request.Request(f"{address}/gradio_api/{path}", body, {"Content-Type": kind})
    with urllib.request.urlopen(request, timeout=60) as response:
        return json.load(response)


def asked(address, name, *values):
    """What an event of the page answers: its last data, and all text that came."""
    event = sent(address, f"call/{name}", json.dumps({"data": values}).encode())["event_id"]
    with urllib.request.urlopen(f"{address}/gradio_api/call/{name}/{event}", timeout=60) as response:
        text = response.read().decode()
    *_, last = re.findall(r"^event: complete\ndata: (.*)$", text, re.MULTILINE)
    return json.loads(last), text


def refusal(answer):
    """The one line that an error is."""
    return re.fullmatch(r'<div class="trade"><p class="verdict refuted" role="alert">(.*)</p></div>', answer[0])[1]


def uploaded(address, content, name="model.safetensors"):
    body = f'--x\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\n\r\n'.encode()
    return sent(address, "upload", body + content + b"\r\n--x--\r\n", "multipart/form-data; boundary=x")[0]


def asked_about_file(address, content):
    file = {"path": uploaded(address, content), "meta": {"_type": "gradio.FileData"}}
    return asked(address, "decompile_file", file, "3, 1")[0]


def test_a_program_is_compiled_scrambled_and_decompiled(demo):
    asked(demo, "decompile", *GOOD)  # the page is there before the worker, which takes seconds to start
    answer, text = asked(demo, "decompile", *GOOD)
    assert "Proven" in answer[0] and "SelectorWidth" in answer[0]
    steps = re.findall(r'role=\\"status\\">(\w+)', text)
    assert list(dict.fromkeys(steps)) == ["Waiting", "Compiling", "Reading", "Writing", "Finding", "Drawing", "Done"]
    assert float(re.search(r"Done in ([\d.]+) s", text)[1]) < 2
    places, attention, proof, weights, tried = answer[1:6]
    assert "Confirmed for each line" in places and places.count("<svg") == 2
    assert "[3, 1, 1]" in attention and "layer 0 head 0" in attention
    assert "SHA-256 of the weights" in proof and "1, returned" in tried
    after, before = weights.split("Before, as Tracr compiles it")
    assert "After the scramble" in after
    marked, other = (set(re.findall(r'data-line="([^"]+)"', part)) for part in (after, before))
    assert marked == other and {"v1", "v2"} <= {line for lines in marked for line in lines.split()}


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.name)
def test_the_examples_are_proven_but_for_two(example):
    lead = decompile_answer(asdict(example), str)["lead"]
    refuted, sampled = "refuted" in example.name, "sampled" in example.name
    assert ("Proven" in lead) == (not refuted and not sampled)
    assert ("refuted by" in lead) == refuted and ("agrees on 10,000 of" in lead) == sampled


def saved(html_text, name):
    """The content of a link that saves a file."""
    return base64.b64decode(re.search(f'download="{name}" href="data:[^;]*;base64,([^"]*)"', html_text)[1])


@pytest.mark.parametrize("scramble", SCRAMBLES)
def test_what_is_kept_can_be_checked_again(demo, scramble):
    answer, _ = asked(demo, "decompile", HISTOGRAM, "a, b", 3, scramble, "a, b")
    assert "Not done" not in answer[0], answer[0]
    keep = answer[6]
    weights = TracrWeights.from_bytes(saved(keep, "model.safetensors"))
    certificate = Certificate.from_json(saved(keep, "certificate.json").decode())
    assert recheck(certificate, weights).verdict == certificate.verdict
    assert parse(saved(keep, "program.py").decode()) == parse(certificate.program)
    assert "--vocab &#39;a,b&#39; --max-seq-len 3" in keep and "?code=v1" in keep


def test_the_value_of_each_line_is_shown(demo):
    answer, _ = asked(demo, "decompile", *GOOD)
    assert "What each line gives on [3, 1, 1]" in answer[2]
    plain = re.sub(r"</?span[^>]*>", "", answer[2])
    rows = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row) for row in re.findall(r"<tr[^>]*>(.*?)</tr>", plain)]
    assert ["v1", "0", "1, 2", "1, 2"] in rows and ["v2", "1", "2", "2"] in rows


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({0: ""}, "expected a RASP program, got none"),
        ({0: "import os"}, "line 1, column 1: expected `name = rasp.…`, got `import os`"),
        ({0: "<script>alert(1)</script>"}, "line 1, column 1: "),
        ({0: "#" * 30_000}, "expected a program of at most 20,000 characters, got 30,001"),
        ({1: "1, 1"}, "vocabulary: expected at most 12 distinct tokens, got 2"),
        ({1: "1,,2"}, "vocabulary: expected tokens separated by commas"),
        ({1: "a, b, compiler_bos"}, "the vocabulary must not contain"),
    ],
)
def test_bad_fields_get_one_line(demo, change, words):
    code, *others = [change.get(place, value) for place, value in enumerate(GOOD)]
    answer, text = asked(demo, "decompile", f"{code}\n" if code else code, *others)
    assert words in refusal(answer) and "Traceback" not in text and "<script>" not in text
    assert answer[7]["visible"] is False


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_are_refused_in_words(demo, name):
    content, words = HOSTILE[name]
    assert words in html.unescape(refusal(asked_about_file(demo, content)))


def test_a_file_is_decompiled(demo, tmp_path):
    rotate(compile_program(parse(HISTOGRAM), ("a", "b"), 4), 3).save(tmp_path / "model")
    assert "expected a safetensors file, got none" in refusal(asked(demo, "decompile_file", None, "")[0])
    answer = asked_about_file(demo, (tmp_path / "model").read_bytes())
    assert "Proven" in answer[0] and "After the scramble" not in answer[4]


def asked_about_trained(address, folder, names=("model.safetensors", "config.json", "domain.json")):
    files = []
    for name in names:
        path = uploaded(address, (folder / name).read_bytes(), name)
        files.append({"path": path, "orig_name": name, "meta": {"_type": "gradio.FileData"}})
    return asked(address, "decompile_trained", files)[0]


def test_a_trained_model_is_decompiled(tmp_path):
    folder, steps = Path(__file__).parent / "trained" / "lang_no_three", []
    for name in FILES[:2]:
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    told = json.loads((folder / "domain.json").read_text())
    (tmp_path / "domain.json").write_text(json.dumps(told | {"inputs": told["inputs"][:62]}))
    answer = trained_answer({"trained": [str(tmp_path / name) for name in FILES]}, steps.append)
    assert "Proven" in answer["lead"] and "equal on all 62 inputs" in answer["lead"] and "Aggregate" in answer["lead"]
    assert "interchange accuracy" in answer["places"] and "what the program selects" in answer["input"]
    assert "Smallest logit gap" in answer["known"] and steps[0] == "Reading the files" and steps[-1] == "Drawing"
    assert set(PARTS) <= set(answer)


def test_files_of_a_trained_model_are_refused_in_words(demo):
    folder = Path(__file__).parent / "trained" / "lang_no_three"
    words = refusal(asked_about_trained(demo, folder, ("config.json",)))
    assert "expected the files model.safetensors, config.json, domain.json, got config.json" in words
    assert "expected the files" in refusal(asked(demo, "decompile_trained", None)[0])
    answer = asked_about_trained(demo, folder)[0]
    assert "The program that was found" in answer or "ran for more than" in answer  # on a busy machine


def test_an_input_of_a_trained_model_is_shown_or_refused():
    folder = Path(__file__).parent / "trained" / "reverse"
    code = "v1 = rasp.Map(lambda x: x, rasp.tokens)\nprogram = v1"
    request = {"trained": [str(folder / name) for name in FILES], "found": code, "tokens": "5, 1, 2"}
    shown = trained_input(request, str)
    assert "The program selects nothing" in shown and "≠" in shown
    with pytest.raises(ValueError, match="expected token ids separated by commas"):
        trained_input({**request, "tokens": "a"}, str)
    with pytest.raises(ValueError, match="expected token ids below 7, got 70"):
        trained_input({**request, "tokens": "70", "found": PICKS}, str)


PICKS = "v1 = rasp.Select(rasp.tokens, rasp.tokens, lambda k, q: k == q)\nv2 = rasp.SelectorWidth(v1)\nprogram = v2"
LARGE = 100_000_000
FIELD = b'--x\r\nContent-Disposition: form-data; name="files"\r\n\r\n%s\r\n--x--\r\n'
TOO_LARGE = {
    "a file": (413, lambda demo: uploaded(demo, bytes(LARGE))),
    "a file just above": (413, lambda demo: uploaded(demo, bytes(MAX_BYTES + 1))),
    "a field": (413, lambda demo: sent(demo, "upload", FIELD % bytes(LARGE), "multipart/form-data; boundary=x")),
    "a program": (400, lambda demo: sent(demo, "call/decompile", json.dumps({"data": ["#" * LARGE]}).encode())),
    "packed": (400, lambda demo: sent(demo, "call/decompile", gzip.compress(bytes(LARGE)))),
}


@pytest.mark.parametrize("name", TOO_LARGE)
def test_what_is_too_large_is_not_taken_and_the_next_is_served(demo, name):
    status, send = TOO_LARGE[name]
    with pytest.raises(urllib.error.HTTPError) as caught:
        send(demo)
    caught.value.close()
    assert caught.value.code == status
    assert "Proven" in asked(demo, "decompile", *GOOD)[0][0]


@pytest.mark.parametrize("path", ["/etc/passwd", "http://example.com/model.safetensors"])
def test_no_file_is_read_but_those_that_were_uploaded(demo, path):
    file = {"path": path, "meta": {"_type": "gradio.FileData"}}
    event = sent(demo, "call/decompile_file", json.dumps({"data": [file, ""]}).encode())["event_id"]
    with urllib.request.urlopen(f"{demo}/gradio_api/call/decompile_file/{event}", timeout=60) as response:
        text = response.read().decode()
    assert "event: error" in text and "root:" not in text
    assert ("expected a file that was uploaded" in text) == path.startswith("http")


def test_what_takes_too_long_to_come_or_to_run_is_ended_and_the_next_is_served(demo, tmp_path):
    """Both at a time: a model that takes long, and a file of which a byte comes now and then."""
    same = parse(
        "v1 = rasp.Select(rasp.indices, rasp.indices, rasp.Comparison.EQ)\nprogram = rasp.Aggregate(v1, rasp.tokens)"
    )
    rotate(compile_program(same, range(4), 300), 0).save(tmp_path / "long")  # 10,000 inputs of up to 300 tokens are run
    with ThreadPoolExecutor(2) as pool:
        slow = pool.submit(trickled, urlsplit(demo).port, patience=DEMO_TIME_LIMIT + 5)
        start, answer = time.monotonic(), asked_about_file(demo, (tmp_path / "long").read_bytes())
        assert f"ran for more than {DEMO_TIME_LIMIT} s" in refusal(answer)
        assert time.monotonic() - start < DEMO_TIME_LIMIT + 5
        assert "Proven" in asked(demo, "decompile", *GOOD)[0][0]
        assert b" 400 " in slow.result()


def trickled(port, patience):
    """How an answer begins that a server gives in the end to a file of which a byte comes now and then."""
    head = b"POST /gradio_api/upload HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary=x\r\n"
    body = b'--x\r\nContent-Disposition: form-data; name="files"; filename="model"\r\n\r\n'
    with socket.create_connection(("127.0.0.1", port), timeout=0.2) as client:
        client.sendall(head + b"Content-Length: 1000\r\n\r\n" + body)
        end = time.monotonic() + patience
        while time.monotonic() < end:
            client.sendall(b" ")
            with contextlib.suppress(TimeoutError):
                return client.recv(1000)
    return b""


def test_many_at_a_time_get_each_their_own(demo):
    """The study of `scripts/benchmark.py space`, in small."""

    def one(size):
        vocab = ", ".join("abcdefgh"[:size])
        return size, asked(demo, "decompile", HISTOGRAM, vocab, 3, "permute", "")[0]

    with ThreadPoolExecutor(16) as pool:
        for size, answer in pool.map(one, [2, 3, 4, 5, 6, 7, 8] * 3):
            assert "Proven" in answer[0] and f"{size}: {', '.join('abcdefgh'[:size])}" in answer[4].replace("&#39;", "")


def test_what_runs_too_long_is_ended_and_the_next_request_is_served():
    worker = Worker([sys.executable, "-m", "trade_hf.app.worker", "0.03"], "the demo")
    request = {"asks": "decompile", "code": HISTOGRAM, "vocab": "0, 1", "length": 4, "scramble": "none", "tokens": ""}
    heard = []
    try:
        with pytest.raises(ValueError, match=r"ran for more than 0\.03 s"):
            worker.ask(request, heard.append)
        with pytest.raises(ValueError, match="expected a RASP program, got none"):
            worker.ask({**request, "code": ""})
    finally:
        worker.close()
    assert heard[0] == "Compiling" and "Drawing" not in heard


def test_a_model_that_no_program_fits_is_not_called_proven_and_shows_where(tmp_path):
    weights = compile_program(parse(HISTOGRAM), (0, 1, 2, 3, 4), 5)
    weights.tensors["transformer/layer_0/mlp/linear_2/w"][::3] = 0  # hidden units that write nothing any more
    rotate(weights, 0).save(tmp_path / "model")
    answer = decompile_answer({"file": str(tmp_path / "model"), "tokens": "9"}, str)
    assert "the model computes something else" in answer["lead"]
    assert "Not proven" in answer["lead"] and "A counterexample" in answer["known"] and "≠" in answer["known"]
    assert "no line is assigned to a layer" in answer["places"]
    assert set(answer["tokens"].split(", ")) <= set("01234")


SHARE = {**asdict(EXAMPLES[3]), "found": EXAMPLES[3].code, "tokens": "1, 1, 2, 1", "line": "v2"}


def test_a_silenced_line_shows_the_output_before_and_after_and_where_it_changes():
    """Without v2, which is 1 where the token is 2, the share of 2s so far is 0."""
    text = silence_answer(SHARE, str)
    assert "v2 is layer 0 MLP units" in text and "changes at positions 2, 3." in text
    rows = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row) for row in re.findall(r"<tr>(.*?)</tr>", text)]
    assert rows[1:] == [
        ["0", "1", "0", "0", ""],
        ["1", "1", "0", "0", ""],
        ["2", "2", "0.3333", "0", "≠"],
        ["3", "1", "0.25", "0", "≠"],
    ]
    assert "changes at no position." in silence_answer({**SHARE, "tokens": "1, 3"}, str)


def test_of_a_line_without_parts_one_sentence_is_said():
    select = "v1 has no part of its own: a select is in the head of the line that reads it, v3."
    assert select in silence_answer({**SHARE, "line": "v1"}, str)
    program, weights = parse(HISTOGRAM), compile_program(parse(HISTOGRAM), (0, 1), 2)
    assert "v2 has no part of its own in the model." in silence_html(program, weights, (0, 1), 1, ())
    assert "no line has parts that could be silenced" in silence_html(program, weights, (0, 1), 1, None)
    assert "not which parts could be silenced" in trained_silence({}, str)
    with pytest.raises(ValueError, match="line: expected one of v1, v2, v3, got v9"):
        silence_answer({**SHARE, "line": "v9"}, str)


def test_where_rasp_says_something_else_is_shown(tmp_path):
    """At exactness 10 a length is counted up to 1."""
    length = parse("program = rasp.SelectorWidth(rasp.Select(rasp.tokens, rasp.tokens, rasp.Comparison.TRUE))")
    compile_program(length, (0, 1), 4, exactness=10).save(tmp_path / "model")
    answer = decompile_answer({"file": str(tmp_path / "model"), "tokens": "0"}, str)
    assert "Proven" in answer["lead"] and "Where RASP itself says something else" in answer["known"]
    assert "v2 counts up to 1 of 4" in answer["known"]


def test_the_examples_are_tracrs_own_programs():
    from trade_hf.compiled.bridge import from_tracr
    from trade_hf.demo import MAX_SEQ_LEN, VOCAB, known_programs

    known = known_programs()
    names = ("reverse", "histogram", "sort of distinct tokens", "fraction of previous tokens that are 2")
    for example, name in zip(EXAMPLES, names, strict=False):
        own, theirs = parse(example.code), from_tracr(known[name], VOCAB, MAX_SEQ_LEN).program
        compiled = [compile_program(program, VOCAB, MAX_SEQ_LEN) for program in (own, theirs)]
        assert are_identical(*compiled), name
