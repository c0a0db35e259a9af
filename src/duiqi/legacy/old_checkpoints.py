"""What the directories are that old commands name as checkpoints, told by their files alone; none is loaded."""

from __future__ import annotations

import json
from enum import Enum
from pathlib import Path


class Checkpoint(Enum):
    """What a checkpoint of an old command is."""

    RUN = "run"
    """duiqi's own: it says its template, its base and what it stands on."""
    ADAPTER = "adapter"
    """Of another trainer: weights for a base that it does not bring."""
    MODEL = "model"
    """A full model of another trainer."""
    ABSENT = "absent"
    """Nothing that can be told is there: a run to come, or a name on the hub."""


def checkpoint_of(path: str) -> Checkpoint:
    """What is at a path.

    >>> checkpoint_of("runs/of/tomorrow")
    <Checkpoint.ABSENT: 'absent'>
    """
    directory = Path(path).expanduser()
    if (directory / "duiqi.json").is_file():
        return Checkpoint.RUN
    adapter_files = ("adapter_config.json", "adapter_model.bin")
    if any((directory / name).is_file() for name in adapter_files) or _has_trained_layers_alone(directory):
        return Checkpoint.ADAPTER
    return Checkpoint.MODEL if (directory / "config.json").is_file() else Checkpoint.ABSENT


def _has_trained_layers_alone(directory: Path) -> bool:
    """Whether freeze tuning saved there the layers that it trained, and no others."""
    try:
        arguments = json.loads((directory / "finetuning_args.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    is_freeze = isinstance(arguments, dict) and arguments.get("finetuning_type") == "freeze"
    return is_freeze and (directory / "pytorch_model.bin").is_file()
