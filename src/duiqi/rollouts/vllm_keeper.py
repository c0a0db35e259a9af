"""Keeps a server alive for as long as whoever started it, and not a moment longer. `vllm_server` runs this file as a
script, with a pipe as its input and the server's command as its arguments. Standard library only.

The pipe is never written to: it closes when the parent closes it or dies, be it by kill -9, and that is the signal.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence

GRACE_SECONDS = 10.0
"""How long a server that was asked to end may take over it."""

_AFTERMATH_SECONDS = 0.5
"""For the server's helpers to remove shared memory, once the server itself has ended."""


def keep(command: Sequence[str]) -> None:
    """Run the server until it ends or the input closes; then end whatever it left in this process group."""
    # The server must not inherit the pipe, nor the deafness to SIGTERM that follows.
    server = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    threading.Thread(target=_end_with_the_parent, daemon=True).start()
    server.wait()
    time.sleep(_AFTERMATH_SECONDS)
    os.killpg(0, signal.SIGKILL)


def _end_with_the_parent() -> None:
    while os.read(sys.stdin.fileno(), 1):
        pass
    os.killpg(0, signal.SIGTERM)
    time.sleep(GRACE_SECONDS)
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    keep(sys.argv[1:])
