"""Build a configuration of the corpus as Parquet files with a dataset card.

Run: python scripts/build_dataset.py --config small --out corpus
     python scripts/build_dataset.py --config base --out corpus --processes 2 --json --report results/corpus-base.json
     python scripts/build_dataset.py --config base --out corpus --executor slurm --processes 99 --sbatch partition=cpu
Then: load_dataset("corpus", "small", split="train")
A build that was killed goes on when it is started again, and ends with the same files.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
import time
from concurrent.futures import BrokenExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from dataset_builder.card import write_card
from dataset_builder.corpus import CONFIGS, CorpusError, build
from dataset_builder.scale_out import NEEDS, DatatroveRunner
from trade_hf.files import write_text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", choices=sorted(CONFIGS), default="small")
    parser.add_argument("--out", type=Path, required=True, help="the folder of the data set; configurations share it")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1, help="of all machines together")
    parser.add_argument("--executor", choices=("pool", *NEEDS), default="pool", help="all but pool go by datatrove")
    parser.add_argument("--sbatch", nargs="+", default=[], metavar="OPTION=VALUE", help="of the jobs on Slurm")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--report", type=Path, help="also write the report, with the time taken, here")
    args = parser.parse_args()
    start, begun = time.monotonic(), (args.out / ".work" / args.config).exists() or (args.out / args.config).exists()
    try:
        if args.report:
            args.report.parent.mkdir(parents=True, exist_ok=True)
        run = None
        if args.executor != "pool":
            stages = args.out / ".work" / args.config / "stages"
            sbatch = dict(option.partition("=")[::2] for option in args.sbatch)
            run = DatatroveRunner(args.executor, stages, args.processes, sbatch)
        report = build(CONFIGS[args.config], args.out, args.processes, run=run)
        write_card(args.out)
    except (CorpusError, OSError, BrokenExecutor) as error:
        print(f"build_dataset: {error}", file=sys.stderr)
        sys.exit(2)
    peak = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    report |= {
        "peak_mb": round(peak / 1024),
        "processes": args.processes,
        "seconds": round(time.monotonic() - start, 1),
        "was_begun_before": begun,
    }
    text = json.dumps(report, indent=2)
    if args.report:
        write_text(args.report, text + "\n")
    print(text if args.json else f"{report['rows']:,} rows in {args.out / args.config}, {report['bytes']:,} bytes")


if __name__ == "__main__":
    main()
