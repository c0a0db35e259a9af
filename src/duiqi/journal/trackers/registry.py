"""Which trackers there are, and how each of them is found, checked and made."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from importlib.util import find_spec

from duiqi.errors import SettingsError
from duiqi.journal.trackers.tracker import Tracker
from duiqi.journal.trackers.tracking import Tracking


@dataclass(frozen=True, slots=True)
class Service:
    """A tracker's sink, and what its package finds in the environment before it is imported."""

    sink: str
    """`module:class` below this package; its package has the tracker's name, on PyPI too."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Variables that are set where the user has not set them."""


def make_tracking(names: Sequence[str], *, project: str | None = None, run_name: str | None = None) -> Tracking:
    """The trackers of these names, none of them imported yet.

    Raises:
        SettingsError: A package is not installed.
    """
    missing = [name for name in names if not _is_installed(name)]
    if missing:
        raise SettingsError(
            f"{' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} not installed",
            where="report_to",
            remedy=f"pip install {' '.join(missing)}, or take {'it' if len(missing) == 1 else 'them'} out of report_to",
        )
    makers: dict[str, Callable[[], Tracker]] = {name: partial(_make, SERVICES[name]) for name in names}
    return Tracking(makers, project=project, name=run_name)


def _is_installed(package: str) -> bool:
    """Whether a package can be imported; a mere folder of its name, as trackers leave them behind, does not count."""
    spec = find_spec(package)
    return spec is not None and spec.origin is not None


def _make(service: Service) -> Tracker:
    for variable, value in service.environment.items():
        os.environ.setdefault(variable, value)
    module, name = service.sink.split(":")
    tracker: Tracker = getattr(import_module(f"duiqi.journal.trackers.{module}"), name)()
    return tracker


SERVICES: dict[str, Service] = {
    "tensorboard": Service("tensorboard:TensorBoard"),
    "wandb": Service("wandb:WeightsAndBiases"),
    "swanlab": Service("swanlab:SwanLab"),
    "trackio": Service("trackio:Trackio"),
    # Unreachable servers are given up after seconds, not minutes; usage is not reported; a new database is no news.
    "mlflow": Service(
        "mlflow:MLflow",
        {
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "MLFLOW_LOGGING_LEVEL": "WARNING",
            "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
            "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
        },
    ),
}
