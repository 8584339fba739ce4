"""A checkpoint as it goes to the Hub: with the code that runs it where trade-hf is not installed.

transformers loads code from a model's repository (`trust_remote_code=True`) as one flat folder whose files import each
other as siblings (`dynamic_module_utils.py`). So the modules that loading, the pipeline and verified decoding need are
written out flat, `trade_hf/rasp/text.py` as `rasp_text.py`, with their imports of each other made relative and nothing
else changed. An import inside `try` is optional: what it names stays behind.
"""

from __future__ import annotations

import ast
import functools
import shutil
from collections.abc import Iterable
from pathlib import Path

from trade_hf.decompiler import check_checkpoint
from trade_hf.with_code import add_code

PACKAGE = Path(__file__).parent
PIPELINE = "trade_hf.pipeline_rasp_decompilation"
ENTRIES = ("trade_hf.configuration_trade", "trade_hf.modeling_trade", "trade_hf.processing_trade", PIPELINE)


def export(checkpoint: Path, folder: Path) -> list[Path]:
    """Write a checkpoint's files and the code into a folder that can be pushed; gives the files.

    Raises FileNotFoundError where there is no checkpoint.
    """
    shutil.copytree(check_checkpoint(checkpoint), folder, dirs_exist_ok=True)
    add_code(folder, None)
    return sorted(path for path in folder.rglob("*") if path.is_file())


def write_code(folder: Path) -> None:
    """Put the modules, the handler for Inference Endpoints and its requirements into a folder."""
    for name, text in remote_code().items():
        (folder / name).write_text(text, encoding="utf-8")
    shutil.copy(PACKAGE / "handler.py", folder)
    shutil.copy(PACKAGE / "assets" / "requirements.txt", folder)


@functools.cache
def remote_code() -> dict[str, str]:
    """The text of each module that is needed, by its file's name in the flat folder."""
    needed = _closure(ENTRIES)
    return {f"{_flat(module)}.py": _rewritten(module, needed) for module in sorted(needed)}


def _closure(entries: Iterable[str]) -> set[str]:
    found: set[str] = set()
    waiting = list(entries)
    while waiting:
        module = waiting.pop()
        if module not in found:
            found.add(module)
            waiting += [node.module for node in _imports(module) if node.module]
    return found


def _rewritten(module: str, needed: set[str]) -> str:
    lines = _source(module).splitlines(keepends=True)
    for node in _imports(module):
        if node.module in needed:
            line = lines[node.lineno - 1]
            lines[node.lineno - 1] = line.replace(f"from {node.module} import", f"from .{_flat(node.module)} import")
    return "".join(lines)


def _imports(module: str) -> list[ast.ImportFrom]:
    """All `from trade_hf.x import y` of a module but those inside `try`."""
    found, waiting = [], list[ast.AST]([ast.parse(_source(module))])
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Try):
            continue
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("trade_hf."):
            found.append(node)
        waiting += ast.iter_child_nodes(node)
    return found


def _flat(module: str) -> str:
    return module.removeprefix("trade_hf.").replace(".", "_")


def _source(module: str) -> str:
    return (PACKAGE / f"{module.removeprefix('trade_hf.').replace('.', '/')}.py").read_text(encoding="utf-8")
