"""What is kept of a step in which a number was not finite, so that it can be looked at later."""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from duiqi.journal.files import atomic_write_json, writing
from duiqi.training.learner import NonFiniteStep


def keep_anomaly(folder: Path, accident: NonFiniteStep) -> None:
    """Write the batch (batch.safetensors) and what was found (finding.json) into `folder`.

    Raises:
        RunError: It cannot be written.
    """
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        if is_dataclass(accident.batch):
            save_file(tensors_in(accident.batch), folder / "batch.safetensors")
    atomic_write_json(folder / "finding.json", {"finding": accident.finding, **accident.examined})


def tensors_in(record: Any, prefix: str = "") -> dict[str, Tensor]:
    """The tensors of a dataclass and of the dataclasses in it, by dotted name; rows of token ids filled up with -1."""
    found: dict[str, Tensor] = {}
    for field in fields(record):
        value = getattr(record, field.name)
        if isinstance(value, Tensor):
            found[prefix + field.name] = value.detach().cpu().contiguous().clone()
        elif isinstance(value, tuple) and value and isinstance(value[0], tuple):
            found[prefix + field.name] = pad_sequence(list(map(torch.tensor, value)), True, -1)
        elif is_dataclass(value):
            found |= tensors_in(value, f"{prefix}{field.name}.")
    return found
