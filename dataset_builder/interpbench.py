"""Programs that nobody here wrote: the Tracr cases of InterpBench (arXiv:2407.14494), read from a clone of its code.

    git clone https://github.com/FlyingPumba/circuits-benchmark

A case is a Python file that builds a tracr s-op and names its vocabulary, its length and whether it is to be compiled
with a causal mask. Reading them runs these files, and nothing else of the clone but what they share: of the package's
own modules, which need more than is installed here, only names are put in place. Needs the tracr package.
"""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from dataset_builder.library import LibraryProgram
from trade_hf.rasp.tables import sort_values

PACKAGE = "circuits_benchmark"
CASES = f"{PACKAGE}/benchmark/cases"


class _Case:
    """What a case inherits of `benchmark/benchmark_case.py` and `tracr_benchmark_case.py`."""

    def get_max_seq_len(self) -> int:
        return 10  # BOS counted

    def supports_causal_masking(self) -> bool:
        return True


def interpbench_programs(folder: Path) -> list[LibraryProgram]:
    """The program of each Tracr case, by number. Raises FileNotFoundError for a folder that is no clone."""
    from trade_hf.compiled.bridge import from_tracr

    files = sorted((folder / CASES).glob("case_[0-9]*.py"), key=lambda file: int(file.stem.removeprefix("case_")))
    if not files:
        raise FileNotFoundError(
            f"{folder}: expected a clone of {PACKAGE.replace('_', '-')}, found no {CASES}/case_*.py"
        )
    programs = []
    with _stand_ins(folder):
        for file in files:
            module = importlib.import_module(f"{CASES.replace('/', '.')}.{file.stem}")
            case: Any = getattr(module, file.stem.title().replace("_", ""))()
            sop, vocab, length = case.get_program(), tuple(sort_values(case.get_vocab())), case.get_max_seq_len() - 1
            program = from_tracr(sop, vocab, length).program
            programs.append(LibraryProgram(file.stem, program, vocab, length, sop, case.supports_causal_masking()))
    return programs


@contextlib.contextmanager
def _stand_ins(folder: Path) -> Iterator[None]:
    """The package's modules that cases name, without what these import; as it was before when done."""
    before = {name: module for name, module in sys.modules.items() if name.split(".")[0] == PACKAGE}
    _forget(before)
    holds: dict[str, dict[str, Any]] = {
        "": {},
        ".benchmark": {},
        ".benchmark.tracr_benchmark_case": {"TracrBenchmarkCase": _Case},
        ".transformers": {},
        ".transformers.hooked_tracr_transformer": {"HookedTracrTransformerBatchInput": list},
    }
    for name, contents in holds.items():
        module = ModuleType(PACKAGE + name)
        module.__dict__.update(contents)
        module.__path__ = [str(folder / (PACKAGE + name).replace(".", "/"))]
        sys.modules[module.__name__] = module
    try:
        yield
    finally:
        _forget(name for name in list(sys.modules) if name.split(".")[0] == PACKAGE)
        sys.modules.update(before)


def _forget(names: Iterable[str]) -> None:
    for name in list(names):
        del sys.modules[name]
