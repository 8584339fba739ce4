"""Files that appear whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any


def write_whole(target: Path, write: Callable[[Path], Any]) -> None:
    """What `write` puts into the path that it is given appears at `target` once it is complete.

    A link is followed; a pipe, or what lies under `/dev`, as `/dev/stdout`, is written to as it is. An OSError names
    `target`.
    """
    if target.is_relative_to("/dev") or target.is_fifo():
        write(target)
        return
    target = target.resolve()
    partial = target.with_name(f".{target.name[:200]}.{os.getpid()}.partial")
    try:
        write(partial)
        if target.is_file():
            partial.chmod(target.stat().st_mode)
        partial.replace(target)
    except OSError as error:
        if error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, str(target)) from error
    finally:
        partial.unlink(missing_ok=True)


def write_text(target: Path, text: str) -> None:
    """The same of a text, in UTF-8."""
    write_whole(target, lambda path: path.write_text(text, encoding="utf-8"))


def read_start(path: Path, most: int) -> bytes:
    """The first bytes of a file, a pipe or a device, `most` of them at most."""
    with path.open("rb") as stream:
        return stream.read(most)
