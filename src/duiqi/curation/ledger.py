"""What a file took beside the answers that are kept: a line for every request that failed or gave nothing of use."""

from __future__ import annotations

import threading
from dataclasses import asdict
from pathlib import Path

from duiqi.curation.endpoint import Usage
from duiqi.curation.spending import Spent
from duiqi.errors import RunError
from duiqi.journal.lines import JsonLines, read_lines

SPENT = "spent.jsonl"


class Ledger:
    """The account of a file, safe for several threads of one process.

    Args:
        folder: What belongs to the file. The account appears there with its first line.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / SPENT
        self._lock = threading.Lock()
        self._lines: JsonLines | None = None

    def read(self) -> list[Spent]:
        """Everything that was noted.

        Raises:
            RunError: A line is damaged.
        """
        try:
            return [
                Spent(Usage(**row["usage"]), Usage(**row["unknown"]) if row["unknown"] else None)
                for row in read_lines(self._path)
            ]
        except (KeyError, TypeError):
            raise RunError(
                "a line is no account of a request",
                where=str(self._path),
                remedy="restore the file, or remove it to begin the account anew",
            ) from None

    def note(self, spent: Spent) -> None:
        """Add what a request took.

        Raises:
            RunError: It cannot be written there.
        """
        if spent == Spent(Usage()):
            return
        with self._lock:
            if self._lines is None:
                self._lines = JsonLines(self._path)
            self._lines.append(asdict(spent))

    def close(self) -> None:
        """Close the file; the next line opens it again."""
        with self._lock:
            if self._lines is not None:
                self._lines.close()
                self._lines = None
