"""The program beside a drawing of the layers: which heads and hidden units each line is, as one SVG.

It needs no script, no font and nothing from elsewhere, and follows the reader's light or dark scheme.

trade decompile model.safetensors --figure layers.svg
"""

from __future__ import annotations

import itertools
import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from xml.etree import ElementTree
from xml.etree.ElementTree import Element, SubElement

from trade_hf.compiled.weights import TracrWeights
from trade_hf.provenance import Component, LineOrigin, owners, runs
from trade_hf.rasp.program import INPUT_NAMES, Op, Program, Variable, variable_name
from trade_hf.rasp.text import to_text

# Sizes in units that are 1.25 pixels on a wide page, and 0.87 pixels on one of 390.
_SCALE = 1.25
_MARGIN, _GAP, _ROW, _LINE_GAP, _CHARACTER = 10.0, 38.0, 16.0, 8.0, 7.53
_COLUMNS, _MAX_ROWS, _INDENT = 30, 4, "  "  # of a line's code: characters in a row, rows
_LAYER, _PADDING, _HEADING, _HEAD, _UNITS, _STRIP = 160.0, 7.0, 20.0, 22.0, 32.0, 7.0
_BETWEEN, _STREAM = 14.0, 12.0  # between layers; from a layer to the residual stream
_THINNEST = 1.2  # a unit's mark in the strip
_NAMES = 12  # characters of line names in a part's box
_CODE_END = _MARGIN + _COLUMNS * _CHARACTER
_LEFT = _CODE_END + _GAP
_STREAM_X = _LEFT + _LAYER + _STREAM
_WIDTH = _STREAM_X + _MARGIN

_QUOTED = r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*\""""
_TOKEN = re.compile(rf"(?P<quoted>{_QUOTED})|(?P<head>lambda [^:]*:)|\brasp\.")
_TIE = "\xa0"  # a space at which no row ends
_ROW_ENDS = re.compile(r"(?<=, )|(?<=[kqxy]: )|(?<=\w\()(?<!get\()")

_STYLE = """
@media screen, print { .trade-layers { max-width: 100%; height: auto; } }
.trade-layers text { fill: #1c2024; font-size: 12.5px; }
.trade-layers text { font-family: ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace; }
.trade-layers .name { font-weight: bold; }
.trade-layers .soft { fill: #565d66; font-size: 11.5px; }
.trade-layers .paper { fill: #ffffff; }
.trade-layers .layer { fill: #f5f6f8; stroke: #c3c9d1; }
.trade-layers .head { fill: #fdf0da; stroke: #8a5a00; }
.trade-layers .mlp { fill: #e4edff; stroke: #1d4ed8; }
.trade-layers .strip { fill: #ffffff; }
.trade-layers .unit { fill: #1d4ed8; }
.trade-layers .stream { stroke: #565d66; stroke-width: 3; }
.trade-layers .tap { stroke: #565d66; }
.trade-layers .dot { fill: #565d66; }
.trade-layers .link { fill: none; stroke-width: 1.6; }
.trade-layers .to-head { stroke: #8a5a00; }
.trade-layers .to-mlp { stroke: #1d4ed8; }
.trade-layers .of-select { stroke-dasharray: 4 3; }
.trade-layers :is(.line:hover, .lit, .kept) .link { stroke-width: 3.5; }
.trade-layers :is(.lit, .kept) :is(.head, .mlp) { stroke-width: 3.5; }
.trade-layers .kept .name { text-decoration: underline; }
@media (prefers-color-scheme: dark) {
.trade-layers text { fill: #e6e8eb; }
.trade-layers .soft { fill: #a4acb6; }
.trade-layers .paper { fill: #15181c; }
.trade-layers .layer { fill: #1e2227; stroke: #4a525c; }
.trade-layers .head { fill: #3b2c10; stroke: #f3c969; }
.trade-layers .mlp { fill: #1c2d4d; stroke: #8ab4ff; }
.trade-layers .strip { fill: #15181c; }
.trade-layers .unit { fill: #8ab4ff; }
.trade-layers .stream, .trade-layers .tap { stroke: #a4acb6; }
.trade-layers .dot { fill: #a4acb6; }
.trade-layers .to-head { stroke: #f3c969; }
.trade-layers .to-mlp { stroke: #8ab4ff; }
}
"""


def draw_layers(program: Program, weights: TracrWeights, origins: Sequence[LineOrigin]) -> str:
    """The program's code at the left, the model's layers from its input down at the right, and a link from each line to
    every head and every set of hidden units that it is.

    A strip shows where among the layer's hidden units a line's stand. Links of selects, which share their heads with
    the lines that read them, are dashed. Numbers of layers, heads and units count from 0.

    Returns an SVG document, in ASCII. Raises ValueError if `origins` name a line or a part that is not there.
    """
    _check(program, weights, origins)
    parts = _parts(origins)
    layers = [
        _Layer(number, weights, [p for p in parts if p.component.layer == number])
        for number in range(weights.num_layers)
    ]
    drawing = _Drawing(program, weights, origins, layers)
    return ElementTree.tostring(drawing.root, encoding="us-ascii").decode("ascii") + "\n"


def _counted(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"


def _check(program: Program, weights: TracrWeights, origins: Sequence[LineOrigin]) -> None:
    for origin in origins:
        if not 0 <= origin.line < len(program):
            raise ValueError(f"expected origins of lines 0 to {len(program) - 1}, got line {origin.line}")
        for component in origin.components:
            heads = [] if component.head is None else [component.head]
            fits = 0 <= component.layer < weights.num_layers and all(0 <= head < weights.num_heads for head in heads)
            if not fits or not all(0 <= unit < weights.mlp_size for unit in component.units):
                shape = f"{weights.num_layers} layers of {weights.num_heads} heads and {weights.mlp_size} hidden units"
                raise ValueError(f"line {origin.line + 1}: {component}: no part of a model of {shape}")


# ---------------------------------------------------------------- what stands where


@dataclass(frozen=True)
class _Part:
    """A head, or hidden units, and the lines that it is of."""

    component: Component
    lines: tuple[Variable, ...]

    @property
    def height(self) -> float:
        return _HEAD if self.component.kind == "head" else _UNITS

    @property
    def text(self) -> str:
        if self.component.kind == "head":
            return f"head {self.component.head}"
        return _counted(len(self.component.units), "unit")

    @property
    def names(self) -> str:
        names = self.all_names
        return names if len(names) <= _NAMES else names[: _NAMES - 1].rsplit(" ", 1)[0] + "…"

    @property
    def all_names(self) -> str:
        return " ".join(map(variable_name, self.lines))


def _parts(origins: Sequence[LineOrigin]) -> list[_Part]:
    """Each component once: heads of a layer by number, then its hidden units by line."""
    parts = [_Part(component, lines) for component, lines in owners(origins).items()]
    return sorted(parts, key=lambda p: (p.component.kind, p.component.head or 0, p.lines, p.component.units))


class _Layer:
    """A layer's box: its parts from top to bottom, and how much of the layer is of no line."""

    def __init__(self, number: int, weights: TracrWeights, parts: list[_Part]) -> None:
        self.number, self.parts = number, parts
        heads = {part.component.head for part in parts if part.component.kind == "head"}
        units = {unit for part in parts for unit in part.component.units}
        left = [(weights.num_heads - len(heads), "head"), (weights.mlp_size - len(units), "unit")]
        self.rest = ", ".join(_counted(count, what) for count, what in left if count)
        self.tops = list(itertools.accumulate([part.height + _PADDING for part in parts], initial=_HEADING + _PADDING))
        self.height = self.tops[-1] + (_HEADING if self.rest else 0.0)


def _code(program: Program) -> list[str]:
    """Each line's code without what all lines share."""
    lines = to_text(program).splitlines()[2:-1]
    return [_shortened(line).removesuffix(f'.named("{variable_name(n)}")') for n, line in enumerate(lines)]


def _shortened(code: str) -> str:
    """Without the module's name; what a lambda takes is tied together. Strings stay as they are."""
    return _TOKEN.sub(lambda found: found["quoted"] or (found["head"] or "").replace(" ", _TIE), code)


def _rows(code: str) -> list[str]:
    """A line's code in rows, at most `_MAX_ROWS` of `_COLUMNS` characters."""
    rows, longest = [""], _COLUMNS - len(_INDENT)
    for piece in _ROW_ENDS.split(code):
        for part in textwrap.wrap(piece, longest, drop_whitespace=False, break_on_hyphens=False):
            if len(rows[-1] + part.rstrip()) > _COLUMNS:
                rows.append(_INDENT)
            rows[-1] += part
    if len(rows) > _MAX_ROWS:
        rows[_MAX_ROWS - 1 :] = [rows[_MAX_ROWS - 1][: _COLUMNS - 2].rstrip() + " …"]
    return [row.rstrip().replace(_TIE, " ") for row in rows]


# ---------------------------------------------------------------- the drawing


class _Drawing:
    """The SVG's elements, from top to bottom."""

    def __init__(
        self, program: Program, weights: TracrWeights, origins: Sequence[LineOrigin], layers: Sequence[_Layer]
    ) -> None:
        self.program, self.origins, self.mlp_size = program, origins, weights.mlp_size
        self.root = Element("svg", {"xmlns": "http://www.w3.org/2000/svg", "role": "group", "class": "trade-layers"})
        SubElement(self.root, "title").text = self.title()
        SubElement(self.root, "desc").text = self.description()
        SubElement(self.root, "style").text = _STYLE
        paper = SubElement(self.root, "rect", {"class": "paper", "rx": "8"})
        stream = SubElement(self.root, "line", {"class": "stream", "x1": _px(_STREAM_X), "x2": _px(_STREAM_X)})
        self.middles: dict[Component, float] = {}  # height of each part's middle

        used = {argument for line in program.lines for argument in line.args if argument < 0}
        y = self.end_of_stream("input", [INPUT_NAMES[variable] for variable in sorted(used)], _MARGIN)
        stream.set("y1", _px(y - _BETWEEN - _HEADING / 2))
        for layer in layers:
            y = self.layer(layer, y)
        stream.set("y2", _px(y + _HEADING / 2))
        end = self.end_of_stream("output", [variable_name(program.output)], y) - _BETWEEN
        height = self.legend(max(end, self.code(end)) + _BETWEEN) + _MARGIN
        for element, scale in ((self.root, _SCALE), (paper, 1.0)):
            element.set("width", _px(scale * _WIDTH))
            element.set("height", _px(scale * height))
        self.root.set("viewBox", f"0 0 {_px(_WIDTH)} {_px(height)}")

    def title(self) -> str:
        return f"Where each of the {_counted(len(self.program), 'line')} of the program stands in the model"

    def description(self) -> str:
        """What the drawing shows, in words."""
        return " ".join(
            f"{variable_name(origin.line)}: {str(origin) or 'no part is known'}." for origin in self.origins
        )

    def end_of_stream(self, text: str, names: Sequence[str], y: float) -> float:
        """The box where the residual stream begins or ends; the height at which the next one can stand."""
        height = _HEADING + 2
        self.box(self.root, "layer", _LEFT, y, _LAYER, height)
        self.text(self.root, text, _LEFT + _PADDING, y + 15, "soft")
        self.text(self.root, " ".join(names), _LEFT + _LAYER - _PADDING, y + 15, "name", "end")
        self.tap(y + height / 2)
        return y + height + _BETWEEN

    def layer(self, layer: _Layer, y: float) -> float:
        group = SubElement(self.root, "g")
        self.box(group, "layer", _LEFT, y, _LAYER, layer.height)
        self.text(group, f"layer {layer.number}", _LEFT + _PADDING, y + 17, "soft")
        for part, top in zip(layer.parts, layer.tops, strict=False):
            self.part(group, part, y + top)
        if layer.rest:
            self.text(group, f"+ {layer.rest}", _LEFT + _PADDING, y + layer.height - 8, "soft")
        return y + layer.height + _BETWEEN

    def part(self, parent: Element, part: _Part, y: float) -> None:
        group = SubElement(parent, "g", {"data-line": part.all_names, "tabindex": "0"})
        x, width = _LEFT + _PADDING, _LAYER - 2 * _PADDING
        self.box(group, part.component.kind, x, y, width, part.height)
        self.text(group, part.text, x + 6, y + 15, "")
        self.text(group, part.names, x + width - 6, y + 15, "name", "end")
        self.tap(y + part.height / 2)
        self.middles[part.component] = y + part.height / 2
        if part.component.kind == "mlp":
            self.strip(group, part.component.units, x + 6, y + part.height - _STRIP - 4, width - 12)

    def strip(self, group: Element, units: Sequence[int], x: float, y: float, width: float) -> None:
        """Where the units stand among all of their layer, from left to right."""
        self.box(group, "strip", x, y, width, _STRIP)
        each = width / self.mlp_size
        for first, last in runs(units):
            wide = max((last + 1 - first) * each, _THINNEST)
            self.box(group, "unit", min(x + first * each, x + width - wide), y, wide, _STRIP)

    def code(self, end: float) -> float:
        """The lines of the program beside the layers, which end at `end`; the height at which the last line ends."""
        components = {origin.line: origin.components for origin in self.origins}
        lines = [_rows(code) for code in _code(self.program)]
        heights = [len(rows) * _ROW for rows in lines]
        offsets = list(itertools.accumulate([height + _LINE_GAP for height in heights], initial=0.0))
        wanted: list[float | None] = []
        for number, line in enumerate(self.program.lines):
            middles = [self.middles[component] for component in components.get(number, ())]
            is_free = line.op is Op.SELECT or not middles
            wanted.append(None if is_free else sum(middles) / len(middles) - heights[number] / 2 - offsets[number])
        lowest = max(_MARGIN, end - offsets[-1])
        for number, (rows, place) in enumerate(zip(lines, _in_order(wanted), strict=True)):
            y = min(max(place, _MARGIN), lowest) + offsets[number]
            self.line(number, rows, y, components.get(number, ()))
        return y + heights[-1]

    def line(self, number: Variable, rows: Sequence[str], y: float, components: Sequence[Component]) -> None:
        group = SubElement(self.root, "g", {"class": "line", "data-line": variable_name(number), "tabindex": "0"})
        for component in components:
            self.link(group, number, component, _MARGIN + len(rows[0]) * _CHARACTER + 5, y + _ROW / 2)
        first = self.text(group, "", _MARGIN, y + 12, "")
        name = SubElement(first, "tspan", {"class": "name"})
        name.text = variable_name(number)
        name.tail = rows[0].removeprefix(name.text)
        for i, row in enumerate(rows[1:], 1):
            self.text(group, row.strip(), _MARGIN + len(_INDENT) * _CHARACTER, y + i * _ROW + 12, "")

    def link(self, group: Element, number: Variable, component: Component, x: float, y: float) -> None:
        kind = f"link to-{component.kind}" + (" of-select" if self.program.lines[number].op is Op.SELECT else "")
        end, middle = self.middles[component], _px((_CODE_END + _LEFT) / 2)
        curve = f"C{middle} {_px(y)} {middle} {_px(end)} {_px(_LEFT + _PADDING)} {_px(end)}"
        SubElement(group, "path", {"class": kind, "d": f"M{_px(x)} {_px(y)}H{_px(max(x, _CODE_END))}{curve}"})

    def legend(self, y: float) -> float:
        """What the signs mean; the height at which it ends."""
        self.box(self.root, "head", _MARGIN, y, 22, 10)
        self.text(self.root, "attention head", _MARGIN + 30, y + 9, "soft")
        self.box(self.root, "mlp", _LEFT, y, 22, 10)
        self.text(self.root, "MLP hidden units", _LEFT + 30, y + 9, "soft")
        path = {"class": "link to-head of-select", "d": f"M{_px(_MARGIN)} {_px(y + 25)}h22"}
        SubElement(self.root, "path", path)
        self.text(self.root, "a select, in its reader's head", _MARGIN + 30, y + 29, "soft")
        self.text(self.root, "+", _LEFT + 8, y + 29, "soft")
        self.text(self.root, "unused", _LEFT + 30, y + 29, "soft")
        return y + 32

    def tap(self, y: float) -> None:
        """What a part reads from the residual stream, and writes to it."""
        ends = {"x1": _px(_LEFT + _LAYER), "x2": _px(_STREAM_X), "y1": _px(y), "y2": _px(y)}
        SubElement(self.root, "line", {"class": "tap", **ends})
        SubElement(self.root, "circle", {"class": "dot", "cx": _px(_STREAM_X), "cy": _px(y), "r": "3.5"})

    def box(self, parent: Element, kind: str, x: float, y: float, width: float, height: float) -> None:
        sizes = {"x": _px(x), "y": _px(y), "width": _px(width), "height": _px(height)}
        round_off = {"rx": "4"} if height > _STRIP else {}
        SubElement(parent, "rect", {"class": kind, **sizes, **round_off})

    def text(self, parent: Element, text: str, x: float, y: float, kind: str, anchor: str = "start") -> Element:
        place = {"x": _px(x), "y": _px(y), "text-anchor": anchor, "class": kind}
        element = SubElement(parent, "text", {key: value for key, value in place.items() if value})
        element.text = text
        return element


def _in_order(wanted: Sequence[float | None]) -> list[float]:
    """Numbers that never fall, near to those that are wanted; where none is, as for the next one."""
    following, last = [], next((want for want in reversed(wanted) if want is not None), 0.0)
    for want in reversed(wanted):
        last = last if want is None else want
        following.append(last)
    least = list(itertools.accumulate(following, min))[::-1]
    most = itertools.accumulate(following[::-1], max)
    return [(low + high) / 2 for low, high in zip(least, most, strict=True)]


def _px(number: float) -> str:
    return f"{number:.1f}".removesuffix(".0")
