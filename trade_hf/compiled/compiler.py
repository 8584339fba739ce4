"""Program → TracrWeights, equal to what the tracr package compiles, bit for bit, without JAX.

Follows tracr's passes (arXiv:2301.05062 section 3): value sets (`rasp/tables.py` here), one component per s-op
(`compiler/expr_to_craft_graph.py`), components to layers (`compiler/craft_graph_to_model.py`), parameters
(`compiler/assemble.py`). Where tracr has a quirk, it is kept and named.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from trade_hf.compiled.weights import BOS, PAD, TracrWeights
from trade_hf.rasp.functions import Function, Value
from trade_hf.rasp.program import INDICES, TOKENS, Op, Program, Type, Variable, depths, live_lines
from trade_hf.rasp.tables import Tables, UnsupportedError, tabulate, unary_image

SOFTMAX_COLDNESS = 100.0  # attention logit of a selected key, before division by sqrt(key_size)
MLP_EXACTNESS = 100.0  # slope of the threshold units of maps of numbers
ONE = ("one", None)
CLEAN_BOS = ("_hidden_clean_bos_", None)  # one name for all selector widths of a layer, so that tracr adds them up

# A direction of the residual stream, or a hidden unit: (name, value or None), as tracr's BasisDirection.
Direction = tuple[str, object]
Linear = dict[tuple[Direction, Direction], float]  # (from, to) → weight


@dataclass
class _Head:
    """w_qk[query, key] and w_ov[value, output] over sorted directions."""

    queries: list[Direction]
    keys: list[Direction]
    outputs: list[Direction]
    qk: Linear = field(default_factory=dict)
    ov: Linear = field(default_factory=dict)


@dataclass
class _Mlp:
    """First layer: residual → hidden; second layer: hidden → residual. `hidden` may hold units without weights."""

    hidden: list[Direction]
    first: Linear = field(default_factory=dict)
    second: Linear = field(default_factory=dict)


@dataclass
class _Component:
    """What implements one s-op: a head, an MLP block, or (selector width) one after the other."""

    head: _Head | None
    mlp: _Mlp | None
    directions: set[Direction]  # all that it reads or writes


class _TextOrder:
    """Sorts directions as tracr's BasisDirection does where values do not compare: by `name:value`."""

    def __init__(self, direction: Direction) -> None:
        self.direction = direction

    def __lt__(self, other: _TextOrder) -> bool:
        try:
            return self.direction < other.direction
        except TypeError:
            return _direction_text(self.direction) < _direction_text(other.direction)


def _direction_text(direction: Direction) -> str:
    name, value = direction
    return name if value is None else f"{name}:{value}"


def sort_directions(directions: Iterable[Direction]) -> list[Direction]:
    """Ascending by name, then value (craft/bases.py, BasisDirection.__lt__)."""
    directions = list(directions)
    try:
        return sorted(directions)  # type: ignore[type-var]
    except TypeError:
        return sorted(directions, key=_TextOrder)


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
    vocab = set(vocab)
    for special in (BOS, PAD):
        if special in vocab:
            raise ValueError(f"the vocabulary must not contain {special!r}, the compiler's own token")
    if not vocab or max_seq_len < 1:
        raise ValueError("expected at least one token in the vocabulary and a length of at least 1")
    return _Compilation(tabulate(program, vocab, max_seq_len), labels).weights()


class _Compilation:
    """One run of the compiler; its methods are tracr's passes, in order."""

    def __init__(self, tables: Tables, labels: Sequence[str] | None) -> None:
        self.tables = tables
        self.program = tables.program
        self.labels = {n: labels[n] if labels else f"v{n + 1}_" for n in live_lines(self.program)}
        self.labels |= {TOKENS: "tokens", INDICES: "indices"}
        self.spaces = {variable: self._space(variable) for variable in self.labels if not self._is_selector(variable)}

    def _is_selector(self, variable: Variable) -> bool:
        return self.program.type_of(variable) is Type.SELECTOR

    def _is_numerical(self, variable: Variable) -> bool:
        return self.program.type_of(variable) is Type.NUMERICAL

    def _space(self, variable: Variable) -> list[Direction]:
        """The directions that encode an s-op, by code."""
        label = self.labels[variable]
        if self._is_numerical(variable):
            return [(label, None)]
        return [(label, value) for value in self.tables[variable].values]

    # ------------------------------------------------------------ s-ops → components

    def component(self, number: int) -> _Component:
        line = self.program.lines[number]
        match line.op:
            case Op.MAP | Op.MAP_NUMERICAL:
                if not self._is_numerical(line.args[0]):
                    mlp = self._map(number, line.args[0])
                else:
                    assert line.function is not None
                    mlp = self._discretised(number, line.args[0], line.function)
                return _mlp_component(mlp, self.spaces[line.args[0]], self.spaces[number])
            case Op.SEQUENCE_MAP:
                mlp = self._sequence_map(number)
                spaces = [self.spaces[argument] for argument in line.args]
                return _mlp_component(mlp, *spaces, self.spaces[number])
            case Op.LINEAR_SEQUENCE_MAP:
                spaces = [self.spaces[argument] for argument in line.args]
                return _mlp_component(self._linear_sequence_map(number), *spaces, self.spaces[number])
            case Op.AGGREGATE | Op.AGGREGATE_NUMERICAL:
                head = self._head(line.args[0], self.spaces[number], bos_weight=0.5)
                value_space = self.spaces[line.args[1]]
                head.ov = dict.fromkeys(zip(value_space, self.spaces[number], strict=True), 1.0)
                return _Component(head, None, {*head.queries, *head.keys, *value_space, *self.spaces[number]})
            case _:
                return self._selector_width(number)

    def _map(self, number: int, argument: Variable) -> _Mlp:
        """craft/chamber/categorical_mlp.py, map_categorical_mlp and map_categorical_to_numerical_mlp."""
        inputs, outputs, table = self.spaces[argument], self.spaces[number], self.tables[number]
        mlp = _Mlp(outputs, second={(output, output): 1.0 for output in outputs})
        for direction, entry in zip(inputs, table.entries, strict=True):
            if self._is_numerical(number):
                if entry is None:
                    raise UnsupportedError(f"line {number + 1}: a numerical map must be defined on every value")
                mlp.first[direction, outputs[0]] = float(entry)
            elif entry >= 0:
                mlp.first[direction, outputs[entry]] = 1.0
        return mlp

    def _sequence_map(self, number: int) -> _Mlp:
        """craft/chamber/categorical_mlp.py, sequence_map_categorical_mlp; of an s-op with itself: a map."""
        line, outputs, entries = self.program.lines[number], self.spaces[number], self.tables[number].entries
        first, second = (self.spaces[argument] for argument in line.args)
        if line.args[0] == line.args[1]:
            mlp = _Mlp(outputs, second={(output, output): 1.0 for output in outputs})
            for i, direction in enumerate(first):
                if (entry := entries[i * len(first) + i]) >= 0:
                    mlp.first[direction, outputs[entry]] = 1.0
            return mlp
        name = f"_hidden_{self.labels[number]}_"
        hidden: list[Direction] = [(name, (*x, *y)) for x in first for y in second]
        mlp = _Mlp(hidden, first={(ONE, unit): -1.0 for unit in hidden})
        for unit, (i, j), entry in zip(hidden, np.ndindex(len(first), len(second)), entries, strict=True):
            mlp.first[first[i], unit] = 1.0
            mlp.first[second[j], unit] = 1.0
            if entry >= 0:
                mlp.second[unit, outputs[entry]] = 1.0
        return mlp

    def _linear_sequence_map(self, number: int) -> _Mlp:
        """craft/chamber/numerical_mlp.py, linear_sequence_map_numerical_mlp."""
        line, [output] = self.program.lines[number], self.spaces[number]
        assert line.function is not None and line.function.factors is not None
        name, mlp = f"_hidden_{self.labels[number]}_", _Mlp([])
        for argument, suffix, factor in zip(line.args, "xy", line.function.factors, strict=True):
            for sign in (1, -1):
                unit = (f"{name}{suffix}", sign)
                mlp.hidden.append(unit)
                mlp.first[self.spaces[argument][0], unit] = float(sign)
                mlp.second[unit, output] = float(factor * sign)
        return mlp

    def _discretised(self, number: int, argument: Variable, function: Function) -> _Mlp:
        inputs = self.tables[argument].values
        pairs = [(x, y) for x, y in zip(inputs, unary_image(function, inputs), strict=True) if y is not None]
        return self._thresholds(number, self.spaces[argument][0], pairs)

    def _thresholds(self, number: int, source: Direction, pairs: list[tuple]) -> _Mlp:
        """craft/chamber/numerical_mlp.py: a step function, two hidden units a threshold."""
        name = f"_hidden_{self.labels[number]}_"
        start = (f"{name}start", None)
        mlp = _Mlp([start], first={(ONE, start): 1.0})
        self._add_output(mlp, number, start, pairs[0][1], 1)
        for k in range(1, len(pairs)):
            threshold = (pairs[k - 1][0] + pairs[k][0]) / 2
            for i, bias in enumerate((1 - MLP_EXACTNESS * threshold, -(MLP_EXACTNESS * threshold))):
                unit = (name, (k, i))
                mlp.hidden.append(unit)
                mlp.first[source, unit] = MLP_EXACTNESS
                mlp.first[ONE, unit] = bias
                sign = 1 - 2 * i
                if self._is_numerical(number):
                    mlp.second[unit, self.spaces[number][0]] = float(sign * (pairs[k][1] - pairs[k - 1][1]))
                else:
                    self._add_output(mlp, number, unit, pairs[k][1], sign)
                    self._add_output(mlp, number, unit, pairs[k - 1][1], -sign)
        return mlp

    def _add_output(self, mlp: _Mlp, number: int, unit: Direction, value: Value, weight: float) -> None:
        """Write `weight` times `value` of s-op `number`: one direction of many, or the amount in the only one."""
        if self._is_numerical(number):
            direction, weight = self.spaces[number][0], float(weight * value)  # type: ignore[operator]
        else:
            direction = (self.labels[number], value)
        mlp.second[unit, direction] = mlp.second.get((unit, direction), 0.0) + weight

    def _head(self, select: Variable, outputs: list[Direction], bos_weight: float) -> _Head:
        """craft/chamber/categorical_attn.py: W_QK of the selector; BOS is read when nothing else is selected."""
        bos = ("tokens", BOS)
        keys, queries = (self.spaces[argument] for argument in self.program.lines[select].args)
        head = _Head([*queries, *({bos, ONE} - set(queries))], [*keys, *({bos} - set(keys))], outputs)
        head.qk[ONE, bos] = bos_weight * SOFTMAX_COLDNESS
        selected = iter(self.tables[select].entries)
        for key in keys:
            for query in queries:
                if next(selected):
                    head.qk[query, key] = SOFTMAX_COLDNESS
        return head

    def _selector_width(self, number: int) -> _Component:
        """craft/chamber/selector_width.py: a head writes 1/(width+1), an MLP inverts it and cleans BOS."""
        label, bos = self.labels[number], ("tokens", BOS)
        fraction = (f"{label}_selector_width_attn_output", None)
        head = self._head(self.program.lines[number].args[0], [fraction], bos_weight=1.0)
        head.ov[bos, fraction] = 1.0
        inputs = sorted(1 / (width + 1) for width in range(self.tables.max_seq_len + 1))
        mlp = self._thresholds(number, fraction, [(x, round((1 / x) - 1)) for x in inputs])
        mlp.hidden.append(CLEAN_BOS)
        mlp.first[bos, CLEAN_BOS] = 1.0
        mlp.second[CLEAN_BOS, fraction] = -1.0
        if not self._is_numerical(number):
            mlp.second[CLEAN_BOS, (label, 0)] = -1.0
        return _Component(head, mlp, {*head.queries, *head.keys, fraction, *self.spaces[number], ONE})

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

    def _half_layers(self, components: dict[int, _Component]) -> dict[int, list[tuple[_Head | None, _Mlp | None]]]:
        """Half-layer number (even: attention, odd: MLP) → its blocks (compiler/craft_graph_to_model.py)."""
        depth = depths(self.program)
        by_depth: dict[int, list[int]] = {}
        for number in components:
            by_depth.setdefault(depth[number], []).append(number)
        deepest = max(by_depth)
        at = {number: depth[number] for number in components}
        level = min(by_depth)
        while level < deepest:  # a level of heads alone, then one of MLPs alone, share a layer
            heads_only = all(components[n].mlp is None for n in by_depth[level])
            if heads_only and all(components[n].head is None for n in by_depth[level + 1]):
                for deeper in range(level + 1, deepest + 1):
                    for number in by_depth[deeper]:
                        at[number] = deeper - 1
                    by_depth[deeper - 1].extend(by_depth[deeper])
                    by_depth[deeper] = []
                deepest -= 1
            level += 1
        half_layers: dict[int, list[tuple[_Head | None, _Mlp | None]]] = {}
        for number in sorted(components, key=lambda n: at[n]):
            component, layer = components[number], 2 * (at[number] - 1)
            if component.head:
                half_layers.setdefault(layer, []).append((component.head, None))
            if component.mlp:
                half_layers.setdefault(layer + 1, []).append((None, component.mlp))
        return dict(sorted(half_layers.items()))

    # ------------------------------------------------------------ layers → parameters

    def weights(self) -> TracrWeights:
        nodes = self._breadth_first()
        if TOKENS not in nodes:
            raise UnsupportedError("a program must read tokens to be compiled; this one reads indices alone")
        components = {n: self.component(n) for n in nodes if n >= 0 and not self._is_selector(n)}
        half_layers = self._half_layers(components)
        token_space = sort_directions([*self.spaces[TOKENS], ("tokens", BOS), ("tokens", PAD)])
        index_space = self.spaces.get(INDICES) or [("indices", i) for i in range(self.tables.max_seq_len)]
        output_space = sort_directions(self.spaces[self.program.output])
        used: set[Direction] = set().union(*(c.directions for c in components.values()))
        residual = sort_directions(used.union(token_space, index_space, output_space))
        row = {direction: i for i, direction in enumerate(residual)}

        tensors: dict[str, np.ndarray] = {
            "token_embed/embeddings": _embedding(row, [[d, ONE] if ONE in row else [d] for d in token_space]),
            "pos_embed/embeddings": _embedding(row, [[], *([d] for d in index_space)]),
        }
        blocks = list(half_layers.values())
        heads = [[head for head, _ in block if head] for block in blocks]
        mlps = [_combine([mlp for _, mlp in block if mlp]) for block in blocks]
        shape = _Shape.of(heads, mlps)
        half = -1
        placed: dict[int, int] = {}  # half-layer of the model → block; tracr skips halves only to keep the types right
        for number, block_heads in enumerate(heads):
            half += 1 if (half % 2 == 1) == bool(block_heads) else 2
            placed[half] = number
        for layer in range(half // 2 + 1):
            block = placed.get(2 * layer)
            _write_attention(tensors, layer, row, heads[block] if block is not None else [], shape)
            block = placed.get(2 * layer + 1)
            _write_mlp(tensors, layer, row, mlps[block] if block is not None else None, shape)
        numerical = self._is_numerical(self.program.output)
        return TracrWeights(
            tensors=tensors,
            num_heads=shape.num_heads,
            vocab=tuple(value for _, value in token_space),  # type: ignore[misc]
            max_seq_len=self.tables.max_seq_len,
            output_values=None if numerical else tuple(value for _, value in output_space),  # type: ignore[misc]
            unembedding=_embedding(row, [[d] for d in output_space]).T,
            residual_labels=tuple(map(_direction_text, residual)),
        )


def _mlp_component(mlp: _Mlp, *spaces: list[Direction]) -> _Component:
    directions = set().union(*spaces)
    if any(source == ONE for source, _ in mlp.first):
        directions.add(ONE)
    return _Component(None, mlp, directions)


@dataclass(frozen=True)
class _Shape:
    """tracr's TransformerConfig: the largest block decides for all (compiler/assemble.py)."""

    num_heads: int
    key_size: int
    mlp_size: int

    @classmethod
    def of(cls, heads: list[list[_Head]], mlps: list[_Mlp | None]) -> _Shape:
        every = [head for block in heads for head in block]
        return cls(
            num_heads=max((len(block) for block in heads if block), default=1),
            key_size=max((max(len(head.queries), len(head.keys)) for head in every), default=1),
            mlp_size=max((len(mlp.hidden) for mlp in mlps if mlp), default=1),
        )


def _combine(mlps: list[_Mlp]) -> _Mlp | None:
    """MLPs side by side; units of one name (cleaning BOS) add up, as in tracr's Linear.combine_in_parallel."""
    if not mlps:
        return None
    joint = _Mlp(sort_directions({unit for mlp in mlps for unit in mlp.hidden}))
    for mlp in mlps:
        for mine, theirs in ((joint.first, mlp.first), (joint.second, mlp.second)):
            for edge, weight in theirs.items():
                mine[edge] = mine.get(edge, 0.0) + weight
    return joint


def _embedding(row: dict[Direction, int], rows: list[list[Direction]]) -> np.ndarray:
    matrix = np.zeros((len(rows), len(row)), np.float32)
    for i, directions in enumerate(rows):
        for direction in directions:
            matrix[i, row[direction]] = 1.0
    return matrix


def _fill(matrix: np.ndarray, edges: Linear, row: dict[Direction, int], column: dict[Direction, int]) -> None:
    for (source, target), weight in edges.items():
        matrix[row[source], column[target]] = weight


def _write_attention(
    tensors: dict[str, np.ndarray], layer: int, row: dict[Direction, int], heads: list[_Head], shape: _Shape
) -> None:
    d_model, width = len(row), shape.num_heads * shape.key_size
    query, key, value = (np.zeros((d_model, width), np.float32) for _ in range(3))
    linear = np.zeros((width, d_model), np.float32)
    for h, head in enumerate(heads):
        columns = slice(h * shape.key_size, (h + 1) * shape.key_size)
        keys = {direction: j for j, direction in enumerate(sort_directions(head.keys))}
        outputs = {direction: j for j, direction in enumerate(sort_directions(head.outputs))}
        if len(outputs) > shape.key_size:
            raise UnsupportedError(f"a head moves {len(outputs)} values, more than the key size {shape.key_size}")
        _fill(query[:, columns], head.qk, row, keys)
        for direction, j in keys.items():
            key[row[direction], h * shape.key_size + j] = 1.0
        _fill(value[:, columns], head.ov, row, outputs)
        _fill(linear[columns], {(d, d): 1.0 for d in outputs}, outputs, row)
    for name, matrix in (("key", key), ("linear", linear), ("query", query), ("value", value)):
        tensors[f"transformer/layer_{layer}/attn/{name}/b"] = np.zeros(matrix.shape[1], np.float32)
        tensors[f"transformer/layer_{layer}/attn/{name}/w"] = matrix


def _write_mlp(
    tensors: dict[str, np.ndarray], layer: int, row: dict[Direction, int], mlp: _Mlp | None, shape: _Shape
) -> None:
    d_model = len(row)
    first = np.zeros((d_model, shape.mlp_size), np.float32)
    second = np.zeros((shape.mlp_size, d_model), np.float32)
    if mlp:
        unit = {direction: i for i, direction in enumerate(mlp.hidden)}
        _fill(first, mlp.first, row, unit)
        _fill(second, mlp.second, unit, row)
    for name, matrix in (("linear_1", first), ("linear_2", second)):
        tensors[f"transformer/layer_{layer}/mlp/{name}/b"] = np.zeros(matrix.shape[1], np.float32)
        tensors[f"transformer/layer_{layer}/mlp/{name}/w"] = matrix
