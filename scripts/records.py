"""What a study measures is kept row by row, so that one that was killed goes on from there."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

from trade_hf.files import write_text


def kept_rows(progress: Path | None, what: str) -> list[dict[str, Any]]:
    """The rows that a run of the same kind left, without what a kill cut off; the file is made to hold just these."""
    if progress is None:
        return []
    kept = progress.read_text() if progress.exists() else ""
    rows = [json.loads(line) for line in kept[: kept.rfind("\n") + 1].splitlines()]
    rows = [row for row in rows if row["of"] == what]
    write_text(progress, "".join(json.dumps(row) + "\n" for row in rows))
    return rows


def keep_row(progress: Path | None, row: dict[str, Any]) -> None:
    if progress:
        with progress.open("a") as file:
            file.write(json.dumps(row) + "\n")


def commit() -> str | None:
    """Of the code; with a plus sign if it was changed since, None outside of a clone."""
    git = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--abbrev=12", "--dirty=+", "--exclude=*"]
    found = subprocess.run(git, capture_output=True, text=True, check=False)
    return found.stdout.strip() or None
