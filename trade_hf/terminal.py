"""What the command line shows people: the verdict first, then the code, in colour where there is a terminal."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from itertools import groupby
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    from trade_hf.verification import Status, Verdict

NOT_PROVEN = 3  # exit status
GREEN, RED, YELLOW = 32, 31, 33
ALIKE = 3  # lines in a row that are the same up to names, of a program that is not proven, before they are cut
WIDEST = 300  # characters of a line of such a program
_NAMES = re.compile(r"\bv\d+\b")


def is_coloured(stream: IO[str]) -> bool:
    """Whether to write colours: to a terminal that has them, unless NO_COLOR is set (https://no-color.org)."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def headline(verdict: Verdict, stream: IO[str] | None = None, mark: str = "") -> str:
    """The verdict in a line, with a plain word in front, in its colour where the stream has colours."""
    return verdict_line(str(verdict), verdict.status, verdict.is_verified, stream, mark)


def verdict_line(words: str, status: Status, is_proven: bool, stream: IO[str] | None = None, mark: str = "") -> str:
    """`words` with a plain word for the status in front, in its colour where the stream has colours."""
    from trade_hf.verification import Status

    if is_proven:
        word, colour = "PROVEN", GREEN
    elif status is Status.REFUTED:
        word, colour = "NOT THE MODEL'S PROGRAM", RED
    else:
        word, colour = "NOT PROVEN", YELLOW
    line = f"{mark}{word}: {words}"
    return f"\033[1;{colour}m{line}\033[0m" if is_coloured(stream or sys.stdout) else line


def code_in_colour(code: str, stream: IO[str] | None = None) -> str:
    """Python, in colours where the stream has them."""
    if not is_coloured(stream or sys.stdout):
        return code
    from pygments import highlight
    from pygments.formatters import TerminalFormatter
    from pygments.lexers import PythonLexer

    return highlight(code, PythonLexer(), TerminalFormatter())


def without_repetition(code: str) -> str:
    """The code of a program that is not proven, to look at: of lines in a row that differ in names alone the first, and
    how many follow; long lines cut."""
    shown: list[str] = []
    for _, group in groupby(code.splitlines(), lambda line: _NAMES.sub("v", line)):
        lines = list(group)
        if len(lines) > ALIKE:
            lines = [lines[0], f"# … {len(lines) - 1} more lines like this one"]
        shown += [line if len(line) <= WIDEST else f"{line[:WIDEST]} … # {len(line):,} characters" for line in lines]
    return "\n".join(shown) + "\n"


def indented(code: str) -> str:
    """The lines of a program without its import, indented."""
    lines = [line for line in code.strip().splitlines() if line and not line.startswith("from ")]
    return "\n".join(f"    {line}" for line in lines)


def places(rows: Sequence[tuple[str, str | None]]) -> str:
    """Comments that say where each line is."""
    width = max((len(name) for name, _ in rows), default=0)
    return "\n".join(f"# {name:<{width}}  {where or 'no part of its own'}" for name, where in rows)


def say(text: str) -> None:
    """Prints a line beside the result, on standard error."""
    print(f"trade: {text}", file=sys.stderr, flush=True)


def exit_status(status: Status) -> int:
    """0 for what is proven, 1 for what is refuted, 3 for what is neither."""
    from trade_hf.verification import PROVEN, Status

    return 0 if status in PROVEN else 1 if status is Status.REFUTED else NOT_PROVEN
