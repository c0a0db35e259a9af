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
from safetensors.torch import load_file
from tests.conftest import Workshop

import duiqi
from duiqi.cli.main import main

SETTINGS: dict[str, dict[str, Any]] = {
    "sft": {"max_steps": 10, "save_steps": 2, "lora_dropout": 0.1},
    "ppo": {"max_steps": 6, "save_steps": 2, "kl_target": 1.0, "critic": "adapter", "eval_steps": 3, "watch": "warn"},
}
WEIGHTS = "adapter_model.safetensors"


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def recipe(workshop: Workshop, stage: str, directory: Path, **changes: Any) -> Path:
    path = directory.with_suffix(".yaml")
    settings = workshop.settings(stage, directory, **{**SETTINGS[stage], **changes})
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


def learned(directory: Path) -> dict[str, bytes]:
    """Everything that learns, and its optimizer's state, at the last checkpoint."""
    state = load_file(directory / "last" / "trainer_state.safetensors")
    return {name: t.numpy().tobytes() for name, t in state.items() if name.startswith(("parameter/", "optimizer/"))}


@pytest.mark.parametrize(
    ("stage", "changes"), [("sft", {}), ("ppo", {}), ("ppo", {"critic": "model"})], ids=["sft", "ppo", "ppo-model"]
)
def test_a_killed_run_resumes_bit_for_bit(
    workshop: Workshop, tmp_path: Path, stage: str, changes: dict[str, Any]
) -> None:
    path = recipe(workshop, stage, tmp_path / "killed", **changes)
    victim = start(stage, path)
    wait_for(tmp_path / "killed" / "checkpoints" / "step-000002" / "trainer_state.json", victim)
    victim.send_signal(signal.SIGKILL)
    victim.wait()
    resumed = start(stage, path, "resume_from_checkpoint=true")
    assert main([stage, str(recipe(workshop, stage, tmp_path / "whole", **changes))]) == 0
    finish(resumed)
    assert (tmp_path / "killed" / WEIGHTS).read_bytes() == (tmp_path / "whole" / WEIGHTS).read_bytes()
    assert learned(tmp_path / "killed") == learned(tmp_path / "whole")
    assert any(event["kind"] == "rewound" and event["step"] >= 2 for event in lines(tmp_path / "killed/events.jsonl"))
    steps = [row["step"] for row in lines(tmp_path / "killed/metrics.jsonl") if "loss" in row]
    assert steps == list(range(1, SETTINGS[stage]["max_steps"] + 1))


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


class TestAFinishedRun:
    @pytest.fixture
    def run(self, workshop: Workshop, tmp_path: Path) -> Path:
        duiqi.run("sft", **workshop.settings("sft", tmp_path / "run", max_steps=2, overwrite_output_dir=True))
        return tmp_path / "run"

    def test_resumed_it_says_that_nothing_is_left_to_do(self, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
        before = (run / WEIGHTS).read_bytes()
        assert main(["sft", str(run / "config.yaml"), "resume_from_checkpoint=true"]) == 0
        assert "already finished at step 2: nothing left to do\n" in capsys.readouterr().out
        assert (run / WEIGHTS).read_bytes() == before

    def test_its_config_holds_nothing_about_how_it_was_started(self, run: Path) -> None:
        assert main(["sft", str(run / "config.yaml"), "resume_from_checkpoint=true"]) == 0
        assert (
            not {"resume_from_checkpoint", "overwrite_output_dir"}
            & yaml.safe_load((run / "config.yaml").read_text()).keys()
        )
        assert main(["sft", str(run / "config.yaml")]) == 2

    def test_resumed_with_fewer_steps_it_is_refused(self, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["sft", str(run / "config.yaml"), "resume_from_checkpoint=true", "max_steps=1"]) == 2
        assert "is at step 2 already, beyond the 1 that these settings ask for" in capsys.readouterr().err

    def test_its_files_can_be_read_by_whom_the_umask_lets(self, run: Path) -> None:
        files = [path for path in run.rglob("*") if path.is_file() and path.suffix in (".safetensors", ".json")]
        assert len(files) >= 8
        expected = (run / "config.yaml").stat().st_mode
        assert {path.name: oct(path.stat().st_mode) for path in files if path.stat().st_mode != expected} == {}
