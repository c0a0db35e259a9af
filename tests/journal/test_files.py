"""Files appear whole or not at all, and refusals of the system become advice."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest

from duiqi.errors import RunError
from duiqi.journal.files import atomic_write_json, atomic_write_text, check_free_space


def test_a_failing_write_leaves_the_old_file_and_no_draft(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "manifest.json"
    atomic_write_text(path, "old")

    def refuse(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(RunError, match="no space is left"):
        atomic_write_text(path, "new and longer")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["manifest.json"]


def test_json_stays_valid_with_numbers_that_are_not_finite(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    atomic_write_json(path, {"loss": float("nan"), "nested": [float("inf"), {"low": float("-inf")}]})

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is not JSON")

    read = json.loads(path.read_text(), parse_constant=refuse)
    assert read == {"loss": "nan", "nested": ["inf", {"low": "-inf"}]}


def test_half_an_emoji_survives_as_an_escape(tmp_path: Path) -> None:
    path = tmp_path / "samples.json"
    atomic_write_json(path, {"answer": "好\ud83d"})
    assert json.loads(path.read_text(encoding="utf-8")) == {"answer": "好\ud83d"}


def test_a_full_disk_is_noticed_before_the_work_begins(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"MiB are free.*\n.*output_dir on another disk"):
        check_free_space(tmp_path, 1 << 70)
