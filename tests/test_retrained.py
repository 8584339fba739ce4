"""Tracr models trained further, and a program trained into a transformer, each held against what it should do."""

import numpy as np
import pytest
import torch

from dataset_builder.retrained import compress, domain_of, implant, projected, retrain, sites, swap
from trade_hf import compile_program
from trade_hf import parse as parse_rasp
from trade_hf.compiled.transforms import change_coordinates
from trade_hf.trained.config import Config
from trade_hf.trained.domain import Domain
from trade_hf.trained.text import parse
from trade_hf.trained.transformer import Transformer

HIST = """
v1 = rasp.Select(rasp.tokens, rasp.tokens, rasp.Comparison.EQ)
v2 = rasp.SelectorWidth(v1)
program = v2
"""
SUM = """
v1 = rasp.Select(rasp.indices, rasp.indices, lambda k, q: k == q - 1)
v2 = rasp.Aggregate(v1, rasp.tokens)
v3 = rasp.SequenceMap(lambda x, y: (x + y) % 3, rasp.tokens, v2)
program = v3
"""
SMALL = {"n_layers": 2, "n_heads": 1, "d_model": 16, "d_head": 16, "d_mlp": 32, "act_fn": "relu"}


@pytest.fixture(scope="module")
def histogram():
    weights = compile_program(parse_rasp(HIST), (0, 1, 2), 3)
    return weights, Transformer.of(weights), domain_of(weights)


def test_a_square_projection_loses_nothing_and_its_weights_are_those_of_the_compiled_model(histogram):
    weights, source, domain = histogram
    made = compress(source, domain, weights.d_model, steps=2)
    assert made.right == len(domain) == 39
    close = Transformer.of(change_coordinates(weights, made.projection, made.projection.T)).parameters
    for name, part in made.model.parameters.items():
        assert torch.allclose(part, close[name], atol=1e-3 * float(1 + part.abs().max())), name


def test_a_learned_projection_to_fewer_dimensions_is_better_than_the_first_one(histogram):
    weights, source, domain = histogram
    size = weights.d_model - 4
    before, after = (compress(source, domain, size, steps=steps, seed=1) for steps in (0, 150))
    assert after.model.config.d_model == size and after.projection.shape == (weights.d_model, size)
    assert after.right > before.right
    with pytest.raises(ValueError, match=f"at most {weights.d_model} dimensions"):
        compress(source, domain, weights.d_model + 1)


def test_projected_parameters_have_the_new_width(histogram):
    _, source, _ = histogram
    parts = projected(source.parameters, torch.eye(source.config.d_model)[:, :5])
    config = Config(**{**vars(source.config), "d_model": 5})
    assert {name: tuple(part.shape) for name, part in parts.items()} == config.shapes()


def test_noise_is_mended_by_training(histogram):
    _, source, domain = histogram
    noisy, trained = (retrain(source, domain, 0.6, steps=steps, seed=3) for steps in (0, 60))
    assert noisy.right < trained.right
    assert retrain(source, domain, 0.0, steps=0).right == len(domain)


def test_a_program_is_trained_into_a_transformer_line_by_line():
    answer = {"positions": {"from": 1}, "columns": 3}
    domain = Domain.from_dict({"enumerate": {"prefix": [3], "vocab": [0, 1, 2], "lengths": [1, 3]}, "answer": answer})
    config = Config(**SMALL, n_ctx=4, d_vocab=4, d_vocab_out=3, attention_dir="bidirectional")
    program = parse(SUM)
    (site,) = sites(program, config)
    assert (site.line, site.hook, site.end - site.start) == (1, "blocks.0.hook_resid_mid", 8)
    made = implant(program, config, domain, steps=200)
    assert made.right == len(domain)
    rows = np.flatnonzero(domain.lengths == 4)
    partner, cache = rows[np.random.RandomState(5).permutation(len(rows))], {}
    with torch.no_grad():
        made.model.run(domain.tokens[partner], cache=cache)
        patch = swap(cache[site.hook], slice(site.start, site.end))
        found = made.model.run(domain.tokens[rows], patches={site.hook: patch}).argmax(-1).numpy()
    theirs = program.evaluate_all(domain.tokens)[1][partner]
    wanted = program.evaluate_with(domain.tokens[rows], 1, theirs)
    changes = domain.is_answer[rows] & (wanted != program.evaluate(domain.tokens[rows]))
    assert changes.sum() > 20 and (found == wanted)[changes].mean() >= 0.9
    with pytest.raises(ValueError, match="more layers or directions"):
        sites(program, Config(**{**vars(config), "d_model": 3}))


def test_a_numerical_output_has_no_columns():
    code = "v1 = rasp.numerical(rasp.Map(lambda x: x == 1, rasp.tokens))\nprogram = v1"
    with pytest.raises(ValueError, match="expected a categorical output"):
        domain_of(compile_program(parse_rasp(code), (0, 1), 3))
