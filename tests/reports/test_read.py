"""What was written can be read back, also after a kill."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from tests.reports.conftest import WriteRun

from duiqi.errors import RunError
from duiqi.reports.read import load_run


def test_a_run_reads_back_as_it_was_written(write_run: WriteRun) -> None:
    record = load_run(write_run("ppo"))
    assert (record.name, record.stage, record.last_step) == ("ppo", "ppo", 20)
    assert record.config["system"] == "小对"
    assert record.results["train_runtime"] == 90.0
    assert record.series()["eval_score"].steps == (0, 10, 20)
    assert len(record.samples) == 3


def test_a_last_line_cut_short_by_a_kill_is_left_out(write_run: WriteRun) -> None:
    directory = write_run("ppo", is_finished=False)
    with (directory / "metrics.jsonl").open("a") as file:
        file.write('{"step": 21, "sco')
    record = load_run(directory)
    assert record.last_step == 20
    assert record.results == {}


def test_values_that_are_not_finite_are_kept_as_gaps(write_run: WriteRun) -> None:
    kl = load_run(write_run("ppo")).series()["kl"]
    assert math.isnan(kl.values[6])
    assert len(kl.finite) == 19


def test_a_step_that_was_logged_twice_counts_once_with_its_last_value(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 2, "loss": 9}\n{"step": 1, "loss": 3}\n{"step": 2, "loss": 2}\n')
    assert load_run(tmp_path).series()["loss"].finite == [(1, 3.0), (2, 2.0)]


def test_a_directory_without_a_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"there is no run here.*\n.*output_dir of a run"):
        load_run(tmp_path)


@pytest.mark.parametrize(("file", "content"), [("manifest.json", '{"stage": '), ("config.yaml", "a: [1")])
def test_a_damaged_file_is_named(tmp_path: Path, file: str, content: str) -> None:
    (tmp_path / "metrics.jsonl").touch()
    (tmp_path / file).write_text(content)
    with pytest.raises(RunError, match=f"{file}: not valid"):
        load_run(tmp_path)
