"""Plot what a data set holds, for its card: one figure for each finished configuration, from the Parquet files alone.

Run: python scripts/plot_corpus.py --corpus corpus
Writes corpus/plots/NAME.png, the same bytes for the same rows and the same matplotlib, and the card with them.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Iterator
from functools import partial
from io import BytesIO
from pathlib import Path

import matplotlib.style
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.ticker import MaxNLocator
from PIL import Image
from PIL.PngImagePlugin import PngInfo

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from dataset_builder.card import built, write_card
from dataset_builder.rows import SCHEMA
from trade_hf.files import write_whole

Rows = dict[str, np.ndarray]  # a number for each row of a split: NUMBERS, vocab_size, weights
NUMBERS = ["num_lines", "num_layers", "d_model", "max_seq_len"]
# Okabe and Ito's colours: told apart by colour-blind readers, and by their lightness in grey print.
TRAIN, TEST, LONG = "#0072B2", "#000000", "#E69F00"
SPREADS = {  # column → title, label, width of a bin
    "num_lines": ("Program length", "lines", 1),
    "num_layers": ("Layers", "layers of the transformer", 1),
    "d_model": ("Width of the residual stream", "d_model (dimensions, bins of 5)", 5),
}
STYLE = {
    "figure.figsize": (9, 5.6),  # inches, 9 of them on the 900 pixels of a card
    **dict.fromkeys(("axes.spines.top", "axes.spines.right", "legend.frameon"), False),
    **{"axes.grid": True, "axes.grid.axis": "y", "axes.axisbelow": True, "grid.color": "#DDDDDD"},
    **{"axes.titlelocation": "left", "axes.titlesize": 10, "axes.titleweight": "bold", "font.size": 9},
    **{"figure.constrained_layout.w_pad": 0.08, "figure.constrained_layout.h_pad": 0.06},
    **{"savefig.dpi": 200, "savefig.facecolor": "white"},  # white where the card is dark, too
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, required=True, help="the folder of the data set")
    folder: Path = parser.parse_args().corpus
    names = built(folder)
    if not names:
        sys.exit(f"plot_corpus: {folder}: expected NAME/report.json of a finished configuration, found none")
    (folder / "plots").mkdir(exist_ok=True)
    for name in names:
        with matplotlib.style.context(["default", STYLE]):
            write_whole(folder / "plots" / f"{name}.png", partial(save, draw(folder / name)))
    write_card(folder)


def save(figure: Figure, path: Path, about: str = "") -> None:
    """256 colours are a third of the bytes, and leave matplotlib's version out; `about` is written into the file."""
    pixels, info = BytesIO(), PngInfo()
    figure.savefig(pixels, format="png")
    if about:
        info.add_text("Source", about)
    Image.open(pixels).convert("RGB").quantize(256).save(path, format="png", optimize=True, pnginfo=info)


def read(home: Path, split: str) -> Rows:
    """The numbers of one split, some 15 bytes a row."""
    groups = row_groups(home, split, [*NUMBERS, "vocab", "offsets"])
    table = pa.concat_tables([to_numbers(SCHEMA.empty_table()), *map(to_numbers, groups)])
    return {name: table[name].to_numpy() for name in table.column_names}


def row_groups(home: Path, split: str, columns: list[str]) -> Iterator[pa.Table]:
    for path in sorted(home.glob(f"{split}-*.parquet")):
        with pq.ParquetFile(path) as file:
            yield from (file.read_row_group(number, columns) for number in range(file.num_row_groups))


def to_numbers(group: pa.Table) -> pa.Table:
    """NUMBERS, the size of the vocabulary and the count of non-zero weights, which is a row's last offset."""
    vocabs = group["vocab"].combine_chunks().dictionary_encode()  # few differ: each is parsed once
    sizes = pa.array([len(json.loads(text)) for text in vocabs.dictionary.to_pylist()], pa.int16())
    offsets = group["offsets"].combine_chunks()
    weights = offsets.values.take(pc.subtract(offsets.offsets[1:], 1))
    return (
        group.select(NUMBERS).append_column("vocab_size", sizes.take(vocabs.indices)).append_column("weights", weights)
    )


def count_operations(home: Path, split: str) -> Counter[str]:
    counts: Counter[str] = Counter()
    for group in row_groups(home, split, ["operations"]):
        for count in pc.value_counts(pc.list_flatten(pc.utf8_split_whitespace(group["operations"]))).to_pylist():
            counts[count["values"]] += count["counts"]
    return counts


def draw(home: Path) -> Figure:
    """The figure of one configuration; with a panel of input sizes only if those of `train` differ."""
    splits = {split: read(home, split) for split in ("train", "test", "test_long")}
    train, total = splits["train"], sum(pq.read_metadata(path).num_rows for path in home.glob("*.parquet"))
    figure = Figure(layout="constrained")
    top, bottom = figure.subfigures(2, 1, squeeze=False)[:, 0]
    for axis, (column, (title, label, bin_width)) in zip(top.subplots(1, 3), SPREADS.items(), strict=True):
        handles = plot_spread(axis, [rows[column] for rows in splits.values()], bin_width)
        axis.set(title=title, xlabel=label, ylabel="share of split (%)")
    labels = [f"{split} ({len(rows['d_model']):,})" for split, rows in splits.items()]
    legend = figure.legend(handles, labels, loc="outside upper center", ncols=3)
    legend.set_title(f"{home.name}: {total:,} rows in all splits", FontProperties(weight="bold", size=12))
    panels = 3 if any(np.ptp(train[size]) for size in ("vocab_size", "max_seq_len")) else 2
    operations, weights, *inputs = bottom.subplots(1, panels)
    plot_operations(operations, count_operations(home, "train"))
    plot_weights(weights, {TRAIN: train, LONG: splits["test_long"]})
    for axis in inputs:
        plot_inputs(axis, train)
    for axis in (*top.axes, weights, *inputs):
        axis.xaxis.set_major_locator(MaxNLocator(nbins=8, steps=[1, 2, 5, 10], integer=True))
    return figure


def plot_spread(axis: Axes, splits: list[np.ndarray], bin_width: int) -> list[Artist]:
    """Shares of values: `train` filled, `test` as points, `test_long` as an outline; returns these three."""
    every = np.concatenate(splits)
    edges = np.arange(every.min() // bin_width * bin_width, every.max() + bin_width + 1, bin_width)
    edges = edges - 0.5 * (bin_width == 1)  # centred on the value
    counts = [np.histogram(values, edges)[0] for values in splits]
    train, test, long = (np.where(count, 100 * count / max(1, count.sum()), np.nan) for count in counts)
    filled = axis.stairs(train, edges, fill=True, color=TRAIN)
    outline = axis.stairs(long, edges, color=LONG, linewidth=1.8)
    points = axis.plot(edges[:-1] + bin_width / 2, test, "o", color=TEST, mfc="white", markersize=4, clip_on=False)
    return [filled, *points, outline]


def plot_operations(axis: Axes, counts: Counter[str]) -> None:
    names = sorted(counts, key=lambda name: (counts[name], name))
    bars = axis.barh(names, [100 * counts[name] / counts.total() for name in names], color=TRAIN)
    axis.bar_label(bars, fmt="%.1f", padding=2)
    axis.grid(False)
    axis.margins(x=0.18)
    axis.set(title="Operations (train)", xlabel="share of lines (%)")


def plot_weights(axis: Axes, splits: dict[str, Rows]) -> None:
    """Median, and the band that holds all but the 5 % at each end, by number of lines."""
    for colour, rows in splits.items():
        lines = np.unique(rows["num_lines"])
        of_length = [rows["weights"][rows["num_lines"] == n] for n in lines]
        low, median, high = np.transpose([np.quantile(weights, [0.05, 0.5, 0.95]) for weights in of_length])
        axis.fill_between(lines, low, high, color=colour, alpha=0.3, linewidth=0)
        axis.plot(lines, median, "o-", color=colour, markersize=3)
    axis.yaxis.set_major_formatter("{x:,.0f}")
    axis.set(title="Weights per row", xlabel="lines", ylabel="non-zero: median, 5–95 %", ylim=(0, None))


def plot_inputs(axis: Axes, train: Rows) -> None:
    """A heat map: share of rows by size of the vocabulary and longest input."""
    sizes = [train[name] for name in ("vocab_size", "max_seq_len")]
    edges = [np.arange(size.min(), size.max() + 2) - 0.5 for size in sizes]
    percent = np.full(len(sizes[0]), 100 / len(sizes[0]))
    *_, image = axis.hist2d(sizes[0], sizes[1], bins=edges, weights=percent, cmap="Blues", vmin=0)
    axis.figure.colorbar(image, ax=axis, label="share of rows (%)")
    axis.grid(False)
    axis.yaxis.set_major_locator(MaxNLocator(integer=True))
    axis.set(title="Inputs (train)", xlabel="vocabulary (tokens)", ylabel="longest input (tokens)")


if __name__ == "__main__":
    main()
