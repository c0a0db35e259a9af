"""Ctrl-C and SIGTERM: remember the wish, finish the step, save. A second signal leaves at once."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopRequest:
    """Whether somebody asked the run to stop."""

    def __init__(self) -> None:
        self.signal_name: str | None = None

    def __bool__(self) -> bool:
        return self.signal_name is not None


@contextmanager
def listening() -> Iterator[StopRequest]:
    """Within this context the first signal only sets the request; the second acts as ever."""
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before: dict[int, Any] = {number: signal.getsignal(number) for number in SIGNALS}

    def remember(number: int, frame: FrameType | None) -> None:
        del frame
        request.signal_name = signal.Signals(number).name
        signal.signal(number, before[number] or signal.SIG_DFL)

    for number in SIGNALS:
        signal.signal(number, remember)
    try:
        yield request
    finally:
        for caught, handler in before.items():
            signal.signal(caught, handler or signal.SIG_DFL)
