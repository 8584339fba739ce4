"""Run the stages of a corpus build by datatrove: on one machine, on a Ray cluster, on a Slurm cluster.

`corpus.build` cuts its work into stages, each a list of independent tasks, and leaves to a runner how a stage is run.
`DatatroveRunner` is one: rank r of n runs the tasks r, r + n, r + 2n … and puts each result into a small file, which
the driver reads. All machines must see the corpus folder, this code and this Python under the same paths, and the paths
in tasks must be absolute.

What is done is decided by the corpus' own files alone: each stage gets a new folder, so datatrove's marks of completion
are never believed. A build that was killed is simply started again (on Slurm: `scancel` what still runs of it first).

Ray: the cluster that RAY_ADDRESS names, or else one that is started on this machine for each stage.
Slurm: start the driver where sbatch is, outside any job; it submits an array job for each stage and waits for its end.
It ran on a Slurm 22.05 of one node, never on a cluster; the tests play sbatch, srun and scontrol.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from importlib import import_module
from importlib.util import find_spec
from operator import attrgetter
from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp
from typing import Any

from tqdm import tqdm

from dataset_builder.corpus import CorpusConfig, CorpusError
from dataset_builder.zoo import ZooConfig
from trade_hf.files import write_text

NEEDS = {"datatrove": ("datatrove",), "ray": ("datatrove", "ray"), "slurm": ("datatrove",)}  # packages of an executor
ROOT = Path(__file__).resolve().parent.parent
POLL = 0.5  # seconds between two looks at what is done


@dataclass(frozen=True)
class Stage:
    """A step of a datatrove pipeline: this rank's share of the tasks in `folder`."""

    folder: Path

    def __call__(self, data: Any, rank: int, world_size: int) -> None:
        _, function, tasks = _read_tasks(self.folder)
        for number in range(rank, len(tasks), world_size):
            target = self.folder / "results" / f"{number}.json"
            if target.exists():
                continue  # the rank runs again: Ray and Slurm do that where a machine was lost
            try:
                text = json.dumps(function(*tasks[number]))
            except Exception as error:
                (self.folder / "error.txt").write_text(f"{type(error).__name__}: {error}")
                raise
            write_text(target, text)


@dataclass(frozen=True)
class DatatroveRunner:
    """Runs the tasks of a stage; what they return must be what JSON holds.

    Attributes:
      executor: datatrove (processes on this machine), ray or slurm.
      folder: where stages keep their tasks, results and logs; of those that went well nothing is left.
      workers: ranks of a stage, which run at the same time.
      sbatch: options of the array jobs, such as {"partition": "cpu", "time": "04:00:00", "mem-per-cpu": "4G"}.
      patience: seconds in which some task must end, or the stage is given up: datatrove waits for ever for a worker
        that was killed. Not on Slurm, where jobs may queue for days and have a limit of their own.
    """

    executor: str
    folder: Path
    workers: int
    sbatch: Mapping[str, str] = field(default_factory=dict)
    patience: float = 3600
    progress: bool = True

    def __post_init__(self) -> None:
        if self.executor not in NEEDS:
            raise CorpusError(f"executor: expected one of {sorted(NEEDS)}, got {self.executor!r}")
        for package in NEEDS[self.executor]:
            if find_spec(package) is None:
                raise CorpusError(f"expected the package {package}: pip install '.[cluster]' in the repository")
        if self.executor == "slurm" and "partition" not in self.sbatch:
            raise CorpusError("sbatch: expected partition=NAME among the options of a Slurm job")

    def __call__(self, function: Callable, tasks: list[tuple], name: str) -> Iterator[Any]:
        """Results in the order of the tasks. Raises CorpusError if one of them failed."""
        if not tasks:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        folder = Path(mkdtemp(prefix=f"{name}-", dir=self.folder.resolve()))
        results = folder / "results"
        results.mkdir()
        stage = {"runner": asdict(self), "function": [function.__module__, function.__qualname__], "tasks": tasks}
        (folder / "tasks.json").write_text(json.dumps(stage, default=_to_json))
        self._supervise(folder, name, len(tasks))
        if missing := len(tasks) - len(list(results.glob("*.json"))):
            reason = _last_line(folder / "error.txt") or _last_line(folder / "output.log")
            raise CorpusError(f"{name}: {reason}; {missing} of {len(tasks)} tasks have no result; logs: {folder}")
        for number in range(len(tasks)):
            yield json.loads((results / f"{number}.json").read_text())
        shutil.rmtree(folder, ignore_errors=True)

    def _supervise(self, folder: Path, name: str, total: int) -> None:
        """Run a stage in processes of its own, of which none is left on this machine at the end, however it comes."""
        with (
            TemporaryDirectory(ignore_cleanup_errors=True) as scratch,
            (folder / "output.log").open("wb") as log,
            tqdm(desc=name, total=total, disable=None if self.progress else True) as bar,
        ):
            path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
            environment = {**os.environ, "PYTHONPATH": path}
            if self.executor != "slurm":  # whose jobs get the same environment where there is no such folder
                environment |= {"TMPDIR": scratch, "RAY_USAGE_STATS_ENABLED": "0"}
            code = "from dataset_builder.scale_out import run_stage; run_stage()"
            pipes: Any = {"stdin": subprocess.PIPE, "stdout": log, "stderr": log}
            process = subprocess.Popen(
                [sys.executable, "-c", code, folder], env=environment, start_new_session=True, **pipes
            )
            done, last = 0, time.monotonic()
            try:
                while process.poll() is None:
                    with suppress(subprocess.TimeoutExpired):
                        process.wait(POLL)
                    before, done = done, len(list((folder / "results").glob("*.json")))
                    bar.update(done - before)
                    if done > before or self.executor == "slurm":
                        last = time.monotonic()
                    if time.monotonic() - last > self.patience:
                        raise CorpusError(f"{name}: no task has ended in {self.patience:g} seconds; logs: {folder}")
            finally:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.communicate()

    def to_executor(self, folder: Path, tasks: int) -> Any:
        """The executor of datatrove that runs a stage."""
        from datatrove.executor import LocalPipelineExecutor, RayPipelineExecutor, SlurmPipelineExecutor

        ranks = max(1, min(self.workers, tasks))
        logs = str(folder / "datatrove")
        options: Any = {"pipeline": [Stage(folder)], "tasks": ranks, "logging_dir": logs, "skip_completed": False}
        if self.executor == "datatrove":
            return LocalPipelineExecutor(**options, workers=ranks)
        if self.executor == "ray":
            return RayPipelineExecutor(**options, workers=ranks, mem_per_cpu_gb=1)
        # Waiting is left to sbatch: `--wait` makes it end with the array job, and with its status.
        executor = SlurmPipelineExecutor(
            **options,
            partition=self.sbatch["partition"],
            time="24:00:00",
            qos="",
            job_name=f"trade-{folder.name}",
            env_command=f"export PATH={Path(sys.executable).parent}:$PATH",
            sbatch_args={"wait": "", **self.sbatch},
        )
        executor.launch_merge_stats = _nothing  # another job to wait for in the queue
        return executor


def _to_json(value: Any) -> Any:
    if isinstance(value, Path):
        return {"path": str(value)}
    if isinstance(value, CorpusConfig):
        return {"corpus": asdict(value)}
    if isinstance(value, ZooConfig):
        return {"zoo": asdict(value)}
    raise TypeError(f"expected tasks of numbers, texts, paths and configurations, got {type(value).__name__}")


def _from_json(value: dict[str, Any]) -> Any:
    match value:
        case {"path": path}:
            return Path(path)
        case {"corpus": fields}:
            return CorpusConfig.from_json(fields)
        case {"zoo": fields}:
            return ZooConfig(**fields)
    return value


def _read_tasks(folder: Path) -> tuple[DatatroveRunner, Callable, list[list]]:
    stage = json.loads((folder / "tasks.json").read_text(), object_hook=_from_json)
    module, name = stage["function"]
    return DatatroveRunner(**stage["runner"]), attrgetter(name)(import_module(module)), stage["tasks"]


def _nothing() -> None:
    pass


def _last_line(path: Path) -> str:
    return path.read_text(errors="replace").rstrip().rpartition("\n")[2] if path.exists() else ""


def run_stage() -> None:
    """In a process of its own: run the stage whose folder is the argument, and end when the driver does."""
    threading.Thread(target=_end_with_driver, daemon=True).start()
    folder = Path(sys.argv[1])
    runner, _, tasks = _read_tasks(folder)
    if runner.executor == "ray":
        import ray

        local = {"address": "local", "num_cpus": runner.workers, "include_dashboard": False}
        cluster = {} if "RAY_ADDRESS" in os.environ else local
        ray.init(**cluster, runtime_env={"env_vars": {"PYTHONPATH": os.environ["PYTHONPATH"]}}, log_to_driver=False)
    runner.to_executor(folder, len(tasks)).run()


def _end_with_driver() -> None:
    os.read(0, 1)  # the other end of this pipe is closed when the driver ends, however it does
    os.killpg(0, signal.SIGKILL)
