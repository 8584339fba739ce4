"""Program → TracrWeights, equal to what the tracr package compiles, bit for bit, without JAX.

Follows tracr's passes (arXiv:2301.05062 section 3): value sets (`rasp/tables.py` here), one component per s-op
(`compiler/expr_to_craft_graph.py`), components to layers (`compiler/craft_graph_to_model.py`), parameters
(`compiler/assemble.py`). Where tracr has a quirk, it is kept and named.

Directions of the residual stream and hidden units come in *blocks*: those of one name, in order of their values. Blocks
are sorted by name (craft/bases.py, BasisDirection.__lt__), so a direction is a block's offset and a place in the block.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np

from trade_hf.compiled.exactness import EXACTNESS, MAX_EXACTNESS
from trade_hf.compiled.sparse import SparseWeights
from trade_hf.compiled.weights import BOS, COLDNESS, PAD, TracrWeights
from trade_hf.rasp.functions import Value
from trade_hf.rasp.program import INDICES, TOKENS, Line, Op, Program, Type, Variable
from trade_hf.rasp.tables import Domain, Table, Tables, UnsupportedError, sort_values, tabulate

ONE = "one"
CLEAN_BOS = "_hidden_clean_bos_"  # one name for all selector widths of a layer, so that tracr adds them up

T = TypeVar("T")

# Directions or hidden units: where their block begins, and their places in it. Weights of matrix entries: [entry] rows,
# columns and weights, or one weight for all.
Places = tuple[int, np.ndarray]
Edges = tuple[Places, Places, float | np.ndarray]


def compile_program(
    program: Program,
    vocab: Iterable[Value],
    max_seq_len: int,
    labels: Sequence[str] | None = None,
    causal: bool = False,
    bos: Value = BOS,
    pad: Value = PAD,
    exactness: float = EXACTNESS,
) -> TracrWeights:
    """Compile `program` as `tracr.compiler.compiling.compile_rasp_to_model` does.

    Args:
      program: the program; dead lines leave no trace.
      vocab: the input tokens, without BOS and pad.
      max_seq_len: the longest input, BOS not counted.
      labels: tracr's label for each line (name, underscore, number); their order is that of residual directions.
        By default `v1_`, `v2_`, …, which sort as tracr's do for s-ops named `v1`, `v2`, ….
      causal: as tracr's `causal`: a mask over the same weights.
      bos: as tracr's `compiler_bos`, a token that the vocabulary does not hold.
      pad: as tracr's `compiler_pad`, another one.
      exactness: as tracr's `mlp_exactness`: the slope of the steps that a map of numbers is made of.

    Raises UnsupportedError for what Tracr cannot compile, ValueError for a vocabulary that holds BOS or pad and for an
    exactness that is not above 0.
    """
    return compile_sparse(program, vocab, max_seq_len, labels, bos, pad, exactness).dense(causal)


def compile_like(program: Program, weights: TracrWeights) -> TracrWeights:
    """Compile `program` as a model is: for its vocabulary, length, mask, names of BOS and pad, and exactness.

    Raises as `compile_program`.
    """
    return compile_program(
        program,
        weights.input_vocab,
        weights.max_seq_len,
        causal=weights.causal,
        bos=weights.bos,
        pad=weights.pad,
        exactness=weights.exactness,
    )


@dataclass(frozen=True)
class LayerOwners:
    """Which lines of a program a layer's parts implement, by number.

    Attributes:
      heads: the aggregate or selector width of each head.
      units: those of each hidden unit; several for the one that cleans BOS of all selector widths.
    """

    heads: tuple[int, ...]
    units: tuple[tuple[int, ...], ...]


def owners_of(program: Program, weights: TracrWeights) -> list[LayerOwners]:
    """What each layer of `compile_like(program, weights)` is made of; what Tracr pads is left out."""
    tables = tabulate(program, weights.input_vocab, weights.max_seq_len)
    return _Compilation(tables, None, weights.bos, weights.pad).owners()


def compile_sparse(
    program: Program,
    vocab: Iterable[Value],
    max_seq_len: int,
    labels: Sequence[str] | None = None,
    bos: Value = BOS,
    pad: Value = PAD,
    exactness: float = EXACTNESS,
) -> SparseWeights:
    """As `compile_program`, and only what is not zero: several times faster."""
    vocab = set(vocab)
    check_names(vocab, bos, pad)
    if not vocab or max_seq_len < 1:
        raise ValueError("expected at least one token in the vocabulary and a length of at least 1")
    if not 0 < exactness <= MAX_EXACTNESS:
        raise ValueError(f"exactness: expected a number above 0 and up to {MAX_EXACTNESS:g}, got {exactness}")
    return _Compilation(tabulate(program, vocab, max_seq_len), labels, bos, pad, exactness).weights()


def check_names(vocab: Iterable[Value], bos: Value, pad: Value) -> None:
    """Raises ValueError where BOS and pad have one name, or one of them that of a token."""
    if bos == pad:
        raise ValueError(f"expected two names for BOS and pad, got {bos!r} for both")
    for special, option in ((bos, "bos"), (pad, "pad")):
        if special in vocab:
            raise ValueError(
                f"the vocabulary must not contain {special!r}, the compiler's own token: choose another {option}"
            )


# ---------------------------------------------------------------- order of directions


def _places(values: Sequence[Value]) -> np.ndarray:
    """Where each value stands in order."""
    place = {value: i for i, value in enumerate(sort_values(values))}
    return np.array([place[value] for value in values], np.int64)


_ZEROS = np.zeros(4096, np.int64)
_COUNT = np.arange(4096)


def _zeros(count: int) -> np.ndarray:
    return _ZEROS[:count] if count <= len(_ZEROS) else np.zeros(count, np.int64)


def _count(count: int) -> np.ndarray:
    return _COUNT[:count] if count <= len(_COUNT) else np.arange(count)


def _kept(domain: Domain, key: tuple, compute: Callable[[], T]) -> T:
    found = domain.tables.get(key)
    if found is None:
        found = domain.tables[key] = compute()
    return found


def _places_of(domain: Domain) -> np.ndarray:
    """`_places` of a domain's values, by code."""
    return _kept(domain, ("places",), lambda: _places(domain.values))


def _in_order(domain: Domain) -> tuple[Value, ...]:
    return _kept(
        domain, ("in order",), lambda: tuple([domain.values[i] for i in _places_of(domain).argsort().tolist()])
    )


def _pair_places(first: Domain, second: Domain) -> np.ndarray:
    """Where each pair of values stands among all pairs, row by row."""

    def compute() -> np.ndarray:
        if first.is_numeric and second.is_numeric:
            return (_places_of(first)[:, None] * len(second) + _places_of(second)).ravel()
        return _places([(x, y) for x in first.values for y in second.values])

    return _kept(first, ("pair places", second), compute)


def _mapped(places: np.ndarray, table: Table, codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The places that are mapped to something, and those of what they are mapped to."""
    if -1 in table.entries:
        places, codes = places[codes >= 0], codes[codes >= 0]
    return places, _places_of(table.domain)[codes]


@functools.lru_cache(maxsize=1_000)
def _token_places(vocab: Domain, specials: tuple[Value, ...]) -> tuple[np.ndarray, tuple[Value, ...], dict[Value, int]]:
    """Where the tokens stand among themselves and `specials`; all of them in order; where `specials` stand."""
    everything = (*vocab.values, *specials)
    places = _places(everything)
    in_order = tuple([everything[i] for i in places.argsort().tolist()])
    return places[: len(vocab)], in_order, dict(zip(specials, places[len(vocab) :].tolist(), strict=True))


# ---------------------------------------------------------------- components


@dataclass(frozen=True)
class _Head:
    """Attention of one head.

    Attributes:
      keys, queries: the s-ops that are compared.
      chosen: the select's table.
      bos_weight: the logit of BOS, which is read when nothing is selected, as a share of a selected key's.
      read, written: the directions that it moves, and those to which.
      key_size: how many columns it needs.
    """

    keys: Variable
    queries: Variable
    chosen: Table
    bos_weight: float
    read: Places
    written: Places
    key_size: int


@dataclass
class _Units:
    """Hidden units of one name. Edges go from residual directions to the block's units, and back."""

    size: int
    first: list[Edges] = field(default_factory=list)
    second: list[Edges] = field(default_factory=list)


_Mlp = dict[str, _Units]


class _Compilation:
    """One run of the compiler; its methods are tracr's passes, in order."""

    def __init__(
        self, tables: Tables, labels: Sequence[str] | None, bos: Value, pad: Value, exactness: float = EXACTNESS
    ) -> None:
        self.tables, self.bos_token, self.pad_token, self.exactness = tables, bos, pad, exactness
        self.program = tables.program
        self.sops = [n for n in self.program.live_lines if self.program.lines[n].op is not Op.SELECT]
        self.numerical = {n for n in self.sops if self.program.lines[n].op.result is Type.NUMERICAL}
        self.labels = {n: labels[n] if labels else f"v{n + 1}_" for n in self.sops}
        self.labels |= {TOKENS: "tokens", INDICES: "indices"}
        self._lay_out()

    def _needs_one(self, number: int) -> bool:
        """Whether a component reads the constant direction: all do but maps of values and linear combinations."""
        line = self.program.lines[number]
        match line.op:
            case Op.MAP | Op.MAP_NUMERICAL:
                return line.args[0] in self.numerical
            case Op.SEQUENCE_MAP:
                return line.args[0] != line.args[1]
        return line.op is not Op.LINEAR_SEQUENCE_MAP

    def _lay_out(self) -> None:
        """Sort the blocks of the residual stream."""
        tokens = self.tables[TOKENS].domain
        sizes = {"tokens": len(tokens) + 2, "indices": self.tables.max_seq_len}
        if any(map(self._needs_one, self.sops)):
            sizes[ONE] = 1
        for number in self.sops:
            sizes[self.labels[number]] = 1 if number in self.numerical else len(self.tables[number].domain)
            if self.program.lines[number].op in (Op.SELECTOR_WIDTH, Op.SELECTOR_WIDTH_NUMERICAL):
                sizes[self._fraction(number)] = 1
        self.offsets, self.d_model = _offsets(sizes)
        places, self.tokens, specials = _token_places(tokens, (self.bos_token, self.pad_token))
        self.bos: Places = (self.offsets["tokens"] + specials[self.bos_token], _zeros(1))
        self.at: dict[Variable, Places] = {TOKENS: (self.offsets["tokens"], places)}
        for variable in (INDICES, *self.sops):
            values = _zeros(1) if variable in self.numerical else _places_of(self.tables[variable].domain)
            self.at[variable] = (self.offsets[self.labels[variable]], values)

    def _fraction(self, number: int) -> str:
        return f"{self.labels[number]}_selector_width_attn_output"

    def _one(self, count: int) -> Places:
        return self.offsets[ONE], _zeros(count)

    # ------------------------------------------------------------ s-ops → components

    def mlp(self, number: int) -> _Mlp | None:
        line = self.program.lines[number]
        match line.op:
            case Op.MAP | Op.MAP_NUMERICAL if line.args[0] in self.numerical:
                return self._discretised(number, line)
            case Op.MAP_NUMERICAL:
                return self._map_to_number(number, line)
            case Op.MAP:
                return self._map(number, line, self.tables[number].codes[:-1])
            case Op.SEQUENCE_MAP if line.args[0] == line.args[1]:
                diagonal = slice(None, -1, len(self.tables[line.args[0]].domain) + 1)
                return self._map(number, line, self.tables[number].codes[diagonal])
            case Op.SEQUENCE_MAP:
                return self._sequence_map(number, line)
            case Op.LINEAR_SEQUENCE_MAP:
                return self._linear_sequence_map(number, line)
            case Op.SELECTOR_WIDTH | Op.SELECTOR_WIDTH_NUMERICAL:
                return self._inverse(number)
        return None

    def _map(self, number: int, line: Line, codes: np.ndarray) -> _Mlp:
        """craft/chamber/categorical_mlp.py, map_categorical_mlp."""
        (offset, places), (written, outputs) = self.at[line.args[0]], self.at[number]
        inputs, units = _mapped(places, self.tables[number], codes)
        edges: Edges = ((offset, inputs), (0, units), 1.0)
        return {self.labels[number]: _Units(len(outputs), [edges], [((0, outputs), (written, outputs), 1.0)])}

    def _map_to_number(self, number: int, line: Line) -> _Mlp:
        """craft/chamber/categorical_mlp.py, map_categorical_to_numerical_mlp."""
        table = self.tables[number]
        if None in table.entries:
            raise UnsupportedError(f"line {number + 1}: a numerical map must be defined on every value")
        inputs = self.at[line.args[0]]
        edges: Edges = (inputs, (0, _zeros(len(inputs[1]))), table.numbers[:-1])
        return {self.labels[number]: _Units(1, [edges], [((0, _zeros(1)), self.at[number], 1.0)])}

    def _sequence_map(self, number: int, line: Line) -> _Mlp:
        """craft/chamber/categorical_mlp.py, sequence_map_categorical_mlp; of an s-op with itself it is a map."""
        (first, one), (second, two) = (self.at[argument] for argument in line.args)  # tokens stand beside BOS and PAD
        table, units = self.tables[number], _pair_places(*[self.tables[argument].domain for argument in line.args])
        from_units, written = _mapped(units, table, table.codes[:-1])
        size = len(units)
        edges: list[Edges] = [
            (self._one(size), (0, units), -1.0),
            ((first, one.repeat(len(two))), (0, units), 1.0),
            ((second, np.tile(two, len(one))), (0, units), 1.0),
        ]
        name = f"_hidden_{self.labels[number]}_"
        return {name: _Units(size, edges, [((0, from_units), (self.at[number][0], written), 1.0)])}

    def _linear_sequence_map(self, number: int, line: Line) -> _Mlp:
        """craft/chamber/numerical_mlp.py, linear_sequence_map_numerical_mlp: two units an argument, -1 and 1."""
        assert line.function is not None and line.function.factors is not None
        units, signs, [output, _] = (0, _count(2)), np.array([-1.0, 1.0]), self.at[number]
        return {
            f"_hidden_{self.labels[number]}_{suffix}": _Units(
                2, [((self.at[argument][0], _zeros(2)), units, signs)], [(units, (output, _zeros(2)), signs * factor)]
            )
            for argument, suffix, factor in zip(line.args, "xy", line.function.factors, strict=True)
        }

    def _discretised(self, number: int, line: Line) -> _Mlp:
        table, undefined = self.tables[number], None if number in self.numerical else -1
        inputs = self.tables[line.args[0]].values
        steps = [(x, y) for x, y in zip(inputs, table.entries, strict=True) if y != undefined]
        return self._thresholds(number, self.at[line.args[0]][0], tuple(x for x, _ in steps), [y for _, y in steps])

    def _inverse(self, number: int) -> _Mlp:
        """craft/chamber/selector_width.py: a head writes 1/(width+1), which is inverted, and BOS is cleaned."""
        fraction, widths = self.offsets[self._fraction(number)], list(range(self.tables.max_seq_len, -1, -1))
        mlp = self._thresholds(number, fraction, tuple(1 / (width + 1) for width in widths), widths)
        cleaned: list[Edges] = [((0, _zeros(1)), (fraction, _zeros(1)), -1.0)]
        if number not in self.numerical:
            offset, places = self.at[number]
            cleaned.append(((0, _zeros(1)), (offset, places[:1]), -1.0))  # of the value 0
        mlp[CLEAN_BOS] = _Units(1, [(self.bos, (0, _zeros(1)), 1.0)], cleaned)
        return mlp

    def _thresholds(self, number: int, source: int, inputs: tuple, outputs: list) -> _Mlp:
        """craft/chamber/numerical_mlp.py: a step function, two units a threshold. `outputs` are codes or numbers."""
        size = 2 * len(inputs) - 2
        units, (written, places) = (0, _count(size)), self.at[number]
        start, steps = _Units(1, [(self._one(1), (0, _zeros(1)), 1.0)]), _Units(size)
        biases = threshold_biases(inputs, self.exactness)
        steps.first = [((source, _zeros(size)), units, self.exactness), (self._one(size), units, biases)]
        if number in self.numerical:
            start.second = [((0, _zeros(1)), (written, _zeros(1)), float(outputs[0]))]
            rises = [float(sign * (b - a)) for a, b in itertools.pairwise(outputs) for sign in (1, -1)]
            steps.second = [(units, (written, _zeros(size)), np.array(rises))]
        else:
            start.second = [((0, _zeros(1)), (written, places[outputs[:1]]), 1.0)]
            values, signs = places[outputs].repeat(2), _signs(size)
            steps.second = [(units, (written, values[2:]), signs), (units, (written, values[:-2]), -signs)]
        name = f"_hidden_{self.labels[number]}_"
        return {f"{name}start": start} | ({name: steps} if size else {})

    def head(self, number: int) -> _Head | None:
        """craft/chamber/categorical_attn.py."""
        line = self.program.lines[number]
        match line.op:
            case Op.AGGREGATE | Op.AGGREGATE_NUMERICAL:
                bos_weight, read, written = 0.5, self.at[line.args[1]], self.at[number]
            case Op.SELECTOR_WIDTH | Op.SELECTOR_WIDTH_NUMERICAL:
                bos_weight, read, written = 1.0, self.bos, (self.offsets[self._fraction(number)], _zeros(1))
            case _:
                return None
        keys, queries = self.program.lines[line.args[0]].args
        # Beside the values: BOS as a key and as a query, the constant direction as a query.
        key_size = max(len(self.at[keys][1]) + 1, len(self.at[queries][1]) + 2)
        return _Head(keys, queries, self.tables[line.args[0]], bos_weight, read, written, key_size)

    def key_columns(self, keys: Variable) -> tuple[Places, int]:
        """The columns of W_Q and W_K that stand for each key, and for BOS, which sorts among the tokens."""
        if keys == TOKENS:
            places, _, specials = _token_places(self.tables[TOKENS].domain, (self.bos_token,))
            return (0, places), specials[self.bos_token]
        places = self.at[keys][1]
        return ((1, places), 0) if self.labels[keys] > "tokens" else ((0, places), len(places))

    # ------------------------------------------------------------ components → layers

    def _breadth_first(self) -> list[Variable]:
        """Order of tracr's graph nodes (compiler/rasp_to_graph.py): decides the order of heads in a layer."""
        order, queue = {self.program.output: None}, [self.program.output]
        for variable in queue:
            if variable >= 0:
                for argument in self.program.lines[variable].args:
                    if argument not in order:
                        order[argument] = None
                        queue.append(argument)
        return list(order)

    def _half_layers(self, heads: dict[int, _Head | None], mlps: dict[int, _Mlp | None]) -> list[list[int]]:
        """S-ops whose heads, or whose MLPs, make up each half-layer (compiler/craft_graph_to_model.py). `heads` and
        `mlps` hold the same s-ops, in order of the graph's nodes."""
        depth = self.program.depths
        by_depth: dict[int, list[int]] = {}
        for number in heads:
            by_depth.setdefault(depth[number], []).append(number)
        deepest = max(by_depth)
        at = {number: depth[number] for number in heads}
        level = min(by_depth)
        while level < deepest:  # a level of heads alone, then one of MLPs alone, share a layer
            heads_only = all(mlps[n] is None for n in by_depth[level])
            if heads_only and all(heads[n] is None for n in by_depth[level + 1]):
                for deeper in range(level + 1, deepest + 1):
                    for number in by_depth[deeper]:
                        at[number] = deeper - 1
                    by_depth[deeper - 1].extend(by_depth[deeper])
                    by_depth[deeper] = []
                deepest -= 1
            level += 1
        halves: dict[int, list[int]] = {}
        for number in sorted(heads, key=lambda n: at[n]):
            layer = 2 * (at[number] - 1)
            if heads[number]:
                halves.setdefault(layer, []).append(number)
            if mlps[number]:
                halves.setdefault(layer + 1, []).append(number)
        # tracr skips halves of the model only to keep attention and MLP in turn
        placed: list[list[int]] = []
        for half in sorted(halves):
            if len(placed) % 2 != half % 2:
                placed.append([])
            placed.append(halves[half])
        return placed + [[]] * (len(placed) % 2)

    def _placed(self) -> tuple[dict[int, _Head | None], dict[int, _Mlp | None], list[list[int]]]:
        """Each s-op's head and MLP, and the s-ops of each half-layer."""
        nodes = self._breadth_first()
        if TOKENS not in nodes:
            raise UnsupportedError("a program must read tokens to be compiled; this one reads indices alone")
        sops = [n for n in nodes if n in self.labels and n >= 0]
        heads, mlps = {n: self.head(n) for n in sops}, {n: self.mlp(n) for n in sops}
        return heads, mlps, self._half_layers(heads, mlps)

    def owners(self) -> list[LayerOwners]:
        """As `owners_of`."""
        heads, mlps, halves = self._placed()
        layers = []
        for attention, block in zip(halves[::2], halves[1::2], strict=True):
            own = {n: mlp for n in block if (mlp := mlps[n])}
            joint = _side_by_side(list(own.values()))
            names = [name for name in sorted(joint) for _ in range(joint[name].size)]
            units = tuple(tuple(n for n, mlp in own.items() if name in mlp) for name in names)
            layers.append(LayerOwners(tuple(n for n in attention if heads[n]), units))
        return layers

    # ------------------------------------------------------------ layers → parameters

    def weights(self) -> SparseWeights:
        heads, mlps, halves = self._placed()
        in_layer = [[head for n in half if (head := heads[n])] for half in halves[::2]]
        units = [_side_by_side([mlp for n in half if (mlp := mlps[n])]) for half in halves[1::2]]
        num_heads = max(1, *map(len, in_layer))
        key_size = max((head.key_size for layer in in_layer for head in layer), default=1)
        mlp_size = max(1, *(sum(block.size for block in layer.values()) for layer in units))
        shapes = _shapes(
            self.d_model, num_heads * key_size, mlp_size, len(units), len(self.tokens), self.tables.max_seq_len + 1
        )
        parameters = _Parameters(shapes)
        self._embed(parameters)
        for number, layer_heads in enumerate(in_layer):
            self._write_attention(parameters, number, layer_heads, key_size)
        for number, layer_units in enumerate(units):
            _write_mlp(parameters, number, layer_units)
        places, values = parameters.entries()
        output = self.program.output
        offset, outputs = self.at[output]
        return SparseWeights(
            shapes=shapes,
            places=places,
            values=values,
            num_heads=num_heads,
            vocab=self.tokens,
            bos=self.bos_token,
            pad=self.pad_token,
            max_seq_len=self.tables.max_seq_len,
            output_values=None if output in self.numerical else _in_order(self.tables[output].domain),
            output_directions=list(range(offset, offset + len(outputs))),
            residual_labels=self._residual_labels(),
        )

    def _residual_labels(self) -> tuple[str, ...]:
        names: dict[str, Sequence[Value]] = {"tokens": self.tokens, "indices": range(self.tables.max_seq_len)}
        names |= {self.labels[n]: _in_order(self.tables[n].domain) for n in self.sops if n not in self.numerical}
        labels: list[str] = []
        for name in self.offsets:
            labels += [f"{name}:{value}" for value in names[name]] if name in names else [name]
        return tuple(labels)

    def _embed(self, parameters: _Parameters) -> None:
        tokens, positions = len(self.tokens), self.tables.max_seq_len
        rows = (0, _count(tokens))
        parameters.add("token_embed/embeddings", (rows, (self.offsets["tokens"], _count(tokens)), 1.0))
        if ONE in self.offsets:
            parameters.add("token_embed/embeddings", (rows, self._one(tokens), 1.0))
        rows = (1, _count(positions))  # before them stands BOS, whose position is embedded as zero
        parameters.add("pos_embed/embeddings", (rows, (self.offsets["indices"], _count(positions)), 1.0))

    def _write_attention(self, parameters: _Parameters, layer: int, heads: list[_Head], key_size: int) -> None:
        names = _names(layer)
        for number, head in enumerate(heads):
            first, moved = number * key_size, head.written[1]
            if len(moved) > key_size:
                raise UnsupportedError(f"a head moves {len(moved)} values, more than the key size {key_size}")
            (shift, columns), bos = self.key_columns(head.keys)
            (at_queries, queries), bos_column = self.at[head.queries], (first + bos, _zeros(1))
            chosen = np.flatnonzero(head.chosen.chosen[:-1])
            looked_for = (first + shift, columns[chosen // len(queries)])
            looking = (at_queries, queries[chosen % len(queries)])
            parameters.add(names["attn/query/w"], (looking, looked_for, COLDNESS))
            parameters.add(names["attn/query/w"], (self._one(1), bos_column, head.bos_weight * COLDNESS))
            parameters.add(names["attn/key/w"], (self.at[head.keys], (first + shift, columns), 1.0))
            parameters.add(names["attn/key/w"], (self.bos, bos_column, 1.0))
            parameters.add(names["attn/value/w"], (head.read, (first, moved), 1.0))
            parameters.add(names["attn/linear/w"], ((first, moved), head.written, 1.0))


def _offsets(sizes: dict[str, int]) -> tuple[dict[str, int], int]:
    """Where each block begins when they are sorted by name, and where the last one ends."""
    offsets, end = {}, 0
    for name in sorted(sizes):
        offsets[name] = end
        end += sizes[name]
    return offsets, end


@functools.lru_cache(maxsize=10_000)
def threshold_biases(inputs: tuple[float, ...], exactness: float) -> np.ndarray:
    """Biases of the two units of each threshold between two inputs."""
    thresholds = np.array([(a + b) / 2 for a, b in itertools.pairwise(inputs)], np.float64)
    return np.stack([1 - exactness * thresholds, -(exactness * thresholds)], 1).ravel()


@functools.cache
def _signs(count: int) -> np.ndarray:
    return np.tile([1.0, -1.0], count // 2)


def _side_by_side(mlps: list[_Mlp]) -> _Mlp:
    """MLPs of one layer; units of one name (cleaning BOS) add up, as in tracr's Linear.combine_in_parallel."""
    joint: _Mlp = {}
    for mlp in mlps:
        for name, units in mlp.items():
            if name in joint:
                joint[name].first.extend(units.first)
                joint[name].second.extend(units.second)
            else:
                joint[name] = _Units(units.size, [*units.first], [*units.second])
    return joint


def _write_mlp(parameters: _Parameters, layer: int, mlp: _Mlp) -> None:
    names, (offsets, _) = _names(layer), _offsets({name: units.size for name, units in mlp.items()})
    for name, units in mlp.items():
        offset = offsets[name]
        for rows, (column, columns), weights in units.first:
            parameters.add(names["mlp/linear_1/w"], (rows, (offset + column, columns), weights))
        for (row, unit), written, weights in units.second:
            parameters.add(names["mlp/linear_2/w"], ((offset + row, unit), written, weights))


@functools.cache
def _names(layer: int) -> dict[str, str]:
    """Tracr's names of a layer's parameters, by their end, in Tracr's order."""
    attention = [f"attn/{part}/{kind}" for part in ("key", "linear", "query", "value") for kind in "bw"]
    mlp = [f"mlp/{part}/{kind}" for part in ("linear_1", "linear_2") for kind in "bw"]
    return {end: f"transformer/layer_{layer}/{end}" for end in attention + mlp}


def _shapes(
    d_model: int, width: int, mlp_size: int, layers: int, tokens: int, positions: int
) -> dict[str, tuple[int, ...]]:
    """Shapes of all parameters: the largest block decides for all layers (compiler/assemble.py, TransformerConfig)."""
    into, out_of = (d_model, width), (width, d_model)
    matrices = [into, out_of, into, into, (d_model, mlp_size), (mlp_size, d_model)]
    in_layer = [shape for matrix in matrices for shape in (matrix[1:], matrix)]
    shapes: dict[str, tuple[int, ...]] = {
        "token_embed/embeddings": (tokens, d_model),
        "pos_embed/embeddings": (positions, d_model),
    }
    for layer in range(layers):
        shapes |= zip(_names(layer).values(), in_layer, strict=True)
    return shapes


class _Parameters:
    """The model's parameters, as entries that are collected, then placed, sorted and added up at once."""

    def __init__(self, shapes: dict[str, tuple[int, ...]]) -> None:
        self.widths = {name: shape[-1] for name, shape in shapes.items()}
        self.starts = dict(zip(shapes, itertools.accumulate(map(math.prod, shapes.values()), initial=0), strict=False))
        self.edges: list[tuple[int, int, np.ndarray, np.ndarray]] = []  # start, width, rows, columns
        self.weights: list[float] = []
        self.several: list[tuple[int, np.ndarray]] = []  # edges, by number, whose weights are not all one

    def add(self, name: str, edges: Edges) -> None:
        """Add weights to a matrix."""
        (row, rows), (column, columns), weights = edges
        width = self.widths[name]
        if isinstance(weights, np.ndarray):
            self.several.append((len(self.edges), weights))
            weights = 0.0
        self.edges.append((self.starts[name] + row * width + column, width, rows, columns))
        self.weights.append(weights)

    def entries(self) -> tuple[np.ndarray, np.ndarray]:
        """Places, ascending, and their weights, float32; what is 0 is left out (-0.0 is not)."""
        starts, widths, rows, columns = zip(*self.edges, strict=True)
        sizes = np.array([len(part) for part in rows])
        places = np.concatenate(rows)
        places *= np.array(widths).repeat(sizes)
        places += np.concatenate(columns)
        places += np.array(starts).repeat(sizes)
        weights = np.array(self.weights).repeat(sizes)
        for edge, some in self.several:
            end = int(sizes[: edge + 1].sum())
            weights[end - len(some) : end] = some
        order = places.argsort()
        places, weights = places[order], weights[order]
        repeated = places[1:] == places[:-1]
        if repeated.any():
            firsts = np.flatnonzero(np.concatenate([[True], ~repeated]))
            places, weights = places[firsts], np.add.reduceat(weights, firsts)
        values = weights.astype(np.float32)
        there = values.view(np.uint32) != 0
        return places[there], values[there]
