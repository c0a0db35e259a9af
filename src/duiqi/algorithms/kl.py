"""Estimators of the KL divergence from samples, and controllers of its weight."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

LogRatio = Float[Tensor, "*shape"]

ADAPTIVE_CLIP = 0.2
"""Largest relative error that the adaptive controller acts on (Ziegler et al. 2019, section 2.2)."""


def k1(log_ratio: LogRatio) -> LogRatio:
    """log(p / q) of tokens drawn from p: unbiased, may be negative (Schulman 2020, "Approximating KL divergence")."""
    return log_ratio


def k2(log_ratio: LogRatio) -> LogRatio:
    """Half the square: biased, always positive, little variance."""
    return 0.5 * log_ratio**2


def k3(log_ratio: LogRatio) -> LogRatio:
    """q/p - 1 - log(q/p): unbiased and never negative."""
    return torch.expm1(-log_ratio) + log_ratio


def absolute(log_ratio: LogRatio) -> LogRatio:
    """|log(p / q)|: an upper bound in expectation, never negative."""
    return log_ratio.abs()


KL_ESTIMATORS: dict[str, Callable[[Tensor], Tensor]] = {"k1": k1, "k2": k2, "k3": k3, "abs": absolute}
"""Each takes log p - log q of tokens drawn from p."""


@dataclass(frozen=True)
class FixedKL:
    """A weight that stays."""

    coefficient: float

    def update(self, observed: float, num_samples: int) -> FixedKL:
        """The same again."""
        del observed, num_samples
        return self


@dataclass(frozen=True)
class AdaptiveKL:
    """A weight steered so that the KL per answer approaches a target (Ziegler et al. 2019, section 2.2).

    >>> AdaptiveKL(0.2, target=6.0, horizon=10_000.0).update(12.0, 256).coefficient
    0.201024
    """

    coefficient: float
    target: float
    """KL per answer, in nats."""
    horizon: float
    """Answers over which the weight changes noticeably."""

    def update(self, observed: float, num_samples: int) -> AdaptiveKL:
        """The controller after seeing a mean KL per answer over `num_samples` answers."""
        error = min(max(observed / self.target - 1.0, -ADAPTIVE_CLIP), ADAPTIVE_CLIP)
        return replace(self, coefficient=self.coefficient * (1.0 + error * num_samples / self.horizon))
