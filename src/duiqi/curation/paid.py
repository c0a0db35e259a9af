"""Answers that were paid for, kept by what was asked, so that nothing is asked twice: a file each, whole or absent."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from duiqi.curation.endpoint import Usage
from duiqi.journal.files import atomic_write_text, writing


def default_cache() -> Path:
    """Where answers are kept unless another place is named."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return home / "duiqi" / "asked"


@dataclass(frozen=True, slots=True)
class Paid:
    """An answer, and what it took."""

    text: str
    usage: Usage


class PaidAnswers:
    """A folder of answers. Several processes may share it: each writes whole files under names that say what was asked.

    Args:
        folder: Is made when the first answer comes.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def find(self, key: str) -> Paid | None:
        """The answer to a question; None where it has not been asked, or its file is damaged."""
        try:
            kept = json.loads(self._path(key).read_text(encoding="utf-8"))
            return Paid(str(kept["text"]), Usage(**kept["usage"]))
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def keep(self, key: str, paid: Paid) -> None:
        """Keep an answer.

        Raises:
            RunError: It cannot be written there.
        """
        path = self._path(key)
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        # Two threads never hold the same key; two processes write under names with their own number and then rename.
        atomic_write_text(path, json.dumps({"text": paid.text, "usage": asdict(paid.usage)}, ensure_ascii=False) + "\n")

    def _path(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.json"
