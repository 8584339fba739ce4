"""Run any decompiler on models, one after the other, in a process of its own: what it does costs one model at most.

A method is a function from a TracrWeights to RASP code, or None where it gives up; it is named MODULE:FUNCTION. It gets
the weights in a file, and nothing of the program. Run as a module, this file is the process.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import psutil

from trade_hf.compiled.weights import TracrWeights

LONGEST_ANSWER = 2_000_000  # bytes
LONGEST_CODE = 100_000
LONGEST_REASON = 200
POLL_SECONDS = 0.2
MEMORY_IN_ALL = 2  # times the limit of one process: of all that it started together, shared memory with each of them
PR_SET_PDEATHSIG = 1  # linux/prctl.h


@dataclass(frozen=True)
class Limits:
    """Of one model: seconds and bytes of memory; and seconds to import the method."""

    seconds: float = 30.0
    memory: int = 4 << 30
    start_seconds: float = 120.0


@dataclass(frozen=True)
class Outcome:
    """What a method gave for one model: code, or the reason why there is none; and the seconds it took."""

    code: str | None
    reason: str | None
    seconds: float


class MethodError(ValueError):
    """A method that cannot be started."""


class Method:
    """A method's process, which is started again after it came to harm. Use it as a context."""

    def __init__(self, name: str, limits: Limits = Limits()) -> None:
        if name.count(":") != 1 or not all(name.split(":")):
            raise MethodError(f"expected a method as MODULE:FUNCTION, got {name!r}")
        self.name, self.limits = name, limits
        self.process: subprocess.Popen | None = None
        self.answers, self.asked, self.served = -1, 0, 0  # the pipe; models in all, and by this process

    def __enter__(self) -> Method:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Raises MethodError if it cannot be imported in time."""
        self.answers, theirs = os.pipe()
        command = [sys.executable, "-m", "trade_hf.methods", self.name, str(theirs), str(self.limits.memory)]
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=[theirs],
            start_new_session=True,
        )
        os.close(theirs)
        self.served = 0
        _, reason = self.answer(0, self.limits.start_seconds)
        if reason is not None:
            self.stop()
            raise MethodError(f"{self.name}: could not be started: {reason}")

    def stop(self) -> None:
        """Kill it with all that it started."""
        if self.process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        if self.process.stdin is not None:
            with contextlib.suppress(OSError):
                self.process.stdin.close()
        os.close(self.answers)
        self.process = None

    def run(self, path: Path) -> Outcome:
        """What the method gives for the model in a file. Where it fails in a process that has served before, that may
        be the cause, so it is asked once more in a fresh one."""
        served = self.served if self.process is not None else 0
        outcome = self.ask(path)
        if self.process is None and served and outcome.reason != _late(self.limits.seconds):
            return self.ask(path)
        return outcome

    def ask(self, path: Path) -> Outcome:
        """As `run`, once. The process is ended if it gave no answer."""
        try:
            if self.process is None:
                self.start()
        except MethodError as error:
            return Outcome(None, str(error), 0.0)
        start = time.monotonic()
        assert self.process is not None and self.process.stdin is not None
        self.asked += 1
        with contextlib.suppress(BrokenPipeError):  # it ended since: the answer will say so
            self.process.stdin.write(f"{self.asked} {path}\n".encode())
            self.process.stdin.flush()
        code, reason = self.answer(self.asked, self.limits.seconds)
        self.served += 1
        if reason is not None:
            self.stop()
        return Outcome(code, reason or ("gave up" if code is None else None), time.monotonic() - start)

    def answer(self, number: int, seconds: float) -> tuple[str | None, str | None]:
        """The code that answers a request, and the reason if there is no answer."""
        assert self.process is not None
        deadline, received = time.monotonic() + seconds, b""
        while b"\n" not in received:
            left = max(0.0, deadline - time.monotonic())
            ready, _, _ = select.select([self.answers], [], [], min(left, POLL_SECONDS))
            if not ready:
                if not left:
                    return None, _late(seconds)
                if _memory_of_group(self.process.pid) > MEMORY_IN_ALL * self.limits.memory:
                    return None, f"took more than {MEMORY_IN_ALL * self.limits.memory / 2**30:g} GB in all"
                continue
            part = os.read(self.answers, 1 << 16)
            if not part:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self.process.wait(1)
                return None, f"ended with status {self.process.poll()}"
            received += part
            if len(received) > LONGEST_ANSWER:
                return None, "gave more than it was asked for"
        try:
            answer = json.loads(received)
        except (ValueError, RecursionError):
            answer = None
        if not isinstance(answer, dict) or answer.get("number") != number:
            return None, "gave something else than it was asked for"
        code, error = answer.get("code"), answer.get("error")
        if not isinstance(code, str | None) or not isinstance(error, str | None):
            return None, "gave something else than it was asked for"
        return code, error


def _late(seconds: float) -> str:
    return f"took more than {seconds:g} s"


def _memory_of_group(group: int) -> int:
    """Bytes that the processes of a group hold."""
    total = 0
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, ProcessLookupError):
            if os.getpgid(process.pid) == group:
                total += process.memory_info().rss
    return total


# ---------------------------------------------------------------- in the process


def serve(name: str, answers: IO[str], memory: int) -> None:
    """Import a method, then answer each line of standard input, a number and the path of a model."""
    import resource

    def say(**answer: Any) -> None:
        answers.write(json.dumps(answer) + "\n")
        answers.flush()

    _end_with_parent()
    resource.setrlimit(resource.RLIMIT_DATA, (memory, memory))
    module, function = name.split(":")
    try:
        method = getattr(importlib.import_module(module), function)
    except Exception as error:
        say(number=0, error=_reason(error))
        return
    say(number=0)
    for line in sys.stdin:
        number, _, path = line.rstrip("\n").partition(" ")
        say(number=int(number), **_answer(method, path))


def _end_with_parent() -> None:
    """Be killed when the process that started this one ends, however it does."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _answer(method: Callable[[TracrWeights], str | None], path: str) -> dict[str, Any]:
    try:
        code = method(TracrWeights.load(path))
    except BaseException as error:
        return {"error": _reason(error)}
    if code is not None and not isinstance(code, str):
        return {"error": f"expected code as a string or None, got {type(code).__name__}"}
    if code is not None and len(code) > LONGEST_CODE:
        return {"error": f"expected at most {LONGEST_CODE:,} characters of code, got {len(code):,}"}
    return {"code": code}


def _reason(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:LONGEST_REASON]


# ---------------------------------------------------------------- our own


def shipped(weights: TracrWeights) -> str:
    """TraDe itself, with the checkpoint that ships."""
    from trade_hf.decompiler import decompile

    return decompile(weights).code


def network(weights: TracrWeights) -> str | None:
    """The network of the checkpoint that ships, alone: its greedy program."""
    from trade_hf.decompiler import DEFAULT_CHECKPOINT

    return greedy_code(weights, DEFAULT_CHECKPOINT)


def greedy_code(weights: TracrWeights, checkpoint: Path) -> str | None:
    """The greedy program of a checkpoint."""
    from trade_hf.decompiler import load_model, spelled
    from trade_hf.rasp.text import to_text
    from trade_hf.search import greedy_programs

    [candidate] = greedy_programs([weights], load_model(checkpoint))
    return None if candidate is None else to_text(spelled(candidate.program, weights))


def lifted(weights: TracrWeights) -> str | None:
    """No network: the first program that is read from the weights."""
    from trade_hf.candidates import lifted_programs
    from trade_hf.circuit.denoise import denoise
    from trade_hf.decompiler import spelled
    from trade_hf.rasp.text import to_text

    program = next(lifted_programs(denoise(weights)), None)
    return None if program is None else to_text(spelled(program, weights))


if __name__ == "__main__":
    with os.fdopen(int(sys.argv[2]), "w") as channel:
        serve(sys.argv[1], channel, int(sys.argv[3]))
