"""Measure the compiler and the canonical form against their oracles, and time them.

Run: python scripts/benchmark.py compile --programs 500 --json --out results/compile.json
     python scripts/benchmark.py canonical --programs 1000 --mutants 5000 --json --out results/canonical.json
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from dataset_builder.corpus import CONFIGS
from dataset_builder.mutants import mutants
from dataset_builder.sampler import Draw, Sample, sample_programs
from trade_hf.compiled.compiler import compile_program
from trade_hf.compiled.forward import run
from trade_hf.compiled.isomorphism import are_identical
from trade_hf.rasp.canonical import canonicalise
from trade_hf.rasp.evaluate import evaluate
from trade_hf.rasp.tables import UnsupportedError
from trade_hf.rasp.text import to_text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", choices=["compile", "canonical"])
    parser.add_argument("--programs", type=int, default=200)
    parser.add_argument("--mutants", type=int, default=1000)
    parser.add_argument("--config", choices=sorted(CONFIGS), default="base", help="of the corpus: what is sampled")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--out", type=Path, help="also write the JSON here")
    args = parser.parse_args()
    samples = sample_programs(f"benchmark-{args.seed}", CONFIGS[args.config].sampler)
    if args.study == "compile":
        progress = (args.out or Path(f"compile-{args.seed}")).with_suffix(f".{args.seed}.progress.jsonl")
        result = compile_study(list(islice(samples, args.programs)), progress)
        progress.unlink()
    else:
        result = canonical_study(samples, args.programs, args.mutants, Draw(args.seed))
    result = {"study": args.study, "config": args.config, "seed": args.seed, **result}
    text = json.dumps(result, indent=2)
    if args.out:
        args.out.write_text(text + "\n")
    print(text if args.json else "\n".join(f"{key}: {value}" for key, value in result.items()))


def timed(function: Callable, *args: Any) -> tuple[Any, float]:
    """A result and the milliseconds of CPU time that it took, all threads together: other work does not count."""
    start = time.process_time()
    result = function(*args)
    return result, (time.process_time() - start) * 1e3


def compile_study(samples: list[Sample], progress: Path) -> dict[str, Any]:
    """Every tensor, the evaluator and the forward pass against the tracr package, on the same programs.

    It takes some 4 s a program, nearly all of it tracr's: what was measured is kept in `progress`, one JSON line for
    each program, and a study that was killed goes on from there.
    """
    kept = progress.read_text() if progress.exists() else ""
    kept = kept[: kept.rfind("\n") + 1]  # a kill may have cut the last line off
    progress.write_text(kept)
    rows = [json.loads(line) for line in kept.splitlines()]
    for number in tqdm(range(len(rows), len(samples)), "compile", len(samples), initial=len(rows), disable=None):
        rows.append(compare_with_tracr(samples[number], number))
        with progress.open("a") as file:
            file.write(json.dumps(rows[-1]) + "\n")
    rows = rows[: len(samples)]
    ours, tracr = (statistics.median(row[name] for row in rows) for name in ("ours_ms", "tracr_ms"))
    return {
        "programs": len(samples),
        "ours_ms": round(ours, 3),
        "tracr_ms": round(tracr, 1),
        "ratio": round(tracr / ours),
        **{
            name: sum(row[name] for row in rows)
            for name in ("mismatches", "inputs", "evaluator_disagreements", "forward_disagreements")
        },
    }


def compare_with_tracr(sample: Sample, number: int, inputs_each: int = 5) -> dict[str, Any]:
    """One program: times, whether any tensor differs, and on how many of a few inputs the outputs do."""
    from tracr.compiler import compiling

    from trade_hf.compiled.bridge import from_tracr_model, same_as_tracr, to_tracr

    program = sample.spelled
    ours, ours_ms = timed(compile_program, program, sample.vocab, sample.max_seq_len)
    sop = to_tracr(program)
    model, tracr_ms = timed(compiling.compile_rasp_to_model, sop, set(sample.vocab), sample.max_seq_len)
    theirs = from_tracr_model(model)
    same = ours.tensors.keys() == theirs.tensors.keys() and all(
        np.array_equal(ours.tensors[name], theirs.tensors[name]) for name in ours.tensors
    )
    # One length, so that JAX compiles each model once.
    inputs = np.random.default_rng(number).integers(0, len(sample.vocab), (inputs_each, sample.max_seq_len))
    meant, given = evaluate(program, inputs, sample.vocab, sample.max_seq_len), run(ours, inputs)
    evaluator = forward = 0
    for i, codes in enumerate(inputs):
        tokens = [sample.vocab[code] for code in codes]
        if meant.valid[i]:
            evaluator += not equal_outputs(meant.decode(i), sop(tokens))
        forward += not same_as_tracr(given, i, model.apply([ours.bos, *tokens]), ours.unembedding)
    return {
        "ours_ms": ours_ms,
        "tracr_ms": tracr_ms,
        "mismatches": int(not (same and np.array_equal(ours.unembedding, theirs.unembedding))),
        "inputs": inputs_each,
        "evaluator_disagreements": evaluator,
        "forward_disagreements": forward,
    }


def equal_outputs(first: list, second: list, tolerance: float = 1e-9) -> bool:
    """Whether two outputs are the same, numbers within a tolerance."""
    return len(first) == len(second) and all(
        a == b or (a is not None and b is not None and not isinstance(a, str) and abs(a - b) <= tolerance)
        for a, b in zip(first, second, strict=True)
    )


def canonical_study(samples: Iterator[Sample], programs: int, wanted: int, draw: Draw) -> dict[str, Any]:
    """Same canonical form if and only if identical weights, on programs and their mutants."""
    times, exceptions, compared, agree, not_idempotent, changed = [], [], 0, 0, 0, 0
    originals = list(islice(samples, programs))
    for sample in tqdm(originals, desc="canonical", disable=None):
        domain = (sample.vocab, sample.max_seq_len)
        canonical, ms = timed(canonicalise, sample.program, *domain)
        times.append(ms)
        not_idempotent += canonicalise(canonical, *domain) != canonical
        weights = compile_program(canonical, *domain)
        stream, found = mutants(sample.program, draw), 0
        while found < max(1, wanted // programs):
            mutant = next(stream)
            try:
                other, mutant_canonical = compile_program(mutant, *domain), canonicalise(mutant, *domain)
            except UnsupportedError:
                continue
            found += 1
            compared += 1
            changed += not are_identical(compile_program(mutant_canonical, *domain), other)
            same = mutant_canonical == canonical
            agree += same
            if same != are_identical(weights, other):
                exceptions.append({"same_form": same, "program": to_text(canonical), "mutant": to_text(mutant)})
    return {
        "programs": len(originals),
        "mutants": compared,
        "ms": round(statistics.median(times), 3),
        "not_idempotent": not_idempotent,
        "weights_changed_by_canonicalising": changed,
        "mutants_with_the_same_form": agree,
        "exceptions": len(exceptions),
        "exception_list": exceptions,
    }


if __name__ == "__main__":
    main()
