"""From resolved settings to a finished run: opens the journal, seeds, runs the stage, turns accidents into findings."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from duiqi.errors import GuardStop, Interrupted
from duiqi.journal.run import Run, linked_checkpoint
from duiqi.journal.terminal import View
from duiqi.journal.trackers.registry import make_tracking
from duiqi.rollouts.engine import NonFiniteLogits
from duiqi.settings.names import listed_names
from duiqi.settings.resolve import dump
from duiqi.settings.stages import StageConfig, StageName
from duiqi.stages import dpo, ppo, pretrain, reward_model, sft
from duiqi.training.anomaly import keep_anomaly
from duiqi.training.learner import NonFiniteStep
from duiqi.training.process import prepared_process
from duiqi.training.random_state import seed_everything
from duiqi.training.session import going_on
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
        Interrupted: A signal ended the run after it was saved, or a second one at once.
    """
    options = config.run
    tracking = make_tracking(listed_names(options.report_to), project=options.project, run_name=options.run_name)
    seed_everything(config.optimizer.seed)
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
            raise _stop(journal, accident) from accident
        except NonFiniteLogits as accident:
            raise _stop(journal, NonFiniteStep(str(accident))) from accident
        except KeyboardInterrupt as impatience:
            last = linked_checkpoint(journal.directory, "last")
            if last is None:
                raise
            message = f"left at once; the last checkpoint is {last}\n  -> go on with: {going_on(journal)}"
            raise Interrupted(message, is_saved=False) from impatience
        if options.plot_loss:
            _draw_plots(journal)
        journal.view.done([])
        return result


def _stop(journal: Run, accident: NonFiniteStep) -> GuardStop:
    """Leave the batch in anomaly/ and say where the run was last good."""
    folder = journal.anomaly_dir()
    keep_anomaly(folder, accident)
    journal.event("finding", name="non_finite", finding=accident.finding)
    best = linked_checkpoint(journal.directory, "best") or linked_checkpoint(journal.directory, "last")
    good = f"the last good checkpoint is {best}" if best else "no checkpoint was written before"
    return GuardStop(
        f"stopped: {accident.finding}; the weights were not updated with it",
        remedy=f"{good}; what led there is in {folder}; try a lower learning_rate, or dtype: float32",
    )


def _draw_plots(journal: Run) -> None:
    from duiqi.reports.plots import write_plots

    write_plots(journal.directory)
