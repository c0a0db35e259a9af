"""Bounds on the time and the memory that somebody else's text may take to be computed."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType


@contextmanager
def at_most(seconds: float) -> Iterator[None]:
    """Within this context TimeoutError is raised after so many seconds.

    Only in the main thread and not on Windows, which have no such alarm; a timer that ran before goes on afterwards.
    """
    if not hasattr(signal, "setitimer") or threading.current_thread() is not threading.main_thread():
        yield
        return

    def give_up(number: int, frame: FrameType | None) -> None:
        del number, frame
        raise TimeoutError(f"it takes longer than {seconds:g} seconds")

    handler = signal.signal(signal.SIGALRM, give_up)
    before = signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, *before)
        signal.signal(signal.SIGALRM, handler)


@contextmanager
def within_memory(num_bytes: int) -> Iterator[None]:
    """Within this context the process does not grow by more than so many bytes: MemoryError is raised instead.

    Only on Linux, which counts the address space of a process and keeps it to a limit.
    """
    if sys.platform != "linux":
        yield
        return
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    limit = pages * resource.getpagesize() + num_bytes
    limit = min([limit, *(bound for bound in (soft, hard) if bound != resource.RLIM_INFINITY)])
    resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
