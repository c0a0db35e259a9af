"""How much better an answer's tokens were than expected: with a critic (GAE) or by comparing answers."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from duiqi.algorithms.masked import masked_row_sums, whiten

GRPO_EPSILON = 1e-4


@dataclass(frozen=True)
class Advantages:
    """Per-token advantages, and the returns that a critic should predict; zero outside the mask."""

    advantages: Float[Tensor, "B T"]
    returns: Float[Tensor, "B T"]


def gae(
    rewards: Float[Tensor, "B T"],
    values: Float[Tensor, "B T"],
    mask: Bool[Tensor, "B T"],
    *,
    gamma: float = 1.0,
    lam: float = 0.95,
) -> Advantages:
    """Generalised advantage estimation (Schulman et al. 2016, equation 16); returns are advantages + values.

    The True positions of a row are its consecutive time steps; after the last one the value is 0.
    """
    rewards, values = torch.where(mask, rewards, 0.0), torch.where(mask, values, 0.0)
    advantages = torch.zeros_like(rewards)
    advantage, next_value = torch.zeros_like(rewards[:, 0]), torch.zeros_like(rewards[:, 0])
    for t in range(rewards.shape[1] - 1, -1, -1):
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        advantage = torch.where(mask[:, t], delta + gamma * lam * advantage, advantage)
        next_value = torch.where(mask[:, t], values[:, t], next_value)
        advantages[:, t] = torch.where(mask[:, t], advantage, 0.0)
    return Advantages(advantages, advantages + values)


def rewards_to_go(
    rewards: Float[Tensor, "B T"], mask: Bool[Tensor, "B T"], *, gamma: float = 1.0
) -> Float[Tensor, "B T"]:
    """The discounted sum of each token's reward and all later ones of its answer."""
    return gae(rewards, torch.zeros_like(rewards), mask, gamma=gamma, lam=1.0).advantages


def rloo(rewards: Float[Tensor, "B T"], groups: Int[Tensor, " B"], mask: Bool[Tensor, "B T"]) -> Advantages:
    """Each answer's total reward less the mean of its group's other answers (Ahmadian et al. 2024, RLOO).

    An answer alone in its group has nothing to be compared with and gets 0.
    """
    totals = masked_row_sums(rewards, mask)
    count, mean = _group_means(totals, groups)
    advantages = (totals - mean) * count / (count - 1).clamp(min=1)
    return _spread(advantages, totals, mask)


def grpo(
    rewards: Float[Tensor, "B T"], groups: Int[Tensor, " B"], mask: Bool[Tensor, "B T"], *, divide_by_std: bool = True
) -> Advantages:
    """Each answer's total reward less its group's mean, in the group's standard deviations (Shao et al. 2024, 4.1.2).

    The deviation is unbiased and 1e-4 is added to it. `divide_by_std=False` is Dr. GRPO (Liu et al. 2025).
    An answer alone in its group gets 0.
    """
    totals = masked_row_sums(rewards, mask)
    count, mean = _group_means(totals, groups)
    advantages = totals - mean
    if divide_by_std:
        _, mean_square = _group_means(advantages**2, groups)
        std = (mean_square * count / (count - 1).clamp(min=1)).sqrt()
        advantages = advantages / (std + GRPO_EPSILON)
    return _spread(advantages, totals, mask)


def reinforce_plus_plus(rewards: Float[Tensor, "B T"], mask: Bool[Tensor, "B T"], *, gamma: float = 1.0) -> Advantages:
    """Rewards to go, whitened over all answers of the batch (Hu et al. 2025, REINFORCE++)."""
    to_go = rewards_to_go(rewards, mask, gamma=gamma)
    return Advantages(whiten(to_go, mask), to_go)


def _group_means(totals: Tensor, groups: Tensor) -> tuple[Tensor, Tensor]:
    """Size and mean of the group that each row belongs to."""
    _, index = groups.unique(return_inverse=True)
    counts = torch.zeros_like(totals).index_add(0, index, torch.ones_like(totals))
    sums = torch.zeros_like(totals).index_add(0, index, totals)
    return counts[index], (sums / counts.clamp(min=1))[index]


def _spread(advantages: Tensor, totals: Tensor, mask: Tensor) -> Advantages:
    return Advantages(advantages.unsqueeze(1) * mask, totals.unsqueeze(1) * mask)
