"""The corpus by datatrove: the same files from its local executor and from Ray; what goes wrong is said and ends."""

import operator
import os
import secrets
import signal
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from dataset_builder import scale_out
from dataset_builder.corpus import CorpusConfig, CorpusError, build
from dataset_builder.scale_out import DatatroveRunner

TINY = CorpusConfig("small", 160, long_rows=3, shard_rows=50)
RAY = """
import ray, sys
context = ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
print(context.address_info["gcs_address"], flush=True)
sys.stdin.read()
"""
SLEEP = """
import sys, time
from pathlib import Path
from dataset_builder.scale_out import DatatroveRunner
list(DatatroveRunner("datatrove", Path(sys.argv[1]), workers=2, progress=False)(time.sleep, [(600,), (600,)], "sleep"))
"""
# What the three programs of Slurm do here: run the elements of an array job one after the other, and wait for them.
SBATCH = """#!/bin/bash
for script; do :; done
cp "$script" "$(dirname "$0")/script"
for rank in $(eval echo "{$(sed -n 's/^#SBATCH --array=\\([0-9]*\\)-\\([0-9]*\\)$/\\1..\\2/p' "$script")}"); do
  SLURM_ARRAY_TASK_ID=$rank SLURM_NODELIST=here bash "$script" >&2 || exit 1
done
echo Submitted batch job 7
"""
SRUN = '#!/bin/bash\nshift 3\nexec "$@"\n'  # -l -n 1
SCONTROL = "#!/bin/bash\necho here\n"


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    return folder, build(TINY, folder, progress=False)


@pytest.fixture
def ray_settings(monkeypatch):
    """No cluster, and a token of our own, or else Ray leaves one in the home folder."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(32))


@pytest.fixture
def ray_cluster(ray_settings, monkeypatch):
    """A Ray of two CPUs on this machine."""
    with TemporaryDirectory(ignore_cleanup_errors=True) as folder:  # pytest's have too long a path for its sockets
        environment = {**os.environ, "TMPDIR": folder, "RAY_USAGE_STATS_ENABLED": "0"}
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        with subprocess.Popen([sys.executable, "-c", RAY], env=environment, **pipes) as ray:
            monkeypatch.setenv("RAY_ADDRESS", ray.stdout.readline().decode().strip())
            yield


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    for name, text in (("sbatch", SBATCH), ("srun", SRUN), ("scontrol", SCONTROL)):
        (tmp_path / "bin" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    return tmp_path / "bin" / "script"


def runner(folder, executor="datatrove", **options):
    return DatatroveRunner(executor, folder / "stages", workers=2, progress=False, **options)


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted((folder / "small").iterdir())}


def assert_built_the_same(built, folder, executor):
    assert build(TINY, folder, run=runner(folder, executor)) == built[1]
    assert contents(folder) == contents(built[0])
    assert not list((folder / "stages").iterdir())


def test_datatrove_gives_the_same_files(built, tmp_path):
    assert_built_the_same(built, tmp_path, "datatrove")


def test_ray_gives_the_same_files(built, tmp_path, ray_cluster):
    assert_built_the_same(built, tmp_path, "ray")


def test_ray_is_started_where_no_cluster_is_named(tmp_path, ray_settings):
    assert list(runner(tmp_path, "ray")(pow, [(number, 2) for number in range(3)], "square")) == [0, 1, 4]


def test_results_come_in_the_order_of_the_tasks(tmp_path):
    assert list(runner(tmp_path)(pow, [(number, 2) for number in range(5)], "square")) == [0, 1, 4, 9, 16]
    assert list(runner(tmp_path)(pow, [], "nothing")) == []


def test_a_stage_runs_again_whose_files_were_removed(tmp_path):
    for _ in range(2):
        list(runner(tmp_path)(Path.write_text, [(tmp_path / "file", "text")], "write"))
        (tmp_path / "file").unlink()


def test_a_task_that_fails_is_quoted(tmp_path):
    with pytest.raises(CorpusError, match=r"divide: ZeroDivisionError: .*; . of 2 tasks have no result; logs: /"):
        list(runner(tmp_path)(operator.truediv, [(1, 1), (1, 0)], "divide"))


def test_a_worker_that_is_killed_ends_the_stage(tmp_path):
    with pytest.raises(CorpusError, match="die: no task has ended in 3 seconds"):
        list(runner(tmp_path, patience=3)(os._exit, [(1,), (1,)], "die"))


@pytest.fixture
def short_path():
    """Sockets' paths must not be longer than some 100 characters."""
    with TemporaryDirectory() as folder:
        yield folder


def test_workers_end_with_a_driver_that_is_killed(tmp_path, short_path):
    environment = {**os.environ, "PYTHONPATH": str(scale_out.ROOT), "TMPDIR": short_path}
    with subprocess.Popen([sys.executable, "-c", SLEEP, str(tmp_path / "stages")], env=environment) as driver:
        deadline = time.monotonic() + 60
        while len(list(tmp_path.glob("stages/*/datatrove/logs/task_*.log"))) < 2:
            assert time.monotonic() < deadline and driver.poll() is None
            time.sleep(0.1)
        of_this = processes_of(driver.pid)
        driver.send_signal(signal.SIGKILL)
    assert len(of_this) >= 4  # datatrove's own, its two workers, what starts them
    while any(map(is_running, of_this)):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def processes_of(parent):
    """All that descend from a process."""
    children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    return children + [process for child in children for process in processes_of(child)]


def is_running(process):
    """Zombies, which nobody waits for where PID 1 is no init, have no command line."""
    try:
        return bool(Path(f"/proc/{process}/cmdline").read_bytes())
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_slurm_gets_an_array_job_and_is_waited_for(tmp_path, slurm):
    options = {"partition": "cpu", "time": "04:00:00", "mem-per-cpu": "4G"}
    results = runner(tmp_path, "slurm", sbatch=options)(pow, [(number, 2) for number in range(3)], "square")
    assert list(results) == [0, 1, 4]
    expected = {"--wait", "--array=0-1", "--partition=cpu", "--time=04:00:00", "--mem-per-cpu=4G"}
    assert expected <= set(slurm.read_text().replace("#SBATCH ", "").splitlines())


def test_what_is_missing_is_said_in_one_line(tmp_path, monkeypatch):
    with pytest.raises(CorpusError, match="expected one of .*'datatrove', 'ray', 'slurm'.*, got 'dask'"):
        runner(tmp_path, "dask")
    with pytest.raises(CorpusError, match="expected partition=NAME"):
        runner(tmp_path, "slurm")
    monkeypatch.setattr(scale_out, "find_spec", lambda package: None)
    with pytest.raises(CorpusError, match=r"expected the package datatrove: pip install '\.\[cluster\]' in"):
        runner(tmp_path)
