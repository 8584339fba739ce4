"""Programs that compiled weights may have come from, without the network, the likeliest first.

Those that are read from the weights (`circuit/lifting.py`): where weights are as Tracr makes them, the first of them
is right nearly always. What the network finds is in `search.py`.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum

from trade_hf.circuit.lifting import lift
from trade_hf.compiled.weights import TracrWeights
from trade_hf.limits import Limits
from trade_hf.rasp.canonical import Structure, name_functions, name_unmerged
from trade_hf.rasp.program import Program

Unread = Counter[str]  # how many programs could not be read from the weights, by the reason
# What weights that are not as Tracr makes them raise where they are read as such.
UNREADABLE = (ValueError, ArithmeticError, LookupError)
MAX_LIFTED = 24  # programs read from the weights that are tried


class Source(Enum):
    """Where a program comes from."""

    WRITTEN = "written by the neural model"
    FUNCTIONS_READ = "operations and arguments by the neural model, functions read from the weights"
    LIFTED = "read from the weights"


@dataclass(frozen=True)
class Candidate:
    """A proposed program, in canonical terms.

    Attributes:
      score: the log-likelihood that the neural model gives it, functions without a token left out; where functions were
        read, that of the program that it wrote; NaN where it was not asked.
    """

    program: Program
    score: float = math.nan
    source: Source = Source.LIFTED


def lifted_programs(
    weights: TracrWeights, limits: Limits | None = None, unread: Unread | None = None
) -> Iterator[Program]:
    """Programs that are read from the weights, without the network. Raises LimitError as `lift`."""
    yield from named(itertools.islice(lift(weights, limits), MAX_LIFTED), unread)


def named(structures: Iterator[Structure], unread: Unread | None = None) -> Iterator[Program]:
    """With functions. One that weights cannot have been compiled from, which may show in reading it or in looking for
    names, costs no other: the reason is counted. Before one with tables comes one without: in a compressed model,
    values that no reader tells apart may be one."""
    while True:
        try:
            structure = next(structures)
            program = name_functions(structure)
            unmerged = name_unmerged(structure) if _has_tables(program) else None
        except StopIteration:
            return
        except UNREADABLE as error:
            if unread is not None:
                unread[f"{type(error).__name__}: {error}"] += 1
            continue
        if unmerged is not None:
            yield unmerged
        yield program


def _has_tables(program: Program) -> bool:
    return any(line.function is not None and line.function.table is not None for line in program.lines)
