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

from trade_hf.arguments import UsageError, check_output, seconds
from trade_hf.files import write_text
from trade_hf.terminal import NOT_PROVEN, code_in_colour, exit_status, say, verdict_line

if TYPE_CHECKING:
    from trade_hf.trained.decompilation import TrainedDecompilation
    from trade_hf.trained.domain import Domain

CLEARED = "\r\x1b[K"  # to the start of a terminal's line, which is emptied


def add_options(parser: ArgumentParser) -> None:
    """Adds what `trade decompile` takes for a trained model."""
    group = parser.add_argument_group("trained models (a folder with model.safetensors, config.json, domain.json)")
    group.add_argument("--domain", type=Path, metavar="FILE", help="inputs and answers (default: FOLDER/domain.json)")
    group.add_argument("--seconds", type=seconds, metavar="SECONDS", help="of CPU time, of the search (default 60)")
    group.add_argument("--resume", type=Path, metavar="FILE", help="keep the best so far here, and go on from there")
    group.add_argument("--save-program", type=Path, metavar="FILE", help="write the program as Python for tracr")
    group.add_argument("--quiet", action="store_true", help="no progress on standard error")


def decompile_folder(args: Namespace) -> int:
    """Runs `trade decompile FOLDER`; returns the exit status: 0 proven, 1 refuted, 3 neither.

    Raises UsageError, before the work begins, for a folder or a file that is not there or cannot be written.
    """
    domain = _checked(args)
    from trade_hf.trained.decompilation import decompile_trained  # takes seconds, so bad input is answered before
    from trade_hf.trained.synthesis import SECONDS
    from trade_hf.trained.transformer import Transformer

    model, progress = Transformer.load(args.file), None if args.quiet else _progress()
    result = decompile_trained(model, domain, args.seconds or SECONDS, progress=progress, resume=args.resume)
    if progress and sys.stderr.isatty():
        print(CLEARED, end="", file=sys.stderr, flush=True)
    if args.json:
        print(json.dumps(result.to_dict(), indent=2))
    else:
        _show(result)
    sys.stdout.flush()
    if args.report:
        from trade_hf.report.trained import report

        write_text(args.report, report(result, model, domain, args.file.resolve().name))
        say(f"{args.report}: written, a page to open in a browser")
    if args.save_program:
        write_text(args.save_program, result.code)
        say(f"{args.save_program}: written, a program for tracr")
    return exit_status(result.status) or (0 if result.is_proven else NOT_PROVEN)  # equal, but no shorter than a table


def _checked(args: Namespace) -> Domain:
    """The inputs of a folder's model, once all paths are checked."""
    wanted = ["model.safetensors", "config.json"] + ([] if args.domain else ["domain.json"])
    if missing := [name for name in wanted if not (args.file / name).is_file()]:
        expected = "expected a compiled model's file, or the folder of a trained model"
        raise UsageError(f"{args.file}: {expected}, got a folder without {missing[0]}")
    if args.figure:
        raise UsageError("--figure: expected a compiled model, got the folder of a trained one; --report draws it")
    check_output(args.resume)
    from trade_hf.trained.domain import Domain

    return Domain.load(args.domain or args.file / "domain.json")


def _show(result: TrainedDecompilation) -> None:
    """Prints the verdict, the code, and where each line is."""
    print(verdict_line(result.certificate, result.status, result.is_proven, mark="# "))
    print(f"# {result.seconds:.2g} s\n")
    print(code_in_colour(result.code), end="")
    if result.mechanism:
        print(f"\n{result.places}")


def _progress() -> Callable[[str], None]:
    """Shows a line of text with the time: on a terminal in the last one's place."""
    start, is_terminal = time.monotonic(), sys.stderr.isatty()

    def show(text: str) -> None:
        line = f"{time.monotonic() - start:6.1f} s  {text}"
        if is_terminal:
            line = f"{CLEARED}{line[: shutil.get_terminal_size().columns - 1]}"
        print(line, end="" if is_terminal else "\n", file=sys.stderr, flush=True)

    return show
