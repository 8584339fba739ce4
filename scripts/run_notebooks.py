"""Run the notebooks of examples/ from top to bottom, each in a kernel of its own, and store what their cells show.

Run: python scripts/run_notebooks.py            (all of them; or names of files)
     python scripts/run_notebooks.py --check    (stores nothing; fails where a cell fails or shows something else)
What is printed to stderr, such as progress bars and warnings, is left out.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from nbformat import NotebookNode

from trade_hf.files import write_text

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
SECONDS = 300  # for one cell


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("notebooks", nargs="*", type=Path, help="(default: all of examples/)")
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args()
    for path in args.notebooks or sorted(EXAMPLES.glob("*.ipynb")):
        stored = nbformat.read(path, as_version=4)
        try:
            executed = run(stored)
        except CellExecutionError as error:
            sys.exit(f"{path.name}: {error}")
        if args.check and (different := differences(stored, executed)):
            sys.exit(f"{path.name}: other outputs than are stored in {', '.join(different)}")
        if not args.check:
            write_text(path, nbformat.writes(executed) + "\n")
        print(f"{path.name}: done")


def run(book: NotebookNode) -> NotebookNode:
    """A copy with the outputs of its cells. Raises CellExecutionError where a cell fails."""
    executed = nbformat.from_dict(book)
    environment = os.environ | {"PYTHONWARNINGS": "ignore"}
    client = NotebookClient(executed, timeout=SECONDS, kernel_name="python3", record_timing=False)
    client.create_kernel_manager().transport = "ipc"  # a port of this machine would be open to all of its users
    client.execute(env=environment, cwd=str(EXAMPLES.parent))
    for cell in code_cells(executed):
        cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
    executed.metadata.pop("language_info", None)  # it names the very version of Python
    return executed


def code_cells(book: NotebookNode) -> list[NotebookNode]:
    return [cell for cell in book.cells if cell.cell_type == "code"]


def differences(stored: NotebookNode, executed: NotebookNode) -> list[str]:
    """Ids of the cells with other outputs."""
    pairs = zip(code_cells(stored), code_cells(executed), strict=True)
    return [one.id for one, other in pairs if one.outputs != other.outputs]


if __name__ == "__main__":
    main()
