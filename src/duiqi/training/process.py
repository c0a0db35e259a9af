"""What a process that trains on a CPU sets once, for all of its threads."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
NEVER = 2**30


@contextmanager
def prepared_process() -> Iterator[None]:
    """Within this context steps are faster, by settings of the processor and of the C library that cost nothing.

    Numbers too small for a normal float32 (below 1e-38) count as zero. A sure model's probabilities are full of them,
    and every product with one takes the processor a hundred times as long: measured, the head took three times as long.
    """
    _keep_freed_memory()
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)


def _keep_freed_memory() -> None:
    """Let the C library keep what is freed for the next step, instead of giving it back and asking for it again.

    Every step allocates the same large tensors. By default glibc returns such memory to the system, which then clears
    each page anew: a tenth of the time of a training step. The peak is the same. Does nothing where there is no glibc.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, NEVER)
        mallopt(M_TRIM_THRESHOLD, NEVER)
