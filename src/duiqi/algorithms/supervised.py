"""The loss of supervised fine-tuning and pretraining."""

from __future__ import annotations

from jaxtyping import Bool, Float
from torch import Tensor

from duiqi.algorithms.loss import Loss
from duiqi.algorithms.masked import masked_sum


def cross_entropy_loss(log_probs: Float[Tensor, "B T"], mask: Bool[Tensor, "B T"]) -> Loss:
    """Summed negative log-likelihood of the learned tokens; its weight is their number.

    Args:
        log_probs: Log-probability of each token given those before it.
        mask: True at the tokens that are learned.
    """
    return Loss(total=-masked_sum(log_probs, mask), weight=mask.sum().to(log_probs.dtype))
