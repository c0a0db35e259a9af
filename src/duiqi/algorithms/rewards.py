"""From the score of an answer to a reward for each of its tokens."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


def token_rewards(
    scores: Float[Tensor, " B"],
    kl: Float[Tensor, "B T"],
    mask: Bool[Tensor, "B T"],
    *,
    kl_coefficient: float,
) -> Float[Tensor, "B T"]:
    """-kl_coefficient * kl at every answer token, plus the score at the last one (Ouyang et al. 2022, equation 2).

    Args:
        scores: One per answer.
        kl: Per-token estimates against the reference.
        mask: True at answer tokens, the end token included. Rows without any get nothing.
        kl_coefficient: Weight of the penalty.
    """
    rewards = torch.where(mask, -kl_coefficient * kl, 0.0)
    positions = torch.arange(mask.shape[1], device=mask.device)
    last = (positions * mask).argmax(dim=1)
    has_any = mask.any(dim=1)
    rows = torch.arange(len(mask), device=mask.device)
    rewards[rows, last] = rewards[rows, last] + torch.where(has_any, scores, 0.0)
    return rewards


def clip_scores(scores: Float[Tensor, " B"], limit: float) -> Float[Tensor, " B"]:
    """Scores within plus or minus `limit`; 0 leaves them as they are."""
    return scores.clamp(-limit, limit) if limit > 0 else scores


def overlong_penalty(lengths: Int[Tensor, " B"], *, limit: int, buffer: int) -> Float[Tensor, " B"]:
    """0 up to limit - buffer tokens, then a straight line down to -1 at the limit (Yu et al. 2025, DAPO, equation 13).

    >>> overlong_penalty(torch.tensor([50, 90, 100]), limit=100, buffer=20)
    tensor([ 0.0000, -0.5000, -1.0000])
    """
    return ((limit - buffer - lengths) / buffer).clamp(-1.0, 0.0)


@dataclass(frozen=True)
class RunningMoments:
    """Count, mean and sum of squared deviations of all scores so far (Chan, Golub, LeVeque 1979)."""

    count: float = 0.0
    mean: float = 0.0
    squares: float = 0.0

    @property
    def std(self) -> float:
        """Unbiased standard deviation; 1 while fewer than two values were seen."""
        return (self.squares / (self.count - 1)) ** 0.5 if self.count > 1 else 1.0

    def update(self, scores: Float[Tensor, " B"]) -> RunningMoments:
        """The moments of everything seen, `scores` included."""
        count, mean = float(len(scores)), float(scores.double().mean())
        squares = float(((scores.double() - mean) ** 2).sum())
        total, gap = self.count + count, mean - self.mean
        return RunningMoments(
            count=total,
            mean=self.mean + gap * count / total,
            squares=self.squares + squares + gap**2 * self.count * count / total,
        )

    def normalise(self, scores: Float[Tensor, " B"]) -> Float[Tensor, " B"]:
        """Scores less the mean, in standard deviations."""
        return (scores - self.mean) / max(self.std, 1e-6)
