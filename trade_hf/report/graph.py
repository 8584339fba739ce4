"""The program as a graph: s-ops and selectors as boxes, who reads whom as arrows, from inputs down to the output."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from trade_hf.rasp.program import INDICES, TOKENS, Op, Program, Type, Variable, variable_name
from trade_hf.report.markup import Html, element, scrolling

if TYPE_CHECKING:
    from trade_hf.provenance import Component, LineOrigin

ROLES = {  # of the arguments
    Op.SEQUENCE_MAP: ("x", "y"),
    Op.LINEAR_SEQUENCE_MAP: ("x", "y"),
    Op.SELECT: ("keys", "queries"),
    Op.AGGREGATE: ("selector", "values"),
    Op.AGGREGATE_NUMERICAL: ("selector", "values"),
}
_CHARACTER, _TEXT_LINE, _GAP, _ROW_GAP, _MARGIN, _SIDE, _THIN = 7.3, 17, 26, 52, 6, 40, 14  # pixels
_ROUNDS, _STRAIGHTENINGS = 3, 80  # of ordering rows, of placing them
_THREAD = 8.0  # how much more a thread keeps to itself than a box to its neighbours
_LONGEST = 26  # characters


def graph_svg(program: Program, origins: Sequence[LineOrigin] = ()) -> Html:
    """The program's data flow as SVG, in a box that scrolls; with `origins`, each box says which part of the model it
    is. Boxes point at the lines of `code_html(…, anchors=True)`."""
    layout = _Layout(program, origins)
    edges, nodes = layout.edges(), layout.nodes()
    drawing = element(
        "svg",
        element("title", f"Data flow of a program of {len(program)} lines; the text is in its code"),
        *edges,
        *nodes,
        viewBox=f"0 0 {layout.width:.0f} {layout.height:.0f}",
        role="group",
        style=f"width: {layout.width:.0f}px; min-width: {0.8 * layout.width:.0f}px",
        class_="graph",
    )
    return element("figure", scrolling(drawing, "data flow of the program"), _legend(program))


def _legend(program: Program) -> Html:
    types = {line.op.result for line in program.lines} | {Type.CATEGORICAL}
    kinds = [
        element("span", kind.value, class_=f"key {_class_of(kind)}")
        for kind in (Type.CATEGORICAL, Type.NUMERICAL, Type.SELECTOR)
        if kind in types
    ]
    return element("figcaption", *kinds, element("span", "output", class_="key output"))


def component_name(component: Component) -> str:
    """As in `layer 0 head 1` and `layer 2 MLP units 3–7`; how many units, where they are scattered."""
    name = str(component)
    return name if len(name) <= _LONGEST else f"layer {component.layer} MLP, {len(component.units)} units"


_Point = tuple[Variable, int]  # a variable, and a row in which it stands or that it passes


@dataclass(frozen=True)
class _Place:
    """A box, or (with no text) where an arrow that spans rows passes one; pixels."""

    x: float
    top: float
    bottom: float
    width: float


class _Layout:
    """Rows of boxes, each below all that it reads. An arrow that spans rows passes through those between: one thread
    for each s-op, however many lines read it."""

    def __init__(self, program: Program, origins: Sequence[LineOrigin]) -> None:
        self.program = program
        names = {origin.line: [*map(component_name, origin.components)] for origin in origins}
        self.levels = _levels(program)
        self.texts = {variable: _text(program, variable, names.get(variable, [])) for variable in self.levels}
        rows = _Rows(program, self.levels)
        widths = {(v, row): self.width_of(v, row) for row, those in enumerate(rows.rows) for v in those}
        centres = rows.centres(widths)
        left = min(centres[point] - width / 2 for point, width in widths.items()) - _SIDE
        self.width = max(centres[point] + width / 2 for point, width in widths.items()) + _SIDE - left
        self.places: dict[_Point, _Place] = {}
        top = float(_MARGIN)
        for level, row in enumerate(rows.rows):
            height = max(self.height_of(v) for v in row if self.levels[v] == level)
            for v in row:
                own = self.height_of(v) if self.levels[v] == level else height
                self.places[v, level] = _Place(centres[v, level] - left, top, top + own, widths[v, level])
            top += height + _ROW_GAP
        self.height = top - _ROW_GAP + _MARGIN

    def width_of(self, variable: Variable, row: int) -> float:
        if self.levels[variable] != row:
            return _THIN
        return _CHARACTER * max(map(len, self.texts[variable])) + 22

    def height_of(self, variable: Variable) -> float:
        return _TEXT_LINE * len(self.texts[variable]) + 12

    def nodes(self) -> list[Html]:
        return [self.node(variable, level) for variable, level in self.levels.items()]

    def node(self, variable: Variable, level: int) -> Html:
        place, texts = self.places[variable, level], self.texts[variable]
        kind = "input" if variable < 0 else _class_of(self.program.type_of(variable))
        if variable == self.program.output:
            kind += " output"
        box = element(
            "rect",
            x=_px(place.x - place.width / 2),
            y=_px(place.top),
            width=_px(place.width),
            height=_px(place.bottom - place.top),
            rx=16 if "selector" in kind else 5,
        )
        words = [
            element(
                "text", text, x=_px(place.x), y=_px(place.top + 18 + _TEXT_LINE * i), class_="first" if i == 0 else None
            )
            for i, text in enumerate(texts)
        ]
        if variable < 0:
            return element("g", box, *words, class_=f"node {kind}")
        title, name = element("title", self.description(variable)), variable_name(variable)
        return element("a", title, box, *words, href=f"#{name}", class_=f"node {kind}", data_line=name)

    def description(self, variable: Variable) -> str:
        line = self.program.lines[variable]
        read = " and ".join(map(variable_name, line.args))
        return f"{', '.join(self.texts[variable])}; a {line.op.result.value}, reads {read}"

    def edges(self) -> list[Html]:
        threads = [
            _curve(self.places[variable, level - 1], place)
            for (variable, level), place in self.places.items()
            if level > self.levels[variable]
        ]
        through = [
            element("path", d=f"M{place.x:.1f} {place.top:.1f}V{place.bottom:.1f}", class_="edge")
            for (variable, level), place in self.places.items()
            if level > self.levels[variable]
        ]
        return [*threads, *through, *[part for number in range(len(self.program)) for part in self.arrows(number)]]

    def arrows(self, number: Variable) -> list[Html]:
        line, level = self.program.lines[number], self.levels[number]
        target = self.places[number, level]
        sources = [self.places[argument, level - 1] for argument in line.args]
        roles = ROLES.get(line.op, ("",))
        crossed = len(sources) == 2 and sources[0].x > sources[1].x  # then the first argument arrives on the right
        parts = []
        for i, (source, role) in enumerate(zip(sources, roles, strict=True)):
            side = 0 if len(sources) == 1 else 1 if (i == 1) != crossed else -1
            end = _Place(target.x + side * min(target.width / 4, 30), target.top - 5, target.bottom, 0)
            parts.append(_curve(source, end))
            parts.append(element("path", d=f"M{end.x:.1f} {target.top:.1f}l-4 -7h8z", class_="head"))
            anchor = "end" if side < 0 else "start"
            parts.append(
                element(
                    "text",
                    role,
                    x=_px(end.x + 7 * (side or 1)),
                    y=_px(target.top - 5),
                    class_="role",
                    text_anchor=anchor,
                )
            )
        return parts


def _levels(program: Program) -> dict[Variable, int]:
    """The row of each variable; inputs that no line reads have none."""
    used = {argument for line in program.lines for argument in line.args}
    levels = {variable: 0 for variable in (TOKENS, INDICES) if variable in used}
    for number, line in enumerate(program.lines):
        levels[number] = 1 + max(levels[argument] for argument in line.args)
    return levels


class _Rows:
    """What stands in each row or passes it, from left to right, in an order that keeps arrows short."""

    def __init__(self, program: Program, levels: dict[Variable, int]) -> None:
        last = dict(levels)
        self.above: dict[_Point, list[Variable]] = {}
        for number, line in enumerate(program.lines):
            self.above[number, levels[number]] = list(line.args)
            for argument in line.args:
                last[argument] = max(last[argument], levels[number] - 1)
        for variable, level in levels.items():
            for passed in range(level + 1, last[variable] + 1):
                self.above[variable, passed] = [variable]
        self.below: dict[_Point, list[Variable]] = defaultdict(list)
        for (variable, level), sources in self.above.items():
            for source in sources:
                self.below[source, level - 1].append(variable)
        self.rows = [[v for v in levels if levels[v] <= row <= last[v]] for row in range(max(levels.values()) + 1)]
        for _ in range(_ROUNDS):
            for row in range(1, len(self.rows)):
                self.sort(row, row - 1, self.above)
            for row in range(len(self.rows) - 2, -1, -1):
                self.sort(row, row + 1, self.below)

    def sort(self, row: int, other: int, neighbours: Mapping[_Point, list[Variable]]) -> None:
        """By the mean place of each one's neighbours in the other row (Sugiyama's barycentres)."""
        place = {v: i / max(len(self.rows[other]) - 1, 1) for i, v in enumerate(self.rows[other])}
        means = {v: _mean([place[n] for n in neighbours.get((v, row), ())], 0.5) for v in self.rows[row]}
        self.rows[row].sort(key=means.__getitem__)

    def centres(self, widths: Mapping[_Point, float]) -> dict[_Point, float]:
        """Where each one stands: as near to its neighbours as order and widths allow; threads are kept straight."""
        centres = dict.fromkeys(widths, 0.0)
        for turn in range(_STRAIGHTENINGS):
            downwards = turn % 2 == 0
            for row in range(len(self.rows)) if downwards else range(len(self.rows) - 1, -1, -1):
                wanted, heavy = [], []
                for v in self.rows[row]:
                    near = [(u, row - 1) for u in self.above.get((v, row), ())]
                    near += [(u, row + 1) for u in self.below.get((v, row), ())]
                    weights = [_THREAD if u == v else 1.0 for u, _ in near]
                    total = sum(w * centres[point] for w, point in zip(weights, near, strict=True))
                    wanted.append(total / sum(weights) if near else 0.0)
                    heavy.append(max(weights, default=1.0))
                sizes = [widths[v, row] for v in self.rows[row]]
                for v, x in zip(self.rows[row], _apart(wanted, heavy, sizes), strict=True):
                    centres[v, row] = x
        return centres


def _apart(wanted: Sequence[float], weights: Sequence[float], widths: Sequence[float]) -> list[float]:
    """Places that keep order and gaps, nearest to the wanted ones by weighted squares (pool adjacent violators)."""
    offsets = [0.0]
    for before, after in itertools.pairwise(widths):
        offsets.append(offsets[-1] + (before + after) / 2 + _GAP)
    pools: list[tuple[float, float, int]] = []  # mean, weight, how many
    for want, weight, offset in zip(wanted, weights, offsets, strict=True):
        mean, total, count = want - offset, weight, 1
        while pools and pools[-1][0] > mean:
            other, other_total, other_count = pools.pop()
            mean = (mean * total + other * other_total) / (total + other_total)
            total, count = total + other_total, count + other_count
        pools.append((mean, total, count))
    starts = [mean for mean, _, count in pools for _ in range(count)]
    return [start + offset for start, offset in zip(starts, offsets, strict=True)]


def _mean(numbers: Sequence[float], default: float) -> float:
    return sum(numbers) / len(numbers) if numbers else default


def _text(program: Program, variable: Variable, components: list[str]) -> list[str]:
    if variable < 0:
        return [variable_name(variable)]
    line = program.lines[variable]
    texts = [f"{variable_name(variable)}  {line.op.text.removesuffix('_numerical').replace('_', ' ')}"]
    if line.function is not None:
        entries = f"table of {len(line.function.table)}" if line.function.table is not None else str(line.function)
        texts.append(entries if len(entries) <= _LONGEST else entries[: _LONGEST - 1] + "…")
    return texts + components


def _class_of(kind: Type) -> str:
    return kind.name.lower()


def _curve(source: _Place, target: _Place) -> Html:
    start, end, middle = source.bottom, target.top, (source.bottom + target.top) / 2
    path = f"C{source.x:.1f} {middle:.1f} {target.x:.1f} {middle:.1f} {target.x:.1f} {end:.1f}"
    return element("path", d=f"M{source.x:.1f} {start:.1f}{path}", class_="edge")


def _px(number: float) -> str:
    return f"{number:.1f}"
