"""Learning from a sampler that is almost, but not quite, the policy: truncated importance sampling, and how far the
two are apart. Two engines compute the same weights with other kernels, so their probabilities differ.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from duiqi.algorithms.kl import k3
from duiqi.algorithms.loss import WeightedSum
from duiqi.algorithms.masked import masked_sum


def truncated_importance_weights(
    log_probs: Float[Tensor, "*shape"],
    sampler_log_probs: Float[Tensor, "*shape"],
    mask: Bool[Tensor, "*shape"],
    *,
    cap: float,
) -> Float[Tensor, "*shape"]:
    """min(policy / sampler, cap) at every token, 0 outside the answers; without gradient.

    A token's part of the loss times its weight is, but for the cap, what the same token would give on average had the
    policy itself drawn it. The cap keeps rare tokens from ruling a batch: little bias for much less variance (Ionides
    2008; per token for language models: Yao et al. 2025, "Your Efficient RL Framework Secretly Brings You Off-Policy RL
    Training").

    The policy is the one that the sampler stands for, before any update of the step; how far it has moved since is the
    business of PPO's own ratio. Weights are never negative, so weighting the advantages weights the clipped loss.

    Args:
        log_probs: Of the tokens under the policy, as the trainer computes them.
        sampler_log_probs: Under the distribution that they were drawn from.
        mask: True at answer tokens.
        cap: The largest weight; 2 is usual.

    Example:
        >>> policy, sampler = torch.tensor([[0.2, 0.9, 0.5]]).log(), torch.tensor([[0.4, 0.3, 0.5]]).log()
        >>> truncated_importance_weights(policy, sampler, torch.tensor([[True, True, False]]), cap=2.0)
        tensor([[0.5000, 2.0000, 0.0000]])
    """
    ratio = torch.where(mask, log_probs - sampler_log_probs, 0.0).exp()
    return torch.where(mask, ratio.clamp(max=cap), 0.0).detach()


def sampler_mismatch(
    log_probs: Float[Tensor, "*shape"],
    sampler_log_probs: Float[Tensor, "*shape"],
    mask: Bool[Tensor, "*shape"],
    *,
    cap: float,
) -> dict[str, WeightedSum]:
    """How far sampler and policy are apart, each a sum over the answer tokens and their number.

    Returns:
        sampler_gap: The absolute difference of the log-probabilities.
        sampler_kl: The divergence of the sampler from the policy (k3 on the sampler's own tokens).
        importance_weight: The truncated weight; 1 on average where nothing was cut.
        importance_capped: Whether the cap acted: a share that should be next to nothing.
    """
    gap = torch.where(mask, sampler_log_probs - log_probs, 0.0).detach()
    weights = truncated_importance_weights(log_probs, sampler_log_probs, mask, cap=cap)
    num_tokens = mask.sum().to(gap.dtype)
    reported = {
        "sampler_gap": gap.abs(),
        "sampler_kl": k3(gap),
        "importance_weight": weights,
        "importance_capped": ((-gap).exp() > cap).to(gap.dtype),
    }
    return {name: WeightedSum(masked_sum(value, mask), num_tokens) for name, value in reported.items()}
