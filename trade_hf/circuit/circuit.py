"""Circuit: what a compiled transformer computes, told by products alone.

Not only the basis of the residual stream is arbitrary. So are the split of a head's W_Q and W_K and of its W_V and W_O,
the scale of a ReLU unit, where a constant sits (token embeddings, position embeddings or biases), the scale of all
logits and what they share, and all that nothing reads. A `Circuit` is the same for all models that differ by these
alone, up to rounding.

**Writers** are tokens, BOS, positions, what a head moves of another writer, and hidden units. Each has an activation
at each position: 1 where the token or position stands, what the head gathers of the writer's activations, or what the
hidden unit gives. **Readers** are the keys of a head, hidden units and outputs. A reader's product with a writer says
how much of its activation it takes. Nothing else is kept.

Gauge: adding a vector to all tokens and taking it from all positions changes nothing, so only what a reader takes of a
token beyond the least that it takes of any token is the token's; the least is part of the reader's bias. Positions
likewise. BOS stands at a position of its own, so the two are one writer.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from trade_hf.circuit.ties import in_order
from trade_hf.compiled.weights import TracrWeights, WeightsError

TOKEN, BOS, POSITION, MOVED, UNIT = range(5)  # kinds of writers

MAX_WRITERS = 4096  # heads that move what heads move multiply them
MAX_PRODUCTS = 20_000_000  # 160 MB
ROUNDING = 1e-5  # of the lengths of two vectors: a product this small is 0, also in bases of condition number 1,000
DUST = 0.02  # of the longest writer: much shorter ones are what compression left of those that nothing reads
NOISE = 2e-4  # of a reader's largest product: the smaller ones of a noisy model are above, Tracr's zeros below
DROWNED = 0.15  # of the longest: in a noisy model, shorter vectors are noise
IDLE = 0.1  # what a hidden unit reads times what it writes: in a noisy model, less is noise


@dataclass(frozen=True)
class Writers:
    """All writers, in the order in which they are computed.

    Attributes:
      kind: [writer] one of TOKEN, BOS, POSITION, MOVED, UNIT.
      layer: [writer] where it is computed; 0 for embeddings.
      head: [writer] the head of its layer that moves it; -1 where there is none.
      source: [writer] the token's row among the inputs', the position, the writer that is moved, the hidden unit.
    """

    kind: np.ndarray
    layer: np.ndarray
    head: np.ndarray
    source: np.ndarray


@dataclass(frozen=True)
class Head:
    """One head.

    Attributes:
      layer, number: which of the model's.
      keys: [key] the writers that it reads of keys. What all keys share does not matter to a softmax, and is left out.
      queries: [query] the writers that it reads of queries; it may make the same of all of them.
      products: [key, writer] logits of a unit of each key's activation for a unit of the query's.
      bias: [key] the same whatever the query.
      values: [value] the writers that it moves.
      out: the writer that `values[0]` becomes; the others follow.
    """

    layer: int
    number: int
    keys: np.ndarray
    queries: np.ndarray
    products: np.ndarray
    bias: np.ndarray
    values: np.ndarray
    out: int


@dataclass(frozen=True)
class Block:
    """The hidden units of one layer. A unit gives clip(products · activations + bias, 0, ceiling) / scale.

    The two units of a threshold, of which one takes back what the other adds, are one unit with a ceiling.

    Attributes:
      layer: which of the model's.
      products: [unit, writer]; the largest of a unit, or its bias, is 1.
      bias: [unit].
      ceiling: [unit] infinite, or what a threshold's unit rises to.
      members: for each unit the model's hidden units, one or two.
      out: the writer that the first unit is; the others follow.
    """

    layer: int
    products: np.ndarray
    bias: np.ndarray
    ceiling: np.ndarray
    members: tuple[tuple[int, ...], ...]
    out: int


@dataclass(frozen=True)
class Circuit:
    """What a model computes, in no basis.

    Attributes:
      tokens, positions: how many; they are the first writers, tokens first, and then comes BOS.
      writers: all of them.
      heads, blocks: in the order in which they are computed.
      outputs: [output, writer] products, those of a categorical output without what all outputs share.
      output_bias: [output].
      is_noisy: whether products are near what they can be and not equal to it.
      causal: whether positions attend to themselves and those before them alone.
    """

    tokens: int
    positions: int
    writers: Writers
    heads: tuple[Head, ...]
    blocks: tuple[Block, ...]
    outputs: np.ndarray
    output_bias: np.ndarray
    is_noisy: bool
    causal: bool

    @classmethod
    def of(cls, weights: TracrWeights) -> Circuit:
        """The circuit of a model. Raises WeightsError where there are more than MAX_WRITERS writers, or more than
        MAX_PRODUCTS products."""
        builder = _Builder(weights)
        for layer in range(weights.num_layers):
            builder.attention(layer)
            builder.block(layer)
        return builder.circuit()

    @property
    def parts(self) -> list[Head | Block]:
        """Heads and blocks in the order in which they are computed."""
        parts: list[Head | Block] = [*self.heads, *self.blocks]
        return sorted(parts, key=lambda part: (part.layer, isinstance(part, Block)))

    def run(self, inputs: np.ndarray) -> np.ndarray:
        """[batch, position, output]: the logits, BOS left out, for tokens [batch, position] by their place among the
        inputs'; what all logits of a position share is left out where outputs are categorical.

        All inputs are of one length.
        """
        batch, length = inputs.shape
        active = np.zeros((len(self.writers.kind), batch, length + 1))
        at = np.arange(1, length + 1)
        active[inputs, np.arange(batch)[:, None], at] = 1
        active[self.tokens + at - 1, :, at] = 1
        active[self.tokens + self.positions, :, 0] = 1
        hidden = np.triu(np.full((length + 1, length + 1), -np.inf), 1) if self.causal else 0.0
        for part in self.parts:
            before = active[: part.products.shape[1]]
            read = np.tensordot(part.products, before, 1) + part.bias[:, None, None]
            if isinstance(part, Block):
                risen = np.clip(read, 0, part.ceiling[:, None, None])
                scale = np.where(np.isfinite(part.ceiling), part.ceiling, 1)
                active[part.out : part.out + len(read)] = risen / scale[:, None, None]
                continue
            logits = np.einsum("kbi,kbj->bij", read, active[part.keys]) + hidden
            pattern = np.exp(logits - logits.max(-1, keepdims=True))
            pattern /= pattern.sum(-1, keepdims=True)
            moved = np.einsum("bij,vbj->vbi", pattern, active[part.values])
            active[part.out : part.out + len(moved)] = moved
        logits = np.tensordot(self.outputs, active, 1) + self.output_bias[:, None, None]
        return logits[:, :, 1:].transpose(1, 2, 0)


class _Builder:
    """Goes through a model from its embeddings to its outputs; all writers so far are vectors of the residual stream.

    Attributes:
      vectors: [writer, d_model]; tokens and positions without their means, which are part of the constant.
      constant: [d_model] what the residual stream holds at every position.
      longest: the length of the longest embedding.
    """

    def __init__(self, weights: TracrWeights) -> None:
        self.weights = weights
        self.tensors = {name: tensor.astype(np.float64) for name, tensor in weights.tensors.items()}
        embedded, positions = self.tensors["token_embed/embeddings"], self.tensors["pos_embed/embeddings"]
        bos = weights.vocab.index(weights.bos)
        rows = [row for row, token in enumerate(weights.vocab) if token not in (weights.bos, weights.pad)]
        tokens, token_mean = embedded[rows], embedded[rows].mean(0)
        position_mean = positions[1:].mean(0)
        self.tokens, self.positions = len(tokens), len(positions) - 1
        self.bos = self.tokens + self.positions
        self.constant = token_mean + position_mean
        start = embedded[bos] + positions[0] - self.constant
        self.vectors = np.concatenate([tokens - token_mean, positions[1:] - position_mean, start[None]])
        given = np.concatenate([tokens, positions[1:], embedded[[bos]] + positions[:1], self.vectors])
        self.longest = float(np.linalg.norm(given, axis=1).max())
        self.kind = [np.repeat([TOKEN, POSITION, BOS], [self.tokens, self.positions, 1])]
        self.layer = [np.zeros(self.bos + 1, int)]
        self.head = [np.full(self.bos + 1, -1)]
        self.source = [np.concatenate([np.arange(self.tokens), np.arange(self.positions), [0]])]
        self.heads: list[Head] = []
        self.blocks: list[Block] = []
        self.products = 0  # so far
        self.is_noisy = self.finds_noise()

    def layer_of(self, number: int, part: str) -> np.ndarray:
        return self.tensors[f"transformer/layer_{number}/{part}"]

    def finds_noise(self) -> bool:
        """Whether hidden units and outputs read a little of everything, where Tracr's read nothing of most writers."""
        readers = [self.layer_of(layer, "mlp/linear_1/w") for layer in range(self.weights.num_layers)]
        outputs = self.weights.unembedding.astype(np.float64)
        vectors = np.concatenate([*readers, outputs], 1)
        products = (self.vectors @ vectors).T
        if self.weights.output_values is not None and outputs.shape[1] > 1:
            products[-outputs.shape[1] :] -= np.median(products[-outputs.shape[1] :], axis=0)
        self.fix_gauge(products, np.zeros(len(products)))
        bound = np.linalg.norm(vectors, axis=0) * self.longest
        largest = np.abs(products).max(1)
        reads = largest > ROUNDING * bound
        if not reads.any():
            return False
        shares = (np.abs(products[reads]) / largest[reads, None]).ravel()
        return bool(np.quantile(shares, 0.3) > NOISE)

    def fix_gauge(self, products: np.ndarray, bias: np.ndarray) -> None:
        """Moves into the bias, in place, the least of each reader's products [reader, writer] with tokens, and that
        with positions."""
        tokens, positions = products[:, : self.tokens], products[:, self.tokens : self.bos]
        least_token, least_position = tokens.min(1), positions.min(1)
        tokens -= least_token[:, None]
        positions -= least_position[:, None]
        products[:, self.bos] -= least_token + least_position
        bias += least_token + least_position

    def add(self, kind: int, layer: int, head: int, source: np.ndarray, vectors: np.ndarray) -> int:
        """New writers; the number of the first."""
        first = len(self.vectors)
        if first + len(vectors) > MAX_WRITERS:
            raise WeightsError(f"the model's heads and hidden units write more than {MAX_WRITERS:,} things")
        for column, value in ((self.kind, kind), (self.layer, layer), (self.head, head)):
            column.append(np.full(len(vectors), value))
        self.source.append(source)
        self.vectors = np.concatenate([self.vectors, vectors])
        return first

    def count(self, readers: int) -> None:
        """Raises WeightsError where products of so many more readers with all writers so far are too many."""
        self.products += readers * len(self.vectors)
        if self.products > MAX_PRODUCTS:
            raise WeightsError(f"the model's parts have more than {MAX_PRODUCTS:,} products with each other")

    # ------------------------------------------------------------ attention

    def attention(self, layer: int) -> None:
        parts = {name: self.layer_of(layer, f"attn/{name}/w") for name in ("query", "key", "value", "linear")}
        biases = {name: self.layer_of(layer, f"attn/{name}/b") for name in ("query", "key", "value", "linear")}
        size = self.weights.key_size
        columns = [slice(number * size, (number + 1) * size) for number in range(self.weights.num_heads)]
        strength = [np.linalg.norm(parts["value"][:, own]) * np.linalg.norm(parts["linear"][own]) for own in columns]
        seen, constant = self.vectors, self.constant
        shared = biases["linear"].copy()
        found = []
        for number, own in enumerate(columns):
            if strength[number] == 0 or (self.is_noisy and strength[number] < DROWNED * max(strength)):
                shared += biases["value"][own] @ parts["linear"][own]
                continue
            keys, queries, products, bias = self.compared(
                seen, parts["query"][:, own], biases["query"][own], parts["key"][:, own] * size**-0.5
            )
            values, moved, left = self.moved(seen, parts["value"][:, own])
            shared += (constant @ parts["value"][:, own] + biases["value"][own] + left) @ parts["linear"][own]
            found.append((number, keys, queries, products, bias, values, moved @ parts["linear"][own]))
        for number, keys, queries, products, bias, values, vectors in found:
            out = self.add(MOVED, layer, number, values, vectors)
            self.heads.append(Head(layer, number, keys, queries, products, bias, values, out))
        self.constant = constant + shared

    @property
    def kinds_of_embeddings(self) -> tuple[slice, slice]:
        return slice(0, self.tokens), slice(self.tokens, self.bos)

    def against_bos(self, rows: np.ndarray, is_used: np.ndarray) -> np.ndarray:
        """What of `rows` [writer, …], changed in place, is the same at all positions.

        Where a head uses either tokens or positions, and not both, they are compared with BOS, which stands in place of
        one; then BOS is no longer marked in `is_used`.
        """
        used = [kind for kind in self.kinds_of_embeddings if is_used[kind].any()]
        if len(used) != 1:
            return np.zeros(rows.shape[1:])
        shared = rows[self.bos].copy()
        rows[used[0]] -= shared
        is_used[self.bos] = False
        return shared

    def compared(
        self, seen: np.ndarray, query: np.ndarray, query_bias: np.ndarray, key: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """The writers that a head reads of keys and of queries, the products [key, writer], and the keys' biases."""
        self.count(len(seen))
        queries, keys = seen @ query, seen @ key
        is_asked, is_told = self.is_read(seen, query, queries), self.is_read(seen, key, keys)
        logits = np.concatenate([keys @ queries.T, (keys @ (self.constant @ query + query_bias))[:, None]], 1)
        self.against_bos(logits, is_told)
        products, bias = logits[is_told, :-1], logits[is_told, -1]
        self.fix_gauge(products, bias)
        return np.flatnonzero(is_told), np.flatnonzero(is_asked), products, bias

    def moved(self, seen: np.ndarray, reader: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The writers that a head moves, their values [writer, value], and what of these is the same for all."""
        values = seen @ reader
        is_moved = self.is_read(seen, reader, values)
        shared = self.against_bos(values, is_moved)
        return np.flatnonzero(is_moved), values[is_moved], shared

    def is_read(self, seen: np.ndarray, reader: np.ndarray, products: np.ndarray) -> np.ndarray:
        """[writer] whether a head's `reader` [d_model, dimension] takes anything of each writer, whose products with it
        are [writer, dimension]. All tokens count as read if any is, and all positions."""
        lengths = np.linalg.norm(products, axis=1)
        if self.is_noisy:
            is_read = lengths > DROWNED * lengths.max()
        else:
            sizes = np.linalg.norm(seen, axis=1)
            is_read = lengths > ROUNDING * np.maximum(sizes, DUST * sizes.max()) * np.linalg.norm(reader)
        for kind in self.kinds_of_embeddings:
            is_read[kind] = is_read[kind].any()
        return is_read

    # ------------------------------------------------------------ hidden units and outputs

    def block(self, layer: int) -> None:
        reads, writes = self.layer_of(layer, "mlp/linear_1/w"), self.layer_of(layer, "mlp/linear_2/w")
        effect = np.linalg.norm(writes, axis=1)
        if self.is_noisy:
            effect = np.where(effect * np.linalg.norm(reads, axis=0) > IDLE, effect, 0)
        used = np.flatnonzero(effect)
        self.count(len(used))
        products = (self.vectors @ reads[:, used]).T
        bias = self.constant @ reads[:, used] + self.layer_of(layer, "mlp/linear_1/b")[used]
        self.constant = self.constant + self.layer_of(layer, "mlp/linear_2/b")
        self.fix_gauge(products, bias)
        scale = np.maximum(np.abs(products).max(1), np.abs(bias))
        works = scale > 0
        used, scale = used[works], scale[works]
        products, bias = products[works] / scale[:, None], bias[works] / scale
        units = with_pairs(products, bias, writes[used] * scale[:, None], 0.3 if self.is_noisy else 1e-3)
        products, bias, ceiling, vectors, kept = units
        members = tuple([tuple(used[list(one)].tolist()) for one in kept])
        out = self.add(UNIT, layer, -1, np.array([one[0] for one in members], int), vectors)
        self.blocks.append(Block(layer, products, bias, ceiling, members, out))

    def circuit(self) -> Circuit:
        reader = self.weights.unembedding.astype(np.float64)
        products, bias = (self.vectors @ reader).T, self.constant @ reader
        if self.weights.output_values is not None and len(bias) > 1:
            products -= np.median(products, axis=0)
            bias -= np.median(bias)
        self.fix_gauge(products, bias)
        columns = (self.kind, self.layer, self.head, self.source)
        return Circuit(
            tokens=self.tokens,
            positions=self.positions,
            writers=Writers(*[np.concatenate(column) for column in columns]),
            heads=tuple(self.heads),
            blocks=tuple(self.blocks),
            outputs=products,
            output_bias=bias,
            is_noisy=self.is_noisy,
            causal=self.weights.causal,
        )


def with_pairs(
    products: np.ndarray, bias: np.ndarray, vectors: np.ndarray, tolerance: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, list[tuple[int, ...]]]:
    """Hidden units, the two of each threshold made one: products [unit, writer], biases, ceilings, what they write
    [unit, d_model], and which of the given units each is.

    A threshold's units read the same, write the opposite, and one begins a little after the other.
    """
    largest = np.abs(products).max(1, initial=0)
    members: list[tuple[int, ...]] = [(unit,) for unit in range(len(bias))]
    candidates = np.flatnonzero(largest > 0.02)
    ceiling = np.full(len(bias), np.inf)
    if len(candidates) < 2:
        return products, bias, ceiling, vectors, members
    scale = largest[candidates]
    reads, starts = products[candidates] / scale[:, None], bias[candidates] / scale
    writes = vectors[candidates] * scale[:, None]
    lengths = (writes**2).sum(1)
    opposite = lengths[:, None] + lengths + 2 * writes @ writes.T
    opposite /= np.maximum(np.maximum(lengths[:, None], lengths), 1e-300)
    sizes = (reads**2).sum(1)
    alike = np.maximum(sizes[:, None] + sizes - 2 * reads @ reads.T, 0) / sizes
    after = starts[:, None] - starts
    firsts, seconds = np.nonzero((opposite < tolerance) & (alike < tolerance) & (after > 0) & (after < 1))
    cost = after[firsts, seconds] + opposite[firsts, seconds] + alike[firsts, seconds]
    taken: set[int] = set()
    products, bias, vectors = products.copy(), bias.copy(), vectors.copy()
    for pair in in_order(cost):
        one, two = int(firsts[pair]), int(seconds[pair])
        if one in taken or two in taken:
            continue
        taken |= {one, two}
        first, second = int(candidates[one]), int(candidates[two])
        rise = after[one, two]
        products[first] = (reads[one] + reads[two]) / 2
        bias[first], ceiling[first] = starts[one], rise
        vectors[first] = (writes[one] - writes[two]) / 2 * rise
        members[first], members[second] = (first, second), ()
    kept = np.array([unit for unit, one in enumerate(members) if one], int)
    return products[kept], bias[kept], ceiling[kept], vectors[kept], [members[unit] for unit in kept]
