"""What one pass of the trunk leaves: hidden states, and where in them to look."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Reading:
    """Hidden states of a batch, and where in them the stages look."""

    hidden: Float[Tensor, "M H"]
    _before: Int[Tensor, " N"]
    _last: Int[Tensor, " B"]

    @property
    def before(self) -> Float[Tensor, "N H"]:
        """The states that predict the learned tokens."""
        return self.hidden[self._before]

    @property
    def last(self) -> Float[Tensor, "B H"]:
        """The state at the end of every sequence."""
        return self.hidden[self._last]


def last_token(hidden: Float[Tensor, "B T H"], attention_mask: Bool[Tensor, "B T"]) -> Float[Tensor, "B H"]:
    """The hidden state at each row's last real token, whichever side the padding is on."""
    positions = torch.arange(attention_mask.shape[1], device=attention_mask.device)
    last = (positions * attention_mask).argmax(dim=1)
    return hidden[torch.arange(len(hidden), device=hidden.device), last]
