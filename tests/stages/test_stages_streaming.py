"""A streamed run learns from rows that are read as they are needed, and goes on after a kill as if nothing had been."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.torch import load_file
from tests.conftest import Workshop
from tests.stages.test_stages_resume import finish, start, wait_for

import duiqi
from duiqi.cli.main import main
from duiqi.errors import SettingsError

WEIGHTS = "adapter_model.safetensors"


def recipe(workshop: Workshop, stage: str, directory: Path, **changes: Any) -> Path:
    path = directory.with_suffix(".yaml")
    own = {"streaming": True, "buffer_size": 5, "max_steps": 16, "save_steps": 2, "lora_dropout": 0.1}
    path.write_text(yaml.safe_dump(workshop.settings(stage, directory, **{**own, **changes})), encoding="utf-8")
    return path


@pytest.mark.parametrize("stage", ["sft", "pretrain"])
def test_a_streamed_run_that_is_killed_resumes_bit_for_bit(workshop: Workshop, tmp_path: Path, stage: str) -> None:
    path = recipe(workshop, stage, tmp_path / "killed")
    victim = start(stage, path)
    wait_for(tmp_path / "killed" / "checkpoints" / "step-000002" / "trainer_state.json", victim)
    victim.send_signal(signal.SIGKILL)
    victim.wait()
    resumed = start(stage, path, "resume_from_checkpoint=true")
    assert main([stage, str(recipe(workshop, stage, tmp_path / "whole"))]) == 0
    finish(resumed)
    killed, whole = (load_file(tmp_path / name / WEIGHTS) for name in ("killed", "whole"))
    assert killed.keys() == whole.keys()
    assert all(bool((killed[name] == whole[name]).all()) for name in whole)


def test_it_says_what_is_streamed_and_evaluates_on_rows_that_are_not(workshop: Workshop, tmp_path: Path) -> None:
    path = recipe(workshop, "sft", tmp_path / "run", max_steps=2, eval_dataset="sft@6")
    assert main(["sft", str(path)]) == 0
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text(encoding="utf-8"))
    streamed, held_out = manifest["data"]
    assert streamed.keys() == {"file", "bytes", "modified"}
    assert held_out.keys() == {"file", "sha256", "rows"}
    assert manifest["notes"][0].endswith(f"{streamed['bytes']:,} bytes in 1 file, streamed")
    logged = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in logged if "eval_loss" in row] == [0, 2]


def test_a_stream_with_a_buffer_of_one_learns_the_rows_in_their_order(workshop: Workshop, tmp_path: Path) -> None:
    rows = [{"instruction": f"question {number}", "output": f"answer {number}"} for number in range(8)]
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    seen = []
    for name, changes in (("streamed", {"streaming": True, "buffer_size": 1}), ("whole", {})):
        own = {"dataset": str(data), "max_steps": 1, "per_device_train_batch_size": 8, **changes}
        duiqi.run("sft", **workshop.settings("sft", tmp_path / name, **own))
        (line,) = [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        seen.append(line["loss"])
    assert seen[0] == pytest.approx(seen[1], rel=1e-5)  # one step over all rows, in whatever order


def test_without_max_steps_a_stream_is_refused(workshop: Workshop, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="max_steps: how many rows there are is not known"):
        duiqi.run("sft", **workshop.settings("sft", tmp_path / "run", streaming=True, max_steps=0))


@pytest.mark.parametrize("setting", [{"val_size": 4}, {"max_samples": 3}, {"data_cache_dir": "here"}])
def test_settings_that_need_all_rows_are_refused_beside_it(
    workshop: Workshop, tmp_path: Path, setting: dict[str, Any]
) -> None:
    (name,) = setting
    with pytest.raises(SettingsError, match=name):
        duiqi.run("sft", **workshop.settings("sft", tmp_path / "run", streaming=True, **setting))


def test_a_streamed_run_can_be_planned(workshop: Workshop, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = recipe(workshop, "sft", tmp_path / "run", max_steps=3)
    assert main(["plan", "sft", str(path)]) == 0
    assert "rows      12, " in capsys.readouterr().out
