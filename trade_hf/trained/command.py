"""`trade decompile FOLDER`: a trained model's program, printed for people or as JSON."""

from __future__ import annotations

import json
import shutil
import sys
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from trade_hf.files import write_text
from trade_hf.terminal import NOT_PROVEN, exit_status

if TYPE_CHECKING:
    from trade_hf.trained.decompilation import TrainedDecompilation

CLEARED = "\r\x1b[K"  # to the start of a terminal's line, which is emptied


def add_options(parser: ArgumentParser) -> None:
    """Adds what `trade decompile` takes for a trained model."""
    group = parser.add_argument_group("trained models (a folder with model.safetensors, config.json, domain.json)")
    group.add_argument("--domain", type=Path, metavar="FILE", help="inputs and answers (default: FOLDER/domain.json)")
    group.add_argument("--seconds", type=float, default=None, help="of CPU time, of the search (default 60)")
    group.add_argument("--resume", type=Path, metavar="FILE", help="keep the best so far here, and go on from there")
    group.add_argument("--save-program", type=Path, metavar="FILE", help="write the program as Python for tracr")
    group.add_argument("--quiet", action="store_true", help="no progress on standard error")


def decompile_folder(args: Namespace) -> int:
    """Runs `trade decompile FOLDER`; returns the exit status: 0 proven, 1 refuted, 3 neither."""
    from trade_hf.trained.decompilation import decompile_trained
    from trade_hf.trained.synthesis import SECONDS

    wanted = ["model.safetensors", "config.json"] + ([] if args.domain else ["domain.json"])
    if missing := [name for name in wanted if not (args.file / name).is_file()]:
        told = "expected a compiled model's file, or the folder of a trained model"
        raise ValueError(f"{args.file}: {told}, got a folder without {missing[0]}")
    if args.figure:
        raise ValueError("--figure: expected a compiled model, got the folder of a trained one; --report draws it")
    seconds = SECONDS if args.seconds is None else args.seconds
    if not 0 < seconds <= 86_400:
        raise ValueError(f"--seconds: expected seconds above 0, got {seconds}")
    progress = None if args.quiet else _progress()
    result = decompile_trained(args.file, args.domain, seconds, progress=progress, resume=args.resume)
    if progress and sys.stderr.isatty():
        print(CLEARED, end="", file=sys.stderr, flush=True)
    print(json.dumps(result.to_dict(), indent=2) if args.json else str(result).rstrip("\n"))
    if args.report:
        _write_report(args, result)
    if args.save_program:
        write_text(args.save_program, result.code)
    return exit_status(result.status) or (0 if result.is_proven else NOT_PROVEN)  # equal, but no shorter than a table


def _write_report(args: Namespace, result: TrainedDecompilation) -> None:
    from trade_hf.report.trained import report
    from trade_hf.trained.domain import Domain
    from trade_hf.trained.transformer import Transformer

    domain = Domain.load(args.domain or args.file / "domain.json")
    write_text(args.report, report(result, Transformer.load(args.file), domain, args.file.resolve().name))


def _progress() -> Callable[[str], None]:
    """Shows a line of text with the time: on a terminal in the last one's place."""
    start, is_terminal = time.monotonic(), sys.stderr.isatty()

    def show(text: str) -> None:
        line = f"{time.monotonic() - start:6.1f} s  {text}"
        if is_terminal:
            line = f"{CLEARED}{line[: shutil.get_terminal_size().columns - 1]}"
        print(line, end="" if is_terminal else "\n", file=sys.stderr, flush=True)

    return show
