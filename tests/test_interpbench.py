"""InterpBench's programs, read from a clone: here one that is made up, with what cases of the real one use."""

import itertools
import json
import sys
from types import SimpleNamespace

import pytest

from dataset_builder.interpbench import PACKAGE, interpbench_programs
from trade_hf.rasp.text import to_text
from trade_hf.verification import Status

FILES = {
    "benchmark/vocabs.py": "def words():\n    return {'tea', 'a', 'of', 'time'}\n",
    "benchmark/tracr_benchmark_case.py": "import nothing_that_is_installed\n",
    "benchmark/cases/case_2.py": """
from tracr.rasp import rasp

from circuits_benchmark.benchmark import vocabs
from circuits_benchmark.benchmark.tracr_benchmark_case import TracrBenchmarkCase
from circuits_benchmark.transformers.hooked_tracr_transformer import HookedTracrTransformerBatchInput


class Case2(TracrBenchmarkCase):
    def get_program(self):
        return rasp.SelectorWidth(rasp.Select(rasp.tokens, rasp.tokens, rasp.Comparison.EQ))

    def get_vocab(self):
        return vocabs.words()

    def get_max_seq_len(self):
        return 5
""",
    "benchmark/cases/case_10.py": """
from tracr.rasp import rasp

from circuits_benchmark.benchmark.tracr_benchmark_case import TracrBenchmarkCase


class Case10(TracrBenchmarkCase):
    def get_program(self):
        return rasp.Map(lambda x: x * x, rasp.tokens)

    def get_vocab(self):
        return {1, 2, 3}

    def supports_causal_masking(self):
        return False
""",
    "benchmark/cases/case_ioi.py": "import nothing_that_is_installed\n",
}


@pytest.fixture
def evaluate(script):
    """scripts/evaluate.py, whose name a library has too."""
    library = sys.modules.pop("evaluate", None)
    module = script("evaluate")
    del sys.modules["evaluate"]
    if library:
        sys.modules["evaluate"] = library
    return module


@pytest.fixture
def clone(tmp_path):
    for name, text in FILES.items():
        file = tmp_path / PACKAGE / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return tmp_path


def test_cases_are_read(clone):
    first, second = interpbench_programs(clone)
    assert (first.name, second.name) == ("case_2", "case_10")
    assert (first.causal, first.max_seq_len, first.vocab) == (True, 4, ("a", "of", "tea", "time"))
    assert (second.causal, second.max_seq_len, second.vocab) == (False, 9, (1, 2, 3))
    assert "rasp.Comparison.EQ" in to_text(first.program) and len(second.program) == 1
    assert not [name for name in sys.modules if name.split(".")[0] == PACKAGE]


def test_no_clone(tmp_path):
    with pytest.raises(FileNotFoundError, match="expected a clone of circuits-benchmark, found no circuits_benchmark/"):
        interpbench_programs(tmp_path)


def test_they_are_scored_in_all_variants(evaluate, clone, tmp_path, monkeypatch, capsys):
    """In that of `tracr` as the package itself compiles them."""
    monkeypatch.setattr(sys, "argv", ["evaluate.py", "--interpbench", str(clone), "--json", "--out", str(tmp_path)])
    evaluate.main()
    found = json.loads(capsys.readouterr().out)
    assert list(found) == list(evaluate.INTERPBENCH)
    for name, result in found.items():
        assert json.loads((tmp_path / f"{name}.json").read_text()) == result
        assert (result["n"], result["certified"], result["wrongly_certified"]) == (2, 2, 0), name
    assert found["interpbench-tracr"]["programs"][0]["certificate"] == "identical weights"
    assert not list(tmp_path.glob("*.progress.jsonl"))


def test_what_is_no_proof_is_counted_apart(evaluate):
    """An agreement in one precision, and one but for None; beside a proof, that RASP says something else."""
    for status, departure in itertools.product(Status, (None, "some input")):
        found = SimpleNamespace(status=status, verdict=SimpleNamespace(departure=departure))
        assert evaluate._reservations(found) == {
            "equivalent_in_one_precision": status is Status.EQUIVALENT_IN_ONE_PRECISION,
            "equivalent_but_for_none": status is Status.EQUIVALENT_BUT_FOR_NONE,
            "departs_from_rasp": departure is not None,
        }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--split", "interpbench"], "expected --interpbench with a clone"),
        (["--interpbench", "x", "--all"], "expected neither --all"),
    ],
    ids=str,
)
def test_arguments(evaluate, monkeypatch, capsys, arguments, message):
    monkeypatch.setattr(sys, "argv", ["evaluate.py", *arguments])
    with pytest.raises(SystemExit):
        evaluate.main()
    assert message in capsys.readouterr().err
