"""What a training run writes down: the learning curve, and where its time goes."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedModel, TrainerCallback

BACKWARD = 2  # a backward pass computes two products for each of the forward pass
MATMUL_SIZE = {"cuda": 8192, "cpu": 1024}


class TrainingLog(TrainerCallback):
    """One JSON line for each log of the trainer. Lines with a loss tell, of the steps since the last one:

    examples_per_second   of all processes together
    waiting_for_data      share of the time between the end of a step and the start of the next
                          (on a GPU also what it is still computing then)
    flop_utilisation      FLOPs of the model a second, over those of a large matrix product on the same device
    """

    def __init__(self, path: Path, examples_per_step: int, flops_per_example: float, peak: float) -> None:
        self.path, self.examples = path, examples_per_step
        self.flops, self.peak = flops_per_example, peak
        self.steps, self.waited, self.since, self.ended = 0, 0.0, time.perf_counter(), time.perf_counter()

    def on_train_begin(self, args, state, control, **kwargs) -> None:
        self.since = self.ended = time.perf_counter()

    def on_step_begin(self, args, state, control, **kwargs) -> None:
        self.waited += time.perf_counter() - self.ended

    def on_step_end(self, args, state, control, **kwargs) -> None:
        self.steps, self.ended = self.steps + 1, time.perf_counter()

    def on_evaluate(self, args, state, control, **kwargs) -> None:
        self.start_over()

    def on_save(self, args, state, control, **kwargs) -> None:
        self.ended = time.perf_counter()

    def start_over(self) -> None:
        self.steps, self.waited, self.since = 0, 0.0, time.perf_counter()
        self.ended = self.since

    def on_log(self, args, state, control, logs=None, **kwargs) -> None:
        if not state.is_world_process_zero or not logs:
            return
        row: dict[str, Any] = {"step": state.global_step, **logs}
        if "loss" in logs and self.steps:
            seconds = time.perf_counter() - self.since
            rate = self.examples * self.steps / seconds
            row["examples_per_second"] = round(rate, 2)
            row["waiting_for_data"] = round(self.waited / seconds, 4)
            row["flop_utilisation"] = round(rate * self.flops / self.peak, 4)
            self.start_over()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")


def flops_per_example(model: PreTrainedModel, batch: dict[str, torch.Tensor]) -> float:
    """FLOPs of one training step for one example of a batch, padding counted."""
    counter, attention = FlopCounterMode(display=False), model.config._attn_implementation
    model.set_attn_implementation("eager")  # of the fused one nothing is counted on a CPU
    with torch.no_grad(), counter:
        model(**batch)
    model.set_attn_implementation(attention)
    return counter.get_total_flops() * (1 + BACKWARD) / len(batch["labels"])


def matmul_peak(device: torch.device, dtype: torch.dtype, processes: int = 1) -> float:
    """FLOPs a second of a large matrix product, the best of ten, times the number of processes."""
    size = MATMUL_SIZE.get(device.type, 1024)
    one = torch.ones(size, size, device=device, dtype=dtype)
    best = float("inf")
    for _ in range(10):
        start = time.perf_counter()
        float((one @ one)[0, 0])  # waits for the result
        best = min(best, time.perf_counter() - start)
    return processes * 2 * size**3 / best
