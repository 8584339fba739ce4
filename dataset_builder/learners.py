"""Small transformers trained at once, each on a task of its own: one set of tensors with a leading axis of models.

The architecture, its names and shapes are those of TransformerLens' HookedTransformer, so
a model's tensors are its state dict. All models of a group have one architecture and one set of inputs. They differ in
their answers, in their first weights and in when they end.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from dataset_builder.architectures import EPS, Architecture
from dataset_builder.tasks import PAD, Task

INIT = 0.8  # of the usual scale 1 / sqrt(inputs)
HIDDEN = -1e9  # a logit of attention that is not to be


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": nn.functional.relu,
    "gelu": nn.functional.gelu,
    "gelu_new": lambda x: nn.functional.gelu(x, approximate="tanh"),
}


def shapes(architecture: Architecture, d_vocab: int, n_ctx: int, columns: int) -> dict[str, tuple[int, ...]]:
    """The tensors of one model."""
    heads, size, wide, mlp = architecture.n_heads, architecture.d_head, architecture.d_model, architecture.d_mlp
    found: dict[str, tuple[int, ...]] = {"embed.W_E": (d_vocab, wide), "pos_embed.W_pos": (n_ctx, wide)}
    for layer in range(architecture.n_layers):
        block = f"blocks.{layer}"
        for name in "QKV":
            found |= {f"{block}.attn.W_{name}": (heads, wide, size), f"{block}.attn.b_{name}": (heads, size)}
        found |= {f"{block}.attn.W_O": (heads, size, wide), f"{block}.attn.b_O": (wide,)}
        if mlp is not None:
            found |= {f"{block}.mlp.W_in": (wide, mlp), f"{block}.mlp.b_in": (mlp,)}
            found |= {f"{block}.mlp.W_out": (mlp, wide), f"{block}.mlp.b_out": (wide,)}
        if architecture.norm == "LN":
            for norm in ("ln1", *(["ln2"] if mlp is not None else [])):
                found |= {f"{block}.{norm}.w": (wide,), f"{block}.{norm}.b": (wide,)}
    if architecture.norm == "LN":
        found |= {"ln_final.w": (wide,), "ln_final.b": (wide,)}
    return found | {"unembed.W_U": (wide, columns), "unembed.b_U": (columns,)}


class Learners:
    """Models of one architecture: `tensors` by name, [model, …]."""

    def __init__(self, architecture: Architecture, tensors: dict[str, Tensor]) -> None:
        self.architecture, self.tensors = architecture, tensors

    @classmethod
    def new(cls, architecture: Architecture, d_vocab: int, n_ctx: int, columns: int, seeds: Sequence[int]) -> Learners:
        """With first weights by seed: normal, of 0.8 / sqrt(what is summed up); embeddings of 0.5; biases 0."""
        drawn: dict[str, list[Tensor]] = {}
        for seed in seeds:
            generator = torch.Generator().manual_seed(seed)
            for name, shape in shapes(architecture, d_vocab, n_ctx, columns).items():
                drawn.setdefault(name, []).append(_first(name, shape, generator))
        return cls(architecture, {name: torch.stack(parts) for name, parts in drawn.items()})

    def __call__(self, inputs: Tensor) -> Tensor:
        """Logits [model, input, position, column] of tokens [input, position], PAD after the end of an input."""
        t, real = self.tensors, inputs != PAD
        batch, length = inputs.shape
        hidden = ~real[:, None, None]  # [input, 1, 1, key]
        if self.architecture.is_causal:
            hidden = hidden | torch.ones(length, length, dtype=torch.bool).triu(1)
        x = t["embed.W_E"][:, inputs.clamp(min=0)] + t["pos_embed.W_pos"][:, None, :length]
        models = len(x)
        x = x.flatten(1, 2)  # [model, input · position, d_model]
        for layer in range(self.architecture.n_layers):
            block = f"blocks.{layer}"
            x = x + self._attend(f"{block}.attn", self._norm(f"{block}.ln1", x), hidden, (models, batch, length))
            if self.architecture.d_mlp is not None:
                y = torch.baddbmm(
                    t[f"{block}.mlp.b_in"][:, None], self._norm(f"{block}.ln2", x), t[f"{block}.mlp.W_in"]
                )
                y = ACTIVATIONS[self.architecture.act_fn](y)
                x = x + torch.baddbmm(t[f"{block}.mlp.b_out"][:, None], y, t[f"{block}.mlp.W_out"])
        x = torch.baddbmm(t["unembed.b_U"][:, None], self._norm("ln_final", x), t["unembed.W_U"])
        return x.unflatten(1, (batch, length))

    def _attend(self, name: str, x: Tensor, hidden: Tensor, sizes: tuple[int, int, int]) -> Tensor:
        """`hidden`: [input, 1, query or 1, key] keys that are not attended to."""
        t, (models, batch, length), heads = self.tensors, sizes, self.architecture.n_heads

        def read(part: str) -> Tensor:
            w, b = t[f"{name}.W_{part}"], t[f"{name}.b_{part}"]
            y = torch.baddbmm(b.flatten(1)[:, None], x, w.transpose(1, 2).flatten(2))
            return y.view(models, batch, length, heads, -1).transpose(2, 3)  # [model, input, head, position, d_head]

        query, key, value = map(read, "QKV")
        scores = (query @ key.mT).mul(query.shape[-1] ** -0.5).masked_fill(hidden, HIDDEN)
        z = (scores.softmax(-1) @ value).transpose(2, 3).reshape(models, batch * length, -1)
        return torch.baddbmm(t[f"{name}.b_O"][:, None], z, t[f"{name}.W_O"].flatten(1, 2))

    def _norm(self, name: str, x: Tensor) -> Tensor:
        if self.architecture.norm is None:
            return x
        x = x - x.mean(-1, keepdim=True)
        x = x * (x.square().mean(-1, keepdim=True) + EPS).rsqrt()
        if self.architecture.norm == "LNPre":
            return x
        return x * self.tensors[f"{name}.w"][:, None] + self.tensors[f"{name}.b"][:, None]

    def keep(self, models: list[int]) -> None:
        """Leave out all but these."""
        self.tensors = {name: part.detach()[models] for name, part in self.tensors.items()}

    def state(self, model: int) -> dict[str, np.ndarray]:
        """One model's tensors."""
        return {name: part[model].detach().numpy().copy() for name, part in self.tensors.items()}


def _first(name: str, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    kind = name.split(".")[-1]
    if kind.startswith("b"):
        return torch.zeros(shape)
    if kind == "w":
        return torch.ones(shape)
    if kind in ("W_E", "W_pos"):
        return 0.5 * torch.randn(shape, generator=generator)
    summed = math.prod(shape) // shape[-1] if kind == "W_O" else shape[-2]
    return INIT * summed**-0.5 * torch.randn(shape, generator=generator)


@dataclass(frozen=True)
class Schedule:
    """How models are trained: by AdamW, with gradients clipped by model. Every `check` steps all inputs are run; those
    models end that are right on all of them."""

    steps: int = 4_000
    batch: int = 192
    rate: float = 2e-3
    rise: int = 100  # steps in which the rate rises; it falls to a tenth over the second half
    weight_decay: float = 0.01
    clip: float = 1.0  # of the norm of a model's gradient
    check: int = 100


@dataclass(frozen=True)
class Learned:
    """A model at its end: its place in the group, its tensors, how many inputs are right, its smallest logit gap on all
    answers, and after how many steps it ended."""

    number: int
    tensors: dict[str, np.ndarray]
    right: int
    gap: float
    steps: int


def train(
    tasks: Sequence[Task], architecture: Architecture, seeds: Sequence[int], schedule: Schedule = Schedule()
) -> Iterator[Learned]:
    """Train one model for each task, of one kind of answer and over the same inputs; those that end first come first.

    Args:
      seeds: of the first weights, one a model; the order of batches follows the first.
    """
    first = tasks[0]
    if any(task.reads != first.reads or not np.array_equal(task.inputs, first.inputs) for task in tasks):
        raise ValueError("expected tasks over the same inputs, with answers of one kind")
    columns = max(task.columns for task in tasks)
    inputs, answers = torch.from_numpy(first.inputs), torch.stack([_wide(task, columns) for task in tasks])
    unused = torch.stack([torch.arange(columns) >= task.columns for task in tasks])
    learners = Learners.new(architecture, first.d_vocab, first.inputs.shape[1], columns, seeds)
    left = list(range(len(tasks)))
    optimizer = _optimizer(learners, schedule, {})
    generator = torch.Generator().manual_seed(seeds[0])
    for step in range(1, schedule.steps + 1):
        rows = torch.randint(len(inputs), (schedule.batch,), generator=generator)
        length = int((inputs[rows] != PAD).sum(1).max())
        logits = learners(inputs[rows, :length]).masked_fill(unused[:, None, None], HIDDEN)
        for parameter in learners.tensors.values():
            parameter.grad = None
        _loss(logits, answers[:, rows, :length], first.reads).backward()
        _clip(learners, schedule.clip)
        optimizer.param_groups[0]["lr"] = schedule.rate * _share_of_rate(step, schedule)
        optimizer.step()
        if step % schedule.check and step < schedule.steps:
            continue
        right, gaps = _score(learners, inputs, answers, unused, first.reads)
        ends = [i for i in range(len(left)) if right[i] == len(inputs) or step == schedule.steps]
        for i in ends:
            yield Learned(left[i], _narrow(learners.state(i), tasks[left[i]]), int(right[i]), float(gaps[i]), step)
        stay = [i for i in range(len(left)) if i not in ends]
        if not stay:
            return
        if ends:
            kept = {name: optimizer.state[part] for name, part in learners.tensors.items()}
            learners.keep(stay)
            left, answers, unused = [left[i] for i in stay], answers[stay], unused[stay]
            optimizer = _optimizer(learners, schedule, {n: _rows(state, stay) for n, state in kept.items()})


def _wide(task: Task, columns: int) -> Tensor:
    """A task's answers, with columns that it does not have as ones that are not asked for."""
    answers = torch.from_numpy(task.answers)
    return answers if task.reads == "argmax" else nn.functional.pad(answers, (0, columns - task.columns), value=PAD)


def _narrow(tensors: dict[str, np.ndarray], task: Task) -> dict[str, np.ndarray]:
    return {n: part[..., : task.columns] if n.startswith("unembed") else part for n, part in tensors.items()}


def _optimizer(learners: Learners, schedule: Schedule, state: dict[str, dict]) -> torch.optim.AdamW:
    for part in learners.tensors.values():
        part.requires_grad_()
    optimizer = torch.optim.AdamW(
        learners.tensors.values(), lr=schedule.rate, weight_decay=schedule.weight_decay, foreach=True
    )
    for name, kept in state.items():
        optimizer.state[learners.tensors[name]] = kept
    return optimizer


def _rows(state: dict, stay: list[int]) -> dict:
    return {name: value[stay] if value.ndim else value for name, value in state.items()}


def _share_of_rate(step: int, schedule: Schedule) -> float:
    left = (schedule.steps - step) / (schedule.steps / 2)
    return min(1.0, step / schedule.rise, 0.1 + 0.9 * left)


def _loss(logits: Tensor, answers: Tensor, reads: str) -> Tensor:
    """The sum over models of each one's mean; logits [model, input, position, column]."""
    if reads == "argmax":
        asked = answers != PAD
        losses = nn.functional.cross_entropy(
            logits.flatten(0, 2), answers.flatten(), ignore_index=PAD, reduction="none"
        )
        return (losses.view_as(answers).sum((1, 2)) / asked.sum((1, 2))).sum()
    asked = answers != PAD
    losses = nn.functional.binary_cross_entropy_with_logits(logits, answers.clamp(min=0).float(), reduction="none")
    return ((losses * asked).sum((1, 2, 3)) / asked.sum((1, 2, 3))).sum()


def _clip(learners: Learners, most: float) -> None:
    gradients = [part.grad for part in learners.tensors.values() if part.grad is not None]
    norms = torch.stack([gradient.flatten(1).square().sum(1) for gradient in gradients]).sum(0).sqrt()
    factors = most / norms.clamp(min=most)
    for gradient in gradients:
        gradient.mul_(factors.view(-1, *[1] * (gradient.ndim - 1)))


@torch.no_grad()
def _score(
    learners: Learners, inputs: Tensor, answers: Tensor, unused: Tensor, reads: str
) -> tuple[np.ndarray, np.ndarray]:
    """Of each model: how many inputs have all answers right, and the smallest logit gap: between the first and second
    column, or of any column from 0."""
    right, gaps = torch.zeros(len(answers), dtype=torch.long), torch.full((len(answers),), math.inf)
    for start in range(0, len(inputs), 2048):
        rows = slice(start, start + 2048)
        logits = learners(inputs[rows]).masked_fill(unused[:, None, None], HIDDEN)
        wanted = answers[:, rows]
        if reads == "argmax":
            asked = wanted != PAD
            correct = (logits.argmax(-1) == wanted) | ~asked
            best = logits.topk(2, -1).values
            gap = (best[..., 0] - best[..., 1]).masked_fill(~asked, math.inf)
            gaps = torch.minimum(gaps, gap.flatten(1).amin(1))
        else:
            asked = wanted != PAD
            correct = (((logits > 0) == (wanted == 1)) | ~asked).all(-1)
            gaps = torch.minimum(gaps, logits.abs().masked_fill(~asked, math.inf).flatten(1).amin(1))
        right += correct.all(-1).sum(1)
    return right.numpy(), gaps.numpy()
