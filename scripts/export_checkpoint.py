"""Turn a training run's newest model into a checkpoint that ships: bf16, with its processor, log and training record.

Run: python scripts/export_checkpoint.py runs/cpu trade_hf/assets/trade-base
     python scripts/export_checkpoint.py runs/cpu training/latest --if-better      (make latest RUN=runs/cpu)
     python scripts/export_checkpoint.py trade_hf/assets/trade-base hub/trade-base --remote-code

A run may still be going on: its newest whole checkpoint is taken, or its final model where there is one. The target is
replaced at once, and only by a model of at most 16 MB. With --if-better it stays as it is unless the new model reads
more of the validation programs of its config, or as many with a lower loss. Both models are measured here, in bf16.

With --remote-code the files are copied as they are, and the code that runs them where trade-hf is not installed is put
beside them, with the handler for Inference Endpoints: what a model repository on the Hub holds.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import training_record
from train import last_complete_checkpoint, validate

from trade_hf.files import write_text
from trade_hf.modeling_trade import TraDeForConditionalGeneration
from trade_hf.processing_trade import TraDeProcessor
from trade_hf.remote_code import export
from trade_hf.tokenization_rasp import MAX_NEW_TOKENS, build_tokenizer

MAX_BYTES = 16_000_000
LOG = "log.jsonl"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="a run's folder, or the folder of one of its models")
    parser.add_argument("target", type=Path)
    parser.add_argument("--if-better", action="store_true", help="than the model that the target holds")
    parser.add_argument("--batch-size", type=int, default=20, help="of the validation")
    parser.add_argument("--remote-code", action="store_true", help="add what a repository on the Hub needs")
    args = parser.parse_args()
    try:
        if args.remote_code:
            export(args.run, args.target)
        else:
            save(args.run, args.target, args.if_better, args.batch_size)
    except (OSError, ValueError) as error:
        sys.exit(f"export_checkpoint: {error}")


def save(run: Path, target: Path, if_better: bool, batch_size: int) -> None:
    """Put a run's newest model in the target's place. Raises OSError or ValueError where the target stays as it is."""
    source = newest_model(run)
    record, log = read_record(source)
    model = in_bf16(source)
    if if_better:
        there = in_bf16(target) if (target / "config.json").is_file() else None
        config = record["config"]
        record["validation"] = validation = validate(model.float(), config, batch_size)
        before = validate(there.float(), config, batch_size) if there else None
        print(f"{source}: {in_words(validation)}\n{target}: {in_words(before) if before else 'nothing there'}")
        if before and merit(validation) <= merit(before):
            print("not better: the target stays as it is")
            return
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as scratch:
        folder = Path(scratch) / "new"
        write_model(model.bfloat16(), record, log, folder)
        size = sum(path.stat().st_size for path in folder.iterdir())
        if size > MAX_BYTES:
            raise ValueError(f"{source}: expected a model of at most {MAX_BYTES:,} bytes in bf16, got {size:,}")
        if target.exists():
            target.rename(Path(scratch) / "old")
        folder.rename(target)
    print(f"{target}: {size / 1e6:.1f} MB, step {record['steps']:,}")


def newest_model(run: Path) -> Path:
    """The folder of the newest whole model of a run, or the given one where it holds a model itself."""
    if (run / "config.json").is_file():
        return run
    checkpoint = last_complete_checkpoint(run)
    found = [Path(checkpoint)] if checkpoint else []
    if (run / "final" / training_record.NAME).is_file():
        found.append(run / "final")
    if not found:
        raise ValueError(f"{run}: expected a training run with a whole checkpoint, or a model's folder; found neither")
    return max(found, key=training_record.steps_of)  # of the same step, the checkpoint: they are the same


def read_record(source: Path) -> tuple[dict[str, Any], list[str]]:
    """What a model was trained with, and the lines of its run's log up to it."""
    try:
        if (source / training_record.NAME).is_file():
            record = json.loads((source / training_record.NAME).read_text())
        else:
            record = training_record.record_at(source.parent, training_record.steps_of(source))
    except FileNotFoundError as error:
        raise ValueError(f"{error.filename}: not there; train.py writes it when a run is started") from error
    log = next((path for path in (source / LOG, source.parent / LOG) if path.is_file()), None)
    lines = log.read_text().splitlines() if log else []
    return record, [line for line in lines if json.loads(line)["step"] <= record["steps"]]


def in_bf16(folder: Path) -> TraDeForConditionalGeneration:
    return TraDeForConditionalGeneration.from_pretrained(folder, dtype=torch.bfloat16).eval()


def write_model(model: TraDeForConditionalGeneration, record: dict[str, Any], log: list[str], folder: Path) -> None:
    model.generation_config.max_length, model.generation_config.max_new_tokens = None, MAX_NEW_TOKENS
    model.save_pretrained(folder, max_shard_size="15MB", with_code=False)
    TraDeProcessor(build_tokenizer()).save_pretrained(folder, with_code=False)
    if log:
        write_text(folder / LOG, "\n".join(log) + "\n")
    write_text(folder / training_record.NAME, json.dumps(record, indent=2) + "\n")


def merit(validation: dict[str, Any]) -> tuple[float, float]:
    """How many of the validation programs are read exactly, long ones among them; then how low the loss is."""
    sizes = validation["programs"]
    exact = sum(sizes[kind] * validation[f"{kind}_free_running_exact"] for kind in sizes)
    return round(exact), -sum(sizes[kind] * validation[f"{kind}_loss"] for kind in sizes)


def in_words(validation: dict[str, Any]) -> str:
    """Of each set of validation programs, what share is read exactly, and the loss."""
    return "; ".join(
        f"{kind}: {100 * validation[f'{kind}_free_running_exact']:.1f} % of {size} programs exact, "
        f"loss {validation[f'{kind}_loss']:.4f}"
        for kind, size in validation["programs"].items()
    )


if __name__ == "__main__":
    main()
