"""Models that differ from a program and try to pass for it, built by hand; and random mutations.

A *kind* makes of a program and its compiled model a pair that differs, by one idea: a unit that reads much, writes
little and fires rarely; numbers that single precision cannot add; another decoding. Each is made over a small domain,
whose inputs can all be run, and over a large one, and each in Tracr's basis and in a rotated one. Whether a pair does
differ is for `judge.py` to say. Run: `python scripts/benchmark.py attacks --json`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from trade_hf.compiled.compiler import compile_program
from trade_hf.compiled.transforms import rotate
from trade_hf.compiled.weights import TracrWeights
from trade_hf.rasp.functions import Value
from trade_hf.rasp.program import Program
from trade_hf.rasp.text import parse

HUGE = 2.0**25  # to this, single precision cannot add 1
MOST = 1e9  # the largest weight that a file may hold

CHAIN = """v1 = rasp.Select(rasp.indices, rasp.indices, lambda k, q: q == k + 1)
v2 = rasp.Aggregate(v1, rasp.tokens)
v3 = rasp.SequenceMap(lambda x, y: max(x, y), v2, rasp.tokens)
v4 = rasp.Map(lambda x: x % 3, v3)
v5 = rasp.SequenceMap(lambda x, y: {last}, v4, rasp.tokens)
program = v5"""
FRACTION = """v1 = rasp.numerical(rasp.Map(lambda x: x == 2, rasp.tokens))
v2 = rasp.Select(rasp.indices, rasp.indices, rasp.Comparison.LEQ)
v3 = rasp.numerical(rasp.Aggregate(v2, v1, default=0))
program = v3"""
FACTOR = """v1 = rasp.numerical(rasp.Map(lambda x: x == 2, rasp.tokens))
v2 = rasp.numerical(rasp.Map(lambda x: x == 1, rasp.tokens))
v3 = rasp.numerical(rasp.LinearSequenceMap(v1, v2, 9000, 1))
program = v3"""
STEPS = """v1 = rasp.numerical(rasp.Map(lambda x: {0: 0, 1: 500, 2: 1000, 3: 1500, 4: 0}.get(x), rasp.tokens))
v2 = rasp.Map(lambda x: {0: 0, 500: 1, 1000: 0, 1500: 2}.get(x), v1)
v3 = rasp.numerical(rasp.Map(lambda x: {0: 0, 1: 1, 2: 2}.get(x), v2))
program = v3"""
VOTE = """v1 = rasp.Select(rasp.tokens, rasp.tokens, rasp.Comparison.TRUE)
program = rasp.Aggregate(v1, rasp.tokens)"""
COUNT = """v1 = rasp.Select(rasp.tokens, rasp.tokens, rasp.Comparison.EQ)
program = rasp.SelectorWidth(v1)"""
LARGE_NUMBER = "program = rasp.numerical(rasp.Map(lambda x: {0: 16777217, 1: 2, 2: 3, 3: 4, 4: 5}.get(x), rasp.tokens))"
SIGN = "program = rasp.Map(lambda x: {test}, rasp.tokens)"


@dataclass(frozen=True)
class Domain:
    """Over which inputs: all tokens of `vocab`, up to `length` of them."""

    name: str
    vocab: tuple[Value, ...]
    length: int

    def compile(self, program: Program | str) -> TracrWeights:
        return compile_program(parse(program) if isinstance(program, str) else program, self.vocab, self.length)


SMALL, LARGE = Domain("small", (0, 1, 2), 4), Domain("large", (0, 1, 2, 3, 4), 11)
DOMAINS = (SMALL, LARGE)


@dataclass(frozen=True)
class Attack:
    """A pair that is made to differ.

    Attributes:
      program: what is claimed, or a model where two models are compared.
      model: what is claimed of.
      triggers: inputs on which they differ, as far as the maker knows.
      is_rasp: whether the program is held to what RASP makes of it, not to its compiled form.
    """

    kind: str
    basis: str
    domain: Domain
    program: Program | TracrWeights
    model: TracrWeights
    triggers: tuple[tuple[Value, ...], ...]
    is_rasp: bool = False


class Surgery:
    """A model's tensors, to be changed; directions of the residual stream by their label or number."""

    def __init__(self, weights: TracrWeights) -> None:
        self.weights = weights
        self.tensors = {name: tensor.copy() for name, tensor in weights.tensors.items()}
        self.unembedding = weights.unembedding.copy()
        self.labels = list(weights.residual_labels)
        self.num_heads = weights.num_heads

    @property
    def last(self) -> int:
        return self.weights.num_layers - 1

    def at(self, label: str | int) -> int:
        return label if isinstance(label, int) else self.labels.index(label)

    def part(self, layer: int, name: str) -> np.ndarray:
        return self.tensors[f"transformer/layer_{layer}/{name}"]

    def _pad(self, ends: tuple[str, ...], axis: int) -> None:
        for name, tensor in self.tensors.items():
            if name.endswith(ends):
                self.tensors[name] = np.pad(tensor, [(0, int(n == axis % tensor.ndim)) for n in range(tensor.ndim)])

    def direction(self) -> int:
        """A new direction of the residual stream that nothing writes or reads."""
        self._pad(("query/w", "key/w", "value/w", "linear_1/w"), 0)
        self._pad(("embeddings", "linear/w", "linear/b", "linear_2/w", "linear_2/b"), -1)
        self.unembedding = np.pad(self.unembedding, [(0, 1), (0, 0)])
        return self.unembedding.shape[0] - 1

    def unit(self, layer: int, reads: dict, bias: float, writes: dict) -> None:
        """A new hidden unit."""
        self._pad(("linear_1/w", "linear_1/b"), -1)
        self._pad(("linear_2/w",), 0)
        for label, weight in reads.items():
            self.part(layer, "mlp/linear_1/w")[self.at(label), -1] = weight
        self.part(layer, "mlp/linear_1/b")[-1] = bias
        for label, weight in writes.items():
            self.part(layer, "mlp/linear_2/w")[-1, self.at(label)] = weight

    def head(self, layer: int, value: dict, writes: dict) -> None:
        """A new head that attends to all alike and moves one number."""
        size = self.weights.key_size
        for _ in range(size):
            self._pad(("query/w", "query/b", "key/w", "key/b", "value/w", "value/b"), -1)
            self._pad(("attn/linear/w",), 0)
        for label, weight in value.items():
            self.part(layer, "attn/value/w")[self.at(label), -1] = weight
        for label, weight in writes.items():
            self.part(layer, "attn/linear/w")[-1, self.at(label)] = weight
        self.num_heads += 1

    def done(self) -> TracrWeights:
        return replace(
            self.weights,
            tensors=self.tensors,
            unembedding=self.unembedding,
            num_heads=self.num_heads,
            residual_labels=(),
        )


Pair = tuple[Program | TracrWeights, TracrWeights]
Maker = Callable[[Domain], Pair]
KINDS: dict[str, Maker] = {}


def _kind(make: Maker) -> Maker:
    KINDS[make.__name__.strip("_").replace("_", " ")] = make
    return make


def _chain(domain: Domain) -> tuple[Program, Surgery]:
    program = parse(CHAIN.format(last="x + y"))
    return program, Surgery(domain.compile(program))


def _rare(domain: Domain, weight: float) -> tuple[dict, float]:
    """What a unit reads to be on, by half of `weight`, at the last position alone, if it and the one before hold 2."""
    where = (f"indices:{domain.length - 1}", "tokens:2", "v2_:2")
    return dict.fromkeys(where, weight), -2.5 * weight


@_kind
def reads_much_writes_little(domain: Domain) -> Pair:
    program, model = _chain(domain)
    model.unit(model.last, *_rare(domain, 2e8), {"v5_:0": 1e-7})
    return program, model.done()


@_kind
def reads_much_writes_little_through_another_unit(domain: Domain) -> Pair:
    program, model = _chain(domain)
    between = model.direction()
    model.unit(0, *_rare(domain, 1e4), {between: 1e-8})
    model.unit(model.last, {between: MOST}, 0.0, {"v5_:0": 2e-4})
    return program, model.done()


@_kind
def many_units_of_dust(domain: Domain) -> Pair:
    program, model = _chain(domain)
    for _ in range(400):
        model.unit(model.last, *_rare(domain, 4e5), {"v5_:0": 9e-8})
    return program, model.done()


@_kind
def head_of_dust(domain: Domain) -> Pair:
    program, model = _chain(domain)
    model.head(model.last, {"tokens:2": MOST}, {"v5_:0": 9e-8})
    return program, model.done()


@_kind
def logits_of_dust(domain: Domain) -> Pair:
    program, model = _chain(domain)
    unused = model.weights.key_size - 1
    model.part(0, "attn/query/w")[model.at("tokens:2"), unused] = MOST
    model.part(0, "attn/key/w")[model.at("tokens:1"), unused] = 9e-7
    return program, model.done()


@_kind
def dust_at_one_position(domain: Domain) -> Pair:
    program, model = _chain(domain)
    between = model.direction()
    model.tensors["pos_embed/embeddings"][-1, between] = 1e-7
    model.unit(model.last, {between: MOST}, 0.0, {"v5_:0": 0.1})
    return program, model.done()


@_kind
def dust_in_a_bias(domain: Domain) -> Pair:
    program, model = _chain(domain)
    between = model.direction()
    model.part(0, "attn/linear/b")[between] = 1e-8
    model.unit(1, {between: MOST}, 0.0, {"v5_:0": 1.0})
    return program, model.done()


def _all_alike(model: Surgery, length: int, size: float) -> tuple[int, float]:
    """A direction that holds `size` times the share of 2 among all tokens and BOS; and what that exceeds on one input
    alone, the longest of nothing but 2."""
    direction = model.direction()
    model.head(0, {"tokens:2": 1.0}, {direction: size})
    return direction, size * ((length - 1) / length + length / (length + 1)) / 2


@_kind
def fires_on_one_input_alone(domain: Domain) -> Pair:
    program, model = _chain(domain)
    share, least = _all_alike(model, domain.length, 1.0)
    model.unit(model.last, {share: 1e3}, -1e3 * least, {"v5_:0": 10.0})
    return program, model.done()


@_kind
def dust_that_fires_on_one_input_alone(domain: Domain) -> Pair:
    program, model = _chain(domain)
    share, least = _all_alike(model, domain.length, 9e-8)
    model.unit(model.last, {share: MOST}, -MOST * least, {"v5_:0": 20.0})
    return program, model.done()


@_kind
def little_is_written_on_one_input_alone(domain: Domain) -> Pair:
    program, model = _chain(domain)
    share, least = _all_alike(model, domain.length, 1.0)
    between = model.direction()
    model.unit(0, {share: 1e6}, -1e6 * least, {between: 9e-8})
    model.unit(model.last, {between: MOST}, 0.0, {"v5_:0": 1.0})
    return program, model.done()


@_kind
def little_before_a_factor_on_one_input_alone(domain: Domain) -> Pair:
    model = Surgery(domain.compile(FACTOR))
    share, least = _all_alike(model, domain.length, 1.0)
    model.unit(0, {share: 1e6}, -1e6 * least, {"v1_": 9e-8})
    return parse(FACTOR), model.done()


@_kind
def large_numbers_that_cancel_on_one_input_alone(domain: Domain) -> Pair:
    program, model = _chain(domain)
    share, least = _all_alike(model, domain.length, 1.0)
    written = [label for label in model.labels if label.startswith("v5_")]
    for layer, sign in ((1, 1), (model.last, -1)):
        model.unit(layer, {share: 1e3}, -1e3 * least, dict.fromkeys(written, sign * HUGE))
    return program, model.done()


@_kind
def overflow_on_one_input_alone(domain: Domain) -> Pair:
    program, model = _chain(domain)
    share, least = _all_alike(model, domain.length, 1.0)
    first, second = model.direction(), model.direction()
    model.unit(0, {share: MOST}, -MOST * least, {first: MOST})
    model.unit(1, {first: MOST}, 0.0, {second: MOST})
    model.unit(model.last, {second: MOST}, 0.0, {})
    return program, model.done()


@_kind
def overflow_of_logits_that_move_nothing(domain: Domain) -> Pair:
    program, model = _chain(domain)
    first, second = model.direction(), model.direction()
    model.unit(0, {}, MOST, {first: MOST})
    model.unit(1, {first: MOST}, 0.0, {second: 1.0})
    model.head(model.last, {}, {})
    for name in ("query", "key"):
        model.part(model.last, f"attn/{name}/w")[second, -1] = 1.0
    return program, model.done()


@_kind
def coefficient_before_a_factor(domain: Domain) -> Pair:
    model = Surgery(domain.compile(FACTOR))
    model.part(0, "mlp/linear_1/w")[model.at("tokens:2")] *= np.float32(1.00008)
    return parse(FACTOR), model.done()


@_kind
def coefficient_beside_a_long_reader(domain: Domain) -> Pair:
    model = Surgery(domain.compile(FACTOR))
    unread = model.direction()
    model.part(0, "mlp/linear_1/w")[model.at("tokens:2")] *= np.float32(1.00008)
    model.part(0, "mlp/linear_1/w")[unread] = 300.0
    return parse(FACTOR), model.done()


@_kind
def slope_of_one_unit(domain: Domain) -> Pair:
    model = Surgery(domain.compile(STEPS))
    reads = model.part(1, "mlp/linear_1/w")[model.at("v1_")]
    reads[np.flatnonzero(reads)[-2]] *= np.float32(1.00008)
    return parse(STEPS), model.done()


@_kind
def step_off_by_little_beside_a_long_reader(domain: Domain) -> Pair:
    model = Surgery(domain.compile(STEPS))
    unread = model.direction()
    reads = model.part(1, "mlp/linear_1/w")
    slopes = np.flatnonzero(reads[model.at("v1_")])
    reads[model.at("v1_"), slopes[-1]] *= np.float32(0.9999)
    reads[unread] = 1000.0
    return parse(STEPS), model.done()


@_kind
def large_numbers_that_cancel_at_the_output(domain: Domain) -> Pair:
    program, model = _chain(domain)
    written = [n for n, label in enumerate(model.labels) if label.startswith("v5_")]
    model.part(model.last, "attn/linear/b")[written] += HUGE
    model.part(model.last, "mlp/linear_2/b")[written] -= HUGE
    return program, model.done()


@_kind
def large_numbers_that_cancel_within(domain: Domain) -> Pair:
    program, model = _chain(domain)
    written = [n for n, label in enumerate(model.labels) if label.startswith("v3_")]
    model.part(1, "attn/linear/b")[written] += HUGE
    model.part(1, "mlp/linear_1/b")[...] -= HUGE * model.part(1, "mlp/linear_1/w")[written].sum(0)
    model.part(1, "mlp/linear_2/b")[written] -= HUGE
    return program, model.done()


def _overflow(domain: Domain, last: float) -> Pair:
    program, model = _chain(domain)
    first, second, third = (model.direction() for _ in range(3))
    model.unit(0, {}, MOST, {first: MOST})
    model.unit(1, {first: MOST}, 0.0, {second: MOST})
    model.unit(2, {second: MOST}, 0.0, {third: last})
    return program, model.done()


@_kind
def overflow_in_a_dead_part(domain: Domain) -> Pair:
    return _overflow(domain, 1.0)


@_kind
def overflow_that_writes_nothing(domain: Domain) -> Pair:
    return _overflow(domain, 0.0)


@_kind
def fires_in_double_precision_alone(domain: Domain) -> Pair:
    program, model = _chain(domain)
    model.unit(model.last, {"one": HUGE, "tokens:2": 1.0}, -HUGE, {"v5_:0": 10.0})
    return program, model.done()


@_kind
def fires_in_single_precision_alone(domain: Domain) -> Pair:
    """What is left of 2^25 less 1, less 2^25, plus 1 hangs on the order; in double precision it is nothing."""
    program, model = _chain(domain)
    model.unit(model.last, {"one": HUGE, "tokens:2": -1.0}, -HUGE + 1, {"v5_:0": 10.0})
    return program, model.done()


def _other(domain: Domain) -> tuple[Program, Surgery]:
    """Another program than the model's."""
    program, model = (parse(CHAIN.format(last=last)) for last in ("max(x, y)", "min(x, y)"))
    return program, Surgery(domain.compile(model))


@_kind
def wrong_program_and_a_small_unembedding(domain: Domain) -> Pair:
    program, model = _other(domain)
    model.unembedding *= np.float32(0.25)
    return program, model.done()


@_kind
def wrong_program_and_a_centred_unembedding(domain: Domain) -> Pair:
    program, model = parse(SIGN.format(test="x == 2")), Surgery(domain.compile(SIGN.format(test="x == 1")))
    model.unembedding -= model.unembedding.mean(1, keepdims=True)
    return program, model.done()


@_kind
def wrong_program_and_a_huge_unembedding(domain: Domain) -> Pair:
    program, model = _other(domain)
    model.unembedding *= np.float32(MOST)
    return program, model.done()


@_kind
def none_that_is_shown(domain: Domain) -> Pair:
    program, model = _chain(domain)
    model.part(model.last, "mlp/linear_2/b")[model.at("v5_:0")] = 0.6
    return program, model.done()


@_kind
def ties_decoded_otherwise(domain: Domain) -> Pair:
    model = domain.compile(VOTE)
    assert model.output_values is not None
    other = replace(model, output_values=model.output_values[::-1], unembedding=model.unembedding[:, ::-1].copy())
    return model, other


@_kind
def columns_exchanged(domain: Domain) -> Pair:
    program, model = _chain(domain)
    model.unembedding[:, :2] = model.unembedding[:, 1::-1].copy()
    return program, model.done()


@_kind
def output_values_exchanged(domain: Domain) -> Pair:
    program, model = _chain(domain)
    values = model.weights.output_values
    assert values is not None
    return program, replace(model.done(), output_values=(values[1], values[0], *values[2:]))


@_kind
def bias_of_a_value_without_weights(domain: Domain) -> Pair:
    first, model = domain.compile(FRACTION), Surgery(domain.compile(FRACTION))
    unused = model.weights.key_size - 1
    model.part(model.last, "attn/value/b")[unused] = 1.0
    model.part(model.last, "attn/linear/w")[unused, model.at("v3_")] = 0.5
    return first, model.done()


@_kind
def biases_of_a_comparison_without_weights(domain: Domain) -> Pair:
    first, model = domain.compile(FRACTION), Surgery(domain.compile(FRACTION))
    unused = model.weights.key_size - 1
    model.part(model.last, "attn/query/b")[unused] = 1e4
    model.part(model.last, "attn/key/w")[model.at("tokens:2"), unused] = 1e-2
    return first, model.done()


@_kind
def larger_heads(domain: Domain) -> Pair:
    model = Surgery(domain.compile(FRACTION))
    for _ in range(63 * model.weights.key_size):
        model._pad(("query/w", "query/b", "key/w", "key/b", "value/w", "value/b"), -1)
        model._pad(("attn/linear/w",), 0)
    return parse(FRACTION), model.done()


@_kind
def warm_attention(domain: Domain) -> Pair:
    model = Surgery(domain.compile(FRACTION))
    model.part(model.last, "attn/query/w")[...] *= np.float32(0.2)
    return parse(FRACTION), model.done()


@_kind
def causal_mask(domain: Domain) -> Pair:
    program = parse(COUNT)
    return domain.compile(program), replace(domain.compile(program), causal=True)


@_kind
def number_that_single_precision_cannot_hold(domain: Domain) -> Pair:
    return parse(LARGE_NUMBER), domain.compile(LARGE_NUMBER)


@_kind
def bos_that_holds_a_token(domain: Domain) -> Pair:
    program, model = _chain(domain)
    bos = model.weights.vocab.index(model.weights.bos)
    model.tensors["token_embed/embeddings"][bos, model.at("tokens:1")] = 1.0
    return program, model.done()


@_kind
def last_position_shows_a_value(domain: Domain) -> Pair:
    program, model = _chain(domain)
    model.tensors["pos_embed/embeddings"][-1, model.at("v5_:0")] = 2.0
    return program, model.done()


@_kind
def noise_before_a_factor(domain: Domain) -> Pair:
    model = Surgery(domain.compile(FACTOR))
    rng = np.random.default_rng(0)
    for name, tensor in model.tensors.items():
        model.tensors[name] = (tensor * (1 + 1e-6 * rng.standard_normal(tensor.shape))).astype(np.float32)
    return parse(FACTOR), model.done()


@_kind
def pad_changed(domain: Domain) -> Pair:
    """No input holds pad: a control, which does not differ."""
    program, model = _chain(domain)
    model.tensors["token_embed/embeddings"][model.weights.vocab.index(model.weights.pad)] = 7.0
    return program, model.done()


def attacks() -> Iterator[Attack]:
    """All kinds, over each domain, in each basis."""
    for (kind, make), domain in itertools.product(KINDS.items(), DOMAINS):
        program, model = make(domain)
        last = (2,) * domain.length
        triggers = (last, last[:1], last[:2], (*last[:-1], 1), (0, *last[1:]), (1, 2), (0, 1), (2, 1, 0))
        for basis, changed in (("tracr", model), ("rotated", rotate(model, 0))):
            yield Attack(kind, basis, domain, program, changed, triggers, "single precision cannot hold" in kind)


def mutated(weights: TracrWeights, rng: np.random.Generator) -> TracrWeights:
    """One to three entries of any tensors set to something else: a little or a lot more or less, or another's value."""
    tensors = {name: tensor.copy() for name, tensor in weights.tensors.items()}
    for _ in range(int(rng.integers(1, 4))):
        tensor = tensors[sorted(tensors)[int(rng.integers(len(tensors)))]]
        if tensor.size:
            place = int(rng.integers(tensor.size))
            old = float(tensor.flat[place])
            little, lot = 10.0 ** rng.uniform(-9, -3), 10.0 ** rng.uniform(-3, 8)
            choices = (old + little, old * (1 + little), old + lot, -old, 0.0, 1.0, old * lot)
            tensor.flat[place] = np.clip(choices[int(rng.integers(len(choices)))], -MOST, MOST)
    return replace(weights, tensors=tensors)
