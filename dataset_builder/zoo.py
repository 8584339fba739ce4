"""The configuration `trained`: small transformers that were trained on known tasks, with the task or program of each.

    python scripts/train_zoo.py --part programs --models 2000 --seed 0 --out corpus

Models are trained in groups (`learners.py`). A group is a pure function of its place and the seed, and is written whole
or not at all, so a build that was killed goes on where it was and ends with the same rows. Programs are those of the
sampler (`sampler.py`); which split a program's model belongs to follows from its canonical hash, as everywhere
(`splits.py`), so no program is in two splits of any configuration.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dataset_builder.architectures import ARCHITECTURES
from dataset_builder.corpus import CorpusError, Runner, alone, claim, code_version
from dataset_builder.rejection import Rejected
from dataset_builder.sampler import SamplerConfig
from dataset_builder.splits import SHARES, split_of, stream
from dataset_builder.tasks import LANGUAGES, RULES, Language, Rule, Task, language_task, program_task, rule_task
from trade_hf.files import write_text, write_whole

if TYPE_CHECKING:
    from dataset_builder.learners import Learned

GROUP = 16  # models that are trained at once
SPLITS = ("train", *SHARES)
PARTS = ("tasks", "programs")
TRAINED = tuple(f"trained-{part}" for part in PARTS)  # names of configurations
SAMPLED = SamplerConfig(min_lines=4, max_lines=7)  # programs that are tasks
PROGRAM_ARCHITECTURES = ("two-layers", "two-layers", "three-layers", "no-norm")
SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("part", pa.string()),
        ("name", pa.string()),
        ("about", pa.string()),
        ("code", pa.string()),
        ("split", pa.string()),
        ("architecture", pa.string()),
        ("config", pa.string()),
        ("domain", pa.string()),
        ("names", pa.list_(pa.string())),
        ("shapes", pa.string()),
        ("value", pa.list_(pa.float32())),
        ("inputs", pa.int32()),
        ("inputs_right", pa.int32()),
        ("smallest_gap", pa.float32()),
        ("needs_attention", pa.bool_()),
        ("steps", pa.int32()),
        ("seed", pa.int64()),
        ("code_version", pa.string()),
    ]
)


@dataclass(frozen=True)
class ZooConfig:
    """What is trained.

    Attributes:
      part: `tasks`, rules and languages in architectures that can do them, or `programs` of the sampler.
      models: how many of `programs`; how many pairs of a task and an architecture, drawn by the seed, of `tasks`.
      seed: of the pairs that are drawn, of programs, first weights and batches.
      least_right: the share of inputs that a model must have right to be kept.
      steps: of training at most.
    """

    part: str
    models: int
    seed: int = 0
    least_right: float = 0.99
    steps: int = 4_000

    def __post_init__(self) -> None:
        if self.part not in PARTS:
            raise CorpusError(f"part: expected `tasks` or `programs`, got {self.part!r}")
        if self.models < 1 or self.steps < 1:
            raise CorpusError(f"models, steps: expected at least 1, got {self.models} and {self.steps}")

    @property
    def name(self) -> str:
        return f"trained-{self.part}"


@dataclass(frozen=True)
class Group:
    """Models that are trained at once: their tasks, and the ids by which splits are decided."""

    number: int
    architecture: str
    tasks: tuple[Task, ...]
    ids: tuple[str, ...]


def groups(config: ZooConfig) -> list[tuple[int, int]]:
    """The number and the size of each group of a build."""
    if config.part == "programs":
        sizes = [GROUP] * (config.models // GROUP) + [config.models % GROUP] * (config.models % GROUP > 0)
        return list(enumerate(sizes))
    return [(number, len(tasks)) for number, (_, tasks) in enumerate(task_groups(config))]


def make_group(config: ZooConfig, number: int, size: int) -> tuple[Group, Counter[str]]:
    """A group's tasks, and why programs were left out."""
    reasons: Counter[str] = Counter()
    if config.part == "tasks":
        architecture, drawn = task_groups(config)[number]
        tasks = [rule_task(task) if isinstance(task, Rule) else language_task(task) for task in drawn]
        ids = tuple([_hash(task.name, architecture, config.seed) for task in tasks])
        return Group(number, architecture, tuple(tasks), ids), reasons
    found: dict[str, Task] = {}
    for item in stream(None, f"trained-{config.seed}-{number}", SAMPLED):
        if item.canonical_hash not in found:
            try:
                found[item.canonical_hash] = program_task(item.sample, f"program-{item.canonical_hash[:12]}")
            except Rejected as rejected:
                reasons[rejected.reason] += 1
        if len(found) == size:
            break
    architecture = PROGRAM_ARCHITECTURES[number % len(PROGRAM_ARCHITECTURES)]
    return Group(number, architecture, tuple(found.values()), tuple(found)), reasons


def task_groups(config: ZooConfig) -> list[tuple[str, list[Rule | Language]]]:
    """The pairs of an architecture and a task that are drawn: those of one architecture and of the same inputs
    together."""
    pairs = [
        (architecture, task)
        for architecture, kind in ARCHITECTURES.items()
        for task in (*RULES, *(LANGUAGES if kind.is_causal else ()))
        if not kind.is_causal or isinstance(task, Language) or task.is_causal
    ]
    drawn = sorted(pairs, key=lambda pair: _hash(pair[1].name, pair[0], config.seed, "drawn"))[: config.models]
    found: list[tuple[str, list[Rule | Language]]] = []
    for name in ARCHITECTURES:
        own = [task for architecture, task in drawn if architecture == name]
        rules: list[Rule | Language] = [task for task in own if isinstance(task, Rule)]
        found += [(name, rules[start : start + GROUP]) for start in range(0, len(rules), GROUP)]
        found += [(name, [task]) for task in own if isinstance(task, Language)]
    return found


def learn_group(config: ZooConfig, number: int, size: int, target: Path) -> dict[str, int]:
    """Train a group and write its rows to `target`; what was left out, by reason. What is there already is kept."""
    import torch

    from dataset_builder.learners import Schedule, train

    if target.exists():
        return json.loads(pq.read_schema(target).metadata[b"left_out"])
    torch.set_num_threads(1)  # so that sums are the same on any machine with these kernels
    group, reasons = make_group(config, number, size)
    seeds = [int(_hash(identity, config.seed)[:8], 16) for identity in group.ids]
    rows, version = [], code_version()
    for learned in train(group.tasks, ARCHITECTURES[group.architecture], seeds, Schedule(steps=config.steps)):
        task = group.tasks[learned.number]
        if learned.right < config.least_right * len(task.inputs):
            reasons["not learned"] += 1
            continue
        rows.append(_row(config, group, learned, seeds[learned.number]) | {"code_version": version})
    rows.sort(key=lambda row: row["id"])
    table = pa.Table.from_pylist(rows, SCHEMA.with_metadata({"left_out": json.dumps(reasons)}))
    _write_table(table, target)
    return dict(reasons)


def _write_table(table: pa.Table, target: Path) -> None:
    write_whole(target, lambda path: pq.write_table(table, path, compression="zstd"))


def _row(config: ZooConfig, group: Group, learned: Learned, seed: int) -> dict[str, Any]:
    task, identity = group.tasks[learned.number], group.ids[learned.number]
    return {
        "id": identity,
        "part": config.part,
        "name": task.name,
        "about": task.about,
        "code": task.program or "",
        "split": split_of(identity if task.program else _hash(task.name)),
        "architecture": group.architecture,
        "config": json.dumps(ARCHITECTURES[group.architecture].config(task)),
        "domain": json.dumps(task.domain, ensure_ascii=False),
        "names": list(learned.tensors),
        "shapes": json.dumps([list(tensor.shape) for tensor in learned.tensors.values()]),
        "value": np.concatenate([tensor.ravel() for tensor in learned.tensors.values()]),
        "inputs": len(task.inputs),
        "inputs_right": learned.right,
        "smallest_gap": learned.gap,
        "needs_attention": not task.is_of_here_alone,
        "steps": learned.steps,
        "seed": seed,
    }


def build(config: ZooConfig, folder: Path, run: Runner) -> dict[str, Any]:
    """Build a part under `folder`/`config.name`, or go on with it; returns what the report holds.

    Raises CorpusError for a folder that holds another build, OSError for one that cannot be written.
    """
    folder = folder.resolve()
    home, work = folder / config.name, folder / ".work" / config.name
    if (home / "report.json").exists():
        report = json.loads((home / "report.json").read_text())
        if report["config"] != asdict(config):
            raise CorpusError(f"{home}: holds models with other settings; remove it or choose another folder")
        return report
    for path in (home, work):
        path.mkdir(parents=True, exist_ok=True)
    with alone(work / "lock"):
        claim(work / "config.json", home, asdict(config))
        tasks = [(config, number, size, work / f"group-{number:05d}.parquet") for number, size in groups(config)]
        left_out: Counter[str] = Counter()
        for reasons in run(learn_group, tasks, "train"):
            left_out.update(reasons)
        rows = _distinct(pa.concat_tables([pq.read_table(target) for *_, target in tasks]))
        report = _write(config, rows, home) | {"left_out": dict(sorted(left_out.items()))}
        write_text(home / "report.json", json.dumps(report, indent=2) + "\n")
        shutil.rmtree(work)
    return report


def _distinct(rows: pa.Table) -> pa.Table:
    """Without programs that two groups have."""
    ids = rows["id"].to_pylist()
    first = {identity: place for place, identity in reversed(list(enumerate(ids)))}
    return rows.take(np.array(sorted(first.values()), int))


def _write(config: ZooConfig, rows: pa.Table, home: Path) -> dict[str, Any]:
    splits = np.array(rows["split"].to_pylist())
    counts = {}
    for split in SPLITS:
        some = rows.take(np.flatnonzero(splits == split)).replace_schema_metadata(None)
        counts[split] = len(some)
        if len(some):
            _write_table(some, home / f"{split}-00000-of-00001.parquet")
    right = np.array(rows["inputs_right"]) / np.maximum(np.array(rows["inputs"]), 1)
    return {
        "config": asdict(config),
        "rows": len(rows),
        "splits": counts,
        "right_on_all_inputs": int((right == 1).sum()),
        "need_attention": int(np.array(rows["needs_attention"]).sum()),
        "smallest_gap_median": float(np.median(rows["smallest_gap"])) if len(rows) else math.nan,
        "architectures": dict(sorted(Counter(rows["architecture"].to_pylist()).items())),
        "bytes": sum(path.stat().st_size for path in home.glob("*.parquet")),
    }


def to_state_dict(row: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """A row's tensors by HookedTransformer's names, float32."""
    values, found, start = np.asarray(row["value"], np.float32), {}, 0
    for name, shape in zip(row["names"], json.loads(row["shapes"]), strict=True):
        found[name] = values[start : start + math.prod(shape)].reshape(shape)
        start += math.prod(shape)
    return found


def to_folder(row: Mapping[str, Any], folder: Path) -> None:
    """A row as a folder that `trade decompile` takes: model.safetensors, config.json and domain.json."""
    from safetensors.numpy import save

    folder.mkdir(parents=True, exist_ok=True)
    content = save({name: np.ascontiguousarray(tensor) for name, tensor in to_state_dict(row).items()})
    write_whole(folder / "model.safetensors", lambda path: path.write_bytes(content))
    write_text(folder / "config.json", row["config"])
    write_text(folder / "domain.json", row["domain"])


def read_rows(home: Path, splits: Sequence[str] = SPLITS) -> Iterator[dict[str, Any]]:
    """The rows of a finished part."""
    for split in splits:
        for path in sorted(home.glob(f"{split}-*.parquet")):
            yield from pq.read_table(path).to_pylist()


def _hash(*parts: object) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()
