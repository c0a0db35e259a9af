"""Weights & Biases: offline unless the user has set WANDB_MODE."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import wandb

from duiqi.journal.trackers.tracker import NOTHING, Opened, Outcome, TrackedRun

_EXIT_CODES: dict[Outcome, int] = {"finished": 0, "failed": 1, "interrupted": 255}


class WeightsAndBiases:
    """A run of the service, or a folder for `wandb sync`.

    An offline folder knows nothing of the ones before it, and syncing it replaces them: so where a run is resumed
    offline, the new folder gets the whole history.
    """

    def open(self, run: TrackedRun) -> Opened:
        run.directory.mkdir(parents=True, exist_ok=True)
        mode = os.environ.get("WANDB_MODE", "offline")
        self._run = wandb.init(
            project=run.project_or("WANDB_PROJECT"),
            name=run.name,
            id=run.id,
            resume="allow" if run.id and mode != "offline" else None,
            config=dict(run.settings),
            dir=run.directory.parent,  # it adds a folder wandb itself
            mode=mode,
            reinit="create_new",
            settings=wandb.Settings(silent=True, console="off"),
        )
        where = f"wandb sync {Path(self._run.dir).parent}" if self._run.offline else str(self._run.url)
        return Opened(self._run.id, run.told if self._run.resumed else NOTHING, where)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def samples(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        columns = list(dict.fromkeys(name for row in rows for name in row))
        table = wandb.Table(columns=columns, data=[[row.get(name) for name in columns] for row in rows])
        self._run.log({"samples": table}, step=step)

    def close(self, outcome: Outcome) -> None:
        self._run.finish(exit_code=_EXIT_CODES[outcome])
