"""Interchange interventions: true lines of compiled models are used, exchanged lines are not; words, and the choice."""

import numpy as np
import pytest
import torch

from trade_hf import compile_program
from trade_hf import parse as parse_rasp
from trade_hf.trained.causality import Mechanism, choose, mechanism, verdict
from trade_hf.trained.domain import Domain
from trade_hf.trained.evidence import Evidence
from trade_hf.trained.interchange import partners, places
from trade_hf.trained.subspaces import fitted, learned, oblique
from trade_hf.trained.text import parse
from trade_hf.trained.transformer import Transformer

VOCAB = (0, 1, 2, 3)
# A program that Tracr compiles, and the same with one line exchanged; `{offset}` turns values into columns.
CASES = {
    "histogram": (
        ["rasp.Select(rasp.tokens, rasp.tokens, {EQ})", "rasp.SelectorWidth(v1)"],
        {1: "rasp.Select(rasp.tokens, rasp.tokens, {LT})"},
    ),
    "shift": (
        ["rasp.Select(rasp.indices, rasp.indices, lambda k, q: k == q - 1)", "rasp.Aggregate(v1, rasp.tokens)"],
        {1: "rasp.Select(rasp.indices, rasp.indices, lambda k, q: k == q - 2)"},
    ),
    "reverse": (
        [
            "rasp.Select(rasp.indices, rasp.indices, {GT})",
            "rasp.SelectorWidth(v1)",
            "rasp.Select(v2, rasp.indices, {EQ})",
            "rasp.Aggregate(v3, rasp.tokens)",
        ],
        {1: "rasp.Select(rasp.indices, rasp.indices, {LT})"},
    ),
}
SIGNS = {"EQ": "k == q", "LT": "k < q", "GT": "k > q"}


def program_text(lines, shift=""):
    body = [f"v{number} = {line}" for number, line in enumerate(lines, 1)]
    last = len(lines)
    if shift:
        body.append(f"v{last + 1} = rasp.Map(lambda x: {shift}, v{last})")
        last += 1
    return "\n".join([*body, f"program = v{last}"])


def compiled(lines, longest=4):
    """The model that Tracr makes of lines, as a trained one is given: BOS in front, and what its columns stand for."""
    comparisons = {sign: f"rasp.Comparison.{sign}" for sign in SIGNS}
    text = program_text([_filled(line, comparisons) for line in lines])
    weights = compile_program(parse_rasp(text), VOCAB, longest)
    ids = [weights.vocab.index(token) for token in VOCAB]
    domain = Domain.from_dict(
        {
            "enumerate": {"prefix": [weights.vocab.index(weights.bos)], "vocab": ids, "lengths": [1, longest]},
            "answer": {"positions": {"from": 1}, "columns": len(weights.output_values)},
        }
    )
    return Transformer.of(weights), domain, weights


def _filled(line, words):
    for name, word in words.items():
        line = line.replace(f"{{{name}}}", word)
    return line


def spoken(lines, weights):
    """The same lines over the model's own token ids, with BOS at position 0, and columns in place of values."""
    offset = {value: column for column, value in enumerate(weights.output_values) if value is not None}
    filled = [_filled(line, {sign: f"lambda k, q: {text}" for sign, text in SIGNS.items()}) for line in lines]
    table = ", ".join(f"{value}: {column}" for value, column in offset.items())
    return filled, f"{{{table}}}.get(x, 0)"


@pytest.mark.parametrize("name", ["histogram"])
def test_true_lines_are_used_and_exchanged_lines_are_not(name):
    lines, exchanged = CASES[name]
    model, domain, weights = compiled(lines)
    true, columns = spoken(lines, weights)
    found = [line for line in mechanism(parse(program_text(true, columns)), model, domain) if line.cases]
    assert found and all(line.interchange == 1.0 and line.interval[0] > 0.97 and line.kept == 1.0 for line in found)
    for number, line in exchanged.items():
        other, _ = spoken([line if n == number else own for n, own in enumerate(lines, 1)], weights)
        wrong = [m for m in mechanism(parse(program_text(other, columns)), model, domain) if m.cases]
        assert min(m.interchange for m in wrong) < 0.7
        assert "does not compute it this way" in verdict(wrong)


def test_of_two_programs_the_one_that_the_model_follows_is_chosen():
    model, domain, weights = compiled(CASES["histogram"][0])
    true, columns = spoken(CASES["histogram"][0], weights)
    # How many are not smaller, less how many are larger: the same values, by lines that the model does not have.
    detour = [
        "rasp.Select(rasp.tokens, rasp.tokens, lambda k, q: k >= q)",
        "rasp.SelectorWidth(v1)",
        "rasp.Select(rasp.tokens, rasp.tokens, lambda k, q: k > q)",
        "rasp.SelectorWidth(v3)",
        "rasp.SequenceMap(lambda x, y: x - y, v2, v4)",
    ]
    programs = [parse(program_text(detour, columns)), parse(program_text(true, columns))]
    assert (programs[0].evaluate(domain.tokens) == programs[1].evaluate(domain.tokens))[domain.is_answer].all()
    chosen, lines = choose(programs, model, domain)
    assert chosen == programs[1] and "the model uses all 2 lines" in verdict(lines)
    assert choose(programs[:1], model, domain)[0] == programs[0]


def test_words_say_what_is_not_used_or_not_known():
    line = Mechanism("v1", "blocks.0.hook_resid_mid", 0.9, 0.4, (0.3, 0.5), 100)
    assert verdict([line]) == (
        "the model behaves like this program and does not compute it this way: of 1 lines that could be tested, "
        "v1 has an interchange accuracy below 0.9"
    )
    assert "is not known" in verdict([Mechanism("v1", "head 0.0", 0.9)])


def test_an_oblique_projection_moves_a_value_and_leaves_what_overlaps_with_it():
    rng = np.random.RandomState(0)
    here, other = rng.randint(2, size=400), rng.randint(2, size=400)
    first, second = np.eye(6)[0], 0.8 * np.eye(6)[0] + 0.6 * np.eye(6)[1]  # not orthogonal
    stream = np.outer(here, first) + np.outer(other, second)
    kinds = list(fitted(stream, other.astype(float), here))
    moved = stream + (stream[::-1] - stream) @ kinds[-1]
    wanted = np.outer(here, first) + np.outer(other[::-1], second)
    assert np.abs(moved - wanted).max() < 0.02
    orthogonal = stream + (stream[::-1] - stream) @ kinds[0]
    assert np.abs(orthogonal - wanted).max() > 0.5
    assert list(fitted(np.outer(here, first), other.astype(float), here)) == []  # nothing here varies with it


def test_projections_are_learned():
    goal = torch.zeros(4, 4)
    goal[1, 1] = 1
    direction = np.array([0.8, 0.6, 0, 0])
    start = np.outer(direction, direction)
    found = learned([start], lambda parts: (parts[0] - goal).square().sum())[0]
    assert np.square(found - goal.numpy()).sum() < np.square(start - goal.numpy()).sum() / 10
    reads, writes = torch.eye(4)[:, :2], torch.eye(4)[:, 1:3] + torch.eye(4)[:, :2]
    projection = oblique(reads, writes)
    assert torch.allclose(projection @ projection, projection, atol=1e-4)


def test_partners_have_the_same_length_and_half():
    lengths, half = np.array([2] * 9 + [3] * 8), np.arange(17) % 2 == 0
    partner = partners(lengths, half, np.random.RandomState(0))
    assert (lengths[partner] == lengths).all() and (half[partner] == half).all()
    assert sorted(partner) == list(range(17)) and (partner != np.arange(17)).all()


def test_what_one_part_reads_is_patched_for_it_alone():
    model, domain, _ = compiled(CASES["histogram"][0])
    part = domain.rows(np.arange(20, 40))
    sites = places(Evidence(model, part), model)
    tokens = part.tokens[:, : part.lengths[0]]
    for place in ("blocks.0.hook_qk_input", "blocks.0.hook_v_input", "blocks.0.hook_mlp_in"):
        cache, plain = {}, {}
        patches = {hook: torch.zeros_like for _, hooks in sites[place] for hook in hooks}
        model.run(tokens, patches=patches, cache=cache)
        model.run(tokens, cache=plain)
        assert torch.equal(cache["blocks.0.hook_resid_pre"], plain["blocks.0.hook_resid_pre"])
        assert torch.equal(cache["blocks.0.attn.hook_pattern"], plain["blocks.0.attn.hook_pattern"]) is (
            "qk" not in place
        )
