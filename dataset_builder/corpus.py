"""Build a corpus on disk: shards of fresh rows by any number of processes, then one sorted set of Parquet files.

Two steps, each a pure function of its number, whose files appear whole or not at all; so a build that was killed goes
on where it was, and its files are byte for byte those of an undisturbed one, whatever the number of processes.

1. `draw_shard`: a seed → a Parquet file of rows in order of their id, one row group for each range of ids (partition).
2. `write_partition`: the same partition of all shards → rows without repetition, one Parquet file for each split.

No process ever holds more than one shard or one partition. Splits are decided by the id alone (`splits.py`).
"""

from __future__ import annotations

import fcntl
import gc
import hashlib
import json
import os
import shutil
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import islice
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from tqdm import tqdm

from dataset_builder.library import library_programs
from dataset_builder.rows import SCHEMA, to_row, to_table
from dataset_builder.sampler import LINE, WIDE, Sample, SamplerConfig, sample_programs
from dataset_builder.splits import LONG, SHARES, UP_TO_TEN, split_of
from trade_hf.files import write_text, write_whole
from trade_hf.rasp.canonical import canonical_hash, hash_canonical

HASHED_SPLITS = ("train", *sorted(SHARES, reverse=True))
SPLITS = (*HASHED_SPLITS, "test_long", "library")
PARTITION_ROWS = 10_000  # what a partition holds in memory, about 20 KB each at the peak
ROW_GROUP = 1_000  # rows of a group in the published files: what a stream reads at once

# Runs a function on each of a list of tasks, its arguments; gives the results in order. The last argument is a name.
Runner = Callable[[Callable, list[tuple], str], Iterator[Any]]


class CorpusError(ValueError):
    """A build that cannot go on; the message says what was expected and what came."""


# Vocabularies of 2 to 12 numbers or strings, inputs of up to 3 to 12 tokens.


@dataclass(frozen=True)
class CorpusConfig:
    """One configuration of the corpus.

    Attributes:
      name: as in `load_dataset("trade/tracr-rasp", name)`.
      rows: distinct canonical programs in all splits together.
      long_rows: rows of `test_long`, programs of more lines than any other split has.
      shard_rows: programs drawn for each shard, repeated ones among them.
      sampler: what is sampled.
      long_sampler: what is sampled for `test_long`.
    """

    name: str
    rows: int
    long_rows: int
    shard_rows: int = 2_500
    sampler: SamplerConfig = UP_TO_TEN
    long_sampler: SamplerConfig = LONG

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> CorpusConfig:
        """From what `asdict` gave, after JSON."""
        samplers = {name: SamplerConfig.from_json(fields[name]) for name in ("sampler", "long_sampler")}
        return cls(**{**fields, **samplers})

    @property
    def partitions(self) -> int:
        return -(-self.rows // PARTITION_ROWS)


CONFIGS = {
    config.name: config
    for config in (
        CorpusConfig("small", 10_000, long_rows=200, shard_rows=1_000),
        CorpusConfig(
            "paper",
            100_000,
            long_rows=1_000,
            sampler=SamplerConfig(vocab=(1, 2, 3, 4, 5), min_lines=2, max_lines=8),
            long_sampler=SamplerConfig(vocab=(1, 2, 3, 4, 5), min_lines=9, max_lines=12, max_d_model=128),
        ),
        CorpusConfig(
            "wide",
            200_000,
            long_rows=1_000,
            sampler=replace(WIDE, max_lines=15),
            long_sampler=replace(WIDE, min_lines=16, max_lines=20, max_d_model=288),
        ),
        CorpusConfig("base", 1_000_000, long_rows=2_000),
    )
}


# ---------------------------------------------------------------- step 1


def distinct_rows(samples: Iterable[Sample]) -> Iterator[dict[str, Any]]:
    """A row for each program, those that come again left out."""
    seen: set[str] = set()
    for sample in samples:
        identity = hash_canonical(sample.program, sample.vocab, sample.max_seq_len)
        if identity not in seen:
            seen.add(identity)
            yield to_row(identity, sample.spelled, sample.vocab, sample.max_seq_len, sample.program)


def rows_of_shard(config: CorpusConfig, shard: int, reasons: Counter) -> list[dict[str, Any]]:
    """The distinct rows of one shard, by id. `reasons` counts what was rejected."""
    samples = sample_programs(f"corpus-{config.name}-{shard}", config.sampler, reasons)
    return sorted(distinct_rows(islice(samples, config.shard_rows)), key=lambda row: row["id"])


def partition_of(identity: str, partitions: int) -> int:
    """Which range of ids an id lies in; ranges are equal parts of all possible ids."""
    return int(identity[:8], 16) * partitions >> 32


def draw_shard(config: CorpusConfig, shard: int, target: Path) -> None:
    """Write one shard."""
    reasons: Counter = Counter()
    groups: list[list[dict[str, Any]]] = [[] for _ in range(config.partitions)]
    with _no_collector():
        rows = rows_of_shard(config, shard, reasons)
    for row in rows:
        groups[partition_of(row["id"], config.partitions)].append(row)
    schema = SCHEMA.with_metadata({"rejections": json.dumps(reasons, sort_keys=True)})
    with_groups = (to_table(group) for group in groups)
    write_whole(target, lambda path: _write_groups(path, schema, with_groups))


@contextmanager
def _no_collector() -> Iterator[None]:
    """What is kept of tables and judged lines is much to look through and holds next to no cycles: looking for them
    takes a sixth of the time."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


# ---------------------------------------------------------------- step 2


def write_partition(
    shards: list[Path], partition: int, quota: int, write: Callable[[str, pa.Table], None]
) -> Counter[str]:
    """Give `write` each split's rows of one partition: its first `quota` distinct ids. Returns how many went where."""
    table = pa.concat_tables(_groups(shards, partition))
    first = first_of_each(table["id"].to_pylist())[:quota]
    table = table.take(first).replace_schema_metadata(None)
    splits = pa.array([split_of(identity) for identity in table["id"].to_pylist()])
    written: Counter[str] = Counter()
    for split in HASHED_SPLITS:
        part = table.filter(pc.equal(splits, split))
        write(split, part)
        written[split] = len(part)
    return written


def first_of_each(ids: list[str]) -> list[int]:
    """Places of the distinct ids, in order of the ids."""
    places: dict[str, int] = {}
    for place, identity in enumerate(ids):
        places.setdefault(identity, place)
    return [places[identity] for identity in sorted(places)]


def _groups(shards: Iterable[Path], partition: int, columns: list[str] | None = None) -> Iterator[pa.Table]:
    for path in shards:
        with pq.ParquetFile(path) as file:
            yield file.read_row_group(partition, columns=columns)


def distinct_in_partition(shards: list[Path], partition: int) -> int:
    return len(set().union(*(table["id"].to_pylist() for table in _groups(shards, partition, ["id"]))))


# ---------------------------------------------------------------- splits of one file


def long_rows(config: CorpusConfig) -> Iterator[dict[str, Any]]:
    """The rows of `test_long`."""
    return islice(distinct_rows(sample_programs(f"corpus-{config.name}-long", config.long_sampler)), config.long_rows)


def library_rows() -> Iterator[dict[str, Any]]:
    """The rows of `library`, as written by their authors and not in canonical form; `id` is that of the latter."""
    for item in library_programs():
        identity = canonical_hash(item.program, item.vocab, item.max_seq_len)
        yield to_row(identity, item.program, item.vocab, item.max_seq_len)


def _single_files(config: CorpusConfig, home: Path) -> Counter[str]:
    counts: Counter[str] = Counter()
    for split, rows in (("test_long", long_rows(config)), ("library", library_rows())):
        path = home / f"{split}-00000-of-00001.parquet"
        if not path.exists():
            write_rows(path, to_table(list(rows)))
        counts[split] = pq.read_metadata(path).num_rows
    return counts


# ---------------------------------------------------------------- both


def build(
    config: CorpusConfig, folder: Path, processes: int = 1, progress: bool = True, run: Runner | None = None
) -> dict[str, Any]:
    """Build a configuration under `folder`/`config.name`, or go on with it; returns what the report holds.

    `run` runs the tasks elsewhere than in a pool of `processes` (`scale_out.py`).
    Raises CorpusError for a folder that holds another build, OSError for one that cannot be written.
    """
    folder = folder.resolve()  # workers elsewhere have another working directory
    home, work = folder / config.name, folder / ".work" / config.name
    run = run or partial(in_processes, processes=processes, progress=progress)
    if (home / "report.json").exists():
        shutil.rmtree(work, ignore_errors=True)  # a kill may have left some of it
        return _finished(home / "report.json", config)
    for path in (home, work):
        path.mkdir(parents=True, exist_ok=True)
    with alone(work / "lock"):
        return _build(config, home, work, run)


def _build(config: CorpusConfig, home: Path, work: Path, run: Runner) -> dict[str, Any]:
    claim(work / "config.json", home, asdict(config))
    for left in [*home.glob(".*.partial"), *work.glob(".*.partial")]:
        left.unlink()
    shards, distinct = _draw_enough(config, work, run)
    quotas = [
        config.rows // config.partitions + (p < config.rows % config.partitions) for p in range(config.partitions)
    ]
    tasks = [(shards, p, quotas[p], home, config.partitions) for p in range(config.partitions)]
    counts: Counter[str] = Counter()
    for written in run(_partition_to_files, tasks, "write"):
        counts.update(written)
    counts.update(_single_files(config, home))
    check_splits(home)
    rejections: Counter[str] = Counter()
    for path in shards:
        rejections.update(json.loads(pq.read_schema(path).metadata[b"rejections"]))
    drawn = rejections.pop("kept")
    report = {
        "config": asdict(config),
        "rows": sum(counts.values()),
        "splits": {split: counts[split] for split in SPLITS},
        "drawn": drawn,
        "repeated": drawn - distinct,
        "rejected": {why: n for why, n in sorted(rejections.items()) if not why.startswith(LINE)},
        "lines_drawn_again": {
            why.removeprefix(LINE): n for why, n in sorted(rejections.items()) if why.startswith(LINE)
        },
        "bytes": sum(path.stat().st_size for path in home.glob("*.parquet")),
    }
    write_text(home / "report.json", json.dumps(report, indent=2) + "\n")
    shutil.rmtree(work)
    return report


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """Raises CorpusError if another process on this machine builds there; the lock ends with the process."""
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CorpusError(f"{path.parent}: another build is under way here") from None
        yield


def _finished(path: Path, config: CorpusConfig) -> dict[str, Any]:
    report = json.loads(path.read_text())
    if report["config"] != json.loads(json.dumps(asdict(config))):
        raise CorpusError(f"{path.parent}: holds a corpus with other settings; remove it or choose another folder")
    return report


def check_splits(home: Path) -> None:
    """Raises CorpusError if a row is not in the split that its id says, or a split has the lines of `test_long`."""
    longest = 0
    for split in HASHED_SPLITS:
        for path in sorted(home.glob(f"{split}-*.parquet")):
            table = pq.read_table(path, columns=["id", "num_lines"])
            wrong = [identity for identity in table["id"].to_pylist() if split_of(identity) != split]
            if wrong:
                raise CorpusError(f"{path}: the program {wrong[0]} belongs to {split_of(wrong[0])}")
            longest = max(longest, pc.max(table["num_lines"]).as_py() or 0)
    shortest = pc.min(
        pq.read_table(home / "test_long-00000-of-00001.parquet", columns=["num_lines"])["num_lines"]
    ).as_py()
    if shortest is not None and shortest <= longest:
        raise CorpusError(f"{home}: test_long has a program of {shortest} lines, other splits have up to {longest}")


def claim(path: Path, home: Path, config: dict[str, Any]) -> None:
    """Go on with the build that `path` names, or begin one where there is none. What two versions of this code or of
    pyarrow wrote is never mixed."""
    text = json.dumps({"config": config, "code": code_version()}, indent=2)
    if path.exists():
        if path.read_text() != text:
            raise CorpusError(
                f"{home}: an unfinished build with other settings or another version; remove it and {path.parent}"
            )
    elif [*home.glob("*.parquet"), *path.parent.glob("*.parquet")]:
        raise CorpusError(f"{home}: files of an unknown build; remove it and {path.parent}")
    else:
        write_text(path, text)


def code_version() -> str:
    """A hash of all that decides the files' bytes."""
    root = Path(__file__).resolve().parent.parent
    deciding = (
        "architectures",
        "corpus",
        "learners",
        "library",
        "rejection",
        "rows",
        "sampler",
        "splits",
        "tasks",
        "zoo",
    )
    sources = [root / "dataset_builder" / f"{name}.py" for name in deciding]
    sources += [*(root / "trade_hf" / "rasp").glob("*.py"), *(root / "trade_hf" / "compiled").glob("*.py")]
    digest = hashlib.sha256(f"pyarrow {pa.__version__}".encode())
    for source in sorted(sources):
        digest.update(source.read_bytes())
    return digest.hexdigest()


def _draw_enough(config: CorpusConfig, work: Path, run: Runner) -> tuple[list[Path], int]:
    """Shards until every partition has its rows (5 % more than rows at first, then what the scarcest one lacks and 1 %
    more), and how many distinct rows they hold."""
    wanted = -(-config.rows * 21 // (20 * config.shard_rows))
    quota = -(-config.rows // config.partitions)
    while True:
        shards = [work / f"shard-{number:06}.parquet" for number in range(wanted)]
        tasks = [(config, number, path) for number, path in enumerate(shards) if not path.exists()]
        deque(run(draw_shard, tasks, "draw"), maxlen=0)
        counting = [(shards, partition) for partition in range(config.partitions)]
        distinct = list(run(distinct_in_partition, counting, "count"))
        if min(distinct) >= quota:
            return shards, sum(distinct)
        wanted = max(wanted + 1, -(-wanted * quota * 101 // (100 * max(1, min(distinct)))))


def _partition_to_files(shards: list[Path], partition: int, quota: int, home: Path, partitions: int) -> Counter[str]:
    def path_of(split: str) -> Path:
        return home / f"{split}-{partition:05}-of-{partitions:05}.parquet"

    if all(path_of(split).exists() for split in HASHED_SPLITS):
        return Counter({split: pq.read_metadata(path_of(split)).num_rows for split in HASHED_SPLITS})
    return write_partition(shards, partition, quota, lambda split, rows: write_rows(path_of(split), rows))


def in_processes(function: Callable, tasks: list[tuple], name: str, processes: int, progress: bool) -> Iterator[Any]:
    """A Runner: results as they come, by a pool of processes on this machine."""
    options: dict[str, Any] = {"desc": name, "total": len(tasks), "disable": None if progress else True}
    if processes <= 1 or not tasks:
        yield from tqdm((function(*task) for task in tasks), **options)
        return
    with ProcessPoolExecutor(processes, get_context("spawn"), _end_with_parent) as pool:
        yield from tqdm(pool.map(function, *zip(*tasks, strict=True)), **options)


def _end_with_parent() -> None:
    """In a worker: end when the parent does, however it ends."""

    def watch() -> None:
        parent = parent_process()
        assert parent is not None
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def write_rows(target: Path, rows: pa.Table) -> None:
    """A file of the corpus, whole or not at all."""
    groups = (rows.slice(start, ROW_GROUP) for start in range(0, len(rows), ROW_GROUP))
    write_whole(target, lambda path: _write_groups(path, SCHEMA, groups))


def _write_groups(path: Path, schema: pa.Schema, tables: Iterable[pa.Table]) -> None:
    """A row group for each table, an empty one too."""
    with pq.ParquetWriter(path, schema, compression="zstd", write_statistics=False) as writer:
        for table in tables:
            writer.write_table(table.replace_schema_metadata(schema.metadata), row_group_size=max(1, len(table)))
