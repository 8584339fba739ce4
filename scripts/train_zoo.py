"""Train many small transformers on known tasks: the configurations `trained-tasks` and `trained-programs`.

Run: python scripts/train_zoo.py --part programs --models 2000 --out corpus --json --report results/zoo-programs.json
     python scripts/train_zoo.py --part tasks --models 600 --seed 0 --out corpus
     python scripts/train_zoo.py --part tasks --models 60 --seed 1 --out corpus --folders zoo   (each as a folder, too)
Then: load_dataset("corpus", "trained-programs", split="train"), or `trade decompile zoo/hist-two-layers-3f2a91c0`
A build that was killed goes on when it is started again, and ends with the same rows.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from concurrent.futures import BrokenExecutor
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from dataset_builder.card import write_card
from dataset_builder.corpus import CorpusError, in_processes
from dataset_builder.scale_out import NEEDS, DatatroveRunner
from dataset_builder.zoo import ZooConfig, build, read_rows, to_folder
from trade_hf.files import write_text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=("tasks", "programs"), required=True)
    parser.add_argument("--models", type=int, required=True, help="how many are trained")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=ZooConfig.steps, help="of training a model at most")
    parser.add_argument(
        "--least-right", type=float, default=ZooConfig.least_right, help="share of inputs; else left out"
    )
    parser.add_argument("--out", type=Path, required=True, help="the folder of the data set; configurations share it")
    parser.add_argument("--folders", type=Path, help="also write each model as a folder, here")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--executor", choices=("pool", *NEEDS), default="pool", help="all but pool go by datatrove")
    parser.add_argument("--sbatch", nargs="+", default=[], metavar="OPTION=VALUE", help="of the jobs on Slurm")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--report", type=Path, help="also write the report, with the time taken, here")
    args = parser.parse_args()
    start = time.monotonic()
    try:
        config = ZooConfig(args.part, args.models, args.seed, args.least_right, args.steps)
        run = partial(in_processes, processes=args.processes, progress=True)
        if args.executor != "pool":
            stages = args.out / ".work" / config.name / "stages"
            sbatch = dict(option.partition("=")[::2] for option in args.sbatch)
            run = DatatroveRunner(args.executor, stages, args.processes, sbatch)
        report = build(config, args.out, run)
        if args.folders:
            for row in read_rows(args.out / config.name):
                to_folder(row, args.folders / f"{row['name']}-{row['architecture']}-{row['id'][:8]}")
        write_card(args.out)
    except (CorpusError, OSError, BrokenExecutor) as error:
        print(f"train_zoo: {error}", file=sys.stderr)
        sys.exit(2)
    seconds = time.monotonic() - start
    report |= {
        "seconds": round(seconds, 1),
        "models_an_hour": round(3600 * args.models / seconds),
        "processes": args.processes,
    }
    text = json.dumps(report, indent=2)
    if args.report:
        write_text(args.report, text + "\n")
    print(text if args.json else f"{report['rows']:,} models in {args.out / config.name}, {report['bytes']:,} bytes")


if __name__ == "__main__":
    main()
