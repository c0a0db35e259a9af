"""A disk that fills up costs the step that was not saved, and nothing else."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import yaml

from duiqi.cli.main import main
from duiqi.journal.checksums import find_damage
from duiqi.training.checkpoint import complete_checkpoints, step_of
from duiqi.training.session import Session
from tests.conftest import Workshop

MIB = 2**20
WEIGHTS = "adapter_model.safetensors"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 80 MiB in memory."""
    place = tmp_path / "disk"
    place.mkdir()
    tool = shutil.which("mount")
    words = [tool or "mount", "-t", "tmpfs", "-o", "size=80m", "tmpfs", str(place)]
    if sys.platform != "linux" or tool is None or subprocess.run(words, capture_output=True, check=False).returncode:
        pytest.skip("a file system can be mounted by root on Linux alone")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


def fill(place: Path, *, but: int) -> Path:
    """Write a file that leaves so many bytes."""
    ballast = place / "ballast"
    with ballast.open("wb") as file:
        file.write(b"\0" * (shutil.disk_usage(place).free - but))
    return ballast


@pytest.mark.parametrize("left", [0, 40_000, 150_000], ids=["nothing", "the first file", "most of a checkpoint"])
def test_a_disk_that_is_full_from_step_three_on_loses_that_step_alone(
    workshop: Workshop,
    tmp_path: Path,
    small_disk: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    left: int,
) -> None:
    record = Session.record

    def record_on_a_full_disk(self: Session, step: int, metrics: Mapping[str, float], *, samples: int) -> None:
        if step == 3:
            fill(small_disk, but=left)
        record(self, step, metrics, samples=samples)

    settings = workshop.settings("sft", small_disk / "run", save_steps=1, lora_dropout=0.1)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(settings), encoding="utf-8")
    with monkeypatch.context() as patch:
        patch.setattr(Session, "record", record_on_a_full_disk)
        assert main(["sft", str(recipe)]) == 2
    message = capsys.readouterr().err
    assert "no space is left on this disk" in message
    assert "Traceback" not in message
    checkpoints = complete_checkpoints(small_disk / "run" / "checkpoints")
    assert [step_of(path) for path in checkpoints] == [1, 2]
    assert [find_damage(path) for path in checkpoints] == [None, None]
    (small_disk / "ballast").unlink()
    assert main(["sft", str(recipe), "resume_from_checkpoint=true"]) == 0
    assert main(["sft", str(recipe), f"output_dir={tmp_path / 'whole'}"]) == 0
    assert (small_disk / "run" / WEIGHTS).read_bytes() == (tmp_path / "whole" / WEIGHTS).read_bytes()


def test_an_export_that_does_not_fit_says_so_and_leaves_nothing(
    workshop: Workshop, small_disk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fill(small_disk, but=60_000)
    assert main(["export", workshop.sft, "--output_dir", str(small_disk / "out")]) == 2
    message = capsys.readouterr().err
    assert "no space is left on this disk" in message
    assert "Traceback" not in message
    assert [path.name for path in small_disk.iterdir()] == ["ballast"]


def test_a_disk_that_cannot_be_written_ends_the_run_before_it_begins(
    workshop: Workshop, tmp_path: Path, small_disk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(workshop.settings("sft", small_disk / "run")), encoding="utf-8")
    assert main(["sft", str(recipe)]) == 2
    assert "this file system is read-only" in capsys.readouterr().err
