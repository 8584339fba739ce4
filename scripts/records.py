"""What a study measures is kept row by row, so that one that was killed goes on from there."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import platform
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from trade_hf.files import write_text

ROOT = Path(__file__).resolve().parent.parent
CODE = ("trade_hf", "dataset_builder", "scripts")


def kept_rows(progress: Path | None, what: str) -> list[dict[str, Any]]:
    """The rows that a run of the same kind left, without what a kill cut off; the file is made to hold just these."""
    if progress is None:
        return []
    kept = progress.read_text() if progress.exists() else ""
    rows = [json.loads(line) for line in kept[: kept.rfind("\n") + 1].splitlines()]
    rows = [row for row in rows if row.get("of") == what]
    write_text(progress, "".join(json.dumps(row) + "\n" for row in rows))
    return rows


def keep_row(progress: Path | None, row: dict[str, Any]) -> None:
    if progress:
        with progress.open("a") as file:
            file.write(json.dumps(row) + "\n")


@functools.cache
def code() -> str:
    """A hash of all that may decide what is measured; of the code as it was when this was asked first."""
    paths = sorted(path for folder in CODE for path in (ROOT / folder).rglob("*.py"))
    return hash_of(paths)[:12]


def hash_of(paths: Iterable[Path]) -> str:
    """Of what files hold, one after the other."""
    return hashlib.sha256(b"".join(path.read_bytes() for path in paths)).hexdigest()


@functools.cache
def commit() -> str | None:
    """Of the code; with a plus sign if it was changed since, None outside of a clone."""
    head = _git("rev-parse", "--short=12", "HEAD")
    return head and head + "+" * bool(_git("status", "--porcelain", "--", *CODE))


def environment(device: torch.device | str = "cpu") -> dict[str, Any]:
    """The code, its libraries and the machine: what a measurement or a training run hangs on beside its settings."""
    device = torch.device(device)
    return {
        "commit": commit(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "processors": os.cpu_count(),
        "threads": torch.get_num_threads(),
    }


def _git(*arguments: str) -> str | None:
    """What git prints; None where it fails, as outside of a clone."""
    found = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=False)
    return None if found.returncode else found.stdout.strip()
