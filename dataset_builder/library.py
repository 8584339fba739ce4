"""Programs that nobody here wrote: the tracr package's own, for the split `library`. Needs the tracr package."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from trade_hf.rasp.functions import Value
from trade_hf.rasp.program import Program


@dataclass(frozen=True)
class LibraryProgram:
    """Somebody else's program, with the vocabulary and the length that it is to be compiled for.

    Attributes:
      program: in our terms.
      sop: the tracr s-op that it was given as; None where it was not.
      causal: whether it is to be compiled with a causal mask.
    """

    name: str
    program: Program
    vocab: tuple[Value, ...]
    max_seq_len: int
    sop: Any = None
    causal: bool = False


def library_programs() -> Iterator[LibraryProgram]:
    """The first of each kind of `tracr.compiler.test_cases`, by name."""
    from tracr.compiler import test_cases

    from trade_hf.compiled.bridge import from_tracr

    cases = {case["testcase_name"].rstrip("_0123456789"): case for case in reversed(test_cases.TEST_CASES)}
    for name, case in sorted(cases.items()):
        vocab, length = case["vocab"], case["max_seq_len"]
        program = from_tracr(case["program"], vocab, length).program
        yield LibraryProgram(name, program, tuple(sorted(vocab)), length, case["program"])
