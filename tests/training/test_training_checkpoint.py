"""Checkpoints are whole or absent, known to be what was written, and kept as long as they should be."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path

import numpy
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from duiqi.errors import RunError
from duiqi.journal.checksums import CHECKSUMS, find_damage
from duiqi.training.checkpoint import (
    STATE_JSON,
    STATE_TENSORS,
    TrainerState,
    complete_checkpoints,
    place_result,
    prune,
    read_checkpoint,
    restore_parameters,
    step_of,
    write_checkpoint,
)
from duiqi.training.random_state import random_state, restore_random_state

STATE = TrainerState(3, {"parameter/weight": torch.arange(6.0).reshape(2, 3)}, {"stage": {"kl": 0.1}})


def write_model(directory: Path) -> None:
    save_file({"weight": torch.ones(2)}, directory / "adapter_model.safetensors")
    (directory / "tokenizer").mkdir()
    (directory / "tokenizer" / "vocab.json").write_text("{}", encoding="utf-8")


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    directory = tmp_path / "checkpoints" / "step-000003"
    write_checkpoint(directory, STATE, write_model)
    return directory


def test_what_was_written_is_read_back(checkpoint: Path) -> None:
    state = read_checkpoint(checkpoint)
    assert state.step == 3
    assert torch.equal(state.tensors["parameter/weight"], STATE.tensors["parameter/weight"])
    assert state.notes["stage"] == {"kl": 0.1}
    assert len(json.loads((checkpoint / CHECKSUMS).read_text())) == 4
    assert find_damage(checkpoint) is None


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def remove(path: Path) -> None:
    path.unlink()


@pytest.mark.parametrize("name", [STATE_TENSORS, STATE_JSON, CHECKSUMS, "tokenizer/vocab.json"])
@pytest.mark.parametrize("spoil", [cut_short, flip_a_bit, remove], ids=lambda spoil: spoil.__name__)
def test_any_damage_to_any_file_is_told_with_its_name(
    checkpoint: Path, name: str, spoil: Callable[[Path], None]
) -> None:
    spoil(checkpoint / name)
    with pytest.raises(RunError, match=rf"the checkpoint is damaged: .*{name.split('.')[0]}"):
        read_checkpoint(checkpoint)


def test_a_checkpoint_under_another_s_name_is_damaged(checkpoint: Path) -> None:
    other = checkpoint.with_name("step-000009")
    checkpoint.rename(other)
    with pytest.raises(RunError, match="it is of step 3"):
        read_checkpoint(other)


@pytest.mark.parametrize("name", ["../../secret", "/etc/hostname", "C:/secret", "a/../../b", ""])
def test_checksums_name_no_file_outside(checkpoint: Path, name: str) -> None:
    (checkpoint / CHECKSUMS).write_text(json.dumps({name: {"sha256": "0" * 64, "bytes": 1}}), encoding="utf-8")
    assert "which is no file in it" in str(find_damage(checkpoint))


@pytest.mark.parametrize("text", ["[]", "{", '{"a": {}}', '{"a": {"sha256": 1, "bytes": -1}}', '{"a": 5}'])
def test_checksums_that_are_none_are_damage(checkpoint: Path, text: str) -> None:
    (checkpoint / CHECKSUMS).write_text(text, encoding="utf-8")
    assert str(find_damage(checkpoint)).startswith(f"{CHECKSUMS} cannot be read")


def test_an_empty_tensor_is_refused_and_leaves_nothing_behind(tmp_path: Path) -> None:
    def write_nothing(directory: Path) -> None:
        save_file({"weight": torch.empty(0, 8)}, directory / "adapter_model.safetensors")

    with pytest.raises(RunError, match=r"tensor weight of adapter_model\.safetensors is empty"):
        write_checkpoint(tmp_path / "step-000001", STATE, write_nothing)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("refusal", "said"),
    [
        (OSError(28, "No space left on device"), "no space is left on this disk"),
        (OSError(30, "Read-only file system"), "this file system is read-only"),
        (OSError(5, "Input/output error"), "the disk reports an error"),
        (Exception("No space left on device (os error 28)"), "no space is left on this disk"),  # as tokenizers says it
    ],
    ids=["full", "read-only", "broken", "full, in words"],
)
def test_a_refusal_of_the_system_leaves_the_checkpoint_before_and_no_draft(
    checkpoint: Path, refusal: Exception, said: str
) -> None:
    def refuse(directory: Path) -> None:
        write_model(directory)
        raise refusal

    with pytest.raises(RunError, match=rf"{said}\); those before it are whole\n.*resume_from_checkpoint: true"):
        write_checkpoint(checkpoint.with_name("step-000004"), STATE, refuse)
    assert [path.name for path in checkpoint.parent.iterdir()] == ["step-000003"]
    assert find_damage(checkpoint) is None


def test_an_error_of_ours_is_no_refusal_of_the_system(tmp_path: Path) -> None:
    def fail(_: Path) -> None:
        raise KeyError("a bug")

    with pytest.raises(KeyError, match="a bug"):
        write_checkpoint(tmp_path / "step-000001", STATE, fail)


def test_what_is_no_checkpoint_is_not_counted_as_one(checkpoint: Path) -> None:
    for name in ("step-abc", "step-", ".step-000005.partial", "step-000007.old"):
        (checkpoint.parent / name).mkdir()
    (checkpoint.parent / "step-000006").write_text("a file", encoding="utf-8")
    assert complete_checkpoints(checkpoint.parent) == [checkpoint]


def kept_of(root: Path, steps: int, **retention: int | None) -> list[int]:
    """The steps of the checkpoints that are left of a run whose best one was its second."""
    for step in range(1, steps + 1):
        write_checkpoint(root / f"step-{step:06d}", TrainerState(step, STATE.tensors), write_model)
        always = {root / f"step-{step:06d}", root / "step-000002"}
        prune(root, always=always, **retention)  # type: ignore[arg-type]
    return [step_of(path) for path in complete_checkpoints(root)]


def test_the_newest_and_the_best_are_kept(tmp_path: Path) -> None:
    assert kept_of(tmp_path, 9, keep=3) == [2, 8, 9]


def test_besides_them_every_so_many_steps_one_is_kept(tmp_path: Path) -> None:
    assert kept_of(tmp_path, 9, keep=3, every=4) == [2, 4, 7, 8, 9]


def test_without_a_limit_all_are_kept(tmp_path: Path) -> None:
    assert kept_of(tmp_path, 5, keep=None) == [1, 2, 3, 4, 5]


def test_a_damaged_checkpoint_does_not_become_the_result(checkpoint: Path, tmp_path: Path) -> None:
    flip_a_bit(checkpoint / "adapter_model.safetensors")
    with pytest.raises(RunError, match="the checkpoint is damaged"):
        place_result(checkpoint, tmp_path)
    assert not (tmp_path / "adapter_model.safetensors").exists()


def test_the_result_is_placed_twice_without_leaving_drafts(checkpoint: Path, tmp_path: Path) -> None:
    for _ in range(2):
        place_result(checkpoint, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter_model.safetensors", "checkpoints", "tokenizer"]


@pytest.mark.parametrize("shape", [(1,), (3, 2), ()])
def test_parameters_of_another_shape_are_refused_and_not_spread(shape: tuple[int, ...]) -> None:
    parameter = nn.Parameter(torch.zeros(2, 3))
    with pytest.raises(RunError, match="trains other parameters"):
        restore_parameters({"weight": parameter}, {"parameter/weight": torch.ones(shape)})
    assert not parameter.any()


def test_every_generator_goes_on_where_it_stood() -> None:
    def draw() -> tuple[Tensor, float, float, float]:
        return torch.rand(3), random.random(), random.gauss(0, 1), numpy.random.normal()

    draw()  # which leaves half a pair of normal numbers behind
    state = random_state()
    first = draw()
    draw()
    restore_random_state(state)
    again = draw()
    assert torch.equal(first[0], again[0])
    assert first[1:] == again[1:]
