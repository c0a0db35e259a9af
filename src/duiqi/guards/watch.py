"""The watch: a policy that begins to ruin itself is seen in numbers that a run logs anyway, before it is too late.

Every alarm compares one metric, the median of the last few steps, with a limit or with what it was at the beginning of
the run. An alarm that goes on is answered in three rungs: it is said; the steps are made smaller; the run goes back to
its best checkpoint and ends. Why each limit is what it is stands in docs/watch.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from statistics import median
from typing import Any, Literal

from duiqi.errors import SettingsError, did_you_mean
from duiqi.guards.answers import AT_ONCE, has_switched, repetition, units

Action = Literal["warn", "pause", "stop"]
"""The three rungs: say it; lower the learning rate and raise the price of KL; go back and end."""

Against = Literal["above", "below", "rises", "falls_to", "grows_to"]
"""above, below: of the metric itself. rises: its difference from the beginning. falls_to, grows_to: its share of it."""

RECENT = 3
"""Steps whose median is judged: one odd batch is no alarm."""

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
        if looks == self.pause:
            return "pause"
        return "warn" if looks == self.warn else None


ON_ROLLOUTS = Rungs()
"""For the answers that are learned from, looked at in every step."""

ON_HELD_OUT = Rungs(1, 2, 3)
"""For held-out answers, which are looked at seldom."""

NEVER = 2**31
"""More looks than there will be."""


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
    since: int
    """The step at which the alarm began to ring."""
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
    shows: Callable[[Sequence[Answer]], Sequence[Answer]] | None = None
    """The answers that show it, the worst first; None where no single answer does."""
    chance: Literal["share", "mean"] | None = None
    """What the metric is of the answers, where chance moves it: a share of them, or a mean in units of their spread."""
    is_of_reward: bool = False
    """Whether it is about the reward model and not the policy: then it says nothing against a checkpoint."""
    only_warns: bool = False
    """Whether it goes no further than the first rung: what it sees need not ruin a run."""

    def allowance(self, now: float, then: float, num_answers: int) -> float:
        """Two standard errors, which chance alone may move the metric; 0 where the number of answers is not known."""
        if not num_answers or self.chance is None:
            return 0.0
        share = max(now, then)
        spread = math.sqrt(share * (1.0 - share)) if self.chance == "share" else 1.0
        return 2.0 * spread / math.sqrt(num_answers)

    def judge(self, now: float, then: float, num_answers: int = 0) -> tuple[float, bool]:
        """The value that is compared with the limit, and whether it is past it."""
        chance = self.allowance(now, then, num_answers)
        most = self.limit + chance
        match self.against:
            case "above":
                return now, now > most
            case "below":
                return now, now < self.limit
            case "rises":
                return now - then, now - then > most
            case "falls_to":
                return (now / then, now + chance < self.limit * then) if then > 0 else (1.0, False)
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
          f"{_EXAMINE}; keep min_new_tokens at 1", _empty, chance="share"),
    Alarm("mostly_empty", "empty_rate", "above", 0.5, "{now:.0%} of the answers are empty",
          f"{_EXAMINE}; keep min_new_tokens at 1", _empty, chance="share"),
    Alarm("ends_at_once", "ends_at_once", "rises", 0.1, "answers end before they begin: {now:.0%}, at first {then:.0%}",
          f"{_EXAMINE}; set min_answer_length", _at_once, chance="share"),
    Alarm("shorter", "ended_length", "falls_to", 0.6, "answers become short: {now:.1f} tokens, at first {then:.1f}",
          f"{_EXAMINE}; set min_answer_length", _shortest),
    Alarm("longer", "answer_length", "grows_to", 2.0, "answers become long: {now:.1f} tokens, at first {then:.1f}",
          f"{_EXAMINE}; set overlong_buffer", _longest),
    Alarm("never_ends", "eos_rate", "falls_to", 0.5, "answers no longer end: {now:.0%} do, at first {then:.0%}",
          "raise missing_eos_penalty, or set overlong_buffer", _longest, chance="share"),
    Alarm("repetition", "repetition_rate", "rises", 0.2, "answers repeat themselves: {now:.0%} of their words,"
          " at first {then:.0%}", f"{_EXAMINE}; {_HOLD}", _repeating),
    Alarm("less_variety", "distinct_2", "falls_to", 0.5, "answers lose their variety: {now:.0%} of their word pairs"
          " differ, at first {then:.0%}", _HOLD, _repeating),
    Alarm("same_answer", "self_similarity", "rises", 0.3, "different prompts get the same answer: {now:.0%} in common,"
          " at first {then:.0%}", f"{_EXAMINE}; {_HOLD}", _best),
    Alarm("language_switch", "language_switch", "rises", 0.2, "answers are in another language than their prompts:"
          " {now:.0%}, at first {then:.0%}", f"{_EXAMINE}; {_HOLD}", _switched, chance="share"),
    Alarm("entropy_collapse", "entropy", "falls_to", 0.1, "the policy hardly hesitates now: {now:.3f} nats a token,"
          " at first {then:.3f}", f"set entropy_coef: 0.01; {_HOLD}", _best),
    Alarm("kl_budget", "kl", "above", 30.0, "the policy is {now:.1f} nats from the reference, beyond {limit:g}",
          f"{_HOLD}, or allow more with kl_budget"),
    Alarm("score_outlier", "score_outlier", "above", 8.0, "one answer scores {now:.1f} standard deviations above the"
          " others", f"read it: is it good, or did it find a hole? {_EXAMINE}", _best, only_warns=True),
    Alarm("ratio", "ratio", "above", 2.0, "an update changes probabilities by {now:.1f} x on average",
          "lower learning_rate, or ppo_epochs"),
    Alarm("critic", "explained_variance", "below", -2.0, "the critic foretells worse than a constant would"
          " (explained variance {now:.1f})", "set critic_warmup_steps, or lower vf_coef", only_warns=True),
)  # fmt: skip
"""What the rollouts of PPO and its kin are watched for."""

HELD_OUT_ALARMS: tuple[Alarm, ...] = (
    *(alarm for alarm in PPO_ALARMS if alarm.metric not in ("entropy", "score_outlier", "ratio", "explained_variance")),
    Alarm("silence_pays", "pays/nothing", "above", 0.5, "for {now:.0%} of the prompts no answer at all scores higher"
          " than the policy's", _EXAMINE, chance="share", is_of_reward=True),
    Alarm("cutting_pays", "pays/cut", "above", 0.5, "for {now:.0%} of the prompts a third of the policy's answer"
          " scores higher than the whole", _EXAMINE, chance="share", is_of_reward=True, only_warns=True),
    Alarm("repeating_pays", "pays/twice", "above", 0.5, "for {now:.0%} of the prompts the policy's answer scores"
          " higher when it is said twice", _EXAMINE, chance="share", is_of_reward=True, only_warns=True),
    Alarm("second_opinion", "opinion_loss", "above", 0.25, "the score rises and the second opinion falls, by {now:.2f}"
          " of its spread", f"{_EXAMINE}; {_HOLD}", _best, chance="mean"),
)  # fmt: skip
"""What held-out answers are watched for: the same, what the reward model would pay for instead, and what a second
opinion says of them."""

PREFERENCE_ALARMS: tuple[Alarm, ...] = (
    Alarm("chosen_falls", "rewards/chosen", "below", -5.0, "the better answers become ever less likely (reward"
          " {now:.1f}): the policy flees from both", "raise pref_beta, lower learning_rate, or set pref_ftx: 0.1",
          only_warns=True),
)  # fmt: skip
"""What losses that compare with a reference are watched for in every step."""

HELD_OUT_PREFERENCE_ALARMS: tuple[Alarm, ...] = (
    Alarm("overfitting", "eval_loss", "grows_to", 1.5, "the held-out loss is {now:.2f}, at first it was {then:.2f}",
          "train fewer epochs, or lower learning_rate"),
)  # fmt: skip
"""What every preference loss is watched for on held-out pairs."""


def with_limits(alarms: Sequence[Alarm], limits: Mapping[str, float | None]) -> tuple[Alarm, ...]:
    """The alarms with other limits, by name; None takes an alarm away.

    >>> [alarm.name for alarm in with_limits(HELD_OUT_PREFERENCE_ALARMS, {"overfitting": None})]
    []
    """
    left = (alarm for alarm in alarms if limits.get(alarm.name, 0.0) is not None)
    given = {name: limit for name, limit in limits.items() if limit is not None}
    return tuple(replace(alarm, limit=given.get(alarm.name, alarm.limit)) for alarm in left)


def with_kl_budget(alarms: Sequence[Alarm], budget: float) -> tuple[Alarm, ...]:
    """The alarms with this budget of KL in nats per answer; 0: none, so no alarm for it."""
    return with_limits(alarms, {"kl_budget": budget or None})


def read_limits(text: str, alarms: Sequence[Alarm]) -> dict[str, float | None]:
    """What the setting `watch_limits` says of the alarms that it names: `shorter=0.4,longer=off`; None: off.

    Raises:
        SettingsError: It names no alarm of these, or a limit is neither a number nor `off`.

    >>> read_limits("shorter=0.4,longer=off", PPO_ALARMS)
    {'shorter': 0.4, 'longer': None}
    """
    names = list(dict.fromkeys(alarm.name for alarm in alarms if alarm.name != "kl_budget"))
    found: dict[str, float | None] = {}
    for part in filter(None, (piece.strip() for piece in text.split(","))):
        name, _, limit = (word.strip() for word in part.partition("="))
        where = f"watch_limits: {part}"
        if name not in names:
            known = did_you_mean(name, names) or f"the watch knows {', '.join(names)} here"
            remedy = "it is a setting: kl_budget" if name == "kl_budget" else known
            raise SettingsError(f"there is no alarm {name!r}", where=where, remedy=remedy)
        try:
            found[name] = None if limit == "off" else float(limit)
        except ValueError:
            found[name] = math.nan
        if found[name] is not None and not math.isfinite(found[name] or 0.0):
            raise SettingsError(
                f"{limit!r} is neither a number nor off", where=where, remedy=f"write {name}=0.5 or {name}=off"
            )
    return found


@dataclass
class Watch:
    """What has been seen so far, and what each alarm made of it."""

    alarms: Sequence[Alarm]
    rungs: Rungs = ON_ROLLOUTS
    beginning: int = BEGINNING
    """How many looks are what later ones are compared with."""
    recent: int = RECENT
    first: dict[str, list[float]] = field(default_factory=dict)
    """Of each metric the values of its first looks."""
    last: dict[str, list[float]] = field(default_factory=dict)
    """Of each metric the values of its last looks."""
    in_a_row: dict[str, int] = field(default_factory=dict)
    """For how many looks each alarm has been ringing."""
    since: dict[str, int] = field(default_factory=dict)
    """The step at which it began."""

    @property
    def ringing(self) -> set[str]:
        """The alarms about the policy that rang at the last look, those that only warn left out."""
        told = (alarm for alarm in self.alarms if not alarm.only_warns and not alarm.is_of_reward)
        return {alarm.name for alarm in told if self.in_a_row.get(alarm.name)}

    def look(self, step: int, metrics: Mapping[str, float], answers: Sequence[Answer] = ()) -> list[Finding]:
        """Take in the metrics of a step; the findings that reached a new rung, the gravest first."""
        for name in {alarm.metric for alarm in self.alarms} & metrics.keys():
            self.first[name] = [*self.first.get(name, []), metrics[name]][: self.beginning]
            self.last[name] = [*self.last.get(name, []), metrics[name]][-self.recent :]
        found = [finding for alarm in self.alarms if (finding := self._judge(alarm, step, metrics, answers))]
        return sorted(found, key=lambda finding: ("stop", "pause", "warn").index(finding.action))

    def _judge(
        self, alarm: Alarm, step: int, metrics: Mapping[str, float], answers: Sequence[Answer]
    ) -> Finding | None:
        if alarm.metric not in metrics:
            self.in_a_row[alarm.name] = 0
            return None
        first, last = self.first[alarm.metric], self.last[alarm.metric]
        now, then = median(last), sum(first) / len(first)
        value, is_past = alarm.judge(now, then, len(answers) * len(last))
        looks = self.in_a_row[alarm.name] = self.in_a_row.get(alarm.name, 0) + 1 if is_past else 0
        if looks == 1:
            self.since[alarm.name] = step
        action = self.rungs.at(looks)
        if action is None or (alarm.only_warns and action != "warn"):
            return None
        return Finding(
            alarm.name,
            step,
            since=self.since[alarm.name],
            value=value,
            limit=alarm.limit,
            text=alarm.says.format(now=now, then=then, limit=alarm.limit),
            remedy=alarm.remedy,
            action=action,
            evidence=tuple(alarm.shows(answers)[:MAX_EVIDENCE]) if alarm.shows else (),
        )

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {name: getattr(self, name) for name in ("first", "last", "in_a_row", "since")}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Take back what `state` gave."""
        for name, value in state.items():
            setattr(self, name, value)
