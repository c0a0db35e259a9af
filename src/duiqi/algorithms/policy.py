"""The losses of proximal policy optimisation (Schulman et al. 2017)."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from duiqi.algorithms.loss import Loss, WeightedSum
from duiqi.algorithms.masked import masked_sum

LOG_RATIO_LIMIT = 20.0
"""Log-ratios are clamped to this, so that one broken token cannot make the loss infinite."""

Aggregation = Literal["token", "sequence"]
"""What counts once: every answer token, or every answer."""


def token_weights(mask: Bool[Tensor, "B T"], aggregation: Aggregation) -> Float[Tensor, "B T"]:
    """What each token counts in a sum: 1, or 1 / (length of its answer) as in GRPO (Shao et al. 2024, equation 3).

    >>> token_weights(torch.tensor([[True, True, False]]), "sequence")
    tensor([[0.5000, 0.5000, 0.0000]])
    """
    lengths = 1 if aggregation == "token" else mask.sum(dim=1, keepdim=True).clamp(min=1)
    return mask / lengths


def policy_loss(
    log_probs: Float[Tensor, "B T"],
    old_log_probs: Float[Tensor, "B T"],
    advantages: Float[Tensor, "B T"],
    mask: Bool[Tensor, "B T"],
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    dual_clip: float | None = None,
    aggregation: Aggregation = "token",
) -> Loss:
    """Summed clipped surrogate over answer tokens (Schulman et al. 2017, equation 7).

    The statistics are means over tokens either way; `approx_kl` is k3 of the old policy against the new one.

    Args:
        log_probs: Of the tokens under the policy as it is now.
        old_log_probs: Under the policy that drew them.
        advantages: How much better than expected each token was.
        mask: True at answer tokens.
        clip_low: The ratio's gain is cut below 1 - clip_low.
        clip_high: And above 1 + clip_high (asymmetric as in Yu et al. 2025, DAPO).
        dual_clip: For negative advantages the loss is at most this times |advantage| (Ye et al. 2020).
        aggregation: Whether every token counts once (DAPO) or every answer (GRPO).
    """
    log_ratio = torch.where(mask, log_probs - old_log_probs, 0.0).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
    ratio = log_ratio.exp()
    free = ratio * advantages
    clipped = ratio.clamp(1.0 - clip_low, 1.0 + clip_high) * advantages
    gain = torch.minimum(free, clipped)
    if dual_clip is not None:
        gain = torch.where(advantages < 0, torch.maximum(gain, dual_clip * advantages), gain)
    num_tokens = mask.sum().to(log_probs.dtype)
    reported = {
        "ratio": ratio,
        "approx_kl": torch.expm1(log_ratio) - log_ratio,
        "clip_fraction": (clipped < free).to(log_probs.dtype),
    }
    stats = {name: WeightedSum(masked_sum(value.detach(), mask), num_tokens) for name, value in reported.items()}
    weights = token_weights(mask, aggregation)
    return Loss(-masked_sum(gain * weights, mask), weights.sum(), stats)


def value_loss(
    values: Float[Tensor, "B T"],
    old_values: Float[Tensor, "B T"],
    returns: Float[Tensor, "B T"],
    mask: Bool[Tensor, "B T"],
    *,
    value_clip: float = 0.2,
    aggregation: Aggregation = "token",
) -> Loss:
    """Half the summed squared error of the critic, the larger of clipped and unclipped.

    The clipping is that of OpenAI's baselines; the paper has none. `value_clip=0` leaves it out.
    """
    errors = torch.where(mask, values - returns, 0.0) ** 2
    if value_clip > 0:
        near = old_values + (values - old_values).clamp(-value_clip, value_clip)
        errors = torch.maximum(errors, torch.where(mask, near - returns, 0.0) ** 2)
    weights = token_weights(mask, aggregation)
    return Loss(0.5 * (errors * weights).sum(), weights.sum())


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
    aggregation: Aggregation = "token",
) -> Loss:
    """Policy loss + vf_coef * value loss - entropy_coef * entropy, all summed over answer tokens.

    Without `values` there is no critic (then neither `old_values` nor `returns` is read).
    """
    policy = policy_loss(
        log_probs,
        old_log_probs,
        advantages,
        mask,
        clip_low=clip_low,
        clip_high=clip_high,
        dual_clip=dual_clip,
        aggregation=aggregation,
    )
    total, weight, stats = policy.total, policy.weight, dict(policy.stats)
    stats["policy_loss"] = WeightedSum(policy.total.detach(), weight)
    if values is not None:
        assert old_values is not None
        assert returns is not None
        critic = value_loss(values, old_values, returns, mask, value_clip=value_clip, aggregation=aggregation)
        total = total + vf_coef * critic.total
        stats["value_loss"] = WeightedSum(critic.total.detach(), weight)
    if entropy is not None:
        bonus = masked_sum(entropy * token_weights(mask, aggregation), mask)
        total = total - entropy_coef * bonus
        stats["token_entropy"] = WeightedSum(bonus.detach(), weight)
    return Loss(total, weight, stats)
