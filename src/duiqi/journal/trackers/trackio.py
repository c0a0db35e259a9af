"""Trackio: in its own local store, which all runs of this user share, unless TRACKIO_SPACE_ID names a Space."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from typing import Any

import trackio

from duiqi.journal.trackers.tracker import NOTHING, Opened, Outcome, TrackedRun


class Trackio:
    """A run of a project. Trackio finds runs by name, so every run of duiqi gets a name of its own."""

    def open(self, run: TrackedRun) -> Opened:
        project = run.project_or("TRACKIO_PROJECT")
        where = f"trackio show --project {project}"
        if run.id is not None:
            try:
                self._run = trackio.init(project, run.id, resume="must", embed=False)
            except ValueError:  # it was deleted there, or the project has another name now
                pass
            else:
                return Opened(run.id, run.told, where)
        name = f"{run.name}-{secrets.token_hex(3)}"
        self._run = trackio.init(project, name, config=dict(run.settings), embed=False)
        return Opened(name, NOTHING, where)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def samples(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        columns = list(dict.fromkeys(name for row in rows for name in row))
        table = trackio.Table(columns=columns, data=[[row.get(name) for name in columns] for row in rows])
        self._run.log({"samples": table}, step=step)

    def close(self, outcome: Outcome) -> None:
        del outcome  # a run of Trackio has no state
        trackio.finish()  # not the run's own: Trackio would finish it once more, and aloud, when the process ends
