"""Score a checkpoint on a held-out split, which is regenerated from its pinned seed.

Run: python scripts/evaluate.py --split test --limit 500 --variant permuted --json --out results/test-permuted.json
     python scripts/evaluate.py --split library --json --out results/library.json   (the tracr package's own programs)

teacher_forced_exact    every token right after its true prefix
free_running_exact      the greedy program is the canonical one
identical_weights       the greedy program compiles to the model's weights, up to order (a superset of exact)
compiles                the greedy program compiles
functional_equivalence  the greedy program gives the same on every input
greedy_read_exact       the greedy program's operations and arguments, with functions read from the weights, are the
                        canonical program
decompiled_exact        what `decompile` returns is the canonical program
certified_equivalence   what `decompile` returns is proven identical or equivalent
wrongly_certified       certified, but the recompiled program and the model differ somewhere when both are run
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from dataset_builder.library import library_programs
from dataset_builder.splits import PINNED, pinned
from trade_hf.compiled.compiler import compile_program
from trade_hf.compiled.forward import run
from trade_hf.compiled.isomorphism import are_identical
from trade_hf.compiled.transforms import add_noise, compress, permute, readable_dimensions, rotate
from trade_hf.compiled.weights import TracrWeights
from trade_hf.decompiler import DEFAULT_CHECKPOINT, decompile, load_model
from trade_hf.rasp.canonical import canonicalise_spoken
from trade_hf.rasp.evaluate import all_inputs
from trade_hf.rasp.program import Program
from trade_hf.rasp.tables import UnsupportedError
from trade_hf.rasp.text import to_text
from trade_hf.search import Candidate, greedy_programs, teacher_forced, with_functions_read
from trade_hf.tokenization_rasp import to_ids
from trade_hf.verification import TOLERANCE, Status, Verdict, verify

VARIANTS: dict[str, Callable[[TracrWeights, int], TracrWeights]] = {
    "tracr": lambda weights, seed: weights,
    "permuted": permute,
    "rotated": rotate,
    "compressed": lambda weights, seed: compress(weights, readable_dimensions(weights)),
    **{
        f"noisy-{level}": lambda weights, seed, level=level: add_noise(permute(weights, seed), level, seed)
        for level in (0.0003, 0.001, 0.003, 0.01)
    },
}
BATCH = 50
SHARES = (
    "teacher_forced_exact",
    "free_running_exact",
    "identical_weights",
    "compiles",
    "functional_equivalence",
    "greedy_read_exact",
    "decompiled_exact",
    "certified_equivalence",
    "wrongly_certified",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, default=DEFAULT_CHECKPOINT)
    parser.add_argument("--split", choices=[*sorted(PINNED), "library"], default="test")
    parser.add_argument("--variant", choices=sorted(VARIANTS), default="permuted")
    parser.add_argument("--limit", type=int, default=500)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--out", type=Path, help="also write the JSON here")
    args = parser.parse_args()
    if args.split == "library":
        result = evaluate_library(args.checkpoint, args.variant)
    else:
        result = evaluate_checkpoint(args.checkpoint, args.split, args.variant, args.limit)
    text = json.dumps(result, indent=2)
    if args.out:
        args.out.write_text(text + "\n")
    print(text if args.json else "\n".join(f"{key}: {result[key]}" for key in ("n", *SHARES) if key in result))


def evaluate_checkpoint(checkpoint: Path, split: str, variant: str, limit: int) -> dict[str, Any]:
    """All figures of one checkpoint on the first `limit` programs of a split."""
    start = time.monotonic()
    items = pinned(split, limit)
    model = load_model(checkpoint)
    rows: list[dict[str, Any]] = []
    for first in tqdm(range(0, len(items), BATCH), desc=f"{split}, {variant}", disable=None):
        batch = items[first : first + BATCH]
        originals = [compile_program(i.sample.program, i.sample.vocab, i.sample.max_seq_len) for i in batch]
        weights = [VARIANTS[variant](original, first + i) for i, original in enumerate(originals)]
        forced = teacher_forced(weights, [to_ids(item.sample.program) for item in batch], model)
        greedy = greedy_programs(weights, model)
        for item, original, given, right, candidate in zip(batch, originals, weights, forced, greedy, strict=True):
            rows.append(_row(item.sample.program, original, given, right, candidate, checkpoint))
    shares = {name: [row[name] for row in rows] for name in SHARES}
    return {
        "split": split,
        "variant": variant,
        "n": len(rows),
        **{name: round(float(np.mean(values)), 4) for name, values in shares.items()},
        "interval_95": {name: wilson(sum(values), len(values)) for name, values in shares.items()},
        "by_lines": {name: _by_lines(rows, name) for name in ("free_running_exact", "decompiled_exact")},
        "decompile_seconds": spread([row["seconds"] for row in rows]),
        "candidates": spread([row["candidates"] for row in rows]),
        "seconds": round(time.monotonic() - start, 1),
        "environment": {
            "torch": torch.__version__,
            "python": platform.python_version(),
            "threads": torch.get_num_threads(),
        },
        "failures": [row["failure"] for row in rows if row["failure"]][:50],
    }


def evaluate_library(checkpoint: Path, variant: str) -> dict[str, Any]:
    """Programs that nobody here wrote: one of each kind of tracr's test cases, with their vocabularies and lengths."""
    rows = []
    for seed, item in enumerate(library_programs()):
        weights = VARIANTS[variant](compile_program(item.program, item.vocab, item.max_seq_len), seed)
        result = decompile(weights, checkpoint)
        proven = result.verdict.is_verified
        row = {"name": item.name, "lines": len(item.program), "certificate": result.certificate, "read": result.read}
        rows.append({**row, "certified": proven, "code": result.code if proven else None})
    certified = [row["certified"] for row in rows]
    return {
        "split": "library",
        "variant": variant,
        "n": len(rows),
        "certified": sum(certified),
        "certified_equivalence": round(float(np.mean(certified)), 4),
        "interval_95": {"certified_equivalence": wilson(sum(certified), len(certified))},
        "programs": rows,
    }


def _row(
    truth: Program,
    original: TracrWeights,
    weights: TracrWeights,
    forced: bool,
    candidate: Candidate | None,
    checkpoint: Path,
) -> dict[str, Any]:
    """One model's figures. `original` are its weights in Tracr's own basis, `weights` what the decompiler was given."""
    program = candidate.program if candidate else None
    read = next(with_functions_read(candidate, weights), None) if candidate else None
    compiled = None if program is None else _compiled(program, weights)
    verdict = verify(program, weights) if program else Verdict(Status.REFUTED, 0, 0, reason="unfinished")
    result = decompile(weights, checkpoint)
    certified, status = (result.program if result.verdict.is_verified else None), result.status
    return {
        "lines": len(truth),
        "teacher_forced_exact": forced,
        "free_running_exact": program == truth,
        "identical_weights": compiled is not None and are_identical(compiled, original),
        "compiles": compiled is not None,
        "functional_equivalence": verdict.is_verified,
        "greedy_read_exact": read is not None and _canonical(read.program, weights) == truth,
        "decompiled_exact": result.program == truth,
        "certified_equivalence": certified is not None,
        "wrongly_certified": certified is not None and _differs(certified, weights),
        "seconds": result.seconds,
        "candidates": result.candidates,
        "failure": None
        if result.program == truth
        else {
            "true": to_text(truth),
            "greedy": to_text(program) if program else None,
            "verdict": str(verdict),
            "decompiled": to_text(result.program),
            "status": status.value,
        },
    }


def _canonical(program: Program, weights: TracrWeights) -> Program | None:
    try:
        return canonicalise_spoken(program, weights.input_vocab, weights.max_seq_len)
    except UnsupportedError:
        return None


def _compiled(program: Program, weights: TracrWeights) -> TracrWeights | None:
    try:
        return compile_program(program, weights.input_vocab, weights.max_seq_len)
    except UnsupportedError:
        return None


def _differs(program: Any, weights: TracrWeights) -> bool:
    """Run the recompiled program and the model on every input, without the verifier."""
    compiled = compile_program(program, weights.input_vocab, weights.max_seq_len)
    inputs = all_inputs(len(weights.input_vocab), weights.max_seq_len)
    first, second = run(compiled, inputs), run(weights, inputs)
    if first.values is None or second.values is None:
        same = np.abs(first.codes - second.codes) <= 2 * TOLERANCE
    else:
        values = [np.array(out.values, dtype=object)[out.codes] for out in (first, second)]
        same = (first.undefined & second.undefined) | (values[0] == values[1])
    return not bool(same[first.real].all())


def wilson(hits: int, n: int, z: float = 1.96) -> list[float]:
    """95 % interval of a share (Wilson score)."""
    if n == 0:
        return [0.0, 1.0]
    share, spread = hits / n, z * z / n
    centre = (share + spread / 2) / (1 + spread)
    half = z * math.sqrt(share * (1 - share) / n + spread / (4 * n)) / (1 + spread)
    return [round(max(0.0, centre - half), 4), round(min(1.0, centre + half), 4)]


def spread(values: list[float]) -> dict[str, float]:
    """Median, 95th percentile and maximum."""
    names = {"median": 50, "p95": 95, "max": 100}
    return {name: round(float(np.percentile(values, percent)), 3) for name, percent in names.items()}


def _by_lines(rows: list[dict[str, Any]], name: str) -> dict[int, dict[str, float]]:
    lengths = sorted({row["lines"] for row in rows})
    groups = {n: [row[name] for row in rows if row["lines"] == n] for n in lengths}
    return {n: {"n": len(values), "share": round(float(np.mean(values)), 4)} for n, values in groups.items()}


if __name__ == "__main__":
    main()
