"""One process per run directory: a lock that the operating system drops when its owner dies, however it dies."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from duiqi.errors import RunError
from duiqi.journal.files import writing

if sys.platform == "win32":
    import msvcrt

    _FAR = 1 << 30  # beyond the text: Windows would not let others read the locked byte

    def _try_lock(descriptor: int) -> bool:
        os.lseek(descriptor, _FAR, os.SEEK_SET)
        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        finally:
            os.lseek(descriptor, 0, os.SEEK_SET)
        return True

else:
    import fcntl

    def _try_lock(descriptor: int) -> bool:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True


class DirectoryLock:
    """Exclusive use of a directory, from construction to `release`.

    The file `.lock` stays behind and holds the process id of its last owner; only a living owner holds the lock, so
    that of a killed process is simply taken over.

    Raises:
        RunError: another process is writing there.
    """

    def __init__(self, directory: Path) -> None:
        path = directory / ".lock"
        with writing(path):
            self._descriptor: int | None = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        if not _try_lock(self._descriptor):
            owner = path.read_text(encoding="utf-8", errors="replace").strip() or "unknown"
            self.release()
            raise RunError(
                f"another process is writing this run (process {owner})",
                where=str(directory),
                remedy="wait for it or stop it, or set another output_dir",
            )
        os.ftruncate(self._descriptor, 0)
        os.write(self._descriptor, f"{os.getpid()}\n".encode())

    def release(self) -> None:
        """Let others in; releasing twice is harmless."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
