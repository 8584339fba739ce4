"""The command line as a user meets it: results for people and machines, one line for what is wrong."""

import json
import os
import pickle
import socket
import subprocess
import sys

import numpy as np
import pytest
from cases import CASES, LENGTH, VOCAB

import trade_hf
from trade_hf.cli import main
from trade_hf.compiled.compiler import compile_program
from trade_hf.compiled.transforms import add_noise, compress, permute, rotate, skew
from trade_hf.compiled.weights import TracrWeights
from trade_hf.decompile_command import exit_status
from trade_hf.rasp.canonical import canonical_hash
from trade_hf.rasp.text import parse, to_text
from trade_hf.verification import Status


@pytest.fixture
def program_file(tmp_path):
    path = tmp_path / "histogram.py"
    path.write_text(to_text(CASES[1].program))
    return path


@pytest.fixture
def model_file(tmp_path):
    path = tmp_path / "histogram.safetensors"
    compile_program(CASES[1].program, VOCAB, LENGTH).save(path)
    return path


def test_compile_and_verify(program_file, tmp_path, capsys):
    target = tmp_path / "out.safetensors"
    assert main(["compile", str(program_file), "-o", str(target)]) == 0
    assert TracrWeights.load(target).input_vocab == VOCAB
    assert main(["verify", str(target), str(program_file)]) == 0
    assert "identical weights" in capsys.readouterr().out
    program_file.write_text(to_text(CASES[0].program))
    assert main(["verify", str(target), str(program_file), "--json"]) == 1
    verdict = json.loads(capsys.readouterr().out)
    assert verdict["status"] == "refuted" and verdict["counterexample"]


def test_a_sample_as_large_as_wanted(program_file, tmp_path, capsys):
    """Of a program that does the same by other means, so that the weights do not settle it."""
    model, certificate = tmp_path / "model.safetensors", tmp_path / "certificate.json"
    compile_program(CASES[1].program, VOCAB, LENGTH).save(model)
    text = program_file.read_text().replace("program = v2", "v3 = rasp.Map(lambda x: x, v2)\nprogram = v3")
    program_file.write_text(text)
    few = ["--limit", "1", "--samples", "200", "--seed", "3"]
    assert main(["verify", str(model), str(program_file), *few, "--write-certificate", str(certificate)]) == 3
    assert "agrees on 200 of 3,905 inputs" in capsys.readouterr().out
    assert main(["verify", "--certificate", str(certificate)]) == 3
    assert "checked again: agrees on 200" in capsys.readouterr().out


def test_other_vocabularies(program_file, tmp_path, capsys):
    target = tmp_path / "out.safetensors"
    command = ["compile", str(program_file), "-o", str(target), "--vocab", "a,b,c", "--max-seq-len", "3", "--json"]
    assert main(command) == 0
    assert json.loads(capsys.readouterr().out)["file"] == str(target)
    assert TracrWeights.load(target).input_vocab == ("a", "b", "c")


def test_decompile(model_file, tiny_checkpoint, capsys):
    assert main(["decompile", str(model_file), "--checkpoint", str(tiny_checkpoint), "--json"]) == 0
    row = json.loads(capsys.readouterr().out)
    assert set(row) == {
        "code",
        "status",
        "proven",
        "certificate",
        "elsewhere",
        "faint",
        "departure",
        "limits",
        "score",
        "candidates",
        "ended_by",
        "seconds",
        "source",
        "lines",
    }
    parse(row["code"])
    assert row["proven"] and [(line["name"], line["confirmed"]) for line in row["lines"]] == [
        ("v1", True),
        ("v2", True),
    ]
    assert row["lines"][1]["code"] == "rasp.SelectorWidth(v1)" and "MLP units" in row["lines"][1]["where"]


def test_the_verdict_comes_first_and_the_output_is_a_program(model_file, capsys):
    assert main(["decompile", str(model_file)]) == 0
    out = capsys.readouterr().out
    assert out.startswith("# PROVEN: identical weights\n") and "\033" not in out
    assert parse(out) == CASES[1].program


def test_what_was_not_found_is_marked_at_its_head(tmp_path, tiny_checkpoint, spoiled, capsys):
    path = tmp_path / "spoiled.safetensors"
    spoiled.save(path)
    assert main(["decompile", str(path), "--checkpoint", str(tiny_checkpoint)]) == 1
    assert capsys.readouterr().out.startswith("# NOT THE MODEL'S PROGRAM: refuted")


def test_what_is_written_is_said(model_file, tmp_path, capsys):
    report, figure = tmp_path / "report.html", tmp_path / "layers.svg"
    assert main(["decompile", str(model_file), "--report", str(report), "--figure", str(figure)]) == 0
    said = capsys.readouterr().err.splitlines()
    assert [line.split(": written, ")[0] for line in said] == [f"trade: {report}", f"trade: {figure}"]
    assert report.stat().st_size and figure.stat().st_size


@pytest.mark.parametrize("command", ["decompile none", "verify none program.py", "verify --certificate none"])
def test_a_missing_file_is_answered_before_anything_heavy_is_imported(command, tmp_path):
    code = (
        "import sys\nfrom trade_hf.cli import main\nassert main(sys.argv[1:]) == 2\n"
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    (tmp_path / "program.py").write_text(to_text(CASES[1].program))
    done = subprocess.run([sys.executable, "-c", code, *command.split()], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0 and done.stderr == "trade: none: no such file\n", done.stderr


@pytest.mark.parametrize(
    "command", ["decompile {} --report report.html --figure layers.svg", "decompile {} --json", "verify {} program.py"]
)
def test_what_is_read_from_the_weights_needs_no_network(command, model_file, tmp_path):
    """Nor torch, which takes longer to load than all the rest."""
    (tmp_path / "program.py").write_text(to_text(CASES[1].program))
    code = (
        "import sys\nfrom trade_hf.cli import main\nassert main(sys.argv[1:]) == 0\n"
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    call = [sys.executable, "-c", code, *command.format(model_file).split()]
    done = subprocess.run(call, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_the_version(capsys):
    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out == f"trade {trade_hf.__version__}\n"


CHANGES = {
    "--permute": permute,
    "--rotate": rotate,
    "--skew": skew,
    "--noise=0.01": lambda weights, seed: add_noise(weights, 0.01, seed),
    "--compress": lambda weights, seed: compress(weights),
}


@pytest.mark.parametrize("option", CHANGES)
def test_a_model_is_changed_as_it_is_compiled(option, program_file, tmp_path):
    target = tmp_path / "out.safetensors"
    assert main(["compile", str(program_file), "-o", str(target), option, "--seed", "4"]) == 0
    wanted = CHANGES[option](compile_program(CASES[1].program, VOCAB, LENGTH), 4)
    got = TracrWeights.load(target)
    assert all(np.array_equal(got.tensors[name], tensor) for name, tensor in wanted.tensors.items())


def test_a_model_without_the_names_of_its_directions(program_file, tmp_path):
    plain, bare = tmp_path / "plain.safetensors", tmp_path / "bare.safetensors"
    assert main(["compile", str(program_file), "-o", str(plain)]) == 0
    assert main(["compile", str(program_file), "-o", str(bare), "--no-labels"]) == 0
    assert TracrWeights.load(plain).residual_labels and not TracrWeights.load(bare).residual_labels


@pytest.mark.parametrize("vocab", ["0,1,2,3,4", "b,a,c"])
def test_sample(capsys, vocab):
    assert main(["sample", "-n", "3", "--seed", "5", "--vocab", vocab, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [set(row) for row in rows] == [{"code", "canonical_hash", "vocab", "max_seq_len"}] * 3
    for row in rows:
        assert canonical_hash(parse(row["code"]), row["vocab"], row["max_seq_len"]) == row["canonical_hash"]
    assert main(["sample", "-n", "3", "--seed", "5"]) == 0
    assert capsys.readouterr().out.count("program = ") == 3


def _bad_files(tmp_path):
    contents = {
        "text.safetensors": b"not a model",
        "model.pkl": pickle.dumps([1]),
        "file.json": b'{"a": 1}',
        "syntax.py": b"v1 = rasp.Map(",
        "types.py": b"v1 = rasp.Aggregate(rasp.tokens, rasp.tokens)\nprogram = v1",
        "undefined.py": b"program = v7",
        "binary.py": b"\xff\xfe\x00",
        "good.py": to_text(CASES[1].program).encode(),
        "indices.py": b"program = rasp.Map(lambda x: x, rasp.indices)",
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    weights = compile_program(CASES[1].program, VOCAB, LENGTH)
    weights.save(tmp_path / "good.safetensors")
    np.savez(tmp_path / "haiku.npz", **weights.tensors)


BAD = [
    (["decompile", "nothing.safetensors"], "nothing.safetensors: no such file"),
    (["decompile", "text.safetensors"], "expected a safetensors file"),
    (["decompile", "model.pkl"], "got a pickle or an archive, which is never opened"),
    (["decompile", "file.json"], "got JSON"),
    (["compile", "nothing.py", "-o", "x"], "nothing.py: no such file"),
    (["compile", "syntax.py", "-o", "x"], "syntax.py: line 1, column 14"),
    (["compile", "types.py", "-o", "x"], "types.py: line 1, column 6: expected a selector as an argument of aggregate"),
    (["compile", "undefined.py", "-o", "x"], "line 1, column 11: expected a variable that is defined above, got `v7`"),
    (["compile", "binary.py", "-o", "x"], "expected text, got bytes that are not UTF-8"),
    (["compile", "indices.py", "-o", "x"], "a program must read tokens"),
    (["compile", "good.py", "-o", "x", "--vocab", "a,compiler_bos"], "must not contain 'compiler_bos'"),
    (["compile", "good.py", "-o", "x", "--vocab", "a,,b"], "expected tokens separated by commas"),
    (["compile", "good.py", "-o", "x", "--vocab", "1,1"], "expected distinct tokens"),
    (["compile", "good.py", "-o", "x", "--max-seq-len", "0"], "a length of at least 1"),
    (["compile", "good.py", "-o", "no/such/folder/x"], "no/such/folder: expected a folder to write x to"),
    (["verify", "text.safetensors", "good.py"], "expected a safetensors file"),
    (["verify", "good.safetensors", "good.py", "--samples", "0"], "samples: expected at least 1 input, got 0"),
    (["verify", "--certificate", "c.json", "--samples", "5"], "--samples: the certificate holds its own"),
    (["verify", "--certificate", "c.json"], "c.json: no such file"),
    (["verify", "--certificate", "/dev/zero"], "/dev/zero: expected a certificate, got more than 8,000,000 bytes"),
    (["verify", "--certificate", "."], ".: expected a certificate, got a folder"),
    (["verify", "/dev/zero", "good.py"], "/dev/zero: expected a file of at most 204,000,000 bytes, got 204,000,001"),
    (["verify", "good.py", "good.safetensors"], "good.safetensors: expected a program, got a model"),
    (["decompile", "good.py"], "expected a safetensors file, got a program: `trade compile` makes a model of it"),
    (["compile", "good.safetensors", "-o", "x"], "good.safetensors: expected a program, got a model"),
    (["compile", ".", "-o", "x"], ".: expected a program, got a folder"),
    (
        ["decompile", "."],
        ".: expected a compiled model's file, or the folder of a trained model, got a folder without model.safetensors",
    ),
    (["compile", "good.py", "-o", "x", "--max-seq-len", "30000000"], "expected at most 512 positions, got 30,000,000"),
    (
        ["decompile", "good.safetensors", "--figure", "x.png"],
        "x.png: expected a name with .svg",
    ),
    (["decompile", "good.safetensors", "--report", "x.pdf"], "x.pdf: expected a name with .html or .htm"),
    (
        ["decompile", "haiku.npz"],
        "expected beside the tensors vocab or --vocab (a token for each",
    ),
    (["decompile", "good.safetensors", "--vocab", "1,,2"], "--vocab: expected tokens separated by commas, got '1,,2'"),
    (
        ["decompile", "good.safetensors", "--bos", "B"],
        "expected 'B' once in the vocabulary (bos or --bos names",
    ),
    (
        ["verify", "good.safetensors", "good.py", "--max-seq-len", "9"],
        "expected at most 5 positions, got 9",
    ),
    (["app", "--port", "70000"], "--port: expected a number up to 65535, got 70000"),
    (["sample", "--vocab", "0", "--max-seq-len", "1"], "none of 5,000 programs in a row was kept"),
    (["sample", "-n", "-1"], "expected -n of at least 0"),
    (["sample", "--vocab", "1,1"], "expected distinct tokens"),
    (["sample", "--vocab", "1,compiler_pad"], "must not contain 'compiler_pad'"),
    (["decompile", "good.safetensors", "--figure", "no/figure.svg"], "no: expected a folder to write figure.svg to"),
    (["verify", "good.safetensors", "good.py", "--write-certificate", "no/c.json"], "to write c.json to"),
    (["decompile", "good.safetensors", "--report", "."], ".: expected a file to write to, got a folder"),
]


@pytest.mark.parametrize(("command", "message"), BAD, ids=range(len(BAD)))
def test_bad_input_gets_one_line_and_status_2(command, message, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    _bad_files(tmp_path)
    assert main(command) == 2
    captured = capsys.readouterr()
    assert message in captured.err and captured.err.startswith("trade: ")
    message, *place = captured.err.splitlines()
    assert not place or (": line 1, column " in message and place[1].endswith("^"))
    assert not captured.out
    assert not (tmp_path / "x").exists()


def test_a_port_in_use(capsys):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        assert main(["app", "--port", str(taken.getsockname()[1])]) == 2
    assert "cannot be served on (Address already in use): give another one" in capsys.readouterr().err


@pytest.mark.parametrize(
    "command",
    [
        ["decompile", "good.safetensors", "--report", "locked/x"],
        ["decompile", "good.safetensors", "--figure", "locked/x"],
        ["decompile", "good.safetensors", "--save-program", "locked/x"],
        ["verify", "good.safetensors", "good.py", "--write-certificate", "locked/x"],
        ["compile", "good.py", "-o", "locked/x"],
    ],
    ids=" ".join,
)
def test_a_folder_that_may_not_be_written_to(command, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    _bad_files(tmp_path)
    (tmp_path / "locked").mkdir(mode=0o500)
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root, as whom tests may run, may write everywhere
    assert main(command) == 2
    assert capsys.readouterr().err == "trade: locked/x: no permission to write there\n"


@pytest.mark.parametrize("status", Status)
def test_the_exit_status_of_a_decompilation(status):
    """That of `verify` is tested with models (test_false_certificates.py)."""
    proven = ("identical weights", "equivalent", "identical weights in another basis")
    assert exit_status(status) == (0 if status.value in proven else 1 if status.value == "refuted" else 3)


def test_what_a_file_does_not_tell_is_an_option(model_file, program_file, tmp_path, capsys):
    weights = TracrWeights.load(model_file)
    np.savez(tmp_path / "haiku.npz", **weights.tensors)
    known = {
        "vocab": weights.vocab,
        "output-values": weights.output_values,
        "output-directions": weights.metadata()["output_directions"],
        "num-heads": [weights.num_heads],
        "max-seq-len": [LENGTH],
    }
    options = [part for name, parts in known.items() for part in (f"--{name}", ",".join(map(str, parts)))]
    assert main(["verify", str(tmp_path / "haiku.npz"), str(program_file), *options]) == 0
    assert "identical weights" in capsys.readouterr().out


def test_names_a_number_and_a_missing_row_are_options(tmp_path, capsys):
    """Of a model whose BOS has another name, which has no row for pad, and whose output is a number."""
    program = next(case.program for case in CASES if case.name.startswith("fraction"))
    weights = compile_program(program, VOCAB, LENGTH, bos="BOS")
    name, row = "token_embed/embeddings", weights.vocab.index("compiler_pad")
    np.savez(tmp_path / "haiku.npz", **weights.tensors | {name: np.delete(weights.tensors[name], row, 0)})
    (tmp_path / "program.py").write_text(to_text(program))
    [direction] = weights.metadata()["output_directions"]
    known = f"--vocab 0,1,2,3,4,BOS --bos BOS --no-pad --numerical --output-directions {direction} --no-causal"
    options = [*known.split(), "--num-heads", str(weights.num_heads), "--max-seq-len", str(LENGTH)]
    assert main(["verify", str(tmp_path / "haiku.npz"), str(tmp_path / "program.py"), *options]) == 0
    assert "identical weights" in capsys.readouterr().out


def test_usage_errors_exit_with_2(capsys):
    for command in ([], ["no-such-command"], ["sample", "-n", "many"]):
        with pytest.raises(SystemExit) as stop:
            main(command)
        assert stop.value.code == 2
    capsys.readouterr()


def test_a_reader_that_has_enough_is_no_error():
    command = [sys.executable, "-m", "trade_hf.cli", "sample", "-n", "40", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as run:
        run.stdout.close()
        assert run.stderr.read() == b"" and run.wait() == 1
