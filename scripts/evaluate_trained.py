"""Decompile trained models: a row for each, and what others may compare with.

Run: python scripts/evaluate_trained.py MODELS/* --seconds 60 --out results/trained.json

     python scripts/evaluate_trained.py MODELS/* --programs results/trained.json --out results/trained-interchange.json

Each argument is a model's folder (`model.safetensors`, `config.json`, `domain.json`). Finished rows are kept beside
--out, and a run that was killed goes on from there.

proven                equal to the model on every input, in single and double precision, by a program of at most 15
                      lines whose tables have fewer than 5 % of the cells of the table of inputs and outputs
share_of_inputs       inputs on which all answers are the model's
seconds               wall time; processor_seconds: CPU time
match_at_90           at least 90 % of the answers of a sample of 1,000 inputs are the model's
refuted_independently inputs of a proven model on which the logits of the transformer_lens package give another answer
interchange           of each line, over the lines that have one: the smallest and the median
all_lines_used        models whose lines all have an interchange accuracy of 0.9 or more, of those with one that has any
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from records import code, environment, keep_row, kept_rows

from trade_hf.files import write_text
from trade_hf.trained.answers import Answers
from trade_hf.trained.causality import USED, mechanism
from trade_hf.trained.decompilation import TrainedDecompilation, compare, decompile_trained
from trade_hf.trained.domain import Domain
from trade_hf.trained.program import Program
from trade_hf.trained.synthesis import SECONDS
from trade_hf.trained.text import parse
from trade_hf.trained.transformer import Transformer

SAMPLED = 1_000  # inputs of the criterion of D-RASP (arXiv:2602.08857)
MATCH = 0.9


def evaluate(folder: Path, seconds: float, seed: int, with_mechanism: bool, code: str | None) -> dict[str, Any]:
    """One model's row; of a program that is known, if `code` is given."""
    domain, model = Domain.load(folder / "domain.json"), Transformer.load(folder)
    start = time.process_time()
    if code is None:
        result = decompile_trained(
            folder, seconds=seconds, seed=seed, with_mechanism=with_mechanism, wall_seconds=math.inf
        )
    else:
        result = known(parse(code), model, domain, seed, with_mechanism)
    processor_seconds = round(time.process_time() - start, 2)
    found = result.to_dict()
    interchange = [line.interchange for line in result.mechanism if line.interchange is not None]
    row = {key: found[key] for key in found if key not in ("score", "source", "first_differing")}
    return {
        "model": folder.name,
        "task": dict(domain.about).get("task"),
        "architecture": repr(model),
        **row,
        "processor_seconds": processor_seconds,
        "share_of_inputs": result.comparison.agreeing / result.comparison.inputs,
        "match_at_90": sampled_match(result, model, domain, seed) >= MATCH,
        "refuted_independently": refuted_independently(result, folder, domain) if result.is_proven else None,
        "interchange": [min(interchange), statistics.median(interchange)] if interchange else None,
    }


def known(
    program: Program, model: Transformer, domain: Domain, seed: int, with_mechanism: bool
) -> TrainedDecompilation:
    """What would be found if this program were."""
    start = time.monotonic()
    lines = tuple(mechanism(program, model, domain, seed)) if with_mechanism else ()
    found = compare(program, model, domain)
    vocab = tuple(np.unique(domain.tokens[domain.tokens >= 0]).tolist())
    return TrainedDecompilation(program, found, lines, time.monotonic() - start, vocab, domain.tokens.shape[1])


def sampled_match(result: TrainedDecompilation, model: Transformer, domain: Domain, seed: int) -> float:
    """The share of the answers of some inputs that are the model's."""
    part = domain.rows(np.sort(np.random.RandomState(seed).permutation(len(domain))[:SAMPLED]))
    answers = Answers.of(model.logits(part), part)
    return 1 - float(answers.differ(result.program.evaluate(part.tokens)).sum()) / part.answers


def refuted_independently(result: TrainedDecompilation, folder: Path, domain: Domain) -> int:
    """Inputs on which the logits of the transformer_lens package give another answer than the program."""
    from transformer_lens import HookedTransformer, HookedTransformerConfig

    model = Transformer.load(folder)
    config = HookedTransformerConfig(
        **{**vars(model.config), "positional_embedding_type": "standard"}, device="cpu", init_weights=False
    )
    hooked = HookedTransformer(config)
    hooked.load_state_dict({**hooked.state_dict(), **model.parameters})
    logits = np.zeros((*domain.tokens.shape, domain.columns), np.float32)
    with torch.no_grad():
        for rows in model.batches(domain):
            length = int(domain.lengths[rows[0]])
            logits[rows, :length] = hooked(torch.tensor(domain.tokens[rows, :length])).numpy()[..., : domain.columns]
    wrong = Answers.of(logits, domain).differ(result.program.evaluate(domain.tokens))
    return int(wrong.any(1).sum())


def grouped(rows: list[dict[str, Any]], by: str) -> list[dict[str, Any]]:
    """The figures of each group of models that have something in common."""
    keys = sorted({row[by] or "" for row in rows})
    return [{by: key, **summary([row for row in rows if (row[by] or "") == key])} for key in keys]


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The figures over all models."""
    tested = [row["interchange"][0] for row in rows if row["interchange"]]
    return {
        "models": len(rows),
        "proven": sum(row["proven"] for row in rows),
        "share_above_90": sum(row["share_of_inputs"] >= MATCH for row in rows),
        "match_at_90": sum(row["match_at_90"] for row in rows),
        "refuted_independently": sum(row["refuted_independently"] or 0 for row in rows),
        "median_seconds": statistics.median(row["seconds"] for row in rows),
        "longest_seconds": max(row["seconds"] for row in rows),
        "median_processor_seconds": statistics.median(row["processor_seconds"] for row in rows),
        "longest_processor_seconds": max(row["processor_seconds"] for row in rows),
        "median_lines": statistics.median(row["lines"] for row in rows),
        "most_table_cells": max(row["table_cells"] for row in rows),
        "with_interchange": len(tested),
        "all_lines_used": sum(least >= USED for least in tested),
    }


def programs_of(path: Path) -> dict[str, str]:
    """The code of each model's program, by the model's name."""
    return {row["model"]: row["code"] for row in json.loads(path.read_text())["rows"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+", metavar="FOLDER")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of CPU time, of the search for one model")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--no-mechanism", action="store_true", help="no interchange interventions")
    parser.add_argument("--programs", type=Path, metavar="FILE", help="no search: the programs of an earlier --out")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    folders = sorted(folder for folder in args.folders if (folder / "domain.json").is_file())
    if not folders:
        parser.error(f"expected folders with domain.json, got {args.folders[0]}")
    progress = args.out.with_suffix(".progress.jsonl")
    texts = programs_of(args.programs) if args.programs else {}
    if args.programs:
        folders = [folder for folder in folders if folder.name in texts]
    what = f"{code()} {args.seconds:g} {args.seed} {args.no_mechanism} {args.programs}"
    rows = {row["folder"]: row["row"] for row in kept_rows(progress, what)}
    for folder in tqdm(folders, disable=None):
        if str(folder) not in rows:
            rows[str(folder)] = evaluate(folder, args.seconds, args.seed, not args.no_mechanism, texts.get(folder.name))
            keep_row(progress, {"of": what, "folder": str(folder), "row": rows[str(folder)]})
    ordered = [rows[str(folder)] for folder in folders]
    settings = {"seconds": args.seconds, "seed": args.seed, "with_mechanism": not args.no_mechanism, **environment()}
    groups = {f"by_{by}": grouped(ordered, by) for by in ("task", "architecture")}
    write_text(args.out, json.dumps({**settings, **summary(ordered), **groups, "rows": ordered}, indent=1) + "\n")
    progress.unlink()
    print(json.dumps(summary(ordered), indent=2))


if __name__ == "__main__":
    main()
