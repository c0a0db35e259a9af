"""The watch: a policy that begins to ruin itself is seen in numbers that a run logs anyway, before it is too late.

Every alarm compares one metric, averaged over the last few steps, with a limit or with what it was at the beginning of
the run. An alarm that goes on is answered in three rungs: it is said; the steps are made smaller; the run goes back to
its best checkpoint and ends. Why each limit is what it is stands in docs/watch.md.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from duiqi.errors import SettingsError, did_you_mean
from duiqi.guards.answers import AT_ONCE, has_switched, repetition, units

Action = Literal["warn", "pause", "stop"]
"""The three rungs: say it; lower the learning rate and raise the price of KL; go back and end."""

Against = Literal["above", "below", "rises", "falls_to", "grows_to"]
"""above, below: of the metric itself. rises: its difference from the beginning. falls_to, grows_to: its share of it."""

RECENT = 3
"""Steps whose mean is judged: one odd batch is no alarm."""

BEGINNING = 2
"""First steps whose mean is what the later ones are compared with."""

MAX_EVIDENCE = 3


@dataclass(frozen=True)
class Rungs:
    """After how many looks in a row with the same finding each rung is reached."""

    warn: int = 1
    pause: int = 3
    stop: int = 6

    def at(self, looks: int) -> Action | None:
        """The rung that is reached now, if one is; on the last one it stays."""
        if looks >= self.stop:
            return "stop"
        return {self.pause: "pause", self.warn: "warn"}.get(looks)  # type: ignore[return-value]


ON_ROLLOUTS = Rungs()
"""For the answers that are learned from, looked at in every step."""

ON_HELD_OUT = Rungs(1, 2, 3)
"""For held-out answers, which are looked at seldom."""


@dataclass(frozen=True)
class Answer:
    """An answer that the watch may show as evidence."""

    prompt: str
    """What the user said last."""
    answer: str
    score: float
    length: int
    """Tokens, the end token included."""


@dataclass(frozen=True)
class Finding:
    """What the watch saw, and what is done about it."""

    name: str
    step: int
    value: float
    limit: float
    """In the unit of `value`: what it may not pass."""
    text: str
    remedy: str
    action: Action
    evidence: tuple[Answer, ...] = ()

    def as_event(self) -> dict[str, Any]:
        """For events.jsonl."""
        return asdict(self)


@dataclass(frozen=True)
class Alarm:
    """One way for a run to go wrong."""

    name: str
    metric: str
    against: Against
    limit: float
    says: str
    """One clause; {now}, {then} and {limit} are filled in."""
    remedy: str
    shows: Callable[[Sequence[Answer]], Sequence[Answer]] = tuple
    """The answers that show it, the worst first."""
    only_warns: bool = False
    """Whether it goes no further than the first rung: it slows a run down but does not ruin it."""

    def judge(self, now: float, then: float) -> tuple[float, bool]:
        """The value that is compared with the limit, and whether it is past it."""
        match self.against:
            case "above":
                return now, now > self.limit
            case "below":
                return now, now < self.limit
            case "rises":
                return now - then, now - then > self.limit
            case "falls_to":
                return (now / then, now < self.limit * then) if then > 0 else (1.0, False)
            case "grows_to":
                return (now / then, now > self.limit * then) if then > 0 else (1.0, False)


def _shortest(answers: Sequence[Answer]) -> list[Answer]:
    return sorted(answers, key=lambda answer: answer.length)


def _longest(answers: Sequence[Answer]) -> list[Answer]:
    return sorted(answers, key=lambda answer: -answer.length)


def _empty(answers: Sequence[Answer]) -> list[Answer]:
    return sorted((answer for answer in answers if not units(answer.answer)), key=lambda answer: -answer.score)


def _at_once(answers: Sequence[Answer]) -> list[Answer]:
    return sorted((answer for answer in answers if answer.length <= AT_ONCE), key=lambda answer: -answer.score)


def _repeating(answers: Sequence[Answer]) -> list[Answer]:
    return sorted(answers, key=lambda answer: -repetition(answer.answer))


def _switched(answers: Sequence[Answer]) -> list[Answer]:
    return [answer for answer in answers if has_switched(answer.prompt, answer.answer)]


def _best(answers: Sequence[Answer]) -> list[Answer]:
    return sorted(answers, key=lambda answer: -answer.score)


_EXAMINE = "let `duiqi exam` examine the reward model, and train it with probe_negatives"
_HOLD = "raise init_kl_coef, or lower learning_rate"

PPO_ALARMS: tuple[Alarm, ...] = (
    Alarm("empty_answers", "empty_rate", "rises", 0.05, "more answers are empty: {now:.0%}, at first {then:.0%}",
          f"{_EXAMINE}; keep min_new_tokens at 1", _empty),
    Alarm("mostly_empty", "empty_rate", "above", 0.5, "{now:.0%} of the answers are empty",
          f"{_EXAMINE}; keep min_new_tokens at 1", _empty),
    Alarm("ends_at_once", "ends_at_once", "rises", 0.1, "answers end before they begin: {now:.0%}, at first {then:.0%}",
          f"{_EXAMINE}; set min_answer_length", _at_once),
    Alarm("shorter", "ended_length", "falls_to", 0.6, "answers become short: {now:.1f} tokens, at first {then:.1f}",
          f"{_EXAMINE}; set min_answer_length", _shortest),
    Alarm("longer", "answer_length", "grows_to", 2.0, "answers become long: {now:.1f} tokens, at first {then:.1f}",
          f"{_EXAMINE}; set overlong_buffer", _longest),
    Alarm("never_ends", "eos_rate", "falls_to", 0.5, "answers no longer end: {now:.0%} do, at first {then:.0%}",
          "raise missing_eos_penalty, or set overlong_buffer", _longest),
    Alarm("repetition", "repetition_rate", "rises", 0.2, "answers repeat themselves: {now:.0%} of their words,"
          " at first {then:.0%}", f"{_EXAMINE}; {_HOLD}", _repeating),
    Alarm("less_variety", "distinct_2", "falls_to", 0.5, "answers lose their variety: {now:.0%} of their word pairs"
          " differ, at first {then:.0%}", _HOLD, _repeating),
    Alarm("same_answer", "self_similarity", "rises", 0.3, "different prompts get the same answer: {now:.0%} in common,"
          " at first {then:.0%}", f"{_EXAMINE}; {_HOLD}", _best),
    Alarm("language_switch", "language_switch", "rises", 0.2, "answers are in another language than their prompts:"
          " {now:.0%}, at first {then:.0%}", f"{_EXAMINE}; {_HOLD}", _switched),
    Alarm("entropy_collapse", "entropy", "falls_to", 0.1, "the policy hardly hesitates now: {now:.3f} nats a token,"
          " at first {then:.3f}", f"set entropy_coef: 0.01; {_HOLD}", _best),
    Alarm("kl_budget", "kl", "above", 30.0, "the policy is {now:.1f} nats from the reference, beyond {limit:g}",
          f"{_HOLD}, or allow more with kl_budget"),
    Alarm("score_outlier", "score_outlier", "above", 8.0, "one answer scores {now:.1f} standard deviations above the"
          " others", f"read it: is it good, or did it find a hole? {_EXAMINE}", _best),
    Alarm("ratio", "ratio", "above", 2.0, "an update changes probabilities by {now:.1f} x on average",
          "lower learning_rate, or ppo_epochs"),
    Alarm("critic", "explained_variance", "below", -2.0, "the critic foretells worse than a constant would"
          " (explained variance {now:.1f})", "set critic_warmup_steps, or lower vf_coef", only_warns=True),
)  # fmt: skip
"""What the rollouts of PPO and its kin are watched for."""

HELD_OUT_ALARMS: tuple[Alarm, ...] = (
    *(alarm for alarm in PPO_ALARMS if alarm.metric not in ("entropy", "score_outlier", "ratio", "explained_variance")),
    Alarm("second_opinion", "opinion_loss", "above", 0.25, "the score rises and the second opinion falls, by {now:.2f}"
          " of its spread", f"{_EXAMINE}; {_HOLD}", _best),
)  # fmt: skip
"""What held-out answers are watched for: the same, and what a second opinion says of them."""

PREFERENCE_ALARMS: tuple[Alarm, ...] = (
    Alarm("chosen_falls", "rewards/chosen", "below", -5.0, "the better answers become ever less likely (reward"
          " {now:.1f}): the policy flees from both", "raise pref_beta, lower learning_rate, or set pref_ftx: 0.1"),
)  # fmt: skip
"""What losses that compare with a reference are watched for in every step."""

HELD_OUT_PREFERENCE_ALARMS: tuple[Alarm, ...] = (
    Alarm("overfitting", "eval_loss", "grows_to", 1.5, "the held-out loss is {now:.2f}, at first it was {then:.2f}",
          "train fewer epochs, or lower learning_rate"),
)  # fmt: skip
"""What every preference loss is watched for on held-out pairs."""

ALARM_NAMES = tuple(
    dict.fromkeys(
        alarm.name for alarm in (*PPO_ALARMS, *HELD_OUT_ALARMS, *PREFERENCE_ALARMS, *HELD_OUT_PREFERENCE_ALARMS)
    )
)


def with_limits(alarms: Sequence[Alarm], text: str) -> tuple[Alarm, ...]:
    """The alarms with the limits that the setting `watch_limits` gives: `shorter=0.4,longer=off`.

    Raises:
        SettingsError: It names no alarm, or a limit is neither a number nor `off`.

    >>> [alarm.limit for alarm in with_limits(PPO_ALARMS, "shorter=0.4,longer=off") if "er" in alarm.name[-2:]]
    [0.4, 8.0]
    """
    limits = read_limits(text)
    changed = (replace(alarm, limit=limits.get(alarm.name, alarm.limit) or 0.0) for alarm in alarms)
    return tuple(alarm for alarm in changed if limits.get(alarm.name, alarm.limit) is not None)


def with_kl_budget(alarms: Sequence[Alarm], budget: float) -> tuple[Alarm, ...]:
    """The alarms with this budget of KL in nats per answer; 0: none, so no alarm for it."""
    changed = (replace(alarm, limit=budget) if alarm.name == "kl_budget" else alarm for alarm in alarms)
    return tuple(alarm for alarm in changed if budget or alarm.name != "kl_budget")


def read_limits(text: str) -> dict[str, float | None]:
    """What `watch_limits` says of each alarm that it names; None: off.

    Raises:
        SettingsError: As `with_limits`.
    """
    found: dict[str, float | None] = {}
    for part in filter(None, (piece.strip() for piece in text.split(","))):
        name, _, limit = (word.strip() for word in part.partition("="))
        where = f"watch_limits: {part}"
        if name not in ALARM_NAMES:
            remedy = did_you_mean(name, ALARM_NAMES) or f"the watch knows {', '.join(ALARM_NAMES)}"
            raise SettingsError(f"there is no alarm {name!r}", where=where, remedy=remedy)
        try:
            found[name] = None if limit == "off" else float(limit)
        except ValueError as error:
            raise SettingsError(
                f"{limit!r} is neither a number nor off", where=where, remedy=f"write {name}=0.5 or {name}=off"
            ) from error
    return found


@dataclass
class Watch:
    """What has been seen so far, and what each alarm made of it."""

    alarms: Sequence[Alarm]
    rungs: Rungs = ON_ROLLOUTS
    beginning: int = BEGINNING
    """How many looks are what later ones are compared with."""
    recent: int = RECENT
    looks: int = 0
    first: dict[str, float] = field(default_factory=dict)
    """Mean of each metric over the beginning."""
    last: list[dict[str, float]] = field(default_factory=list)
    """The metrics of the last few looks."""
    in_a_row: dict[str, int] = field(default_factory=dict)
    """For how many looks each alarm has been ringing."""

    @property
    def ringing(self) -> list[str]:
        """The alarms that rang at the last look, those that only warn left out."""
        return [alarm.name for alarm in self.alarms if self.in_a_row.get(alarm.name) and not alarm.only_warns]

    @property
    def ringing_for(self) -> int:
        """For how many looks the oldest of them has been ringing; 0 when none rings."""
        return max((self.in_a_row[name] for name in self.ringing), default=0)

    def look(self, step: int, metrics: Mapping[str, float], answers: Sequence[Answer] = ()) -> list[Finding]:
        """Take in the metrics of a step; the findings that reached a new rung, the gravest first."""
        watched = {alarm.metric for alarm in self.alarms}
        seen = {name: value for name, value in metrics.items() if name in watched}
        self.looks += 1
        if self.looks <= self.beginning:
            for name, value in seen.items():
                self.first[name] = self.first.get(name, value) * (1 - 1 / self.looks) + value / self.looks
        self.last = [*self.last, seen][-self.recent :]
        found = [finding for alarm in self.alarms if (finding := self._judge(alarm, step, answers))]
        return sorted(found, key=lambda finding: ("stop", "pause", "warn").index(finding.action))

    def _judge(self, alarm: Alarm, step: int, answers: Sequence[Answer]) -> Finding | None:
        values = [seen[alarm.metric] for seen in self.last if alarm.metric in seen]
        if not values or alarm.metric not in self.last[-1]:
            return None
        now, then = sum(values) / len(values), self.first.get(alarm.metric, values[0])
        value, is_past = alarm.judge(now, then)
        self.in_a_row[alarm.name] = self.in_a_row.get(alarm.name, 0) + 1 if is_past else 0
        action = self.rungs.at(self.in_a_row[alarm.name])
        if action is None or (alarm.only_warns and action != "warn"):
            return None
        return Finding(
            alarm.name,
            step,
            value=value,
            limit=alarm.limit,
            text=alarm.says.format(now=now, then=then, limit=alarm.limit),
            remedy=alarm.remedy,
            action=action,
            evidence=tuple(alarm.shows(answers)[:MAX_EVIDENCE]),
        )

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {name: getattr(self, name) for name in ("looks", "first", "last", "in_a_row")}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Take back what `state` gave."""
        for name, value in state.items():
            setattr(self, name, value)
