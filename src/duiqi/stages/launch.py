"""From resolved settings to a finished run: opens the journal, seeds, runs the stage, turns accidents into findings."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from duiqi.errors import GuardStop
from duiqi.journal.files import atomic_write_json
from duiqi.journal.run import Run, linked_checkpoint
from duiqi.journal.terminal import View
from duiqi.journal.trackers.registry import make_tracking
from duiqi.rollouts.engine import NonFiniteLogits
from duiqi.settings.names import listed_names
from duiqi.settings.resolve import dump
from duiqi.settings.stages import StageConfig, StageName
from duiqi.stages import dpo, ppo, pretrain, reward_model, sft
from duiqi.training.learner import NonFiniteStep
from duiqi.training.process import prepared_process
from duiqi.types import StageResult

STAGE_RUNNERS: dict[StageName, Callable[[Any, Run], StageResult]] = {
    "pretrain": pretrain.run,
    "sft": sft.run,
    "rm": reward_model.run,
    "dpo": dpo.run,
    "ppo": ppo.run,
}


def run(stage: StageName, config: StageConfig, *, argv: Sequence[str] = (), view: View | None = None) -> StageResult:
    """Run one stage.

    Args:
        stage: Which.
        config: Its settings, as `settings.resolve` gives them.
        argv: The command as typed, for the manifest.
        view: Where progress is shown; nowhere by default.

    Raises:
        UserError: Something the user can mend.
        GuardStop: A quantity was nan or inf; the batch is in anomaly/.
        Interrupted: A signal ended the run after it was saved.
    """
    options = config.run
    tracking = make_tracking(listed_names(options.report_to), project=options.project, run_name=options.run_name)
    random.seed(config.optimizer.seed)
    torch.manual_seed(config.optimizer.seed)
    with Run.open(
        options.output_dir,
        stage=stage,
        settings=dump(config),
        argv=argv,
        overwrite=options.overwrite_output_dir,
        resume=options.resume_from_checkpoint,
        view=view,
        tracking=tracking,
    ) as journal:
        try:
            with prepared_process():
                result = STAGE_RUNNERS[stage](config, journal)
        except NonFiniteStep as accident:
            raise _stop(journal, accident.finding, accident.batch) from accident
        except NonFiniteLogits as accident:
            raise _stop(journal, str(accident), None) from accident
        if options.plot_loss:
            _draw_plots(journal)
        journal.view.done([])
        return result


def _stop(journal: Run, finding: str, batch: object) -> GuardStop:
    """Leave the batch in anomaly/ and say where the run was last good."""
    folder = journal.anomaly_dir()
    if is_dataclass(batch):
        save_file(tensors_in(batch), folder / "batch.safetensors")
    atomic_write_json(folder / "finding.json", {"finding": finding})
    journal.event("finding", name="non_finite", finding=finding)
    best = linked_checkpoint(journal.directory, "best") or linked_checkpoint(journal.directory, "last")
    good = f"the last good checkpoint is {best}" if best else "no checkpoint was written before"
    return GuardStop(
        f"stopped: {finding}; the weights were not updated with it",
        remedy=f"{good}; what led there is in {folder}; try a lower learning_rate, or dtype: float32",
    )


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


def _draw_plots(journal: Run) -> None:
    from duiqi.reports.plots import write_plots

    write_plots(journal.directory)
