"""What a tracker is to duiqi: something that is opened once, told numbers and sample answers, and closed."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

Outcome = Literal["finished", "interrupted", "failed"]

NOTHING = -1
"""The last step of a tracker that was told nothing yet."""


@dataclass(frozen=True, slots=True)
class TrackedRun:
    """What a tracker learns when a run begins or goes on."""

    directory: Path
    """Where it may write: a folder of its own, perhaps not there yet."""
    project: str | None
    name: str
    settings: Mapping[str, Any]
    """Flat resolved settings."""
    id: str | None
    """What `open` gave when this run was tracked before; None: it was not."""
    told: int
    """The last step that the tracker was told under this id."""
    step: int
    """The step of the checkpoint that training goes on from; -1: it begins."""

    def project_or(self, variable: str) -> str:
        """The project of the settings, else that of the tracker's own environment variable, else duiqi."""
        return self.project or os.environ.get(variable) or "duiqi"


@dataclass(frozen=True, slots=True)
class Opened:
    """What a tracker says when it is ready."""

    id: str
    """Finds the run again when it is resumed."""
    known: int
    """The last step that it holds and keeps; it is told everything after that, and nothing before."""
    where: str
    """How to look at the run: a command or an address."""


class Tracker(Protocol):
    """One service. Any of these may raise anything: the run goes on without it."""

    def open(self, run: TrackedRun) -> Opened:
        """Begin a run, or continue the one with the id that is given."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Take the numbers of a step; steps never fall, and a step may come more than once with other names."""

    def samples(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """Take answers of the model at a step: rows of `prompt`, `answer` and perhaps `score`, `kl`, `length`."""

    def close(self, outcome: Outcome) -> None:
        """Write out what is left; nothing comes after this."""


def as_text(row: Mapping[str, Any]) -> str:
    """A sample for trackers that have no tables.

    >>> print(as_text({"prompt": "Who are you?", "answer": "Mei.", "score": 0.5}))
    Who are you?
    -> Mei.
    score 0.5
    """
    rest = ", ".join(f"{name} {value}" for name, value in row.items() if name not in ("prompt", "answer"))
    lines = (str(row.get("prompt", "")), f"-> {row.get('answer', '')}", rest)
    return "\n".join(line for line in lines if line)
