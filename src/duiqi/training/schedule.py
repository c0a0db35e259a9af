"""Learning-rate schedules as functions of the step, so that resuming needs no state."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass


def linear(progress: float) -> float:
    """From 1 to 0 in a straight line."""
    return 1.0 - progress


def cosine(progress: float) -> float:
    """From 1 to 0 along half a cosine."""
    return 0.5 * (1.0 + math.cos(math.pi * progress))


def constant(progress: float) -> float:
    """Always 1."""
    del progress
    return 1.0


SHAPES: dict[str, Callable[[float], float]] = {"linear": linear, "cosine": cosine, "constant": constant}


@dataclass(frozen=True)
class Schedule:
    """Warm-up in a straight line, then one of `SHAPES`, as transformers' schedulers of the same names.

    >>> [round(Schedule(1.0, total_steps=6, warmup_steps=2, shape="linear").at(step), 2) for step in range(1, 7)]
    [0.0, 0.5, 1.0, 0.75, 0.5, 0.25]
    """

    peak: float
    total_steps: int
    warmup_steps: int = 0
    shape: str = "linear"

    def at(self, step: int) -> float:
        """The learning rate of step 1, 2, ... total_steps."""
        done = step - 1
        if done < self.warmup_steps:
            return self.peak * done / self.warmup_steps
        rest = max(1, self.total_steps - self.warmup_steps)
        return self.peak * max(0.0, SHAPES[self.shape](min(1.0, (done - self.warmup_steps) / rest)))
