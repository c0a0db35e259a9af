"""Frozen matrices in the order in which oneDNN multiplies few rows by them, which takes a CPU less time than a plain
product. They are for decoding, without gradient; what a packed matrix holds is oneDNN's own affair.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

ROUND_ROWS = 16
"""What the order is best for, good from 1 to 64 rows. Products have one row or a multiple of this: for every number of
rows, oneDNN compiles a kernel and keeps it, a millisecond and half a megabyte for each shape."""


@dataclass(frozen=True, slots=True)
class PackedLinear:
    """A linear layer, K inputs and N outputs, whose matrix is packed."""

    weight: Tensor
    """Nothing but a product can be made of it."""
    bias: Tensor | None

    @classmethod
    @torch.no_grad()
    def of(cls, weight: Tensor, bias: Tensor | None = None) -> PackedLinear | None:
        """A copy of a matrix (N x K) in its own precision; None where torch, or this processor, packs none."""
        if not torch.backends.mkldnn.is_available() or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
            return None
        try:
            return cls(torch.ops.mkldnn._reorder_linear_weight(weight.detach(), ROUND_ROWS), bias)
        except (AttributeError, RuntimeError):  # another torch, no kernel or memory for it, a plan's empty tensor
            return None

    def outputs(self, x: Tensor, onto: Tensor | None = None) -> Tensor:
        """What x (T x K) becomes (T x N), `onto` added."""
        missing = -len(x) % ROUND_ROWS if len(x) > 1 else 0
        if missing:
            x, onto = _filled(x, missing), None if onto is None else _filled(onto, missing)
        found: Tensor
        if onto is None:
            found = torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")
        else:
            found = torch.ops.mkldnn._linear_pointwise(x, onto, self.weight, self.bias, "add")
        return found[: len(found) - missing] if missing else found


def _filled(rows: Tensor, missing: int) -> Tensor:
    """With so many rows of zeros behind."""
    return nn.functional.pad(rows, (0, 0, 0, missing))
