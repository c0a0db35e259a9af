"""A training run from its first step to its result: logging, evaluation, checkpoints, resumption, interruption.

Stages own their loop and call `record` once a step; everything that is the same in every stage is here.
"""

from __future__ import annotations

import math
import shlex
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

from pydantic import TypeAdapter

from duiqi.errors import Interrupted, RunError
from duiqi.journal.run import Run
from duiqi.models.fingerprint import is_same_base
from duiqi.training.anomaly import keep_anomaly
from duiqi.training.checkpoint import (
    TrainerState,
    complete_checkpoints,
    parameter_tensors,
    place_result,
    prune,
    put_aside,
    read_checkpoint,
    restore_parameters,
    write_checkpoint,
)
from duiqi.training.interruption import StopRequest, listening
from duiqi.training.learner import Learner, NonFiniteStep
from duiqi.training.random_state import random_state, restore_random_state
from duiqi.types import StageResult, TrainingTotals

Result = TypeVar("Result")


@dataclass(frozen=True)
class Cadence:
    """How often things happen, in steps; 0 means only at the end."""

    total_steps: int
    logging_steps: int = 10
    eval_steps: int = 0
    save_steps: int = 0
    save_total_limit: int | None = 3
    save_keep_every: int = 0
    load_best_at_end: bool = False
    max_skipped_steps: int = 0
    """Steps of the whole run that may be passed over because a number in them was not finite."""


@dataclass(frozen=True)
class BestBy:
    """The evaluation metric by which a checkpoint is the best."""

    metric: str = "eval_loss"
    greater_is_better: bool = False
    ceilings: Mapping[str, float] = field(default_factory=dict)
    """Other metrics, and what they may be at most for a checkpoint to count."""

    def improves(self, metrics: Mapping[str, float], best: float | None) -> bool:
        """Whether an evaluation is better than the best so far, and within the ceilings."""
        value = metrics.get(self.metric, math.nan)
        if math.isnan(value) or any(metrics.get(name, 0.0) > most for name, most in self.ceilings.items()):
            return False
        return best is None or (value > best if self.greater_is_better else value < best)


@dataclass
class Window:
    """Running means of the metrics between two log lines."""

    sums: dict[str, float] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)

    def add(self, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
            self.counts[name] = self.counts.get(name, 0) + 1

    def means(self) -> dict[str, float]:
        return {name: total / self.counts[name] for name, total in self.sums.items()}


@dataclass
class Progress:
    """The bookkeeping that a checkpoint carries."""

    loss_sum: float = 0.0
    samples: int = 0
    seconds: float = 0.0
    best_step: int | None = None
    best_value: float | None = None
    best_evaluation: dict[str, float] = field(default_factory=dict)
    evaluation: dict[str, float] = field(default_factory=dict)
    evaluated_step: int = -1
    updates: int = 0
    """Steps that went well."""
    skipped: int = 0
    """Steps that were passed over."""


_PROGRESS, _WINDOW = TypeAdapter(Progress), TypeAdapter(Window)


class Session:
    """One stage's run of the training loop.

    Args:
        run: The journal.
        learner: Its parameters and optimizer state are what a checkpoint holds.
        cadence: How often to log, evaluate, save.
        save_model: Writes the loadable model into a directory.
        evaluate: Metrics at a step, names beginning with `eval_`; empty where there is nothing to evaluate on.
        best_by: Which of them tells the best checkpoint.
        rows_per_epoch: Rows of the data, for the epoch count.
        state: The stage's own state as JSON values, and the function that takes it back.
    """

    def __init__(
        self,
        run: Run,
        learner: Learner,
        *,
        cadence: Cadence,
        save_model: Callable[[Path], None],
        evaluate: Callable[[int], Mapping[str, float]],
        best_by: BestBy,
        rows_per_epoch: int,
        state: tuple[Callable[[], dict[str, Any]], Callable[[dict[str, Any]], None]] | None = None,
    ) -> None:
        self.run, self.learner, self.cadence = run, learner, cadence
        self.best_by, self.rows_per_epoch = best_by, rows_per_epoch
        self._save_model, self._evaluate, self._state = save_model, evaluate, state
        self._progress, self._window = Progress(), Window()
        self._request = StopRequest()
        self._saved_step = -1
        self._resumed_step = 0
        self._clock = time.monotonic()

    def steps(self) -> Iterator[int]:
        """Step numbers from where the run stands to the last; resumes first when the run is resumed."""
        done = self._resume()
        self.run.track(self._saved_step)
        if done == 0:
            self._evaluate_at(0)
        self._clock = time.monotonic()
        with listening() as self._request:
            for step in range(done + 1, self.cadence.total_steps + 1):
                yield step
                if self._request and step < self.cadence.total_steps:
                    self._stop_here(step)

    def attempt(self, step: int, update: Callable[[], Result], *, samples: int) -> Result | None:
        """What `update` gives; None where a number was not finite and the step is passed over: there is nothing to
        record of it.

        A step is passed over while there are some left of `max_skipped_steps`, and never before one went well: what
        goes wrong from the start is no accident. The weights are those before the bad number.

        Raises:
            NonFiniteStep: There are none left.
        """
        try:
            return update()
        except NonFiniteStep as accident:
            if self._progress.skipped >= self.cadence.max_skipped_steps or not self._progress.updates:
                raise
            self._pass_over(step, accident)
        self._round_off(step, samples=samples)
        return None

    def record(self, step: int, metrics: Mapping[str, float], *, samples: int) -> None:
        """Note what a step did; then log, evaluate and save as the cadence says.

        `metrics` begin with what matters most, because that is what the terminal shows.
        """
        self._progress.loss_sum += metrics.get("loss", 0.0)
        self._progress.updates += 1
        self._window.add(metrics)
        self.run.view.progress(step, self.cadence.total_steps, metrics)
        self._round_off(step, samples=samples)

    def _round_off(self, step: int, *, samples: int) -> None:
        """Log, evaluate and save as the cadence says."""
        progress, cadence = self._progress, self.cadence
        progress.samples += samples
        is_last = step == cadence.total_steps
        if is_last or step % cadence.logging_steps == 0:
            skipped = {"skipped_steps": float(progress.skipped)} if progress.skipped else {}
            self.run.metrics(step, {"epoch": self._epoch(), **self._window.means(), **skipped})
            self._window = Window()
        improved = False
        if is_last or _due(step, cadence.eval_steps):
            improved = self._evaluate_at(step)
        if is_last or improved or _due(step, cadence.save_steps):
            self._save(step)

    def finish(self, stage: str, **final: float) -> StageResult:
        """Put the result at the top of the run directory and write its totals."""
        progress, steps = self._progress, self.cadence.total_steps
        self._tick()
        checkpoint, evaluation = self.run.checkpoint_dir(steps), progress.evaluation
        if self.cadence.load_best_at_end and progress.best_step is not None:
            checkpoint, evaluation = self.run.checkpoint_dir(progress.best_step), progress.best_evaluation
        place_result(checkpoint, self.run.directory)
        seconds = max(progress.seconds, 1e-9)
        totals = TrainingTotals(
            epoch=self._epoch(),
            train_loss=progress.loss_sum / max(1, steps - progress.skipped),
            train_runtime=round(seconds, 3),
            train_samples_per_second=round(progress.samples / seconds, 3),
            train_steps_per_second=round(steps / seconds, 3),
        )
        metrics = {**evaluation, **final}
        self.run.finish(totals, metrics)
        return StageResult(
            stage=stage,
            output_dir=str(self.run.directory),
            steps=steps,
            totals=totals,
            best_step=progress.best_step,
            resumed_step=self._resumed_step,
            metrics=metrics,
        )

    def roll_back(self, step: int, *, before: int) -> int | None:
        """Make the best checkpoint the result, and put the later ones, that of now too, in anomaly/checkpoints.

        Without an evaluation that chose one, it is the last checkpoint before the step `before`. Resuming goes on from
        there.

        Returns:
            Its step; None where there is no such checkpoint.
        """
        self._save(step)
        there = {int(path.name.removeprefix("step-")): path for path in complete_checkpoints(self._checkpoints)}
        good = self._progress.best_step
        if good not in there:
            good = max((number for number in there if number < before), default=None)
        for number in (number for number in there if good is None or number > good):
            put_aside(there[number], self.run.anomaly_dir() / "checkpoints")
        if good is None:
            (self.run.directory / "last").unlink(missing_ok=True)
            return None
        place_result(there[good], self.run.directory)
        self._link(good)
        return good

    # -- evaluation and checkpoints ------------------------------------------------------------------------------------

    def _evaluate_at(self, step: int) -> bool:
        """Evaluate and log; True when this is the best so far (never at step 0, which has no checkpoint)."""
        metrics = dict(self._evaluate(step))
        progress = self._progress
        progress.evaluated_step = step
        if not metrics:
            return False
        progress.evaluation = metrics
        self.run.metrics(step, metrics)
        if step == 0 or not self.best_by.improves(metrics, progress.best_value):
            return False
        progress.best_step, progress.best_value = step, metrics[self.best_by.metric]
        progress.best_evaluation = metrics
        return True

    def _save(self, step: int) -> None:
        if self._saved_step == step:
            return
        self._tick()
        directory = self.run.checkpoint_dir(step)
        write_checkpoint(directory, self._state_at(step), self._save_model)
        self._saved_step = step
        self._link(step)
        best = self._progress.best_step
        self.run.event("checkpoint", step=step, best=best == step)
        always = {directory} | ({self.run.checkpoint_dir(best)} if best is not None else set())
        prune(
            directory.parent,
            keep=self.cadence.save_total_limit,
            always=always,
            every=self.cadence.save_keep_every,
        )

    def _link(self, step: int) -> None:
        """Let `last` and `best` point where they should; also after a kill between a checkpoint and its links."""
        self.run.link("last", step)
        best = self._progress.best_step
        if best is not None and self.run.checkpoint_dir(best).is_dir():
            self.run.link("best", best)

    def _state_at(self, step: int) -> TrainerState:
        tensors = {
            **parameter_tensors(self.learner.parameters),
            **{f"optimizer/{name}": value for name, value in self.learner.state().items()},
            **random_state(),
        }
        notes: dict[str, Any] = {
            "origin": self._origin,
            "progress": asdict(self._progress),
            "window": asdict(self._window),
            "loss_scale": self.learner.scale.state() if self.learner.scale is not None else None,
            "halvings": self.learner.budget.halvings,
            "stage": self._state[0]() if self._state else {},
        }
        return TrainerState(step=step, tensors=tensors, notes=notes)

    def _resume(self) -> int:
        """Take up the last complete checkpoint, if the run is resumed and has one; returns its step."""
        found = complete_checkpoints(self._checkpoints) if self.run.is_resumed else []
        if not found:
            if self.run.is_resumed:
                self.run.rewind(-1)
            return 0
        checkpoint, state = self._newest_whole(found)
        total_steps = self.cadence.total_steps
        if state.step > total_steps:
            raise RunError(
                f"the run is at step {state.step} already, beyond the {total_steps} that these settings ask for",
                where=str(self.run.directory),
                remedy="raise max_steps or num_train_epochs, or start a new output_dir",
            )
        try:
            self._take_up(state)
        except RunError:
            raise
        except (LookupError, TypeError, ValueError, ArithmeticError, RuntimeError, AttributeError) as error:
            raise RunError(
                f"the checkpoint holds something else than this run needs ({type(error).__name__}: {error})",
                where=str(checkpoint),
                remedy="resume with the version and the settings that wrote it, or start a new output_dir",
            ) from error
        self._saved_step = self._resumed_step = state.step
        self._link(state.step)
        self.run.rewind(state.step)
        self.run.view.note(f"resumed from {checkpoint.name}")
        return state.step

    def _newest_whole(self, found: list[Path]) -> tuple[Path, TrainerState]:
        """The newest checkpoint that is as it was written; those after it are named and passed over.

        Raises:
            RunError: All are damaged.
        """
        problems: list[RunError] = []
        for checkpoint in reversed(found):
            try:
                return checkpoint, read_checkpoint(checkpoint)
            except RunError as damage:
                problems.append(damage)
                self.run.warn(f"{checkpoint.name} is passed over: {damage.problem}")
        raise RunError(
            f"none of {len(found)} checkpoints can be resumed from; of the newest: {problems[0].problem}",
            where=str(found[-1]),
            remedy="copy the checkpoints again, or set overwrite_output_dir: true to begin anew",
        )

    def _take_up(self, state: TrainerState) -> None:
        """Put everything where the checkpoint has it."""
        self._refuse_foreign(state)
        restore_parameters(self.learner.parameters, state.tensors)
        optimizer = {n.removeprefix("optimizer/"): t for n, t in state.tensors.items() if n.startswith("optimizer/")}
        self.learner.load_state(optimizer)
        self._progress = _PROGRESS.validate_python(state.notes["progress"])
        self._window = _WINDOW.validate_python(state.notes["window"])
        scale = state.notes["loss_scale"]
        if self.learner.scale is not None and scale is not None:
            self.learner.scale = type(self.learner.scale)(**scale)
        self.learner.budget.halve_again(int(state.notes["halvings"]))
        if self._state:
            self._state[1](state.notes["stage"])
        restore_random_state(state.tensors)

    @property
    def _origin(self) -> dict[str, str]:
        """What the run is of, so that a checkpoint of another one is known when it is seen."""
        parents = self.run.recorded("parents") or {}
        return {"stage": self.run.stage, "base_fingerprint": str(parents.get("base_fingerprint", ""))}

    def _refuse_foreign(self, state: TrainerState) -> None:
        ours, theirs = self._origin, state.notes["origin"]
        bases = ours["base_fingerprint"], str(theirs["base_fingerprint"])
        if ours["stage"] != theirs["stage"] or (all(bases) and not is_same_base(*bases)):
            stage = "another base" if ours["stage"] == theirs["stage"] else f"a run of {theirs['stage']}"
            raise RunError(
                f"the checkpoint of step {state.step} is of {stage}, which this run cannot go on from",
                where=str(self.run.directory),
                remedy="put back the base that the run began with, or start a new output_dir",
            )

    def _stop_here(self, step: int) -> None:
        self._save(step)
        name = self._request.signal_name
        raise Interrupted(
            f"stopped by {name} after step {step} of {self.cadence.total_steps}; everything is saved.\n"
            f"  -> go on with: {going_on(self.run)}"
        )

    def _pass_over(self, step: int, accident: NonFiniteStep) -> None:
        """Keep what a bad step saw, and say that it is left out."""
        self._progress.skipped += 1
        folder = self.run.anomaly_dir() / f"step-{step:06d}"
        keep_anomaly(folder, accident)
        self.run.event("finding", name="non_finite", step=step, finding=accident.finding)
        left = self.cadence.max_skipped_steps - self._progress.skipped
        self.run.warn(
            f"step {step} is passed over, {left} more may be (max_skipped_steps): {accident.finding}; see {folder}"
        )

    @property
    def _checkpoints(self) -> Path:
        return self.run.checkpoint_dir(0).parent

    def _epoch(self) -> float:
        return round(self._progress.samples / max(1, self.rows_per_epoch), 4)

    def _tick(self) -> None:
        now = time.monotonic()
        self._progress.seconds += now - self._clock
        self._clock = now


def going_on(run: Run) -> str:
    """The command that continues a run."""
    return f"duiqi {run.stage} {shlex.quote(str(run.directory / 'config.yaml'))} resume_from_checkpoint=true"


class Keeps(Protocol):
    """Anything whose state outlives a step."""

    def state(self) -> dict[str, Any]: ...

    def load_state(self, state: dict[str, Any]) -> None: ...


def kept(**parts: Keeps) -> tuple[Callable[[], dict[str, Any]], Callable[[dict[str, Any]], None]]:
    """The state of several things at once, and the way back, as `Session` wants them."""

    def take_back(state: dict[str, Any]) -> None:
        for name, part in parts.items():
            if name in state:
                part.load_state(state[name])

    return lambda: {name: part.state() for name, part in parts.items()}, take_back


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0
