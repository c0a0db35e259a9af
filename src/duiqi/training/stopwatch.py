"""Where the time of a step goes, and how much memory the process took at most."""

from __future__ import annotations

import sys
import time

import torch


class Stopwatch:
    """Seconds by phase of one step."""

    def __init__(self) -> None:
        self._last = time.perf_counter()
        self.seconds: dict[str, float] = {}

    def lap(self, phase: str) -> None:
        """What passed since the last lap belongs to `phase`."""
        now = time.perf_counter()
        self.seconds[phase] = now - self._last
        self._last = now

    def report(self, tokens: int) -> dict[str, float]:
        """Seconds of each phase, and the step's tokens (prompts and answers) per second of each and of all."""
        total = max(sum(self.seconds.values()), 1e-9)
        seconds = {f"seconds/{phase}": spent for phase, spent in self.seconds.items()}
        rates = {f"tokens_per_second/{phase}": tokens / max(spent, 1e-9) for phase, spent in self.seconds.items()}
        return {"tokens_per_second": tokens / total, **rates, **seconds, "memory_gib": peak_memory_gib()}


def peak_memory_gib() -> float:
    """Peak memory of this process: on the GPU where there is one, resident otherwise; 0 where nobody can say."""
    if torch.cuda.is_available():
        return float(torch.cuda.max_memory_allocated()) / 2**30
    if sys.platform == "win32":
        return 0.0
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30
