"""Turn a training run's final model into the checkpoint that ships: bf16, with its processor and training record.

Run: python scripts/export_checkpoint.py runs/cpu/final trade_hf/assets/trade-base
     python scripts/export_checkpoint.py trade_hf/assets/trade-base hub/trade-base --remote-code

With --remote-code the files are copied as they are, and the code that runs them where trade-hf is not installed is put
beside them, with the handler for Inference Endpoints: what a model repository on the Hub holds.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from trade_hf.modeling_trade import TraDeForConditionalGeneration
from trade_hf.processing_trade import TraDeProcessor
from trade_hf.remote_code import export
from trade_hf.tokenization_rasp import MAX_NEW_TOKENS, build_tokenizer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--remote-code", action="store_true", help="add what a repository on the Hub needs")
    args = parser.parse_args()
    if args.remote_code:
        export(args.run, args.target)
    else:
        save(args.run, args.target)
    size = sum(path.stat().st_size for path in args.target.iterdir())
    print(f"{args.target}: {size / 1e6:.1f} MB")


def save(run: Path, target: Path) -> None:
    model = TraDeForConditionalGeneration.from_pretrained(run, dtype=torch.bfloat16)
    model.generation_config.max_length, model.generation_config.max_new_tokens = None, MAX_NEW_TOKENS
    model.save_pretrained(target, max_shard_size="15MB")
    TraDeProcessor(build_tokenizer()).save_pretrained(target)
    shutil.copy(run / "training.json", target / "training.json")


if __name__ == "__main__":
    main()
