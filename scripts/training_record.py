"""What a model was trained with: `training.json`, in a run's folder from its start and beside each model made of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from records import environment

from trade_hf.files import write_text

NAME = "training.json"


def begin(run: Path, made_with: dict[str, Any], step: int, examples_per_step: int, device: torch.device) -> None:
    """Write down that a run is started: from scratch, or again from the checkpoint of a step.

    Args:
      made_with: the config, where the data is from, the record of the model that the weights are from.
      step: how many were taken before. Calls that began later left nothing that is gone on from.
    """
    path = run / NAME
    earlier = json.loads(path.read_text())["calls"] if path.is_file() else []
    call = {"from_step": step, "examples_per_step": examples_per_step, **environment(device)}
    calls = [*(one for one in earlier if one["from_step"] < step), call]
    run.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps({**made_with, "calls": calls}, indent=2) + "\n")


def record_at(run: Path, step: int) -> dict[str, Any]:
    """The record of a run's model after so many steps, with how many examples that was (None where no call says so).

    Raises FileNotFoundError for a folder without `training.json`.
    """
    record = json.loads((run / NAME).read_text())
    calls = [call for call in record["calls"] if call["from_step"] <= step]
    ends = [*(call["from_step"] for call in calls[1:]), step]
    seen = sum((end - call["from_step"]) * call["examples_per_step"] for call, end in zip(calls, ends, strict=True))
    return {**record, "calls": calls, "steps": step, "examples": seen if calls and calls[0]["from_step"] == 0 else None}


def steps_of(folder: Path) -> int:
    """Of a model's record, or of a trainer's checkpoint. Raises OSError, ValueError or KeyError where neither is."""
    if (folder / NAME).is_file():
        return json.loads((folder / NAME).read_text())["steps"]
    return json.loads((folder / "trainer_state.json").read_text())["global_step"]
