"""Methods that a decompiler has to beat."""

from __future__ import annotations

import functools
import os
from collections import Counter
from itertools import islice
from pathlib import Path

from dataset_builder.splits import stream
from trade_hf.compiled.weights import TracrWeights
from trade_hf.methods import greedy_code
from trade_hf.rasp.program import Program, Type
from trade_hf.rasp.text import to_text

SEEN = 5_000  # programs of the training stream


def paper(weights: TracrWeights) -> str | None:
    """The model of arXiv:2410.00061, which reads flattened weights, as scripts/configs/paper.yaml trains it: its greedy
    program. It does not ship: TRADE_BASELINE names its folder."""
    return greedy_code(weights, Path(os.environ.get("TRADE_BASELINE", "runs/paper/final")))


def most_common(weights: TracrWeights) -> str:
    """The most frequent program of the training stream with the model's kind of output, whatever the weights."""
    return to_text(_most_common()[weights.output_values is None])


@functools.cache
def _most_common() -> dict[bool, Program]:
    """By whether the output is numerical; of equally frequent ones the first."""
    counts = Counter(item.sample.program for item in islice(stream("train", "most-common"), SEEN))
    ranked = [program for program, _ in counts.most_common()]
    return {
        numerical: next(p for p in ranked if (p.lines[-1].op.result is Type.NUMERICAL) == numerical)
        for numerical in (False, True)
    }
