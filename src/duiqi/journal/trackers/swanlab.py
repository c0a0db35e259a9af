"""SwanLab: offline unless the user has set SWANLAB_MODE."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

import swanlab

from duiqi.journal.trackers.tracker import NOTHING, Opened, Outcome, TrackedRun, as_text

_STATES: dict[Outcome, str] = {"finished": "success", "failed": "crashed", "interrupted": "aborted"}
_NOT_IN_NAMES = re.compile(r"[^0-9a-zA-Z_\-+.]")


class SwanLab:
    """A run of the service, or a folder for `swanlab sync`, with the whole history where a run is resumed offline."""

    def open(self, run: TrackedRun) -> Opened:
        mode = os.environ.get("SWANLAB_MODE", "offline")
        is_online = mode in ("cloud", "online")
        self._run = swanlab.init(
            project=_NOT_IN_NAMES.sub("-", run.project_or("SWANLAB_PROJECT")),
            name=run.name,
            id=run.id,
            resume="allow",
            config=dict(run.settings),
            logdir=str(run.directory),
            mode=mode,
        )
        where = str(self._run.url) if is_online else f"swanlab sync {self._run.dir}"
        return Opened(self._run.id, run.told if is_online and run.id else NOTHING, where)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def samples(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        self._run.log({"samples": [swanlab.Text(as_text(row)) for row in rows]}, step=step)

    def close(self, outcome: Outcome) -> None:
        self._run.finish(state=_STATES[outcome], error=outcome if outcome == "failed" else None)
