"""Finding the first quantity that is not a number."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor


def first_non_finite(named: Iterable[tuple[str, Tensor]]) -> str | None:
    """A sentence about the first tensor that holds nan or inf, or None when all are finite.

    >>> first_non_finite([("loss", torch.tensor(1.0)), ("values", torch.tensor([0.0, float("nan")]))])
    'values: 1 of 2 numbers are nan or inf (1 nan, 0 inf)'
    """
    for name, tensor in named:
        finite = torch.isfinite(tensor)
        if bool(finite.all()):
            continue
        nans = int(torch.isnan(tensor).sum())
        bad = int((~finite).sum())
        return f"{name}: {bad} of {tensor.numel()} numbers are nan or inf ({nans} nan, {bad - nans} inf)"
    return None
