"""Checkpoints: complete or absent, and known to be what was written. What a stage needs to go on bit for bit, beside
files that load at once.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from duiqi.errors import RunError
from duiqi.journal.checksums import CHECKSUMS, find_damage, write_checksums
from duiqi.journal.files import writing

STATE_TENSORS = "trainer_state.safetensors"
STATE_JSON = "trainer_state.json"
_NAME = re.compile(r"step-(\d{1,18})")


@dataclass(frozen=True)
class TrainerState:
    """Everything besides the loadable model: trained parameters as they are, optimizer, random state, bookkeeping."""

    step: int
    tensors: Mapping[str, Tensor]
    notes: Mapping[str, Any] = field(default_factory=dict)


def parameter_tensors(parameters: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    """The trained parameters, for a checkpoint."""
    return {f"parameter/{name}": p.detach().cpu() for name, p in parameters.items()}


def restore_parameters(parameters: Mapping[str, nn.Parameter], tensors: Mapping[str, Tensor]) -> None:
    """Put back what `parameter_tensors` gave.

    Raises:
        RunError: The checkpoint is of other parameters (settings changed since).
    """
    saved = {name.removeprefix("parameter/") for name in tensors if name.startswith("parameter/")}
    odd = sorted(saved ^ set(parameters)) or [
        name for name, p in parameters.items() if tensors[f"parameter/{name}"].shape != p.shape
    ]
    if odd:
        raise RunError(
            f"the checkpoint trains other parameters than these settings (first difference: {odd[0]})",
            remedy="resume with the settings in config.yaml, or start a new output_dir",
        )
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(tensors[f"parameter/{name}"])


def write_checkpoint(directory: Path, state: TrainerState, write_model: Callable[[Path], None]) -> None:
    """Write a checkpoint beside its final place, read it back, sync it to disk, then rename: it appears whole or not
    at all.

    Raises:
        RunError: The system refused (a full disk, no permission), a tensor is empty, or what was read back is not what
            was written. Checkpoints that were there before are as they were.
    """
    draft = _draft_of(directory)
    try:
        with writing(directory):
            shutil.rmtree(draft, ignore_errors=True)
            draft.mkdir(parents=True)
            write_model(draft)
            tensors = {name: value.detach().cpu().contiguous() for name, value in state.tensors.items()}
            save_file(tensors, draft / STATE_TENSORS)
            notes = {"step": state.step, **state.notes}
            (draft / STATE_JSON).write_text(json.dumps(notes, ensure_ascii=False, indent=2), encoding="utf-8")
            _read_back(draft, tensors)
            _share_like(draft / STATE_JSON, draft.rglob("*.safetensors"))
            write_checksums(draft)
            for path in (*draft.rglob("*"), draft):
                _sync(path)
            _discard(directory)
            draft.rename(directory)
            _sync(directory.parent)
    except Exception as error:
        shutil.rmtree(draft, ignore_errors=True)  # half a checkpoint on a full disk is in everybody's way
        if not isinstance(error, RunError | SafetensorError):
            raise
        reason, remedy = (error.problem, error.remedy) if isinstance(error, RunError) else (str(error), None)
        raise RunError(
            f"the checkpoint could not be written ({reason}); those before it are whole",
            where=str(directory),
            remedy=f"{remedy or 'look after the disk'}, then resume_from_checkpoint: true",
        ) from error


def _read_back(directory: Path, state: Mapping[str, Tensor]) -> None:
    """See that every file of tensors opens, that none of them is empty, and that the state is what it should be.

    Raises:
        RunError: One is empty, or another one than was to be written.
    """
    for path in directory.rglob("*.safetensors"):
        shapes = shapes_in(path)
        if empty := [name for name, shape in shapes.items() if 0 in shape]:
            raise RunError(f"tensor {empty[0]} of {path.name} is empty", where=str(path))
        if path.name == STATE_TENSORS and shapes != {name: tuple(tensor.shape) for name, tensor in state.items()}:
            raise RunError(f"{path.name} holds other tensors than were written", where=str(path))


def shapes_in(file: Path) -> dict[str, tuple[int, ...]]:
    """Shapes of the tensors in a safetensors file by their names, from its header alone.

    Raises:
        SafetensorError: It is damaged.
    """
    with safe_open(file, framework="pt") as tensors:
        return {name: tuple(tensors.get_slice(name).get_shape()) for name in tensors.keys()}  # noqa: SIM118


def _share_like(model: Path, paths: Iterable[Path]) -> None:
    """Give files the permissions that `model` got from the umask: safetensors keeps its own from everybody else."""
    for path in paths:
        path.chmod(model.stat().st_mode)


def _sync(path: Path) -> None:
    if os.name == "nt" and path.is_dir():
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _draft_of(directory: Path) -> Path:
    """Where what is not yet, or no longer, a checkpoint lies."""
    return directory.with_name(f".{directory.name}.partial")


def read_checkpoint(directory: Path) -> TrainerState:
    """Read the state of a checkpoint after seeing that all its files are as they were written.

    Raises:
        RunError: It was damaged after it was written, or is no checkpoint of ours.
    """
    damage = find_damage(directory)
    try:
        if damage is None:
            notes = json.loads((directory / STATE_JSON).read_text(encoding="utf-8"))
            if notes["step"] == step_of(directory):
                return TrainerState(step=notes["step"], tensors=load_file(directory / STATE_TENSORS), notes=notes)
            damage = f"it is of step {notes['step']}"
    except (OSError, ValueError, KeyError, TypeError, RecursionError, SafetensorError) as error:
        damage = f"its state cannot be read: {type(error).__name__} {error}"
    raise RunError(
        f"the checkpoint is damaged: {damage}",
        where=str(directory),
        remedy="delete it to resume from the one before",
    )


def step_of(directory: Path) -> int:
    """The step that a checkpoint's name says it is of."""
    match = _NAME.fullmatch(directory.name)
    assert match is not None, f"{directory} is no checkpoint"
    return int(match[1])


def complete_checkpoints(root: Path) -> list[Path]:
    """All checkpoints under `root`, oldest first. Each was whole when it got its name."""
    found = [path for path in root.glob("step-*") if _NAME.fullmatch(path.name) and path.is_dir()]
    return sorted(found, key=step_of)


def prune(root: Path, *, keep: int | None, always: Collection[Path], every: int = 0) -> None:
    """Delete the oldest checkpoints beyond `keep`, never those in `always`, and drafts that a crash left.

    Args:
        every: Checkpoints of a multiple of so many steps stay and do not count; 0: none.
    """
    for draft in root.glob(".step-*.partial"):
        shutil.rmtree(draft, ignore_errors=True)
    if keep is None:
        return
    counted = [path for path in complete_checkpoints(root) if path in always or not every or step_of(path) % every]
    spare = [path for path in counted if path not in always]
    for path in spare[: max(0, len(counted) - keep)]:
        _discard(path)


def _discard(directory: Path) -> None:
    """Remove a checkpoint; where that is cut short, nothing is left that looks like one."""
    if not directory.is_dir():
        return
    rest = directory.with_name(f".{directory.name}.old.partial")
    shutil.rmtree(rest, ignore_errors=True)
    directory.rename(rest)
    shutil.rmtree(rest, ignore_errors=True)


def put_aside(checkpoint: Path, folder: Path) -> None:
    """Move a checkpoint out of the way of those that a run may go on from."""
    target = folder / checkpoint.name
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(target, ignore_errors=True)
        checkpoint.rename(target)


def place_result(checkpoint: Path, output_dir: Path) -> None:
    """Put the loadable files of a checkpoint at the top of the run (as links to the same bytes where possible).

    Raises:
        RunError: The checkpoint is damaged, or the place cannot be written.
    """
    if damage := find_damage(checkpoint):
        raise RunError(
            f"the checkpoint is damaged: {damage}",
            where=str(checkpoint),
            remedy="delete it, then resume_from_checkpoint: true from the one before",
        )
    with writing(output_dir):
        for path in checkpoint.iterdir():
            if path.name in (STATE_JSON, STATE_TENSORS, CHECKSUMS):
                continue
            target = output_dir / path.name
            if path.is_dir():
                shutil.copytree(path, target, dirs_exist_ok=True)
                continue
            draft = output_dir / f".{path.name}.partial"
            draft.unlink(missing_ok=True)
            try:
                os.link(path, draft)
            except OSError:
                shutil.copy2(path, draft)
            draft.replace(target)
            draft.unlink(missing_ok=True)  # where both were the same file already, renaming left both
        _sync(output_dir)
