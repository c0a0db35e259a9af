"""What the reference said is remembered by content, and the memory outlives the run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tests.conftest import Workshop

import duiqi
from duiqi.data.encoding import EncodedRanking
from duiqi.models.shared_base import SharedBase
from duiqi.training.reference import ReferenceMemory, answer_keys, memory_file


def ranking(prompt: list[int], *answers: list[int]) -> EncodedRanking:
    return EncodedRanking(prompt, list(answers), prompt_truncated=False, answers_truncated=0, answers_dropped=0)


FIRST, SECOND = ranking([1, 2], [3, 4], [5]), ranking([6], [3, 4], [7], [8])


def test_what_was_kept_is_recalled_in_order_whatever_it_stands_beside() -> None:
    memory = ReferenceMemory(None)
    memory.keep([FIRST, SECOND], torch.tensor([-1.0, -2.0, -3.0, -4.0, -5.0]))
    found = memory.recall([SECOND, FIRST])
    assert found is not None
    assert found.tolist() == [-3.0, -4.0, -5.0, -1.0, -2.0]


def test_one_unknown_answer_means_computing_all() -> None:
    memory = ReferenceMemory(None)
    memory.keep([FIRST], torch.tensor([-1.0, -2.0]))
    assert memory.recall([FIRST, SECOND]) is None


def test_prompt_and_answer_are_told_apart() -> None:
    """The same tokens divided elsewhere are another answer."""
    keys = {key for r in (FIRST, SECOND, ranking([1], [2, 3, 4]), ranking([1, 2, 3], [4])) for key in answer_keys(r)}
    assert len(keys) == 7


def test_a_memory_is_read_again_from_its_file(tmp_path: Path) -> None:
    file = tmp_path / "deep" / "memory.safetensors"
    memory = ReferenceMemory(file)
    memory.keep([FIRST], torch.tensor([-1.25, -2.5]))
    assert memory.save() == ""
    found = ReferenceMemory(file).recall([FIRST])
    assert found is not None
    assert found.tolist() == [-1.25, -2.5]
    assert [path.name for path in file.parent.iterdir()] == [file.name]


def test_a_damaged_file_is_an_empty_memory(tmp_path: Path) -> None:
    (tmp_path / "memory.safetensors").write_bytes(b"half a file")
    assert len(ReferenceMemory(tmp_path / "memory.safetensors")) == 0


def test_a_place_that_cannot_be_written_is_said_and_no_error(tmp_path: Path) -> None:
    (tmp_path / "in the way").write_text("")
    memory = ReferenceMemory(tmp_path / "in the way" / "memory.safetensors")
    memory.keep([FIRST], torch.tensor([-1.0, -2.0]))
    assert "cannot be kept" in memory.save()
    assert memory.save() == ""
    assert memory.recall([FIRST]) is not None


def test_every_reference_has_a_file_of_its_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert memory_file("base", "adapter").parent == tmp_path / "duiqi" / "reference"
    assert memory_file("base", "adapter") != memory_file("base", "other") != memory_file("baseadapter", "")


def losses(run: Path) -> list[float]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


def test_the_second_run_never_asks_the_reference_and_learns_the_same(
    workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    asked: list[str] = []
    acting = SharedBase.acting
    monkeypatch.setattr(SharedBase, "acting", lambda self, name: asked.append(name) or acting(self, name))
    settings = {"num_train_epochs": 2, "max_steps": 0, "max_samples": 8, "eval_dataset": None}
    duiqi.run("dpo", **workshop.settings("dpo", tmp_path / "first", **settings))
    opening = 1
    assert asked.count("reference") == opening + 2, "each of the two batches once, in the first epoch"
    asked.clear()
    duiqi.run("dpo", **workshop.settings("dpo", tmp_path / "second", **settings))
    assert asked.count("reference") == opening
    assert losses(tmp_path / "second") == pytest.approx(losses(tmp_path / "first"), abs=1e-6)
    asked.clear()
    duiqi.run("dpo", **workshop.settings("dpo", tmp_path / "third", **settings, reuse_reference=False))
    assert asked.count("reference") == opening + 2, "without its file it remembers within the run"
    asked.clear()
    duiqi.run("dpo", **workshop.settings("dpo", tmp_path / "other", **settings, ref_model=workshop.sft))
    assert losses(tmp_path / "other") == pytest.approx(losses(tmp_path / "first"), abs=1e-6)
