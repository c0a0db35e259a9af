"""The loss that learns from single answers that were liked or not: KTO."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from duiqi.algorithms.loss import Loss, WeightedSum


@dataclass(frozen=True)
class LikedLogProbs:
    """Summed log-probabilities of B answers, and which of them were liked."""

    policy: Float[Tensor, " B"]
    reference: Float[Tensor, " B"]
    liked: Bool[Tensor, " B"]

    @property
    def log_ratio(self) -> Float[Tensor, " B"]:
        """How much likelier an answer is to the policy than to the reference, in nats."""
        return self.policy - self.reference


def kto_loss(
    answers: LikedLogProbs, *, beta: float, baseline: Float[Tensor, ""], liked_weight: float, disliked_weight: float
) -> Loss:
    """w_liked (1 - sigmoid(beta (r - z0))), or w_disliked (1 - sigmoid(beta (z0 - r))), r = log policy / reference.

    Ethayarajh et al. 2024, equation 8. `baseline` is z0, in nats and without a gradient (`kto_baseline`). The mean is
    over all answers, whatever they weigh, as in TRL.
    """
    log_ratio, liked = answers.log_ratio, answers.liked
    z = beta * (log_ratio - baseline)
    losses = torch.where(liked, liked_weight * (1.0 - z.sigmoid()), disliked_weight * (1.0 - (-z).sigmoid()))
    count = torch.tensor(float(len(liked)), device=losses.device)
    rewards, distance = beta * log_ratio.detach(), z.detach()
    right = torch.where(liked, distance > 0, distance < 0).float() + 0.5 * (distance == 0).float()
    stats = {
        "rewards/accuracies": WeightedSum(right.sum(), count),
        "rewards/chosen": _over(rewards, liked),
        "rewards/rejected": _over(rewards, ~liked),
        "logps/chosen": _over(answers.policy.detach(), liked),
        "logps/rejected": _over(answers.policy.detach(), ~liked),
        "kl": WeightedSum(baseline * count, count),
    }
    return Loss(losses.sum(), count, stats)


def kto_baseline(policy: Float[Tensor, " B"], reference: Float[Tensor, " B"]) -> Float[Tensor, ""]:
    """z0: the KL of policy and reference as answers to other prompts tell it, in nats, at least 0.

    >>> kto_baseline(torch.tensor([-2.0, -1.0]), torch.tensor([-3.0, -1.5]))
    tensor(0.7500)
    """
    return (policy - reference).mean().clamp(min=0.0)


def _over(values: Tensor, which: Tensor) -> WeightedSum:
    return WeightedSum(torch.where(which, values, 0.0).sum(), which.sum().to(values.dtype))
