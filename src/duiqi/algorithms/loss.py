"""The one thing every loss returns: a sum, its weight, and sums to report. Only the learner divides."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class WeightedSum:
    """A quantity to average later: its mean over any number of parts is the sum of totals over the sum of weights."""

    total: Float[Tensor, ""]
    weight: Float[Tensor, ""]

    def __add__(self, other: WeightedSum) -> WeightedSum:
        return WeightedSum(self.total + other.total, self.weight + other.weight)

    @property
    def mean(self) -> float:
        """The average as a number; 0 when nothing was counted."""
        weight = float(self.weight)
        return float(self.total) / weight if weight else 0.0


@dataclass(frozen=True)
class Loss:
    """The summed loss of a micro-batch, and how much it counts.

    The mean loss of a step is the sum of `total` over all micro-batches and ranks divided by the sum of `weight`, so it
    does not depend on how the batch was split. `stats` are detached sums with weights of their own.
    """

    total: Float[Tensor, ""]
    weight: Float[Tensor, ""]
    stats: Mapping[str, WeightedSum] = field(default_factory=dict)
