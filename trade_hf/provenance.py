"""Where in a model each line of its program is: the heads and hidden units that implement it.

The program is compiled, which tells what each part of the compiled model is for; the model's own parts are then found
by what they read and write, in any basis and order (`circuit/correspondence.py`). `confirm` tests the answer by
ablation.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from trade_hf.circuit.correspondence import Correspondence, correspond
from trade_hf.circuit.denoise import denoise
from trade_hf.compiled.compiler import compile_like, owners_of
from trade_hf.compiled.forward import residual_stream
from trade_hf.compiled.weights import TracrWeights
from trade_hf.rasp.evaluate import PADDING, random_inputs
from trade_hf.rasp.program import Op, Program, Variable

CHANGED = 1e-3  # of a value in the residual stream, where values are 1 apart
INPUTS = 64


@dataclass(frozen=True)
class Component:
    """A head of a layer (both counted from 0), or some of its MLP's hidden units, ascending."""

    layer: int
    kind: Literal["head", "mlp"]
    head: int | None = None
    units: tuple[int, ...] = ()

    @property
    def places(self) -> tuple[int, ...]:
        """The head, or the units."""
        return self.units if self.head is None else (self.head,)

    def __str__(self) -> str:
        place = f"layer {self.layer} "
        return f"{place}head {self.head}" if self.kind == "head" else f"{place}MLP units {_ranges(self.units)}"


@dataclass(frozen=True)
class LineOrigin:
    """What implements a line (counted from 0). A select has no part of its own: it is in the heads of the aggregates
    and selector widths that read it. The unit that cleans BOS belongs to all selector widths of its layer."""

    line: int
    components: tuple[Component, ...]

    def __str__(self) -> str:
        return "; ".join(map(str, self.components))


def owners(origins: Sequence[LineOrigin]) -> dict[Component, tuple[Variable, ...]]:
    """The lines that each component is of, ascending."""
    lines: dict[Component, set[Variable]] = {}
    for origin in origins:
        for component in origin.components:
            lines.setdefault(component, set()).add(origin.line)
    return {component: tuple(sorted(those)) for component, those in lines.items()}


def provenance(program: Program, weights: TracrWeights) -> tuple[LineOrigin, ...]:
    """The origin of each live line, in order.

    Args:
      program: over the model's own tokens, as `Decompilation.program`.
      weights: a model that is the program's own, in whatever basis and order.

    Raises ValueError where the model's parts are not those that Tracr makes of the program.
    """
    compiled = compile_like(program, weights)
    _, there = _matched(compiled, weights)
    heads: dict[int, list[Component]] = {}
    units: dict[tuple[int, int], list[int]] = {}
    for layer, owners in enumerate(owners_of(program, weights)):
        for head, line in enumerate(owners.heads):
            heads.setdefault(line, []).append(Component(layer, "head", head=there.heads[layer][head]))
        for unit, lines in enumerate(owners.units):
            for line in lines:
                units.setdefault((line, layer), []).append(there.units[layer][unit])
    origins = []
    for line in program.live_lines:
        blocks = [Component(at, "mlp", units=tuple(sorted(some))) for (n, at), some in units.items() if n == line]
        own = [*heads.get(line, []), *blocks]
        if program.lines[line].op is Op.SELECT:
            own = [head for reader in readers(program, line) for head in heads[reader]]
        origins.append(LineOrigin(line, tuple(own)))
    return tuple(origins)


def confirm(program: Program, weights: TracrWeights, origins: Sequence[LineOrigin], seed: int = 0) -> tuple[bool, ...]:
    """For each origin, whether silencing its components changes the line's values in the residual stream (of a select:
    those of its readers) on some of INPUTS seeded inputs, and on none the values of a line that does not depend on it.

    A unit that cleans BOS is left alone: it belongs to several lines and acts at BOS only. Raises ValueError as
    `provenance`.
    """
    compiled = compile_like(program, weights)
    weights, there = _matched(compiled, weights)
    back = np.linalg.pinv(there.basis, rcond=1e-4)
    inputs = random_inputs(len(weights.input_vocab), weights.max_seq_len, INPUTS, seed)
    directions = _directions(compiled)
    shared = _shared_units(origins)

    def values(model: TracrWeights) -> np.ndarray:
        return residual_stream(model, inputs)[inputs != PADDING] @ back

    meant, verdicts = values(weights), []
    for origin in origins:
        moved = np.abs(values(silenced(weights, origin.components, shared)) - meant).max(0) > CHANGED
        changed = {line for line, own in directions.items() if moved[own].any()}
        line = origin.line
        own = {line} if program.lines[line].op is not Op.SELECT else set(readers(program, line))
        verdicts.append(bool(own & changed) and changed <= _dependent(program, line))
    return tuple(verdicts)


@np.errstate(all="ignore")
def _matched(compiled: TracrWeights, weights: TracrWeights) -> tuple[TracrWeights, Correspondence]:
    """The model, in Tracr's basis where it cannot be matched in its own, and what in it corresponds to `compiled`."""
    try:
        return weights, correspond(compiled, weights)
    except ValueError:
        found = denoise(weights)
        return found, correspond(compiled, found)


def without(weights: TracrWeights, origins: Sequence[LineOrigin], line: Variable) -> TracrWeights:
    """A copy in which a line's parts write nothing, but for a unit that cleans BOS for other lines too.

    Args:
      origins: of all lines, as `provenance` gives them.
      line: which one, counted from 0.
    """
    parts = [part for origin in origins if origin.line == line for part in origin.components]
    return silenced(weights, parts, _shared_units(origins))


def silenced(
    weights: TracrWeights, components: Sequence[Component], but: frozenset[tuple[int, int]] = frozenset()
) -> TracrWeights:
    """A copy in which components write nothing; `but` are units (layer, unit) that are left."""
    tensors = dict(weights.tensors)
    for part in components:
        end = "attn/linear/w" if part.kind == "head" else "mlp/linear_2/w"
        name = f"transformer/layer_{part.layer}/{end}"
        tensors[name] = tensors[name].copy()
        if part.head is not None:
            tensors[name][part.head * weights.key_size : (part.head + 1) * weights.key_size] = 0
        else:
            tensors[name][[unit for unit in part.units if (part.layer, unit) not in but]] = 0
    return replace(weights, tensors=tensors)


def readers(program: Program, line: Variable) -> list[Variable]:
    """The live lines that read a line."""
    return [n for n in program.live_lines if line in program.lines[n].args]


def _dependent(program: Program, line: int) -> set[int]:
    """A line and all that depend on it."""
    reached = {line}
    for number in program.live_lines:
        if reached & set(program.lines[number].args):
            reached.add(number)
    return reached


def _directions(compiled: TracrWeights) -> dict[int, list[int]]:
    """The residual directions of each line's values, and of a selector width's share of attention."""
    directions: dict[int, list[int]] = {}
    for place, label in enumerate(compiled.residual_labels):
        if line := re.match(r"v(\d+)_", label):
            directions.setdefault(int(line[1]) - 1, []).append(place)
    return directions


def _shared_units(origins: Sequence[LineOrigin]) -> frozenset[tuple[int, int]]:
    seen: set[tuple[int, int]] = set()
    shared: set[tuple[int, int]] = set()
    for origin in origins:
        units = {(part.layer, unit) for part in origin.components for unit in part.units}
        shared |= seen & units
        seen |= units
    return frozenset(shared)


def runs(numbers: Sequence[int]) -> list[tuple[int, int]]:
    """First and last of each run of consecutive numbers; `numbers` ascend."""
    found: list[tuple[int, int]] = []
    for number in numbers:
        first = found.pop()[0] if found and number == found[-1][1] + 1 else number
        found.append((first, number))
    return found


def _ranges(numbers: Sequence[int]) -> str:
    """`0–3, 7`."""
    return ", ".join(str(first) if first == last else f"{first}–{last}" for first, last in runs(numbers))
