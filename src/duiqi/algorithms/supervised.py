"""The loss of supervised fine-tuning and pretraining."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from duiqi.algorithms.loss import Loss


def cross_entropy_loss(log_probs: Float[Tensor, " N"]) -> Loss:
    """Summed negative log-likelihood of the learned tokens; its weight is their number.

    Args:
        log_probs: Log-probability of each learned token given those before it.
    """
    return Loss(total=-log_probs.sum(), weight=log_probs.new_tensor(len(log_probs)))
