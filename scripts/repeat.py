"""Is a model decompiled alike by any processor's matrix products, and on a busy machine? It compares conditions.

Run: python scripts/repeat.py --models 200 --files runs/repeat --json --out results/repeat.json

The models are written once and read in each condition: OpenBLAS's kernels for several processors, and beside four
processes that are busy. A killed run goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from records import code, environment, hash_of, keep_row, kept_rows

from dataset_builder.corpus import CONFIGS
from dataset_builder.sampler import sample_programs
from dataset_builder.splits import LONG, UP_TO_TEN
from trade_hf.compiled.transforms import add_noise, compress, permute, rotate, skew
from trade_hf.compiled.weights import TracrWeights
from trade_hf.decompiler import decompile
from trade_hf.files import write_text, write_whole

# OpenBLAS's kernels that this processor has the instructions for.
KERNELS = ("Haswell", "Zen", "SkylakeX" if torch.cpu.get_capabilities().get("avx512_f") else "Sandybridge")
CONDITIONS = {**{kernels: kernels for kernels in KERNELS}, "busy": None}  # OPENBLAS_CORETYPE
BUSY = 4  # processes
SAMPLERS = (UP_TO_TEN, CONFIGS["wide"].sampler, LONG)
VARIANTS = {
    "permuted": permute,
    "rotated": rotate,
    "skewed": skew,
    "compressed": lambda weights, seed: compress(weights),
    "noisy": lambda weights, seed: add_noise(permute(weights, seed), 1e-4, seed),
}
COMPARED = ("program", "status", "certificate", "candidates", "ended_by")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=int, default=200)
    parser.add_argument("--files", type=Path, required=True, help="where the models are, and what was found")
    parser.add_argument(
        "--condition", choices=CONDITIONS, help="this one alone, in this process; for the script itself"
    )
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--out", type=Path, help="also write the JSON here")
    args = parser.parse_args()
    if args.condition:
        decompile_all(args.files, args.models, args.condition)
        return
    args.files.mkdir(parents=True, exist_ok=True)
    write_models(args.files, args.models)
    for condition in CONDITIONS:
        run(args.files, args.models, condition)
    result = compare({condition: rows_of(args.files, condition) for condition in CONDITIONS}, args.models)
    text = json.dumps(result, indent=2)
    if args.out:
        write_text(args.out, text + "\n")
    print(text if args.json else "\n".join(f"{key}: {value}" for key, value in result.items()))
    sys.exit(bool(result["differences"]))


def path_of(files: Path, number: int) -> Path:
    return files / f"{number:04}.safetensors"


def write_models(files: Path, count: int) -> None:
    """Models of programs of three samplers, in each of the variants."""
    streams = [sample_programs("repeat", sampler) for sampler in SAMPLERS]
    samples = [next(streams[number % len(streams)]) for number in range(count)]
    for number, sample in enumerate(tqdm(samples, "models", disable=None)):
        if not path_of(files, number).exists():
            change = list(VARIANTS.values())[number % len(VARIANTS)]
            write_whole(path_of(files, number), change(sample.compile(), number).save)


def rows_of(files: Path, condition: str) -> list[dict[str, Any]]:
    return kept_rows(files / f"{condition}.progress.jsonl", f"{condition}, code {code()}")


def run(files: Path, count: int, condition: str) -> None:
    """Decompile the models in a process of the condition."""
    environment = dict(os.environ)
    if (kernels := CONDITIONS[condition]) is not None:
        environment["OPENBLAS_CORETYPE"] = kernels
    command = [sys.executable, __file__, "--files", str(files), "--models", str(count), "--condition", condition]
    with busy(BUSY if condition == "busy" else 0):
        subprocess.run(command, env=environment, check=True)


@contextmanager
def busy(count: int) -> Iterator[None]:
    """Beside so many processes that do nothing but take a core each."""
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()


def decompile_all(files: Path, count: int, condition: str) -> None:
    """Keep a row for each model; one that a run of the same code left is not made again."""
    rows, progress = rows_of(files, condition), files / f"{condition}.progress.jsonl"
    for number in tqdm(range(len(rows), count), condition, disable=None):
        path = path_of(files, number)
        result = decompile(TracrWeights.load(path))
        found = result.to_dict()
        row = {"of": f"{condition}, code {code()}", "model": path.name, "sha256": hash_of([path])}
        keep_row(progress, row | {"program": found["code"], **{name: found[name] for name in COMPARED[1:]}})


def compare(found: dict[str, list[dict[str, Any]]], count: int) -> dict[str, Any]:
    """What the conditions have in common: how many models, and which are not alike in all."""
    different = []
    for rows in islice(zip(*found.values(), strict=True), count):
        if len({json.dumps([row["sha256"], *(row[name] for name in COMPARED)]) for row in rows}) > 1:
            names = [name for name in COMPARED if len({json.dumps(row[name]) for row in rows}) > 1]
            different.append({"model": rows[0]["model"], "in": names})
    first = next(iter(found.values()))[:count]
    ended = [row["ended_by"] for row in first]
    return {
        "study": "repeat",
        "models": len(first),
        "conditions": list(found),
        "differences": len(different),
        "different": different,
        "found": ended.count("found"),
        "ended_by": {name: ended.count(name) for name in sorted(set(ended))},
        "environment": environment(),
    }


if __name__ == "__main__":
    main()
