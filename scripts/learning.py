"""Learning curves of the network that ships and of the paper's, and what they say of more compute.

Both are of `results/training-*.jsonl`, as scripts/train.py logs them, on validation programs.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

EXAMPLES_A_STEP = 32  # in each of these runs
OURS = {  # one run after the other, each from the last one's weights; the lines of its programs
    "training-cpu": "3 to 8 lines",
    "training-cpu-2": "3 to 10 lines",
    "training-cpu-3": "3 to 10 lines",
}
PAPER = {"training-paper": "3 to 10 lines"}
STEADY = 5000  # steps of the first run in which its learning rate was not yet below half of the highest


@dataclass(frozen=True)
class Point:
    """One evaluation: `examples` were seen in all, `step` is of the run."""

    run: str
    lines: str
    step: int
    examples: int
    loss: float
    exact: float


def curve(runs: dict[str, str], results: Path) -> list[Point]:
    """The evaluations of runs that followed each other."""
    points: list[Point] = []
    before = 0
    for name, lines in runs.items():
        rows = [json.loads(line) for line in (results / f"{name}.jsonl").read_text().splitlines()]
        points += [
            Point(
                name,
                lines,
                row["step"],
                before + EXAMPLES_A_STEP * row["step"],
                row["eval_loss"],
                row["eval_free_running_exact"],
            )
            for row in rows
            if "eval_loss" in row
        ]
        before += EXAMPLES_A_STEP * max(row["step"] for row in rows)
    return points


@dataclass(frozen=True)
class Forecast:
    """What is to be expected of more examples, if the loss goes on as a power of their number.

    The loss falls as examples ** -slope, fitted to the first run as long as its learning rate was high; it starts from
    the last evaluation. The logarithm of the share of exact programs goes with the loss, as if each program were so
    many decisions.
    """

    slope: float
    last: Point

    def loss(self, examples: np.ndarray | float) -> np.ndarray | float:
        return self.last.loss * (self.last.examples / examples) ** self.slope

    def exact(self, examples: np.ndarray | float) -> np.ndarray | float:
        return self.last.exact ** (self.loss(examples) / self.last.loss)

    def examples(self, exact: float) -> float:
        """How many it takes for a share of exact programs."""
        return self.last.examples * (math.log(self.last.exact) / math.log(exact)) ** (1 / self.slope)


def forecast(results: Path) -> Forecast:
    points = curve(OURS, results)
    steady = [point for point in points if point.run == points[0].run and point.step <= STEADY]
    logs = np.log([[point.examples, point.loss] for point in steady])
    return Forecast(-float(np.polyfit(*logs.T, 1)[0]), points[-1])
