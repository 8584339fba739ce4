"""The sampler: reproducible, valid, rejected with a reason; splits never share a program."""

import itertools
import subprocess
import sys
from collections import Counter

import pytest

from dataset_builder import rejection
from dataset_builder.rejection import Rejected, Screen
from dataset_builder.sampler import Draw, SamplerConfig, Weights, sample_programs
from dataset_builder.splits import pinned, split_of, stream
from trade_hf.rasp import tables
from trade_hf.rasp.canonical import canonicalise
from trade_hf.rasp.text import parse, to_text

FINGERPRINT = """
import itertools, hashlib
from dataset_builder.sampler import sample_programs
from trade_hf.rasp.text import to_text
texts = [to_text(sample.program) for sample in itertools.islice(sample_programs(7), 20)]
print(hashlib.sha256("".join(texts).encode()).hexdigest())
"""


def test_the_same_seed_gives_the_same_programs_in_another_process():
    outputs = {
        subprocess.run(
            [sys.executable, "-c", FINGERPRINT],
            capture_output=True,
            text=True,
            check=True,
            env={"PYTHONHASHSEED": seed},
        ).stdout
        for seed in ("1", "2")
    }
    assert len(outputs) == 1
    other = next(sample_programs(8))
    assert other != next(sample_programs(7))


def test_what_is_remembered_changes_nothing(monkeypatch):
    """The same programs, and the same rejections, whatever was sampled before and however soon it is forgotten."""
    wide = SamplerConfig(max_lines=10, vocab_sizes=(2, 12), max_seq_lens=(3, 12), max_d_model=224)
    for config in (SamplerConfig(max_lines=10), wide):
        runs = []
        for domains, judged in ((20_000, 20_000), (60, 25)):
            monkeypatch.setattr(tables, "MAX_DOMAINS", domains)
            monkeypatch.setattr(rejection, "MAX_JUDGED", judged)
            tables.forget_domains()
            reasons = Counter()
            texts = [to_text(s.program) for s in itertools.islice(sample_programs("again", config, reasons), 150)]
            runs.append((texts, reasons))
        assert runs[0] == runs[1]


def test_samples_are_canonical_and_within_limits(samples):
    config = SamplerConfig()
    for sample in samples:
        assert config.min_lines <= len(sample.program) <= config.max_lines
        assert canonicalise(sample.program, sample.vocab, sample.max_seq_len) == sample.program


def test_every_operation_and_length_occurs():
    reasons = Counter()
    samples = list(itertools.islice(sample_programs("variety", reasons=reasons), 300))
    assert len({line.op for s in samples for line in s.program.lines}) == 9
    assert set(range(3, 9)) == {len(s.program) for s in samples}
    assert reasons["kept"] == 300 and len(reasons) > 8


def test_programs_over_vocabularies_of_their_own():
    """Over strings, functions of the canonical program speak of the k-th token; the spelled one compiles and has the
    same canonical form."""
    config = SamplerConfig(max_lines=6, vocab_sizes=(2, 12), max_seq_lens=(3, 12), max_d_model=224)
    samples = list(itertools.islice(sample_programs("wide", config), 120))
    assert {type(s.vocab[0]) for s in samples} == {int, str}
    assert {len(s.vocab) for s in samples} == set(range(2, 13))
    assert {s.max_seq_len for s in samples} == set(range(3, 13))
    for sample in samples:
        assert canonicalise(sample.spelled, sample.vocab, sample.max_seq_len) == sample.program
        assert sample.compile().input_vocab == sample.vocab
        assert parse(to_text(sample.spelled)) == sample.spelled


REJECTED = [
    ("constant line", "program = rasp.Map(lambda x: x == 5, rasp.tokens)"),
    ("identity", "program = rasp.Map(lambda x: x, rasp.tokens)"),
    ("does not read tokens", "program = rasp.Map(lambda x: x == 1, rasp.indices)"),
    ("too short or too long", "program = rasp.Map(lambda x: x % 2, rasp.tokens)"),
    (
        "empty selector",
        "v1 = rasp.Select(rasp.tokens, rasp.tokens, rasp.Comparison.FALSE)\nprogram = rasp.SelectorWidth(v1)",
    ),
    (
        "mostly None",
        "v1 = rasp.Select(rasp.indices, rasp.tokens, lambda k, q: (k, q) in [(0, 4)])\n"
        "program = rasp.Aggregate(v1, rasp.tokens)",
    ),
    (
        "outside Tracr's dynamic validity",
        "v1 = rasp.Select(rasp.tokens, rasp.tokens, rasp.Comparison.LT)\nprogram = rasp.Aggregate(v1, rasp.tokens)",
    ),
    (
        "outside Tracr's dynamic validity",  # the compiled map loses what is below 0
        "v1 = rasp.numerical(rasp.Map(lambda x: x - 2, rasp.tokens))\nprogram = rasp.Map(lambda x: x > 0, v1)",
    ),
    (
        "constant output",
        "v1 = rasp.Select(rasp.tokens, rasp.tokens, rasp.Comparison.EQ)\nv2 = rasp.SelectorWidth(v1)\n"
        "program = rasp.Map(lambda x: x > 0, v2)",
    ),
    (
        "value out of range",
        "v1 = rasp.Map(lambda x: x * x, rasp.tokens)\nv2 = rasp.Map(lambda x: x * x, v1, simplify=False)\n"
        "program = rasp.Map(lambda x: x + 1, v2, simplify=False)",
    ),
    (
        "equal lines",
        "v1 = rasp.Map(lambda x: x % 2, rasp.tokens)\nv2 = rasp.Map(lambda x: x % 2, rasp.tokens)\n"
        "program = rasp.SequenceMap(lambda x, y: x + y, v1, v2)",
    ),
]


@pytest.mark.parametrize(("reason", "text"), REJECTED, ids=[reason for reason, _ in REJECTED])
def test_rejections_have_their_reason(reason, text):
    with pytest.raises(Rejected) as error:
        Screen.of(SamplerConfig(), (0, 1, 2, 3, 4), 5).check(parse(text))
    assert error.value.reason == reason


def test_splits_are_decided_by_the_program_alone():
    train = {item.canonical_hash for item in itertools.islice(stream("train", 3), 150)}
    test = pinned("test", 15)
    assert [item.canonical_hash for item in pinned("test", 5)] == [item.canonical_hash for item in test[:5]]
    assert all(split_of(item.canonical_hash) == "test" for item in test)
    assert not train & {item.canonical_hash for item in test}
    assert len({to_text(item.sample.program) for item in test}) == 15


def test_draws_are_even():
    draw = Draw(0)
    counts = Counter(draw.weighted(Weights({"a": 1.0, "b": 3.0})) for _ in range(4000))
    assert 2800 < counts["b"] < 3200
    assert {draw.below(3) for _ in range(100)} == {0, 1, 2}
