"""The strip at the top of a report: what each run did and how good it became, in plain words."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from duiqi.journal.numbers import brief, duration
from duiqi.reports.families import Family, group, parse
from duiqi.reports.markup import Markup, element
from duiqi.reports.read import RunRecord, Series
from duiqi.reports.svg import smooth

STAGES = {
    "pretrain": "Pretraining",
    "sft": "Supervised fine-tuning",
    "rm": "Reward model",
    "dpo": "Direct preference optimisation",
    "ppo": "Proximal policy optimisation",
}

_HEADLINES = {
    "rm": ("Accuracy", "Loss"),
    "dpo": ("Gold reward", "Accuracy", "Margin", "Loss"),
    "ppo": ("Gold reward", "Score"),
}
_SIDELINES = ("Accuracy", "Score", "KL from the reference", "Answer length", "Answers that end", "Loss")
_NUM_SIDELINES = 3
_NO_BREAK_SPACE = "\N{NO-BREAK SPACE}"


@dataclass(frozen=True)
class Change:
    """How one metric moved over a run."""

    family: Family
    metric: str
    first: float
    last: float

    @property
    def verdict(self) -> str:
        """`better`, `worse`, or `neutral` where that is for the reader to judge."""
        if self.family.higher_is_better is None or self.first == self.last:
            return "neutral"
        return "better" if (self.last > self.first) == self.family.higher_is_better else "worse"


def summarise(record: RunRecord) -> Markup:
    """A card: the stage, its headline number from first to last, what it came from and how long it took."""
    changes = changes_of(record)
    preferred = [c for title in _HEADLINES.get(record.stage, ("Loss",)) for c in changes if c.family.title == title]
    headline = next(iter(preferred or changes), None)
    sidelines = [c for title in _SIDELINES for c in changes if c.family.title == title and c is not headline]
    return element(
        "article",
        element("p", element("b", record.name), _stage_of(record), _ending(record), class_="kicker"),
        _headline(headline) if headline else element("p", "nothing was measured", class_="quiet"),
        element("p", [_in_words(c) for c in sidelines[:_NUM_SIDELINES]], class_="sidelines"),
        element("p", in_words(record), class_="story"),
        class_="card",
    )


def changes_of(record: RunRecord) -> list[Change]:
    """The first and last value of each family, by evaluation where there was one, else by smoothed training values."""
    series = record.series()
    changes: list[Change] = []
    for family, names in group(series):
        name = next((n for n in names if parse(n).is_evaluation), names[0])
        ends = _ends(series[name], is_evaluation=parse(name).is_evaluation)
        if ends:
            changes.append(Change(family, name, *ends))
    return changes


def in_words(record: RunRecord) -> str:
    """One sentence: from what, on what, how long."""
    config = record.config
    parts = [
        f"{opening} {_text_of(config[key])}"
        for opening, key in (
            ("from", "model_name_or_path"),
            ("with", "adapter_name_or_path"),
            ("judged by", "reward_model"),
            ("on", "dataset"),
        )
        if config.get(key)
    ]
    length = f"{record.last_step:,} steps"
    seconds = record.results.get("train_runtime")
    if isinstance(seconds, int | float):
        length += f" in {duration(float(seconds))}".replace(" ", _NO_BREAK_SPACE)
    sentence = f"{', '.join([*parts, length])}."
    return sentence[0].upper() + sentence[1:]


def ending_of(record: RunRecord) -> str:
    """How the run ended: `finished`, `interrupted`, `failed`, `stopped` by a guard; `unfinished`: running or killed."""
    last = next((e["kind"] for e in reversed(record.events) if e.get("kind") in _BOUNDARIES), "started")
    return "unfinished" if last in ("started", "resumed") else str(last)


_BOUNDARIES = ("started", "resumed", "finished", "interrupted", "stopped", "failed")


def _ends(series: Series, *, is_evaluation: bool) -> tuple[float, float] | None:
    points = series.finite
    if not points:
        return None
    return (points[0][1], points[-1][1] if is_evaluation else smooth(points)[-1][1])


def _headline(change: Change) -> Markup:
    return element(
        "p",
        element("span", change.family.title, class_="label"),
        element("span", brief(change.first, digits=3), " → ", class_="from"),
        element("strong", brief(change.last, digits=3), class_=change.verdict),
        class_="headline",
    )


def _in_words(change: Change) -> Markup:
    moved = f"{brief(change.first, digits=3)} → {brief(change.last, digits=3)}"
    return element("span", f"{change.family.title} ", element("b", moved))


def _stage_of(record: RunRecord) -> str:
    return "" if record.stage == record.name else f" · {record.stage}"


def _ending(record: RunRecord) -> Markup | None:
    ending = ending_of(record)
    return None if ending == "finished" else element("span", ending, class_="badge")


def _text_of(value: object) -> str:
    """A setting in a sentence: of a full path the last part, the rest is in the provenance."""
    if isinstance(value, list):
        return ", ".join(map(_text_of, value))
    return Path(str(value)).name if Path(str(value)).is_absolute() else str(value)
