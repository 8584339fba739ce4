"""The corpus: rows give back the weights, files depend on neither processes nor kills, `datasets` loads it."""

import dataclasses
import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
from huggingface_hub import DatasetCard

from dataset_builder import corpus
from dataset_builder.card import write_card
from dataset_builder.collator import DataCollator
from dataset_builder.corpus import HASHED_SPLITS, SPLITS, CorpusConfig, CorpusError, build
from dataset_builder.online import collate_examples, to_example
from dataset_builder.rows import to_weights
from dataset_builder.splits import pinned, split_of
from trade_hf.compiled.compiler import compile_program
from trade_hf.files import write_whole
from trade_hf.rasp.text import parse

SCRIPTS = Path(corpus.__file__).parent.parent / "scripts"
TINY = CorpusConfig("small", 160, long_rows=3, shard_rows=50)
BUILD = """
import dataclasses, sys
from pathlib import Path
from dataset_builder.corpus import CorpusConfig, build
if __name__ == "__main__":
    build(CorpusConfig("small", 160, long_rows=3, shard_rows=50), Path(sys.argv[1]), int(sys.argv[2]), progress=False)
"""


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    report = build(TINY, folder, progress=False)
    write_card(folder)
    return folder, report


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted((folder / "small").iterdir())}


def rows_of(folder, split):
    return [row for path in sorted((folder / "small").glob(f"{split}-*")) for row in pq.read_table(path).to_pylist()]


def test_the_report_counts_what_is_there(built):
    folder, report = built
    assert report["rows"] == TINY.rows + TINY.long_rows + report["splits"]["library"]
    assert report["splits"] == {split: len(rows_of(folder, split)) for split in SPLITS}
    assert report["drawn"] >= TINY.rows + report["repeated"] and report["rejected"]["too long"] > 0
    assert report["lines_drawn_again"]["constant line"] > 0
    assert not (folder / ".work" / "small").exists()


def test_a_split_may_be_empty(tmp_path):
    report = build(CorpusConfig("small", 40, long_rows=0, shard_rows=50), tmp_path, processes=1, progress=False)
    assert report["splits"]["test_long"] == 0
    write_card(tmp_path)
    loaded = datasets.load_dataset(str(tmp_path), "small", cache_dir=str(tmp_path / "cache"))
    assert set(loaded) == {*SPLITS} - {"test_long"}


def test_no_program_is_in_two_splits_or_twice(built):
    folder, _ = built
    ids = [row["id"] for split in SPLITS for row in rows_of(folder, split)]
    assert len(set(ids)) == len(ids)
    for split in HASHED_SPLITS:
        assert all(split_of(row["id"]) == split and row["num_lines"] <= 10 for row in rows_of(folder, split))
    assert all(row["num_lines"] > 10 for row in rows_of(folder, "test_long"))


def test_a_program_in_the_wrong_split_is_never_published(built, tmp_path):
    shutil.copytree(built[0] / "small", tmp_path / "small")
    corpus.check_splits(tmp_path / "small")
    (tmp_path / "small" / "test-00000-of-00001.parquet").replace(tmp_path / "small" / "train-00000-of-00001.parquet")
    with pytest.raises(CorpusError, match="belongs to test"):
        corpus.check_splits(tmp_path / "small")


def test_rows_give_back_the_weights(built):
    folder, _ = built
    for row in [row for split in SPLITS for row in rows_of(folder, split)][::3]:
        vocab = json.loads(row["vocab"])
        weights, expected = to_weights(row), compile_program(parse(row["code"]), vocab, row["max_seq_len"])
        assert weights.tensors.keys() == expected.tensors.keys()
        assert all(np.array_equal(weights.tensors[name], expected.tensors[name]) for name in expected.tensors)
        assert weights.metadata() == json.loads(json.dumps(expected.metadata()))
        assert np.array_equal(weights.unembedding, expected.unembedding)


def test_two_processes_give_the_same_files(built, tmp_path):
    build(TINY, tmp_path, processes=2, progress=False)
    assert contents(tmp_path) == contents(built[0])


def test_killed_in_each_step_it_ends_with_the_same_files(built, tmp_path):
    script = tmp_path / "build.py"
    script.write_text(BUILD)
    environment = {**os.environ, "PYTHONPATH": str(Path(corpus.__file__).parent.parent)}
    for begun, processes in ((".work/small/shard-000001.parquet", 1), ("small/train-*", 2)):
        arguments = [sys.executable, str(script), str(tmp_path), str(processes)]
        with subprocess.Popen(arguments, env=environment) as run:  # the parent alone is killed, as an out-of-memory may
            deadline = time.monotonic() + 120
            while not list(tmp_path.glob(begun)):
                assert time.monotonic() < deadline and run.poll() is None
                time.sleep(0.02)
            run.send_signal(signal.SIGKILL)
    build(TINY, tmp_path, progress=False)
    assert contents(tmp_path) == contents(built[0])
    assert not (tmp_path / ".work" / "small").exists()


def test_library_programs_are_the_same_in_another_process():
    code = "from dataset_builder.corpus import library_rows; print(*(row['code'] for row in library_rows()))"
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONPATH": str(Path(corpus.__file__).parent.parent), "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in "12"
    }
    assert len(outputs) == 1


def test_the_datasets_library_loads_it(built, tmp_path):
    folder, report = built
    whole = datasets.load_dataset(str(folder), "small", cache_dir=str(tmp_path))
    assert {split: len(whole[split]) for split in whole} == report["splits"]
    assert whole["train"].features["value"].feature.dtype == "float32"
    streamed = next(iter(datasets.load_dataset(str(folder), split="test", streaming=True)))
    assert streamed == whole["test"][0]
    formatted = whole["test"].with_format("torch")[0]
    assert formatted["value"].dtype.is_floating_point
    batches = DataCollator()([formatted]), DataCollator()([whole["test"][0]])
    assert all((batches[0][name] == batches[1][name]).all() for name in batches[1])


def test_the_card_is_filled_in(built):
    folder, report = built
    card = DatasetCard.load(folder / "README.md")
    assert card.data.license == "apache-2.0" and not re.search(r"\{[a-z]+\}", card.text)
    assert f"{report['splits']['train']:,}" in card.text and "constant line" in card.text
    assert [config["config_name"] for config in card.data.to_dict()["configs"]] == ["small"]


def test_the_card_has_pictures(built, tmp_path):
    shutil.copytree(built[0], tmp_path / "corpus")
    command = [sys.executable, str(SCRIPTS / "plot_corpus.py"), "--corpus", str(tmp_path / "corpus")]
    pictures = []
    for _ in range(2):
        subprocess.run(command, check=True)
        pictures.append((tmp_path / "corpus" / "plots" / "small.png").read_bytes())
    assert pictures[0] == pictures[1] and pictures[0].startswith(b"\x89PNG")
    assert "](plots/small.png)" in (tmp_path / "corpus" / "README.md").read_text()
    nothing = subprocess.run([*command[:-1], str(tmp_path)], capture_output=True, text=True, check=False)
    assert nothing.returncode == 1 and "found none" in nothing.stderr and nothing.stderr.count("\n") == 1


def test_the_builder_class(built, tmp_path, monkeypatch):
    from dataset_builder.tracr_rasp import TracrRasp

    monkeypatch.setitem(corpus.CONFIGS, "small", TINY)
    builder = TracrRasp(config_name="small", cache_dir=str(tmp_path))
    builder.download_and_prepare()
    rows = builder.as_dataset(split="test")
    assert [row["id"] for row in rows] == [row["id"] for row in rows_of(built[0], "test")]


def test_rows_make_the_same_batch_as_samples(built):
    items = {item.canonical_hash: item for item in pinned("test", 3)}
    rows = [
        corpus.to_row(identity, item.sample.program, item.sample.vocab, item.sample.max_seq_len)
        for identity, item in items.items()
    ]
    batch, expected = DataCollator()(rows), collate_examples([to_example(item.sample) for item in items.values()])
    assert batch.keys() == expected.keys() and all((batch[name] == expected[name]).all() for name in batch)


def test_another_build_in_the_folder_is_refused(built, tmp_path):
    other = dataclasses.replace(TINY, rows=170)
    with pytest.raises(CorpusError, match="other settings"):
        build(other, built[0], progress=False)
    shutil.copytree(built[0] / "small", tmp_path / "small")
    (tmp_path / "small" / "report.json").unlink()
    with pytest.raises(CorpusError, match="an unknown build"):
        build(other, tmp_path, progress=False)


def test_two_builds_in_one_folder_are_refused(tmp_path):
    (tmp_path / ".work" / "small").mkdir(parents=True)
    with corpus.alone(tmp_path / ".work" / "small" / "lock"), pytest.raises(CorpusError, match="another build"):
        build(TINY, tmp_path, progress=False)


def test_a_disk_that_fills_up_gives_one_line(tmp_path):
    """Files may not grow beyond 30 kB here, as on a disk that has no more: real writes fail in the middle."""
    code = f"""
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000))
sys.path.insert(0, {str(SCRIPTS)!r})
import build_dataset
sys.argv[1:] = ["--config", "small", "--processes", "1", "--out", {str(tmp_path / "out")!r}]
build_dataset.main()
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=200, check=False)
    assert result.returncode == 2 and result.stderr.splitlines()[-1].startswith("build_dataset: "), result.stderr
    assert "Traceback" not in result.stderr
    assert not [path for path in (tmp_path / "out").rglob("*") if path.suffix in (".parquet", ".partial")]


def test_a_full_disk_leaves_nothing_that_looks_finished(tmp_path):
    def fill(path):
        path.write_bytes(b"x" * 1000)
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        write_whole(tmp_path / "file", fill)
    assert not list(tmp_path.iterdir())


def test_the_script_says_in_one_line_where_it_cannot_write(tmp_path):
    (tmp_path / "out").write_text("a file where a folder was meant")
    command = [sys.executable, str(SCRIPTS / "build_dataset.py"), "--config", "small", "--out", str(tmp_path / "out")]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 2 and result.stderr.startswith("build_dataset: ") and result.stderr.count("\n") == 1
