"""Muon for the matrices of the layers, AdamW for all else, as one optimiser."""

from __future__ import annotations

from collections.abc import Callable
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
            "muon": torch.optim.Muon(
                matrices, muon_learning_rate, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw"
            ),
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


def _is_matrix_of_layer(name: str, weight: torch.Tensor) -> bool:
    return weight.ndim == 2 and ".layers." in name
