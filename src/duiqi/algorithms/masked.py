"""Sums, means and whitening over the tokens that count."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

EPSILON = 1e-8


def masked_sum(values: Float[Tensor, "*shape"], mask: Bool[Tensor, "*shape"]) -> Float[Tensor, ""]:
    """The sum over True positions; what stands elsewhere does not matter, nan included."""
    return torch.where(mask, values, 0.0).sum()


def masked_row_sums(values: Float[Tensor, "B T"], mask: Bool[Tensor, "B T"]) -> Float[Tensor, " B"]:
    """The sum of each row over its True positions."""
    return torch.where(mask, values, 0.0).sum(dim=1)


def masked_mean(values: Float[Tensor, "*shape"], mask: Bool[Tensor, "*shape"]) -> Float[Tensor, ""]:
    """The mean over True positions; 0 when there is none.

    >>> float(masked_mean(torch.tensor([1.0, 3.0, 9.0]), torch.tensor([True, True, False])))
    2.0
    """
    return masked_sum(values, mask) / mask.sum().clamp(min=1)


def masked_variance(values: Float[Tensor, "*shape"], mask: Bool[Tensor, "*shape"]) -> Float[Tensor, ""]:
    """The unbiased variance over True positions (divided by n - 1); 0 for fewer than two."""
    mean = masked_mean(values, mask)
    return masked_sum((values - mean) ** 2, mask) / (mask.sum() - 1).clamp(min=1)


def whiten(values: Float[Tensor, "B T"], mask: Bool[Tensor, "B T"], *, shift_mean: bool = True) -> Float[Tensor, "B T"]:
    """Values with variance 1, and mean 0 unless `shift_mean` is False, over the True positions; 0 elsewhere."""
    mean = masked_mean(values, mask)
    centred = (values - mean) * (masked_variance(values, mask) + EPSILON).rsqrt()
    return torch.where(mask, centred if shift_mean else centred + mean, 0.0)


def explained_variance(
    values: Float[Tensor, "B T"], returns: Float[Tensor, "B T"], mask: Bool[Tensor, "B T"]
) -> Float[Tensor, ""]:
    """1 - Var(returns - values) / Var(returns): 1 for a perfect critic, 0 for a constant, negative for worse.

    0 too when the returns do not vary, for then there is nothing to explain.
    """
    variance = masked_variance(returns, mask)
    explained = 1.0 - masked_variance(returns - values, mask) / (variance + EPSILON)
    return torch.where(variance > EPSILON, explained, 0.0)
