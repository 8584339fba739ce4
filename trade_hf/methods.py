"""Run any decompiler on models, one after the other, in a process of its own: what it does costs one model at most.

A method is a function from a TracrWeights to RASP code, or None where it gives up; it is named MODULE:FUNCTION. It gets
the weights in a file, and nothing of the program. Run as a module, this file is the process.
"""

from __future__ import annotations

import contextlib
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

from trade_hf.compiled.weights import TracrWeights

LONGEST_ANSWER = 2_000_000  # bytes
LONGEST_CODE = 100_000
LONGEST_REASON = 200


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
        self.answers = -1

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
        answer, reason = self.answer(self.limits.start_seconds)
        if answer is None or "error" in answer:
            self.stop()
            raise MethodError(f"{self.name}: could not be started: {reason or (answer or {})['error']}")

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
        """What the method gives for the model in a file."""
        if self.process is None:
            self.start()
        assert self.process is not None and self.process.stdin is not None
        start = time.monotonic()
        with contextlib.suppress(BrokenPipeError):  # it ended since: the answer will say so
            self.process.stdin.write(f"{path}\n".encode())
            self.process.stdin.flush()
        answer, reason = self.answer(self.limits.seconds)
        seconds = time.monotonic() - start
        if answer is None:
            self.stop()
            return Outcome(None, reason, seconds)
        if "error" in answer:
            return Outcome(None, str(answer["error"]), seconds)
        return Outcome(answer["code"], None if answer["code"] is not None else "gave up", seconds)

    def answer(self, seconds: float) -> tuple[dict[str, Any] | None, str | None]:
        """One line of JSON, or the reason why there is none."""
        assert self.process is not None
        deadline, received = time.monotonic() + seconds, b""
        while b"\n" not in received:
            ready, _, _ = select.select([self.answers], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                return None, f"took more than {seconds:g} s"
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
        except ValueError:
            answer = None
        if not isinstance(answer, dict) or not answer.keys() & {"ready", "code", "error"}:
            return None, "gave something else than it was asked for"
        return answer, None


# ---------------------------------------------------------------- in the process


def serve(name: str, answers: IO[str], memory: int) -> None:
    """Import a method, then answer each line of standard input, the path of a model."""
    import resource

    def say(**answer: Any) -> None:
        answers.write(json.dumps(answer) + "\n")
        answers.flush()

    resource.setrlimit(resource.RLIMIT_DATA, (memory, memory))
    module, function = name.split(":")
    try:
        method = getattr(importlib.import_module(module), function)
    except Exception as error:
        say(error=_reason(error))
        return
    say(ready=True)
    for line in sys.stdin:
        say(**_answer(method, line.rstrip("\n")))


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
    from trade_hf.compiled.denoise import denoise
    from trade_hf.decompiler import spelled
    from trade_hf.rasp.text import to_text
    from trade_hf.search import lifted_programs

    program = next(lifted_programs(denoise(weights)), None)
    return None if program is None else to_text(spelled(program, weights))


if __name__ == "__main__":
    with os.fdopen(int(sys.argv[2]), "w") as channel:
        serve(sys.argv[1], channel, int(sys.argv[3]))
