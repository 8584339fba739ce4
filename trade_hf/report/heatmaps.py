"""Heat maps: a model's weights as pictures, and what its heads attend to on one input."""

from __future__ import annotations

import base64
import struct
import zlib
from collections.abc import Sequence
from typing import Literal

import numpy as np

from trade_hf.compiled.forward import attention
from trade_hf.compiled.weights import TracrWeights
from trade_hf.provenance import Component, LineOrigin, owners, runs
from trade_hf.rasp.functions import Value
from trade_hf.rasp.program import variable_name
from trade_hf.report.markup import Html, element, join, scrolling, shown

MAX_PIXELS = 600_000  # of all pictures of a model together
MAX_HEADS = 48  # whose attention is drawn
LEVELS = 8  # of a colour
_POSITIVE, _NEGATIVE = (37, 99, 235), (234, 88, 12)
_PICTURE = 320  # pixels of a matrix's longer side, unless it has more entries
_ENTRY = (12, 24)  # pixels of an entry of a matrix: least, most
# Whose rows (axis 0) or columns (axis 1) a matrix of a layer consists of.
_ALONG: dict[str, tuple[Literal["head", "mlp"], int]] = {
    "W_Q": ("head", 1), "W_K": ("head", 1), "W_V": ("head", 1), "W_O": ("head", 0),
    "MLP in": ("mlp", 1), "MLP out": ("mlp", 0),
}  # fmt: skip
_REACHED = ("W_Q", "MLP in")  # whose parts are reached by keyboard: each part of a layer once
_CELL = 27  # pixels of a cell of an attention pattern


# ---------------------------------------------------------------- weights


def weights_html(weights: TracrWeights, origins: Sequence[LineOrigin] = ()) -> Html:
    """Every matrix as a picture in a box that scrolls: embeddings, each layer's attention and MLP, unembedding. With
    `origins`, heads and hidden units are marked together with the lines of the program that they are."""
    groups = _matrices(weights)
    count = sum(map(len, groups.values()))
    side = int(np.clip(np.sqrt(MAX_PIXELS / count), 16, 256))
    parts: list[Html] = []
    for title, matrices in groups.items():
        filled = {name: matrix for name, matrix in matrices.items() if matrix.any()}
        figures = [
            _matrix_figure(f"{title}: {name}", name, matrix, side, _parts_svg(weights, title, name, matrix, origins))
            for name, matrix in filled.items()
        ]
        parts += [element("h3", title), element("div", *figures, class_="maps")]
        if len(filled) < len(matrices):
            empty = ", ".join(name for name in matrices if name not in filled)
            parts.append(element("p", f"All zero: {empty}.", class_="note"))
    return join([_scale(), *parts])


def _matrices(weights: TracrWeights) -> dict[str, dict[str, np.ndarray]]:
    """[row, column] by group and name. A bias that is not zero is the last row of its matrix."""
    groups = {
        "Embeddings": {
            "tokens": weights.tensors["token_embed/embeddings"],
            "positions": weights.tensors["pos_embed/embeddings"],
            "unembedding": weights.unembedding,
        }
    }
    parts = {"query": "W_Q", "key": "W_K", "value": "W_V", "linear": "W_O"}
    for layer in range(weights.num_layers):
        names = {
            **{f"attn/{part}": name for part, name in parts.items()},
            "mlp/linear_1": "MLP in",
            "mlp/linear_2": "MLP out",
        }
        groups[f"Layer {layer}"] = {
            name: _with_bias(weights.layer(layer, f"{part}/w"), weights.layer(layer, f"{part}/b"))
            for part, name in names.items()
        }
    return groups


def _with_bias(matrix: np.ndarray, bias: np.ndarray) -> np.ndarray:
    return np.concatenate([matrix, bias[None]]) if bias.any() else matrix


def _matrix_figure(title: str, name: str, matrix: np.ndarray, side: int, over: Html) -> Html:
    rows, columns = matrix.shape
    largest, filled = float(np.abs(matrix).max()), int(np.count_nonzero(matrix))
    about = f"{rows} × {columns}, {filled:,} not zero, largest {largest:.3g}"
    smaller = shrunk(matrix, side)
    scale = int(np.clip(_PICTURE // max(smaller.shape), *_ENTRY))
    picture = element(
        "img",
        src="data:image/png;base64," + base64.b64encode(matrix_png(smaller)).decode(),
        alt=f"{title}, {about}",
        width=smaller.shape[1] * scale,
        height=smaller.shape[0] * scale,
    )
    words = [element("strong", name), f" {rows} × {columns}, to ±{largest:.3g}"]
    if smaller.shape != matrix.shape:
        words.append(f", drawn as {smaller.shape[0]} × {smaller.shape[1]}")
    box = scrolling(element("div", picture, over, class_="matrix"), f"{title}, {about}")
    return element("figure", box, element("figcaption", *words))


def _parts_svg(weights: TracrWeights, group: str, name: str, matrix: np.ndarray, origins: Sequence[LineOrigin]) -> Html:
    """What lies over a matrix's picture: the rows or columns of each head, and of each line's hidden units."""
    if name not in _ALONG:
        return Html("")
    kind, axis = _ALONG[name]
    each = weights.key_size if kind == "head" else 1
    paths = []
    for part, lines in owners(origins).items():
        if part.kind == kind and group == f"Layer {part.layer}":
            names = " ".join(map(variable_name, lines))
            stretches = [(each * first, each * (last + 1)) for first, last in runs(part.places)]
            paths.append(
                element(
                    "path",
                    element("title", f"{part}: {names}"),
                    d="".join(_stretch(matrix, axis, *stretch) for stretch in stretches),
                    data_line=names,
                    tabindex=0 if name in _REACHED else None,
                )
            )
    rows, columns = matrix.shape
    return element("svg", *paths, viewBox=f"0 0 {columns} {rows}", preserveAspectRatio="none", class_="parts")


def _stretch(matrix: np.ndarray, axis: int, start: int, end: int) -> str:
    """Rows or columns of a matrix, as a path."""
    rows, columns = matrix.shape
    return f"M0 {start}H{columns}V{end}H0Z" if axis == 0 else f"M{start} 0H{end}V{rows}H{start}Z"


def _scale() -> Html:
    swatches = join(element("i", class_=kind) for kind in ("negative", "zero", "positive"))
    colours = "below 0, 0, above 0; darker is larger, each matrix by its own largest entry."
    text = f"{colours} A bias is the last row. What is larger than its box scrolls."
    return element("p", swatches, " ", text, class_="note scale")


def shrunk(matrix: np.ndarray, side: int) -> np.ndarray:
    """At most `side` rows and columns; of each block its entry of largest size."""
    return _shrunk_rows(_shrunk_rows(matrix, side).T, side).T


def _shrunk_rows(matrix: np.ndarray, side: int) -> np.ndarray:
    if len(matrix) <= side:
        return matrix
    starts = np.linspace(0, len(matrix), side, endpoint=False).astype(int)
    high, low = np.maximum.reduceat(matrix, starts), np.minimum.reduceat(matrix, starts)
    return np.where(high >= -low, high, low)


def matrix_png(matrix: np.ndarray) -> bytes:
    """A pixel for each entry: blue above 0, orange below, nothing at all where it is 0; every other entry can be seen,
    however small."""
    largest = float(np.abs(matrix).max()) or 1.0
    levels = np.sign(matrix) * np.ceil(np.abs(matrix) / largest * LEVELS)
    alphas = [round(255 * (0.2 + 0.8 * level / LEVELS)) for level in range(1, LEVELS + 1)]
    palette = (
        [(*_NEGATIVE, alpha) for alpha in alphas[::-1]] + [(0, 0, 0, 0)] + [(*_POSITIVE, alpha) for alpha in alphas]
    )
    return png((levels + LEVELS).astype(np.uint8), np.array(palette, np.uint8))


def png(pixels: np.ndarray, palette: np.ndarray) -> bytes:
    """A PNG file (W3C, third edition) of numbers of colours [row, column] out of a palette [colour, RGBA]."""
    rows, columns = pixels.shape
    lines = np.concatenate([np.zeros((rows, 1), np.uint8), pixels], 1)  # each line is preceded by its filter: none
    chunks = {
        b"IHDR": struct.pack(">IIBBBBB", columns, rows, 8, 3, 0, 0, 0),  # 8 bits, colours out of a palette
        b"PLTE": palette[:, :3].tobytes(),
        b"tRNS": palette[:, 3].tobytes(),
        b"IDAT": zlib.compress(lines.tobytes(), 9),
        b"IEND": b"",
    }
    body = [
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in chunks.items()
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(body)


# ---------------------------------------------------------------- attention


def attention_html(weights: TracrWeights, tokens: Sequence[Value], origins: Sequence[LineOrigin] = ()) -> Html:
    """What each head attends to on one input, position by position; heads that write nothing are left out. With
    `origins`, each names the lines of the program that it computes.

    Raises ValueError for an input that the model does not take.
    """
    patterns = attention(weights, tokens)
    heads = [(layer, head) for layer, head in np.ndindex(patterns.shape[:2]) if _writes(weights, layer, head)]
    labels = [shown(token) for token in (weights.bos, *tokens)]
    lines = {part: " ".join(map(variable_name, those)) for part, those in owners(origins).items()}
    figures = [
        _head_figure(patterns[layer, head], labels, part, lines.get(part, ""))
        for layer, head in heads[:MAX_HEADS]
        for part in [Component(layer, "head", head=head)]
    ]
    silent, left_out = patterns.shape[0] * patterns.shape[1] - len(heads), len(heads) - len(figures)
    notes = ["Rows are queries, columns the keys that they attend to, in percent."]
    notes += [f"Heads that write nothing: {silent}."] if silent else []
    notes += [f"{left_out} more heads are not drawn."] if left_out else []
    return join([element("p", " ".join(notes), class_="note"), element("div", *figures, class_="maps")])


def _head_figure(pattern: np.ndarray, labels: Sequence[str], part: Component, names: str) -> Html:
    own = {"data_line": names, "tabindex": 0} if names else {}
    caption = element("figcaption", element("strong", part), " ", names)
    return element("figure", pattern_svg(pattern, labels, str(part)), caption, **own)


def _writes(weights: TracrWeights, layer: int, head: int) -> bool:
    part = slice(head * weights.key_size, (head + 1) * weights.key_size)
    values = np.concatenate([weights.layer(layer, "attn/value/w"), weights.layer(layer, "attn/value/b")[None]])
    return bool((values[:, part] @ weights.layer(layer, "attn/linear/w")[part]).any())


def pattern_svg(pattern: np.ndarray, labels: Sequence[str], title: str) -> Html:
    """One head's pattern [query, key] as SVG."""
    short = [label if len(label) <= 12 else label[:11] + "…" for label in labels]
    longest = max(map(len, short))
    margin = 7 * longest + 8
    upright = longest > 3
    top = margin if upright else 20
    cells: list[Html] = []
    for query, key in np.argwhere(pattern >= 0.005):
        x, y, share = margin + _CELL * key, top + _CELL * query, float(pattern[query, key])
        cells.append(element("rect", x=x, y=y, width=_CELL, height=_CELL, fill_opacity=f"{share:.2f}", class_="heat"))
        cells.append(element("text", f"{100 * share:.0f}", x=x + _CELL / 2, y=y + 18, class_="cell"))
    size = _CELL * len(labels)
    names = [
        part
        for i, label in enumerate(short)
        for part in (
            element("text", label, x=margin - 5, y=top + _CELL * i + 18, class_="axis row"),
            _column_label(label, margin + _CELL * (i + 0.5), top - 5, upright),
        )
    ]
    frame = element("rect", x=margin, y=top, width=size, height=size, class_="frame")
    strongest = "; ".join(f"{label} to {labels[int(row.argmax())]}" for label, row in zip(labels, pattern, strict=True))
    return element(
        "svg",
        element("title", f"{title}: {strongest}"),
        *cells,
        frame,
        *names,
        viewBox=f"0 0 {margin + size + 1} {top + size + 1}",
        role="img",
        style=f"width: {margin + size + 1}px",
        class_="pattern",
    )


def _column_label(label: str, x: float, y: float, upright: bool) -> Html:
    if upright:
        return element("text", label, transform=f"translate({x + 4:.1f} {y}) rotate(-90)", class_="axis upright")
    return element("text", label, x=x, y=y, class_="axis column")
