"""What a run writes: the bytes of a checkpoint, and of all that are kept; and whether the disk has room for them."""

from __future__ import annotations

import json
import math
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from duiqi.errors import RunError
from duiqi.journal.files import MIB
from duiqi.journal.run import Run
from duiqi.models.adapter_files import PEFT_PREFIX, PROMPT_KEY, SCORE_KEY
from duiqi.models.shared_base import SharedBase
from duiqi.settings.groups import RunSettings
from duiqi.training.random_state import random_state

SMALL_FILES = 5120
"""Bytes of a checkpoint's JSON files together, about: the card, the adapter's configuration, bookkeeping, checksums."""

_DTYPE_NAMES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16", torch.uint8: "U8"}


@dataclass(frozen=True)
class DiskPlan:
    """What a run needs on disk."""

    checkpoint: int
    """Bytes of one checkpoint. The result at the top of the run is links to the last one's files."""
    kept: int
    """Checkpoints at the end."""
    most: int
    """Bytes at the worst time: a new checkpoint is whole before an old one goes."""


def disk_plan(
    base: SharedBase,
    role: str,
    tokenizer: PreTrainedTokenizerBase,
    *,
    settings: RunSettings,
    total_steps: int,
    evaluates: bool,
) -> DiskPlan:
    """What a run writes into its directory, logs aside.

    Args:
        role: What the run makes: policy or reward.
        evaluates: Whether it has held-out rows. Every evaluation may be the best so far, which is then saved.
    """
    size = checkpoint_bytes(base, role, tokenizer)
    due = {total_steps, *_multiples(settings.save_steps, total_steps)}
    if evaluates:
        due |= _multiples(settings.eval_steps, total_steps)
    limit = settings.save_total_limit
    if limit is None:
        return DiskPlan(size, len(due), size * len(due))
    forever = due & _multiples(settings.save_keep_every, total_steps)
    counted = len(due) - len(forever)
    kept = len(forever) + min(counted, max(limit, 2 if evaluates else 1))
    return DiskPlan(size, kept, size * min(len(due), kept + 1))


def check_disk(
    journal: Run,
    base: SharedBase,
    *,
    role: str = "policy",
    tokenizer: PreTrainedTokenizerBase,
    settings: RunSettings,
    total_steps: int,
    evaluates: bool,
) -> None:
    """Say what the run will write, and refuse it where the disk can never hold that; what it wrote before counts as
    room.

    Raises:
        RunError: Even the checkpoints that are certain to be written do not fit.
    """
    sizes = {
        is_best_kept: disk_plan(
            base, role, tokenizer, settings=settings, total_steps=total_steps, evaluates=is_best_kept
        ).most
        for is_best_kept in {False, evaluates}
    }
    checkpoints = journal.checkpoint_dir(0).parent
    room = shutil.disk_usage(journal.directory).free + sum(
        path.stat().st_size for path in checkpoints.rglob("*") if path.is_file()
    )
    needed, most = sizes[False], sizes[evaluates]
    what = f"checkpoints take up to {math.ceil(most / MIB)} MiB, {room // MIB} MiB are free"
    if needed > room:
        raise RunError(
            f"the disk is too small for this run: {what}",
            where=str(journal.directory),
            remedy="free some space, set save_total_limit: 1 and save_keep_every: 0, or output_dir on another disk",
        )
    if most > room:
        journal.warn(f"the disk may become full: {what}")
    else:
        journal.view.note(what)


def _multiples(every: int, total_steps: int) -> set[int]:
    return set(range(every, total_steps + 1, every)) if every else set()


def checkpoint_bytes(base: SharedBase, role: str, tokenizer: PreTrainedTokenizerBase) -> int:
    """Bytes of all files of one checkpoint."""
    learned = base.trainable_parameters()
    state: dict[str, Tensor] = dict(random_state())
    for name, parameter in learned.items():
        moments = {"parameter": parameter, "optimizer/exp_avg": parameter, "optimizer/exp_avg_sq": parameter}
        state |= {f"{kind}/{name}": tensor for kind, tensor in moments.items()}
        state[f"optimizer/step/{name}"] = torch.zeros(())
    files = [tensors_bytes(state), tensors_bytes(_result(base, role)), SMALL_FILES, _tokenizer_bytes(tokenizer)]
    if role == "policy" and "value" in base.heads:
        files.append(tensors_bytes({"value_head.weight": base.heads["value"].weight}))
    return sum(files)


def _result(base: SharedBase, role: str) -> dict[str, Tensor]:
    """What `models.saving` writes of a role, about under the names that it writes."""
    seat = base.seat(role)
    head: dict[str, Tensor] = {PEFT_PREFIX + SCORE_KEY: base.heads[role].weight} if role in base.heads else {}
    own = seat.own
    if own is None:
        return {**dict(seat.network.named_parameters()), **head}
    if own.prefix is not None:
        size = 2 * own.prefix.shape.layers * own.prefix.shape.size
        return {PROMPT_KEY: torch.empty(own.prefix.num_slots, size, device="meta")} | head
    found = own.parameters(seat.network)
    return {PEFT_PREFIX + name.replace(f".{own.name}.", "."): p for name, p in found.items()} | head


def tensors_bytes(tensors: Mapping[str, Tensor]) -> int:
    """Bytes of a safetensors file: the length of its header, the header filled up to eight bytes, the tensors.

    >>> tensors_bytes({"a": torch.zeros(2, 3)})
    120
    """
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    place = 0
    for name, tensor in tensors.items():
        end = place + tensor.numel() * tensor.element_size()
        kind = _DTYPE_NAMES.get(tensor.dtype, str(tensor.dtype))
        header[name] = {"dtype": kind, "shape": list(tensor.shape), "data_offsets": [place, end]}
        place = end
    text = json.dumps(header, separators=(",", ":"))
    return 8 + -(-len(text) // 8) * 8 + place


def _tokenizer_bytes(tokenizer: PreTrainedTokenizerBase) -> int:
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        return sum(file.stat().st_size for file in Path(folder).rglob("*") if file.is_file())
