"""Score a checkpoint on a held-out split, which is regenerated from its pinned seed.

Run: python scripts/evaluate.py --split test --limit 500 --variant permuted --json --out results/test-permuted.json
     python scripts/evaluate.py --split library --json --out results/library.json   (the tracr package's own programs;
                                                          in the variant `tracr` compiled by it too, else by us)
     python scripts/evaluate.py --split unusual --variant rotated --json --out results/unusual-rotated.json
                                                          (500 programs unlike the sampler's: unusual.py)
     python scripts/evaluate.py --all --json --out results   (every split and variant; an hour on one core)
     python scripts/evaluate.py --interpbench CLONE --json --out results   (the programs of InterpBench, from a clone of
                                                          github.com/FlyingPumba/circuits-benchmark, in five variants)
     python scripts/evaluate.py --method MODULE:FUNCTION --limit 100 --json --out results/methods/NAME.json

teacher_forced_exact    every token right after its true prefix
free_running_exact      the greedy program is the canonical one
identical_weights       the greedy program compiles to the model's weights, up to order (a superset of exact)
compiles                the greedy program compiles
functional_equivalence  the greedy program gives the same on every input
greedy_read_exact       the greedy program's operations and arguments, with functions read from the weights, are the
                        canonical program
lifted_exact            the first program that is read from the weights alone, without the network, is the canonical one
decompiled_exact        what `decompile` returns is the canonical program
certified_equivalence   what `decompile` returns is proven identical or equivalent
verified                of library, unusual and interpbench: it is, or `verify`, which runs up to 2,000,000 inputs,
                        proves it then
equivalent_in_one_precision   it is not, but agrees on all inputs in float32 or in float64
equivalent_but_for_none       it is not, but agrees on all inputs on which it gives a value; noise leaves no exact None
departs_from_rasp       what RASP says of it is something else than what Tracr makes of it, on some input
wrongly_certified       certified, but the recompiled program and the model differ somewhere when both are run

--method scores any decompiler in place of a checkpoint: a function from a TracrWeights to code, or None where it gives
up. It runs in a process of its own (trade_hf/methods.py): a model on which it takes too long or too much memory, or
that kills it, counts as failed.

What was scored is kept beside --out, and a run that was killed goes on from there.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import itertools
import json
import math
import sys
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from records import code, environment, hash_of, keep_row, kept_rows
from tracr_options import TRACRS, TracrOptions

from dataset_builder.interpbench import interpbench_programs
from dataset_builder.library import LibraryProgram, library_programs
from dataset_builder.splits import PINNED, pinned
from dataset_builder.unusual import unusual_programs
from trade_hf.candidates import Candidate, lifted_programs
from trade_hf.circuit.comparison import FAINT, PRECISIONS, are_alike
from trade_hf.circuit.denoise import denoise
from trade_hf.circuit.isomorphism import are_identical
from trade_hf.compiled.bridge import from_tracr_model, to_tracr
from trade_hf.compiled.compiler import compile_like, compile_program
from trade_hf.compiled.forward import Output, run
from trade_hf.compiled.transforms import add_noise, compress, edit, permute, rotate, skew
from trade_hf.compiled.weights import TracrWeights, WeightsError
from trade_hf.decompiler import DEFAULT_CHECKPOINT, Decompilation, decompile, load_model
from trade_hf.files import write_text
from trade_hf.methods import LONGEST_REASON, Limits, Method, MethodError, Outcome
from trade_hf.metrics.scoring import WRONG
from trade_hf.rasp.canonical import canonicalise_spoken
from trade_hf.rasp.evaluate import all_inputs, count_inputs, random_inputs
from trade_hf.rasp.functions import Value
from trade_hf.rasp.program import Program
from trade_hf.rasp.tables import UnsupportedError
from trade_hf.rasp.text import parse, to_text
from trade_hf.search import greedy_programs, teacher_forced, with_functions_read
from trade_hf.tokenization_rasp import to_ids
from trade_hf.verification import Status, Verdict, rounded, verify

VARIANTS: dict[str, Callable[[TracrWeights, int], TracrWeights]] = {
    "tracr": lambda weights, seed: weights,
    "permuted": permute,
    "rotated": rotate,
    "skewed": skew,
    "compressed": lambda weights, seed: compress(weights),
    "edited": edit,
    **{
        f"{name}-{level}": lambda weights, seed, turn=turn, level=level: add_noise(turn(weights, seed), level, seed)
        for name, turn, levels in (
            ("noisy", permute, (0.0003, 0.001, 0.003, 0.01)),
            ("noisy-rotated", rotate, (0.001, 0.01)),
        )
        for level in levels
    },
}
# Files of --all: split, variant, programs. Without noise a model takes half a second, with it some five.
ALL = {
    "test-permuted": ("test", "permuted", 2000),
    **{f"test-{variant}": ("test", variant, 300) for variant in ("tracr", "rotated", "skewed", "compressed", "edited")},
    **{f"test-{variant}": ("test", variant, 60) for variant in VARIANTS if variant.startswith("noisy")},
    "test_long-permuted": ("test_long", "permuted", 200),
    **{
        f"test_long-{variant}": ("test_long", variant, 100) for variant in ("rotated", "skewed", "compressed", "edited")
    },
    **{f"test_long-{variant}": ("test_long", variant, 60) for variant in ("noisy-0.001", "noisy-0.01")},
    "library": ("library", "permuted", 0),
    "library-rotated": ("library", "rotated", 0),
    "library-skewed": ("library", "skewed", 0),
    "library-compressed": ("library", "compressed", 0),
    "library-noisy-0.001": ("library", "noisy-0.001", 0),
    "library-noisy-0.01": ("library", "noisy-0.01", 0),
    **{f"unusual-{variant}": ("unusual", variant, 500) for variant in ("permuted", "rotated", "compressed")},
    "unusual-tracr": ("unusual", "tracr", 100),  # compiled by the tracr package, which takes some seconds each
}
INTERPBENCH = {
    f"interpbench-{variant}": ("interpbench", variant, 0)
    for variant in ("tracr", "permuted", "rotated", "skewed", "compressed")
}
BATCH = 50
MOST_RUN = 200_000  # tokens of all inputs that the check of what is certified runs
MOST_FAILURES = 50  # that are listed with their programs
LEFT_OPEN = (Status.AGREES, Status.EQUIVALENT_IN_ONE_PRECISION)  # what running all inputs may settle
RESERVATIONS = ("equivalent_in_one_precision", "equivalent_but_for_none", "departs_from_rasp")
SHARES = (
    "teacher_forced_exact",
    "free_running_exact",
    "identical_weights",
    "compiles",
    "functional_equivalence",
    "greedy_read_exact",
    "lifted_exact",
    "decompiled_exact",
    "certified_equivalence",
    *RESERVATIONS,
    "wrongly_certified",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, default=DEFAULT_CHECKPOINT)
    parser.add_argument(
        "--split", choices=[*sorted(PINNED), "library", "unusual", "interpbench"], help="test if not given"
    )
    parser.add_argument("--variant", choices=sorted(VARIANTS), help="permuted if not given")
    parser.add_argument("--limit", type=int, help="programs of a split; 500, with --all as many as stand in ALL")
    parser.add_argument(
        "--all", action="store_true", help="every split and variant, each to a file of the folder --out"
    )
    parser.add_argument(
        "--interpbench",
        type=Path,
        metavar="CLONE",
        help="InterpBench's programs: all variants, or of --split interpbench one",
    )
    parser.add_argument("--greedy", action="store_true", help="leave verified decoding out")
    parser.add_argument("--method", help="score this decompiler, MODULE:FUNCTION, in place of a checkpoint")
    parser.add_argument("--seconds", type=float, default=30.0, help="of --method for one model")
    parser.add_argument("--memory", type=float, default=4.0, help="of --method, in GB")
    TracrOptions.add_to(parser)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--out", type=Path, help="also write the JSON here")
    args = parser.parse_args()
    if args.all and (args.method or args.greedy or args.split or args.variant):
        parser.error("--all: expected neither --method, --greedy, --split nor --variant beside it")
    if args.split == "interpbench" and not args.interpbench:
        parser.error("--split interpbench: expected --interpbench with a clone of its code")
    if args.interpbench and (args.all or args.method or args.greedy or args.limit):
        parser.error("--interpbench: expected neither --all, --method, --greedy nor --limit beside it")
    if args.interpbench and args.split != "interpbench" and (args.split or args.variant):
        parser.error("--interpbench: expected --split interpbench with --variant beside it, or neither")
    if args.limit is not None and args.limit < 1:
        parser.error("expected --limit of at least 1")
    if args.seconds <= 0 or args.memory <= 0:
        parser.error("expected --seconds and --memory above 0")
    if args.split == "unusual" and (args.method or args.greedy):
        parser.error("--split unusual: expected neither --method nor --greedy beside it")
    if args.split == "library" and (args.method or args.greedy or args.limit):
        parser.error("--split library: expected neither --method, --greedy nor --limit beside it")
    runs = {"": (args.split or "test", args.variant or "permuted", 500, args.out)}
    several = ALL if args.all else INTERPBENCH if args.interpbench and not args.split else {}
    if several:
        folder = args.out or Path("results")
        runs = {name: (*run, folder / f"{name}.json") for name, run in several.items()}
    try:
        results = {
            name: run_one(args, split, variant, args.limit or limit, out)
            for name, (split, variant, limit, out) in runs.items()
        }
    except (MethodError, FileNotFoundError) as error:
        sys.exit(f"evaluate: {error}")
    for *_, out in runs.values():
        if out:
            progress_beside(out).unlink(missing_ok=True)
    if args.json:
        print(json.dumps(results.get("", results), indent=2))
        return
    for name, result in results.items():
        shown = dict.fromkeys(("n", *SHARES, *METHOD_SHARES))
        print(*([name] if name else []), *(f"{key}: {result[key]}" for key in shown if key in result), sep="\n")


def progress_beside(out: Path) -> Path:
    return out.with_suffix(".progress.jsonl")


def run_one(args: argparse.Namespace, split: str, variant: str, limit: int, out: Path | None) -> dict[str, Any]:
    """One split in one variant; written to `out`, with what was scored so far beside it."""
    progress, options = out and progress_beside(out), TracrOptions.of(args)
    if out:
        out.parent.mkdir(parents=True, exist_ok=True)
    if args.method:
        limits = Limits(args.seconds, int(args.memory * 2**30))
        result = evaluate_method(args.method, split, variant, limit, limits, progress, options)
    elif split in ("library", "unusual", "interpbench"):
        read: dict[str, Callable[[], Iterable[LibraryProgram]]] = {
            "library": library_programs,
            "unusual": lambda: itertools.islice(unusual_programs(0), limit),
            "interpbench": lambda: _interpbench(args.interpbench),
        }
        result = evaluate_programs(list(read[split]()), args.checkpoint, split, variant, progress, options)
    else:
        result = evaluate_checkpoint(args.checkpoint, split, variant, limit, progress, not args.greedy, options)
    result |= options.record
    if out:
        write_text(out, json.dumps(result, indent=2) + "\n")
    return result


def evaluate_checkpoint(
    checkpoint: Path,
    split: str,
    variant: str,
    limit: int,
    progress: Path | None = None,
    decompiles: bool = True,
    options: TracrOptions = TRACRS,
) -> dict[str, Any]:
    """All figures of one checkpoint on the first `limit` programs of a split; of its greedy programs alone unless
    `decompiles`. What was scored is kept in `progress`, if given, and a run that was killed goes on from there."""
    items, model = pinned(split, limit), load_model(checkpoint)
    what = f"{_hash_of_weights(checkpoint)} on {split}, {variant}, {decompiles}, {options}, code {code()}"
    rows = kept_rows(progress, what)[:limit]
    bar = tqdm(total=len(items), initial=len(rows), desc=f"{split}, {variant}", disable=None)
    for first in range(len(rows), len(items), BATCH):
        batch = items[first : first + BATCH]
        originals = [
            compile_program(i.sample.program, i.sample.vocab, i.sample.max_seq_len, **options.ours) for i in batch
        ]
        weights = [VARIANTS[variant](original, first + i) for i, original in enumerate(originals)]
        forced = teacher_forced(weights, [to_ids(item.sample.program) for item in batch], model)
        greedy = greedy_programs(weights, model)
        for item, original, given, right, candidate in zip(batch, originals, weights, forced, greedy, strict=True):
            row = {"of": what, "teacher_forced_exact": right}
            row |= _greedy_row(item.sample.program, original, given, candidate)
            if decompiles:
                row |= _decompiled_row(item.sample.program, given, checkpoint)
            rows.append(row)
            keep_row(progress, row)
            bar.update()
    shares = {name: [row[name] for row in rows] for name in SHARES if name in rows[0]}
    spreads = {"decompile_seconds": "seconds", "candidates": "candidates"} if decompiles else {}
    by_lines = ("free_running_exact", *(["decompiled_exact"] if decompiles else []))
    return {
        "split": split,
        "variant": variant,
        "n": len(rows),
        **{name: round(float(np.mean(values)), 4) for name, values in shares.items()},
        "interval_95": {name: wilson(sum(values), len(values)) for name, values in shares.items()},
        "by_lines": {name: _by_lines(rows, name) for name in by_lines},
        "by_operation": {name: _by_operation(rows, name) for name in by_lines},
        **{name: spread([row[column] for row in rows]) for name, column in spreads.items()},
        "environment": environment(),
        **_failures(rows, "greedy"),
        **(_failures(rows, "decompiled") if decompiles else {}),
    }


def _hash_of_weights(checkpoint: Path) -> str:
    return hash_of(sorted(checkpoint.glob("*.safetensors")))


def _failures(rows: list[dict[str, Any]], kind: str) -> dict[str, Any]:
    """How many there are, and the first of them with their programs."""
    found = [row[f"{kind}_failure"] for row in rows if row[f"{kind}_failure"]]
    return {f"{kind}_failed": len(found), f"{kind}_failures": found[:MOST_FAILURES]}


METHOD_SHARES = ("exact", "equivalent", "compiles")


def evaluate_method(
    name: str,
    split: str,
    variant: str,
    limit: int,
    limits: Limits,
    progress: Path | None,
    options: TracrOptions = TRACRS,
) -> dict[str, Any]:
    """What a decompiler gives for the first `limit` models of a split, without a look at the programs."""
    items = pinned(split, limit)
    rows = kept_rows(progress, what := f"{name} on {split}, {variant}, {limits}, {options}, code {code()}")[:limit]
    with Method(name, limits) as method, TemporaryDirectory() as folder:
        for number in tqdm(range(len(rows), len(items)), name, len(items), initial=len(rows), disable=None):
            sample = items[number].sample
            weights = replace(
                VARIANTS[variant](sample.compile(**options.ours), number), residual_labels=()
            )  # they name the lines
            path = Path(folder) / f"{number}.safetensors"
            weights.save(path)
            outcome = method.run(path)
            path.unlink()
            rows.append({"of": what, "lines": len(sample.program), **score_code(outcome, sample.program, weights)})
            keep_row(progress, rows[-1])
    return {
        "method": name,
        "split": split,
        "variant": variant,
        "n": len(rows),
        **{share: round(float(np.mean([row[share] for row in rows])), 4) for share in METHOD_SHARES},
        "interval_95": {share: wilson(sum(row[share] for row in rows), len(rows)) for share in METHOD_SHARES},
        "by_lines": {share: _by_lines(rows, share) for share in METHOD_SHARES},
        "seconds": spread([row["seconds"] for row in rows]),
        "reasons": dict(Counter(row["reason"] for row in rows if row["reason"]).most_common(20)),
        "limits": {"seconds": limits.seconds, "memory": limits.memory},
        "environment": environment(),
    }


def score_code(outcome: Outcome, truth: Program, weights: TracrWeights) -> dict[str, Any]:
    """Whether a method's code is the canonical program, and whether it is proven to do what the model does."""
    row: dict[str, Any] = dict.fromkeys(METHOD_SHARES, False)
    row |= {"seconds": round(outcome.seconds, 3), "reason": outcome.reason}
    if outcome.code is None:
        return row
    try:
        program = parse(outcome.code)
        verdict = verify(program, weights)
        canonical = canonicalise_spoken(program, weights.input_vocab, weights.max_seq_len)
        compiles = _compiled(program, weights) is not None
    except WRONG as error:
        return {**row, "reason": f"no program: {error}"[:LONGEST_REASON]}
    equivalent = verdict.is_verified
    row |= {"exact": canonical == truth, "equivalent": equivalent, "compiles": compiles}
    return {**row, "reason": None if equivalent else "another function" if compiles else "does not compile"}


_interpbench = functools.cache(interpbench_programs)  # read once for all variants


def evaluate_programs(
    items: list[LibraryProgram],
    checkpoint: Path,
    split: str,
    variant: str,
    progress: Path | None,
    options: TracrOptions = TRACRS,
) -> dict[str, Any]:
    """Programs that nobody here wrote, over their own vocabularies and lengths. What was scored is kept in `progress`,
    as in `evaluate_checkpoint`."""
    meant = hashlib.sha256(
        repr([(item.name, to_text(item.program), item.vocab) for item in items]).encode()
    ).hexdigest()
    what = f"{_hash_of_weights(checkpoint)} on {split} {meant}, {variant}, {options}, code {code()}"
    rows = kept_rows(progress, what)[: len(items)]
    left = range(len(rows), len(items))
    for number in tqdm(left, f"{split}, {variant}", len(items), initial=len(rows), disable=None):
        rows.append({"of": what, **_foreign_row(items[number], checkpoint, variant, number, options)})
        keep_row(progress, rows[-1])
    rows = [{key: value for key, value in row.items() if key != "of"} for row in rows]
    certified, verified = ([row[name] for row in rows] for name in ("certified", "verified"))
    return {
        "split": split,
        "variant": variant,
        "programs_sha256": meant,
        "n": len(rows),
        "certified": sum(certified),
        "verified": sum(verified),
        "certified_equivalence": round(float(np.mean(certified)), 4),
        **{
            name: round(float(np.mean([row[name] for row in rows])), 4) for name in (*RESERVATIONS, "wrongly_certified")
        },
        "interval_95": {"certified_equivalence": wilson(sum(certified), len(certified))},
        "altered": sum(row["altered"] for row in rows),
        "verified_of_unaltered": round(sum(verified) / max(1, sum(not row["altered"] for row in rows)), 4),
        "by_kind": {kind: share["share"] for kind, share in _by_kind(rows, "certified").items()},
        "decompile_seconds": spread([row["seconds"] for row in rows]),
        "environment": environment(),
        "programs": rows,
    }


def _foreign_row(
    item: LibraryProgram, checkpoint: Path, variant: str, seed: int, options: TracrOptions
) -> dict[str, Any]:
    if variant == "tracr":
        weights = _compiled_elsewhere(item, options)
    else:
        weights = VARIANTS[variant](_compiled_here(item, options), seed)
    result = decompile(weights, checkpoint)
    proven, verdict = result.verdict.is_verified, result.verdict
    if result.status in LEFT_OPEN and verdict.checked < verdict.inputs:
        verdict = verify(result.program, weights)
    return {
        "name": item.name,
        "lines": len(item.program),
        "causal": item.causal,
        "certificate": result.certificate,
        "source": result.source.value,
        "seconds": round(result.seconds, 3),
        "certified": proven,
        "verified": verdict.is_verified,
        "limits": list(result.verdict.limits),
        **_reservations(result),
        "wrongly_certified": verdict.is_verified and _differs(result.program, weights),
        "altered": not verdict.is_verified and _is_altered(item.program, weights),
    }


def _is_altered(program: Any, weights: TracrWeights) -> bool:
    """Whether rounding has altered the model in this variant: it is known to differ from its own program, in one
    precision at least."""
    verdict = verify(program, weights, limit=MOST_RUN // weights.max_seq_len)
    return verdict.status is Status.REFUTED or verdict.elsewhere is not None or verdict.faint is not None


def _compiled_here(item: LibraryProgram, options: TracrOptions) -> TracrWeights:
    return compile_program(item.program, item.vocab, item.max_seq_len, causal=item.causal, **options.ours)


def _compiled_elsewhere(item: LibraryProgram, options: TracrOptions) -> TracrWeights:
    """By the tracr package, from the s-op itself."""
    from tracr.compiler import compiling

    sop = to_tracr(item.program) if item.sop is None else item.sop
    model = compiling.compile_rasp_to_model(
        sop, set(item.vocab), item.max_seq_len, causal=item.causal, **options.tracrs
    )
    return from_tracr_model(model)


def _greedy_row(
    truth: Program, original: TracrWeights, weights: TracrWeights, candidate: Candidate | None
) -> dict[str, Any]:
    """Figures of the greedy program. `original` are the weights in Tracr's own basis, `weights` what was decompiled."""
    program = candidate.program if candidate else None
    read = next(with_functions_read(candidate, weights), None) if candidate else None
    compiled = None if program is None else _compiled(program, weights)
    verdict = verify(program, weights) if program else Verdict(Status.NOT_COMPARABLE, 0, 0, reason="unfinished")
    return {
        "lines": len(truth),
        "operations": sorted({line.op.name.lower() for line in truth.lines}),
        "free_running_exact": program == truth,
        "identical_weights": compiled is not None and are_identical(compiled, original),
        "compiles": compiled is not None,
        "functional_equivalence": verdict.is_verified,
        "greedy_read_exact": read is not None and _canonical(read.program, weights) == truth,
        "greedy_failure": None
        if program == truth
        else {
            "true": to_text(truth),
            "greedy": to_text(program) if program else None,
            "verdict": str(verdict),
        },
    }


def _decompiled_row(truth: Program, weights: TracrWeights, checkpoint: Path) -> dict[str, Any]:
    """Figures of verified decoding."""
    result, lifted = decompile(weights, checkpoint), next(lifted_programs(denoise(weights)), None)
    proven, exact = result.verdict.is_verified, result.program == truth
    failure = {"true": to_text(truth), "decompiled": to_text(result.program), "status": result.status.value}
    return {
        "lifted_exact": lifted is not None and _canonical(lifted, weights) == truth,
        "decompiled_exact": exact,
        "certified_equivalence": proven,
        **_reservations(result),
        "wrongly_certified": proven and _differs(result.program, weights),
        "seconds": result.seconds,
        "candidates": result.candidates,
        "decompiled_failure": None if exact else failure,
    }


def _reservations(result: Decompilation) -> dict[str, bool]:
    """What is counted apart from what is proven, and what a proof is to be read with."""
    one, none = Status.EQUIVALENT_IN_ONE_PRECISION, Status.EQUIVALENT_BUT_FOR_NONE
    found = result.status is one, result.status is none, result.verdict.departure is not None
    return dict(zip(RESERVATIONS, found, strict=True))


def _canonical(program: Program, weights: TracrWeights) -> Program | None:
    try:
        return canonicalise_spoken(program, weights.input_vocab, weights.max_seq_len)
    except UnsupportedError:
        return None


def _compiled(program: Program, weights: TracrWeights) -> TracrWeights | None:
    try:
        return compile_like(program, weights)
    except (UnsupportedError, WeightsError):  # the second: it is too large
        return None


def _differs(program: Any, weights: TracrWeights) -> bool:
    """Run the recompiled program and the model on every input, or on a sample, in both precisions, without the
    verifier."""
    compiled = compile_like(program, weights)
    domain, most = (len(weights.input_vocab), weights.max_seq_len), MOST_RUN // weights.max_seq_len
    inputs = all_inputs(*domain) if count_inputs(*domain) <= most else random_inputs(*domain, most, 0)
    outputs = [[run(model, inputs, dtype=dtype) for model in (compiled, weights)] for dtype in PRECISIONS]
    return not all(_are_same(*pair) for pair in outputs)


def _are_same(first: Output, second: Output) -> bool:
    """Whether two outputs, all of finite numbers, decode to the same."""
    if not all(np.isfinite(out.logits[out.real]).all() for out in (first, second)):
        return False
    if first.values is None or second.values is None:
        same = are_alike(first.codes, second.codes)
    else:
        numbers: dict[Value, int] = {}
        values = [
            np.array([numbers.setdefault(rounded(value), len(numbers)) for value in out.values])[out.codes]
            for out in (first, second)
        ]
        # A wide head's None leaves up to FAINT of what is on, whichever value that decodes to.
        off = [out.contrast <= FAINT * max(0.1, out.contrast[out.real].max()) for out in (first, second)]
        same = np.where(off[0] | off[1], off[0] & off[1], values[0] == values[1])
    return bool(same[first.real].all())


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


def _by(groups: Callable[[dict[str, Any]], Iterable[Any]], rows: list[dict[str, Any]], name: str) -> dict[Any, Any]:
    """The share among the rows of each group, with its interval; a row may be of several."""
    found: dict[Any, list[bool]] = {}
    for row in rows:
        for group in groups(row):
            found.setdefault(group, []).append(row[name])
    return {
        group: {"n": len(hits), "share": round(float(np.mean(hits)), 4), "interval_95": wilson(sum(hits), len(hits))}
        for group, hits in sorted(found.items())
    }


_by_kind = partial(_by, lambda row: [row["name"].rstrip("_0123456789 ")])
_by_lines = partial(_by, lambda row: [row["lines"]])
_by_operation = partial(_by, lambda row: set(row["operations"]))


if __name__ == "__main__":
    main()
