"""A run that is killed and resumed ends bit for bit where an uninterrupted one does."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.conftest import Workshop

SETTINGS = {
    "sft": {"max_steps": 10, "save_steps": 2, "lora_dropout": 0.1},
    "ppo": {"max_steps": 6, "save_steps": 2, "kl_target": 1.0, "critic": "adapter", "eval_steps": 3},
}
WEIGHTS = "adapter_model.safetensors"


def recipe(workshop: Workshop, stage: str, directory: Path, **changes: Any) -> Path:
    path = directory.with_suffix(".yaml")
    settings = workshop.settings(stage, directory, **SETTINGS[stage], **changes)
    path.write_text(yaml.safe_dump(settings), encoding="utf-8")
    return path


def start(stage: str, path: Path, *words: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "duiqi", stage, str(path), *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
    )


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while not path.exists():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline, f"{path} never appeared"
        time.sleep(0.002)


def finish(process: subprocess.Popen[str]) -> str:
    output = process.communicate(timeout=300)[0]
    assert process.returncode == 0, output
    return output


@pytest.mark.parametrize("stage", ["sft", "ppo"])
def test_a_killed_run_resumes_bit_for_bit(workshop: Workshop, tmp_path: Path, stage: str) -> None:
    whole = start(stage, recipe(workshop, stage, tmp_path / "whole"))
    path = recipe(workshop, stage, tmp_path / "killed")
    victim = start(stage, path)
    wait_for(tmp_path / "killed" / "checkpoints" / "step-000002" / "trainer_state.json", victim)
    victim.send_signal(signal.SIGKILL)
    victim.wait()
    finish(whole)
    finish(start(stage, path, "resume_from_checkpoint=true"))
    assert (tmp_path / "killed" / WEIGHTS).read_bytes() == (tmp_path / "whole" / WEIGHTS).read_bytes()
    events = [json.loads(line) for line in (tmp_path / "killed" / "events.jsonl").read_text().splitlines()]
    assert any(event["kind"] == "rewound" and event["step"] >= 2 for event in events)


def test_ctrl_c_saves_and_says_how_to_go_on(workshop: Workshop, tmp_path: Path) -> None:
    path = recipe(workshop, "sft", tmp_path / "run")
    path.write_text(path.read_text().replace("max_steps: 10", "max_steps: 2000"), encoding="utf-8")
    process = start("sft", path)
    wait_for(tmp_path / "run" / "checkpoints" / "step-000002", process)
    process.send_signal(signal.SIGINT)
    output = finish(process)
    assert "stopped by SIGINT after step" in output
    assert "resume_from_checkpoint=true" in output
    assert (tmp_path / "run" / "last" / WEIGHTS).is_file()


def test_metrics_after_resuming_have_no_step_twice(workshop: Workshop, tmp_path: Path) -> None:
    path = recipe(workshop, "sft", tmp_path / "run")
    victim = start("sft", path)
    wait_for(tmp_path / "run" / "checkpoints" / "step-000004", victim)
    victim.send_signal(signal.SIGKILL)
    victim.wait()
    finish(start("sft", path, "resume_from_checkpoint=true"))
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "loss" in row] == list(range(1, 11))
