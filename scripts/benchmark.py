"""Measure the compiler, the canonical form, the corpus and the endpoint, against their oracles where there are any.

Run: python scripts/benchmark.py compile --programs 1000 --json --out results/compile.json
     python scripts/benchmark.py canonical --programs 1000 --mutants 5000 --json --out results/canonical.json
     python scripts/benchmark.py corpus --programs 50000 --json --out results/corpus-speed.json
     python scripts/benchmark.py kills --programs 3000 --json --out results/corpus-kills.json
     python scripts/benchmark.py verify --programs 200 --json --out results/verify.json
     python scripts/benchmark.py truth --programs 1000 --json --out results/truth.json
     python scripts/benchmark.py decompile --programs 200 --json --out results/decompile.json
     python scripts/benchmark.py decoding --programs 300 --json --out results/decoding.json
     python scripts/benchmark.py online --programs 4096 --json --out results/online.json
     python scripts/benchmark.py metric --programs 2000 --json --out results/metric.json
     python scripts/benchmark.py provenance --programs 200 --json --out results/provenance.json
     python scripts/benchmark.py bounds --programs 500 --json --out results/bounds.json
     python scripts/benchmark.py serve --programs 20 --rounds 10 --json --out results/serve.json
     python scripts/benchmark.py space --programs 20 --rounds 10 --json --out results/space.json
     python scripts/benchmark.py attacks --mutations 5000 --json --out results/attacks.json
     python scripts/benchmark.py read --corpus FOLDER --config base --json --out results/corpus-read.json
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import http.client
import json
import os
import random
import resource
import statistics
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from functools import partial
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import numpy as np
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import attack_study
from records import code, keep_row, kept_rows
from tracr_options import TRACRS, TracrOptions

from dataset_builder.brute_force import differing, outputs_in_rasp, outputs_of_model
from dataset_builder.corpus import CONFIGS, CorpusConfig, distinct_rows
from dataset_builder.mutants import mutants
from dataset_builder.origins import true_places
from dataset_builder.sampler import Draw, Sample, sample_programs
from dataset_builder.splits import UP_TO_TEN, pinned
from trade_hf.circuit.isomorphism import are_identical
from trade_hf.compiled.compiler import compile_program
from trade_hf.compiled.faithful import may_depart
from trade_hf.compiled.forward import run
from trade_hf.compiled.transforms import permute, rotate
from trade_hf.compiled.weights import TracrWeights
from trade_hf.files import write_text
from trade_hf.provenance import LineOrigin, confirm, provenance
from trade_hf.rasp.canonical import canonicalise
from trade_hf.rasp.evaluate import all_inputs, count_inputs, evaluate
from trade_hf.rasp.program import Op, Program
from trade_hf.rasp.tables import UnsupportedError, tabulate
from trade_hf.rasp.text import to_text
from trade_hf.verification import CONFIDENCE, TOLERANCE, verify, verify_programs

T = TypeVar("T")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", choices=sorted(STUDIES))
    parser.add_argument("--programs", type=int, default=200)
    parser.add_argument("--mutants", type=int, default=1000)
    parser.add_argument("--mutations", type=int, default=5000, help="of models, at random, beside the attacks")
    parser.add_argument("--config", choices=sorted(CONFIGS), default="base", help="of the corpus: what is sampled")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1, help="of a corpus build")
    parser.add_argument("--corpus", type=Path, help="the folder to read from")
    parser.add_argument("--rounds", type=int, default=10, help="of requests to the endpoint")
    parser.add_argument("--requests", type=int, default=200, help="of each round")
    parser.add_argument("--concurrency", type=int, default=16, help="requests at a time")
    parser.add_argument("--seed", type=int, default=0)
    TracrOptions.add_to(parser)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--out", type=Path, help="also write the JSON here")
    args = parser.parse_args()
    if args.study == "read" and args.corpus is None:
        parser.error("read: expected --corpus FOLDER, as scripts/build_dataset.py writes it")
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
    samples = sample_programs(f"benchmark-{args.seed}", CONFIGS[args.config].sampler)
    found = STUDIES[args.study](args, samples)
    result = {"study": args.study, "config": args.config, "seed": args.seed, **found}
    text = json.dumps(result, indent=2)
    if args.out:
        write_text(args.out, text + "\n")
    progress_of(args).unlink(missing_ok=True)
    print(text if args.json else "\n".join(f"{key}: {value}" for key, value in result.items()))


def progress_of(args: argparse.Namespace) -> Path:
    """Where a long study keeps its rows until its result is written."""
    return (args.out or Path(f"{args.study}-{args.config}-{args.seed}")).with_suffix(".progress.jsonl")


def timed(function: Callable, *args: Any) -> tuple[Any, float]:
    """A result and the milliseconds of CPU time that it took, all threads together: other work does not count."""
    start = time.process_time()
    result = function(*args)
    return result, (time.process_time() - start) * 1e3


RUN = 50  # programs whose models are run too, which takes tracr as long as to compile them


def compile_study(samples: list[Sample], args: argparse.Namespace) -> dict[str, Any]:
    """Every tensor, the evaluator and the forward pass against the tracr package, on the same programs.

    It takes 2 to 4 s a program, nearly all of it tracr's; a study that was killed goes on where it was.
    """
    options = TracrOptions.of(args)
    rows = resumed(partial(compare_with_tracr, options=options), samples, args)
    ours, tracr = (statistics.median(row[name] for row in rows) for name in ("ours_ms", "tracr_ms"))
    return {
        "programs": len(samples),
        **options.record,
        "ours_ms": round(ours, 3),
        "tracr_ms": round(tracr, 1),
        "ratio": round(tracr / ours),
        **{
            name: sum(row[name] for row in rows)
            for name in ("mismatches", "inputs", "evaluator_disagreements", "forward_disagreements")
        },
    }


def attacks_study(args: argparse.Namespace) -> dict[str, Any]:
    """Models that are made to differ from a program, and random mutations: which are certified, and is that true?"""
    return attack_study.summary(resumed(attack_study.row_of, attack_study.items_of(args.mutations, args.seed), args))


def resumed(
    measure: Callable[[T, int], dict[str, Any]], samples: Sequence[T], args: argparse.Namespace
) -> list[dict[str, Any]]:
    """A row for each sample; those of an earlier run of the same study, seed and code that was killed are kept."""
    progress = progress_of(args)
    what = f"{args.study} on {args.config}, seed {args.seed}, {TracrOptions.of(args)}, code {code()}"
    rows = kept_rows(progress, what)[: len(samples)]
    for number in tqdm(range(len(rows), len(samples)), args.study, len(samples), initial=len(rows), disable=None):
        rows.append({"of": what, **measure(samples[number], number)})
        keep_row(progress, rows[-1])
    return rows


def compare_with_tracr(
    sample: Sample, number: int, inputs_each: int = 5, options: TracrOptions = TRACRS
) -> dict[str, Any]:
    """One program: times, whether any tensor differs, and, of the first RUN, on how many inputs the outputs do."""
    import jax
    from tracr.compiler import compiling

    from trade_hf.compiled.bridge import from_tracr_model, same_as_tracr, to_tracr

    if number % 100 == 99:
        jax.clear_caches()  # which hold some 17 MB of each program
    program = sample.spelled
    compile_ours = partial(compile_program, **options.ours)
    ours, ours_ms = timed(compile_ours, program, sample.vocab, sample.max_seq_len)
    sop = to_tracr(program)
    compile_theirs = partial(compiling.compile_rasp_to_model, **options.tracrs)
    model, tracr_ms = timed(compile_theirs, sop, set(sample.vocab), sample.max_seq_len)
    theirs = from_tracr_model(model)
    same = ours.tensors.keys() == theirs.tensors.keys() and all(
        np.array_equal(ours.tensors[name], theirs.tensors[name]) for name in ours.tensors
    )
    same &= (ours.vocab, ours.bos, ours.pad) == (theirs.vocab, theirs.bos, theirs.pad)
    # One length, so that JAX compiles each model once.
    inputs = np.random.default_rng(number).integers(0, len(sample.vocab), (inputs_each, sample.max_seq_len))
    meant = evaluate(program, inputs, sample.vocab, sample.max_seq_len, exactness=options.exactness)
    given = run(ours, inputs)
    evaluator = forward = 0
    inputs = inputs if number < RUN else inputs[:0]
    for i, codes in enumerate(inputs):
        tokens = [sample.vocab[code] for code in codes]
        if meant.valid[i]:
            evaluator += not equal_outputs(meant.decode(i), sop(tokens))
        forward += not same_as_tracr(given, i, model.apply([ours.bos, *tokens]), ours.unembedding)
    return {
        "ours_ms": ours_ms,
        "tracr_ms": tracr_ms,
        "mismatches": int(not (same and np.array_equal(ours.unembedding, theirs.unembedding))),
        "inputs": len(inputs),
        "evaluator_disagreements": evaluator,
        "forward_disagreements": forward,
    }


def corpus_study(config: CorpusConfig, processes: int) -> dict[str, Any]:
    """Complete rows a second, memory, what a row costs by its size, and tracr's compile on some of the programs."""
    with TemporaryDirectory() as folder:
        start = time.perf_counter()
        with start_build(Path(folder), "timed", config, processes, subprocess.PIPE) as run:
            built = json.loads(run.communicate()[0])
        seconds = time.perf_counter() - start
    costs = list(row_costs(config, 4_000))
    tracr_ms = statistics.median(cost["tracr_ms"] for cost in costs if "tracr_ms" in cost)
    sizes, times = (np.log([cost[name] for cost in costs]) for name in ("nonzero", "row_ms"))
    return {
        "rows": built["rows"],
        "processes": processes,
        "seconds": round(seconds, 1),
        "rows_per_second": round(built["rows"] / seconds),
        "tracr_compile_ms": round(tracr_ms),
        "peak_mb": built["peak_mb"],
        "row_ms": round(statistics.mean(cost["row_ms"] for cost in costs), 3),
        "sample_ms": round(statistics.mean(cost["sample_ms"] for cost in costs), 3),
        "growth_with_nonzero_weights": round(float(np.polyfit(sizes, times, 1)[0]), 3),
        "by_lines": by_size(costs, "lines", 1),
        "by_d_model": by_size(costs, "d_model", 10),
        "by_nonzero": by_size(costs, "nonzero", 200),
    }


def row_costs(config: CorpusConfig, count: int, with_tracr: int = 15) -> Iterator[dict[str, float]]:
    """For each of some rows: its size, CPU milliseconds for its program (what was rejected before it among them) and
    for all the rest; of the first few also for tracr's compile."""
    from tracr.compiler import compiling

    from trade_hf.compiled.bridge import to_tracr

    samples = sample_programs("costs", config.sampler)
    deque(islice(samples, 500), maxlen=0)  # fills what is remembered of functions' tables
    for number in tqdm(range(count), "cost", disable=None):
        sample, sample_ms = timed(next, samples)
        [row], row_ms = timed(lambda sample: list(distinct_rows([sample])), sample)
        cost = {"lines": row["num_lines"], "d_model": row["d_model"], "nonzero": len(row["value"])}
        cost |= {"sample_ms": sample_ms, "row_ms": row_ms}
        if number < with_tracr:
            sop = to_tracr(sample.spelled)
            _, cost["tracr_ms"] = timed(compiling.compile_rasp_to_model, sop, set(sample.vocab), sample.max_seq_len)
        yield cost


def by_size(costs: list[dict[str, float]], size: str, width: int) -> dict[str, dict[str, float]]:
    """Means by size, in bins."""
    bins: dict[int, list[dict[str, float]]] = {}
    for cost in costs:
        bins.setdefault(int(cost[size] // width * width), []).append(cost)
    return {
        f"{low}" if width == 1 else f"{low} to {low + width - 1}": {
            "rows": len(some),
            **{name: round(statistics.mean(c[name] for c in some), 3) for name in ("nonzero", "sample_ms", "row_ms")},
        }
        for low, some in sorted(bins.items())
    }


def verify_study(samples: list[Sample], with_tracr: int = 5, inputs_each: int = 20) -> dict[str, Any]:
    """Wall-clock milliseconds to compare programs, on all inputs, with their weights in another basis (so that the
    weights are not simply equal) and with themselves; and tracr's own `apply`, timed on a few inputs."""
    from tracr.compiler import compiling

    from trade_hf.compiled.bridge import to_tracr

    with_model, with_program, tracr = [], [], []
    for number, sample in enumerate(tqdm(samples, "verify", disable=None)):
        domain = (sample.vocab, sample.max_seq_len)
        weights = rotate(sample.compile(), number)
        start = time.perf_counter()
        verdict = verify(sample.spelled, weights)
        middle = time.perf_counter()
        same = verify_programs(sample.spelled, sample.spelled, *domain)
        with_model.append((middle - start) * 1e3)
        with_program.append((time.perf_counter() - middle) * 1e3)
        assert verdict.is_verified and same.is_verified, to_text(sample.spelled)
        if number < with_tracr:
            model = compiling.compile_rasp_to_model(to_tracr(sample.spelled), set(sample.vocab), sample.max_seq_len)
            tokens = [weights.bos, *[sample.vocab[0]] * sample.max_seq_len]
            model.apply(tokens)  # compiles this length
            start = time.perf_counter()
            for _ in range(inputs_each):
                model.apply(tokens)
            tracr.append((time.perf_counter() - start) * 1e3 / inputs_each)
    ours = statistics.median(with_model)
    inputs = count_inputs(len(samples[0].vocab), samples[0].max_seq_len)
    return {
        "programs": len(samples),
        "inputs": inputs,
        "exhaustive_ms": round(ours, 2),
        "program_ms": round(statistics.median(with_program), 2),
        "tracr_apply_ms": round(statistics.median(tracr) * inputs),
        "ratio": round(statistics.median(tracr) * inputs / ours),
    }


def decompile_study(samples: list[Sample], batch: int = 50) -> dict[str, Any]:
    """Wall-clock milliseconds to decompile a model, its parts in a random order: the greedy program of the network, and
    verified decoding; models a second that the network writes in batches; peak memory of the process."""
    from trade_hf.decompiler import decompile, load_model
    from trade_hf.search import greedy_programs

    model = load_model()
    weights = [permute(sample.compile(), number) for number, sample in enumerate(samples)]
    decompile(weights[0])  # what is loaded once is not counted
    greedy, verified, proven = [], [], 0
    for one in tqdm(weights, "decompile", disable=None):
        start = time.perf_counter()
        greedy_programs([one], model)
        middle = time.perf_counter()
        proven += decompile(one).verdict.is_verified
        greedy.append((middle - start) * 1e3)
        verified.append((time.perf_counter() - middle) * 1e3)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # of one model at a time
    start = time.perf_counter()
    for first in range(0, len(weights), batch):
        greedy_programs(weights[first : first + batch], model)
    seconds = time.perf_counter() - start
    return {
        "programs": len(samples),
        "proven": proven,
        **{
            f"{name}_{key}": round(float(np.percentile(times, percent)), 1)
            for name, times in (("greedy", greedy), ("verified", verified))
            for key, percent in (("ms", 50), ("p95_ms", 95))
        },
        "greedy_models_per_second_in_batches": round(len(weights) / seconds, 1),
        "peak_mb": round(peak / 1024),
    }


DECODINGS: dict[str, dict[str, int]] = {"greedy": {}, "beam_5": {"beams": 5}, "samples_16": {"samples": 16}}


def decoding_study(samples: list[Sample], seed: int) -> dict[str, Any]:
    """What the network alone writes of validation programs, in each way of decoding: the share where the likeliest
    program is the true one, the share where any is, and milliseconds a model."""
    import torch

    from trade_hf.decompiler import load_model
    from trade_hf.search import written_programs

    model = load_model()
    torch.manual_seed(seed)
    result: dict[str, Any] = {"programs": len(samples)}
    weights = [permute(sample.compile(), number) for number, sample in enumerate(samples)]
    for name, options in DECODINGS.items():
        start, first, among = time.perf_counter(), 0, 0
        for sample, one in tqdm(zip(samples, weights, strict=True), name, len(samples), disable=None):
            programs = [candidate.program for candidate in written_programs(one, model, **options)]
            first += programs[:1] == [sample.program]
            among += sample.program in programs
        seconds = time.perf_counter() - start
        shares = {"likeliest": first / len(samples), "among_them": among / len(samples)}
        result[name] = {key: round(share, 4) for key, share in shares.items()}
        result[name]["ms"] = round(1e3 * seconds / len(samples), 1)
    return result


def online_study(programs: int, seed: int, batch: int = 512) -> dict[str, Any]:
    """Training examples that one process makes a second, as for scripts/configs/base.yaml, and megabytes of a batch."""
    from dataset_builder.online import FEWEST_BATCHES, OnlineExamples, collate_examples

    examples = iter(OnlineExamples(seed, batch, config=UP_TO_TEN, lines_before=5, long_share=0.6))
    start, sizes = time.perf_counter(), []
    made = -(-programs // (FEWEST_BATCHES * batch)) * FEWEST_BATCHES * batch  # so many are made at once
    for _ in range(made // batch):
        tensors = collate_examples(list(islice(examples, batch)))
        sizes.append(sum(tensor.nbytes for tensor in tensors.values()) / 2**20)
    rate = made / (time.perf_counter() - start)
    return {"examples": made, "examples_per_second": round(rate), "batch": batch, "batch_mb": round(max(sizes), 1)}


def metric_study(samples: list[Sample], draw: Draw) -> dict[str, Any]:
    """Seconds to score as many pairs as there are programs: by turns the program itself, a mutant, the program before
    and text that is no program."""
    from trade_hf.metrics.scoring import score_all

    truths = [to_text(sample.spelled) for sample in samples]
    predictions = []
    for number, sample in enumerate(samples):
        other = (sample.spelled, next(mutants(sample.spelled, draw)), samples[number - 1].spelled)
        predictions.append(to_text(other[number % 4]) if number % 4 < 3 else truths[number].replace("rasp.", "", 2))
    start, cpu = time.perf_counter(), time.process_time()
    shares, _ = score_all(predictions, truths, samples[0].vocab, samples[0].max_seq_len)
    return {
        "pairs": len(samples),
        "seconds": round(time.perf_counter() - start, 1),
        "cpu_seconds": round(time.process_time() - cpu, 1),
        **{name: round(share, 4) for name, share in shares.items()},
        "peak_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
    }


MOST_INPUTS = 5_000  # of a program, for tracr to run them all
THROUGH_MODELS = 25  # programs whose outputs tracr's compiled models give too


def truth_study(samples: Iterator[Sample], args: argparse.Namespace) -> dict[str, Any]:
    """Verdicts on programs and on one mutant of each, against what the tracr package gives on every input.

    A program is compared with its own weights in a random basis, the mutant with the program and with those weights.
    Tracr's evaluator is the judge; where a mutant's model departs from RASP (`compiled/faithful.py`) or the evaluator
    fails, the model that tracr compiles of it, and for the first THROUGH_MODELS programs that too.
    """
    few = (s for s in samples if s.spelled == s.program and count_inputs(len(s.vocab), s.max_seq_len) <= MOST_INPUTS)
    rows = resumed(truth_of, list(islice(few, args.programs)), args)
    kinds = ("program", "mutant_with_program", "mutant_with_weights")
    return {
        "programs": len(rows),
        "inputs": sum(row["inputs"] for row in rows),
        "verdicts": sum(len(row["verdicts"]) for row in rows),
        "wrong": {kind: sum(row["verdicts"][kind] != row["truth"][kind] for row in rows) for kind in kinds},
        "false_equivalent": sum(row["verdicts"][kind] and not row["truth"][kind] for row in rows for kind in kinds),
        "mutants_that_are_equivalent": sum(row["truth"]["mutant_with_weights"] for row in rows),
        "mutants_that_differ_on_a_single_input": sum(row["differing"] == 1 for row in rows),
        "mutants_judged_by_the_compiled_model": sum(row["by_model"] for row in rows),
        "model_and_evaluator_disagree": sum(row["model_disagrees"] for row in rows),
        "exceptions": [row["code"] for row in rows if row["verdicts"] != row["truth"]],
    }


def truth_of(sample: Sample, number: int) -> dict[str, Any]:
    """One program and one mutant: whether each verdict is "proven", and whether brute force says so."""
    program, domain = sample.program, (sample.vocab, sample.max_seq_len)
    weights = rotate(sample.compile(), number)
    mutant = next(m for m in mutants(program, Draw(f"truth-{number}")) if compiles(m, *domain))
    meant, other = outputs_in_rasp(program, *domain), None
    if not is_departing(mutant, *domain):
        with contextlib.suppress(TypeError):  # tracr's evaluator gives None to a predicate that cannot take it
            other = outputs_in_rasp(mutant, *domain)
    by_model = other is None
    if other is None:
        other = outputs_of_model(mutant, *domain)
    disagree = number < THROUGH_MODELS and bool(differing(meant, outputs_of_model(program, *domain), TOLERANCE))
    same_kind = program.lines[-1].op.result is mutant.lines[-1].op.result
    differ = differing(meant, other, TOLERANCE) if same_kind else len(meant)
    verdicts = (verify(program, weights), verify_programs(program, mutant, *domain), verify(mutant, weights))
    kinds = ("program", "mutant_with_program", "mutant_with_weights")
    return {
        "inputs": len(meant),
        "verdicts": {kind: verdict.is_verified for kind, verdict in zip(kinds, verdicts, strict=True)},
        "truth": dict(zip(kinds, (True, not differ, not differ), strict=True)),
        "differing": differ,
        "by_model": by_model,
        "model_disagrees": disagree,
        "code": to_text(program) + to_text(mutant),
    }


def compiles(program: Program, vocab: tuple, max_seq_len: int) -> bool:
    try:
        compile_program(program, vocab, max_seq_len)
    except UnsupportedError:
        return False
    return True


def is_departing(program: Program, vocab: tuple, max_seq_len: int) -> bool:
    """Whether RASP and the compiled model may give something else on some input."""
    tables = tabulate(program, vocab, max_seq_len)
    valid = evaluate(tables, all_inputs(len(vocab), max_seq_len)).valid
    return may_depart(tables) or not bool(valid.all())


def provenance_study(samples: list[Sample]) -> dict[str, Any]:
    """Of each line, the heads and hidden units that `provenance` names, against those that the compiler knows of, in
    models in a random order and in a random basis by turns; and what ablation says of them."""
    right, lines, confirmed, swapped, exceptions, times = 0, 0, 0, [], [], []
    for number, sample in enumerate(tqdm(samples, "provenance", disable=None)):
        compiled = sample.compile()
        change = partial((permute, rotate)[number % 2], seed=number)
        model, truth = change(compiled), true_places(sample.spelled, compiled, change)
        origins, ms = timed(provenance, sample.spelled, model)
        times.append(ms)
        sure = confirm(sample.spelled, model, origins)
        for origin, is_sure in zip(origins, sure, strict=True):
            lines += 1
            confirmed += is_sure
            found = {(part.kind, part.layer, place) for part in origin.components for place in part.places}
            expected = truth.get(origin.line)
            if expected is None:  # a select is where its readers' heads are
                readers = [n for n in truth if origin.line in sample.spelled.lines[n].args]
                expected = {place for n in readers for place in truth[n] if place[0] == "head"}
            right += found == expected
            if found != expected:
                exceptions.append({"program": to_text(sample.spelled), "line": origin.line + 1, "found": str(origin)})
        swapped += swap_found_out(sample.spelled, model, origins)
    return {
        "programs": len(samples),
        "lines": lines,
        "right": right,
        "confirmed_by_ablation": confirmed,
        "swaps_of_two_lines": len(swapped),
        "swaps_found_out_by_ablation": sum(swapped),
        "ms": round(statistics.median(times), 1),
        "exception_list": exceptions,
    }


def swap_found_out(program: Program, model: TracrWeights, origins: Sequence[LineOrigin]) -> list[bool]:
    """Whether ablation refuses the components of two s-ops when they are exchanged; of the first two of a program."""
    own = [n for n, origin in enumerate(origins) if program.lines[origin.line].op is not Op.SELECT][:2]
    if len(own) < 2:
        return []
    exchanged = list(origins)
    for here, there in (own, own[::-1]):
        exchanged[here] = replace(origins[here], components=origins[there].components)
    sure = confirm(program, model, exchanged)
    return [not (sure[own[0]] and sure[own[1]])]


RARE = (2e-4, 0.03)  # shares of inputs that a pair of the study of bounds differs on
FEW = 400  # inputs that are run there


def bounds_study(samples: Iterator[Sample], pairs: int, draw: Draw) -> dict[str, Any]:
    """Programs and mutants that differ on few inputs, compared on FEW of them: how often the bound on the share that
    differs is below the true one, which all inputs tell. It may be in one of twenty; where a difference is found there
    is no bound to be wrong."""
    missed, found, shares = 0, 0, []
    progress = tqdm(total=pairs, desc="bounds", disable=None)
    for sample in samples:
        domain = (sample.vocab, sample.max_seq_len)
        for mutant in islice(mutants(sample.program, draw), 20):
            try:
                verdict = verify_programs(sample.program, mutant, *domain, limit=1, seed=len(shares), samples=FEW)
                share = share_that_differs(sample.program, mutant, *domain)
            except UnsupportedError:
                continue
            if len(shares) < pairs and RARE[0] <= share <= RARE[1]:
                assert verdict.checked < verdict.inputs
                found += verdict.bound is None
                missed += verdict.bound is not None and verdict.bound < share
                shares.append(share)
                progress.update()
        if len(shares) == pairs:
            break
    return {
        "pairs": pairs,
        "inputs": verdict.inputs,
        "run": FEW,
        "median_share": round(statistics.median(shares), 5),
        "differences_found": found,
        "bounds_given": pairs - found,
        "bounds_below_the_truth": missed,
        "share_below_the_truth": round(missed / pairs, 4),
        "allowed": round(1 - CONFIDENCE, 4),
    }


def share_that_differs(first: Program, second: Program, vocab: tuple, max_seq_len: int) -> float:
    """Of all inputs, by running both programs."""
    inputs = all_inputs(len(vocab), max_seq_len)
    one, other = (evaluate(program, inputs, vocab, max_seq_len) for program in (first, second))
    if (one.values is None) != (other.values is None) or not (one.valid & other.valid).all():
        return 1.0  # of another kind, or not compiled faithfully
    if one.values is None or other.values is None:
        same = np.abs(one.codes - other.codes) <= TOLERANCE
    else:
        cells = [np.array([*side.values, None], dtype=object)[side.codes] for side in (one, other)]
        same = cells[0] == cells[1]
    return float((~same & one.real).any(1).mean())


# Runs in processes of its own, which import what a build needs and no more.
BUILD = """
import json, resource, sys
from pathlib import Path
from dataset_builder.corpus import CorpusConfig, build
if __name__ == "__main__":
    report = build(CorpusConfig.from_json(json.loads(sys.argv[1])), Path(sys.argv[2]), int(sys.argv[3]), progress=False)
    peak = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    print(json.dumps({"rows": report["rows"], "peak_mb": round(peak / 1024)}))
"""


def start_build(folder: Path, name: str, config: CorpusConfig, processes: int, out: int) -> subprocess.Popen:
    """A build of `folder`/`name`, which prints to `out`."""
    script = folder / "build.py"
    script.write_text(BUILD)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parent.parent)}
    command = [sys.executable, str(script), json.dumps(asdict(config)), str(folder / name), str(processes)]
    return subprocess.Popen(command, env=environment, stdout=out)


def kills_study(config: CorpusConfig, processes: int, draw: random.Random, kills: int = 20) -> dict[str, Any]:
    """Kill a build at random moments, let it end, and compare its files with those of an undisturbed one."""
    with TemporaryDirectory() as folder:
        start = partial(start_build, Path(folder), config=config, processes=processes, out=subprocess.DEVNULL)
        begin = time.monotonic()
        clean_status, length, found = start("clean").wait(), time.monotonic() - begin, []
        for _ in tqdm(range(kills), "kills", disable=None):
            with start("killed") as run:
                try:  # long enough to get on, or else nothing is there to be harmed
                    run.wait(draw.uniform(0.05, 0.3) * length)
                except subprocess.TimeoutExpired:
                    run.kill()
            found.append([str(path.parent) for path in Path(folder, "killed").rglob("*.parquet")])
        last_status = start("killed").wait()
        clean, killed = (files_below(Path(folder, name)) for name in ("clean", "killed"))
    return {
        "rows": config.rows,
        "processes": processes,
        "kills": kills,
        "shards_there": [sum(".work" in place for place in places) for places in found],
        "published_files_there": [sum(".work" not in place for place in places) for places in found],
        "files": len(clean),
        "byte_identical": clean_status == last_status == 0 and clean == killed,
    }


def files_below(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def read_study(folder: Path, config: str, rows: int) -> dict[str, Any]:
    """Rows a second that `load_dataset` gives of a corpus on disk, one by one and in batches of 500."""
    import datasets

    with TemporaryDirectory() as cache:
        whole = datasets.load_dataset(str(folder), config, split="train", cache_dir=cache)
        streamed = datasets.load_dataset(str(folder), config, split="train", streaming=True)
        rates = {}
        for name, source in (("plain", whole), ("streaming", streamed)):
            rates[name] = rate(islice(source, rows), lambda row: 1)
            rates[f"{name}_batches"] = rate(islice(source.iter(500), rows // 500), lambda batch: len(batch["id"]))
    return {"corpus": config, "rows": rows, "rows_per_second": rates}


def rate(items: Iterator, size: Callable[[Any], int]) -> int:
    start = time.perf_counter()
    count = sum(map(size, items))
    return round(count / (time.perf_counter() - start))


def equal_outputs(first: list, second: list, tolerance: float = 1e-9) -> bool:
    """Whether two outputs are the same, numbers within a tolerance."""
    return len(first) == len(second) and all(
        a == b or (a is not None and b is not None and not isinstance(a, str) and abs(a - b) <= tolerance)
        for a, b in zip(first, second, strict=True)
    )


def serve_study(samples: list[Sample], rounds: int, requests: int, concurrency: int) -> dict[str, Any]:
    """Requests to the handler for Inference Endpoints over HTTP, several at a time: errors, answers that are not those
    of `decompile`, and the memory of the server and its worker after each round."""
    from serve_endpoint import load_handler, serving

    from trade_hf.decompiler import DEFAULT_CHECKPOINT, decompile
    from trade_hf.remote_code import export

    weights = [permute(compile_program(s.spelled, s.vocab, s.max_seq_len), i) for i, s in enumerate(samples)]
    results = [decompile(model) for model in weights]
    asked = [(model, result) for model, result in zip(weights, results, strict=True) if result.seconds < 1]
    with TemporaryDirectory() as folder:
        export(DEFAULT_CHECKPOINT, Path(folder))
        handler = load_handler(Path(folder))
        bodies = [json.dumps({"inputs": encoded(model, Path(folder) / "model")}).encode() for model, _ in asked]
        places = [place % len(asked) for place in range(requests)]
        expected = [asked[place][1].to_dict() for place in places]
        answers, memory = [], [resident_mb(os.getpid(), handler.worker.pid)]
        with serving(handler) as port, ThreadPoolExecutor(concurrency) as pool:
            for _ in tqdm(range(rounds), "serve", disable=None):
                answers += pool.map(lambda place: post(port, bodies[place]), places)
                memory.append(resident_mb(os.getpid(), handler.worker.pid))
        handler.close()
    return served(len(asked), rounds, concurrency, answers, expected, memory)


def space_study(samples: list[Sample], rounds: int, requests: int, concurrency: int) -> dict[str, Any]:
    """Requests to the demo's page over HTTP, several at a time: errors, answers that do not show the verdict and the
    program that `decompile` gives, and the memory of the server and its worker after each round."""
    from trade_hf.app.page import Demo, launch
    from trade_hf.decompiler import decompile
    from trade_hf.report.highlight import code_html
    from trade_hf.report.page import verdict_html

    asked = []
    for sample in samples:
        result = decompile(permute(compile_program(sample.spelled, sample.vocab, sample.max_seq_len), 0))
        if result.seconds < 0.5:  # the demo searches for a second
            fields = [to_text(sample.spelled), ", ".join(map(str, sample.vocab)), sample.max_seq_len, "permute", ""]
            asked.append(
                (fields, verdict_html(result.status.value, result.certificate) + code_html(result.code, anchors=True))
            )
    demo = Demo()
    address = launch(demo)
    places = [place % len(asked) for place in range(requests)]
    expected = [asked[place][1] for place in places]
    answers, memory = [], [resident_mb(os.getpid(), demo.worker.worker.pid)]
    with ThreadPoolExecutor(concurrency) as pool:
        for _ in tqdm(range(rounds), "space", disable=None):
            answers += pool.map(lambda place: ask_page(address, asked[place][0], asked[place][1]), places)
            memory.append(resident_mb(os.getpid(), demo.worker.worker.pid))
    demo.close()
    return served(len(asked), rounds, concurrency, answers, expected, memory)


def ask_page(address: str, fields: list[Any], expected: str) -> tuple[int, str, float]:
    """Status, `expected` where the page's answer shows it, else the answer, and seconds of a request to the demo."""
    start, url = time.perf_counter(), f"{address.rstrip('/')}/gradio_api/call/decompile"
    body = json.dumps({"data": fields}).encode()
    try:
        with urllib.request.urlopen(
            urllib.request.Request(url, body, {"Content-Type": "application/json"})
        ) as response:
            event = json.load(response)["event_id"]
        with urllib.request.urlopen(f"{url}/{event}", timeout=120) as response:
            text = response.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, str(error), time.perf_counter() - start
    last = text.rpartition("event: complete\ndata: ")[2]
    shown = json.loads(last)[0] if "event: complete" in text else text
    return 200 if shown != text else 500, expected if expected in shown else shown, time.perf_counter() - start


def served(
    programs: int,
    rounds: int,
    concurrency: int,
    answers: list[tuple[int, Any, float]],
    expected: list[Any],
    memory: list[float],
) -> dict[str, Any]:
    """What a study of a server tells, of status, answer and seconds of each request and what each round expected."""
    compared = zip(answers, expected * rounds, strict=True)
    seconds = [took for _, _, took in answers]
    return {
        "programs": programs,
        "requests": len(answers),
        "concurrency": concurrency,
        "errors": sum(status != 200 for status, _, _ in answers),
        "wrong": sum(status == 200 and answer != right for (status, answer, _), right in compared),
        "seconds": {"median": round(statistics.median(seconds), 3), "max": round(max(seconds), 3)},
        "resident_mb": memory,
    }


def encoded(weights: TracrWeights, path: Path) -> str:
    """A model's file in base64."""
    weights.save(path)
    return base64.b64encode(path.read_bytes()).decode()


def post(port: int, body: bytes) -> tuple[int, Any, float]:
    """Status, answer and seconds of a request to this machine."""
    start = time.perf_counter()
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    try:
        connection.request("POST", "/", body)
        response = connection.getresponse()
        return response.status, json.loads(response.read()), time.perf_counter() - start
    finally:
        connection.close()


def resident_mb(*processes: int) -> float:
    """Memory of several processes together."""
    pages = sum(int(Path(f"/proc/{process}/statm").read_text().split()[1]) for process in processes)
    return round(pages * resource.getpagesize() / 1e6, 1)


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


Study = Callable[[argparse.Namespace, Iterator[Sample]], dict[str, Any]]
STUDIES: dict[str, Study] = {
    "attacks": lambda args, _: attacks_study(args),
    "bounds": lambda args, samples: bounds_study(samples, args.programs, Draw(args.seed)),
    "canonical": lambda args, samples: canonical_study(samples, args.programs, args.mutants, Draw(args.seed)),
    "compile": lambda args, samples: compile_study(list(islice(samples, args.programs)), args),
    "corpus": lambda args, _: corpus_study(corpus_of(args), args.processes),
    "decoding": lambda args, _: decoding_study([i.sample for i in pinned("validation", args.programs)], args.seed),
    "decompile": lambda args, samples: decompile_study(list(islice(samples, args.programs))),
    "kills": lambda args, _: kills_study(
        replace(corpus_of(args), shard_rows=250), args.processes, random.Random(args.seed)
    ),
    "metric": lambda args, samples: metric_study(list(islice(samples, args.programs)), Draw(args.seed)),
    "online": lambda args, _: online_study(args.programs, args.seed),
    "provenance": lambda args, samples: provenance_study(list(islice(samples, args.programs))),
    "read": lambda args, _: read_study(args.corpus, args.config, args.programs),
    "serve": lambda args, samples: serve_study(
        list(islice(samples, args.programs)), args.rounds, args.requests, args.concurrency
    ),
    "space": lambda args, samples: space_study(
        list(islice(samples, args.programs)), args.rounds, args.requests, args.concurrency
    ),
    "truth": lambda args, samples: truth_study(samples, args),
    "verify": lambda args, samples: verify_study(list(islice(samples, args.programs))),
}


def corpus_of(args: argparse.Namespace) -> CorpusConfig:
    return replace(CONFIGS[args.config], rows=args.programs, long_rows=20)


if __name__ == "__main__":
    main()
