"""Ctrl-C, SIGTERM and SIGUSR1: remember the wish, finish the step, save. A second signal leaves at once."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if name in signal.Signals.__members__
)
"""What terminals, clusters and their time limits send. Windows has no SIGUSR1."""


class StopRequest:
    """Whether somebody asked the run to stop."""

    def __init__(self) -> None:
        self.signal_name: str | None = None

    def __bool__(self) -> bool:
        return self.signal_name is not None


@contextmanager
def listening() -> Iterator[StopRequest]:
    """Within this context the first signal only sets the request; the second, whichever it is, acts as ever."""
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before: dict[signal.Signals, Any] = {number: signal.getsignal(number) for number in SIGNALS}

    def as_before() -> None:
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)

    def remember(number: int, frame: FrameType | None) -> None:
        del frame
        request.signal_name = signal.Signals(number).name
        as_before()

    for number in SIGNALS:
        signal.signal(number, remember)
    try:
        yield request
    finally:
        as_before()
