"""Whole programs from the weights alone: operations, arguments and functions, layer by layer.

Every value of an s-op that is known is a vector. What a head or a hidden unit reads of it is a dot product, so each
part of a layer tells which known s-ops it reads, and from that what kind of line it belongs to; what it writes is the
next s-op. This works in any orthogonal basis, for any vocabulary and length. Where a layer can be split into lines in
several ways, all are offered, likely ones first; the caller verifies.
"""

from __future__ import annotations

import contextlib
import itertools
import math
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from trade_hf.circuit.encodings import NEAR, ON, Encodings
from trade_hf.circuit.reading import (
    MAX_NUMERICAL_MAPS,
    SLOPE,
    SMALL,
    Reader,
    Reading,
    State,
    UnreadableError,
    Written,
    is_along,
)
from trade_hf.circuit.ties import first_of_largest
from trade_hf.compiled.weights import COLDNESS, TracrWeights
from trade_hf.limits import GaveUpError, Limits
from trade_hf.rasp.canonical import Structure
from trade_hf.rasp.functions import FUNCTIONS, Function, Kind, linear
from trade_hf.rasp.program import INDICES, TOKENS, Line, Op, Program, Variable

_Parts = list[tuple[Op, tuple[Variable, ...]]]  # operations and arguments of lines
MORE_MAPS = 2  # of one s-op than the fewest that its units can be of
_MAPS = (Op.MAP, Op.MAP_NUMERICAL)
# Functions are read, not looked at: any of the kind stands for them.
_ANY: dict[Kind | None, Function | None] = {
    None: None,
    **{kind: next(iter(functions.values()), linear(1, 1)) for kind, functions in FUNCTIONS.items()},
}


def lift(weights: TracrWeights, limits: Limits | None = None) -> Iterator[Structure]:
    """Programs that the weights may have been compiled from; none where they are not as Tracr makes them. It ends after
    `reading.STEPS` steps; raises LimitError where the search that it is part of has come to its own limits."""
    yield from Lifter(weights, limits).structures()


@dataclass(frozen=True)
class _Lifted:
    """Lines found so far, what was read of them, each select by its arguments and its table, and whether two s-ops are
    written alike for one of their values, which nothing that Tracr makes is."""

    lines: tuple[Line, ...]
    state: State
    selects: dict[tuple, Variable]
    shares: bool = False

    def with_lines(self, *lines: tuple[Op, tuple[Variable, ...]]) -> tuple[Line, ...]:
        return (*self.lines, *(Line(op, args, _ANY[op.kind]) for op, args in lines))


@dataclass(frozen=True)
class _HeadOf:
    """What a head reads, its selector's table, and what it writes for each value that it moves."""

    keys: Variable
    queries: Variable
    value: Variable | None  # None: BOS, for a selector width
    selector: tuple[int, ...]
    written: np.ndarray


class Lifter:
    """Lifts one model."""

    def __init__(self, weights: TracrWeights, limits: Limits | None = None) -> None:
        self.weights = weights
        encodings = Encodings(weights)
        self.readers = [Reader((), weights, layer, encodings, limits) for layer in range(weights.num_layers)]
        self.patience = self.readers[0].patience
        self.may_share = self.left_out = False
        for reader in self.readers:
            reader.patience, reader.is_ordered = self.patience, False

    def structures(self) -> Iterator[Structure]:
        """As `lift`. Those in which two s-ops share a direction come last."""
        with contextlib.suppress(GaveUpError, RecursionError):
            yield from self._structures()
            if self.left_out:
                self.may_share = True
                yield from self._structures()

    def _structures(self) -> Iterator[Structure]:
        for lifted in self._from_layer(0, _Lifted((), self.readers[0].start(), {})):
            output = self._output(lifted.state)
            if output is not None and lifted.shares == self.may_share:
                with contextlib.suppress(UnreadableError):
                    yield self._structure(lifted, output)

    def _from_layer(self, layer: int, lifted: _Lifted) -> Iterator[_Lifted]:
        if layer == self.weights.num_layers:
            yield lifted
            return
        for attended in self._with_heads(layer, lifted):
            for after in self._with_mlp(layer, attended):
                yield from self._from_layer(layer + 1, after)

    # ------------------------------------------------------------ heads

    def _with_heads(self, layer: int, lifted: _Lifted) -> Iterator[_Lifted]:
        ways = [self._ways(head, lifted.state) for head in self.readers[layer].heads if np.abs(head[3]).max() > NEAR]
        for heads in itertools.product(*ways):
            widths = sum(head.value is None for head in heads)
            for kinds in itertools.product((Op.SELECTOR_WIDTH, Op.SELECTOR_WIDTH_NUMERICAL), repeat=widths):
                self.patience()
                try:
                    after, left = lifted, list(kinds)
                    for head in heads:
                        after = self._with_head(layer, after, head, left.pop(0) if head.value is None else None)
                    yield after
                except UnreadableError:
                    continue

    def _ways(self, head: tuple[np.ndarray, ...], state: State) -> list[_HeadOf]:
        """What a head may read; more than one way only where it selects the same whatever the query."""
        query, key, reads, writes = head
        reader = self.readers[0]
        categorical = [v for v, written in state.written.items() if not written.numbers]
        keys = [v for v in categorical if reader.reads_exactly(key, state.written[v])]
        queries = [v for v in categorical if np.abs(state.written[v].vectors @ query).max() > ON] or [TOKENS]
        moved = {v: w.vectors @ reads for v, w in state.written.items()}
        values: list[Variable | None] = [v for v, some in moved.items() if np.abs(some).max(1).min() > ON]
        if np.abs(reader.bos @ reads).max() > ON:
            values = [None]
        ways = []
        for k, q, v in itertools.product(keys, queries, values):
            logits = (state.written[q].vectors @ query) @ (state.written[k].vectors @ key).T / COLDNESS  # [query, key]
            selector = tuple((logits.T > ON).astype(int).ravel().tolist())
            written = (reader.bos[None] @ reads if v is None else moved[v]) @ writes
            ways.append(_HeadOf(k, q, v, selector, written))
        return ways

    def _with_head(self, layer: int, lifted: _Lifted, head: _HeadOf, width: Op | None) -> _Lifted:
        selects, lines = dict(lifted.selects), lifted.lines
        same = (head.keys, head.queries, head.selector)
        if same not in selects:
            selects[same] = len(lines)
            lines = lifted.with_lines((Op.SELECT, (head.keys, head.queries)))
        value = None if head.value is None else lifted.state.written[head.value]
        op = width or (Op.AGGREGATE_NUMERICAL if value is not None and value.numbers else Op.AGGREGATE)
        args = (selects[same],) if head.value is None else (selects[same], head.value)
        lines = (*lines, Line(op, args, None))
        reader = self._reader(layer, lines)
        readings = reader.attended(len(lines) - 1, head.selector, head.written, value, lifted.state)
        return replace(lifted, lines=lines, state=lifted.state.after(readings), selects=selects)

    # ------------------------------------------------------------ MLP units

    def _with_mlp(self, layer: int, lifted: _Lifted) -> Iterator[_Lifted]:
        idle = self._idle(layer)
        groups = [
            *self._sequence_maps(layer, lifted.state),
            *self._linear(layer, lifted.state),
            *self._maps(layer, lifted),
        ]
        for chosen in itertools.product(*groups):
            parts = list(itertools.chain(*chosen))
            for constants in self._constants(layer, lifted, parts):
                self.patience()
                lines = lifted.with_lines(*parts, *constants)
                reader = self._reader(layer, lines)
                for state in reader.read(len(lifted.lines), lifted.state):
                    shares = lifted.shares or _share(state, len(lifted.lines))
                    if shares and not self.may_share:
                        self.left_out = True
                        continue
                    after = self._with_constants(layer, _Lifted(lines, state, lifted.selects, shares))
                    if len(idle) and not self._are_values(idle):
                        yield self._with_zeros(after, len(lifted.lines), idle)
                    yield from _on_itself(after, range(len(lifted.lines), len(lines)), idle)
                    yield after

    def _constants(self, layer: int, lifted: _Lifted, parts: _Parts) -> Iterator[_Parts]:
        """Maps of a number that have a start and no threshold, beside the lines that have both: all other starts are
        theirs, but for those that write nothing. They give one value, whichever number they read."""
        numbers = [v for v, written in lifted.state.written.items() if written.numbers]
        starts = self.readers[layer].starts(lifted.state)
        ops = [op for op, args in parts if op in _MAPS and args[0] in numbers]
        left = len(starts) - len(ops)
        silent = sum(bool(np.abs(row).max() < SMALL) for row in starts)
        told = [self.readers[layer].encodings.is_number(row) for row in starts if np.abs(row).max() > SMALL]
        most = len(told) - told.count(True) + (0 if self.readers[layer].is_whole else silent)
        may_be_maps = range(told.count(False), 1 + most)
        free = [v for v in numbers if len(lifted.state.written[v].numbers) == 1]
        free += [v for v in numbers if all(args != (v,) for _, args in parts)] + numbers
        if left < 0:
            return
        for count in range(left, max(0, left - silent) - 1, -1):
            if count and not free:
                yield []
                return
            for numerical in range(count + 1):
                constants = [Op.MAP] * (count - numerical) + [Op.MAP_NUMERICAL] * numerical
                if sum(op is Op.MAP for op in ops + constants) in may_be_maps:
                    yield [(op, (free[0],)) for op in constants]

    def _idle(self, layer: int) -> np.ndarray:
        """What units write that read nothing, [unit, d_model]."""
        reader = self.readers[layer]
        return reader.second[(np.abs(reader.first).max(1) < NEAR) & (np.abs(reader.second).max(1) > NEAR)]

    def _are_values(self, rows: np.ndarray) -> bool:
        """Whether any of the directions is read as a value is: by a select or a sequence map."""
        reads = np.concatenate([part.T for reader in self.readers for head in reader.heads for part in head[:2]])
        joins = np.concatenate([reader.first[np.abs(reader.biases + 1) < NEAR] for reader in self.readers])
        return bool((np.abs(rows @ np.concatenate([reads, joins]).T) > ON).any())

    def _with_constants(self, layer: int, lifted: _Lifted) -> _Lifted:
        """With a map of tokens to one value for each start that is left, as where there is no number to map."""
        starts = [row for row in self.readers[layer].starts(lifted.state) if np.abs(row).max() > NEAR]
        entries = (0,) * len(lifted.state.written[TOKENS].vectors)
        lines = lifted.with_lines(*[(Op.MAP, (TOKENS,))] * len(starts))
        numbers = range(len(lifted.lines), len(lines))
        readings = {n: Reading(entries, Written(row[None])) for n, row in zip(numbers, starts, strict=True)}
        return replace(lifted, lines=lines, state=lifted.state.after(readings))

    def _with_zeros(self, lifted: _Lifted, before: int, rows: np.ndarray) -> _Lifted:
        """With a map to the number 0 for each row: its unit reads nothing, whichever s-op it is of, and writes the
        direction that readers of the number read."""
        source = max(v for v in lifted.state.written if v < before and not lifted.state.written[v].numbers)
        lines = lifted.with_lines(*[(Op.MAP_NUMERICAL, (source,))] * len(rows))
        zeros = (0.0,) * len(lifted.state.written[source].vectors)
        numbers = range(len(lifted.lines), len(lines))
        readings = {n: Reading(zeros, Written(row[None], (0,))) for n, row in zip(numbers, rows, strict=True)}
        return replace(lifted, lines=lines, state=lifted.state.after(readings))

    def _reader(self, layer: int, lines: tuple[Line, ...]) -> Reader:
        return self.readers[layer].of(lines)

    def _sequence_maps(self, layer: int, state: State) -> Iterator[list[_Parts]]:
        """Units that need a value of each of two s-ops, by these two."""
        reader = self.readers[layer]
        pairs: dict[tuple[Variable, ...], list[tuple[int, ...]]] = defaultdict(list)
        reads = {v: reader.first @ w.vectors.T > ON for v, w in state.written.items() if not w.numbers}
        for unit in np.flatnonzero(np.abs(reader.biases + 1) < NEAR):
            read = tuple(v for v, some in reads.items() if some[unit].sum() == 1)
            if len(read) == 2:
                pairs[read].append(tuple(int(reads[v][unit].argmax()) for v in read))
        for variables, cells in pairs.items():
            maps = len(cells) // math.prod(len(set(codes)) for codes in zip(*cells, strict=True))
            yield [[(Op.SEQUENCE_MAP, variables)] * maps]

    def _linear(self, layer: int, state: State) -> Iterator[list[_Parts]]:
        """Two units that take a number as it is and write along one direction, as often as there are such pairs."""
        left = [(v, row) for v, rows in self.readers[layer].linear_ends(state).items() for row in rows]
        pairs: _Parts = []
        while left:
            variable, row = _longest(left)
            left = [end for end in left if end[1] is not row]
            along = [end for end in left if end[0] != variable and is_along(row, end[1])]
            if along:
                other, opposite = _longest(along)
                left = [end for end in left if end[1] is not opposite]
                pairs.append((Op.LINEAR_SEQUENCE_MAP, tuple(sorted((variable, other)))))
        yield [pairs]

    def _maps(self, layer: int, lifted: _Lifted) -> Iterator[list[_Parts]]:
        for variable, written in lifted.state.written.items():
            counts = list(
                self._maps_of_a_number(layer, written, lifted.state)
                if written.numbers
                else self._maps_of_codes(layer, written)
            )
            if counts and counts[0] != (0, 0):
                one: _Parts = [(Op.MAP, (variable,))]
                number: _Parts = [(Op.MAP_NUMERICAL, (variable,))]
                yield [one * maps + number * numerical for maps, numerical in counts]

    def _maps_of_codes(self, layer: int, source: Written) -> Iterator[tuple[int, int]]:
        """How many maps of an s-op there may be, categorical and numerical, the fewest numerical ones first."""
        reader = self.readers[layer]
        reads = reader.first @ source.vectors.T
        units = np.flatnonzero((np.abs(reads).max(1) > NEAR) & (np.abs(reader.biases) < NEAR)).tolist()
        told = {unit: reader.is_of_numbers(unit, reads[unit]) for unit in units}
        numerical = sum(answer is True for answer in told.values())
        plain = [unit for unit in units if told[unit] is not True]
        sizes, may = (
            [int((reads[unit] > ON).sum()) for unit in some] for some in (plain, [u for u in plain if told[u] is None])
        )
        for more, sums in enumerate(_sums(may, MAX_NUMERICAL_MAPS - numerical)):
            for taken in sorted(sums):
                maps, over = divmod(sum(sizes) - taken, len(source.vectors))
                if not over:
                    yield maps, more + numerical
        least = int((reads[plain] > ON).sum(0).max(initial=0))
        for maps in range(least, min(len(sizes), least + MORE_MAPS) + 1 if least else 0):
            if sum(sizes) < maps * len(source.vectors):  # some are undefined on some values
                yield maps, numerical

    def _maps_of_a_number(self, layer: int, source: Written, state: State) -> Iterator[tuple[int, int]]:
        """As `_maps_of_codes`, of a number: two units stand at each threshold."""
        reader = self.readers[layer]
        units = int((np.abs(reader.first @ source.vectors[0] / self.weights.exactness - 1) < SLOPE).sum())
        if not units:
            return
        maps, over = divmod(units, max(1, 2 * (len(source.numbers) - 1)))
        # Where some maps are defined on a part of the values alone, their number is not in that of their units.
        counts = [maps] if maps and not over else range(1, 1 + len(reader.starts(state)))
        for count in counts:
            for numerical in range(count + 1):
                yield count - numerical, numerical

    # ------------------------------------------------------------ result

    def _output(self, state: State) -> Variable | None:
        """The s-op that the unembedding reads."""
        is_number = self.weights.output_values is None
        for variable, written in state.written.items():
            shown = written.vectors @ self.weights.unembedding
            if variable >= 0 and bool(written.numbers) == is_number and np.abs(shown.max(1) - 1).max() < NEAR:
                return variable
        return None

    def _structure(self, lifted: _Lifted, output: Variable) -> Structure:
        """Of the lines that the output depends on, alone."""
        live = Program(lifted.lines[: output + 1]).live_lines
        place = {TOKENS: TOKENS, INDICES: INDICES, **{number: i for i, number in enumerate(live)}}
        lines = [lifted.lines[number] for number in live]
        lines = [Line(line.op, tuple(place[a] for a in line.args), line.function) for line in lines]
        state = lifted.state
        written = {place[v]: some for v, some in state.written.items() if v in place}
        readings = {place[n]: reading for n, reading in state.readings.items() if n in place}
        return Reader(tuple(lines), self.weights, encodings=self.readers[0].encodings).structure(
            State(written, readings)
        )


def _share(state: State, first: int) -> bool:
    """Whether a categorical s-op of the lines from `first` on is written, for some value, as another s-op is."""
    rows = [(v, written.vectors) for v, written in state.written.items() if not written.numbers]
    owners = np.concatenate([np.full(len(vectors), v) for v, vectors in rows])
    vectors = np.concatenate([vectors for _, vectors in rows])
    lengths = np.linalg.norm(vectors, axis=1)
    used = lengths > SMALL
    owners, vectors = owners[used], vectors[used] / lengths[used, None]
    new = owners >= first
    alike = vectors[new] @ vectors.T > 1 - SMALL
    return bool((alike & (owners[new][:, None] != owners)).any())


def _longest(ends: list[tuple[Variable, np.ndarray]]) -> tuple[Variable, np.ndarray]:
    return ends[first_of_largest([float(np.linalg.norm(row)) for _, row in ends])]


def _on_itself(lifted: _Lifted, numbers: range, idle: np.ndarray) -> Iterator[_Lifted]:
    """With one of the maps among the lines `numbers` as a sequence map of an s-op with itself.

    Tracr compiles it as a map of the pairs of equal values. What it gives for other pairs, which never come together,
    has units that read nothing all the same, which write `idle` [value, d_model]; who reads the s-op reads these too.
    """
    written = lifted.state.written
    for number in numbers if len(idle) else ():
        line, entries = lifted.lines[number], lifted.state.readings[number].entries
        size = len(written[line.args[0]].vectors)
        if line.op is Op.MAP and not written[line.args[0]].numbers and -1 not in entries:
            if len(idle) > size * (size - 1):
                continue
            vectors = np.concatenate([written[number].vectors, idle])
            lines = list(lifted.lines)
            lines[number] = Line(Op.SEQUENCE_MAP, line.args * 2, _ANY[Op.SEQUENCE_MAP.kind])
            state = lifted.state.after({number: Reading((*entries, len(vectors)), Written(vectors))})
            yield replace(lifted, lines=tuple(lines), state=state)


def _sums(sizes: list[int], most: int) -> list[set[int]]:
    """What none, one, … up to `most` of the sizes add up to."""
    sums: list[set[int]] = [{0}, *(set() for _ in range(most))]
    for size in sizes:
        for count in range(most, 0, -1):
            sums[count] |= {size + rest for rest in sums[count - 1]}
    return sums[: most + 1]
