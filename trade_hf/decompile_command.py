"""`trade decompile MODEL`: a model's program, with its verdict in front, printed for people or as JSON."""

from __future__ import annotations

import json
import sys
from argparse import ArgumentParser, Namespace
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trade_hf.arguments import add_known, check_output, read_model, seconds
from trade_hf.files import write_text
from trade_hf.terminal import code_in_colour, exit_status, headline, places, say, without_repetition
from trade_hf.trained.command import add_options, decompile_folder

if TYPE_CHECKING:
    from trade_hf.compiled.weights import TracrWeights
    from trade_hf.decompiler import Decompilation
    from trade_hf.provenance import LineOrigin
    from trade_hf.rasp.program import Program

    Origins = list[tuple[LineOrigin, bool]]  # where each line is, and whether ablation confirms it


def add_decompile(parser: ArgumentParser) -> None:
    """Adds what `trade decompile` takes."""
    parser.add_argument("file", type=Path, help="a compiled model's safetensors file, or the folder of a trained one")
    parser.add_argument("--checkpoint", type=Path, help="the neural model (default: the one that ships)")
    parser.add_argument("--time-limit", type=seconds, metavar="SECONDS", help="of the search (default: none)")
    parser.add_argument("--report", type=Path, metavar="FILE", help="write a page about program and model, as HTML")
    parser.add_argument("--figure", type=Path, metavar="FILE", help="draw where in the model each line is, as SVG")
    add_known(parser)
    add_options(parser)


def decompile_file(args: Namespace) -> int:
    """Runs `trade decompile`; returns the exit status."""
    check_output(args.report, ".html", ".htm")
    check_output(args.figure, ".svg")
    check_output(args.save_program, ".py")
    if args.file.is_dir():
        return decompile_folder(args)
    weights = read_model(args.file, args)
    from trade_hf.decompiler import DEFAULT_CHECKPOINT, decompile  # takes seconds, so bad input is answered before

    result = decompile(weights, args.checkpoint or DEFAULT_CHECKPOINT, budget_seconds=args.time_limit)
    origins = _origins(result.program, weights)
    if args.json:
        lines = _lines(result.code, origins)
        row = {**result.to_dict(), "seconds": round(result.seconds, 4), "source": result.source.value, "lines": lines}
        print(json.dumps(row, indent=2))
    else:
        _show(result, origins)
    sys.stdout.flush()
    if args.report:
        _write_report(args, result, weights, origins)
    if args.figure:
        _write_figure(args.figure, result.program, weights, origins)
    return exit_status(result.status)


def _show(result: Decompilation, origins: Origins | None) -> None:
    """Prints the verdict, the code, and where each line is."""
    is_known = result.verdict.is_verified
    print(headline(result.verdict, mark="# "))
    print(f"# {result.source.value}; candidate {result.chosen + 1} of {result.candidates}, {result.seconds:.2g} s\n")
    print(code_in_colour(result.code if is_known else without_repetition(result.code)), end="")
    if origins is not None:
        print(f"\n{places([(row['name'], row['where']) for row in _lines(result.code, origins)])}")


def _origins(program: Program, weights: TracrWeights) -> Origins | None:
    """Where in the model each line is, and whether ablation confirms it; None where the model's parts are not those of
    the program."""
    from trade_hf.provenance import confirm, provenance

    try:
        origins = provenance(program, weights)
        return list(zip(origins, confirm(program, weights, origins), strict=True))
    except ValueError:
        return None


def _lines(code: str, origins: Origins | None) -> list[dict[str, Any]]:
    """For JSON: the name and the code of each line of a program, and its place in the model where that is known."""
    rows: list[dict[str, Any]] = []
    for name, _, text in (line.partition(" = ") for line in code.splitlines() if line.startswith("v")):
        text = text.removesuffix(f'.named("{name}")')
        rows.append({"name": name, "code": text, "where": None, "components": [], "confirmed": False})
    for origin, is_confirmed in origins or ():
        where = str(origin) + ("" if is_confirmed else " (not confirmed by ablation)")
        components = [asdict(part) for part in origin.components]
        rows[origin.line] |= {"where": where, "components": components, "confirmed": is_confirmed}
    return rows


def _write_report(args: Namespace, result: Decompilation, weights: TracrWeights, origins: Origins | None) -> None:
    from trade_hf.report.page import report

    text = report(result, weights, args.file.name, [origin for origin, _ in origins or ()])
    write_text(args.report, text)
    say(f"{args.report}: written, a page to open in a browser")


def _write_figure(path: Path, program: Program, weights: TracrWeights, origins: Origins | None) -> None:
    from trade_hf.drawing import draw_layers

    if origins is None:
        say(f"{path}: not drawn: the model's parts are not those of the program that was found")
        return
    write_text(path, draw_layers(program, weights, [origin for origin, _ in origins]))
    say(f"{path}: written, a drawing of program and layers")
