"""The handler for Inference Endpoints: JSON in, JSON out; it goes to the Hub beside the checkpoint (`remote_code.py`).

In:  {"inputs": "<a safetensors file in base64>", "parameters": {"max_candidates": 200, "budget_seconds": 20}}
     or a list of such files as "inputs"; "parameters" may be left out.
Out: {"code": …, "status": …, "proven": …, "certificate": …, "score": …}, or a list of these.

Bad input raises ValueError with one line; Hugging Face's inference toolkit answers any exception with status 400 and
{"error": "<that line>"}. A process of its own loads the checkpoint's pipeline once, on the CPU, and forks for each
request: what runs too long or takes too much memory is ended by the kernel, and nothing of it stays behind.
"""

from __future__ import annotations

import base64
import binascii
import gc
import json
import os
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any

TASK = "rasp-decompilation"
MAX_INPUTS = 16  # of one request
MAX_BYTES = 16_000_000  # of all files of one request
MAX_CANDIDATES = 200
TIME_LIMIT = 30.0  # seconds that a request may run
WAIT_LIMIT = 60.0  # seconds that it may wait for others
MEMORY_LIMIT = 4 * 2**30  # bytes of address space that a request may take
SEARCH_SHARE = 0.8  # of the time limit


class Worker:
    """A process that answers one request at a time, while the others wait.

    Args:
      command: starts it. It prints a line when it is ready, and then for each line of JSON one or more, of which only
        the last holds no `progress`.
      name: of what it loads, for errors.
      wait_limit: seconds that a request may wait for others.
    """

    def __init__(self, command: Sequence[str], name: str, wait_limit: float = WAIT_LIMIT) -> None:
        self.command, self.name, self.wait_limit = command, name, wait_limit
        self.turn = threading.Lock()
        self.worker: subprocess.Popen[bytes] | None = None
        self._start()

    def ask(self, request: dict[str, Any], hear: Callable[[str], object] = str) -> Any:
        """The result of a request; `hear` is called with the name of each step.

        Raises ValueError for a bad or too heavy request, TimeoutError when too many wait, RuntimeError where the
        process had ended.
        """
        if not self.turn.acquire(timeout=self.wait_limit):
            raise TimeoutError(f"busy: the request waited for {self.wait_limit:g} s; try again later")
        try:
            answer = self._exchange(request, hear)
        finally:
            self.turn.release()
        if "error" in answer:
            raise ValueError(answer["error"])
        return answer["result"]

    def close(self) -> None:
        """End the process."""
        if self.worker is not None:
            self.worker.kill()
            self.worker.communicate()
            self.worker = None

    def _start(self) -> subprocess.Popen[bytes]:
        self.worker = worker = subprocess.Popen(self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        if worker.stdout is None or not worker.stdout.readline():
            self.close()
            raise RuntimeError(f"{self.name}: the model could not be loaded")
        return worker

    def _exchange(self, request: dict[str, Any], hear: Callable[[str], object]) -> dict[str, Any]:
        worker = self.worker or self._start()  # it may have ended, and not have started again
        requests, answers = worker.stdin, worker.stdout
        assert requests is not None and answers is not None
        try:
            write(requests, request)
            while "progress" in (answer := json.loads(answers.readline())):
                hear(answer["progress"])
            return answer
        except (BrokenPipeError, json.JSONDecodeError):
            self.close()
            self._start()
            raise RuntimeError("the worker had ended and was started again: send the request once more") from None


class EndpointHandler(Worker):
    """What Inference Endpoints call."""

    def __init__(self, path: str = "", time_limit: float = TIME_LIMIT, wait_limit: float = WAIT_LIMIT) -> None:
        self.time_limit = time_limit
        command = [sys.executable, "-P", str(Path(__file__).resolve()), path, str(time_limit)]
        super().__init__(command, path, wait_limit)

    def __call__(self, data: Any) -> Any:
        """The answer to a request. Raises ValueError for a bad or too heavy one, TimeoutError when too many wait."""
        results = self.ask(check(data, self.time_limit))
        return results if isinstance(data["inputs"], list) else results[0]


def check(data: Any, time_limit: float = TIME_LIMIT) -> dict[str, Any]:
    """What the worker is asked; raises ValueError with one line that says what was expected and what came."""
    if not isinstance(data, dict) or "inputs" not in data:
        raise ValueError('expected a JSON object with the key "inputs"')
    files = data["inputs"] if isinstance(data["inputs"], list) else [data["inputs"]]
    if not 0 < len(files) <= MAX_INPUTS:
        raise ValueError(f"inputs: expected 1 to {MAX_INPUTS} files, got {len(files):,}")
    for place, file in enumerate(files):
        if not isinstance(file, str):
            raise ValueError(f"inputs[{place}]: expected a safetensors file in base64, got {type(file).__name__}")
    size = sum(map(len, files)) * 3 // 4
    if size > MAX_BYTES:
        raise ValueError(f"inputs: expected at most {MAX_BYTES:,} bytes, got {size:,}")
    return {"inputs": files, "parameters": _parameters(data.get("parameters"), SEARCH_SHARE * time_limit / len(files))}


def _parameters(given: Any, seconds: float) -> dict[str, float]:
    """What was given, within bounds; `seconds` are there for each file."""
    given = {} if given is None else given
    bounds = {"max_candidates": MAX_CANDIDATES, "budget_seconds": seconds}
    if not isinstance(given, dict) or given.keys() - bounds.keys():
        raise ValueError(f"parameters: expected an object with some of {', '.join(bounds)}")
    for name, value in given.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
            raise ValueError(f"parameters: expected a number above 0 for {name}")
    candidates = max(1, int(min(given.get("max_candidates", MAX_CANDIDATES), MAX_CANDIDATES)))
    return {"max_candidates": candidates, "budget_seconds": min(given.get("budget_seconds", seconds), seconds)}


# ---------------------------------------------------------------- the worker


def work(path: str, time_limit: float, requests: IO[bytes], answers: IO[bytes]) -> None:
    """Answer each line of JSON by one, until nothing comes any more."""
    import torch
    from transformers import pipeline

    torch.set_num_threads(1)  # threads do not survive a fork
    decompile = pipeline(TASK, model=path, trust_remote_code=True, device="cpu")
    decompile(_smallest_model())  # imports and builds what every request needs
    answer_each(lambda request, answers: _answer(decompile, request), time_limit, requests, answers)


def answer_each(
    answer: Callable[[dict[str, Any], IO[bytes]], dict[str, Any]],
    time_limit: float,
    requests: IO[bytes],
    answers: IO[bytes],
) -> None:
    """Answer each line of JSON in a process of its own, until nothing comes any more; `answer` may itself write
    {"progress": …} before."""
    gc.freeze()  # the children share what is there; a collector that looks at it would copy it
    write(answers, {"ready": True})
    for line in requests:
        child = os.fork()
        if child == 0:
            _limit(time_limit)
            result = answer(json.loads(line), answers)
            signal.setitimer(signal.ITIMER_REAL, 0)
            write(answers, result)
            os._exit(0)
        status = os.waitpid(child, 0)[1]
        if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGALRM:
            write(answers, {"error": f"the request ran for more than {time_limit:g} s: send fewer or smaller models"})
        elif status:
            write(answers, {"error": "decompiling failed, perhaps for want of memory: send smaller models"})


def _limit(time_limit: float) -> None:
    """Have the kernel end this process in time (SIGALRM, which nobody handles), and refuse it memory."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    memory = pages * resource.getpagesize() + MEMORY_LIMIT
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    signal.setitimer(signal.ITIMER_REAL, time_limit)


def _answer(decompile: Any, request: dict[str, Any]) -> dict[str, Any]:
    results = []
    for place, file in enumerate(request["inputs"]):
        try:
            results.append(decompile(base64.b64decode(file, validate=True), **request["parameters"]))
        except binascii.Error as error:
            return {"error": f"inputs[{place}]: expected base64: {error}"}
        except ValueError as error:
            return {"error": f"inputs[{place}]: {' '.join(str(error).split())}"}
    return {"result": results}


def _smallest_model() -> dict[str, Any]:
    """A model of one token and one direction, with weights of zero."""
    import numpy as np

    parts = ("attn/key", "attn/query", "attn/value", "attn/linear", "mlp/linear_1", "mlp/linear_2")
    zero = {f"transformer/layer_0/{part}": np.zeros((1, 1), np.float32) for part in parts}
    return {
        **{f"{name}/w": weights for name, weights in zero.items()},
        **{f"{name}/b": weights[0] for name, weights in zero.items()},
        "token_embed/embeddings": np.zeros((3, 1), np.float32),
        "pos_embed/embeddings": np.zeros((2, 1), np.float32),
        "unembed/w": np.zeros((1, 1), np.float32),
        "vocab": [0, "compiler_bos", "compiler_pad"],
        "max_seq_len": 1,
        "num_heads": 1,
        "output_encoding": "categorical",
        "output_values": [0],
    }


def write(stream: IO[bytes], message: dict[str, Any]) -> None:
    """A line of JSON."""
    stream.write(json.dumps(message).encode() + b"\n")
    stream.flush()


def stream_of_answers() -> IO[bytes]:
    """Standard output as it was; what libraries print goes to standard error from now on: it is no answer."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    return answers


if __name__ == "__main__":
    work(sys.argv[1], float(sys.argv[2]), sys.stdin.buffer, stream_of_answers())
