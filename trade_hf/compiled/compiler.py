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
from typing import Any

import numpy as np

from trade_hf.compiled.sparse import SparseWeights
from trade_hf.compiled.weights import BOS, PAD, TracrWeights
from trade_hf.rasp.functions import Value
from trade_hf.rasp.program import INDICES, TOKENS, Line, Op, Program, Type, Variable, depths, live_lines
from trade_hf.rasp.tables import Domain, Tables, UnsupportedError, tabulate

SOFTMAX_COLDNESS = 100.0  # attention logit of a selected key, before division by sqrt(key_size)
MLP_EXACTNESS = 100.0  # slope of the threshold units of maps of numbers
ONE = "one"
CLEAN_BOS = "_hidden_clean_bos_"  # one name for all selector widths of a layer, so that tracr adds them up

Places = np.ndarray  # of residual directions, or of hidden units
Edges = tuple[Any, Any, Any]  # rows, columns, weights: arrays or numbers, which broadcast


def compile_program(
    program: Program,
    vocab: Iterable[Value],
    max_seq_len: int,
    labels: Sequence[str] | None = None,
) -> TracrWeights:
    """Compile `program` as `tracr.compiler.compiling.compile_rasp_to_model` does.

    Args:
      program: the program; dead lines leave no trace.
      vocab: the input tokens, without BOS and pad.
      max_seq_len: the longest input, BOS not counted.
      labels: tracr's label for each line (name, underscore, number); their order is that of residual directions.
        By default `v1_`, `v2_`, …, which sort as tracr's do for s-ops named `v1`, `v2`, ….

    Raises UnsupportedError for what Tracr cannot compile, ValueError for a vocabulary that holds BOS or pad.
    """
    return compile_sparse(program, vocab, max_seq_len, labels).dense()


def compile_sparse(
    program: Program, vocab: Iterable[Value], max_seq_len: int, labels: Sequence[str] | None = None
) -> SparseWeights:
    """As `compile_program`, and only what is not zero: several times faster."""
    vocab = set(vocab)
    for special in (BOS, PAD):
        if special in vocab:
            raise ValueError(f"the vocabulary must not contain {special!r}, the compiler's own token")
    if not vocab or max_seq_len < 1:
        raise ValueError("expected at least one token in the vocabulary and a length of at least 1")
    return _Compilation(tabulate(program, vocab, max_seq_len), labels).weights()


# ---------------------------------------------------------------- order of directions


class _Order:
    """Sorts values as tracr sorts directions of one name: by their text where they do not compare."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __lt__(self, other: _Order) -> bool:
        try:
            return self.value < other.value
        except TypeError:
            return str(self.value) < str(other.value)


def _places(values: Sequence[Any]) -> np.ndarray:
    """Where each value stands in order."""
    try:
        order = sorted(range(len(values)), key=values.__getitem__)
    except TypeError:
        order = sorted(range(len(values)), key=lambda i: _Order(values[i]))
    places = np.empty(len(values), np.int64)
    places[order] = np.arange(len(values))
    return places


def _kept(domain: Domain, key: tuple, compute: Callable[[], np.ndarray]) -> np.ndarray:
    found = domain.tables.get(key)
    if found is None:
        found = domain.tables[key] = compute()
    return found


def _places_of(domain: Domain) -> np.ndarray:
    """`_places` of a domain's values, by code."""
    return _kept(domain, ("places",), lambda: _places(domain.values))


def _pair_places(first: Domain, second: Domain) -> np.ndarray:
    """[first, second] where each pair of values stands in order."""

    def compute() -> np.ndarray:
        if first.is_numeric and second.is_numeric:
            return _places_of(first)[:, None] * len(second) + _places_of(second)
        return _places([(x, y) for x in first.values for y in second.values]).reshape(len(first), -1)

    return _kept(first, ("pair places", second), compute)


@functools.lru_cache(maxsize=1_000)
def _token_places(vocab: Domain, specials: tuple[str, ...]) -> np.ndarray:
    """Where the tokens, then `specials`, stand in order."""
    return _places((*vocab.values, *specials))


# ---------------------------------------------------------------- components


@dataclass
class _Head:
    """Attention of one head: which query looks for which key, and what it moves.

    Attributes:
      keys, queries: s-ops.
      selected: codes of (keys, queries) pairs that are selected.
      bos_weight: how much BOS is attended to when nothing is selected, as a share of a selected key's logit.
      moves: residual directions that are read, and those that are written with them.
      columns: of W_V, for each.
      width: the number of those columns.
    """

    keys: Variable
    queries: Variable
    selected: tuple[np.ndarray, np.ndarray]
    bos_weight: float
    moves: tuple[Places, Places]
    columns: Places
    sizes: tuple[int, int]  # keys and queries, with BOS and the constant direction

    @property
    def key_size(self) -> int:
        return max(self.sizes)


@dataclass
class _Units:
    """Hidden units of one name. Edges go from residual directions to the block's units, and back."""

    size: int
    first: list[Edges] = field(default_factory=list)
    second: list[Edges] = field(default_factory=list)


_Mlp = dict[str, _Units]


class _Compilation:
    """One run of the compiler; its methods are tracr's passes, in order."""

    def __init__(self, tables: Tables, labels: Sequence[str] | None) -> None:
        self.tables = tables
        self.program = tables.program
        self.live = live_lines(self.program)
        self.sops = [n for n in self.live if self.program.lines[n].op is not Op.SELECT]
        self.numerical = {n for n in self.sops if self.program.lines[n].op.result is Type.NUMERICAL}
        self.labels = {n: labels[n] if labels else f"v{n + 1}_" for n in self.sops}
        self.labels |= {TOKENS: "tokens", INDICES: "indices"}
        self._lay_out()

    def _is_numerical(self, variable: Variable) -> bool:
        return variable in self.numerical

    def _needs_one(self, number: int) -> bool:
        """Whether a component reads the constant direction: all do but maps of values and linear combinations."""
        line = self.program.lines[number]
        match line.op:
            case Op.MAP | Op.MAP_NUMERICAL:
                return self._is_numerical(line.args[0])
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
            sizes[self.labels[number]] = 1 if self._is_numerical(number) else len(self.tables[number].domain)
            if self.program.lines[number].op in (Op.SELECTOR_WIDTH, Op.SELECTOR_WIDTH_NUMERICAL):
                sizes[self._fraction(number)] = 1
        self.offsets, self.d_model = _offsets(sizes)
        places = _token_places(tokens, (BOS, PAD))
        self.bos, self.pad = (self.offsets["tokens"] + places[-2:]).tolist()
        self.at = {TOKENS: self.offsets["tokens"] + places[:-2]}
        for variable in (INDICES, *self.sops):
            offset = self.offsets[self.labels[variable]]
            numerical = self._is_numerical(variable)
            self.at[variable] = np.array([offset]) if numerical else offset + _places_of(self.tables[variable].domain)

    def _fraction(self, number: int) -> str:
        return f"{self.labels[number]}_selector_width_attn_output"

    # ------------------------------------------------------------ s-ops → components

    def mlp(self, number: int) -> _Mlp | None:
        line = self.program.lines[number]
        match line.op:
            case Op.MAP | Op.MAP_NUMERICAL if self._is_numerical(line.args[0]):
                return self._discretised(number, line)
            case Op.MAP | Op.MAP_NUMERICAL:
                return self._map(number, self.at[line.args[0]], self.tables[number].entries)
            case Op.SEQUENCE_MAP if line.args[0] == line.args[1]:
                entries = self.tables[number].entries
                return self._map(number, self.at[line.args[0]], entries[:: len(self.tables[line.args[0]].domain) + 1])
            case Op.SEQUENCE_MAP:
                return self._sequence_map(number, line)
            case Op.LINEAR_SEQUENCE_MAP:
                return self._linear_sequence_map(number, line)
            case Op.SELECTOR_WIDTH | Op.SELECTOR_WIDTH_NUMERICAL:
                return self._inverse(number)
        return None

    def _map(self, number: int, inputs: Places, entries: tuple) -> _Mlp:
        """craft/chamber/categorical_mlp.py, map_categorical_mlp and map_categorical_to_numerical_mlp."""
        outputs = self.at[number]
        units = outputs - outputs.min()
        if self._is_numerical(number):
            if None in entries:
                raise UnsupportedError(f"line {number + 1}: a numerical map must be defined on every value")
            edges: Edges = (inputs, 0, np.array(entries, np.float64))
        else:
            codes = np.array(entries)
            defined = codes >= 0
            edges = (inputs[defined], units[codes[defined]], 1.0)
        return {self.labels[number]: _Units(len(outputs), [edges], [(units, outputs, 1.0)])}

    def _sequence_map(self, number: int, line: Line) -> _Mlp:
        """craft/chamber/categorical_mlp.py, sequence_map_categorical_mlp; of an s-op with itself it is a map."""
        first, second = line.args
        units = _pair_places(self.tables[first].domain, self.tables[second].domain)
        edges: list[Edges] = [
            (self.offsets[ONE], units, -1.0),
            (self.at[first][:, None], units, 1.0),
            (self.at[second], units, 1.0),
        ]
        codes = self.tables[number].codes[:-1].reshape(units.shape)
        if -1 in self.tables[number].entries:
            units, codes = units[codes >= 0], codes[codes >= 0]
        written: Edges = (units, self.at[number][codes], 1.0)
        return {f"_hidden_{self.labels[number]}_": _Units(edges[0][1].size, edges, [written])}

    def _linear_sequence_map(self, number: int, line: Line) -> _Mlp:
        """craft/chamber/numerical_mlp.py, linear_sequence_map_numerical_mlp: two units an argument, -1 and 1."""
        assert line.function is not None and line.function.factors is not None
        units, signs = np.array([0, 1]), np.array([-1.0, 1.0])
        return {
            f"_hidden_{self.labels[number]}_{suffix}": _Units(
                2, [(self.at[argument], units, signs)], [(units, self.at[number], signs * factor)]
            )
            for argument, suffix, factor in zip(line.args, "xy", line.function.factors, strict=True)
        }

    def _discretised(self, number: int, line: Line) -> _Mlp:
        table, undefined = self.tables[number], None if self._is_numerical(number) else -1
        inputs = self.tables[line.args[0]].values
        steps = [(x, y) for x, y in zip(inputs, table.entries, strict=True) if y != undefined]
        return self._thresholds(number, self.at[line.args[0]], [x for x, _ in steps], [y for _, y in steps])

    def _inverse(self, number: int) -> _Mlp:
        """craft/chamber/selector_width.py: a head writes 1/(width+1), which is inverted, and BOS is cleaned."""
        fraction = np.array([self.offsets[self._fraction(number)]])
        widths = list(range(self.tables.max_seq_len, -1, -1))
        mlp = self._thresholds(number, fraction, [1 / (width + 1) for width in widths], widths)
        cleaned = [fraction[0]] if self._is_numerical(number) else [fraction[0], self.at[number][0]]
        mlp[CLEAN_BOS] = _Units(1, [(self.bos, 0, 1.0)], [(0, np.array(cleaned), -1.0)])
        return mlp

    def _thresholds(self, number: int, source: Places, inputs: list, outputs: list) -> _Mlp:
        """craft/chamber/numerical_mlp.py: a step function, two hidden units a threshold. `outputs` are codes or numbers."""
        name, written = f"_hidden_{self.labels[number]}_", self.at[number]
        start, steps = _Units(1, [(self.offsets[ONE], 0, 1.0)]), _Units(2 * len(inputs) - 2)
        units, biases = _biases(tuple(inputs))
        steps.first = [(source, units, MLP_EXACTNESS), (self.offsets[ONE], units, biases)]
        if self._is_numerical(number):
            start.second = [(0, written, float(outputs[0]))]
            rises = [float(sign * (b - a)) for a, b in itertools.pairwise(outputs) for sign in (1, -1)]
            steps.second = [(units, written, np.array(rises))]
        else:
            codes, signs = np.array(outputs).repeat(2), np.tile([1.0, -1.0], len(outputs) - 1)
            start.second = [(0, written[outputs[0]], 1.0)]
            steps.second = [(units, written[codes[2:]], signs), (units, written[codes[:-2]], -signs)]
        return {f"{name}start": start} | ({name: steps} if steps.size else {})

    def head(self, number: int) -> _Head | None:
        """craft/chamber/categorical_attn.py: W_QK of the selector; BOS is read when nothing else is selected."""
        line = self.program.lines[number]
        match line.op:
            case Op.AGGREGATE | Op.AGGREGATE_NUMERICAL:
                bos_weight, moves = 0.5, (self.at[line.args[1]], self.at[number])
            case Op.SELECTOR_WIDTH | Op.SELECTOR_WIDTH_NUMERICAL:
                bos_weight, moves = 1.0, (np.array([self.bos]), np.array([self.offsets[self._fraction(number)]]))
            case _:
                return None
        keys, queries = self.program.lines[line.args[0]].args
        selected = np.divmod(np.flatnonzero(self.tables[line.args[0]].chosen[:-1]), len(self.at[queries]))
        columns = moves[1] - moves[1].min()
        sizes = (len(self.at[keys]) + 1, len(self.at[queries]) + 2)
        return _Head(keys, queries, selected, bos_weight, moves, columns, sizes)

    def key_columns(self, keys: Variable) -> tuple[np.ndarray, int]:
        """The column of W_Q and W_K that stands for each key, and for BOS, which sorts among the tokens."""
        if keys == TOKENS:
            places = _token_places(self.tables[TOKENS].domain, (BOS,))
            return places[:-1], int(places[-1])
        places = self.at[keys] - self.offsets[self.labels[keys]]
        return (places + 1, 0) if "tokens" < self.labels[keys] else (places, len(places))

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
        depth = depths(self.program)
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

    # ------------------------------------------------------------ layers → parameters

    def weights(self) -> SparseWeights:
        nodes = self._breadth_first()
        if TOKENS not in nodes:
            raise UnsupportedError("a program must read tokens to be compiled; this one reads indices alone")
        sops = [n for n in nodes if n in self.labels and n >= 0]
        heads = {n: self.head(n) for n in sops}
        mlps = {n: self.mlp(n) for n in sops}
        halves = self._half_layers(heads, mlps)
        in_layer = [[head for n in half if (head := heads[n])] for half in halves[::2]]
        units = [_side_by_side([mlp for n in half if (mlp := mlps[n])]) for half in halves[1::2]]
        num_heads = max(1, *map(len, in_layer))
        key_size = max((head.key_size for layer in in_layer for head in layer), default=1)
        mlp_size = max(1, *(sum(block.size for block in layer.values()) for layer in units))
        parameters = _Parameters(self.d_model, num_heads, key_size, mlp_size, len(halves) // 2, self._embedded())
        self._embed(parameters)
        for number, layer_heads in enumerate(in_layer):
            self._write_attention(parameters, number, layer_heads, key_size)
        for number, layer_units in enumerate(units):
            _write_mlp(parameters, number, layer_units)
        places, values = parameters.entries()
        output, domain = self.program.output, self.tables[self.program.output].domain
        directions = np.sort(self.at[output]).tolist()
        in_order = None
        if not self._is_numerical(output):
            in_order = tuple(domain.values[code] for code in np.argsort(self.at[output]).tolist())
        return SparseWeights(
            shapes=parameters.shapes,
            places=places,
            values=values,
            num_heads=num_heads,
            vocab=self._tokens(),
            max_seq_len=self.tables.max_seq_len,
            output_values=in_order,
            output_directions=directions,
            residual_labels=self._residual_labels(),
        )

    def _embedded(self) -> tuple[int, int]:
        """Rows of the embeddings of tokens and of positions."""
        return len(self.at[TOKENS]) + 2, self.tables.max_seq_len + 1

    def _tokens(self) -> tuple[Value, ...]:
        tokens = (*self.tables[TOKENS].values, BOS, PAD)
        order = np.argsort([*self.at[TOKENS], self.bos, self.pad])
        return tuple([tokens[i] for i in order.tolist()])

    def _residual_labels(self) -> tuple[str, ...]:
        labels = [""] * self.d_model
        for name, offset in self.offsets.items():
            labels[offset] = name  # for what has no value; the others follow
        named = [(TOKENS, self.at[TOKENS]), (INDICES, self.at[INDICES])]
        named += [(n, self.at[n]) for n in self.sops if not self._is_numerical(n)]
        for variable, places in named:
            label = self.labels[variable]
            for place, value in zip(places.tolist(), self.tables[variable].values, strict=True):
                labels[place] = f"{label}:{value}"
        labels[self.bos], labels[self.pad] = f"tokens:{BOS}", f"tokens:{PAD}"
        return tuple(labels)

    def _embed(self, parameters: _Parameters) -> None:
        tokens, positions = self._embedded()
        rows = np.arange(tokens)
        parameters.add("token_embed/embeddings", (rows, self.offsets["tokens"] + rows, 1.0))
        if ONE in self.offsets:
            parameters.add("token_embed/embeddings", (rows, self.offsets[ONE], 1.0))
        rows = np.arange(1, positions)
        parameters.add("pos_embed/embeddings", (rows, self.offsets["indices"] - 1 + rows, 1.0))

    def _write_attention(self, parameters: _Parameters, layer: int, heads: list[_Head], key_size: int) -> None:
        names, one = _names(layer), self.offsets.get(ONE, 0)
        for number, head in enumerate(heads):
            first = number * key_size
            if len(head.columns) > key_size:
                raise UnsupportedError(f"a head moves {len(head.columns)} values, more than the key size {key_size}")
            (keys, queries), (columns, bos) = head.selected, self.key_columns(head.keys)
            parameters.add(names["attn/query/w"], (self.at[head.queries][queries], first + columns[keys], SOFTMAX_COLDNESS))
            parameters.add(names["attn/query/w"], (one, first + bos, head.bos_weight * SOFTMAX_COLDNESS))
            parameters.add(names["attn/key/w"], (self.at[head.keys], first + columns, 1.0))
            parameters.add(names["attn/key/w"], (self.bos, first + bos, 1.0))
            (read, written), columns = head.moves, first + head.columns
            parameters.add(names["attn/value/w"], (read, columns, 1.0))
            parameters.add(names["attn/linear/w"], (columns, written, 1.0))


def _offsets(sizes: dict[str, int]) -> tuple[dict[str, int], int]:
    """Where each block begins when they are sorted by name, and where the last one ends."""
    offsets, end = {}, 0
    for name in sorted(sizes):
        offsets[name] = end
        end += sizes[name]
    return offsets, end


@functools.lru_cache(maxsize=10_000)
def _biases(inputs: tuple[float, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of the two units of each threshold between two inputs, and their biases."""
    thresholds = np.array([(a + b) / 2 for a, b in itertools.pairwise(inputs)], np.float64)
    biases = np.stack([1 - MLP_EXACTNESS * thresholds, -(MLP_EXACTNESS * thresholds)], 1).ravel()
    return np.arange(len(biases)), biases


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
        for rows, columns, weights in units.first:
            parameters.add(names["mlp/linear_1/w"], (rows, offset + columns, weights))
        for rows, columns, weights in units.second:
            parameters.add(names["mlp/linear_2/w"], (offset + rows, columns, weights))


@functools.cache
def _names(layer: int) -> dict[str, str]:
    """Tracr's names of a layer's parameters, by their end, in Tracr's order."""
    attention = [f"attn/{part}/{kind}" for part in ("key", "linear", "query", "value") for kind in "bw"]
    mlp = [f"mlp/{part}/{kind}" for part in ("linear_1", "linear_2") for kind in "bw"]
    return {end: f"transformer/layer_{layer}/{end}" for end in attention + mlp}


class _Parameters:
    """The model's parameters, as entries that are collected and then sorted and added up at once."""

    def __init__(
        self, d_model: int, num_heads: int, key_size: int, mlp_size: int, layers: int, embedded: tuple[int, int]
    ) -> None:
        """tracr's TransformerConfig: the largest block decides for all (compiler/assemble.py)."""
        into, out_of = (d_model, num_heads * key_size), (num_heads * key_size, d_model)
        matrices = [into, out_of, into, into, (d_model, mlp_size), (mlp_size, d_model)]
        in_layer = [shape for matrix in matrices for shape in (matrix[1:], matrix)]
        self.shapes: dict[str, tuple[int, ...]] = {
            "token_embed/embeddings": (embedded[0], d_model),
            "pos_embed/embeddings": (embedded[1], d_model),
        }
        for layer in range(layers):
            self.shapes |= zip(_names(layer).values(), in_layer, strict=True)
        ends = itertools.accumulate(map(math.prod, self.shapes.values()), initial=0)
        self.starts = dict(zip(self.shapes, ends, strict=False))
        self.alike: list[tuple[np.ndarray, float]] = []  # places with one weight
        self.varied: list[tuple[np.ndarray, np.ndarray]] = []
        self.single: list[tuple[int, float]] = []

    def add(self, name: str, edges: Edges) -> None:
        """Add weights to a matrix."""
        rows, columns, weights = edges
        places = rows * self.shapes[name][1] + (self.starts[name] + columns)
        if isinstance(weights, np.ndarray):
            self.varied.append((places, weights))
        elif isinstance(places, np.ndarray):
            self.alike.append((places.ravel(), weights))
        else:
            self.single.append((places, weights))

    def entries(self) -> tuple[np.ndarray, np.ndarray]:
        """Places, ascending, and their weights, float32; what is 0 is left out (-0.0 is not)."""
        alike, varied, single = (tuple(zip(*some, strict=True)) or ((), ()) for some in (self.alike, self.varied, self.single))
        places = np.concatenate([*alike[0], *varied[0], single[0]]).astype(np.int64)
        weights = np.concatenate([np.repeat(alike[1], [len(some) for some in alike[0]]), *varied[1], single[1]])
        order = places.argsort()
        places, weights = places[order], weights[order]
        repeated = places[1:] == places[:-1]
        if repeated.any():
            firsts = np.flatnonzero(np.concatenate([[True], ~repeated]))
            places, weights = places[firsts], np.add.reduceat(weights, firsts)
        values = weights.astype(np.float32)
        there = values.view(np.uint32) != 0
        return places[there], values[there]
