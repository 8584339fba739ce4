"""Tracr models that were trained further, and models trained to hold a program: what is read of them afterwards.

Run: python scripts/retrain.py compressed --programs 20 --out results/retrained-compressed.json
     python scripts/retrain.py noisy --programs 20 --out results/retrained-noisy.json
     python scripts/retrain.py implanted --programs 10 --out results/retrained-implanted.json

Programs are those of the held-out split `test` whose output is categorical. Finished rows are kept beside --out, and a
run that was killed goes on from there.

compressed   the residual stream by a learned projection to a share of its dimensions; read from the weights and by the
             network (`certified`, `same_program`)
noisy        normal noise on all weights, then training; searched (`proven`)
implanted    interchange training of an ordinary transformer; searched (`proven`, `all_lines_used`)
right        share of inputs on which the trained model gives all of the program's answers
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from records import code, environment, keep_row, kept_rows

from dataset_builder.retrained import Retrained, compress, domain_of, implant, retrain
from dataset_builder.sampler import SamplerConfig
from dataset_builder.splits import Item, pinned
from trade_hf.compiled.compiler import compile_program
from trade_hf.compiled.transforms import change_coordinates
from trade_hf.compiled.weights import TracrWeights
from trade_hf.decompiler import decompile
from trade_hf.files import write_text
from trade_hf.rasp.canonical import hash_canonical
from trade_hf.rasp.program import RaspError
from trade_hf.trained.causality import USED
from trade_hf.trained.config import Config
from trade_hf.trained.decompilation import decompile_trained
from trade_hf.trained.domain import Domain
from trade_hf.trained.text import parse
from trade_hf.trained.transformer import Transformer

SHARES = (1.0, 0.85, 0.7, 0.5)  # of the dimensions that are left
NOISE = (0.01, 0.1, 0.5)  # in standard deviations of each tensor
IMPLANTED = {"n_layers": 2, "n_heads": 2, "d_model": 48, "d_head": 16, "d_mlp": 96, "act_fn": "gelu"}
# Programs that are trained into a model: the answers are columns, tokens 0 to 3 after BOS, which is 4.
PROGRAMS = {
    "histogram": ["rasp.Select(rasp.tokens, rasp.tokens, lambda k, q: k == q)", "rasp.SelectorWidth(v1)"],
    "sum with the token before": [
        "rasp.Select(rasp.indices, rasp.indices, lambda k, q: k == q - 1)",
        "rasp.Aggregate(v1, rasp.tokens)",
        "rasp.SequenceMap(lambda x, y: (x + y) % 5, rasp.tokens, v2)",
    ],
    "occurs again": [
        "rasp.Select(rasp.tokens, rasp.tokens, lambda k, q: k == q)",
        "rasp.SelectorWidth(v1)",
        "rasp.Map(lambda x: 1 if x >= 2 else 0, v2)",
    ],
    "reversed": [
        "rasp.Select(rasp.indices, rasp.indices, lambda k, q: k > q)",
        "rasp.SelectorWidth(v1)",
        "rasp.Select(v2, rasp.indices, lambda k, q: k == q - 1)",
        "rasp.Aggregate(v3, rasp.tokens)",
    ],
}


def compressed(item: Item, share: float, steps: int) -> dict[str, Any]:
    """A row of a program's model with a share of its dimensions."""
    weights = _weights(item)
    domain, size = domain_of(weights), max(1, round(share * weights.d_model))
    made = compress(Transformer.of(weights), domain, size, steps)
    assert made.projection is not None
    narrow = change_coordinates(weights, made.projection, made.projection.T)
    result = decompile(narrow)
    found = hash_canonical(result.program, item.sample.vocab, item.sample.max_seq_len)
    return {
        "dimensions": size,
        "of": weights.d_model,
        **_row(made, domain),
        "certified": result.verdict.is_verified,
        "same_program": found == item.canonical_hash,
        "source": result.source.value,
    }


def noisy(item: Item, level: float, steps: int) -> dict[str, Any]:
    """A row of a program's model with noise, trained further."""
    weights = _weights(item)
    domain = domain_of(weights)
    made = retrain(Transformer.of(weights), domain, level, steps)
    return {**_row(made, domain), **_searched(made, domain)}


def implanted(lines: list[str], _: float, steps: int) -> dict[str, Any]:
    """A row of a program that a transformer was trained to hold."""
    body = [f"v{number} = {line}" for number, line in enumerate(lines, 1)]
    program = parse("\n".join([*body, f"program = v{len(lines)}"]))
    answer = {"positions": {"from": 1}, "columns": 6}
    domain = Domain.from_dict(
        {"enumerate": {"prefix": [4], "vocab": [0, 1, 2, 3], "lengths": [1, 5]}, "answer": answer}
    )
    config = Config(**IMPLANTED, n_ctx=6, d_vocab=5, d_vocab_out=6, attention_dir="bidirectional")  # type: ignore[arg-type]
    made = implant(program, config, domain, steps)
    return {**_row(made, domain), **_searched(made, domain), "program_lines": len(program)}


def _weights(item: Item) -> TracrWeights:
    return compile_program(item.sample.program, item.sample.vocab, item.sample.max_seq_len)


def _row(made: Retrained, domain: Domain) -> dict[str, Any]:
    return {"loss": made.loss, "right": made.right / len(domain)}


def _searched(made: Retrained, domain: Domain) -> dict[str, Any]:
    result = decompile_trained(made.model, domain)
    shares = [line.interchange for line in result.mechanism if line.interchange is not None]
    used = min(shares) >= USED if shares else None
    lines, cells = len(result.program), result.program.table_cells
    return {"proven": result.is_proven, "lines": lines, "table_cells": cells, "all_lines_used": used}


def _jobs(args: argparse.Namespace) -> Iterator[tuple[str, float, Callable[[], dict[str, Any]]]]:
    """Name, level and work of each row."""
    if args.what == "implanted":
        for name, lines in list(PROGRAMS.items())[: args.programs]:
            yield name, 0.0, lambda lines=lines: implanted(lines, 0.0, args.steps)  # type: ignore[misc]
        return
    make, levels = (compressed, SHARES) if args.what == "compressed" else (noisy, NOISE)
    chosen = 0
    for item in pinned("test", 20 * args.programs, SamplerConfig(min_lines=3, max_lines=6, max_d_model=60)):
        if chosen == args.programs:
            return
        try:
            domain_of(_weights(item))
        except (ValueError, RaspError):
            continue
        chosen += 1
        for level in levels:
            yield item.canonical_hash, level, lambda item=item, level=level: make(item, level, args.steps)  # type: ignore[misc]


def summary(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Shares by level."""
    found = []
    for level in sorted({row["level"] for row in rows}):
        some = [row for row in rows if row["level"] == level]
        shares = {
            name: sum(bool(row[name]) for row in some) / len(some)
            for name in ("certified", "same_program", "proven", "all_lines_used")
            if name in some[0]
        }
        right = statistics.mean(row["right"] for row in some)
        found.append({"level": level, "models": len(some), "mean_right": round(right, 4)} | shares)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("compressed", "noisy", "implanted"))
    parser.add_argument("--programs", type=int, default=20)
    parser.add_argument("--steps", type=int, default=1_000, help="of training one model")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    progress = args.out.with_suffix(".progress.jsonl")
    what = f"{code()} {args.what} {args.steps}"
    kept = {(row["row"]["program"], row["row"]["level"]): row["row"] for row in kept_rows(progress, what)}
    rows = []
    for name, level, work in tqdm(list(_jobs(args)), disable=None):
        if (name, level) not in kept:
            kept[name, level] = {"program": name, "level": level, **work()}
            keep_row(progress, {"of": what, "row": kept[name, level]})
        rows.append(kept[name, level])
    settings = {"what": args.what, "programs": args.programs, "steps": args.steps, **environment()}
    write_text(args.out, json.dumps({**settings, "by_level": summary(rows), "rows": rows}, indent=1) + "\n")
    progress.unlink(missing_ok=True)
    print(json.dumps(summary(rows), indent=2))


if __name__ == "__main__":
    main()
