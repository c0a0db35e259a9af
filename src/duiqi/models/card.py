"""duiqi.json: what PEFT's files have no place for. It travels with every adapter and model that duiqi writes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from duiqi.errors import ModelError

CARD_NAME = "duiqi.json"


@dataclass(frozen=True)
class ModelCard:
    """Where an adapter or model comes from, and how to talk to it."""

    stage: str
    """The stage that trained it: pretrain, sft, rm, dpo or ppo."""
    role: str
    """policy or reward."""
    base: str
    """The base model as its name or absolute path; for a full model, its own origin."""
    base_fingerprint: str
    """Fingerprint of the base weights (see `models.fingerprint`)."""
    template: Mapping[str, Any] | None = None
    """The template it was trained with, as `Template.to_dict()` gives it."""
    parents: tuple[str, ...] = ()
    """Adapters it began from, nearest first."""
    head: str | None = None
    """Name of the head beside the adapter: `score` for a reward model."""
    base_relative: str | None = None
    """Path from the run (see `run_home`) to a local base, so that a folder of runs can be moved as a whole."""
    extra: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> str:
        return json.dumps(asdict(self), ensure_ascii=False, indent=2)


def run_home(directory: Path) -> Path:
    """The run that a checkpoint belongs to; any other directory is its own home."""
    parent = directory.resolve().parent
    return parent.parent if parent.name == "checkpoints" else directory.resolve()


def read_card(directory: str | Path) -> ModelCard | None:
    """The card in `directory`, or None where there is none (an adapter that another tool wrote).

    Raises:
        ModelError: The file is there but is not a card.
    """
    path = Path(directory) / CARD_NAME
    if not path.is_file():
        return None
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        return ModelCard(**{**fields, "parents": tuple(fields.get("parents", ()))})
    except (ValueError, TypeError) as error:
        raise ModelError(
            f"not a valid model card ({error})",
            where=str(path),
            remedy="copy the file again from the run that wrote it",
        ) from error
