"""What each part of a compiled model can give, in exact arithmetic and with attention that leaks nothing.

The residual stream of a position is a sum of what its *sources* give: the token, the position, each head, and the
hidden units of a layer that read the same sources. A source has finitely many *states*, vectors of the residual stream,
one set of them at ordinary positions and one at BOS. They follow source by source, in the order of computation, from
all combinations of the states that are read. Such a set may hold states that no input reaches, never too few.

*Ideal* attention is the softmax over the keys whose logits are near the largest. What it gives to all others, the
leak, is bounded here, and counted as an error by `comparison.py`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from trade_hf.compiled.weights import TracrWeights
from trade_hf.rasp.functions import Value

ORDINARY, BOS = 0, 1
POSITIONS = ORDINARY, BOS
TOKEN_SOURCE, POSITION_SOURCE = 0, 1  # their numbers among the sources

MOST_WORK = 20_000_000_000  # multiplications
MAX_STATES = 20_000  # of one source
MAX_COMBINATIONS = 200_000  # of the states that one group of parts reads
MAX_ENTRIES = 20_000_000  # of one array of combinations and parts
MAX_JOINT = 4_096  # combinations of sources for which it is asked whether two keys can hold different values
MAX_AVERAGES = 4_000  # of the values that a head averages
DIGITS = 12  # of states; those that are equal up to here are one
LOGIT_DIGITS, ROUNDED = 6, 1e-6  # of logits; those that are equal up to here are one
SAME_LOGIT = 2e-6
NEAR = 4.0  # of the largest logit: those that are so near have their share, all others leak
NO_SHARE = 1e-7  # of BOS in a mean, below which it counts as leak


class UnboundedError(Exception):
    """Why no bound is found: the message names the part and the limit."""


class Budget:
    """Counts work, in multiplications, so that a bound takes as long on every machine. Raises UnboundedError."""

    def __init__(self) -> None:
        self.spent = 0.0

    def spend(self, *sizes: int) -> None:
        """Count work of the product of `sizes`."""
        self.spent += math.prod(map(float, sizes))
        if self.spent > MOST_WORK:
            raise UnboundedError(f"a bound takes more than {MOST_WORK:,} multiplications")


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
      counts: of a head whose state tells how many keys are chosen, which ones each query chooses.
    """

    name: str
    columns: np.ndarray
    states: tuple[np.ndarray, np.ndarray]
    parents: tuple[int, ...] | None = None
    table: np.ndarray | None = None
    depends: tuple[int, ...] | None = None
    counts: _Counts | None = None


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
      leak: the most weight that keys get whose logits are not near the largest.
      averages: whether keys of different values can be near it together.
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
    budget: Budget = field(default_factory=Budget)

    @classmethod
    def of(cls, weights: TracrWeights) -> Ideal:
        """Raises UnboundedError where there are more states than can be listed."""
        ideal = cls(weights)
        tokens = weights.tensors["token_embed/embeddings"].astype(np.float64)
        positions = weights.tensors["pos_embed/embeddings"].astype(np.float64)
        ideal._add("the token", [tokens[rows] for rows in token_rows(weights, weights.input_vocab)])
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

    def check_entries(self, name: str, *sizes: int) -> None:
        """Raises UnboundedError for an array that would be too large."""
        if math.prod(sizes) > MAX_ENTRIES:
            raise UnboundedError(f"{name} can give too many values to be listed: {sizes[0]:,}")

    def _add(self, name: str, states: list[np.ndarray], **given: Any) -> int:
        """Add a source of `states` [state, d_model]; its number."""
        columns = np.flatnonzero(np.any([part.any(0) for part in states], 0))
        kept = states[0][:, columns], states[1][:, columns]
        self.sources.append(Source(name, columns, kept, **given))
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
            for part in reads:
                self.check_entries(name, len(part), second.shape[1])
                self.budget.spend(*part.shape, second.shape[1])
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
        for arrays in (parts, biases):
            arrays["query"] = arrays["query"] * size**-0.5
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


def token_rows(weights: TracrWeights, tokens: Sequence[Value]) -> tuple[list[int], list[int]]:
    """Rows of the token embedding at ordinary positions, of `tokens` in their order, and at BOS. Pad is at none that
    counts."""
    return [weights.vocab.index(token) for token in tokens], [weights.vocab.index(weights.bos)]


def _distinct(vectors: np.ndarray, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Distinct rows, and which of them each row is. Raises UnboundedError."""
    states, which = np.unique(np.round(vectors, DIGITS) + 0.0, axis=0, return_inverse=True)
    if len(states) > MAX_STATES:
        raise UnboundedError(f"{name} can give {len(states):,} values")
    return states, which.reshape(-1)


@dataclass(frozen=True, eq=False)
class _Part:
    """What the queries, keys or values of a head can be.

    Attributes:
      states: [state, column] at ordinary positions and at BOS.
      sources, table: the sources by whose states at ordinary positions that is given, and the number of the state for
        each combination of theirs.
    """

    states: tuple[np.ndarray, np.ndarray]
    sources: tuple[int, ...]
    table: np.ndarray

    @classmethod
    def of(cls, readings: list[Readings], name: str) -> _Part:
        pairs = [_distinct(reading.combined(name), name) for reading in readings]
        ordinary = readings[ORDINARY]
        table = pairs[ORDINARY][1].reshape([len(part) for part in ordinary.products])
        return cls((pairs[ORDINARY][0], pairs[BOS][0]), ordinary.sources, table)


@dataclass(frozen=True, eq=False)
class _Attention:
    """What a head can give, from what its queries, keys and values can be.

    Attributes:
      written: [state, d_model] what the values write, at ordinary positions and at BOS.
      joint: what keys and values can be at one position.
      own: [query] the least logit of a query with the key at its own position; infinite for one that no position has.
    """

    name: str
    query: _Part
    key: _Part
    value: _Part
    written: tuple[np.ndarray, np.ndarray]
    joint: _Joint
    own: np.ndarray
    is_causal: bool
    longest: int

    @classmethod
    def of(cls, ideal: Ideal, name: str, read: dict[str, list[Readings]], written: np.ndarray) -> _Attention:
        query, key, value = (_Part.of(read[part], name) for part in _ATTENTION[:3])
        weights = ideal.weights
        values = tuple(states @ written for states in value.states)
        return cls(
            name,
            query,
            key,
            value,
            values,  # type: ignore[arg-type]
            _Joint.of(ideal.sources, key, value),
            _with_own_key(ideal.sources, query, key),
            weights.causal,
            weights.max_seq_len,
        )

    def add_to(self, ideal: Ideal, number: int, compared: np.ndarray, moved: np.ndarray) -> Head:
        leak, averages = 0.0, False
        given: list[list[np.ndarray]] = [[], []]
        width = self.written[BOS].shape[1]
        for kind in POSITIONS:
            if kind == BOS and self.is_causal:  # which attends to itself alone
                given[kind].append(self.written[BOS])
                continue
            for number, query in enumerate(self.query.states[kind]):
                own = self.own[number] if kind == ORDINARY else -np.inf
                ideal.budget.spend(len(self.key.states[ORDINARY]) + len(self.joint.keys), 2, len(self.joint.keys))
                for means, more, is_mean in self._attended(query, own):
                    given[kind].append(means)
                    ideal.check_entries(self.name, sum(map(len, given[kind])), width)
                    leak, averages = max(leak, more), averages or is_mean
        states = [_distinct(np.concatenate(part), self.name)[0] for part in given]
        # With a causal mask, what a query attends to depends on where it stands.
        depends = None if self.is_causal else self.query.sources
        source = ideal._add(self.name, states, depends=depends, counts=self._counts())
        query, key, value = (np.concatenate(part.states) for part in (self.query, self.key, self.value))
        return Head(number, compared, moved, source, query, key, value, leak, averages)

    def _counts(self) -> _Counts | None:
        """Which keys each query counts, where the head tells their number: all ordinary keys have one value, BOS has
        another, and shares its logit with the keys that are counted."""
        bos = self.key.states[BOS] @ self.query.states[ORDINARY].T
        if self.is_causal or len(bos) > 1 or len(self.written[ORDINARY]) > 1 or len(self.written[BOS]) > 1:
            return None
        logits = self.key.states[ORDINARY] @ self.query.states[ORDINARY].T
        equal = np.abs(logits - bos) <= SAME_LOGIT
        if np.array_equal(*(part[0] for part in self.written)) or (logits > bos - NEAR)[~equal].any():
            return None
        return _Counts(self.query, self.key, equal.T)

    def _attended(self, query: np.ndarray, own: float) -> Iterator[tuple[np.ndarray, float, bool]]:
        """For each logit that can be the largest: the states [state, d_model] that then come out, the leak, and whether
        different values are averaged."""
        logits = np.round(self.key.states[ORDINARY] @ query, LOGIT_DIGITS)
        levels = np.unique(logits[self.joint.keys])[::-1]  # of keys that there can be
        for bos, bos_value in itertools.product(
            np.round(self.key.states[BOS] @ query, LOGIT_DIGITS), self.written[BOS]
        ):
            for top in (*levels[levels > bos], bos):
                if top >= own - SAME_LOGIT:
                    yield self._mixed(logits, levels, top, bos, bos_value)

    def _mixed(
        self, logits: np.ndarray, levels: np.ndarray, top: float, bos: float, bos_value: np.ndarray
    ) -> tuple[np.ndarray, float, bool]:
        """As `_attended`, for one largest logit. Logits that are near it have their share, all others leak."""
        near = levels[(levels <= top) & (levels > top - NEAR)]
        options = [self._level(logits, level, is_optional=bool(level < top or top == bos)) for level in near]
        if (count := math.prod(option.count for option in options)) > MAX_AVERAGES:
            raise UnboundedError(f"{self.name} may average values in {count:,} ways")
        far = levels[levels <= top - NEAR]
        leak = self.longest * math.exp(far[0] - top) if len(far) else 0.0
        share = math.exp(bos - top)
        is_mean = len(near) > 1 or any(option.is_mixed for option in options)
        if bos <= top - NEAR and not (is_mean and share > NO_SHARE):
            leak, share = leak + share, 0.0
        is_mean |= share > 0 and len(near) > 0
        leak += 2 * ROUNDED if is_mean else 0.0
        if not is_mean:
            return options[0].values if options else bos_value[None], leak, False
        return _means(options, np.exp(near - top), bos_value, share), leak, True

    def _level(self, logits: np.ndarray, level: float, is_optional: bool) -> _Level:
        chosen = np.flatnonzero((logits == level)[self.joint.keys])
        values = self.written[ORDINARY][np.unique(self.joint.values[chosen])]
        most = self.joint.most(chosen, self.longest)
        return _Level(values, most, self.joint.can_differ(chosen), is_optional)


def _with_own_key(sources: list[Source], query: _Part, key: _Part) -> np.ndarray:
    """[query] the least logit that a query at an ordinary position can have with the key at the same position."""
    least = np.full(len(query.states[ORDINARY]), -np.inf)
    grid = _Grid.of(sources, {*query.sources, *key.sources}, closed=False)
    if grid is not None:
        queries, keys = grid.look_up(query), grid.look_up(key)
        logits = np.einsum("ij,ij->i", query.states[ORDINARY][queries], key.states[ORDINARY][keys])
        least[:] = np.inf
        np.minimum.at(least, queries, logits)
    return least


@dataclass(frozen=True, eq=False)
class _Counts:
    """Which keys each query counts: [query, key], at ordinary positions."""

    query: _Part
    key: _Part
    chosen: np.ndarray

    def cannot_tie(self, grid: _Grid) -> np.ndarray:
        """[combination, combination] whether two positions of one input that are so cannot count equally many: one of
        them counts all that the other does and one of the two besides."""
        queries, keys = grid.look_up(self.query), grid.look_up(self.key)
        chosen = self.chosen.astype(np.float32)
        is_within = ((chosen @ (1 - chosen.T)) == 0)[
            np.ix_(queries, queries)
        ]  # [first, second]: no key of the first alone
        counts = self.chosen[np.ix_(queries, keys)]  # [query of, key of]
        own = self.chosen[queries, keys]
        more = (counts.T & ~own[:, None]) | (own[None] & ~counts)  # second counts first's or its own, first does not
        found = is_within & more
        return found | found.T


@dataclass(frozen=True, eq=False)
class _Joint:
    """What keys and values can be at one ordinary position.

    Attributes:
      keys, values: [combination] their numbers.
      together: [combination, combination] whether two positions of one input can be so.
      positions: [combination] which position that is, if it is known.
    """

    keys: np.ndarray
    values: np.ndarray
    together: np.ndarray
    positions: np.ndarray | None

    @classmethod
    def of(cls, sources: list[Source], key: _Part, value: _Part) -> _Joint:
        grid = _Grid.of(sources, {*key.sources, *value.sources})
        if grid is None:  # any key with any value
            shape = len(key.states[ORDINARY]), len(value.states[ORDINARY])
            if math.prod(shape) > MAX_JOINT:
                raise UnboundedError(f"a head reads {math.prod(shape):,} combinations of keys and values")
            keys, values = np.indices(shape).reshape(2, -1)
            return cls(keys, values, np.ones((keys.size, keys.size), bool), None)
        keys, values = grid.look_up(key), grid.look_up(value)
        together = np.ones((grid.count, grid.count), bool)
        for number in grid.roots:
            source = sources[number]
            if number == POSITION_SOURCE:
                together &= grid.differ([number])
            if source.depends is not None and (roots := _roots(sources, source.depends)) <= set(grid.roots):
                together &= grid.differ(roots) | ~grid.differ([number])  # one input, one query: one answer
            if source.counts is not None:
                read = _roots(sources, source.counts.query.sources + source.counts.key.sources)
                if read <= set(grid.roots):
                    together &= grid.differ([number]) | ~source.counts.cannot_tie(grid)
        return cls(keys, values, together, grid.places.get(POSITION_SOURCE))

    def can_differ(self, chosen: np.ndarray) -> bool:
        """Whether two positions can be as some combinations say, and hold different values."""
        values = self.values[chosen]
        return bool((self.together[np.ix_(chosen, chosen)] & (values[:, None] != values)).any())

    def most(self, chosen: np.ndarray, longest: int) -> int:
        """How many positions of one input can be as some combinations say."""
        if not self.together[np.ix_(chosen, chosen)].any():
            return 1
        return longest if self.positions is None else len(np.unique(self.positions[chosen]))


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
    def of(cls, sources: list[Source], numbers: set[int], closed: bool = True) -> _Grid | None:
        """Of the roots of `numbers`, and if `closed` of what those depend on, as far as that is few enough; None if
        they are too many."""
        roots, wider = _roots(sources, tuple(numbers)), set[int]()
        while closed and wider != roots:
            wider = roots
            for number in sorted(wider):
                counts = sources[number].counts
                more = roots | _roots(sources, (sources[number].depends or ()) + (counts.key.sources if counts else ()))
                roots = more if _count(sources, more) <= MAX_JOINT else roots
        if _count(sources, roots) > MAX_JOINT:
            return None
        order = tuple(sorted(roots))
        sizes = [len(sources[number].states[ORDINARY]) for number in order]
        return cls(
            sources, order, dict(zip(order, np.indices(sizes).reshape(len(sizes), _count(sources, roots)), strict=True))
        )

    @property
    def count(self) -> int:
        return _count(self.sources, set(self.roots))

    def look_up(self, part: _Part | Source) -> np.ndarray:
        """[combination] the number of the state of what is given by other sources."""
        numbers = part.sources if isinstance(part, _Part) else part.parents
        assert numbers is not None and part.table is not None
        states = part.table[tuple(self._states(number) for number in numbers)]
        return np.broadcast_to(states, self.count).reshape(-1)

    def _states(self, number: int) -> np.ndarray:
        source = self.sources[number]
        return self.places[number] if source.parents is None else self.look_up(source)

    def differ(self, numbers: set[int] | list[int]) -> np.ndarray:
        """[combination, combination] whether any of some roots has not the same state."""
        found = np.zeros((self.count, self.count), bool)
        for number in numbers:
            found |= self.places[number][:, None] != self.places[number]
        return found


def _count(sources: list[Source], numbers: set[int]) -> int:
    return math.prod(len(sources[number].states[ORDINARY]) for number in numbers)


@dataclass(frozen=True, eq=False)
class _Level:
    """Keys of one logit.

    Attributes:
      values: [value, d_model] what they can write.
      most: how many such keys there can be.
      is_mixed: whether they can write different values.
      is_optional: whether there may be none.
    """

    values: np.ndarray
    most: int
    is_mixed: bool
    is_optional: bool

    @property
    def count(self) -> int:
        """How many sums there are."""
        kinds = len(self.values)
        several = sum(math.comb(n + kinds - 1, kinds - 1) for n in range(1, self.most + 1))
        return (several if self.is_mixed else kinds * self.most) + self.is_optional

    def sums(self) -> tuple[np.ndarray, np.ndarray]:
        """All sums [sum, d_model] of what such keys write together, and [sum] of how many."""
        kinds, numbers = len(self.values), np.arange(not self.is_optional, self.most + 1)
        if not self.is_mixed:
            return (self.values * numbers[:, None, None]).reshape(-1, self.values.shape[1]), numbers.repeat(kinds)
        counts = np.array([c for n in numbers.tolist() for c in _compositions(n, kinds)])
        return counts @ self.values, counts.sum(1)


def _means(levels: list[_Level], weights: np.ndarray, bos: np.ndarray, share: float) -> np.ndarray:
    """All means of values of keys, each level's times its weight, and of `bos` times `share`."""
    sums, counts = share * bos[None], np.array([share])
    for level, weight in zip(levels, weights, strict=True):
        some, number = level.sums()
        sums = (sums[:, None] + weight * some).reshape(-1, sums.shape[1])
        counts = (counts[:, None] + weight * number).reshape(-1)
    sums, counts = sums[counts > 0], counts[counts > 0]
    return np.unique(np.round(sums / counts[:, None], DIGITS) + 0.0, axis=0)


def _compositions(total: int, kinds: int) -> list[tuple[int, ...]]:
    """All ways to write `total` as a sum of `kinds` numbers from 0, in order."""
    if kinds == 1:
        return [(total,)]
    return [(n, *rest) for n in range(total + 1) for rest in _compositions(total - n, kinds - 1)]
