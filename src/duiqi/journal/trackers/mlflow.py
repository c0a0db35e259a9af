"""MLflow: a database in the run directory, unless MLFLOW_TRACKING_URI names a server or another store."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Mapping, Sequence
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Metric, Param
from mlflow.exceptions import MlflowException

from duiqi.journal.trackers.tracker import NOTHING, Opened, Outcome, TrackedRun, as_text

_STATES: dict[Outcome, str] = {"finished": "FINISHED", "failed": "FAILED", "interrupted": "KILLED"}
_PARAMS_AT_ONCE, _LONGEST_PARAM = 100, 6000
_NOT_IN_NAMES = re.compile(r"[^/\w.\- :]")


class MLflow:
    """A run of an experiment, through the client alone: MLflow's notion of a current run is left to the user."""

    def open(self, run: TrackedRun) -> Opened:
        store = os.environ.get("MLFLOW_TRACKING_URI")
        artifacts = None
        if not store:
            run.directory.mkdir(parents=True, exist_ok=True)
            store = f"sqlite:///{(run.directory / 'mlflow.db').resolve().as_posix()}"
            artifacts = (run.directory / "artifacts").resolve().as_uri()
        where = store if store.startswith("http") else f"mlflow ui --backend-store-uri {store}"
        self._client = MlflowClient(store)
        if run.id is not None and self._goes_on(run.id):
            self._id = run.id
            return Opened(run.id, run.told, where)
        project = run.project_or("MLFLOW_EXPERIMENT_NAME")
        found = self._client.get_experiment_by_name(project)
        experiment = found.experiment_id if found else self._client.create_experiment(project, artifacts)
        self._id = self._client.create_run(experiment, run_name=run.name).info.run_id
        params = [Param(name, str(value)[:_LONGEST_PARAM]) for name, value in run.settings.items()]
        for start in range(0, len(params), _PARAMS_AT_ONCE):
            self._client.log_batch(self._id, params=params[start : start + _PARAMS_AT_ONCE])
        return Opened(self._id, NOTHING, where)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        now = int(time.time() * 1000)
        metrics = [Metric(_NOT_IN_NAMES.sub("_", name), value, now, step) for name, value in values.items()]
        self._client.log_batch(self._id, metrics=metrics)

    def samples(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        text = "\n\n".join(as_text(row) for row in rows)
        self._client.log_text(self._id, text, f"samples/step-{step:06d}.txt")

    def close(self, outcome: Outcome) -> None:
        self._client.set_terminated(self._id, _STATES[outcome])

    def _goes_on(self, run_id: str) -> bool:
        """Whether the store still has the run; where it does not, another one is begun."""
        try:
            self._client.update_run(run_id, status="RUNNING")
        except MlflowException:
            return False
        return True
