"""A stage with trackers: told from the first evaluation to the totals, without any influence on the numbers."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import Workshop

import duiqi
from duiqi.cli.main import main
from duiqi.journal.lines import read_lines
from duiqi.journal.trackers import registry
from duiqi.journal.trackers.tracker import NOTHING, Opened, Outcome, TrackedRun


class Diary:
    """A tracker that remembers in which order it was told what, and draws random numbers all the while."""

    def __init__(self) -> None:
        self.told: list[tuple[str, Any]] = []

    def open(self, run: TrackedRun) -> Opened:
        self.told.append(("open", (run.step, run.id, run.name, run.settings["learning_rate"])))
        return Opened("its id", run.told if run.id else NOTHING, "here")

    def log(self, step: int, values: Mapping[str, float]) -> None:
        random.random()
        self.told.append(("log", (step, sorted(values))))

    def samples(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        self.told.append(("samples", (step, len(rows))))

    def close(self, outcome: Outcome) -> None:
        self.told.append(("close", outcome))


@pytest.fixture
def diary(monkeypatch: pytest.MonkeyPatch) -> Diary:
    """The tracker that is made, whichever is named."""
    diary = Diary()
    monkeypatch.setattr(registry, "_is_installed", lambda name: name == "wandb")
    monkeypatch.setattr(registry, "_make", lambda _service: diary)
    return diary


def test_a_stage_is_told_from_its_first_evaluation_to_its_totals(
    workshop: Workshop, diary: Diary, tmp_path: Path
) -> None:
    quiet, told = tmp_path / "quiet", tmp_path / "told"
    duiqi.run("ppo", **workshop.settings("ppo", quiet, max_steps=2))
    duiqi.run("ppo", **workshop.settings("ppo", told, max_steps=2, report_to="wandb", run_name="first"))
    kinds = [(kind, detail[0]) if kind in ("log", "samples") else (kind, detail) for kind, detail in diary.told]
    assert kinds == [
        ("open", (-1, None, "first", 1e-3)),
        *(("samples", 0), ("log", 0), ("log", 1), ("log", 2), ("samples", 2), ("log", 2), ("log", 2)),
        ("close", "finished"),
    ]
    assert "train/train_runtime" in diary.told[-2][1][1]
    clocks = ("seconds", "tokens_per_second", "memory")
    lines = [
        [{n: v for n, v in row.items() if not n.startswith(clocks)} for row in read_lines(folder / "metrics.jsonl")]
        for folder in (quiet, told)
    ]
    assert lines[0] == lines[1]


def test_a_resumed_stage_goes_on_in_the_same_run(workshop: Workshop, diary: Diary, tmp_path: Path) -> None:
    for steps in (2, 3):
        changes = {"max_steps": steps, "report_to": "wandb", "resume_from_checkpoint": True}
        duiqi.run("sft", **workshop.settings("sft", tmp_path, **changes))
    opened = [detail[:2] for kind, detail in diary.told if kind == "open"]
    assert opened == [(-1, None), (2, "its id")]
    logged = [detail[0] for kind, detail in diary.told if kind == "log"]
    assert logged == [1, 2, 2, 3, 3]  # each start ends with its totals


@pytest.mark.usefixtures("diary")
def test_a_tracker_that_is_not_installed_is_refused_before_anything_is_written(
    workshop: Workshop, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = workshop.settings("sft", tmp_path / "run", report_to="mlflow,wandb,trackio")
    assert main(["sft", *(f"{name}={value}" for name, value in settings.items())]) == 2
    assert capsys.readouterr().err == (
        "error: report_to: mlflow and trackio are not installed\n"
        "  -> pip install mlflow trackio, or take them out of report_to\n"
    )
    assert not (tmp_path / "run").exists()
