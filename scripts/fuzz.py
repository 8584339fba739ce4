"""Mutated model files and program texts, by seed: each must be answered in words, in time and in little memory.

Run: python scripts/fuzz.py --files 2000 --texts 2000 --seed 0 --json results/fuzz.json

Each case runs the command line in a process of its own, forked after all imports. A file is verified against the
program that it was made of, and every twentieth one is decompiled as well; a text is compiled, verified and scored. A
case is bad if it ends in anything but an exit status of the command line with at most one line of error (and the place
in a text), takes more than 10 s of processor time, or more than 1 GB of resident memory, imports included.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import itertools
import json
import os
import random
import re
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from records import code, environment, keep_row, kept_rows

from dataset_builder.sampler import Sample, sample_programs
from trade_hf.cli import main as trade
from trade_hf.compiled import transformer_lens as lens
from trade_hf.compiled.compiler import compile_program
from trade_hf.compiled.tensor_files import read_tensors, write_file
from trade_hf.compiled.transforms import compress, permute, rotate
from trade_hf.decompiler import load_model
from trade_hf.files import write_text
from trade_hf.metrics.scoring import score
from trade_hf.rasp.text import to_text

MOST_SECONDS, MOST_MB = 10.0, 1024
KILLED_AFTER = 120  # seconds of wall time
MEMORY_LIMIT = 6 * 2**30  # bytes of address space, so that no case harms the machine
DECOMPILED = 20  # one file in so many
SAMPLES = 40  # programs that cases are made of

Tensors = dict[str, np.ndarray]
HOSTILE_VALUES = [
    None, True, -1, 0, 1, 2**31, 2**64, 10**400, 1.5, float("nan"), float("inf"), "", "a\nb", "compiler_bos", "\ud800",
    "%999999999d", "x" * 100_000, [], [[]], [None], [0] * 10_000, {}, {"a": {}}, "5", [1, 1], [[[[[[[[[[0]]]]]]]]]],
]  # fmt: skip


# ---------------------------------------------------------------- mutated files


def mutated_file(sample: Sample, rng: random.Random) -> tuple[str, bytes]:
    """What was done to a model's file, and the file."""
    weights = compile_program(sample.program, sample.vocab, sample.max_seq_len)
    change = rng.choice([lambda w: w, permute_by(rng), rotate_by(rng), lambda w: compress(w)])
    weights = change(weights)
    kind = rng.choice([*BYTES, *METADATA, *TENSORS])
    is_own = kind in WIDER or rng.random() < 0.7
    content = _saved(weights.save if is_own else lambda path: lens.save(weights, path))
    if kind in BYTES:
        return kind, BYTES[kind](content, rng)
    tensors, metadata = read_tensors(content)
    described = json.loads(metadata["trade"])
    if kind in METADATA:
        METADATA[kind](described, rng)
    else:
        TENSORS[kind](tensors, described, rng)
    return kind, _saved(lambda path: write_file(path, tensors, {**metadata, "trade": json.dumps(described)}))


def permute_by(rng: random.Random) -> Callable:
    return lambda weights: permute(weights, rng.randrange(1000))


def rotate_by(rng: random.Random) -> Callable:
    return lambda weights: rotate(weights, rng.randrange(1000))


def _saved(save: Callable[[Path], object]) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        save(path)
        return path.read_bytes()


def _flip(content: bytes, rng: random.Random, end: int | None = None) -> bytes:
    changed = bytearray(content)
    for _ in range(rng.randint(1, 8)):
        changed[rng.randrange(min(len(changed), end or len(changed)))] = rng.randrange(256)
    return bytes(changed)


BYTES: dict[str, Callable[[bytes, random.Random], bytes]] = {
    "flipped bytes": _flip,
    "flipped bytes of the header": lambda content, rng: _flip(content, rng, 4_000),
    "cut off": lambda content, rng: content[: rng.randrange(len(content))],
    "longer": lambda content, rng: content + rng.randbytes(rng.randrange(1, 5_000)),
    "a part twice": lambda content, rng: content[: (place := rng.randrange(len(content)))] + content[place // 2 :],
    "another start": lambda content, rng: (
        rng.choice([b"PK\x03\x04", b"\x80\x04", b"\x93NUMPY\x01\x00", b"{"]) + content
    ),
}


def _other_value(described: dict[str, Any], rng: random.Random) -> None:
    described[rng.choice(sorted(described))] = rng.choice(HOSTILE_VALUES)


def _other_item(described: dict[str, Any], rng: random.Random) -> None:
    lists = [part for part in described.values() if isinstance(part, list) and part]
    items = rng.choice(lists)
    items[rng.randrange(len(items))] = rng.choice(HOSTILE_VALUES)


METADATA: dict[str, Callable[[dict[str, Any], random.Random], object]] = {
    "another value": _other_value,
    "another item": _other_item,
    "a value less": lambda described, rng: described.pop(rng.choice(sorted(described))),
    "causal": lambda described, rng: described.update(causal=True),
    "shuffled values": lambda described, rng: rng.shuffle(described["output_values"] or described["vocab"]),
}


def _all(change: Callable[[np.ndarray, random.Random], np.ndarray]) -> Callable:
    def mutate(tensors: Tensors, described: dict[str, Any], rng: random.Random) -> None:
        for name in tensors:
            tensors[name] = change(tensors[name], rng).astype(np.float32)

    return mutate


def _one(change: Callable[[np.ndarray, random.Random], np.ndarray]) -> Callable:
    def mutate(tensors: Tensors, described: dict[str, Any], rng: random.Random) -> None:
        name = rng.choice(sorted(tensors))
        tensors[name] = change(tensors[name], rng).astype(np.float32)

    return mutate


def _entry(tensor: np.ndarray, rng: random.Random) -> np.ndarray:
    tensor = tensor.copy()
    if tensor.size:
        tensor.flat[rng.randrange(tensor.size)] = rng.choice([1e9, -1e9, 1e30, np.nan, np.inf, 1e-40, 0.5, -1.0])
    return tensor


def _wider(what: str) -> Callable:
    """Zeros in place of nothing: more heads, hidden units or residual directions than any program has."""

    def mutate(tensors: Tensors, described: dict[str, Any], rng: random.Random) -> None:
        more = min(int(10 ** rng.uniform(1, 5)), 1_500_000 // tensors["token_embed/embeddings"].shape[1])
        for name, tensor in tensors.items():
            pads = [(0, more) if _grows(what, name, axis, tensor.ndim) else (0, 0) for axis in range(tensor.ndim)]
            tensors[name] = np.pad(tensor, pads)
        if what == "heads":
            described["num_heads"] = tensors["transformer/layer_0/attn/query/w"].shape[1]

    return mutate


def _grows(what: str, name: str, axis: int, ndim: int) -> bool:
    into = name.endswith(("linear/w", "linear_2/w"))
    if what == "directions":
        is_inner = name.endswith(("query/w", "key/w", "value/w", "linear_1/w"))
        return axis == (0 if is_inner else ndim - 1) and not name.endswith(
            ("query/b", "key/b", "value/b", "linear_1/b")
        )
    parts = ("query/", "key/", "value/", "attn/linear/w") if what == "heads" else ("linear_1/", "linear_2/w")
    return any(part in name for part in parts) and axis == (0 if into else ndim - 1)


WIDER = {
    "many heads": _wider("heads"),
    "many hidden units": _wider("units"),
    "many directions": _wider("directions"),
}
TENSORS: dict[str, Callable[[Tensors, dict[str, Any], random.Random], object]] = {
    "all zeros": _all(lambda tensor, rng: np.zeros_like(tensor)),
    "all ones": _all(lambda tensor, rng: np.ones_like(tensor)),
    "all equal": _all(lambda tensor, rng: np.full_like(tensor, 1e9)),
    "all larger": _all(lambda tensor, rng: tensor * 10.0**6),
    "all noise": _all(lambda tensor, rng: np.random.RandomState(rng.randrange(99)).randn(*tensor.shape)),
    "one of zeros": _one(lambda tensor, rng: np.zeros_like(tensor)),
    "one of noise": _one(lambda tensor, rng: np.random.RandomState(rng.randrange(99)).randn(*tensor.shape) * 1e4),
    "one turned": _one(lambda tensor, rng: tensor.T.copy()),
    "one in another order": _one(lambda tensor, rng: tensor[::-1].copy()),
    "one without its end": _one(lambda tensor, rng: tensor[:-1]),
    "one entry": _one(_entry),
    "one less": lambda tensors, described, rng: tensors.pop(rng.choice(sorted(tensors))),
    "one more": lambda tensors, described, rng: tensors.update(
        {rng.choice(["a", "transformer/layer_99/attn/query/w", "blocks.9.attn.W_Q"]): np.zeros((2, 2), np.float32)}
    ),
    **WIDER,
}


# ---------------------------------------------------------------- mutated texts

SNIPPETS = [
    "rasp.tokens", "rasp.indices", "rasp.Map(", "lambda x: x", "default=0", ".named('v1')", "rasp.numerical(", "v1",
    "rasp.categorical(", "rasp.Aggregate(v1, rasp.tokens, default=0)", "rasp.Comparison.EQ", "simplify=False", "*v1",
    "**v1", "program = ", "def make():\n    return ", "import os\n", "```", "```python\n", "True", "None", "x % 2",
    "x * y", "x + y", "10**15", "9" * 400, "9**9**9", "1e999", "'%999999999d'", "'a' * 10**9", "\n", "\t", "    ", "\\",
    "(", ")", "[", "]", "{", "}", "'", '"', "-", "%", "\0", "é", "\u202e", "\ud800", "(" * 2_000, "-" * 20_000,
    "v1\n" * 2_000,
]  # fmt: skip


def mutated_text(sample: Sample, rng: random.Random) -> tuple[str, str]:
    """What was done to a program's text, and the text."""
    text = to_text(sample.program)
    kinds = ["put in", "replaced", "left out", "lines in another order", "twice", "wrapped", "another digit", "a word"]
    kind = rng.choice(kinds)
    for _ in range(rng.randint(1, 3)):
        place = rng.randrange(len(text) + 1)
        end = min(len(text), place + rng.randrange(12))
        match kind:
            case "put in":
                text = text[:place] + rng.choice(SNIPPETS) + text[place:]
            case "replaced":
                text = text[:place] + rng.choice(SNIPPETS) + text[end:]
            case "left out":
                text = text[:place] + text[end:]
            case "another digit":
                text = re.sub(r"\d", lambda digit: str(rng.randrange(10)) if rng.random() < 0.1 else digit[0], text)
            case "a word":
                words = re.findall(r"\w+", text)
                text = text.replace(rng.choice(words), rng.choice(words), 1)
    lines = text.splitlines()
    if kind == "lines in another order":
        rng.shuffle(lines)
    elif kind == "twice":
        lines = lines * rng.randint(2, 300)
    elif kind == "wrapped":
        lines = rng.choice(
            [["```", *lines, "```"], ["def make():", *(f"    {line}" for line in lines), "    return v1"]]
        )
    return kind, "\n".join(lines)


# ---------------------------------------------------------------- cases, each in a process of its own


def run_file(sample: Sample, rng: random.Random, number: int, folder: Path) -> tuple[str, list[int]]:
    """What was done to a file, and the exit statuses of what is asked of it."""
    file, program = folder / "model.safetensors", folder / "program.py"
    mutation, content = mutated_file(sample, rng)
    file.write_bytes(content)
    program.write_text(to_text(sample.program))
    statuses = [_trade("verify", file, program, "--write-certificate", folder / "certificate.json")]
    if number % DECOMPILED == 0:
        outputs = ("--report", folder / "report.html", "--figure", folder / "figure.svg")
        statuses.append(_trade("decompile", file, "--json", *outputs))
    return mutation, statuses


def run_text(sample: Sample, rng: random.Random, number: int, folder: Path) -> tuple[str, list[int]]:
    """What was done to a text, and the exit statuses of what is asked of it."""
    (mutation, text), model = mutated_text(sample, rng), folder / "model.safetensors"
    compile_program(sample.program, sample.vocab, sample.max_seq_len).save(model)
    (folder / "program.py").write_bytes(text.encode(errors="surrogatepass"))
    score(text, to_text(sample.program), sample.vocab, sample.max_seq_len)
    compiled = _trade("compile", folder / "program.py", "-o", folder / "compiled.safetensors")
    return mutation, [compiled, _trade("verify", model, folder / "program.py")]


def _trade(*arguments: object) -> int:
    """The command line's exit status. Raises AssertionError where what it prints as an error is not one line."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = trade([*map(str, arguments)])
    lines = [line for line in err.getvalue().splitlines() if not re.search(r": (written|not drawn)[,:] ", line)]
    assert status in (0, 1, 2, 3) and (len(lines) == 1 if status == 2 else not lines) or _shows_place(lines), lines
    return status


def _shows_place(lines: list[str]) -> bool:
    return len(lines) == 3 and "column" in lines[0] and lines[2].strip() == "^"


KINDS: dict[str, Callable] = {"file": run_file, "text": run_text}


def run_case(kind: str, number: int, seed: int, samples: list[Sample]) -> dict[str, Any]:
    """One case in a forked process: what was done, how it ended, processor seconds, MB."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read)
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_LIMIT, MEMORY_LIMIT))
        signal.alarm(KILLED_AFTER)
        sample, rng = samples[number % len(samples)], random.Random(f"{seed} {kind} {number}")
        try:
            with tempfile.TemporaryDirectory() as folder:
                mutation, statuses = KINDS[kind](sample, rng, number, Path(folder))
                ended = {"mutation": mutation, "statuses": statuses}
        except BaseException:
            ended = {"traceback": traceback.format_exc()[-1_000:]}
        os.write(write, json.dumps(ended).encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as stream:
        ended = json.loads(stream.read() or b"null") or {"traceback": "the process was killed"}
    used = os.wait4(child, 0)[2]
    seconds, mb = used.ru_utime + used.ru_stime, used.ru_maxrss / 1024
    return {"kind": kind, "number": number, **ended, "seconds": round(seconds, 2), "mb": round(mb)}


def run_cases(files: int, texts: int, seed: int, done: int = 0) -> Iterator[dict[str, Any]]:
    """All cases but the first ones, which are done; what they need is imported and built before the first is forked."""
    torch.set_num_threads(1)
    load_model()
    samples = list(itertools.islice(sample_programs(f"fuzz {seed}"), SAMPLES))
    cases = [("file", number) for number in range(files)] + [("text", number) for number in range(texts)]
    for kind, number in cases[done:]:
        yield run_case(kind, number, seed, samples)


def is_bad(row: dict[str, Any]) -> bool:
    return "traceback" in row or row["seconds"] > MOST_SECONDS or row["mb"] > MOST_MB


def summarise(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Counts of what must not be, and of how cases end."""
    return {
        "files": sum(row["kind"] == "file" for row in rows),
        "texts": sum(row["kind"] == "text" for row in rows),
        "tracebacks": sum("traceback" in row for row in rows),
        "over_10_seconds": sum(row["seconds"] > MOST_SECONDS for row in rows),
        "over_1_gb": sum(row["mb"] > MOST_MB for row in rows),
        "most_seconds": max(row["seconds"] for row in rows),
        "most_mb": max(row["mb"] for row in rows),
        "exit_statuses": {
            kind: dict(sorted(Counter(str(row.get("statuses", "none")) for row in rows if row["kind"] == kind).items()))
            for kind in KINDS
        },
        "bad": [row for row in rows if is_bad(row)],
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--files", type=int, default=2_000)
    parser.add_argument("--texts", type=int, default=2_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the summary there")
    parser.add_argument("--progress", type=Path, metavar="FILE", help="keep each case there, and go on after a kill")
    args = parser.parse_args()
    what = f"{code()} {args.seed} {args.files} {args.texts}"
    rows, start = kept_rows(args.progress, what), time.monotonic()
    for row in run_cases(args.files, args.texts, args.seed, len(rows)):
        rows.append(row)
        keep_row(args.progress, {"of": what, **row})
        if is_bad(row):
            print(json.dumps(row), file=sys.stderr, flush=True)
        if len(rows) % 100 == 0:
            print(f"{len(rows):,} cases in {time.monotonic() - start:.0f} s", file=sys.stderr, flush=True)
    summary = summarise(rows)
    print(json.dumps(summary, indent=2))
    if args.json:
        write_text(args.json, json.dumps({**environment(), **summary}, indent=2) + "\n")
    return bool(summary["bad"])


if __name__ == "__main__":
    sys.exit(main())
