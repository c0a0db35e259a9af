"""Reading run directories back, including those of killed runs."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from duiqi.errors import RunError
from duiqi.journal.lines import read_lines


@dataclass(frozen=True)
class Series:
    """One metric over the steps at which it was logged; NaN where it was not finite."""

    steps: tuple[int, ...]
    values: tuple[float, ...]

    @property
    def finite(self) -> list[tuple[int, float]]:
        """The points that can be drawn."""
        return [(s, v) for s, v in zip(self.steps, self.values, strict=True) if math.isfinite(v)]


@dataclass(frozen=True)
class RunRecord:
    """What a run directory says about its run."""

    path: Path
    config: Mapping[str, Any]
    manifest: Mapping[str, Any]
    metrics: tuple[Mapping[str, Any], ...]
    samples: tuple[Mapping[str, Any], ...]
    events: tuple[Mapping[str, Any], ...]
    results: Mapping[str, Any]

    @property
    def name(self) -> str:
        """The directory's own name."""
        return self.path.resolve().name

    @property
    def stage(self) -> str:
        """`sft`, `rm`, `ppo` ...; `run` when the manifest does not say."""
        return str(self.manifest.get("stage", "run"))

    @property
    def last_step(self) -> int:
        """The last step that was logged; 0 when none was."""
        return max((int(row.get("step", 0)) for row in self.metrics), default=0)

    def series(self) -> dict[str, Series]:
        """Every metric by name, in the order in which they first appear."""
        points: dict[str, dict[int, float]] = {}
        for row in self.metrics:
            for name, value in row.items():
                number = _number(value)
                if name not in ("step", "epoch") and number is not None:
                    points.setdefault(name, {})[int(row.get("step", 0))] = number
        return {name: Series(tuple(sorted(by_step)), tuple(by_step[s] for s in sorted(by_step)))
                for name, by_step in points.items()}  # fmt: skip


def load_run(path: str | Path) -> RunRecord:
    """Read a run directory. Whatever a killed run had not written yet is empty.

    Raises:
        RunError: there is no run in this directory, or one of its files is damaged.
    """
    directory = Path(path)
    if not any((directory / name).exists() for name in ("manifest.json", "metrics.jsonl")):
        raise RunError(
            "there is no run here (neither manifest.json nor metrics.jsonl)",
            where=str(directory),
            remedy="name the output_dir of a run",
        )
    return RunRecord(
        path=directory,
        config=_load_config(directory / "config.yaml"),
        manifest=_load_json(directory / "manifest.json"),
        metrics=tuple(read_lines(directory / "metrics.jsonl")),
        samples=tuple(read_lines(directory / "samples.jsonl")),
        events=tuple(read_lines(directory / "events.jsonl")),
        results=_load_json(directory / "all_results.json"),
    )


def _load_json(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        loaded = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise RunError(f"not valid JSON: {error}", where=str(path), remedy="restore the file or remove it") from error
    return loaded if isinstance(loaded, dict) else {}


def _load_config(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        loaded = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise RunError(f"not valid YAML: {error}", where=str(path), remedy="restore the file or remove it") from error
    return loaded if isinstance(loaded, dict) else {}


def _number(value: object) -> float | None:
    """The number a metric stands for: "nan" and "inf" count as NaN, words and flags are no metrics."""
    if isinstance(value, bool):
        return None
    if isinstance(value, int | float):
        return float(value) if math.isfinite(value) else math.nan
    return math.nan if value in ("nan", "inf", "-inf") else None
