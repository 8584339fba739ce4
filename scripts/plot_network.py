"""Plot how the network and the paper's learn, and how exact they are by length: docs/network.png, from results/ alone.

`scripts/render_figures.py` draws it; the picture says inside which results it is of.
"""

from __future__ import annotations

import json
from functools import partial
from itertools import groupby
from operator import attrgetter
from pathlib import Path

import matplotlib.style
import numpy as np
from learning import NEXT, OURS, PAPER, curve, forecast
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from plot_corpus import LONG, STYLE, TEST, TRAIN, save
from records import hash_of

from trade_hf.files import write_whole

OF = (*(f"{name}.jsonl" for name in (*NEXT, *PAPER)), "test-permuted.json", "paper-tracr.json")
FLOOR, FURTHEST = 0.9, 2e7
MUON = "#7a4fa3"


def digest(results: Path) -> str:
    """Of the results that the plot shows."""
    return hash_of(results / name for name in OF)


def plot(path: Path, results: Path) -> None:
    with matplotlib.style.context(["default", STYLE, {"figure.figsize": (9, 3.4)}]):
        write_whole(path, partial(save, draw(results), about=digest(results)))


def draw(results: Path) -> Figure:
    figure = Figure(layout="constrained")
    loss, exact, lines = figure.subplots(1, 3)
    plot_learning(loss, exact, results)
    plot_lengths(lines, results)
    return figure


def plot_learning(loss: Axes, exact: Axes, results: Path) -> None:
    ours = groupby(curve(OURS, results), attrgetter("lines"))
    drawn = [(list(points), f"TraDe, {lines}") for lines, points in ours]
    going_on = [point for point in curve(NEXT, results) if point.run not in OURS]
    drawn += [(going_on, "the same, with Muon"), (curve(PAPER, results), "the paper's, 3 to 10")]
    for (points, label), colour in zip(drawn, (LONG, TRAIN, MUON, TEST), strict=True):
        seen = [point.examples for point in points]
        loss.plot(seen, [point.loss for point in points], "o-", color=colour, markersize=3, label=label)
        exact.plot(seen, [100 * point.exact for point in points], "o-", color=colour, markersize=3)
    long = [(point.examples, 100 * point.long) for point in going_on if point.long is not None]
    exact.plot(*zip(*long, strict=True), "^-", color=MUON, markersize=3, label="of 11 to 15 lines")
    fitted = forecast(results)
    ahead = np.geomspace(fitted.last.examples, FURTHEST, 50)
    loss.plot(ahead, fitted.loss(ahead), "--", color=MUON)
    exact.plot(ahead, 100 * fitted.exact(ahead), "--", color=MUON, label="to be expected")
    exact.axhline(100 * FLOOR, color="#888888", linewidth=0.8)
    loss.set(title="Loss", ylabel="validation loss a token", xscale="log", yscale="log")
    exact.set(title="Exact, greedy", ylabel="validation programs (%)", xscale="log", ylim=(0, 101))
    loss.legend(fontsize=7)
    exact.legend(fontsize=7)
    for axis in (loss, exact):
        axis.set_xlabel("examples seen")


def plot_lengths(axis: Axes, results: Path) -> None:
    """Exact programs of the test split by their lines."""
    ours, paper = (
        json.loads((results / f"{name}.json").read_text())["by_lines"] for name in ("test-permuted", "paper-tracr")
    )
    for shares, label, style in (
        (ours["decompiled_exact"], "TraDe, read and verified", {"color": LONG, "marker": "s"}),
        (ours["free_running_exact"], "TraDe, network alone", {"color": TRAIN, "marker": "o"}),
        (paper["free_running_exact"], "the paper's network", {"color": TEST, "marker": "o"}),
    ):
        axis.plot(
            [*map(int, shares)], [100 * row["share"] for row in shares.values()], label=label, markersize=3, **style
        )
    axis.set(title="Exact by length", xlabel="lines", ylabel="test programs (%)", ylim=(0, 101))
    axis.legend(fontsize=7)
