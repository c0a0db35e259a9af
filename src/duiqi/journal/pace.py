"""How fast steps go by, and how long the rest will take."""

from __future__ import annotations

import time
from collections.abc import Callable

from duiqi.journal.numbers import duration


class Pace:
    """Watches steps go by. A resumed run begins at a later step, so the first mark is the origin, not zero."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._first: tuple[int, float] | None = None
        self._latest = (0, 0.0)

    def mark(self, step: int) -> None:
        """A step was just completed."""
        self._latest = (step, self._clock())
        self._first = self._first or self._latest

    def remaining(self, total: int) -> str:
        """What is left, in words: `12 s left`; empty before two marks and at the end."""
        if self._first is None:
            return ""
        steps, seconds = self._latest[0] - self._first[0], self._latest[1] - self._first[1]
        left = total - self._latest[0]
        return f"{duration(seconds / steps * left)} left" if steps > 0 and left > 0 else ""
