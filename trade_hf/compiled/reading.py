"""Read the functions of a program from the weights, once its operations and arguments are known.

The decoder finds *which* s-ops there are and who reads whom; what a map or a selector does with each value is then
plain in the weights. Every value of an s-op is a vector that some unit writes; who reads it is a dot product, so this
works in any orthogonal basis. Lines are read in order. Where weights can be split among lines in several ways (two maps
of one s-op), all splits are offered; the caller verifies.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import numpy as np

from trade_hf.compiled.weights import TracrWeights
from trade_hf.rasp.canonical import Node, Structure
from trade_hf.rasp.functions import linear
from trade_hf.rasp.program import INDICES, TOKENS, Line, Op, Program, Type, Variable
from trade_hf.rasp.tables import first_appearance, sort_values

COLDNESS = 100.0  # Tracr's softmax coldness, and the slope of threshold units
NEAR = 0.1
LARGEST_DENOMINATOR = 240
MAX_NUMERICAL_MAPS = 3  # of one s-op; their units are searched for among all that read it
MAX_SPLITS = 24  # ways to share units among lines, for one group of lines


class UnreadableError(ValueError):
    """The weights do not hold what the operations and arguments promise."""


@dataclass(frozen=True)
class _Written:
    """How an s-op stands in the residual stream: a vector for each code, or one vector and its value set."""

    vectors: np.ndarray  # [code, d_model] or [1, d_model]
    numbers: tuple[float, ...] = ()


@dataclass(frozen=True)
class _Reading:
    """One line as read: its table over codes, and how it is written."""

    entries: tuple
    written: _Written
    factors: Any = None


@dataclass
class _State:
    """Lines read so far."""

    written: dict[Variable, _Written]
    readings: dict[int, _Reading] = field(default_factory=dict)


def read_structures(program: Program, weights: TracrWeights) -> Iterator[Structure]:
    """Structures with the operations and arguments of `program` and tables read from `weights`.

    None if they do not fit. The functions of `program` are not looked at.
    """
    yield from Reader(program, weights).structures()


class Reader:
    """Reads one program's functions.

    Attributes:
      furthest: the line furthest down that was come to, counted from 0. If there is no structure, that line, one that
        reads the same s-ops, or one above it is wrong.
    """

    def __init__(self, program: Program, weights: TracrWeights) -> None:
        self.furthest = 0
        self.program, self.weights = program, weights
        embeddings = weights.tensors["token_embed/embeddings"]
        # Nothing reads the pad token: its row stands for the constant direction that all tokens share.
        self.shared = embeddings[weights.vocab.index(weights.pad)]
        self.bos = embeddings[weights.vocab.index(weights.bos)] - self.shared
        layers = range(weights.num_layers)
        self.first = np.concatenate([weights.layer(i, "mlp/linear_1/w").T for i in layers])  # [unit, d_model]
        self.second = np.concatenate([weights.layer(i, "mlp/linear_2/w") for i in layers])
        self.biases = self.first @ self.shared
        self.heads = [self._head(layer, h) for layer in layers for h in range(weights.num_heads)]

    def _head(self, layer: int, number: int) -> tuple[np.ndarray, ...]:
        columns = slice(number * self.weights.key_size, (number + 1) * self.weights.key_size)
        names = ("attn/query/w", "attn/key/w", "attn/value/w")
        parts = [self.weights.layer(layer, name)[:, columns] for name in names]
        return (*parts, self.weights.layer(layer, "attn/linear/w")[columns])

    def structures(self) -> Iterator[Structure]:
        """As `read_structures`."""
        for state in self.lines(0, self.start()):
            try:
                yield self.structure(state)
            except UnreadableError:
                continue

    def start(self) -> _State:
        vocab, embeddings = self.weights.vocab, self.weights.tensors["token_embed/embeddings"]
        tokens = sort_values(self.weights.input_vocab)
        rows = np.stack([embeddings[vocab.index(token)] for token in tokens]) - self.shared
        positions = self.weights.tensors["pos_embed/embeddings"][1:]
        return _State({TOKENS: _Written(rows), INDICES: _Written(positions)})

    # ------------------------------------------------------------ lines, with all ways to share units among equals

    def lines(self, number: int, state: _State) -> Iterator[_State]:
        self.furthest = max(self.furthest, number)
        if number == len(self.program):
            yield state
            return
        if number in state.readings or self.program.lines[number].op is Op.SELECT:
            yield from self.lines(number + 1, state)
            return
        line = self.program.lines[number]
        group = [n for n in range(number, len(self.program)) if self._alike(self.program.lines[n], line)]
        try:
            splits = itertools.islice(self._read_group(group, line, state), MAX_SPLITS)
            for readings in splits:
                sops = {n: reading.written for n, reading in readings.items() if len(reading.written.vectors)}
                written = state.written | sops
                after = _State(written, state.readings | readings)
                yield from self.lines(number + 1, after)
        except UnreadableError:
            return

    def _alike(self, other: Line, line: Line) -> bool:
        """Lines whose units look alike to who reads them in."""
        maps = (Op.MAP, Op.MAP_NUMERICAL)
        same_op = other.op is line.op or (other.op in maps and line.op in maps)
        return same_op and self._sources(other) == self._sources(line)

    def _sources(self, line: Line) -> tuple[Variable, ...]:
        if Type.SELECTOR in line.op.argument_types:
            return (*self.program.lines[line.args[0]].args, *line.args[1:])
        return line.args

    def _read_group(self, group: list[int], line: Line, state: _State) -> Iterator[dict[int, _Reading]]:
        match line.op:
            case Op.MAP | Op.MAP_NUMERICAL:
                if self.program.type_of(line.args[0]) is Type.NUMERICAL:
                    yield from self._map_of_numbers(group, state)
                else:
                    yield from self._maps(group, state.written[line.args[0]])
            case Op.SEQUENCE_MAP:
                yield from self._sequence_maps(group, *(state.written[argument] for argument in line.args))
            case Op.LINEAR_SEQUENCE_MAP:
                yield from self._linear(group, *(state.written[argument] for argument in line.args))
            case _:
                yield from self._attention(group, line, state)

    # ------------------------------------------------------------ MLP units

    def _maps(self, group: list[int], source: _Written) -> Iterator[dict[int, _Reading]]:
        reads = self.first @ source.vectors.T  # [unit, code]
        units = np.flatnonzero((np.abs(reads).max(1) > 1e-3) & (np.abs(self.biases) < NEAR)).tolist()
        numerical = [n for n in group if self.program.lines[n].op is Op.MAP_NUMERICAL]
        categorical = [n for n in group if self.program.lines[n].op is Op.MAP]
        if len(numerical) > MAX_NUMERICAL_MAPS:
            raise UnreadableError("too many numerical maps of one s-op")
        for chosen in itertools.combinations(units, len(numerical)):
            blocks = {u: frozenset(np.flatnonzero(reads[u] > 0.5).tolist()) for u in units if u not in chosen}
            if any(np.abs(reads[u] - (reads[u] > 0.5)).max() > NEAR for u in blocks):
                continue
            for order in itertools.permutations(chosen):
                for covers in _exact_covers(blocks, frozenset(range(len(source.vectors))), len(categorical)):
                    readings = {n: self._numerical_map(u, reads[u]) for n, u in zip(numerical, order, strict=True)}
                    tables = sorted((_by_first_appearance(blocks, cover) for cover in covers), key=lambda t: t[0])
                    for n, (entries, ordered) in zip(categorical, tables, strict=True):
                        readings[n] = _Reading(entries, _Written(self.second[ordered]))
                    yield readings

    def _numerical_map(self, unit: int, reads: np.ndarray) -> _Reading:
        entries = tuple(float(np.float32(_tidy(float(value)))) for value in reads)
        return _Reading(entries, _Written(self.second[[unit]], _number_set(entries)))

    def _sequence_maps(self, group: list[int], first: _Written, second: _Written) -> Iterator[dict[int, _Reading]]:
        left, right = self.first @ first.vectors.T > 0.5, self.first @ second.vectors.T > 0.5
        units = np.flatnonzero((left.sum(1) == 1) & (right.sum(1) == 1) & (np.abs(self.biases + 1) < NEAR))
        width = len(second.vectors)
        cells = left[units].argmax(1) * width + right[units].argmax(1)
        blocks: dict[int, frozenset[int]] = {}
        for members in _same_rows(self.second[units]):
            blocks[int(units[members[0]])] = frozenset(cells[members].tolist())
        everything = frozenset(range(len(first.vectors) * width))
        for covers in _exact_covers(blocks, everything, len(group)):
            tables = sorted((_by_first_appearance(blocks, cover) for cover in covers), key=lambda t: t[0])
            readings = {
                n: _Reading(entries, _Written(self.second[ordered]))
                for n, (entries, ordered) in zip(group, tables, strict=True)
            }
            yield readings

    def _linear(self, group: list[int], first: _Written, second: _Written) -> Iterator[dict[int, _Reading]]:
        if len(group) > 1:
            raise UnreadableError("several linear sequence maps of the same s-ops")
        plain = np.abs(self.biases) < NEAR
        left = np.flatnonzero(plain & (np.abs(self.first @ first.vectors[0] - 1) < NEAR)).tolist()
        right = np.flatnonzero(plain & (np.abs(self.first @ second.vectors[0] - 1) < NEAR)).tolist()
        for u, v in itertools.product(left, right):
            a, b = self.second[u], self.second[v]
            size_a, size_b = float(np.linalg.norm(a)), float(np.linalg.norm(b))
            cosine = float(a @ b) / max(size_a * size_b, 1e-9)
            if abs(abs(cosine) - 1) > NEAR:
                continue
            for sign in (1, -1):
                factors = (_tidy(sign * size_a), _tidy(sign * size_b * np.sign(cosine)))
                sums = {factors[0] * x + factors[1] * y for x in first.numbers for y in second.numbers}
                written = _Written((sign * a / size_a)[None], tuple(sorted(sums)))
                yield {group[0]: _Reading((), written, linear(*factors))}

    def _steps(self, direction: np.ndarray, count: int, maps: int = 1) -> tuple[np.ndarray, list[np.ndarray]]:
        """Step functions of a number: what they add at each of `count` - 1 thresholds, ascending, [threshold, map,
        d_model]; and what they may give below the first one."""
        units = np.flatnonzero(np.abs(self.first @ direction - COLDNESS) < 1)
        units = units[
            np.argsort(-self.biases[units], kind="stable")
        ]  # at each threshold the upper units, then the lower
        if count < 2 or len(units) != 2 * (count - 1) * maps:
            raise UnreadableError(f"expected {(count - 1) * maps} thresholds, found {len(units) / 2}")
        upper = units.reshape(count - 1, 2 * maps)[:, :maps]
        return self.second[upper], self._starts(int(units[0]))

    def _starts(self, beside: int) -> list[np.ndarray]:
        """What units of the same layer write that read the constant direction alone."""
        norms, layer = (self.first**2).sum(1), np.arange(len(self.first)) // self.weights.mlp_size
        alone = (np.abs(self.biases - 1) < NEAR) & (np.abs(norms - 1) < NEAR)
        return [self.second[unit] for unit in np.flatnonzero(alone & (layer == layer[beside]))]

    def _map_of_numbers(self, group: list[int], state: _State) -> Iterator[dict[int, _Reading]]:
        source = state.written[self.program.lines[group[0]].args[0]]
        numerical = [self.program.lines[n].op is Op.MAP_NUMERICAL for n in group]
        steps, starts = self._steps(source.vectors[0], len(source.numbers), len(group))
        for chosen in itertools.permutations(starts, len(group)):
            for own in _shared_out(list(zip(chosen, numerical, strict=True)), list(map(list, steps))):
                ways = [list(_staircases(*way)) for way in zip(chosen, own, numerical, strict=True)]
                for readings in itertools.product(*ways):
                    yield dict(zip(group, readings, strict=True))

    # ------------------------------------------------------------ heads

    def _attention(self, group: list[int], line: Line, state: _State) -> Iterator[dict[int, _Reading]]:
        select = self.program.lines[line.args[0]]
        keys, queries = (state.written[argument] for argument in select.args)
        value = state.written[line.args[1]] if len(line.args) > 1 else None
        found = []
        for query, key, reads, writes in self.heads:
            moved = (self.bos[None] if value is None else value.vectors) @ reads
            bos_moved = np.abs(self.bos @ reads).max() > 0.5
            if not self._reads_exactly(key, keys) or np.abs(moved).max(1).min() < 0.5 or bos_moved != (value is None):
                continue
            logits = (queries.vectors @ query) @ (keys.vectors @ key).T / COLDNESS  # [query, key]
            if self._reads_other(query, queries, state):
                continue
            found.append((tuple((logits.T > 0.5).astype(int).ravel().tolist()), moved @ writes))
        found.sort(key=lambda item: item[0])
        if len(found) < len(group):
            raise UnreadableError("fewer heads than lines")
        for chosen in itertools.permutations(found, len(group)):
            readings: dict[int, _Reading] = {}
            try:
                for number, (selector, written) in zip(group, chosen, strict=True):
                    readings |= self._attended(number, selector, written, value, state)
            except UnreadableError:  # another s-op's head, which reads the same
                continue
            yield readings

    @staticmethod
    def _reads_exactly(key: np.ndarray, keys: _Written) -> bool:
        norms = np.linalg.norm(keys.vectors @ key, axis=1)
        return bool(np.abs(norms - 1).max() < NEAR) and bool(
            abs((np.linalg.norm(key) ** 2) - len(keys.vectors) - 1) < 0.5
        )

    @staticmethod
    def _reads_other(query: np.ndarray, queries: _Written, state: _State) -> bool:
        total = np.abs(queries.vectors @ query).max()
        others = [w.vectors for w in state.written.values() if w is not queries]
        return bool(total < 0.5) and any(np.abs(vectors @ query).max() > 0.5 for vectors in others)

    def _attended(
        self, number: int, selector: tuple, written: np.ndarray, value: _Written | None, state: _State
    ) -> dict[int, _Reading]:
        op, select = self.program.lines[number].op, self.program.lines[number].args[0]
        readings: dict[int, _Reading] = (
            {} if select in state.readings else {select: _Reading(selector, _Written(written[:0]))}
        )
        if select in state.readings and state.readings[select].entries != selector:
            raise UnreadableError("two readers of one select disagree")
        length = self.weights.max_seq_len
        if op is Op.AGGREGATE:
            return {**readings, number: _Reading((), _Written(written))}
        if op is Op.AGGREGATE_NUMERICAL:
            assert value is not None
            shares = {v / n for v in value.numbers for n in range(1, length + 1)}
            return {**readings, number: _Reading((), _Written(written, tuple(sorted(shares))))}
        steps, starts = self._steps(written[0], length + 1)  # over 1 / (width + 1), so the widest comes first
        if op is Op.SELECTOR_WIDTH_NUMERICAL:
            return {**readings, number: _Reading((), _Written(-steps[0], tuple(range(length + 1))))}
        reading = next((r for start in starts for r in _staircases(start, steps[:, 0], numerical=False)), None)
        if reading is None:
            raise UnreadableError("a selector width without a start")
        return {**readings, number: _Reading((), _Written(reading.written.vectors[::-1]))}

    # ------------------------------------------------------------ result

    def structure(self, state: _State) -> Structure:
        nodes, numbers = [], []
        for number, line in enumerate(self.program.lines):
            if number not in state.readings:
                raise UnreadableError(f"line {number + 1} was not read")
            reading = state.readings[number]
            nodes.append(Node(line.op, line.args, reading.entries, reading.factors))
            numbers.append(reading.written.numbers)
        values = self.weights.output_values
        if values is not None:
            shown = state.written[self.program.output].vectors @ self.weights.unembedding
            if shown.shape[0] != len(values) or np.abs(shown.max(1) - 1).max() > NEAR:
                raise UnreadableError("the last line is not the output")
            values = tuple(values[i] for i in shown.argmax(1))
        vocab = tuple(sort_values(self.weights.input_vocab))
        return Structure(tuple(nodes), tuple(numbers), vocab, self.weights.max_seq_len, values)


def _shared_out(maps: list[tuple[np.ndarray, bool]], steps: list[list[np.ndarray]]) -> Iterator[list[np.ndarray]]:
    """Ways to give each map of a number (its start, and whether it is numerical) one step at each threshold."""
    if not maps:
        yield []
        return
    [(start, numerical), *others] = maps
    for own in _lines_up(start, steps) if numerical else _walks(start, steps):
        left = [[step for i, step in enumerate(some) if i != place] for some, place in zip(steps, own, strict=True)]
        for rest in _shared_out(others, left):
            yield [np.stack([some[place] for some, place in zip(steps, own, strict=True)]), *rest]


def _walks(start: np.ndarray, steps: list[list[np.ndarray]]) -> Iterator[list[int]]:
    """Of each threshold, the step of a categorical map: from the direction where it is, or none."""
    own, at = [], start
    for some in steps:
        moving = [i for i, step in enumerate(some) if abs(step @ at + 1) < NEAR]
        resting = [i for i, step in enumerate(some) if np.linalg.norm(step) < NEAR]
        if not moving and not resting:
            return
        own.append((moving or resting)[0])
        at = at + some[own[-1]]
    yield own


def _lines_up(start: np.ndarray, steps: list[list[np.ndarray]]) -> Iterator[list[int]]:
    """Of each threshold, the step of a numerical map: along one direction, or none."""
    directions = [v / np.linalg.norm(v) for v in (start, *itertools.chain(*steps)) if np.linalg.norm(v) > NEAR]
    seen: list[list[int]] = []
    for direction in directions[: 1 if np.linalg.norm(start) > NEAR else None]:
        own = []
        for some in steps:
            along = [i for i, v in enumerate(some) if abs(abs(v @ direction) - np.linalg.norm(v)) < 0.01]
            own.append(max(along, key=lambda i: np.linalg.norm(some[i]), default=-1))
        if -1 not in own and own not in seen:
            seen.append(own)
            yield own


def _staircases(start: np.ndarray, steps: np.ndarray, numerical: bool) -> Iterator[_Reading]:
    """A step function's table over its inputs, ascending; of a number only its readers tell the sign."""
    moving = np.flatnonzero(np.linalg.norm(steps, axis=1) > NEAR)
    if not len(moving):
        return
    first = steps[moving[0]]
    if numerical:
        direction = first / np.linalg.norm(first)
        if np.linalg.norm(start) > NEAR and abs(abs(start @ direction) / np.linalg.norm(start) - 1) > NEAR:
            return
        for signed in (direction, -direction):
            values = np.concatenate([[start @ signed], steps @ signed]).cumsum()
            entries = tuple(float(np.float32(_tidy(float(v)))) for v in values)
            yield _Reading(entries, _Written(signed[None], _number_set(entries)))
    elif abs(start @ first + 1) < NEAR:  # the first step leaves the start's direction
        vectors = np.concatenate([start[None], steps]).cumsum(0)
        groups = _same_rows(vectors)
        cells = np.empty(len(vectors), int)
        for i, members in enumerate(groups):
            cells[members] = i
        entries, order = first_appearance(tuple(cells.tolist()))
        yield _Reading(entries, _Written(np.stack([vectors[groups[i][0]] for i in order])))  # type: ignore[index]


def _tidy(number: float) -> float:
    """The simple fraction that rounding noise hides, if there is one; whole numbers as such."""
    simple = Fraction(number).limit_denominator(LARGEST_DENOMINATOR)
    if abs(simple - number) > 1e-4:
        return float(number)
    return int(simple) if simple.denominator == 1 else simple.numerator / simple.denominator


def _number_set(values: Any) -> tuple[float, ...]:
    return tuple(sorted({_tidy(float(value)) for value in values}))


def _same_rows(matrix: np.ndarray) -> list[list[int]]:
    """Indices of rows that are equal up to noise, in order of first appearance."""
    groups: list[list[int]] = []
    left = list(range(len(matrix)))
    while left:
        close = np.abs(matrix[left] - matrix[left[0]]).max(1) < NEAR
        groups.append([i for i, same in zip(left, close, strict=True) if same])
        left = [i for i, same in zip(left, close, strict=True) if not same]
    return groups


def _by_first_appearance(blocks: dict[int, frozenset[int]], cover: list[int]) -> tuple[tuple[int, ...], list[int]]:
    """The table that a cover of the cells stands for, and its blocks by code."""
    ordered = sorted(cover, key=lambda unit: min(blocks[unit]))
    size = sum(len(blocks[unit]) for unit in cover)
    table = [0] * size
    for code, unit in enumerate(ordered):
        for cell in blocks[unit]:
            table[cell] = code
    return tuple(table), ordered


def _exact_covers(
    blocks: dict[int, frozenset[int]], everything: frozenset[int], count: int
) -> Iterator[list[list[int]]]:
    """Ways to share all blocks among `count` covers of `everything`, each cell once a cover."""
    if count == 0:
        if not blocks:
            yield []
        return
    if not blocks or sum(map(len, blocks.values())) != count * len(everything):
        return

    def cover(left: frozenset[int], available: list[int], chosen: list[int]) -> Iterator[list[int]]:
        if not left:
            yield chosen
            return
        cell = min(left)
        for unit in available:
            if cell in blocks[unit] and blocks[unit] <= left:
                yield from cover(left - blocks[unit], [u for u in available if u != unit], [*chosen, unit])

    first = min(blocks)
    for chosen in cover(everything - blocks[first], [u for u in blocks if u != first], [first]):
        rest = {unit: cells for unit, cells in blocks.items() if unit not in chosen}
        for others in _exact_covers(rest, everything, count - 1):
            yield [chosen, *others]
