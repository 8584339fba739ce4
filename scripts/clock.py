"""Training by wall-clock minutes: how many steps they hold shows only on the machine."""

from __future__ import annotations

import json
import time
from pathlib import Path

import torch
from accelerate.utils import broadcast
from transformers import TrainerCallback

RISE = 0.03  # of the time, in which the learning rate rises
SPENT = "seconds.json"  # beside a checkpoint
ENDLESS = 10**9  # steps


def spent_until(checkpoint: str) -> float:
    """Seconds; raises SystemExit for a checkpoint of a run that did not go by the clock."""
    path = Path(checkpoint) / SPENT
    if not path.is_file():
        raise SystemExit(f"train: {path}: not there; a run that was begun by steps goes on by steps")
    return json.loads(path.read_text())


class Clock(TrainerCallback):
    """Ends a run after `minutes` in all, evaluations among them, or this call of it after `call_minutes`.

    A run that is started again goes on with the time that its checkpoint had left.

    Args:
      minutes: of the whole run.
      device: of the model; all processes go by the clock of the first.
      call_minutes: of this call; it ends with a checkpoint. None: as long as the run takes.
      checkpoint: that the run goes on from.
      fall: the last share of the time, in which the learning rate falls to 0.
    """

    def __init__(
        self,
        minutes: float,
        device: torch.device,
        call_minutes: float | None,
        checkpoint: str | None,
        fall: float,
    ) -> None:
        self.total, self.device, self.fall = 60 * minutes, device, fall
        self.before = spent_until(checkpoint) if checkpoint else 0.0
        self.call = 60 * call_minutes if call_minutes else float("inf")
        self.begun, self.spent = time.monotonic(), self.before

    @property
    def is_over(self) -> bool:
        """Whether the whole run is."""
        return self.spent >= self.total

    def factor(self, step: int) -> float:
        """Of the learning rate."""
        share = self.spent / self.total
        return max(0.0, min(1.0, share / RISE, (1 - share) / self.fall))

    def on_step_end(self, args, state, control, **kwargs) -> None:
        self.spent = self.before + time.monotonic() - self.begun
        if args.world_size > 1:
            self.spent = float(broadcast(torch.tensor(self.spent, device=self.device)))
        if self.is_over or self.spent - self.before >= self.call:
            control.should_training_stop = control.should_save = True
        if control.should_save and state.is_world_process_zero:  # before the rest: no checkpoint is whole without it
            folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            folder.mkdir(parents=True, exist_ok=True)
            (folder / SPENT).write_text(json.dumps(round(self.spent, 1)))
