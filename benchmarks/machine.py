"""What machine this is, whether it is idle, and how long a process stood in its queue. Linux only, as the peers are."""

from __future__ import annotations

import contextlib
import os
import resource
import time
from dataclasses import dataclass
from pathlib import Path

TELLING_FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")


@dataclass(frozen=True)
class Machine:
    """A processor and its memory."""

    processor: str
    cores: int
    memory_gib: float
    flags: tuple[str, ...]
    """Those of `TELLING_FLAGS` that it has."""

    def __str__(self) -> str:
        flags = ", ".join(self.flags) or "none of " + ", ".join(TELLING_FLAGS)
        return f"{self.processor}, {self.cores} cores, {self.memory_gib:.0f} GiB, {flags}"


def this_machine() -> Machine:
    """What /proc says of the machine."""
    fields: dict[str, str] = {}
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        name, _, value = line.partition(":")
        fields.setdefault(name.strip(), value.strip())
    flags = set(fields.get("flags", "").split())
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return Machine(
        processor=fields.get("model name", "unknown processor"),
        cores=len(os.sched_getaffinity(0)),
        memory_gib=memory,
        flags=tuple(flag for flag in TELLING_FLAGS if flag in flags),
    )


def busy_share(seconds: float) -> float:
    """The share of all cores that was in use during the next seconds."""
    before, begin = _busy_seconds(), time.monotonic()
    time.sleep(seconds)
    return (_busy_seconds() - before) / (time.monotonic() - begin) / (os.cpu_count() or 1)


def _busy_seconds() -> float:
    user, nice, system, _, _, irq, soft_irq = map(int, Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:8])
    return (user + nice + system + irq + soft_irq) / os.sysconf("SC_CLK_TCK")


def wait_until_idle(patience: float, *, share: float = 0.05) -> bool:
    """Wait until less than `share` of the machine is in use, at most `patience` seconds. Returns whether it is."""
    end = time.monotonic() + patience
    while True:
        if busy_share(min(3.0, max(patience, 0.1))) < share:
            return True
        if time.monotonic() >= end:
            return False


def queue_seconds() -> float:
    """Seconds that this process's threads were ready to run and had no core: what others cost it."""
    nanoseconds = 0
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(OSError, ValueError, IndexError):  # the thread ended, or the kernel does not say
            nanoseconds += int((task / "schedstat").read_text().split()[1])
    return nanoseconds / 1e9


def peak_memory_mb() -> float:
    """The most memory this process ever had in RAM."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
