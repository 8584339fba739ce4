"""A model in Tracr's own coordinates and scales, found from the products of its parts.

Lengths and angles of what is written say nothing in a basis that is not orthogonal, and neither does the scale of a
hidden unit, of a head's keys or of the logits. So directions are found in the order in which a model writes them, and
each reader is told by its products with those directions:
- **tokens, BOS, positions** are directions; what a reader takes of all of them is its bias.
- **heads** make a new direction of each one that they move. The logits of a key and a query are all that is kept of
  W_Q and W_K.
- **hidden units** of maps and sequence maps write a direction each, or share it where they write the same. The two
  units of a threshold are scaled so that they rise from 0 to 1. What step functions write is added up along the
  thresholds.
- **numbers**: all that is written along one line is one direction. Its scale is told by its readers, which take it as
  it is, or with the slope of the model's steps.

Nothing that is lost in compression is needed: values that nothing reads are directions of length 0.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from trade_hf.circuit.assembly import NEAR, TIDY, Assembly, Head, Layer, NotTracrsError, Unit
from trade_hf.circuit.chains import Chain, Piece, pair_up, share_out
from trade_hf.circuit.circuit import Circuit
from trade_hf.circuit.futures import Futures
from trade_hf.compiled.weights import COLDNESS, TracrWeights
from trade_hf.limits import Limits, Patience
from trade_hf.rasp.evaluate import EXACTNESS

ROUNDING = 3e-6  # of the lengths of two vectors: their product may be 0
SMALL = 1e-3  # of a vector's length: vectors that are no further apart are one
DUST = 1e-5  # of the longest vector's length: what compression leaves of what nothing reads
STEPS = 20_000  # for one model; nearly all take some hundred


def realise(weights: TracrWeights, circuit: Circuit, limits: Limits | None = None) -> TracrWeights:
    """The model, whose circuit is given, in Tracr's coordinates and scales, up to their order. Raises NotTracrsError,
    GaveUpError, WeightsError, and LimitError where `limits` of a search are reached."""
    return _Realisation(weights, circuit, Patience(STEPS, limits)).weights_found()


class _Realisation:
    """Goes through a model from its embeddings to its outputs.

    Attributes:
      found: [direction, d_model], in the given coordinates: tokens, BOS, positions, then what is written.
      scale_of: for each direction, the number of its scale; -1 where that is 1. What a head makes of a number has its
        scale.
      slopes: of each such scale, products with thresholds over how far these rise.
      shown: of each, the product with a numerical output.
    """

    def __init__(self, weights: TracrWeights, circuit: Circuit, patience: Patience) -> None:
        self.weights, self.patience = weights, patience
        if circuit.is_noisy:
            raise NotTracrsError("there is noise")
        self.futures = Futures(circuit, weights.output_values is not None)
        self.tensors = {name: tensor.astype(np.float64) for name, tensor in weights.tensors.items()}
        embedded, positions = self.tensors["token_embed/embeddings"], self.tensors["pos_embed/embeddings"]
        tokens = embedded[[weights.vocab.index(token) for token in weights.input_vocab]]
        bos, pad = (embedded[weights.vocab.index(token)] for token in (weights.bos, weights.pad))
        self.is_tracrs_gauge = not positions[0].any() and not any(
            tensor.any() for name, tensor in self.tensors.items() if name.endswith("/b")
        )
        middle = np.zeros_like(pad) if self.is_tracrs_gauge else positions[1:].mean(0)
        self.constant = pad if self.is_tracrs_gauge else tokens.mean(0) + middle
        of_tokens = self.constant - middle
        self.found = np.concatenate(
            [tokens - of_tokens, (bos + positions[0] - self.constant)[None], positions[1:] - middle]
        )
        rows = np.concatenate([tokens, (bos + positions[0])[None], positions[1:]])
        self.lengths = np.maximum(np.linalg.norm(self.found, axis=1), np.linalg.norm(rows, axis=1))
        self.bos, self.embedded = len(tokens), len(rows)
        self.kinds = (slice(0, self.bos), slice(self.bos + 1, self.embedded))
        self.scale_of = [-1] * self.embedded
        self.slopes: list[list[float]] = []
        self.shown: dict[int, float] = {}
        self.widths: set[int] = set()  # what heads make of BOS
        self.counts: set[int] = set()  # scales of numbers that say how many keys are selected
        self.natural_slopes: list[float] = []  # of numbers whose scale is known
        self.given_scales: list[float] = []  # of what is 1 in Tracr's hidden units
        self.as_given: dict[int, list[float]] = {}  # of each scale of numbers, what reads it as it is, in given scales
        self.simple: dict[int, float] = {}  # of each, what would make its numbers simple
        self.layers: list[Layer] = []

    def weights_found(self) -> TracrWeights:
        for layer in range(self.weights.num_layers):
            self.layers.append(Layer())
            self.add_heads(layer)
            self.add_units(layer)
        outputs = self.outputs()
        return self.assembled(outputs)

    # ------------------------------------------------------------ readers

    def add(self, vectors: np.ndarray, scale_of: Sequence[int]) -> list[int]:
        """New directions, and their numbers."""
        first = len(self.found)
        self.found = np.concatenate([self.found, vectors.reshape(-1, self.found.shape[1])])
        self.lengths = np.concatenate([self.lengths, np.linalg.norm(vectors.reshape(-1, self.found.shape[1]), axis=1)])
        self.scale_of += scale_of
        return list(range(first, len(self.found)))

    def new_scale(self) -> int:
        self.slopes.append([])
        return len(self.slopes) - 1

    def taken(self, readers: np.ndarray, own: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """[direction, reader] products, what may be rounding of them, and the biases of `readers` [d_model, reader]."""
        products, bias = self.found @ readers, self.constant @ readers + own
        sizes = np.linalg.norm(readers, axis=0)
        noise = ROUNDING * np.outer(self.lengths, sizes)
        self.fix_gauge(products, bias, noise)
        return products, noise, bias

    def fix_gauge(self, products: np.ndarray, bias: np.ndarray, noise: np.ndarray) -> None:
        """Moves into the bias, in place, the least of each reader's products with tokens, and that with positions;
        where it reads one of these two and nothing else, all of the bias into that."""
        if self.is_tracrs_gauge:
            return
        is_read = np.abs(products) > noise
        others = is_read[self.embedded :].any(0)
        for kind, other in (self.kinds, self.kinds[::-1]):
            varies = np.ptp(products[kind], axis=0) > noise[kind].max(0)
            alone = varies & ~others & ~(np.ptp(products[other], axis=0) > noise[other].max(0))
            moved = np.where(alone, -bias, np.where(varies, products[kind].min(0), products[kind].mean(0)))
            products[kind] -= moved
            products[self.bos] -= moved
            bias += moved

    # ------------------------------------------------------------ heads

    def add_heads(self, layer: int) -> None:
        size, shared, new = self.weights.key_size, np.zeros_like(self.constant), []
        self.cleared = 0  # heads of this layer that move BOS; one hidden unit takes back what they make of it
        for number in range(self.weights.num_heads):
            own = slice(number * size, (number + 1) * size)
            query, key, value, linear = (self.part(layer, f"attn/{p}/w") for p in ("query", "key", "value", "linear"))
            query, key, value, linear = query[:, own], key[:, own], value[:, own], linear[own]
            moved, rows, left = self.moved(value)
            bias = self.part(layer, "attn/value/b")[own]
            if not self.is_tracrs_gauge:
                shared = shared + (self.constant @ value + bias + left) @ linear
            if moved:
                head = self.compared(query, self.part(layer, "attn/query/b")[own], key, moved == [self.bos])
                head.moved = moved
                new.append((head, rows @ linear))
        self.constant = self.constant + shared + self.part(layer, "attn/linear/b")
        for head, vectors in new:
            head.out = self.add(vectors, [self.scale_of[direction] for direction in head.moved])
            if head.moved == [self.bos]:
                self.widths.add(head.out[0])
                self.cleared += 1
            self.layers[-1].heads.append(head)

    def part(self, layer: int, name: str) -> np.ndarray:
        return self.tensors[f"transformer/layer_{layer}/{name}"]

    def moved(self, value: np.ndarray) -> tuple[list[int], np.ndarray, np.ndarray]:
        """The directions that a head moves, their values, and what of these is the same at all positions."""
        values = self.found @ value
        used = self.used(values, value)
        left = self.against_bos(values, used)
        return np.flatnonzero(used).tolist(), values[used], left

    def used(self, products: np.ndarray, reader: np.ndarray) -> np.ndarray:
        """[direction] which of them a head's `reader` [d_model, dimension] takes."""
        used = np.linalg.norm(products, axis=1) > ROUNDING * self.lengths * np.linalg.norm(reader)
        for kind in () if self.is_tracrs_gauge else self.kinds:
            used[kind] = used[kind].any()
        return used

    def against_bos(self, rows: np.ndarray, used: np.ndarray) -> np.ndarray:
        """Takes from `rows` [direction, …], in place, what is the same at all positions: where a head uses either
        tokens or positions, BOS stands in place of one."""
        kinds = [kind for kind in self.kinds if used[kind].any()]
        if self.is_tracrs_gauge or len(kinds) != 1:
            return np.zeros(rows.shape[1:])
        shared = rows[self.bos].copy()
        rows[kinds[0]] -= shared
        rows[self.bos] = 0
        used[self.bos] = False
        return shared

    def compared(self, query: np.ndarray, query_bias: np.ndarray, key: np.ndarray, is_width: bool) -> Head:
        keys, queries = self.found @ key, self.found @ query
        are_keys, are_queries = self.used(keys, key), self.used(queries, query)
        queries[~are_queries] = 0
        logits = np.concatenate([keys @ queries.T, (keys @ (self.constant @ query + query_bias))[:, None]], 1)
        self.against_bos(logits, are_keys)
        if not self.is_tracrs_gauge and any(are_keys[kind].any() for kind in self.kinds):
            logits[:, -1] += COLDNESS * (1 if is_width else 0.5)  # BOS has the logit 0 so far
        are_keys[self.bos] = False
        order = [self.bos, *np.flatnonzero(are_keys).tolist()]
        logits = logits[order]
        if not self.is_tracrs_gauge:
            self.fix_queries(logits, are_queries)
        return Head(order, logits[:, :-1], logits[:, -1], [], [])

    def fix_queries(self, logits: np.ndarray, are_queries: np.ndarray) -> None:
        """Moves what all tokens, or all positions, as queries make of each key but BOS, where they alone are queries,
        from the key's bias, the last column of `logits`, to the queries; where nothing is, to tokens."""
        kinds = [kind for kind in self.kinds if are_queries[kind].any()]
        for kind in kinds:
            least = logits[:, kind].min(1)
            logits[:, kind] -= least[:, None]
            logits[:, self.bos] -= least
            logits[:, -1] += least
        if not are_queries[self.embedded :].any() and len(kinds) < 2:
            kind = kinds[0] if kinds else self.kinds[0]
            logits[1:, kind] += logits[1:, -1:]
            logits[1:, self.bos] += logits[1:, -1]
            logits[1:, -1] = 0

    # ------------------------------------------------------------ hidden units

    def add_units(self, layer: int) -> None:
        first, second = self.part(layer, "mlp/linear_1/w"), self.part(layer, "mlp/linear_2/w")
        products, noise, bias = self.taken(first, self.part(layer, "mlp/linear_1/b"))
        self.constant = self.constant + self.part(layer, "mlp/linear_2/b")
        clean = np.where(np.abs(products) > noise, products, 0).T  # [unit, direction]
        small = ROUNDING * np.linalg.norm(self.constant) * np.linalg.norm(first, axis=0)
        largest = np.maximum(np.abs(clean).max(1, initial=0), np.abs(bias))
        small = np.maximum(small, SMALL * largest)
        lengths = np.linalg.norm(second, axis=1) * np.where(largest > 0, largest, 1)
        second = np.where((lengths > DUST * lengths.max(initial=0))[:, None], second, 0)
        is_used = (largest > 0) & (first.any(0) | (bias != 0)) | second.any(1)
        plain: list[tuple[int, Unit, np.ndarray, float]] = []
        starts: list[tuple[int, Unit]] = []
        sources: dict[int, list[int]] = {}  # units that read one number alone
        vectors: dict[int, np.ndarray] = {}  # what starts write
        self.cleaners: list[tuple[Unit, np.ndarray]] = []
        self.first_values: list[int] = []
        for unit in np.flatnonzero(is_used).tolist():
            self.patience()
            read = np.flatnonzero(np.abs(clean[unit]) > SMALL * np.abs(clean[unit]).max())
            own = Unit(products[:, unit], float(bias[unit]))
            if not len(read) and bias[unit] > small[unit]:
                vectors[unit] = own.scaled(1 / own.bias, second[unit])
                self.given_scales.append(float(bias[unit]))
                starts.append((unit, own))
            elif (
                len(read) == 1 and read[0] >= self.embedded and (read[0] in self.widths or self.scale_of[read[0]] >= 0)
            ):
                sources.setdefault(int(read[0]), []).append(unit)
            elif len(read) == 1 and read[0] == self.bos:
                self.cleaners.append((own, own.scaled(max(1, self.cleared) / own.row[self.bos], second[unit])))
                self.layers[-1].units.append(own)
            else:
                plain.append((unit, own, read, small[unit]))
        linear: list[tuple[int, Unit]] = []
        groups: dict[int, list[tuple[float, list[Piece]]]] = {}
        self.thresholds: dict[int, Unit] = {}
        stepping = [unit for unit, _ in starts] + [unit for units in sources.values() for unit in units]
        later = self.futures.of(layer, stepping), self.futures.as_numbers(layer, stepping)
        self.read_later = dict(zip(stepping, zip(*later, strict=True), strict=True))
        for source, units in sources.items():
            groups[source] = self.add_thresholds(source, units, products, bias, second, linear)
        self.add_plain(layer, plain, second)
        self.add_linear(linear, second)
        self.add_chains(layer, starts, {s: g for s, g in groups.items() if g}, vectors)
        for own, vector in self.cleaners:
            own.writes = self.combined(vector)

    def combined(self, vector: np.ndarray) -> dict[int, float]:
        """What the unit that clears BOS takes back: of what heads made of BOS, and of values of this layer."""
        candidates = [*sorted(self.widths), *self.first_values]
        if not candidates or not vector.any():
            return {}
        found, *_ = np.linalg.lstsq(self.found[candidates].T, vector, rcond=1e-6)
        return {c: float(np.round(x)) for c, x in zip(candidates, found, strict=True) if abs(x) > 0.5}

    def add_plain(self, layer: int, plain: list[tuple[int, Unit, np.ndarray, float]], second: np.ndarray) -> None:
        """Units of maps and sequence maps of values."""
        joined: list[int] = []  # directions that sequence maps write
        for unit, own, read, small in plain:
            reads = own.row[read]
            vector = second[unit]
            if own.bias > small:
                raise NotTracrsError("a hidden unit is on and reads something")
            if own.bias < -small:
                self.given_scales.append(-own.bias)
                vector = own.scaled(-1 / own.bias, vector)
                if vector.any():
                    own.writes = {self.shared_direction(vector, joined): 1.0}
            elif not len(read):
                [place] = self.add(vector[None], [-1])
                own.writes = {place: 1.0}
            elif self.futures.is_number(layer, unit) or np.ptp(reads) > NEAR * np.abs(reads).max():
                own.row = np.where(np.abs(own.row) > TIDY * np.abs(reads).max(), own.row, 0)
                [place] = self.add(vector[None], [self.new_scale()])
                own.writes, own.number = {place: 1.0}, place
                self.simple[self.scale_of[place]] = 1 / float(np.abs(reads).min())
            else:
                self.given_scales.append(float(reads.mean()))
                [place] = self.add(own.scaled(1 / float(reads.mean()), vector)[None], [-1])
                own.writes = {place: 1.0}
            self.layers[-1].units.append(own)

    def shared_direction(self, vector: np.ndarray, among: list[int]) -> int:
        """The direction of a sequence map's value: one of those `among`, to which a new one is added."""
        length = np.linalg.norm(vector)
        for place in among:
            if np.linalg.norm(self.found[place] - vector) < SMALL * 10 * length:
                return place
        among += self.add(vector[None], [-1])
        return among[-1]

    def add_thresholds(
        self,
        source: int,
        units: list[int],
        products: np.ndarray,
        bias: np.ndarray,
        second: np.ndarray,
        linear: list[tuple[int, Unit]],
    ) -> list[tuple[float, list[Piece]]]:
        """The thresholds of a number, ascending, and the steps at each. Units that are none are `linear`."""
        read = products[source, units]
        numbers = np.array(units)
        found: list[tuple[float, Piece]] = []
        for sign in (1.0, -1.0):
            own = numbers[read * sign > 0]
            size = np.abs(products[source, own])
            begins, writes = bias[own] / size, second[own] * size[:, None]
            pairs, rise = pair_up(begins, writes)
            paired = {unit for pair in pairs for unit in pair}
            for unit in [unit for place, unit in enumerate(own.tolist()) if place not in paired]:
                linear.append((unit, Unit(products[:, unit], float(bias[unit]), number=source)))
            for upper, lower in pairs:
                unit, start = int(own[upper]), float(begins[upper])
                vector = (writes[upper] - writes[lower]) / 2 * rise
                self.thresholds[unit] = Unit(sign * products[:, unit], start, number=source, rise=rise)
                if self.scale_of[source] >= 0:
                    self.slopes[self.scale_of[source]].append(sign / rise)
                else:
                    self.natural_slopes.append(1 / rise)
                self.given_scales.append(float(rise * abs(products[source, unit])))
                found.append((rise - start, self.piece(unit, vector)))
        found.sort(key=lambda item: item[0])
        groups: list[tuple[float, list[Piece]]] = []
        for at, piece in found:
            rise = self.thresholds[piece.unit].rise
            if groups and abs(at - groups[-1][0]) < NEAR * rise:
                groups[-1][1].append(piece)
            else:
                groups.append((at, [piece]))
        return groups

    def piece(self, unit: int, vector: np.ndarray) -> Piece:
        return Piece(unit, vector, *self.read_later[unit])

    def add_linear(self, linear: list[tuple[int, Unit]], second: np.ndarray) -> None:
        """Units that take a number as it is, or its negative; all that write along one line write one direction."""
        vectors = []
        for unit, own in linear:
            size = abs(own.row[own.number])
            if self.scale_of[own.number] >= 0:
                self.as_given.setdefault(self.scale_of[own.number], []).append(size)
            own.row, own.bias = own.row / size, own.bias / size
            vectors.append(second[unit] * size)
            self.layers[-1].units.append(own)
        lengths = [float(np.linalg.norm(vector)) for vector in vectors]
        places: list[int] = []
        for i in sorted(range(len(linear)), key=lambda i: -lengths[i]):
            if not lengths[i]:
                continue
            for place in places:
                along = float(vectors[i] @ self.found[place]) / float(self.found[place] @ self.found[place])
                if np.linalg.norm(vectors[i] - along * self.found[place]) < 10 * SMALL * lengths[i]:
                    break
            else:
                [place] = self.add(vectors[i][None], [self.new_scale()])
                places.append(place)
                along = 1.0
            linear[i][1].writes = {place: along}

    def add_chains(
        self,
        layer: int,
        starts: list[tuple[int, Unit]],
        groups: dict[int, list[tuple[float, list[Piece]]]],
        vectors: dict[int, np.ndarray],
    ) -> None:
        """Step functions of numbers, and what is always the same."""
        units = dict(starts) | self.thresholds
        steps = [_filled_up([pieces for _, pieces in some]) for some in groups.values()]
        pieces = [self.piece(unit, vectors[unit]) for unit, _ in starts]
        chains = share_out(pieces, steps, self.patience)
        if len(chains) != sum(len(some[0]) for some in steps):
            raise NotTracrsError("no way to share out steps")
        taken = {chain.start.unit for chain in chains}
        chains += [Chain(piece) for piece in pieces if piece.unit not in taken]
        for chain in chains:
            own = (chain.start, *chain.steps)
            told = any(self.futures.is_number(layer, piece.unit) for piece in own)
            is_number = chain.is_number and (chain.is_even or _number_of(chain, units) not in self.widths)
            if told or (is_number and not chain.is_read_as_value):
                self.add_numbers(chain, units)
            else:
                self.add_values(chain, units)
        self.layers[-1].units += units.values()

    def add_numbers(self, chain: Chain, units: dict[int, Unit]) -> None:
        longest = chain.vectors[np.linalg.norm(chain.vectors, axis=1).argmax()]
        if not longest.any():
            return
        along = chain.vectors @ longest / (longest @ longest)
        [place] = self.add(longest[None], [self.new_scale()])
        for piece, much in zip((chain.start, *chain.steps), along.tolist(), strict=True):
            if piece.unit >= 0 and piece.vector.any():
                units[piece.unit].writes = {place: much}
        sizes = np.abs(along.cumsum())
        self.simple[self.scale_of[place]] = 1 / float(sizes[sizes > SMALL].min(initial=1))
        if _number_of(chain, units) in self.widths and chain.is_even and along[1:].any():  # it counts
            self.simple[self.scale_of[place]] = -1 / float(along[1:].mean())
            self.counts.add(self.scale_of[place])

    def add_values(self, chain: Chain, units: dict[int, Unit]) -> None:
        values, places = chain.values, []
        lengths = np.linalg.norm(values, axis=1)
        known: list[int] = []
        for value, length in zip(values, lengths.tolist(), strict=True):
            same = [p for p in known if np.linalg.norm(self.found[p] - value) < 10 * SMALL * lengths.max()]
            if not same and length > 10 * SMALL * lengths.max():
                same = self.add(value[None], [-1])
                known += same
            places.append(same[0] if same else None)
        self.first_values += known
        before = None
        for piece, place in zip((chain.start, *chain.steps), places, strict=True):
            if piece.unit >= 0 and place != before:
                writes = units[piece.unit].writes
                if place is not None:
                    writes[place] = 1.0
                if before is not None:
                    writes[before] = -1.0
            before = place

    # ------------------------------------------------------------ outputs, and all together

    def outputs(self) -> np.ndarray:
        """[direction, output] products."""
        products = self.found @ self.weights.unembedding.astype(np.float64)
        if self.weights.output_values is None:
            place = int(np.abs(products[:, 0]).argmax())
            self.shown[self.scale_of[place]] = float(products[place, 0])
            return products
        if products.shape[1] > 1:
            products -= products.min(1, keepdims=True)
        return products / max(float(np.abs(products).max()), 1e-300)

    @property
    def is_as_given(self) -> bool:
        """Whether hidden units have Tracr's scales already."""
        return self.is_tracrs_gauge and bool((np.abs(np.array(self.given_scales) - 1) < 0.02).all())

    def factor(self, scale: int, slope: float) -> float:
        """What makes a direction of a number what Tracr's is."""
        if scale in self.shown:
            return 1 / self.shown[scale]
        if self.slopes[scale]:
            return slope / float(np.median(self.slopes[scale]))
        if scale in self.counts or not self.is_as_given:
            return 1 / self.simple.get(scale, 1.0)
        return 1 / min(self.as_given.get(scale, [1.0]))

    def exactness(self) -> float:
        """The slope of the model's steps."""
        slope = float(np.median(self.natural_slopes)) if self.natural_slopes else EXACTNESS
        if self.natural_slopes and abs(slope / EXACTNESS - 1) < 0.05:
            return EXACTNESS
        return self.weights.exactness if self.is_as_given else float(f"{slope:.3g}")

    def assembled(self, outputs: np.ndarray) -> TracrWeights:
        slope = self.exactness()
        factors = [self.factor(scale, slope) for scale in range(len(self.slopes))]
        scales = np.array([1.0 if scale < 0 else factors[scale] for scale in self.scale_of])
        return Assembly(self.weights, self.layers, scales, slope).weights(outputs)


def _number_of(chain: Chain, units: dict[int, Unit]) -> int:
    """The direction of the number whose thresholds a step function has; -1 if it has none."""
    return next((units[step.unit].number for step in chain.steps if step.unit >= 0), -1)


def _filled_up(steps: list[list[Piece]]) -> list[list[Piece]]:
    """[threshold][function] steps of one number: functions that are not defined on all of its values have fewer."""
    most = max(map(len, steps))
    return [[*some, *[some[0].nothing] * (most - len(some))] for some in steps]
