"""Limits of a search. Steps are counted, so that the same input gives the same result on any machine, busy or not.

The wall clock is a limit only where the caller sets it. A step is a look at one way to read the weights, or other work
that takes about as long: some 0.1 ms on one core of 2024.
"""

from __future__ import annotations

import math
import time
from enum import Enum

MULTIPLICATIONS = 2_000_000  # in a step, of a compiled model's forward pass
TOKEN = 25  # steps for a token that the network writes, of up to 8 programs together


class EndedBy(Enum):
    """Why a search ended."""

    FOUND = "found"  # the model's own program
    SETTLED = "settled"  # a program that does the same was found, and none of some further ones is the model's own
    CANDIDATES = "candidates"  # as many as were asked for
    REFUTED = "refuted"  # none of the first ones is anything like the model
    STEPS = "steps"
    TIME = "time"
    EXHAUSTED = "exhausted"  # there are no more candidates


class LimitError(Exception):
    """A search has come to one of its limits, `ended_by`."""

    def __init__(self, ended_by: EndedBy) -> None:
        super().__init__(ended_by.value)
        self.ended_by = ended_by


class GaveUpError(Exception):
    """A part of a search took all the steps that are for it; the search goes on without it."""


class Limits:
    """What is left of a search's steps and of its time.

    Args:
      steps: of the whole search.
      seconds: of the wall clock, from now on; None: as long as the steps take.
    """

    def __init__(self, steps: float = math.inf, seconds: float | None = None) -> None:
        self.steps = steps
        self.end = math.inf if seconds is None else time.monotonic() + seconds  # of time.monotonic()

    def spend(self, steps: float) -> None:
        """Count steps that are taken, whatever is left."""
        self.steps -= steps

    def check(self) -> None:
        """Raises LimitError once a limit is reached."""
        if self.steps < 0:
            raise LimitError(EndedBy.STEPS)
        if time.monotonic() > self.end:
            raise LimitError(EndedBy.TIME)


class Patience:
    """Called at each step of a part of a search. Raises GaveUpError once the part's own steps are taken, LimitError
    once those of the whole search are, or its time."""

    def __init__(self, steps: int, limits: Limits | None = None) -> None:
        self.left, self.limits = steps, limits or Limits()

    def __call__(self) -> None:
        self.left -= 1
        self.limits.spend(1)
        self.limits.check()
        if self.left < 0:
            raise GaveUpError
