"""Learning curves of the network that ships and of the paper's, and what they say of more compute.

Both are of `results/training-*.jsonl`, as scripts/train.py logs them, on validation programs.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np


@dataclass(frozen=True)
class Run:
    """The lines of its programs, and the examples of a step."""

    lines: str
    batch: int = 32


OURS = {  # one run after the other, each from the last one's weights
    "training-cpu": Run("3 to 8 lines"),
    "training-cpu-2": Run("3 to 10 lines"),
    "training-cpu-3": Run("3 to 10 lines"),
}
NEXT = OURS | {  # go on from the weights that ship
    "training-muon": Run("3 to 10 lines", 64),
    "training-muon-2": Run("3 to 10 lines", 96),
    "training-muon-3": Run("3 to 10 lines", 96),  # 500 steps, which the next goes on from
    "training-muon-4": Run("3 to 10 lines", 96),
}
ONCE = OURS | {"training-once": Run("3 to 10 lines", 96)}  # from the weights that ship, in one go
PAPER = {"training-paper": Run("3 to 10 lines")}
LONG_EXACT = "eval_long_free_running_exact"
STEADY = 5000  # steps of the first run in which its learning rate was above 0.4 of the highest


@dataclass(frozen=True)
class Point:
    """One evaluation: `examples` were seen in all, `step` is of the run; `long`: the share of exact programs among
    those longer than any in training, where that was measured."""

    run: str
    lines: str
    step: int
    examples: int
    loss: float
    exact: float
    long: float | None = None


def curve(runs: dict[str, Run], results: Path) -> list[Point]:
    """The evaluations of runs that followed each other."""
    points: list[Point] = []
    before = 0
    for name, run in runs.items():
        rows = [json.loads(line) for line in (results / f"{name}.jsonl").read_text().splitlines()]
        long = {row["step"]: row[LONG_EXACT] for row in rows if LONG_EXACT in row}
        for row in rows:
            if "eval_loss" in row:
                step, exact = row["step"], row["eval_free_running_exact"]
                examples = before + run.batch * step
                points.append(Point(name, run.lines, step, examples, row["eval_loss"], exact, long.get(step)))
        before += run.batch * max(row["step"] for row in rows)
    return points


@dataclass(frozen=True)
class Forecast:
    """What is to be expected of more examples, if the loss goes on as a power of their number.

    The loss falls as examples ** -slope, fitted to the first run as long as its learning rate was high; it starts from
    the last evaluation. The logarithm of the share of exact programs goes with the loss, as if each program were so
    many decisions. `shipped` are the examples that the checkpoint which ships has seen.
    """

    slope: float
    last: Point
    shipped: int

    def loss(self, examples: np.ndarray | float) -> np.ndarray | float:
        return self.last.loss * (self.last.examples / examples) ** self.slope

    def exact(self, examples: np.ndarray | float) -> np.ndarray | float:
        return self.last.exact ** (self.loss(examples) / self.last.loss)

    def long(self, examples: np.ndarray | float) -> np.ndarray | float:
        """Of programs longer than any in training."""
        assert self.last.long
        return self.last.long ** (self.loss(examples) / self.last.loss)

    def examples(self, exact: float) -> float:
        """How many it takes for a share of exact programs."""
        return self.last.examples * (math.log(self.last.exact) / math.log(exact)) ** (1 / self.slope)


def forecast(results: Path) -> Forecast:
    points = curve(NEXT, results)
    steady = [point for point in points if point.run == points[0].run and point.step <= STEADY]
    logs = np.log([[point.examples, point.loss] for point in steady])
    shipped = max(point.examples for point in points if point.run in OURS)
    return Forecast(-float(np.polyfit(*logs.T, 1)[0]), points[-1], shipped)
