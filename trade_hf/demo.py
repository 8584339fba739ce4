"""The demo: programs that people know and random ones, compiled by the tracr package, scrambled, then decompiled.

The known ones are tracr's own (`tracr.compiler.lib`); the random ones come from the test split, so the neural model has
not seen them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trade_hf.decompiler import Decompilation

VOCAB = (0, 1, 2, 3, 4)
MAX_SEQ_LEN = 5
RANDOM_PROGRAMS = 3


def known_programs() -> dict[str, Any]:
    """tracr's own s-ops by name."""
    from tracr.compiler import lib
    from tracr.rasp import rasp

    return {
        "length": lib.make_length(),
        "reverse": lib.make_reverse(rasp.tokens),
        "histogram": lib.make_hist(),
        "sort of distinct tokens": lib.make_sort_unique(rasp.tokens, rasp.tokens),
        "fraction of previous tokens that are 2": lib.make_frac_prevs(rasp.tokens == 2),
    }


def run_demo(
    checkpoint: Path | None = None, progress: Callable[[str], object] = str
) -> Iterator[tuple[dict[str, Any], Decompilation]]:
    """For each program a row with name, true_code and what `trade decompile --json` says of it, and the result.

    Each model is put in a random order before it is decompiled. `progress` is told what is being done.
    """
    progress("importing tracr and the decompiler")
    try:
        from tracr.compiler import compiling
    except ImportError:
        raise ImportError("the demo needs the tracr package: pip install '.[tracr]' in the repository") from None
    from dataset_builder.splits import pinned
    from trade_hf.compiled.bridge import from_tracr, to_tracr
    from trade_hf.compiled.transforms import permute
    from trade_hf.decompiler import DEFAULT_CHECKPOINT, decompile, to_weights
    from trade_hf.rasp.text import to_text

    programs = known_programs()
    for number, item in enumerate(pinned("test", RANDOM_PROGRAMS), 1):
        programs[f"random program {number} of the test split"] = to_tracr(item.sample.program)
    for number, (name, sop) in enumerate(programs.items(), 1):
        progress(f"{number} of {len(programs)}: {name}: compiling with tracr, scrambling, decompiling")
        weights = permute(to_weights(compiling.compile_rasp_to_model(sop, set(VOCAB), MAX_SEQ_LEN)), seed=number)
        result = decompile(weights, checkpoint or DEFAULT_CHECKPOINT)
        true_code = to_text(from_tracr(sop, VOCAB, MAX_SEQ_LEN).program)
        yield {"name": name, "true_code": true_code, **result.to_dict()}, result
