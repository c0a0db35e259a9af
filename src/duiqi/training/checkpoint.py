"""Checkpoints: complete or absent. What a stage needs to go on bit for bit, beside files that load at once."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from duiqi.errors import RunError
from duiqi.journal.files import writing

STATE_TENSORS = "trainer_state.safetensors"
STATE_JSON = "trainer_state.json"


@dataclass(frozen=True)
class TrainerState:
    """Everything besides the loadable model: trained parameters as they are, optimizer, random state, bookkeeping."""

    step: int
    tensors: Mapping[str, Tensor]
    notes: Mapping[str, Any] = field(default_factory=dict)


def random_state() -> dict[str, Tensor]:
    """The state of torch's generators (CPU and current GPU) and of Python's."""
    state = {"random/torch": torch.get_rng_state()}
    if torch.cuda.is_initialized():
        state["random/cuda"] = torch.cuda.get_rng_state()
    python = json.dumps(random.getstate()).encode()
    state["random/python"] = torch.tensor(list(python), dtype=torch.uint8)
    return state


def restore_random_state(tensors: Mapping[str, Tensor]) -> None:
    """Put back what `random_state` gave."""
    torch.set_rng_state(tensors["random/torch"])
    if "random/cuda" in tensors and torch.cuda.is_available():
        torch.cuda.set_rng_state(tensors["random/cuda"])
    version, internal, gauss = json.loads(bytes(tensors["random/python"].tolist()))
    random.setstate((version, tuple(internal), gauss))


def parameter_tensors(parameters: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    """The trained parameters, for a checkpoint."""
    return {f"parameter/{name}": p.detach().cpu() for name, p in parameters.items()}


def restore_parameters(parameters: Mapping[str, nn.Parameter], tensors: Mapping[str, Tensor]) -> None:
    """Put back what `parameter_tensors` gave.

    Raises:
        RunError: The checkpoint is of other parameters (settings changed since).
    """
    saved = {name.removeprefix("parameter/") for name in tensors if name.startswith("parameter/")}
    if saved != set(parameters):
        odd = sorted(saved ^ set(parameters))[0]
        raise RunError(
            f"the checkpoint trains other parameters than these settings (first difference: {odd})",
            remedy="resume with the settings in config.yaml, or start a new output_dir",
        )
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(tensors[f"parameter/{name}"])


def write_checkpoint(directory: Path, state: TrainerState, write_model: Callable[[Path], None]) -> None:
    """Write a checkpoint beside its final place, sync it to disk, then rename: it appears whole or not at all."""
    partial = directory.with_name(f".{directory.name}.partial")
    with writing(directory), _writing_tensors(directory):
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        write_model(partial)
        tensors = {name: value.detach().cpu().contiguous() for name, value in state.tensors.items()}
        save_file(tensors, partial / STATE_TENSORS)
        notes = {"step": state.step, **state.notes}
        (partial / STATE_JSON).write_text(json.dumps(notes, ensure_ascii=False, indent=2), encoding="utf-8")
        _share_like(partial / STATE_JSON, partial.rglob("*.safetensors"))
        for path in partial.rglob("*"):
            _sync(path)
        shutil.rmtree(directory, ignore_errors=True)
        partial.rename(directory)
        _sync(directory.parent)


@contextmanager
def _writing_tensors(directory: Path) -> Iterator[None]:
    """Safetensors wraps what the operating system refused (mostly: a full disk) in an error of its own."""
    try:
        yield
    except SafetensorError as refusal:
        raise RunError(
            f"the checkpoint could not be written ({refusal}); the one before it is whole",
            where=str(directory),
            remedy="free some space, or set output_dir on another disk, then resume_from_checkpoint: true",
        ) from refusal


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


def read_checkpoint(directory: Path) -> TrainerState:
    """Read the state of a complete checkpoint.

    Raises:
        RunError: It was damaged after it was written.
    """
    try:
        notes = json.loads((directory / STATE_JSON).read_text(encoding="utf-8"))
        return TrainerState(step=notes["step"], tensors=load_file(directory / STATE_TENSORS), notes=notes)
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise RunError(
            f"the checkpoint cannot be read ({error})",
            where=str(directory),
            remedy="delete it to resume from the one before",
        ) from error


def complete_checkpoints(root: Path) -> list[Path]:
    """All complete checkpoints under `root`, oldest first."""
    found = [path for path in root.glob("step-*") if (path / STATE_JSON).is_file()]
    return sorted(found, key=lambda path: int(path.name.removeprefix("step-")))


def prune(root: Path, *, keep: int | None, always: set[Path]) -> None:
    """Delete the oldest checkpoints beyond `keep`, never those in `always`, and drafts that a crash left."""
    for partial in root.glob(".step-*.partial"):
        shutil.rmtree(partial, ignore_errors=True)
    if keep is None:
        return
    spare = [path for path in complete_checkpoints(root) if path not in always]
    surplus = len(spare) + len(always) - keep
    for path in spare[: max(0, surplus)]:
        shutil.rmtree(path, ignore_errors=True)


def put_aside(checkpoint: Path, folder: Path) -> None:
    """Move a checkpoint out of the way of those that a run may go on from."""
    target = folder / checkpoint.name
    with writing(folder):
        shutil.rmtree(target, ignore_errors=True)
        checkpoint.rename(target)


def place_result(checkpoint: Path, output_dir: Path) -> None:
    """Put the loadable files of a checkpoint at the top of the run (as links to the same bytes where possible)."""
    with writing(output_dir):
        for path in checkpoint.iterdir():
            if path.name in (STATE_JSON, STATE_TENSORS):
                continue
            target = output_dir / path.name
            if path.is_dir():
                shutil.copytree(path, target, dirs_exist_ok=True)
                continue
            target.unlink(missing_ok=True)
            try:
                os.link(path, target)
            except OSError:
                shutil.copy2(path, target)
