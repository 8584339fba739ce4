"""Read the functions of a program from the weights, once its operations and arguments are known.

The decoder finds *which* s-ops there are and who reads whom; what a map or a selector does with each value is then
plain in the weights. Every value of an s-op is a vector that some unit writes; who reads it is a dot product, so this
works in any orthogonal basis. Lines are read in order. Where weights can be split among lines in several ways (two maps
of one s-op), all splits are offered; the caller verifies.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from trade_hf.circuit.encodings import NEAR, ON, Encodings
from trade_hf.circuit.ties import first_of_largest, first_of_smallest, in_order, ranks
from trade_hf.compiled.transforms import all_readers, residual_vectors
from trade_hf.compiled.weights import COLDNESS, TracrWeights
from trade_hf.limits import GaveUpError, Limits, Patience
from trade_hf.rasp.canonical import Node, Structure
from trade_hf.rasp.functions import linear
from trade_hf.rasp.program import INDICES, TOKENS, Line, Op, Program, Type, Variable, type_of
from trade_hf.rasp.tables import first_appearance, sort_values

SMALL = 1e-3  # of a number
SLOPE = 0.01  # of a slope: how far one may be off
CLOSE = 1e-4  # of thresholds, which are then one
ROUNDING = 3e-6  # of a number's size, where it was changed to another basis and back
IN_NOISE = 1.2  # of a bias: how far noise may take the two units of a threshold, which are 1 apart
CHANCE = 0.005  # times its denominator: a fraction so near is no chance
LARGEST_DENOMINATOR = 240
MAX_NUMERICAL_MAPS = 5  # of one s-op; their units are searched for among all that read it
MOST_TOLD = 10_000_000  # numbers that readers tell of units that are to be shared among maps
MAX_SPLITS = 24  # ways to share units among lines, for one group of lines
STEPS = 10_000  # for one program; nearly all are read in fewer than a hundred


class UnreadableError(ValueError):
    """The weights do not hold what the operations and arguments promise."""


@dataclass(frozen=True)
class Written:
    """How an s-op stands in the residual stream: a vector for each code, or one vector and its value set."""

    vectors: np.ndarray  # [code, d_model] or [1, d_model]
    numbers: tuple[float, ...] = ()


@dataclass(frozen=True)
class Reading:
    """One line as read: its table over codes, how it is written, and, of a step function, the hidden unit that writes
    what it gives below its first threshold."""

    entries: tuple
    written: Written
    factors: Any = None
    start: int | None = None


@dataclass
class State:
    """Lines read so far."""

    written: dict[Variable, Written]
    readings: dict[int, Reading] = field(default_factory=dict)

    @functools.cached_property
    def starts(self) -> frozenset[int]:
        """The hidden units that are known to be the start of some line's step function."""
        return frozenset(reading.start for reading in self.readings.values() if reading.start is not None)

    def after(self, readings: dict[int, Reading]) -> State:
        """With more lines read."""
        sops = {n: reading.written for n, reading in readings.items() if len(reading.written.vectors)}
        return State(self.written | sops, self.readings | readings)


def read_structures(program: Program, weights: TracrWeights) -> Iterator[Structure]:
    """Structures with the operations and arguments of `program` and tables read from `weights`.

    None if they do not fit. The functions of `program` are not looked at.
    """
    yield from Reader(program.lines, weights).structures()


class Reader:
    """Reads the functions of a program's lines, from all layers or from one.

    Attributes:
      furthest: the line furthest down that was come to, counted from 0. If there is no structure, that line, one that
        reads the same s-ops, or one above it is wrong.
      is_ordered: whether it matters which of several lines alike is which, since later lines read one of them.
    """

    is_ordered = True

    def __init__(
        self,
        lines: Sequence[Line],
        weights: TracrWeights,
        layer: int | None = None,
        encodings: Encodings | None = None,
        limits: Limits | None = None,
    ) -> None:
        self.furthest = 0
        self.lines, self.weights, self.patience = lines, weights, Patience(STEPS, limits)
        embeddings = weights.tensors["token_embed/embeddings"]
        # Nothing reads the pad token: its row stands for the constant direction that all tokens share.
        self.shared = embeddings[weights.vocab.index(weights.pad)]
        self.bos = embeddings[weights.vocab.index(weights.bos)] - self.shared
        # Where nothing was lost of the residual stream, the two tokens have a direction each.
        self.is_whole = abs(float(self.bos @ self.bos) - 2) < NEAR
        self.same = NEAR if self.is_whole else SMALL  # rows that are no further apart are one
        layers = range(weights.num_layers) if layer is None else [layer]
        self.first_unit = layers[0] * weights.mlp_size  # units are numbered through all layers
        self.first = np.concatenate([weights.layer(i, "mlp/linear_1/w").T for i in layers])  # [unit, d_model]
        self.second = np.concatenate([weights.layer(i, "mlp/linear_2/w") for i in layers])
        self.biases = self.first @ self.shared
        self.heads = [self._head(layer, h) for layer in layers for h in range(weights.num_heads)]
        self.encodings = encodings or Encodings(weights)

    def of(self, lines: Sequence[Line]) -> Reader:
        """A reader of other lines from the same layers."""
        other = copy.copy(self)
        other.furthest, other.lines = 0, lines
        return other

    def _head(self, layer: int, number: int) -> tuple[np.ndarray, ...]:
        columns = slice(number * self.weights.key_size, (number + 1) * self.weights.key_size)
        names = ("attn/query/w", "attn/key/w", "attn/value/w")
        parts = [self.weights.layer(layer, name)[:, columns] for name in names]
        return (*parts, self.weights.layer(layer, "attn/linear/w")[columns])

    def structures(self) -> Iterator[Structure]:
        """As `read_structures`."""
        with contextlib.suppress(GaveUpError, RecursionError):
            for state in self.read(0, self.start()):
                with contextlib.suppress(UnreadableError):
                    yield self.structure(state)

    def start(self) -> State:
        vocab, embeddings = self.weights.vocab, self.weights.tensors["token_embed/embeddings"]
        tokens = sort_values(self.weights.input_vocab)
        rows = np.stack([embeddings[vocab.index(token)] for token in tokens]) - self.shared
        positions = self.weights.tensors["pos_embed/embeddings"][1:]
        return State({TOKENS: Written(rows), INDICES: Written(positions)})

    # ------------------------------------------------------------ lines, with all ways to share units among equals

    def read(self, number: int, state: State) -> Iterator[State]:
        """States with all lines from `number` on read as well. Raises GaveUpError."""
        self.patience()
        self.furthest = max(self.furthest, number)
        if number == len(self.lines):
            yield state
            return
        if number in state.readings or self.lines[number].op is Op.SELECT:
            yield from self.read(number + 1, state)
            return
        line = self.lines[number]
        group = [n for n in range(number, len(self.lines)) if self._alike(self.lines[n], line)]
        try:
            splits = itertools.islice(self._read_group(group, line, state), MAX_SPLITS)
            for readings in splits:
                yield from self.read(number + 1, state.after(readings))
        except UnreadableError:
            return

    def _alike(self, other: Line, line: Line) -> bool:
        """Lines whose units look alike to who reads them in."""
        maps = (Op.MAP, Op.MAP_NUMERICAL)
        same_op = other.op is line.op or (other.op in maps and line.op in maps)
        return same_op and self._sources(other) == self._sources(line)

    def _sources(self, line: Line) -> tuple[Variable, ...]:
        if Type.SELECTOR in line.op.argument_types:
            return (*self.lines[line.args[0]].args, *line.args[1:])
        return line.args

    def _read_group(self, group: list[int], line: Line, state: State) -> Iterator[dict[int, Reading]]:
        match line.op:
            case Op.MAP | Op.MAP_NUMERICAL:
                if type_of(self.lines, line.args[0]) is Type.NUMERICAL:
                    yield from self._map_of_numbers(group, state)
                else:
                    yield from self._maps(group, state.written[line.args[0]])
            case Op.SEQUENCE_MAP if line.args[0] == line.args[1]:
                raise UnreadableError("a sequence map of an s-op with itself: its units are a map's")
            case Op.SEQUENCE_MAP:
                yield from self._sequence_maps(group, *(state.written[argument] for argument in line.args))
            case Op.LINEAR_SEQUENCE_MAP:
                yield from self._linear(group, state)
            case _:
                yield from self._attention(group, line, state)

    # ------------------------------------------------------------ MLP units

    def _maps(self, group: list[int], source: Written) -> Iterator[dict[int, Reading]]:
        reads = self.first @ source.vectors.T  # [unit, code]
        units = np.flatnonzero((np.abs(reads).max(1) > 1e-3) & (np.abs(self.biases) < NEAR)).tolist()
        numerical = [n for n in group if self.lines[n].op is Op.MAP_NUMERICAL]
        categorical = [n for n in group if self.lines[n].op is Op.MAP]
        if len(numerical) > MAX_NUMERICAL_MAPS:
            raise UnreadableError("too many numerical maps of one s-op")
        splitting = self._splitting(units, categorical)
        told = {unit: self.is_of_numbers(unit, reads[unit]) for unit in units}
        sure, may = ([unit for unit in units if told[unit] is answer] for answer in (True, None))
        if len(sure) > len(numerical):
            raise UnreadableError("too few numerical maps of one s-op")
        for others in itertools.combinations(may, len(numerical) - len(sure)):
            self.patience()
            chosen = (*sure, *others)
            blocks = {u: frozenset(np.flatnonzero(reads[u] > 0.5).tolist()) for u in units if u not in chosen}
            if any(np.abs(reads[u] - (reads[u] > 0.5)).max() > NEAR or not block for u, block in blocks.items()):
                continue
            for order in itertools.permutations(chosen) if self.is_ordered else [chosen]:
                for covers in _covers(blocks, len(source.vectors), len(categorical), splitting):
                    readings = {n: self._numerical_map(u, reads[u]) for n, u in zip(numerical, order, strict=True)}
                    tables = _tables(blocks, covers, len(source.vectors))
                    for n, (entries, ordered) in zip(categorical, tables, strict=True):
                        readings[n] = Reading(entries, Written(self.second[ordered]))
                    yield readings

    def is_of_numbers(self, unit: int, reads: np.ndarray) -> bool | None:
        """Whether a unit that reads so much of each value is a numerical map's; None where it may be a value's too."""
        is_plain = np.abs(reads - (reads > ON)).max() < NEAR
        return self.encodings.is_number(self.second[unit]) if is_plain else True

    def _numerical_map(self, unit: int, reads: np.ndarray) -> Reading:
        entries, numbers = _as_numbers(reads.tolist())
        return Reading(entries, Written(self.second[[unit]], numbers))

    def _sequence_maps(self, group: list[int], first: Written, second: Written) -> Iterator[dict[int, Reading]]:
        left, right = self.first @ first.vectors.T > 0.5, self.first @ second.vectors.T > 0.5
        units = np.flatnonzero((left.sum(1) == 1) & (right.sum(1) == 1) & (np.abs(self.biases + 1) < NEAR))
        units = units[np.linalg.norm(self.second[units], axis=1) > self.same]  # the others stand for undefined values
        width = len(second.vectors)
        read = left[units].argmax(1) * width + right[units].argmax(1)
        blocks: dict[int, frozenset[int]] = {}
        for members in _same_rows(self.second[units], self.same):
            blocks[int(units[members[0]])] = frozenset(read[members].tolist())
        cells = len(first.vectors) * width
        for covers in _covers(blocks, cells, len(group), self._splitting(list(blocks), group)):
            tables = _tables(blocks, covers, cells)
            yield {n: self._joined(entries, ordered) for n, (entries, ordered) in zip(group, tables, strict=True)}

    def _joined(self, entries: tuple[int, ...], units: list[int]) -> Reading:
        """A sequence map. Where a part of the residual stream was lost, a value that nothing reads leaves no trace, as
        if it were undefined: it is one value more, unless all values are read."""
        rows = self.second[units]
        if self.is_whole or -1 not in entries or (np.abs(self.encodings.compared @ rows.T) > ON).any():
            return Reading(entries, Written(rows))
        rows = np.concatenate([rows, np.zeros_like(self.second[:1])])
        entries, order = first_appearance(tuple(len(units) if entry < 0 else entry for entry in entries))
        return Reading(entries, Written(rows[np.array(order)]))

    def _splitting(self, units: list[int], maps: list[int]) -> _Splitting:
        """How to share units among maps: those first that are read as one s-op's values are, by the same parts and
        beside the same other values."""
        if len(maps) < 2 or len(units) * self.weights.num_layers * self.weights.d_model > MOST_TOLD:
            return _Splitting(self.patience)
        told = self._told_by_readers(self.second[units])
        sizes = ranks((told**2).sum(1)).tolist()
        return _Splitting(self.patience, dict(zip(units, told, strict=True)), dict(zip(units, sizes, strict=True)))

    def _told_by_readers(self, vectors: np.ndarray) -> np.ndarray:
        """[vector, feature]: of directions, which heads and outputs read them, and how many hidden units of each layer
        do, beside what."""
        features = [np.abs(vectors @ self.weights.unembedding).max(1) > 0.5]
        for layer in range(self.weights.num_layers):
            self.patience()
            for head in range(self.weights.num_heads):
                features += [np.abs(vectors @ part).max(1) > 0.5 for part in self._head(layer, head)[:3]]
            first = self.weights.layer(layer, "mlp/linear_1/w").T
            for bias in (0, -1):  # of maps, and of sequence maps
                units = first[np.abs(first @ self.shared - bias) < NEAR]
                beside = vectors @ units.T @ units
                own = (beside * vectors).sum(1)
                features += [own, *(beside - own[:, None] * vectors).T]
        return np.stack(features, 1).astype(np.float64)

    def _linear(self, group: list[int], state: State) -> Iterator[dict[int, Reading]]:
        """Linear maps of the same two numbers: of each number a unit for every map, and both write along its output."""
        ends = self.linear_ends(state)
        first, second = self.lines[group[0]].args
        pairs = [(a, b) for a in ends.get(first, []) for b in ends.get(second, []) if is_along(a, b)]
        for chosen in itertools.combinations(pairs, len(group)):
            self.patience()
            if any(one is other for a, b in itertools.combinations(chosen, 2) for one, other in zip(a, b, strict=True)):
                continue
            maps = [self._linear_map(*pair, state.written[first], state.written[second]) for pair in chosen]
            yield dict(zip(group, maps, strict=True))

    def linear_ends(self, state: State) -> dict[Variable, list[np.ndarray]]:
        """By number, what each unit writes that takes it as it is; another one takes its negative and writes the
        opposite."""
        plain, found = np.abs(self.biases) < NEAR, {}
        for variable, written in state.written.items():
            if written.numbers:
                takes = self.first @ written.vectors[0]
                forwards, backwards = (self.second[plain & (np.abs(takes - sign) < NEAR)] for sign in (1, -1))
                ends = [row for row in forwards if len(backwards) and np.abs(backwards + row).max(1).min() < NEAR]
                if ends:
                    found[variable] = ends
        return found

    def _linear_map(self, a: np.ndarray, b: np.ndarray, first: Written, second: Written) -> Reading:
        """A linear map by what its two numbers add to it."""
        direction = self._number_direction((a, b)[first_of_largest([float(np.linalg.norm(row)) for row in (a, b)])])
        factors = (_tidy(float(a @ direction)), _tidy(float(b @ direction)))
        sums = {factors[0] * x + factors[1] * y for x in first.numbers for y in second.numbers}
        return Reading((), Written(direction[None], tuple(sorted(sums))), linear(*factors))

    def _number_direction(self, row: np.ndarray) -> np.ndarray:
        """The direction of a number that a row goes along, with the sign that its readers tell: all but those of linear
        maps read it with a plus. Where these are the only ones either sign will do, and a basis' axis has one."""
        direction = row / np.linalg.norm(row)
        read = float((self.all_readers @ direction).sum())
        told = read if abs(read) > ON else float(direction.sum())
        return direction if told > 0 else -direction

    @functools.cached_property
    def all_readers(self) -> np.ndarray:
        """[reader, d_model] of the whole model."""
        return all_readers(residual_vectors(self.weights))

    def _steps(self, direction: np.ndarray, inputs: tuple[float, ...], maps: int = 1) -> _Steps:
        """What `maps` step functions of a number add, which has the values `inputs`, ascending.

        Raises UnreadableError where these are no step functions of it.
        """
        units = np.flatnonzero(np.abs(self.first @ direction / self.weights.exactness - 1) < SLOPE)
        at, added = self._thresholds(units)
        nothing = np.zeros(self.weights.d_model)
        if sum(map(len, added)) == (len(inputs) - 1) * maps and not any(len(some) % maps for some in added):
            return _Steps(units, list(range(len(inputs))), [len(some) // maps for some in added], added)
        # Some maps are defined on a part of the values alone, or have thresholds between values that are one here.
        taken = [math.ceil(len(some) / maps) for some in added]
        added = [[*some, *[nothing] * (count * maps - len(some))] for some, count in zip(added, taken, strict=True)]
        defined = _values_between(inputs, at) if maps == 1 and set(taken) <= {1} else None
        if defined is not None:
            return _Steps(units, [defined.index(x) if x in defined else -1 for x in inputs], taken, added)
        passed = [sum(count for t, count in zip(at, taken, strict=True) if t <= x + CLOSE) for x in inputs]
        return _Steps(units, passed, taken, added)

    def _thresholds(self, units: np.ndarray) -> tuple[list[float], list[list[np.ndarray]]]:
        """The thresholds of units that read a number with the slope, ascending, and what is added at each. Two units of
        a function stand at a threshold: the upper one writes the step, the lower one, whose bias is 1 less, takes it
        back."""
        units = units[in_order(-self.biases[units], CLOSE * self.weights.exactness)]
        biases, rows, is_left = self.biases[units], self.second[units], np.ones(len(units), bool)
        at: list[float] = []
        added: list[list[np.ndarray]] = []
        for upper in range(len(units)):
            if not is_left[upper]:
                continue
            is_left[upper] = False
            off = np.abs(biases[upper] - biases - 1)
            lower = np.flatnonzero(is_left & (off < IN_NOISE))
            lower = lower[np.abs(rows[lower] + rows[upper]).max(1) < SMALL + NEAR * np.abs(rows[upper]).max()]
            if not len(lower):
                raise UnreadableError("a threshold of one unit alone")
            is_left[lower[first_of_smallest(off[lower], CLOSE * self.weights.exactness)]] = False
            threshold = (1 - float(biases[upper])) / self.weights.exactness
            if not at or threshold - at[-1] > CLOSE:
                at.append(threshold)
                added.append([])
            added[-1].append(rows[upper])
        return at, added

    def _starts(self, beside: np.ndarray, state: State) -> dict[int, np.ndarray]:
        """What units write that read the constant direction alone, by unit: those of the same layer as the units
        `beside`, that are no line's yet."""
        norms, layers = (self.first**2).sum(1), np.arange(len(self.first)) // self.weights.mlp_size
        alone = (np.abs(self.biases - 1) < NEAR) & (np.abs(norms - 1) < NEAR)
        if len(beside):
            alone &= layers == layers[beside[0]]
        numbers = (self.first_unit + np.flatnonzero(alone)).tolist()
        return {number: self.second[number - self.first_unit] for number in numbers if number not in state.starts}

    def starts(self, state: State) -> list[np.ndarray]:
        """What starts of step functions write that are no line's yet."""
        return list(self._starts(np.zeros(0, int), state).values())

    def _map_of_numbers(self, group: list[int], state: State) -> Iterator[dict[int, Reading]]:
        source = state.written[self.lines[group[0]].args[0]]
        steps = self._steps(source.vectors[0], source.numbers, len(group))
        starts = self._starts(steps.units, state)
        numerical = [self.lines[n].op is Op.MAP_NUMERICAL for n in group]
        for shared in self._shared_out(numerical, starts, steps):
            found = [self._staircase(*way, steps.cells, kind) for way, kind in zip(shared, numerical, strict=True)]
            readings = {number: reading for number, reading in zip(group, found, strict=True) if reading is not None}
            if len(readings) == len(group):
                yield readings

    def _staircase(self, unit: int, vectors: np.ndarray, cells: list[int], numerical: bool) -> Reading | None:
        """A step function's table over the values of a number, which are above as many steps as `cells` says. None
        where it gives nothing, or what is no number."""
        if not numerical:
            groups = _same_rows(vectors, self.same)
            block_of = {above: number for number, members in enumerate(groups) for above in members}
            entries, order = first_appearance(tuple(None if above < 0 else block_of[above] for above in cells))
            rows = [vectors[groups[number][0]] for number in order]  # type: ignore[index]
            return Reading(entries, Written(np.stack(rows)), start=unit) if rows else None
        longest = vectors[first_of_largest(np.linalg.norm(vectors, axis=1))]
        if (size := np.linalg.norm(longest)) < SMALL:
            return None
        direction = self._number_direction(longest)
        along = vectors @ direction
        if np.abs(vectors - along[:, None] * direction).max() > NEAR * size:
            return None
        given, numbers = _as_numbers([-math.inf if above < 0 else float(along[above]) for above in cells])
        return Reading(given, Written(direction[None], numbers), start=unit)

    def _shared_out(
        self, numerical: list[bool], starts: dict[int, np.ndarray], steps: _Steps, before: int = -1
    ) -> Iterator[list[tuple[int, np.ndarray]]]:
        """Ways to give each map of a number a start, and at each threshold as many steps as it takes, so that no step
        is left: the start's unit, and what the map gives from the lowest number up, [threshold + 1, d_model]."""
        self.patience()
        if not numerical:
            if all(np.abs(step).max() < NEAR for some in steps.added for step in some):
                yield []
            return
        for unit, start in starts.items():
            if np.abs(start).max() > SMALL and self.encodings.is_number(start) is (not numerical[0]):
                continue
            if unit < before:
                continue
            others = {other: row for other, row in starts.items() if other != unit}
            # Where it does not matter which of several maps alike is which, one order of them is enough.
            is_alike = not self.is_ordered and len(numerical) > 1 and numerical[0] == numerical[1]
            for own in _lines_up(start, steps) if numerical[0] else self._walks(start, steps):
                rows = [start, *(some[i] for some, places in zip(steps.added, own, strict=True) for i in places)]
                left = [
                    [step for i, step in enumerate(some) if i not in places]
                    for some, places in zip(steps.added, own, strict=True)
                ]
                for rest in self._shared_out(
                    numerical[1:], others, replace(steps, added=left), unit if is_alike else -1
                ):
                    yield [(unit, np.cumsum(rows, 0)), *rest]

    def _walks(self, start: np.ndarray, steps: _Steps) -> Iterator[list[tuple[int, ...]]]:
        """Of each threshold the steps of a categorical map: from the direction where it is to another one, or none."""

        def walk(at: np.ndarray, first: int) -> Iterator[list[tuple[int, ...]]]:
            own: list[tuple[int, ...]] = []
            for place in range(first, len(steps.added)):
                moving, resting = self._ways_on(at, steps.added[place])
                ways = moving + resting[:1]
                if steps.taken[place] > 1 or (not self.is_whole and len(ways) > 1):
                    for some, after in self._orders(at, steps.added[place], steps.taken[place]):
                        for rest in walk(after, place + 1):
                            yield [*own, some, *rest]
                    return
                if not ways:
                    return
                own.append((ways[0],))
                at = at + steps.added[place][ways[0]]
            yield own

        yield from walk(start, 0)

    def _ways_on(self, at: np.ndarray, steps: list[np.ndarray]) -> tuple[list[int], list[int]]:
        """The steps that go from a value's direction to another one's, and those that go nowhere."""
        lengths = [float(np.linalg.norm(step)) for step in steps]
        resting = [i for i, length in enumerate(lengths) if length < self.same]
        if self.is_whole:
            return [i for i, step in enumerate(steps) if abs(float(step @ at) + 1) < NEAR], resting
        moving = [i for i, length in enumerate(lengths) if length >= self.same]
        return [i for i in moving if self.encodings.is_value(at + steps[i])], resting

    def _orders(
        self, at: np.ndarray, steps: list[np.ndarray], count: int, taken: tuple[int, ...] = ()
    ) -> Iterator[tuple[tuple[int, ...], np.ndarray]]:
        """Ways to take `count` of the steps one after the other, and where each ends."""
        self.patience()
        if len(taken) == count:
            yield taken, at
            return
        moving, resting = self._ways_on(at, steps)
        for i in [i for i in moving if i not in taken] + [i for i in resting if i not in taken][:1]:
            yield from self._orders(at + steps[i], steps, count, (*taken, i))

    # ------------------------------------------------------------ heads

    def _attention(self, group: list[int], line: Line, state: State) -> Iterator[dict[int, Reading]]:
        select = self.lines[line.args[0]]
        keys, queries = (state.written[argument] for argument in select.args)
        value = state.written[line.args[1]] if len(line.args) > 1 else None
        found = []
        for query, key, reads, writes in self.heads:
            moved = (self.bos[None] if value is None else value.vectors) @ reads
            bos_moved = np.abs(self.bos @ reads).max() > 0.5
            if not self.reads_exactly(key, keys) or np.abs(moved).max(1).min() < 0.5 or bos_moved != (value is None):
                continue
            logits = (queries.vectors @ query) @ (keys.vectors @ key).T / COLDNESS  # [query, key]
            if self._reads_other(query, queries, state):
                continue
            found.append((tuple((logits.T > 0.5).astype(int).ravel().tolist()), moved @ writes))
        found.sort(key=lambda item: item[0])
        if len(found) < len(group):
            raise UnreadableError("fewer heads than lines")
        for chosen in itertools.permutations(found, len(group)):
            self.patience()
            readings: dict[int, Reading] = {}
            try:
                for number, (selector, written) in zip(group, chosen, strict=True):
                    readings |= self.attended(number, selector, written, value, state)
            except UnreadableError:  # another s-op's head, which reads the same
                continue
            yield readings

    @staticmethod
    def reads_exactly(key: np.ndarray, keys: Written) -> bool:
        norms = np.linalg.norm((keys.vectors @ key).astype(np.float64), axis=1)  # squares may leave float32
        return bool(np.abs(norms - 1).max() < NEAR) and bool(
            abs((np.linalg.norm(key) ** 2) - len(keys.vectors) - 1) < 0.5
        )

    @staticmethod
    def _reads_other(query: np.ndarray, queries: Written, state: State) -> bool:
        total = np.abs(queries.vectors @ query).max()
        others = [w.vectors for w in state.written.values() if w is not queries]
        return bool(total < 0.5) and any(np.abs(vectors @ query).max() > 0.5 for vectors in others)

    def attended(
        self, number: int, selector: tuple, written: np.ndarray, value: Written | None, state: State
    ) -> dict[int, Reading]:
        op, select = self.lines[number].op, self.lines[number].args[0]
        readings: dict[int, Reading] = (
            {} if select in state.readings else {select: Reading(selector, Written(written[:0]))}
        )
        if select in state.readings and state.readings[select].entries != selector:
            raise UnreadableError("two readers of one select disagree")
        length = self.weights.max_seq_len
        if op is Op.AGGREGATE:
            return {**readings, number: Reading((), Written(written))}
        if op is Op.AGGREGATE_NUMERICAL:
            assert value is not None
            shares = {v / n for v in value.numbers for n in range(1, length + 1)}
            return {**readings, number: Reading((), Written(written, tuple(sorted(shares))))}
        fractions = tuple(1 / (width + 1) for width in range(length, -1, -1))  # which the head writes
        steps = self._steps(written[0], fractions)
        if steps.taken != [1] * length:
            raise UnreadableError(f"expected {length} thresholds of a selector width, found {sum(steps.taken)}")
        starts, added = self._starts(steps.units, state), np.stack([step for [step] in steps.added])
        if op is Op.SELECTOR_WIDTH_NUMERICAL:
            along = [unit for unit, start in starts.items() if np.abs(start + length * added[0]).max() < NEAR]
            return {
                **readings,
                number: Reading((), Written(-added[:1], tuple(range(length + 1))), start=next(iter(along), None)),
            }
        for unit, start in starts.items():
            vectors = np.concatenate([start[None], added]).cumsum(0)[::-1]
            if self.encodings.is_number(start) is not True and self._are_values(vectors):
                return {**readings, number: Reading((), Written(vectors), start=unit)}
        raise UnreadableError("a selector width without a start")

    def _are_values(self, rows: np.ndarray) -> bool:
        """Whether these can be all values of one s-op."""
        if self.is_whole:
            return bool((np.abs(np.linalg.norm(rows, axis=1) - 1) < NEAR).all())
        return all(map(self.encodings.is_value, rows))

    # ------------------------------------------------------------ result

    def structure(self, state: State) -> Structure:
        nodes, numbers = [], []
        for number, line in enumerate(self.lines):
            if number not in state.readings:
                raise UnreadableError(f"line {number + 1} was not read")
            reading = state.readings[number]
            nodes.append(Node(line.op, line.args, reading.entries, reading.factors))
            numbers.append(reading.written.numbers)
        values = self.weights.output_values
        if values is not None:
            shown = state.written[len(self.lines) - 1].vectors @ self.weights.unembedding
            if shown.shape[0] != len(values) or np.abs(shown.max(1) - 1).max() > NEAR:
                raise UnreadableError("the last line is not the output")
            values = tuple(values[i] for i in shown.argmax(1))
        vocab = tuple(sort_values(self.weights.input_vocab))
        return Structure(tuple(nodes), tuple(numbers), vocab, self.weights.max_seq_len, values)


@dataclass(frozen=True)
class _Steps:
    """Step functions of one number.

    Attributes:
      units: that read it with the slope.
      cells: how many steps each of its values is above, ascending; -1 where the function is undefined.
      taken: [threshold] how many steps each function takes there; more than one where thresholds are too close to be
        told apart.
      added: [threshold][step] what is added, [d_model].
    """

    units: np.ndarray
    cells: list[int]
    taken: list[int]
    added: list[list[np.ndarray]]


def _values_between(inputs: tuple[float, ...], thresholds: list[float]) -> list[float] | None:
    """Those of the inputs, ascending, that have the thresholds in the middle between each two of them."""
    for first in inputs:
        values = [first]
        for threshold in thresholds:
            near = [x for x in inputs if x > values[-1] and abs((x + values[-1]) / 2 - threshold) < SMALL]
            if not near:
                break
            values.append(near[0])
        else:
            return values
    return None


def _lines_up(start: np.ndarray, steps: _Steps) -> Iterator[list[tuple[int, ...]]]:
    """Of each threshold the steps of a numerical map: along one direction, the longest ones, or none."""
    rows = (start, *itertools.chain(*steps.added))
    directions = [row / np.linalg.norm(row) for row in rows if np.linalg.norm(row) > SMALL]
    seen: list[list[tuple[int, ...]]] = []
    for direction in directions[: 1 if np.linalg.norm(start) > SMALL else None]:
        own = []
        for some, count in zip(steps.added, steps.taken, strict=True):
            along = [i for i, v in enumerate(some) if np.linalg.norm(v - (v @ direction) * direction) < NEAR**2]
            longest = in_order([-float(np.linalg.norm(some[i])) for i in along])
            own.append(tuple(along[i] for i in longest[:count]))
        if all(len(places) == count for places, count in zip(own, steps.taken, strict=True)) and own not in seen:
            seen.append(own)
            yield own


# Numbers that programs hold beside fractions; weights, which are float32, do not tell all of their digits.
_FUNCTIONS = (math.log, math.log2, math.log10, math.sqrt)
_CONSTANTS = [
    *(value for function in _FUNCTIONS for k in range(2, 21) if not (value := function(k)).is_integer()),
    *(math.exp(k) for k in range(1, 6)),
    *(math.pi, math.tau, math.pi / 2),
]


def _tidy(number: float) -> float:
    """The whole number, the constant or the simple fraction that rounding hides, if there is one. Some fraction is
    always near, but not as near as this."""
    nearest = min(_CONSTANTS, key=lambda constant: abs(constant - abs(number)))
    if abs(nearest - abs(number)) <= ROUNDING * max(1.0, nearest):  # before fractions: pi is not 355 / 113
        return math.copysign(nearest, number)
    for denominator in range(1, LARGEST_DENOMINATOR + 1):
        numerator = round(number * denominator)
        off = abs(numerator - number * denominator)
        if off <= ROUNDING * max(denominator, abs(numerator)) and off * denominator <= CHANCE:
            return numerator if denominator == 1 else numerator / denominator
    return float(number)


def _as_numbers(read: list[float]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """What a line gives for each value, as the weights hold it, and the set of these numbers, ascending; fractions that
    rounding alone tells apart are one. -inf: undefined."""
    tidy: dict[float, float] = {-math.inf: -math.inf}
    last = -math.inf
    for number in sorted({number for number in read if math.isfinite(number)}):
        is_same = number - last <= ROUNDING * max(1.0, abs(number)) and not (number.is_integer() and last.is_integer())
        tidy[number] = tidy[last] if is_same else _tidy(number)
        last = number
    numbers = sorted({value for value in tidy.values() if math.isfinite(value)})
    return tuple(float(np.float32(tidy[number])) for number in read), tuple(numbers)


def is_along(one: np.ndarray, other: np.ndarray) -> bool:
    """Whether two rows, one of which may be nothing, are parallel."""
    sizes = float(np.linalg.norm(one)), float(np.linalg.norm(other))
    return max(sizes) > SMALL and (min(sizes) < SMALL or abs(float(one @ other)) > (1 - NEAR) * sizes[0] * sizes[1])


def _same_rows(matrix: np.ndarray, most: float) -> list[list[int]]:
    """Indices of rows whose entries differ by less than `most`, in order of first appearance."""
    groups: list[list[int]] = []
    left = list(range(len(matrix)))
    while left:
        close = np.abs(matrix[left] - matrix[left[0]]).max(1) < most
        groups.append([i for i, same in zip(left, close, strict=True) if same])
        left = [i for i, same in zip(left, close, strict=True) if not same]
    return groups


def _tables(
    blocks: dict[int, frozenset[int]], covers: list[list[int]], cells: int
) -> list[tuple[tuple[int, ...], list[int]]]:
    """The table that each cover of the cells stands for, codes numbered as they appear (-1: undefined), and its blocks
    by code; in order of the tables."""
    tables = []
    for cover in covers:
        ordered = sorted(cover, key=lambda unit: min(blocks[unit]))
        table = [-1] * cells
        for code, unit in enumerate(ordered):
            for cell in blocks[unit]:
                table[cell] = code
        tables.append((tuple(table), ordered))
    return sorted(tables, key=lambda item: item[0])


@dataclass(frozen=True)
class _Splitting:
    """In what order a search for covers goes, by what readers tell of each unit's direction; nothing: by numbers."""

    patience: Patience
    told: dict[int, np.ndarray] = field(default_factory=dict)
    sizes: dict[int, int] = field(default_factory=dict)  # of what is told, the ranks

    def first_unit(self, blocks: dict[int, frozenset[int]]) -> int:
        """The one that most is told of."""
        return min(blocks, key=lambda unit: (-self.sizes.get(unit, 0), unit))

    def first_cell(self, cells: frozenset[int], units: list[int], blocks: dict[int, frozenset[int]]) -> int:
        """One that no unit is left for, else the one whose units tell most; nothing tells units that are read by none
        from one another."""
        if not self.told:
            return min(cells)
        most: dict[int, float] = {}
        for unit in units:
            for cell in blocks[unit] & cells:
                most[cell] = max(most.get(cell, 0.0), self.sizes[unit])
        return min(cells, key=lambda cell: (-most.get(cell, math.inf), cell))

    def likely_first(self, units: list[int], chosen: list[int]) -> list[int]:
        """Units in the order of how alike they are to those that are chosen already."""
        if not chosen or len(units) < 2:
            return units
        return [units[i] for i in in_order([self.distance(unit, chosen) for unit in units])]

    def distance(self, unit: int, chosen: list[int]) -> float:
        """How far readers tell a unit from those that are chosen; 0 where nothing is told."""
        if not self.told:
            return 0.0
        meant = np.mean([self.told[other] for other in chosen], axis=0)
        return float(((self.told[unit] - meant) ** 2).sum())


def _covers(
    blocks: dict[int, frozenset[int]], cells: int, count: int, splitting: _Splitting
) -> Iterator[list[list[int]]]:
    """Ways to share all blocks among `count` maps, each of which is defined on all cells if there are blocks enough."""
    defined = sum(map(len, blocks.values()))
    if count > 1 and defined < count * cells:
        yield from _packings(blocks, count, splitting)
    else:
        everything = frozenset().union(*blocks.values()) if count == 1 else frozenset(range(cells))
        yield from _exact_covers(blocks, everything, count, splitting)


def _packings(blocks: dict[int, frozenset[int]], count: int, splitting: _Splitting) -> Iterator[list[list[int]]]:
    """Ways to share all blocks among `count` maps that may be undefined on some cells: those together first that
    readers tell least apart."""
    units = sorted(blocks, key=lambda unit: (-splitting.sizes.get(unit, 0), unit))

    def place(number: int, groups: list[list[int]]) -> Iterator[list[list[int]]]:
        splitting.patience()
        empty = count - len(groups)
        if number == len(units):
            if not empty:
                yield groups
            return
        unit = units[number]
        off = {i: splitting.distance(unit, group) for i, group in enumerate(groups)}
        fitting = [i for i in off if not any(blocks[unit] & blocks[other] for other in groups[i])]
        ways: list[int | None] = [fitting[i] for i in in_order([off[i] for i in fitting])]
        if empty:  # a map of its own, before others that it is told apart from
            ways.insert(sum(off[i] < NEAR for i in fitting), None)
        for i in ways if len(units) - number > empty else [None]:
            if i is None:
                yield from place(number + 1, [*groups, [unit]])
            else:
                yield from place(number + 1, [*groups[:i], [*groups[i], unit], *groups[i + 1 :]])

    yield from place(0, [])


def _exact_covers(
    blocks: dict[int, frozenset[int]], everything: frozenset[int], count: int, splitting: _Splitting
) -> Iterator[list[list[int]]]:
    """Ways to share all blocks among `count` covers of `everything`, each cell once a cover."""
    if count == 0:
        if not blocks:
            yield []
        return
    if not blocks or sum(map(len, blocks.values())) != count * len(everything):
        return
    if count == 1:
        if frozenset().union(*blocks.values()) == everything:
            yield [list(blocks)]
        return

    def cover(left: frozenset[int], available: list[int], chosen: list[int]) -> Iterator[list[int]]:
        splitting.patience()
        if not left:
            yield chosen
            return
        cell = splitting.first_cell(left, available, blocks)
        fitting = [unit for unit in available if cell in blocks[unit] and blocks[unit] <= left]
        for unit in splitting.likely_first(fitting, chosen):
            yield from cover(left - blocks[unit], [u for u in available if u != unit], [*chosen, unit])

    first = splitting.first_unit(blocks)
    for chosen in cover(everything - blocks[first], [u for u in blocks if u != first], [first]):
        rest = {unit: cells for unit, cells in blocks.items() if unit not in chosen}
        for others in _exact_covers(rest, everything, count - 1, splitting):
            yield [chosen, *others]
