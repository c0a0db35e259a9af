"""Heads of one output on the trunk's hidden states: the score of a reward model, the value of a critic."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class ScalarHead(nn.Linear):
    """A linear map from hidden states to one number, without bias, in float32 (as `score` in transformers)."""

    def __init__(self, hidden_size: int, *, device: torch.device) -> None:
        super().__init__(hidden_size, 1, bias=False, device=device, dtype=torch.float32)

    def reset_to_zero(self) -> None:
        nn.init.zeros_(self.weight)

    def forward(self, hidden: Tensor) -> Tensor:
        """Numbers of shape hidden.shape[:-1]."""
        return super().forward(hidden.float()).squeeze(-1)
