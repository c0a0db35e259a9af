"""How many rows, how long, in which languages, from where."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from duiqi.data.loading import DatasetReport
from duiqi.guards.answers import is_chinese
from duiqi.inspection.counting import counted
from duiqi.inspection.findings import Tracker, excerpt, place_of, untracked
from duiqi.types import Example, last_user_text, readable

LONGEST = 5
"""Rows that are named."""
BINS = 8
_BAR = 24
_LANGUAGES = {True: "Chinese (or other characters)", False: "English (or other words)", None: "neither"}
_WIDTH = 12

Count = Callable[[str], int]
"""How long a text is."""


@dataclass(frozen=True, slots=True)
class Distribution:
    """How some numbers are spread."""

    count: int
    total: int
    least: int
    median: int
    p90: int
    p99: int
    most: int
    bins: tuple[tuple[int, int], ...]
    """(upper bound, how many are at most that and above the bound before); bounds double."""


@dataclass(frozen=True, slots=True)
class LongRow:
    """One of the longest rows."""

    place: str
    length: int
    prompt: str


@dataclass(frozen=True, slots=True)
class Statistics:
    """What a dataset is made of."""

    rows: int
    malformed: int
    kinds: dict[str, int]
    formats: dict[str, str]
    files: dict[str, int]
    """Examples by file."""
    prompts: int
    """Different ones."""
    systems: int
    """Different system messages."""
    answers_per_row: dict[int, int]
    turns_of_user: dict[int, int]
    languages: dict[str, int]
    """Of the questions; of plain text, of the text."""
    unit: str
    """characters or tokens."""
    prompt_lengths: Distribution | None
    answer_lengths: Distribution | None
    longest: tuple[LongRow, ...]

    def to_json(self) -> dict[str, Any]:
        """All of it, as JSON has it."""
        return asdict(self)


def statistics_of(
    examples: Sequence[Example],
    datasets: Sequence[DatasetReport],
    *,
    malformed: int = 0,
    unit: str = "characters",
    count: Count = len,
    track: Tracker = untracked,
) -> Statistics:
    """Count everything.

    Args:
        unit, count: What lengths are measured in, and how.
    """
    prompt_lengths, answer_lengths, sizes = [], [], []
    languages: Counter[str] = Counter()
    for example in track(examples, "rows"):
        texts = [message.content for message in example.prompt]
        own = [count(text) for text in example.answers]
        length = sum(count(text) for text in texts)
        prompt_lengths += [length] if texts else []
        answer_lengths += own
        sizes.append(length + sum(own))
        told = is_chinese(last_user_text(example.prompt) or "".join(example.answers[:1]))
        languages[_LANGUAGES[told]] += 1
    by_size = sorted(range(len(examples)), key=lambda index: -sizes[index])[:LONGEST]
    return Statistics(
        rows=len(examples),
        malformed=malformed,
        kinds=dict(Counter(str(example.kind) for example in examples)),
        formats={dataset.name: dataset.format for dataset in datasets},
        files=dict(Counter(place_of(example.origin).file for example in examples)),
        prompts=len({example.prompt for example in examples if example.prompt}),
        systems=len({m.content for example in examples for m in example.prompt[:1] if m.role == "system"}),
        answers_per_row=_counted(len(example.answers) for example in examples),
        turns_of_user=_counted(
            sum(message.role == "user" for message in example.prompt) for example in examples if example.prompt
        ),
        languages=dict(languages.most_common()),
        unit=unit,
        prompt_lengths=distribution(prompt_lengths),
        answer_lengths=distribution(answer_lengths),
        longest=tuple(
            LongRow(str(examples[i].origin), sizes[i], excerpt(readable(examples[i].prompt) or examples[i].answers[0]))
            for i in by_size
        ),
    )


def distribution(numbers: Sequence[int]) -> Distribution | None:
    """How numbers are spread; None without any. Percentiles are numbers that occur (nearest rank).

    >>> found = distribution([1, 2, 3, 100])
    >>> found.median, found.p99, found.bins
    (2, 100, ((1, 1), (2, 1), (4, 1), (8, 0), (16, 0), (32, 0), (64, 0), (128, 1)))
    """
    if not numbers:
        return None
    ordered = sorted(numbers)

    def percentile(share: float) -> int:
        return ordered[max(0, -int(-share * len(ordered) // 1) - 1)]

    bounds = [1]
    while bounds[-1] < ordered[-1]:
        bounds.append(2 * bounds[-1])
    bounds = bounds[-BINS:]
    at_most = [sum(number <= bound for number in ordered) for bound in bounds]
    bins = [(bound, upto - before) for bound, upto, before in zip(bounds, at_most, [0, *at_most], strict=False)]
    return Distribution(
        count=len(ordered),
        total=sum(ordered),
        least=ordered[0],
        median=percentile(0.5),
        p90=percentile(0.9),
        p99=percentile(0.99),
        most=ordered[-1],
        bins=tuple(bins),
    )


def statistics_lines(found: Statistics) -> list[str]:
    """For a reader."""
    lines = [f"── {', '.join(found.formats)} " + "─" * 20]
    if found.malformed:
        lines.append(_named("malformed", f"{counted(found.malformed, 'row')} left out; duiqi data check says where"))
    lines += [
        _named("rows", f"{found.rows:,}: {_counts(found.kinds)}"),
        _named("formats", ", ".join(sorted(set(found.formats.values())))),
        _named("prompts", f"{found.prompts:,} different, {found.systems:,} different system messages"),
        _named("answers", f"rows by number of answers: {_counts(found.answers_per_row)}"),
    ]
    if found.turns_of_user:
        lines.append(_named("turns", f"rows by turns of the user: {_counts(found.turns_of_user)}"))
    lines.append(_named("languages", _shares(found.languages)))
    if len(found.files) > 1:
        lines.append(_named("files", _counts(found.files)))
    for title, spread in (("prompts", found.prompt_lengths), ("answers", found.answer_lengths)):
        if spread is not None:
            lines += ["", *_spread_lines(title, spread, found.unit)]
    lines += ["", f"   longest rows ({found.unit}, prompt and answers)"]
    return [*lines, *(f"   {row.length:>10,}  {row.place}  {row.prompt}" for row in found.longest)]


def _spread_lines(title: str, spread: Distribution, unit: str) -> list[str]:
    lines = [
        f"   {unit} of {title}: {spread.least:,} to {spread.most:,}, half at most {spread.median:,}, "
        f"90% at most {spread.p90:,}, 99% at most {spread.p99:,}; {spread.total:,} in all"
    ]
    fullest = max(count for _, count in spread.bins)
    for bound, count in spread.bins:
        bar = "█" * -(-count * _BAR // fullest)
        lines.append(f"   {f'to {bound:,}':>{_WIDTH}}  {bar:<{_BAR}}  {count:,}".rstrip())
    return lines


def _counted(numbers: Iterable[int]) -> dict[int, int]:
    return dict(sorted(Counter(numbers).items()))


def _named(name: str, text: str) -> str:
    return f"   {name:<10}{text}"


def _counts(counts: dict[str, int] | dict[int, int]) -> str:
    return ", ".join(
        f"{name}: {count:,}" if isinstance(name, int) else f"{count:,} {name}" for name, count in counts.items()
    )


def _shares(counts: dict[str, int]) -> str:
    total = sum(counts.values())
    return ", ".join(f"{count / total:.1%} {name}" for name, count in counts.items())
