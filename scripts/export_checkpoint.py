"""Turn a training run's final model into the checkpoint that ships: bf16, with its processor and training record.

Run: python scripts/export_checkpoint.py runs/cpu/final trade_hf/assets/trade-base
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
from trade_hf.tokenization_rasp import build_tokenizer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("target", type=Path)
    args = parser.parse_args()
    model = TraDeForConditionalGeneration.from_pretrained(args.run, dtype=torch.bfloat16)
    model.save_pretrained(args.target, max_shard_size="15MB")
    TraDeProcessor(build_tokenizer()).save_pretrained(args.target)
    shutil.copy(args.run / "training.json", args.target / "training.json")
    size = sum(path.stat().st_size for path in args.target.iterdir())
    print(f"{args.target}: {size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
