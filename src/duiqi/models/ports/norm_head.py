"""Baichuan2's output head: every token's row is scaled to unit length before it meets a hidden state."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

SMALLEST_NORM = 1e-12


class NormHead(nn.Linear):
    """logits = x Ŵᵀ with Ŵ[v] = W[v] / max(‖W[v]‖, 1e-12); x is not scaled.

    `weight` is W as it is stored, which training changes and saving keeps. Ŵ is computed anew whenever W learns, with
    the gradient through the scaling; of a frozen W it is kept, a second matrix of the same size.
    """

    def __init__(self, hidden_size: int, vocab_size: int) -> None:
        super().__init__(hidden_size, vocab_size, bias=False)
        self._kept: tuple[tuple[object, ...], Tensor] | None = None

    @classmethod
    def of(cls, linear: nn.Linear) -> NormHead:
        """A head on the weight of `linear`."""
        with torch.device("meta"):
            head = cls(linear.in_features, linear.out_features)
        head.weight = linear.weight
        return head

    def unit_rows(self) -> Float[Tensor, "V H"]:
        """Ŵ, in the precision of W."""
        weight = self.weight
        if weight.requires_grad:
            self._kept = None
            return _unit(weight)
        state = (weight.data_ptr(), weight._version, weight.dtype, weight.device)
        if self._kept is None or self._kept[0] != state:
            with torch.inference_mode(False), torch.no_grad():
                self._kept = (state, _unit(weight))
        return self._kept[1]

    def forward(self, hidden: Tensor) -> Tensor:
        """Logits ... x V of hidden states ... x H."""
        return nn.functional.linear(hidden, self.unit_rows())


def _unit(weight: Tensor) -> Tensor:
    wide = torch.promote_types(weight.dtype, torch.float32)
    norms = torch.linalg.vector_norm(weight, dim=-1, keepdim=True, dtype=wide)
    rows: Tensor = weight / norms.clamp(min=SMALLEST_NORM)
    return rows.to(weight.dtype)
