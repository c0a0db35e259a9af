"""What a stage does about the findings of its watch: say them, slow down, go back to the best checkpoint and end."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from duiqi.errors import GuardStop
from duiqi.guards.watch import (
    NEVER,
    ON_HELD_OUT,
    ON_ROLLOUTS,
    RECENT,
    Alarm,
    Answer,
    Finding,
    Rungs,
    Watch,
    read_limits,
    with_limits,
)
from duiqi.journal.run import Run
from duiqi.settings.groups import WatchSettings
from duiqi.training.learner import Learner
from duiqi.training.session import Session

SLOWER = 0.5
"""What a pause does to the learning rate."""
DEARER = 2.0
"""What it does to the weight of the KL penalty."""
ONLY_SAID = Rungs(warn=1, pause=NEVER, stop=NEVER)
"""For `watch: warn`."""


class Watching:
    """The watch over one run.

    Args:
        settings: Whether it may act, and which limits are the user's own.
        journal: Is told every finding.
        learner: Takes smaller steps after a pause.
        each_step: Alarms for the metrics of every step.
        held_out: Alarms for those of evaluations.
        raise_price: Multiplies the weight of the KL penalty, where there is one.

    Raises:
        SettingsError: The settings name no alarm of these.
    """

    def __init__(
        self,
        settings: WatchSettings,
        journal: Run,
        learner: Learner,
        *,
        each_step: Sequence[Alarm],
        held_out: Sequence[Alarm],
        raise_price: Callable[[float], None] | None = None,
    ) -> None:
        limits = read_limits(settings.watch_limits, (*each_step, *held_out))
        is_on, may_act = settings.watch != "off", settings.watch == "stop"
        self._journal, self._learner, self._raise_price = journal, learner, raise_price
        self._steps = Watch(
            with_limits(each_step, limits) if is_on else (), ON_ROLLOUTS if may_act else ONLY_SAID, recent=RECENT
        )
        self._held_out = Watch(
            with_limits(held_out, limits) if is_on else (),
            ON_HELD_OUT if may_act else ONLY_SAID,
            beginning=1,
            recent=1,
        )
        self._stop: tuple[Finding, int] | None = None
        """What ends the run, and the first step whose checkpoint is not good."""

    def evaluated(self, step: int, metrics: Mapping[str, float], answers: Sequence[Answer] = ()) -> dict[str, float]:
        """Look at held-out answers, and say how many alarms ring, there and in training."""
        self._answer("held-out", self._held_out.look(step, metrics, answers))
        return {"eval_findings": float(len(self._held_out.ringing | self._steps.ringing))}

    def stepped(self, step: int, metrics: Mapping[str, float], answers: Sequence[Answer] = ()) -> None:
        """Look at a step, before it is recorded: what is done about it is part of what a checkpoint keeps."""
        self._answer("training", self._steps.look(step, metrics, answers))

    def stop_if_due(self, session: Session) -> None:
        """After a step was recorded, end the run if an alarm rang for too long.

        Raises:
            GuardStop: One did. The best checkpoint is the result now.
        """
        if self._stop is not None:
            raise self._stopped(session, *self._stop)

    def _answer(self, of: str, findings: Sequence[Finding]) -> None:
        for finding in findings:
            self._tell(of, finding)
        if any(finding.action == "pause" for finding in findings):
            self._slow_down(findings[0].step)
        for finding in findings:
            if finding.action == "stop" and self._stop is None:
                # The answers of a step come from the checkpoint before it, and those of RECENT steps were judged.
                self._stop = finding, finding.since - (RECENT if of == "training" else 0)

    def _tell(self, of: str, finding: Finding) -> None:
        self._journal.event("finding", of=of, **finding.as_event())
        shown = f"; for instance {_quoted(finding.evidence[0])}" if finding.evidence else ""
        self._journal.view.note(f"warning: at step {finding.step} {finding.text}{shown} [{of}, {finding.name}]")

    def _slow_down(self, step: int) -> None:
        self._learner.pace *= SLOWER
        done = f"the learning rate is now {self._learner.pace:g} of the schedule's"
        if self._raise_price is not None:
            self._raise_price(DEARER)
            done += f", the weight of KL {DEARER:g} x what it was"
        self._journal.event("slowed_down", step=step, pace=self._learner.pace)
        self._journal.view.note(f"warning: at step {step} it goes on, so {done}")

    def _stopped(self, session: Session, finding: Finding, bad_from: int) -> GuardStop:
        good = session.roll_back(finding.step, before=bad_from)
        here = self._journal.directory
        if good is None:
            where = "no checkpoint is from before that: the model that this began with is the best one"
        else:
            where = f"the best checkpoint is that of step {good}; it is the result in {here} now"
        self._journal.event("stopped_by_watch", step=finding.step, name=finding.name, best_step=good)
        return GuardStop(
            f"stopped at step {finding.step}: {finding.text} (alarm {finding.name!r}, limit {finding.limit:g})",
            remedy=f"{where}\n  -> {finding.remedy}\n  -> what the watch saw: duiqi report {here}; docs/watch.md",
        )

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {"steps": self._steps.state(), "held_out": self._held_out.state(), "pace": self._learner.pace}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Take back what `state` gave."""
        self._steps.load_state(state["steps"])
        self._held_out.load_state(state["held_out"])
        self._learner.pace = state["pace"]


def _quoted(answer: Answer, room: int = 60) -> str:
    said = " ".join(answer.answer.split()) or "an empty answer"
    text = said if len(said) <= room else f"{said[: room - 1]}…"
    return f"{text!r}, score {answer.score:.2f}"
