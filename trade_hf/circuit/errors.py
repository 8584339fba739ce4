"""How far what each reader of a model reads can be from what its partner in a compiled model ideally reads.

`comparison.py` says what is bounded, and how. All is taken source by source, in the order of computation; what a source
adds to the error of each later reader is final once the source is known.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from trade_hf.circuit.ideal import DIGITS, Budget, Head, Ideal, Source, UnboundedError, Units, token_rows
from trade_hf.circuit.products import Matching
from trade_hf.compiled.weights import TracrWeights

SMALLEST = 1e-25  # more than all that is lost where results are below the smallest normal number of single precision
# What is read may be as large: times the largest weight, and summed, it is far from single precision's largest number.
LARGEST = 1e20
CHUNK = 4_000_000  # entries of an array at once
EXPONENTIAL = 32  # units of roundoff by which exp and the division of a softmax may be off, besides the sum
STATES_APART = 10.0**-DIGITS  # by which an entry of a state may be off
NO_PARTNER = -1

_ATTENTION = ("query", "key", "value")


@dataclass(frozen=True, eq=False)
class _Readers:
    """Readers of both models, paired: [d_model, reader] and their biases."""

    compiled: np.ndarray
    compiled_bias: np.ndarray
    given: np.ndarray
    given_bias: np.ndarray

    @classmethod
    def joined(cls, parts: list[_Readers]) -> _Readers:
        columns = ([getattr(part, name) for part in parts] for name in cls.__dataclass_fields__)
        return cls(*(np.concatenate(column, axis=-1) for column in columns))

    @property
    def count(self) -> int:
        return len(self.given_bias)

    def combined(self, factors: np.ndarray) -> _Readers:
        """Sums of readers times `factors` [sum, reader]."""
        return _Readers(*(part @ factors.T for part in vars(self).values()))

    def minus(self, others: np.ndarray) -> _Readers:
        """Each reader less another one of them."""
        return _Readers(*(part - part[..., others] for part in vars(self).values()))


@dataclass(frozen=True, eq=False)
class _PairedHead:
    """A head of each model, or of the second alone. Columns of both: [column], NO_PARTNER for none."""

    ideal: Head | None
    compared: tuple[np.ndarray, np.ndarray]
    moved: tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True, eq=False)
class _PairedUnits:
    """A group of hidden units of the compiled model and their partners, or units of the second model alone.

    Attributes:
      alike: [unit] the first unit of the group that reads the same sources in the same way.
    """

    ideal: Units | None
    units: tuple[np.ndarray, np.ndarray]
    alike: np.ndarray


class Errors:
    """Bounds for the readers of `weights`, its parts paired with those of the compiled model by `matching`.

    Attributes:
      error: [reader] how far the exact product of the model's residual stream with the reader can be from the ideal.
      size: [reader] the most that the magnitudes of that product's terms can add up to.
    """

    def __init__(self, ideal: Ideal, weights: TracrWeights, matching: list[Matching], unit: float) -> None:
        """`unit` is the unit roundoff. Raises UnboundedError where it takes too long or heads do not correspond."""
        self.ideal, self.weights, self.unit, self.budget = ideal, weights, unit, Budget()
        self.matching = matching
        self.heads = [self._pair_heads(number) for number in range(len(matching))]
        self.units = [self._pair_units(number) for number in range(len(matching))]
        self.at: dict[tuple, slice] = {}
        self.readers = self._list_readers()
        self.count = len(self.readers.given_bias)
        self.lengths = np.count_nonzero(self.readers.given, axis=0)
        self.magnitudes = np.abs(self.readers.given)
        self.error = np.abs(self.readers.given_bias - self.readers.compiled_bias)
        self.size = np.abs(self.readers.given_bias)
        with np.errstate(over="ignore", invalid="ignore"):
            self._embed()
            for number in range(len(matching)):
                self._attend(number)
                self._transform(number)

    def of_outputs(self) -> np.ndarray:
        """[output] how far each logit can be from the ideal."""
        return self._off(self.at["outputs",])

    # ------------------------------------------------------------ what is paired

    def _pair_heads(self, layer: int) -> list[_PairedHead]:
        size, matching = self.weights.key_size, self.matching[layer]
        pairs = (dict(matching.compared.tolist()), dict(matching.moved.tolist()))
        if any(len({*pair.values()}) < len(pair) for pair in pairs):
            raise UnboundedError(f"parts of heads of layer {layer} do not correspond")
        used = self._used_columns(layer)
        found: list[_PairedHead] = []
        taken: set[int] = set()
        for head in self.ideal.layers[layer].heads if layer < len(self.ideal.layers) else ():
            places = [
                [pair.get(c, NO_PARTNER) for c in own.tolist()]
                for pair, own in zip(pairs, (head.compared, head.moved), strict=True)
            ]
            partners = {place // size for some in places for place in some if place != NO_PARTNER}
            if len(partners) > 1 or partners & taken:
                raise UnboundedError(f"head {head.number} of layer {layer} corresponds to no one head")
            taken |= partners
            both = []
            for own, some, columns in zip((head.compared, head.moved), places, used, strict=True):
                more = [c for c in columns.tolist() if c // size in partners and c not in some]
                both.append((np.append(own, [NO_PARTNER] * len(more)).astype(int), np.array(some + more, int)))
            found.append(_PairedHead(head, *both))
        for number in sorted({int(c) // size for columns in used for c in columns} - taken):
            compared, moved = (columns[columns // size == number] for columns in used)
            pairs_of_none = [(np.full(len(columns), NO_PARTNER), columns) for columns in (compared, moved)]
            found.append(_PairedHead(None, *pairs_of_none))
        return found

    def _used_columns(self, layer: int) -> tuple[np.ndarray, np.ndarray]:
        """Columns of the model that compare anything, and those that move anything: where only one side of them is not
        zero, too, for what overflows is no number, times zero neither."""
        if layer >= self.weights.num_layers:
            return np.empty(0, int), np.empty(0, int)
        reads = [
            self.weights.layer(layer, f"attn/{name}/w").any(0) | (self.weights.layer(layer, f"attn/{name}/b") != 0)
            for name in _ATTENTION
        ]
        return np.flatnonzero(reads[0] | reads[1]), np.flatnonzero(reads[2])

    def _pair_units(self, layer: int) -> list[_PairedUnits]:
        pairs = dict(self.matching[layer].units.tolist())
        if len({*pairs.values()}) < len(pairs):
            raise UnboundedError(f"hidden units of layer {layer} do not correspond")
        found: list[_PairedUnits] = []
        taken: set[int] = set()
        for group in self.ideal.layers[layer].groups if layer < len(self.ideal.layers) else ():
            partners = np.array([pairs.get(unit, NO_PARTNER) for unit in group.units.tolist()], int)
            taken |= {*partners.tolist()}
            found.append(_PairedUnits(group, (group.units, partners), _alike(np.concatenate(group.reads), partners)))
        if layer < self.weights.num_layers:
            first = self.weights.layer(layer, "mlp/linear_1/w").any(0) | (
                self.weights.layer(layer, "mlp/linear_1/b") != 0
            )
            more = np.array([unit for unit in np.flatnonzero(first).tolist() if unit not in taken], int)
            if len(more):
                found.append(_PairedUnits(None, (np.full(len(more), NO_PARTNER), more), np.arange(len(more))))
        return found

    def _list_readers(self) -> _Readers:
        """All readers, those of one layer's attention, then of its hidden units, then of the next layer; at last the
        outputs."""
        parts: list[_Readers] = []
        found: dict[tuple, int] = {}

        def add(key: tuple, readers: _Readers) -> None:
            found[key] = len(parts)
            start = sum(part.count for part in parts)
            self.at[key] = slice(start, start + readers.count)
            parts.append(readers)

        for layer, (heads, groups) in enumerate(zip(self.heads, self.units, strict=True)):
            for number, head in enumerate(heads):
                for name in _ATTENTION:
                    add(
                        (layer, number, name),
                        self._columns(layer, f"attn/{name}", head.moved if name == "value" else head.compared),
                    )
                if head.ideal is not None:
                    query, key = (parts[found[layer, number, name]] for name in ("query", "key"))
                    add((layer, number, "queries"), query.combined(_padded(head.ideal.keys, query.count)))
                    add((layer, number, "keys"), key.combined(_padded(head.ideal.queries, key.count)))
            for number, group in enumerate(groups):
                readers = self._columns(layer, "mlp/linear_1", group.units)
                if group.ideal is None:  # of no input, such a unit ideally reads its bias alone
                    readers = _Readers(readers.compiled, readers.given_bias, readers.given, readers.given_bias)
                add((layer, number, "units"), readers)
                add((layer, number, "apart"), readers.minus(group.alike))
            # What is read after the attention begins with the first units, after the units with the next layer.
            self.at[layer, "after attention"] = slice(
                self.at[layer, 0, "units"].start if groups else sum(p.count for p in parts), None
            )
            self.at[layer, "after units"] = slice(sum(part.count for part in parts), None)
        models = (self.ideal.weights, self.weights)
        unembeddings = [model.unembedding.astype(np.float64) for model in models]
        none = np.zeros(unembeddings[0].shape[1])
        add(("outputs",), _Readers(unembeddings[0], none, unembeddings[1], none))
        return _Readers.joined(parts)

    def _columns(self, layer: int, name: str, places: tuple[np.ndarray, np.ndarray]) -> _Readers:
        """Readers of one kind at some columns, zeros where there is none."""
        found = []
        for model, columns in zip((self.ideal.weights, self.weights), places, strict=True):
            scale = model.key_size**-0.5 if name.endswith("query") else 1.0
            matrix, bias = np.zeros((model.d_model, len(columns))), np.zeros(len(columns))
            there = columns != NO_PARTNER
            if there.any():
                matrix[:, there] = scale * model.layer(layer, f"{name}/w")[:, columns[there]].astype(np.float64)
                bias[there] = scale * model.layer(layer, f"{name}/b")[columns[there]].astype(np.float64)
            found += [matrix, bias]
        return _Readers(*found)

    def _rows(self, layer: int, name: str, columns: np.ndarray) -> np.ndarray:
        """[column, d_model] what parts of the model write, zeros for those that there are not."""
        rows = np.zeros((len(columns), self.weights.d_model))
        there = columns != NO_PARTNER
        if there.any():
            rows[there] = self.weights.layer(layer, f"{name}/w")[columns[there]].astype(np.float64)
        return rows

    # ------------------------------------------------------------ errors

    def _gamma(self, count: float) -> float:
        """The share of the magnitudes' sum by which a sum of `count` products may be off."""
        return count * self.unit / (1 - count * self.unit)

    def _dot(self, at: slice) -> np.ndarray:
        """[reader] by how much the product of the residual stream and a reader may be rounded."""
        size = self.size[at]
        if not (size < LARGEST).all():
            raise UnboundedError("numbers in the model may overflow")
        shares = np.array([self._gamma(count + 1) for count in self.lengths[at].tolist()])
        return shares * size + SMALLEST

    def _off(self, at: slice) -> np.ndarray:
        return self.error[at] + self._dot(at)

    def _embed(self) -> None:
        tables = [
            [model.tensors[f"{name}/embeddings"].astype(np.float64) for name in ("token_embed", "pos_embed")]
            for model in (self.ideal.weights, self.weights)
        ]
        # In one order, whatever that of the two embeddings is: 1 and True are one token.
        rows = [token_rows(model, self.ideal.weights.input_vocab) for model in (self.ideal.weights, self.weights)]
        everything = slice(None)
        self._add_known([tables[n][0][rows[n][0] + rows[n][1]] for n in (0, 1)], everything)
        self._add_known([tables[n][1] for n in (0, 1)], everything)
        self._round(everything, 1)

    def _add_known(self, states: list[np.ndarray], later: slice) -> None:
        """Count a source whose states [state, d_model] are weights of both models."""
        compiled, given = (part[:, later] for part in (self.readers.compiled, self.readers.given))
        self.budget.spend(len(states[0]), *given.shape)
        self.error[later] += np.abs(states[1] @ given - states[0] @ compiled).max(0)
        self.size[later] += (np.abs(states[1]) @ self.magnitudes[:, later]).max(0)

    def _add_biases(self, layer: int, name: str, later: slice) -> None:
        biases = [
            (model.layer(layer, name) if layer < model.num_layers else np.zeros(model.d_model)).astype(np.float64)[None]
            for model in (self.ideal.weights, self.weights)
        ]
        self._add_known(biases, later)

    def _round(self, later: slice, terms: int, sizes: np.ndarray | float = 0.0) -> None:
        """Count the rounding of a sum of `terms` products into the residual stream, whose magnitudes, times the
        readers', add up to `sizes`."""
        rounded = self._gamma(terms + 2) * (self.size[later] + sizes)
        self.error[later] += rounded
        self.size[later] += rounded

    # ------------------------------------------------------------ attention

    def _attend(self, layer: int) -> None:
        later = self.at[layer, "after attention"]
        terms, sizes = 0, np.zeros(self.count)[later]
        for number, head in enumerate(self.heads[layer]):
            terms += len(head.moved[1])
            sizes += self._move(layer, number, head, later)
        self._add_biases(layer, "attn/linear/b", later)
        self._round(later, terms, sizes)

    def _move(self, layer: int, number: int, head: _PairedHead, later: slice) -> np.ndarray:
        """Count what a head writes. Returns [reader] the magnitudes of the products that it sums up."""
        off = self._off(self.at[layer, number, "value"])
        written = self._rows(layer, "attn/linear", head.moved[1])
        given, magnitudes = self.readers.given[:, later], self.magnitudes[:, later]
        weighing = self._gamma(self.weights.max_seq_len + EXPONENTIAL)
        values = np.zeros((1, len(written))) if head.ideal is None else _padded(head.ideal.values, len(written))
        self.budget.spend(len(written) + len(values), *given.shape, 2)
        read, read_sizes = written @ given, np.abs(written) @ magnitudes
        sizes = (np.abs(values).max(0) + off) @ read_sizes
        shift = self._shift(layer, number, head)
        self.error[later] += off @ np.abs(read) + weighing * sizes
        self.size[later] += off @ read_sizes + weighing * sizes
        if head.ideal is not None:
            own = self.ideal.weights.layer(layer, "attn/linear/w")[head.ideal.moved].astype(np.float64)
            reference = _Reference.of(own, written[: len(own)])
            states = head.ideal.values @ own[:, reference.columns]
            carried, vectors = states @ (reference.rows @ given), states @ reference.rows
            self.budget.spend(len(states) + len(reference.rows), *given.shape, 3)
            # Weight that goes to other keys of the same value changes nothing.
            moved = head.ideal.leak * np.exp(2 * shift) + (np.tanh(shift / 2) if head.ideal.averages else 0.0)
            apart = carried.max(0) - carried.min(0)
            self.error[later] += np.abs(values @ read - carried).max(0) + np.where(apart > 0, moved * apart, 0.0)
            self.error[later] += self._states_apart(self.ideal.sources[head.ideal.source], reference, later)
            self.error[later] += STATES_APART * np.abs(reference.rows @ given).sum(0)
            magnitude = np.abs(values @ written - vectors).max(0) + (1 + 2 * moved) * np.abs(vectors).max(0)
            self.size[later] += magnitude @ magnitudes
        return sizes

    def _shift(self, layer: int, number: int, head: _PairedHead) -> float:
        """By how much a logit of the head may be off. Raises UnboundedError if nothing of the softmax is left."""
        off = {name: self._off(self.at[layer, number, name]) for name in ("query", "key")}
        both = float(off["query"] @ off["key"])
        if not both < LARGEST:
            raise UnboundedError("logits of a head may overflow")
        if head.ideal is None:
            return 0.0  # it moves nothing, whatever it attends to
        states = {name: np.abs(_padded(getattr(head.ideal, name), len(off["key"]))) for name in ("queries", "keys")}
        apart = both + sum(
            float(self.error[self.at[layer, number, name]].max(initial=0)) for name in ("queries", "keys")
        )
        rounded = float((states["queries"] @ self._dot(self.at[layer, number, "key"])).max())
        rounded += float((states["keys"] @ self._dot(self.at[layer, number, "query"])).max())
        largest = float((states["queries"].max(0) + off["query"]) @ (states["keys"].max(0) + off["key"]))
        # Of exp, its argument is rounded too: the logits, their difference to the largest, and its share of a base.
        rounded += (self._gamma(len(off["key"]) + 3) + 8 * self.unit) * largest
        rounded += STATES_APART * float(states["queries"].sum(1).max() + states["keys"].sum(1).max())
        shift = apart + rounded + self._gamma(self.weights.max_seq_len + EXPONENTIAL)
        if not shift < 1:
            raise UnboundedError(f"logits of head {head.ideal.number} of layer {layer} may be off by {shift:.1e}")
        return shift

    # ------------------------------------------------------------ hidden units

    def _transform(self, layer: int) -> None:
        later = self.at[layer, "after units"]
        terms, sizes = 0, np.zeros(self.count)[later]
        for number, group in enumerate(self.units[layer]):
            some, more = self._write(layer, number, group, later)
            terms += some
            sizes += more
        self._add_biases(layer, "mlp/linear_2/b", later)
        self._round(later, terms, sizes)

    def _write(self, layer: int, number: int, group: _PairedUnits, later: slice) -> tuple[int, np.ndarray]:
        """Count what a group of units writes. Returns how many of them can be on at a time, and [reader] the magnitudes
        of the products that they sum up."""
        at, apart = self.at[layer, number, "units"], self.at[layer, number, "apart"]
        common, rounded, own = self.error[at], self._dot(at), self.error[apart]
        off = common + rounded
        written = self._rows(layer, "mlp/linear_2", group.units[1])
        given, magnitudes = self.readers.given[:, later], self.magnitudes[:, later]
        self.budget.spend(len(written), *given.shape, 2)
        read, read_sizes = written @ given, np.abs(written) @ magnitudes
        inputs: tuple[np.ndarray, ...] = (self.readers.given_bias[at][None],)
        gives: tuple[np.ndarray, ...] = (np.zeros(1, int),)
        states: tuple[np.ndarray, ...] = (np.zeros((1, 0)),)
        means = np.zeros((0, self.weights.d_model))
        if group.ideal is not None:
            inputs, gives = group.ideal.reads, group.ideal.gives
            source = self.ideal.sources[group.ideal.source]
            second = self.ideal.weights.layer(layer, "mlp/linear_2/w")[group.ideal.units].astype(np.float64)
            reference = _Reference.of(second, written)
            states, means = source.states, reference.of_columns(source.columns)
            self.error[later] += self._states_apart(source, reference, later)
        carried = means @ given
        error, sizes, most, extra = (np.zeros(given.shape[1]) for _ in range(4))
        terms = 0
        # The error of one unit alone, and how far it can be from that of the first unit that reads alike.
        families = [np.flatnonzero(group.alike == first) for first in np.unique(group.alike)]
        families = [family for family in families if len(family) > 1]
        is_alone = ~np.isin(np.arange(len(written)), np.concatenate([[], *families]))
        alone = off[:, None] * np.abs(read)
        apart_from_first = np.where(is_alone, off, own + rounded)[:, None] * np.abs(read)
        step = max(1, CHUNK // max(1, given.shape[1], len(written)))
        for reads, numbers, of in zip(inputs, gives, states, strict=True):
            for start in range(0, len(reads), step):
                some, state = reads[start : start + step], of[numbers[start : start + step]]
                self.budget.spend(len(some), len(written), given.shape[1], 4)
                on, near = some > off, np.abs(some) <= off
                active = np.maximum(some, 0.0)
                one = np.abs(active @ read - state @ carried) + near @ alone + on @ apart_from_first
                for family in families:
                    one += np.abs(on[:, family] @ read[family]) * common[family[0]]
                error = np.maximum(error, one.max(0))
                open_ = on | near
                sizes = np.maximum(sizes, ((active + open_ * off) @ read_sizes).max(0))
                extra = np.maximum(extra, ((open_ * off) @ read_sizes).max(0))
                most = np.maximum(
                    most,
                    (np.abs(active @ written - state @ means) @ magnitudes + np.abs(state @ means) @ magnitudes).max(0),
                )
                terms = max(terms, int(open_.sum(1).max(initial=0)))
        self.error[later] += error
        self.size[later] += most + extra
        return terms, sizes

    def _states_apart(self, source: Source, reference: _Reference, later: slice) -> np.ndarray:
        """[reader] how far what the compiled model's readers get of a source can be from what the model's get."""
        means = reference.of_columns(source.columns)
        difference = self.readers.compiled[source.columns, later] - means @ self.readers.given[:, later]
        self.budget.spend(sum(map(len, source.states)), *difference.shape)
        return np.max([np.abs(part @ difference).max(0) for part in source.states], 0)


@dataclass(frozen=True, eq=False)
class _Reference:
    """What the compiled model's residual directions are in the other model, by what parts write in both: least squares.
    Any choice gives a bound; this one gives a narrow one.

    Attributes:
      columns: the directions, ascending.
      rows: [direction, d_model].
    """

    columns: np.ndarray
    rows: np.ndarray

    @classmethod
    def of(cls, compiled: np.ndarray, given: np.ndarray) -> _Reference:
        columns = np.flatnonzero(compiled.any(0))
        return cls(columns, np.linalg.lstsq(compiled[:, columns], given, rcond=1e-9)[0])

    def of_columns(self, columns: np.ndarray) -> np.ndarray:
        """Rows of some of the directions."""
        return self.rows[np.searchsorted(self.columns, columns)]


def _alike(reads: np.ndarray, partners: np.ndarray) -> np.ndarray:
    """[unit] the first unit that has a partner and whose input [combination, unit] differs by a constant alone."""
    first: dict[bytes, int] = {}
    varied = np.round(reads - reads[:1], 9) + 0.0
    return np.array(
        [n if partners[n] == NO_PARTNER else first.setdefault(varied[:, n].tobytes(), n) for n in range(len(partners))],
        int,
    )


def _padded(columns: np.ndarray, count: int) -> np.ndarray:
    """With columns of zeros up to `count`."""
    return np.pad(columns, [(0, 0), (0, count - columns.shape[1])])
