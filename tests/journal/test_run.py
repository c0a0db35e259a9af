"""A run directory: refused when in use, exact when resumed, readable by anyone."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest
import yaml

from duiqi.errors import Interrupted, RunError
from duiqi.journal.lines import read_lines
from duiqi.journal.run import Run, linked_checkpoint
from duiqi.types import TrainingTotals

SETTINGS = {"model_name_or_path": "base", "learning_rate": 1e-5, "system": "你是小对。", "lora_target": ["q", "v"]}
TOTALS = TrainingTotals(1.0, 2.5, 10.0, 6.4, 0.8)


def open_run(directory: Path, **options: Any) -> Run:
    return Run.open(directory, **{"stage": "sft", "settings": SETTINGS, "argv": ["duiqi", "sft"], **options})


def test_the_settings_load_back_to_the_same_in_the_same_order(tmp_path: Path) -> None:
    with open_run(tmp_path / "sft"):
        pass
    text = (tmp_path / "sft/config.yaml").read_text(encoding="utf-8")
    assert list(yaml.safe_load(text).items()) == list(SETTINGS.items())
    assert "你是小对" in text


def test_the_manifest_says_what_is_needed_to_repeat_the_run(tmp_path: Path) -> None:
    with open_run(tmp_path, settings={**SETTINGS, "seed": 7}) as run:
        run.describe(parents=[{"role": "base", "path": "base"}])
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert manifest["argv"] == ["duiqi", "sft"]
    assert manifest["seed"] == 7
    assert manifest["parents"] == [{"role": "base", "path": "base"}]
    assert {"python", "torch", "transformers", "peft"} <= set(manifest["versions"])
    assert manifest["hardware"]["cores"] >= 1


def test_a_directory_that_holds_a_run_is_refused_with_both_remedies(tmp_path: Path) -> None:
    with open_run(tmp_path) as run:
        run.metrics(1, {"loss": 1.0})
    with pytest.raises(RunError, match=r"overwrite_output_dir: true.*resume_from_checkpoint: true"):
        open_run(tmp_path)


def test_somebody_elses_recipe_is_not_written_over(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("dataset: mine\n")
    with pytest.raises(RunError):
        open_run(tmp_path)
    assert (tmp_path / "config.yaml").read_text() == "dataset: mine\n"


def test_a_run_that_failed_before_its_first_step_is_no_obstacle(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="bad row"), open_run(tmp_path):
        raise ValueError("bad row")
    with open_run(tmp_path):
        pass
    assert [event["kind"] for event in read_lines(tmp_path / "events.jsonl")] == ["started"]


def test_overwriting_removes_the_old_run_and_nothing_else(tmp_path: Path) -> None:
    with open_run(tmp_path) as run:
        run.metrics(1, {"loss": 1.0})
        run.checkpoint_dir(1).mkdir(parents=True)
        run.link("best", 1)
    (tmp_path / "adapter_model.safetensors").write_text("old")
    (tmp_path / "notes.txt").write_text("mine")
    with open_run(tmp_path, overwrite=True) as run:
        assert not run.is_resumed
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert not {"best", "checkpoints", "adapter_model.safetensors"} & {p.name for p in tmp_path.iterdir()}
    assert read_lines(tmp_path / "metrics.jsonl") == []


def test_resuming_where_there_is_no_run_begins_one(tmp_path: Path) -> None:
    with open_run(tmp_path / "new", resume=True) as run:
        assert not run.is_resumed


def test_resuming_keeps_provenance_and_notes_changed_settings(tmp_path: Path) -> None:
    with open_run(tmp_path) as run:
        run.describe(data={"sha256": "abc"})
        run.metrics(1, {"loss": 1.0})
    with open_run(tmp_path, resume=True, settings={**SETTINGS, "learning_rate": 2e-5}) as run:
        assert run.is_resumed
    assert json.loads((tmp_path / "manifest.json").read_text())["data"] == {"sha256": "abc"}
    resumed = read_lines(tmp_path / "events.jsonl")[-1]
    assert resumed["changed_settings"] == {"learning_rate": [1e-5, 2e-5]}


def test_a_stage_does_not_continue_the_run_of_another(tmp_path: Path) -> None:
    with open_run(tmp_path) as run:
        run.metrics(1, {"loss": 1.0})
    with pytest.raises(RunError, match="run of sft, which ppo cannot continue"):
        open_run(tmp_path, stage="ppo", resume=True)


def test_two_runs_cannot_share_a_directory_at_once(tmp_path: Path) -> None:
    with open_run(tmp_path), pytest.raises(RunError, match="another process is writing"):
        open_run(tmp_path, overwrite=True)


def test_the_lock_of_a_killed_process_is_taken_over(tmp_path: Path) -> None:
    script = f"""
import os, signal
from pathlib import Path
from duiqi.journal.lock import DirectoryLock
lock = DirectoryLock(Path({str(tmp_path)!r}))
os.kill(os.getpid(), signal.SIGKILL)
"""
    subprocess.run([sys.executable, "-c", script], check=False)
    assert (tmp_path / ".lock").read_text().strip().isdigit()
    open_run(tmp_path).close()


def test_a_file_in_the_place_of_the_directory_is_named(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    with pytest.raises(RunError, match=r"taken: a file is in the way"):
        open_run(tmp_path / "taken")


def test_no_disk_space_is_refused_at_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage(10, 10, 0))
    with pytest.raises(RunError, match="0 MiB are free"):
        open_run(tmp_path)


def test_metrics_are_valid_json_lines_even_when_the_loss_explodes(tmp_path: Path) -> None:
    with open_run(tmp_path) as run:
        run.metrics(1, {"loss": float("nan")})
        run.metrics(1, {"loss": 2.0}, prefix="eval")
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1, "loss": "nan"}\n{"step": 1, "eval_loss": 2.0}\n'


def test_rewinding_forgets_later_steps_and_says_so(tmp_path: Path) -> None:
    with open_run(tmp_path) as run:
        for step in (10, 20, 30):
            run.metrics(step, {"loss": 1 / step})
            run.samples(step, [{"prompt": "p", "answer": "a"}])
        run.rewind(20)
        run.metrics(21, {"loss": 0.5})
    assert [row["step"] for row in read_lines(tmp_path / "metrics.jsonl")] == [10, 20, 21]
    assert [row["step"] for row in read_lines(tmp_path / "samples.jsonl")] == [10, 20]
    assert read_lines(tmp_path / "events.jsonl")[-1]["dropped"] == {"metrics": 1, "samples": 1}


def test_a_line_cut_short_by_a_kill_is_not_glued_to_the_next(tmp_path: Path) -> None:
    with open_run(tmp_path) as run:
        run.metrics(1, {"loss": 1.0})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "lo')
    with open_run(tmp_path, resume=True) as run:
        run.metrics(2, {"loss": 0.5})
    assert [row["step"] for row in read_lines(tmp_path / "metrics.jsonl")] == [1, 2]


def test_a_broken_line_in_the_middle_is_named(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"st\n{"step": 3}\n')
    with pytest.raises(RunError, match=r"metrics.jsonl:2: this line is not JSON"):
        read_lines(tmp_path / "metrics.jsonl")


def test_links_are_relative_and_replaced(tmp_path: Path) -> None:
    with open_run(tmp_path / "run") as run:
        for step in (10, 20):
            run.checkpoint_dir(step).mkdir(parents=True)
            run.link("last", step)
    moved = (tmp_path / "run").rename(tmp_path / "moved")
    assert linked_checkpoint(moved, "last") == moved.resolve() / "checkpoints/step-000020"
    assert linked_checkpoint(moved, "best") is None


def test_without_symbolic_links_a_text_file_says_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError("symbolic link privilege not held")

    monkeypatch.setattr(Path, "symlink_to", refuse)
    with open_run(tmp_path) as run:
        run.checkpoint_dir(10).mkdir(parents=True)
        run.link("best", 10)
    assert linked_checkpoint(tmp_path, "best") == tmp_path / "checkpoints/step-000010"


def test_the_results_use_the_keys_of_transformers(tmp_path: Path) -> None:
    with open_run(tmp_path) as run:
        run.finish(TOTALS, {"eval_loss": 2.0})
    trained = json.loads((tmp_path / "train_results.json").read_text())
    assert list(trained) == [
        "epoch", "train_loss", "train_runtime", "train_samples_per_second", "train_steps_per_second"
    ]  # fmt: skip
    assert json.loads((tmp_path / "all_results.json").read_text()) == {**trained, "eval_loss": 2.0}


@pytest.mark.parametrize(
    ("error", "kind"),
    [(Interrupted("saved"), "interrupted"), (KeyboardInterrupt(), "interrupted"), (OSError(), "failed")],
)
def test_how_a_run_ended_is_noted(tmp_path: Path, error: BaseException, kind: str) -> None:
    with pytest.raises(type(error)), open_run(tmp_path):
        raise error
    assert read_lines(tmp_path / "events.jsonl")[-1]["kind"] == kind


def test_rejected_rows_are_kept(tmp_path: Path) -> None:
    with open_run(tmp_path) as run:
        path = run.write_rejects([{"line": 7, "problem": "没有回答"}])
    assert read_lines(path) == [{"line": 7, "problem": "没有回答"}]
