"""The model: unmoved by the basis, generates within the grammar, learns, saves and loads."""

import itertools
import re
import time
from collections import Counter
from itertools import islice

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from dataset_builder.online import OnlineExamples, collate_examples, to_example, with_lines_before
from dataset_builder.sampler import SamplerConfig
from trade_hf.candidates import Source
from trade_hf.compiled.compiler import compile_program
from trade_hf.compiled.transforms import permute, rotate, skew
from trade_hf.configuration_trade import TraDeConfig
from trade_hf.decompiler import Likeness, decompile, load_model
from trade_hf.features import (
    COLUMNS,
    EDGE_CHANNELS,
    HIDDEN,
    OUTPUT,
    QUERY_KEY,
    TOKEN,
    VALUE_BUCKETS,
    VALUE_OUTPUT,
    collate,
    to_units,
)
from trade_hf.limits import EndedBy
from trade_hf.modeling_trade import TraDeForConditionalGeneration
from trade_hf.processing_trade import TraDeProcessor, pad_labels
from trade_hf.rasp.program import variable_name
from trade_hf.rasp.text import parse
from trade_hf.search import greedy_programs, processor, search, teacher_forced, written_programs
from trade_hf.tokenization_rasp import LINE_SIZE, VOCABULARY, to_ids, to_tokens
from trade_hf.verification import verify


def encode(model, units):
    batch = {name: torch.from_numpy(array) for name, array in collate([units]).items()}
    with torch.inference_mode():
        return model.get_encoder()(**batch).last_hidden_state[0].sum(0)


@pytest.mark.parametrize("change", [permute, rotate])
def test_the_encoder_is_unmoved_by_the_basis(tiny_checkpoint, samples, change):
    model = load_model(tiny_checkpoint)
    for seed, sample in enumerate(samples[:20]):
        weights = compile_program(sample.program, sample.vocab, sample.max_seq_len)
        units = to_units(weights)
        assert units.features.shape == (len(units.features), len(COLUMNS))
        assert units.edges.shape == (len(units.features),) * 2 + (EDGE_CHANNELS,)
        assert torch.allclose(encode(model, units), encode(model, to_units(change(weights, seed))), atol=0.05)


def test_unit_labels_name_every_line_and_its_function(samples):
    for sample in samples[:40]:
        example, ids = to_example(sample), to_ids(sample.program)
        labelled = {tuple(row[:2]) for row in example.unit_labels.tolist() if row[0] >= 0}
        lines = range(len(sample.program))
        assert labelled == {(VOCABULARY.index(variable_name(n)), ids[LINE_SIZE * n + LINE_SIZE - 1]) for n in lines}
        kinds = example.units.features[:, 0]
        assert (example.unit_labels[(kinds == TOKEN) | (kinds == OUTPUT)] == -100).all()
        values = example.unit_labels[kinds == HIDDEN, 2]
        assert ((values == -100) | ((values >= 0) & (values < VALUE_BUCKETS))).all()


def test_lines_before_a_program_move_its_names_and_layers(samples):
    example = to_example(samples[0])
    moved = with_lines_before(example, 3, 2)
    names = [[VOCABULARY[token] for token in one.labels] for one in (example, moved)]
    assert names[1] == [f"v{int(word[1:]) + 3}" if re.fullmatch(r"v\d+", word) else word for word in names[0]]
    known = example.unit_labels[:, 0] >= 0
    assert (moved.unit_labels[known, 0] == example.unit_labels[known, 0] + 3).all()
    assert (moved.unit_labels[~known] == example.unit_labels[~known]).all()
    inner = np.isin(example.units.features[:, 0], (QUERY_KEY, VALUE_OUTPUT, HIDDEN))
    assert (moved.units.features[:, 1] - example.units.features[:, 1] == 2 * inner).all()
    assert collate_examples([example, moved])["lines_before"].tolist() == [0, 3]
    for lines, layers in ((31, 0), (0, 31)):
        with pytest.raises(ValueError, match="expected up to 31 lines and 31 layers"):
            with_lines_before(example, lines, layers)
    with pytest.raises(ValueError, match="expected the encoder 'circuit' or 'units', got 'flat'"):
        OnlineExamples("test", batch_size=4, encoder="flat", lines_before=3)


def test_a_model_may_know_what_lines_stand_before(samples):
    """With none of them it says the same as if it were told nothing, with some not."""
    torch.manual_seed(0)
    sizes = {"d_model": 32, "num_heads": 2, "encoder_layers": 2}
    model = TraDeForConditionalGeneration(TraDeConfig(vocab_size=len(VOCABULARY), lines_before=4, **sizes)).eval()
    batch = collate_examples([to_example(sample) for sample in samples[:2]])
    told = model(**batch).logits
    assert torch.equal(told, model(**{**batch, "lines_before": None}).logits)
    assert not torch.equal(told, model(**{**batch, "lines_before": torch.tensor([0, 2])}).logits)
    stream = OnlineExamples("test", batch_size=4, lines_before=4)
    assert {example.lines_before for example in islice(iter(stream), 64)} == {0, 1, 2, 3, 4}


def test_plain_products_are_torchs_attention(samples):
    torch.manual_seed(0)
    model = TraDeForConditionalGeneration(TraDeConfig(vocab_size=len(VOCABULARY), d_model=32, num_heads=2)).eval()
    batch = collate_examples([to_example(sample) for sample in samples[:4]])
    fused = model(**batch).logits
    model.set_attn_implementation("eager")
    assert torch.allclose(model(**batch).logits, fused, atol=1e-5)


def test_the_unit_loss_counts_in_training_alone(samples):
    torch.manual_seed(0)
    model = TraDeForConditionalGeneration(TraDeConfig(vocab_size=len(VOCABULARY), d_model=32, num_heads=2))
    batch = collate_examples([to_example(sample) for sample in samples[:2]])
    plain = {name: tensor for name, tensor in batch.items() if name != "unit_labels"}
    assert model.train()(**batch).loss > model(**plain).loss
    assert torch.equal(model.eval()(**batch).loss, model(**plain).loss)


def test_the_loss_of_one_batch_is_that_of_its_halves(samples):
    """As processes and accumulated steps divide a batch: each counts by its share of the tokens."""
    torch.manual_seed(0)
    model = TraDeForConditionalGeneration(TraDeConfig(vocab_size=len(VOCABULARY), d_model=32, num_heads=2)).train()
    batch = collate_examples([to_example(samples[0])] * 4)
    halves = [{name: tensor[half] for name, tensor in batch.items()} for half in (slice(2), slice(2, 4))]
    tokens = (batch["labels"] != -100).sum()
    summed = sum(model(**half, num_items_in_batch=tokens).loss for half in halves)
    assert torch.allclose(summed, model(**batch).loss, atol=1e-5)


def test_padding_changes_nothing(tiny_checkpoint, samples):
    model = load_model(tiny_checkpoint)
    units = [to_units(compile_program(s.program, s.vocab, s.max_seq_len)) for s in samples[:6]]
    batch = {name: torch.from_numpy(array) for name, array in collate(units).items()}
    with torch.inference_mode():
        together = model.get_encoder()(**batch).last_hidden_state
    for i, unit in enumerate(units):
        assert torch.allclose(together[i, : len(unit.features)].sum(0), encode(model, unit), atol=1e-3)


def test_an_untrained_model_still_writes_programs(tiny_checkpoint, samples, spoiled):
    """The grammar leaves nothing else: whatever the tokens' likelihoods, the output parses and type-checks."""
    model = load_model(tiny_checkpoint)
    weights = [compile_program(s.program, s.vocab, s.max_seq_len) for s in samples[:3]]
    greedy = greedy_programs(weights, model)
    assert all(candidate is not None for candidate in greedy)
    result = decompile(spoiled, tiny_checkpoint, max_candidates=2, budget_seconds=600)
    assert not result.verdict.is_verified
    assert result.candidates == 2 and result.code.startswith("from tracr.rasp import rasp")


def test_the_result_does_not_hang_on_how_fast_the_machine_is(tiny_checkpoint, samples, spoiled, monkeypatch):
    """Between any two looks at the clock a minute passes, or no time at all."""
    turned = skew(samples[1].compile(), 0)
    found = []
    for seconds in (60, 0):
        monkeypatch.setattr(time, "monotonic", itertools.count(0, seconds).__next__)
        results = [decompile(model, tiny_checkpoint, max_steps=2_000) for model in (turned, spoiled)]
        found.append([(r.program, r.verdict, r.ended_by, r.candidates) for r in results])
    assert found[0] == found[1]
    assert [ended_by for *_, ended_by, _ in found[0]] == [EndedBy.FOUND, EndedBy.STEPS]


def test_what_ended_a_search_is_said(tiny_checkpoint, samples, spoiled):
    read = samples[0].compile()
    few = decompile(spoiled, tiny_checkpoint, max_candidates=3)
    assert (few.ended_by, few.candidates) == (EndedBy.CANDIDATES, 3)
    in_no_time = decompile(spoiled, tiny_checkpoint, budget_seconds=0)
    assert (in_no_time.ended_by, in_no_time.candidates) == (EndedBy.TIME, 1)
    in_no_steps = decompile(spoiled, tiny_checkpoint, max_steps=0)
    assert (in_no_steps.ended_by, in_no_steps.candidates) == (EndedBy.STEPS, 1)
    assert decompile(read, tiny_checkpoint).ended_by is EndedBy.FOUND
    assert decompile(read, tiny_checkpoint, budget_seconds=0).to_dict()["ended_by"] == "time"
    with pytest.raises(ValueError, match="max_candidates: expected at least 1, got 0"):
        decompile(read, tiny_checkpoint, max_candidates=0)


def test_a_time_limit_is_kept(tiny_checkpoint, samples, monkeypatch):
    """A clock on which a minute passes each time that one looks: after the limit there are few looks."""
    turned = rotate(samples[2].compile(), 0)
    looks = itertools.count()
    monkeypatch.setattr(time, "monotonic", lambda: 60.0 * next(looks))
    result = decompile(turned, tiny_checkpoint, budget_seconds=600)
    assert result.ended_by is EndedBy.TIME
    assert next(looks) < 600 / 60 + 10


def test_the_search_departs_from_the_greedy_program_by_what_it_gives_up(tiny_checkpoint, samples):
    model = load_model(tiny_checkpoint)
    weights = compile_program(samples[0].program, samples[0].vocab, samples[0].max_seq_len)
    [greedy] = greedy_programs([weights], model)
    found = [candidate for candidate in islice(search(weights, model), 30) if candidate.source is Source.WRITTEN]
    assert found[0] == greedy
    assert len({candidate.program for candidate in found}) == len(found) > 10
    forced = [to_ids(candidate.program) for candidate in found]
    with torch.inference_mode():
        logits = model(**processor()([weights] * len(found)), labels=pad_labels(forced)).logits.log_softmax(-1)
    for candidate, ids, some in zip(found, forced, logits, strict=True):
        assert candidate.score == pytest.approx(sum(float(some[i, token]) for i, token in enumerate(ids)), abs=1e-2)


def test_a_program_that_does_the_same_is_not_taken_for_the_models_own():
    """Two programs for one behaviour: weights tell them apart where the basis is Tracr's, and products in any."""
    own = parse("v1 = rasp.Map(lambda x: x + 1, rasp.tokens)\nprogram = rasp.Map(lambda x: x * 2, v1, simplify=False)")
    other = parse("program = rasp.Map(lambda x: {0: 2, 1: 4, 2: 6}.get(x), rasp.tokens)")
    weights = rotate(compile_program(own, (0, 1, 2), 3), 1)
    assert [Likeness(weights).distance(program) < 0.01 for program in (own, other)] == [True, False]
    assert verify(other, weights).is_verified


def test_cached_and_uncached_decoding_agree(tiny_checkpoint, samples):
    model = load_model(tiny_checkpoint)
    weights = [compile_program(s.program, s.vocab, s.max_seq_len) for s in samples[:4]]
    batch = {name: torch.from_numpy(array) for name, array in collate([to_units(w) for w in weights]).items()}
    options = {"do_sample": False, "max_new_tokens": 12}
    assert torch.equal(model.generate(**batch, **options), model.generate(**batch, **options, use_cache=False))
    assert model.generate(**batch, max_new_tokens=8, do_sample=True, num_return_sequences=2).shape[0] == 8


@pytest.mark.parametrize("options", [{"beams": 3}, {"samples": 4}], ids=str)
def test_beams_and_samples_are_programs_in_order_of_likelihood(options):
    """The network that ships, on a program that is easy for it."""
    program = parse("v1 = rasp.Select(rasp.tokens, rasp.tokens, rasp.Comparison.EQ)\nprogram = rasp.SelectorWidth(v1)")
    torch.manual_seed(0)
    model, weights = load_model(), compile_program(program, range(5), 5)
    [greedy] = written_programs(weights, model)
    found = written_programs(weights, model, **options)
    assert greedy.program == greedy_programs([weights], model)[0].program
    assert found[0].score >= greedy.score - 1e-4
    assert sorted(found, key=lambda candidate: -candidate.score) == found
    assert len({candidate.program for candidate in found}) == len(found)


def test_save_and_load(tiny_checkpoint, tmp_path, samples):
    model = load_model(tiny_checkpoint)
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    again = TraDeForConditionalGeneration.from_pretrained(tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    tokenizer = AutoTokenizer.from_pretrained(tiny_checkpoint)
    program = samples[0].program
    assert tokenizer(" ".join(to_tokens(program)))["input_ids"] == to_ids(program)[:-1]


def test_the_processor(tiny_checkpoint, samples):
    processor = TraDeProcessor.from_pretrained(tiny_checkpoint)
    chosen = samples[:3]
    weights = [compile_program(s.program, s.vocab, s.max_seq_len) for s in chosen]
    batch = processor(weights, [" ".join(to_tokens(s.program)) for s in chosen])
    expected = collate_examples([to_example(s) for s in chosen])
    assert batch.keys() == expected.keys() - {"unit_labels", "lines_before"}
    assert all(torch.equal(batch[name], expected[name]) for name in batch)
    assert load_model(tiny_checkpoint)(**batch).loss > 0
    assert processor(weights[0])["weight_features"].shape[0] == 1


def test_it_learns_a_handful_of_programs(samples):
    torch.manual_seed(0)
    examples = [to_example(sample) for sample in samples[:8]]
    model = TraDeForConditionalGeneration(
        TraDeConfig(
            vocab_size=len(VOCABULARY), d_model=48, encoder_layers=2, decoder_layers=1, num_heads=3, ffn_size=64
        )
    )
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    batch = collate_examples(examples)
    for _ in range(150):
        loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert loss.item() < 0.1
    weights = [compile_program(s.program, s.vocab, s.max_seq_len) for s in samples[:8]]
    model.eval()
    found = greedy_programs(weights, model)
    assert sum(c is not None and c.program == s.program for c, s in zip(found, samples[:8], strict=True)) >= 7
    assert sum(teacher_forced(weights, [to_ids(s.program) for s in samples[:8]], model)) >= 7


def test_units_of_a_batch_may_be_a_multiple(samples):
    batch = collate_examples([to_example(sample) for sample in samples[:3]], multiple=8)
    units = batch["attention_mask"].shape[1]
    assert units % 8 == 0 and batch["weight_edges"].shape[2:] == (units, units)
    assert batch["unit_labels"].shape[1] == batch["weight_features"].shape[1] == units
    assert 0 < batch["attention_mask"].sum(1).max() > units - 8


def test_processes_that_train_together_have_batches_of_like_size():
    streams = [iter(OnlineExamples(seed, batch_size=4)) for seed in "ab"]
    sizes = [[max(len(next(one).units.features) for _ in range(4)) for _ in range(128)] for one in streams]
    together, at_random = np.abs(np.subtract(*sizes)), np.abs(np.subtract(sizes[0], np.roll(sizes[1], 1)))
    assert together.mean() < at_random.mean() / 2
    assert sizes[0] != sizes[1]


@pytest.mark.parametrize(("reuse", "known"), [(1, False), (2, False), (2, True), (3, False)])
def test_examples_are_shown_again_many_batches_apart(monkeypatch, reuse, known):
    """At most `reuse` times, never twice in a batch, and not at all if the trainer says that they are known."""
    monkeypatch.setattr("dataset_builder.online.LATER", 40)
    examples = OnlineExamples("test", batch_size=4, config=SamplerConfig(max_lines=4), reuse=reuse)
    stream, shown = iter(examples), Counter()
    for _ in range(200):
        numbers = collate_examples(list(islice(stream, 4)))["numbers"].tolist()
        assert len(set(numbers)) == 4
        shown.update(numbers)
        examples.known[[number for number in numbers if known and number % 2]] = True
    assert max(shown.values()) == reuse
    assert all(times == 1 for number, times in shown.items() if known and number % 2)
    if not known:
        assert len(shown) < 800 / reuse + 200


def test_a_share_of_the_programs_is_long():
    def lines(share):
        stream = OnlineExamples("test", batch_size=4, config=SamplerConfig(min_lines=3, max_lines=6), long_share=share)
        return [len(example.labels) // LINE_SIZE for example in islice(iter(stream), 64)]

    assert set(lines(1.0)) == {5, 6}
    assert 0.05 < np.mean(np.array(lines(0.5)) < 5) < np.mean(np.array(lines(0.0)) < 5)


def test_online_examples_come_in_batches_of_similar_size():
    stream = iter(OnlineExamples("test", batch_size=4, reuse=2))
    examples = [next(stream) for _ in range(64)]
    spread = [np.ptp([len(e.units.features) for e in examples[i : i + 4]]) for i in range(0, 64, 4)]
    assert np.median(spread) <= 8
    batch = collate_examples(examples[:4])
    assert batch["weight_features"].shape[0] == batch["labels"].shape[0] == 4
    assert (batch["labels"][:, 0] >= 0).all()
