"""Run the notebooks of examples/ from top to bottom, each in a process of its own, and store what their cells show.

Run: python scripts/run_notebooks.py            (all of them; or names of files)
     python scripts/run_notebooks.py --check    (stores nothing; fails where a cell fails or prints something else)
As a kernel does it: cells share one namespace, and what a cell's last expression gives is shown.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import io
import json
import multiprocessing
import sys
import warnings
from pathlib import Path
from typing import Any

from trade_hf.files import write_text

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("notebooks", nargs="*", type=Path, help="(default: all of examples/)")
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args()
    for path in args.notebooks or sorted(EXAMPLES.glob("*.ipynb")):
        book = json.loads(path.read_text(encoding="utf-8"))
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            executed = pool.apply(run, (book,))
        if args.check and (different := differences(book, executed)):
            sys.exit(f"{path.name}: other outputs than are stored in {', '.join(different)}")
        if not args.check:
            write_text(path, json.dumps(executed, indent=1, ensure_ascii=False) + "\n")
        print(f"{path.name}: done")


def run(book: dict[str, Any]) -> dict[str, Any]:
    """A notebook with the outputs of its cells. Raises what a cell raises."""
    warnings.simplefilter("ignore")
    names: dict[str, Any] = {"__name__": "__main__"}
    cells = []
    for cell in book["cells"]:
        if cell["cell_type"] == "code":
            number = sum(other["cell_type"] == "code" for other in cells) + 1
            cell = {**cell, "execution_count": number, "outputs": outputs("".join(cell["source"]), names, number)}
        cells.append(cell)
    return {**book, "cells": cells}


def outputs(source: str, names: dict[str, Any], number: int) -> list[dict[str, Any]]:
    """What a cell prints, and what its last expression shows."""
    body = ast.parse(source).body
    last = body.pop() if body and isinstance(body[-1], ast.Expr) else None
    value = None
    with contextlib.redirect_stdout(io.StringIO()) as said, contextlib.redirect_stderr(io.StringIO()):
        exec(compile(ast.Module(body, []), f"cell {number}", "exec"), names)
        if isinstance(last, ast.Expr):
            value = eval(compile(ast.Expression(last.value), f"cell {number}", "eval"), names)
    shown: list[dict[str, Any]] = []
    if text := said.getvalue():
        shown.append({"output_type": "stream", "name": "stdout", "text": text.splitlines(keepends=True)})
    if value is not None:
        data = {"text/plain": [repr(value)]}
        shown.append({"output_type": "execute_result", "execution_count": number, "metadata": {}, "data": data})
    return shown


def differences(stored: dict[str, Any], executed: dict[str, Any]) -> list[str]:
    """Ids of the cells with other outputs."""
    pairs = zip(stored["cells"], executed["cells"], strict=True)
    return [one["id"] for one, other in pairs if one.get("outputs") != other.get("outputs")]


if __name__ == "__main__":
    main()
