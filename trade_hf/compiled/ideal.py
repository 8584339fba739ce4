"""What each part of a compiled model can give, in exact arithmetic and with attention that leaks nothing.

The residual stream of a position is a sum of what its *sources* give: the token, the position, each head, and the
hidden units of a layer that read the same sources. A source has finitely many *states*, vectors of the residual stream,
one set of them at ordinary positions and one at BOS. They follow source by source, in the order of computation, from
all combinations of the states that are read. Such a set may hold states that no input reaches, never too few.

*Ideal* attention is uniform over the keys of the largest logit. What the softmax gives to other keys, the leak, is
bounded here, and counted as an error by `comparison.py`.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, field

import numpy as np

from trade_hf.compiled.weights import TracrWeights

ORDINARY, BOS = 0, 1
POSITIONS = ORDINARY, BOS
TOKEN_SOURCE, POSITION_SOURCE = 0, 1  # their numbers among the sources

MAX_STATES = 20_000  # of one source
MAX_COMBINATIONS = 200_000  # of the states that one group of parts reads
MAX_ENTRIES = 20_000_000  # of one array of combinations and parts
MAX_JOINT = 4_096  # combinations of sources for which it is asked whether two keys can hold different values
MAX_AVERAGES = 4_000  # of the values that a head averages
DIGITS = 12  # of states; those that are equal up to here are one
SAME_LOGIT = 1e-6


class UnboundedError(Exception):
    """Why no bound is found: the message names the part and the limit."""


@dataclass(eq=False)
class Source:
    """What adds to the residual stream of each position one of finitely many vectors.

    Attributes:
      name: for messages.
      columns: [column] the residual directions that it writes.
      states: [state, column] at ordinary positions and at BOS.
      parents, table: the sources by whose states at ordinary positions its own is given, and its number for each
        combination of theirs; None of a source that is no function of others at the same position.
      depends: the sources at the same position by which, for one input, its state is given; None if there is more.
    """

    name: str
    columns: np.ndarray
    states: tuple[np.ndarray, np.ndarray]
    parents: tuple[int, ...] | None = None
    table: np.ndarray | None = None
    depends: tuple[int, ...] | None = None


@dataclass(frozen=True, eq=False)
class Readings:
    """What some readers read at one kind of position: a constant, and what depends on the states of some sources.

    Attributes:
      constant: [reader].
      sources: the sources of more than one state that make a difference.
      products: [state, reader] of each of them.
    """

    constant: np.ndarray
    sources: tuple[int, ...]
    products: tuple[np.ndarray, ...]

    def combined(self, name: str) -> np.ndarray:
        """[combination, reader], combinations in row-major order. Raises UnboundedError."""
        sizes = [len(part) for part in self.products]
        if (count := math.prod(sizes)) > MAX_COMBINATIONS or count * len(self.constant) > MAX_ENTRIES:
            raise UnboundedError(f"{name} reads {count:,} combinations of values")
        total = np.broadcast_to(self.constant, (*(1 for _ in sizes), len(self.constant)))
        for place, part in enumerate(self.products):
            shape = [1] * len(sizes) + [part.shape[1]]
            shape[place] = len(part)
            total = total + part.reshape(shape)
        return np.ascontiguousarray(total.reshape(count, -1))


@dataclass(frozen=True, eq=False)
class Units:
    """Hidden units of one layer that read the same sources.

    Attributes:
      units: their columns of the layer's tensors.
      source: which source they are.
      reads: [combination, unit] what they read, before the ReLU, at ordinary positions and at BOS.
      gives: [combination] the number of the state that follows.
    """

    units: np.ndarray
    source: int
    reads: tuple[np.ndarray, np.ndarray]
    gives: tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True, eq=False)
class Head:
    """One head that writes anything.

    Attributes:
      number: of the head in its layer.
      compared, moved: its columns of W_Q and W_K, and of W_V.
      source: which source it is.
      queries, keys: [state, compared] all that can be compared, queries divided by the root of the key size.
      values: [state, moved] all that can be moved.
      leak: the most weight that keys other than those of the largest logit get.
      averages: whether keys of different values can share the largest logit.
    """

    number: int
    compared: np.ndarray
    moved: np.ndarray
    source: int
    queries: np.ndarray
    keys: np.ndarray
    values: np.ndarray
    leak: float
    averages: bool


@dataclass(frozen=True, eq=False)
class Layer:
    """A layer's heads and groups of hidden units, and the sources that its two biases are."""

    heads: list[Head]
    bias: int
    groups: list[Units]
    second_bias: int


@dataclass(eq=False)
class Ideal:
    """All sources and layers of a compiled model; see the module.

    Attributes:
      outputs: [combination, output] all that the unembedding can read at ordinary positions.
    """

    weights: TracrWeights
    sources: list[Source] = field(default_factory=list)
    layers: list[Layer] = field(default_factory=list)
    outputs: np.ndarray = field(init=False)

    @classmethod
    def of(cls, weights: TracrWeights) -> Ideal:
        """Raises UnboundedError where there are more states than can be listed."""
        ideal = cls(weights)
        tokens = weights.tensors["token_embed/embeddings"].astype(np.float64)
        positions = weights.tensors["pos_embed/embeddings"].astype(np.float64)
        ideal._add("the token", [tokens[rows] for rows in token_rows(weights)])
        ideal._add("the position", [positions[1:], positions[:1]])
        for layer in range(weights.num_layers):
            heads = ideal._heads(layer)
            bias = ideal._add_bias(layer, "attn/linear/b")
            groups = ideal._units(layer)
            ideal.layers.append(Layer(heads, bias, groups, ideal._add_bias(layer, "mlp/linear_2/b")))
        unembedding = weights.unembedding.astype(np.float64)
        readings = ideal._read(unembedding, np.zeros(unembedding.shape[1]), ORDINARY)
        ideal.outputs = np.unique(readings.combined("the output"), axis=0)
        return ideal

    def _add(self, name: str, states: list[np.ndarray], **given: tuple[int, ...] | np.ndarray | None) -> int:
        """Add a source of `states` [state, d_model]; its number."""
        columns = np.flatnonzero(np.any([part.any(0) for part in states], 0))
        kept = states[0][:, columns], states[1][:, columns]
        self.sources.append(Source(name, columns, kept, **given))  # type: ignore[arg-type]
        return len(self.sources) - 1

    def _add_bias(self, layer: int, name: str) -> int:
        bias = self.weights.layer(layer, name).astype(np.float64)[None]
        return self._add(f"the bias of layer {layer}", [bias, bias])

    def _read(self, readers: np.ndarray, bias: np.ndarray, kind: int) -> Readings:
        """What `readers` [d_model, reader] with their `bias` read of all sources so far."""
        constant, varied = bias.astype(np.float64), {}
        for number, source in enumerate(self.sources):
            products = source.states[kind] @ readers[source.columns]
            if (products != products[0]).any():
                varied[number] = products
            else:
                constant = constant + products[0]
        return Readings(constant, tuple(varied), tuple(varied.values()))

    # ------------------------------------------------------------ hidden units

    def _units(self, layer: int) -> list[Units]:
        first, bias, second = (
            self.weights.layer(layer, f"mlp/{name}").astype(np.float64)
            for name in ("linear_1/w", "linear_1/b", "linear_2/w")
        )
        used = np.flatnonzero(second.any(1))
        by_sources: dict[tuple[int, ...], list[int]] = {}
        for unit, sources in zip(used.tolist(), self._varied(first[:, used]), strict=True):
            by_sources.setdefault(sources, []).append(unit)
        found = []
        for sources, units in by_sources.items():
            name = f"a group of {len(units)} hidden units of layer {layer}"
            readings = [self._read(first[:, units], bias[units], kind) for kind in POSITIONS]
            reads = [reading.combined(name) for reading in readings]
            states, gives = zip(*(_distinct(np.maximum(part, 0) @ second[units], name) for part in reads), strict=True)
            table = gives[ORDINARY].reshape([len(part) for part in readings[ORDINARY].products])
            found.append((units, reads, gives, (name, list(states), sources, table)))
        # All units of a layer read what stands before it.
        return [
            Units(np.array(units), self._add(name, states, parents=parents, table=table), tuple(reads), tuple(gives))  # type: ignore[arg-type]
            for units, reads, gives, (name, states, parents, table) in found
        ]

    def _varied(self, readers: np.ndarray) -> list[tuple[int, ...]]:
        """For each reader, the sources whose states at ordinary positions make a difference to it."""
        varied: list[list[int]] = [[] for _ in range(readers.shape[1])]
        for number, source in enumerate(self.sources):
            products = source.states[ORDINARY] @ readers[source.columns]
            for reader in np.flatnonzero((products != products[0]).any(0)).tolist():
                varied[reader].append(number)
        return [tuple(sources) for sources in varied]

    # ------------------------------------------------------------ heads

    def _heads(self, layer: int) -> list[Head]:
        size, found = self.weights.key_size, []
        parts = {name: self.weights.layer(layer, f"attn/{name}/w").astype(np.float64) for name in _ATTENTION}
        biases = {name: self.weights.layer(layer, f"attn/{name}/b").astype(np.float64) for name in _ATTENTION[:3]}
        for name in (parts, biases):
            name["query"] = name["query"] * size**-0.5
        is_read = {name: parts[name].any(0) | (biases[name] != 0) for name in _ATTENTION[:3]}
        compares, moves = is_read["query"] & is_read["key"], is_read["value"] & parts["linear"].any(1)
        for number in range(self.weights.num_heads):
            own = np.arange(number * size, (number + 1) * size)
            compared, moved = own[compares[own]], own[moves[own]]
            if not len(moved):
                continue
            name = f"head {number} of layer {layer}"
            read = {
                part: [self._read(parts[part][:, columns], biases[part][columns], kind) for kind in POSITIONS]
                for part, columns in (("query", compared), ("key", compared), ("value", moved))
            }
            found.append((number, compared, moved, _Attention.of(self, name, read, parts["linear"][moved])))
        return [head.add_to(self, number, compared, moved) for number, compared, moved, head in found]


_ATTENTION = ("query", "key", "value", "linear")


def token_rows(weights: TracrWeights) -> tuple[list[int], list[int]]:
    """Rows of the token embedding at ordinary positions, by token, and at BOS. Pad stands at no position that counts."""
    tokens = sorted(weights.input_vocab, key=repr)
    return [weights.vocab.index(token) for token in tokens], [weights.vocab.index(weights.bos)]


def _distinct(vectors: np.ndarray, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Distinct rows, and which of them each row is. Raises UnboundedError."""
    states, which = np.unique(np.round(vectors, DIGITS) + 0.0, axis=0, return_inverse=True)
    if len(states) > MAX_STATES:
        raise UnboundedError(f"{name} can give {len(states):,} values")
    return states, which.reshape(-1)


@dataclass(eq=False)
class _Attention:
    """What a head can give, from what its queries, keys and values can be.

    Attributes:
      queries, keys, values: [state, column] of each kind of position; `values` is what they write to the stream.
      selected: see `_is_mixed`.
    """

    name: str
    queries: list[np.ndarray]
    keys: list[np.ndarray]
    moved: list[np.ndarray]
    values: list[np.ndarray]
    key_of: np.ndarray
    value_of: np.ndarray
    differ: np.ndarray
    depends: tuple[int, ...] | None
    longest: int

    @classmethod
    def of(cls, ideal: Ideal, name: str, read: dict[str, list[Readings]], written: np.ndarray) -> _Attention:
        distinct = {
            part: [_distinct(reading.combined(name), name) for reading in readings] for part, readings in read.items()
        }
        states = {part: [one for one, _ in pairs] for part, pairs in distinct.items()}
        values = [moved @ written for moved in states["value"]]
        sizes = {part: [len(p) for p in readings[ORDINARY].products] for part, readings in read.items()}
        key, value = (
            (read[part][ORDINARY].sources, distinct[part][ORDINARY][1].reshape(sizes[part]))
            for part in ("key", "value")
        )
        # With a causal mask, what a query attends to depends on where it stands.
        depends = None if ideal.weights.causal else read["query"][ORDINARY].sources
        joint = _joint(ideal.sources, key, value)
        return cls(
            name, states["query"], states["key"], states["value"], values, *joint, depends, ideal.weights.max_seq_len
        )

    def add_to(self, ideal: Ideal, number: int, compared: np.ndarray, moved: np.ndarray) -> Head:
        given: list[np.ndarray] = []
        leak, averages = 0.0, False
        for queries in self.queries:
            states = []
            for query in queries:
                for found in self._attended(query):
                    states.append(found[0])
                    leak, averages = max(leak, found[1]), averages or found[2]
            given.append(_distinct(np.concatenate(states), self.name)[0])
        source = ideal._add(self.name, given, depends=self.depends)
        return Head(
            number,
            compared,
            moved,
            source,
            np.concatenate(self.queries),
            np.concatenate(self.keys),
            np.concatenate(self.moved),
            leak,
            averages,
        )

    def _attended(self, query: np.ndarray) -> list[tuple[np.ndarray, float, bool]]:
        """For each logit that can be the largest: the states [state, d_model] that then come out, the leak, and whether
        different values are averaged."""
        logits = self.keys[ORDINARY] @ query
        found = []
        for bos, bos_value in itertools.product((self.keys[BOS] @ query).tolist(), self.values[BOS]):
            below = logits[logits < bos - SAME_LOGIT]
            equal = np.abs(logits - bos) <= SAME_LOGIT
            leak = self.longest * math.exp(below.max() - bos) if len(below) else 0.0
            values = self.values[ORDINARY][np.unique(self.value_of[equal[self.key_of]])]
            states = _averages(values, bos_value, self.longest, self.name)
            found.append((states, leak, len(states) > 1))
            for top in np.unique(np.round(logits[logits > bos + SAME_LOGIT], 6)).tolist():
                level = np.abs(logits - top) <= SAME_LOGIT
                lower = logits[logits < top - SAME_LOGIT]
                leak = math.exp(bos - top) + (self.longest * math.exp(lower.max() - top) if len(lower) else 0.0)
                chosen = np.flatnonzero(level[self.key_of])
                states = self.values[ORDINARY][np.unique(self.value_of[chosen])]
                mixed = bool(self.differ[np.ix_(chosen, chosen)].any())
                if mixed:
                    states = _averages(states, None, self.longest, self.name)
                found.append((states, leak, mixed))
        return found


_Read = tuple[tuple[int, ...], np.ndarray]  # sources, and for each combination of their states what is read


def _joint(sources: list[Source], key: _Read, value: _Read) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What keys and values can be at one ordinary position: numbers of keys and of values [combination], and
    [combination, combination] whether two positions of one input can be so and hold different values."""
    grid = _Grid.of(sources, {*key[0], *value[0]})
    if grid is None:  # any key with any value
        keys, values = np.indices((int(key[1].max()) + 1, int(value[1].max()) + 1)).reshape(2, -1)
        if len(keys) > MAX_JOINT:
            raise UnboundedError(f"a head reads {len(keys):,} combinations of keys and values")
        return keys, values, values[:, None] != values
    keys, values = (np.broadcast_to(grid.look_up(*read), grid.count).reshape(-1) for read in (key, value))
    differ = values[:, None] != values
    if POSITION_SOURCE in grid.roots:
        differ &= grid.differ([POSITION_SOURCE])
    for number in grid.roots:
        depends = sources[number].depends
        if depends is not None and (roots := _roots(sources, depends)) <= set(grid.roots):
            differ &= grid.differ(roots) | ~grid.differ([number])  # one input, one query: one answer
    return keys, values, differ


def _roots(sources: list[Source], numbers: tuple[int, ...]) -> set[int]:
    """The sources, none of them a function of others at the same position, by which `numbers` are given."""
    found: set[int] = set()
    for number in numbers:
        parents = sources[number].parents
        found |= {number} if parents is None else _roots(sources, parents)
    return found


@dataclass(frozen=True, eq=False)
class _Grid:
    """All combinations of the states of some roots."""

    sources: list[Source]
    roots: tuple[int, ...]
    places: dict[int, np.ndarray]  # [combination] which state each root has

    @classmethod
    def of(cls, sources: list[Source], numbers: set[int]) -> _Grid | None:
        """Of the roots of `numbers`, and of what those depend on as far as that is few enough; None if they are too
        many."""
        roots, wider = _roots(sources, tuple(numbers)), set[int]()
        while wider != roots:
            wider = roots
            for number in sorted(wider):
                more = roots | _roots(sources, sources[number].depends or ())
                roots = more if _count(sources, more) <= MAX_JOINT else roots
        if _count(sources, roots) > MAX_JOINT:
            return None
        order = tuple(sorted(roots))
        sizes = [len(sources[number].states[ORDINARY]) for number in order]
        return cls(sources, order, dict(zip(order, np.indices(sizes).reshape(len(sizes), -1), strict=True)))

    @property
    def count(self) -> int:
        return _count(self.sources, set(self.roots))

    def look_up(self, numbers: tuple[int, ...], table: np.ndarray) -> np.ndarray:
        """[combination] the entry of `table` for the states of some sources."""
        return table[tuple(self._states(number) for number in numbers)]

    def _states(self, number: int) -> np.ndarray:
        source = self.sources[number]
        if source.parents is None or source.table is None:
            return self.places[number]
        return np.broadcast_to(self.look_up(source.parents, source.table), self.count)

    def differ(self, numbers: set[int] | list[int]) -> np.ndarray:
        """[combination, combination] whether any of some roots has not the same state."""
        found = np.zeros((self.count, self.count), bool)
        for number in numbers:
            found |= self.places[number][:, None] != self.places[number]
        return found


def _count(sources: list[Source], numbers: set[int]) -> int:
    return math.prod(len(sources[number].states[ORDINARY]) for number in numbers)


def _averages(values: np.ndarray, bos: np.ndarray | None, longest: int, name: str) -> np.ndarray:
    """All averages of up to `longest` of some vectors, any of them several times; with `bos` among them once, if
    given, and then of none of them too. Raises UnboundedError."""
    if bos is not None and (not len(values) or (len(values) == 1 and np.array_equal(values[0], bos))):
        return bos[None]
    if bos is None and len(values) == 1:
        return values
    kinds = len(values)
    if sum(math.comb(n + kinds - 1, kinds - 1) for n in range(longest + 1)) > MAX_AVERAGES:
        raise UnboundedError(f"{name} may average up to {longest} of {kinds} values")
    counts = np.array([c for n in range(bos is None, longest + 1) for c in _compositions(n, kinds)])
    total, number = counts @ values, counts.sum(1)
    if bos is not None:
        total, number = total + bos, number + 1
    return np.unique(np.round(total / number[:, None], DIGITS) + 0.0, axis=0)


def _compositions(total: int, kinds: int) -> list[tuple[int, ...]]:
    """All ways to write `total` as a sum of `kinds` numbers from 0, in order."""
    if kinds == 1:
        return [(total,)]
    return [(n, *rest) for n in range(total + 1) for rest in _compositions(total - n, kinds - 1)]
