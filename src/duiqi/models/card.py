"""duiqi.json: what PEFT's files have no place for. It travels with every adapter and model that duiqi writes."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, TypeAdapter, ValidationError

from duiqi.errors import ModelError

CARD_NAME = "duiqi.json"
_STRICT = ConfigDict(extra="forbid")


@dataclass(frozen=True)
class Below:
    """An adapter that another one was trained on, and is heard with."""

    __pydantic_config__ = _STRICT

    path: str
    """Absolute."""
    digest: str
    """Of its weights (see `fingerprint.weights_digest`)."""
    relative: str | None = None
    """From the run of the one above, so that a folder of runs can be moved as a whole."""


@dataclass(frozen=True)
class ModelCard:
    """Where an adapter or model comes from, and how to talk to it."""

    __pydantic_config__ = _STRICT

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
    """Adapters that it began from as a copy, nearest first."""
    below: tuple[Below, ...] = ()
    """Adapters that it was trained on and must be heard with, the lowest first."""
    vocabulary: int = 0
    """Rows to which the embeddings of the base were grown; 0: they were not."""
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


def relative_to_run(path: str, directory: Path) -> str | None:
    """An absolute path as seen from the run that `directory` belongs to; None for the name of a model on the hub."""
    return os.path.relpath(path, run_home(directory)) if os.path.isabs(path) else None


def find_again(path: str, relative: str | None, directory: Path) -> Path | None:
    """Where something that a card names is now: where it was, or beside the run that was moved with it."""
    if os.path.exists(path):
        return Path(path)
    moved = run_home(directory) / relative if relative is not None else None
    return moved.resolve() if moved is not None and os.path.exists(moved) else None


def read_card(directory: str | Path) -> ModelCard | None:
    """The card in `directory`, or None where there is none (an adapter that another tool wrote).

    Raises:
        ModelError: The file is there but is not a card.
    """
    path = Path(directory) / CARD_NAME
    if not path.is_file():
        return None
    try:
        return _reader().validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        raise ModelError(
            f"not a valid model card ({_first_reason(error)})",
            where=str(path),
            remedy="copy the file again from the run that wrote it",
        ) from error


@cache
def _reader() -> TypeAdapter[ModelCard]:
    return TypeAdapter(ModelCard)


def _first_reason(error: OSError | ValidationError) -> str:
    if isinstance(error, OSError):
        return str(error)
    first = error.errors(include_url=False, include_input=False)[0]
    place = ".".join(map(str, first["loc"]))
    return f"{place}: {first['msg']}" if place else first["msg"]
