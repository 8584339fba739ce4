"""Trained transformers to programs: small models of the tests' own, each an oracle's word beside ours."""

import functools
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from trade_hf.cli import main
from trade_hf.compiled.weights import WeightsError
from trade_hf.trained.causality import mechanism
from trade_hf.trained.decompilation import compare, decompile_trained
from trade_hf.trained.domain import Domain
from trade_hf.trained.text import parse
from trade_hf.trained.transformer import Transformer

MODELS = Path(__file__).parent / "trained"
NAMES = sorted(path.name for path in MODELS.iterdir())
SECONDS = 100  # a search that ends is not told by wall time: it ends with a short program


@functools.cache
def result_of(name):
    """Each model is decompiled once."""
    return decompile_trained(MODELS / name, seconds=SECONDS)


@pytest.mark.parametrize("name", NAMES)
def test_a_small_program_is_equal_on_every_input(name):
    result = result_of(name)
    assert result.is_proven, result.certificate
    assert result.comparison.agreeing == result.comparison.inputs == len(Domain.load(MODELS / name / "domain.json"))
    assert len(result.program) <= 15 and result.program.table_cells < 0.05 * result.comparison.answers


@pytest.mark.parametrize("name", NAMES)
def test_transformer_lens_and_tracr_agree(name):
    from transformer_lens import HookedTransformer, HookedTransformerConfig

    config = json.loads((MODELS / name / "config.json").read_text())
    model = Transformer.load(MODELS / name)
    hooked = HookedTransformer(HookedTransformerConfig(**config, device="cpu", init_weights=False))
    hooked.load_state_dict({**hooked.state_dict(), **model.parameters})
    domain, names = Domain.load(MODELS / name / "domain.json"), {}
    exec(result_of(name).code, names)  # what tracr's own evaluator makes of the program
    for row in np.random.RandomState(0).permutation(len(domain))[:60]:
        tokens = domain.input(row)
        with torch.no_grad():
            logits = hooked(torch.tensor([tokens]))[0].numpy()
        said = names["program"](tokens)
        for position in np.flatnonzero(domain.is_answer[row]):
            if domain.reads == "positive":
                assert said[position] == set(np.flatnonzero(logits[position] > 0).tolist())
            else:
                assert said[position] == logits[position].argmax()


@pytest.mark.parametrize("name", NAMES)
def test_text_comes_back(name):
    assert parse(result_of(name).code).code == result_of(name).code


def test_a_wrong_program_is_refuted_with_inputs():
    program = parse("v1 = rasp.Map(lambda x: 0, rasp.tokens)\nprogram = v1")
    domain = Domain.load(MODELS / "reverse" / "domain.json")
    found = compare(program, Transformer.load(MODELS / "reverse"), domain)
    assert found.status.value == "refuted" and 0 < found.agreeing < found.inputs
    assert found.first[0].input == [5, 1] and (found.first[0].program, found.first[0].model) == ([0], [1])


def test_a_sampled_domain_is_never_proven_and_judged_on_inputs_that_the_search_did_not_see():
    domain = Domain.load(MODELS / "more_ones" / "domain.json")
    part = Domain(domain.tokens[:400], domain.is_answer[:400], "argmax", 3, 10**6)
    result = decompile_trained(MODELS / "more_ones", part, with_mechanism=False)
    assert result.status.value == "agrees" and not result.is_proven and result.comparison.inputs == 200
    assert result.comparison.bound == pytest.approx(np.log(60) / 200)
    assert "at most 2 % differ" in result.certificate


def test_a_domain_too_large_to_run_is_sampled_again_until_a_program_passes(monkeypatch):
    monkeypatch.setattr("trade_hf.trained.domain.MOST_INPUTS", 60)
    told = json.loads((MODELS / "more_ones" / "domain.json").read_text())
    judged = []

    def fresh(self, seed, own=Domain.fresh):
        judged.append(seed)
        return own(self, seed)

    monkeypatch.setattr(Domain, "fresh", fresh)
    result = decompile_trained(MODELS / "more_ones", told, with_mechanism=False)
    assert result.status.value == "agrees" and judged == list(range(1, len(judged) + 1)) and len(judged) <= 3
    assert 0.02 < result.comparison.bound < 0.5 and f"of {result.comparison.of:,}" in result.certificate
    whole = Domain.from_dict(told)
    assert whole.told is not None and len(whole.joined(whole)) == len(whole) < len(whole.joined(whole.fresh(7)))


def test_a_sample_by_lengths_is_worth_what_its_worst_length_is():
    enumerated = {"prefix": [9], "vocab": [0, 1], "lengths": [1, 4]}
    domain = Domain.from_dict({"enumerate": enumerated, "answer": {"positions": [-1], "columns": 2}})
    assert domain.is_exhaustive and domain.told is None
    few = replace(domain.rows(np.arange(18)), size=30, told={"enumerate": enumerated})  # 4 of 16 of length 4
    assert few.worth == pytest.approx(4 * 30 / 16)


def test_a_program_that_is_no_smaller_than_the_table_counts_as_none():
    folder = MODELS / "lang_a_even_then_b"
    domain = Domain.load(folder / "domain.json")
    result = decompile_trained(folder, domain.rows(np.arange(8)), seconds=5, with_mechanism=False)
    assert result.is_small == (result.program.table_cells == 0)


# ---------------------------------------------------------------- mechanisms

HIST = """
v1 = rasp.Select(rasp.tokens, rasp.tokens, lambda k, q: k == q)
v2 = rasp.SelectorWidth(v1)
program = v2
"""
COUNT_LESS = HIST.replace("k == q", "k < q")


def tracr_model(code, vocab=(0, 1, 2, 3), longest=4):
    """A compiled model as a trained one is given: BOS in front, and what its columns stand for."""
    from trade_hf import compile_program
    from trade_hf import parse as parse_rasp

    weights = compile_program(parse_rasp(code), vocab, longest)
    ids = [weights.vocab.index(token) for token in vocab]
    domain = Domain.from_dict(
        {
            "enumerate": {"prefix": [weights.vocab.index(weights.bos)], "vocab": ids, "lengths": [1, longest]},
            "answer": {"positions": {"from": 1}, "columns": len(weights.output_values)},
        }
    )
    return Transformer.of(weights), domain, weights.output_values


def test_the_true_line_of_a_compiled_model_is_used_and_another_is_not():
    model, domain, values = tracr_model(HIST)
    shift = f"v3 = rasp.Map(lambda x: x - {values[0]}, v2)\nprogram = v3"
    true = parse(HIST.replace("program = v2\n", shift))
    assert compare(true, model, domain).agreeing == len(domain)
    line = mechanism(true, model, domain)[1]
    assert line.interchange == 1.0 and line.interval[0] > 0.97 and line.held > 0.9
    other = parse(COUNT_LESS.replace("program = v2\n", shift))
    assert mechanism(other, model, domain)[1].interchange < 0.7


def test_how_much_more_often_a_token_occurs_is_read_as_the_model_holds_it():
    result = result_of("more_ones")
    assert len(result.program) == 4 and "the model uses all 3 lines" in str(result)


def test_selectors_have_the_head_that_follows_them():
    heads = [line.where for line in result_of("more_ones").mechanism if line.where.startswith("head")]
    assert heads and set(heads) == {"head 0.0"}


# ---------------------------------------------------------------- the command line


def test_the_command_line_says_what_others_rely_on(capsys):
    assert main(["decompile", str(MODELS / "more_ones"), "--json", "--quiet"]) == 0
    row = json.loads(capsys.readouterr().out)
    assert row["proven"] is True and row["status"] == "equivalent" and row["inputs"] == row["agreeing"] == 9840
    wanted = "code status proven certificate score seconds source inputs agreeing answers lines table_cells mechanism"
    assert set(wanted.split()) <= set(row)
    assert {"line", "where", "held", "interchange", "interval"} <= set(row["mechanism"][0])
    assert row["lines"] == len(parse(row["code"])) == len(row["mechanism"])


def test_bad_folders_are_one_line(tmp_path, capsys):
    assert main(["decompile", str(tmp_path)]) == 2
    assert capsys.readouterr().err.strip().endswith("got a folder without model.safetensors")


def test_python_takes_a_model_and_a_domain():
    from trade_hf import decompile

    model = Transformer.load(MODELS / "more_ones")
    result = decompile(model, domain=MODELS / "more_ones" / "domain.json")
    assert result.is_proven and "equal on all 9,840 inputs" in str(result)


def test_python_takes_a_hooked_transformer():
    from transformer_lens import HookedTransformer, HookedTransformerConfig

    from trade_hf import decompile

    config = json.loads((MODELS / "more_ones" / "config.json").read_text())
    hooked = HookedTransformer(HookedTransformerConfig(**config, device="cpu", init_weights=False))
    hooked.load_state_dict({**hooked.state_dict(), **Transformer.load(MODELS / "more_ones").parameters})
    domain = json.loads((MODELS / "more_ones" / "domain.json").read_text())
    result = decompile(hooked, domain=domain)
    assert result.is_proven and result.code == result_of("more_ones").code
    with pytest.raises(WeightsError, match="domain: expected the inputs and answers of the model, got none"):
        decompile_trained(hooked)


def test_python_takes_gpt2_of_transformers():
    from transformers import GPT2Config, GPT2LMHeadModel

    from trade_hf import decompile

    torch.manual_seed(0)
    gpt2 = GPT2LMHeadModel(GPT2Config(vocab_size=6, n_positions=4, n_embd=12, n_layer=1, n_head=2)).eval()
    domain = {"enumerate": {"vocab": [0, 1, 2, 3, 4], "lengths": [1, 2]}, "answer": {"positions": [0], "columns": 6}}
    result = decompile(gpt2, domain=domain)
    with torch.no_grad():
        said = gpt2(torch.arange(5)[:, None]).logits[:, 0].argmax(-1).tolist()
    assert result.comparison.agreeing == result.comparison.inputs == 30
    assert result.program.evaluate(np.arange(5)[:, None])[:, 0].tolist() == said
