"""Muon for the matrices of the layers, AdamW for all else, as one optimiser."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn


class MuonWithAdamW(torch.optim.Optimizer):
    """Two optimisers that step together; their groups keep learning rates of their own, which one scheduler scales.

    Args:
      model: its `layers` hold the matrices that Muon (Jordan et al. 2024) moves along orthogonal directions.
      muon_learning_rate: for these matrices; the size of a step is matched to AdamW's (Liu et al. 2025,
        arXiv:2502.16982).
      learning_rate, beta2: of AdamW, for biases, norms, embeddings and what stands outside the layers.
      weight_decay: of both.
    """

    def __init__(
        self, model: nn.Module, muon_learning_rate: float, learning_rate: float, weight_decay: float, beta2: float
    ) -> None:
        named = list(model.named_parameters())
        matrices = [weight for name, weight in named if _is_matrix_of_layer(name, weight)]
        others = [weight for name, weight in named if not _is_matrix_of_layer(name, weight)]
        self.parts: dict[str, torch.optim.Optimizer] = {
            "muon": Muon(matrices, muon_learning_rate, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw"),
            "adamw": torch.optim.AdamW(others, learning_rate, betas=(0.9, beta2), weight_decay=weight_decay),
        }
        super().__init__([*matrices, *others], {"lr": learning_rate})
        self.share_groups()

    def share_groups(self) -> None:
        """A scheduler that sets the rates of this optimiser's groups then sets those of its parts."""
        self.param_groups = [group for part in self.parts.values() for group in part.param_groups]

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = closure() if closure else None
        for part in self.parts.values():
            part.step()
        return loss

    def state_dict(self) -> dict[str, Any]:
        return {name: part.state_dict() for name, part in self.parts.items()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Raises ValueError for the state of another optimiser."""
        if set(state_dict) != set(self.parts):
            raise ValueError(f"expected the state of {sorted(self.parts)}, got {sorted(state_dict)}")
        for name, part in self.parts.items():
            part.load_state_dict(state_dict[name])
        self.share_groups()


class Muon(torch.optim.Muon):
    """torch's Muon, where all matrices of one shape are made orthogonal at once, in bf16 only where that is fast."""

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = closure() if closure else None
        for group in self.param_groups:
            moved = [weight for weight in group["params"] if weight.grad is not None]
            for shape in {tuple(weight.shape) for weight in moved}:
                self._move([weight for weight in moved if tuple(weight.shape) == shape], group)
        return loss

    def _move(self, weights: list[torch.Tensor], group: dict[str, Any]) -> None:
        for weight in weights:
            if not self.state[weight]:
                self.state[weight]["momentum_buffer"] = torch.zeros_like(weight.grad)
        momenta = [self.state[weight]["momentum_buffer"] for weight in weights]
        gradients = [weight.grad for weight in weights]
        torch._foreach_lerp_(momenta, gradients, 1 - group["momentum"])
        directions = torch._foreach_lerp(gradients, momenta, group["momentum"]) if group["nesterov"] else momenta
        orthogonal = orthogonalised(torch.stack(directions), group["ns_coefficients"], group["ns_steps"], group["eps"])
        torch._foreach_mul_(weights, 1 - group["lr"] * group["weight_decay"])
        size = 0.2 * math.sqrt(max(weights[0].shape))  # as `match_rms_adamw`
        torch._foreach_add_(weights, list(orthogonal), alpha=-group["lr"] * size)


def orthogonalised(matrices: torch.Tensor, coefficients: Sequence[float], steps: int, eps: float) -> torch.Tensor:
    """[..., rows, columns] → with singular values near one, by the Newton–Schulz iteration (Jordan et al. 2024)."""
    first, second, third = coefficients
    current = matrices.bfloat16() if has_fast_bf16(matrices.device) else matrices
    is_tall = current.shape[-2] > current.shape[-1]
    current = current.mT if is_tall else current
    current = current / current.norm(dim=(-2, -1), keepdim=True).clamp(min=eps)
    for _ in range(steps):
        gram = current @ current.mT
        current = first * current + (second * gram + third * gram @ gram) @ current
    return (current.mT if is_tall else current).to(matrices.dtype)


def has_fast_bf16(device: torch.device) -> bool:
    """Whether products in bf16 are faster than in float32: emulated ones are some twenty times slower."""
    return device.type != "cpu" or bool(torch.cpu.get_capabilities().get("avx512_bf16"))


def _is_matrix_of_layer(name: str, weight: torch.Tensor) -> bool:
    return weight.ndim == 2 and ".layers." in name
