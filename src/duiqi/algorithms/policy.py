"""The losses of proximal policy optimisation (Schulman et al. 2017)."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from duiqi.algorithms.loss import Loss, WeightedSum
from duiqi.algorithms.masked import masked_sum

LOG_RATIO_LIMIT = 20.0
"""Log-ratios are clamped to this, so that one broken token cannot make the loss infinite."""


def policy_loss(
    log_probs: Float[Tensor, "B T"],
    old_log_probs: Float[Tensor, "B T"],
    advantages: Float[Tensor, "B T"],
    mask: Bool[Tensor, "B T"],
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    dual_clip: float | None = None,
) -> Loss:
    """Summed clipped surrogate over answer tokens (Schulman et al. 2017, equation 7).

    Args:
        log_probs: Of the tokens under the policy as it is now.
        old_log_probs: Under the policy that drew them.
        advantages: How much better than expected each token was.
        mask: True at answer tokens.
        clip_low: The ratio's gain is cut below 1 - clip_low.
        clip_high: And above 1 + clip_high (asymmetric as in Yu et al. 2025, DAPO).
        dual_clip: For negative advantages the loss is at most this times |advantage| (Ye et al. 2020, equation 5).
    """
    log_ratio = torch.where(mask, log_probs - old_log_probs, 0.0).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
    ratio = log_ratio.exp()
    free = ratio * advantages
    clipped = ratio.clamp(1.0 - clip_low, 1.0 + clip_high) * advantages
    gain = torch.minimum(free, clipped)
    if dual_clip is not None:
        gain = torch.where(advantages < 0, torch.maximum(gain, dual_clip * advantages), gain)
    weight = mask.sum().to(log_probs.dtype)
    is_clipped = (clipped < free) & (clipped != free)
    reported = {
        "ratio": ratio,
        "approx_kl": torch.expm1(log_ratio) - log_ratio,
        "clip_fraction": is_clipped.to(log_probs.dtype),
    }
    stats = {name: WeightedSum(masked_sum(value.detach(), mask), weight) for name, value in reported.items()}
    return Loss(-masked_sum(gain, mask), weight, stats)


def value_loss(
    values: Float[Tensor, "B T"],
    old_values: Float[Tensor, "B T"],
    returns: Float[Tensor, "B T"],
    mask: Bool[Tensor, "B T"],
    *,
    value_clip: float = 0.2,
) -> Loss:
    """Half the summed squared error of the critic, the larger of clipped and unclipped; `value_clip=0`: unclipped."""
    errors = (values - returns) ** 2
    if value_clip > 0:
        near = old_values + (values - old_values).clamp(-value_clip, value_clip)
        errors = torch.maximum(errors, (near - returns) ** 2)
    return Loss(0.5 * masked_sum(errors, mask), mask.sum().to(values.dtype))


def ppo_loss(
    *,
    log_probs: Float[Tensor, "B T"],
    old_log_probs: Float[Tensor, "B T"],
    advantages: Float[Tensor, "B T"],
    mask: Bool[Tensor, "B T"],
    values: Float[Tensor, "B T"] | None = None,
    old_values: Float[Tensor, "B T"] | None = None,
    returns: Float[Tensor, "B T"] | None = None,
    entropy: Float[Tensor, "B T"] | None = None,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    dual_clip: float | None = None,
    value_clip: float = 0.2,
    vf_coef: float = 0.1,
    entropy_coef: float = 0.0,
) -> Loss:
    """Policy loss + vf_coef * value loss - entropy_coef * entropy, all summed over answer tokens.

    Without `values` there is no critic (then neither `old_values` nor `returns` is read).
    """
    policy = policy_loss(
        log_probs, old_log_probs, advantages, mask, clip_low=clip_low, clip_high=clip_high, dual_clip=dual_clip
    )
    total, weight, stats = policy.total, policy.weight, dict(policy.stats)
    stats["policy_loss"] = WeightedSum(policy.total.detach(), weight)
    if values is not None:
        assert old_values is not None
        assert returns is not None
        critic = value_loss(values, old_values, returns, mask, value_clip=value_clip)
        total = total + vf_coef * critic.total
        stats["value_loss"] = WeightedSum(critic.total.detach(), weight)
    if entropy is not None:
        bonus = masked_sum(entropy, mask)
        total = total - entropy_coef * bonus
        stats["token_entropy"] = WeightedSum(bonus.detach(), weight)
    return Loss(total, weight, stats)
