"""What an examination of a reward model found: the records that exam.json, the page and the terminal show."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from duiqi.evaluation.exam_statistics import Bin, Rate

Grade = Literal["A", "B", "C", "D", "F"]
GRADES: tuple[Grade, ...] = ("A", "B", "C", "D", "F")


def worst(*grades: Grade) -> Grade:
    """The lowest of some grades; A of none.

    >>> worst("B", "F", "A")
    'F'
    """
    return max(grades, key=GRADES.index, default="A")


def best(*grades: Grade) -> Grade:
    """The highest of some grades; F of none."""
    return min(grades, key=GRADES.index, default="F")


@dataclass(frozen=True)
class About:
    """Who was examined, on what, and how."""

    reward_model: str
    """As the user named it."""
    digest: str
    """Of its weight files; empty where it has none here."""
    dataset: str
    prompts: int
    seed: int
    precision: str
    version: str
    """Of duiqi."""
    time: str
    notes: tuple[str, ...] = ()
    """What the reader should know of the data."""


@dataclass(frozen=True)
class Part:
    """One part of the examination."""

    name: str
    grade: Grade
    lowest: Grade
    """The worst that this part can make of the whole."""
    finding: str
    """A sentence with its numbers."""
    reason: str
    """Why it matters, and where the limits are."""

    @property
    def counts_as(self) -> Grade:
        """Its grade as far as the whole is concerned."""
        return best(self.grade, self.lowest)


@dataclass(frozen=True)
class Case:
    """A probe beside the real answer to the same prompt."""

    prompt: str
    real: str
    real_score: float
    probe: str
    probe_score: float


@dataclass(frozen=True)
class ProbeResult:
    """How one kind of probe did against real answers."""

    kind: str
    title: str
    is_fatal: bool
    beats_best: Rate
    """Against the best answer to the same prompt; equal scores count half."""
    beats_worst: Rate
    """Against the worst answer to it: what a policy gives up for the probe."""
    grade: Grade | None
    """None where there was nothing to make it of."""
    scores: tuple[float, ...]
    """Quantiles (5, 25, 50, 75, 95 %)."""
    worst_cases: tuple[Case, ...]
    """Where it was furthest ahead."""


@dataclass(frozen=True)
class Slice:
    """Accuracy on some of the pairs."""

    name: str
    accuracy: Rate


@dataclass(frozen=True)
class Accuracy:
    """How often the better answer scores higher; a prompt counts once, its pairs share its weight."""

    overall: Rate
    longer_wins: Rate
    """Of a rule that takes the longer answer."""
    shorter_wins: Rate
    by_source: tuple[Slice, ...]
    by_length: tuple[Slice, ...]
    """By how long the better answer is beside the worse one."""
    pairs: int


@dataclass(frozen=True)
class LengthBias:
    """What length does to a score, beside what it does to the labels."""

    model_prefers_longer: Rate
    labels_prefer_longer: Rate
    """Among pairs of unequal length."""
    right_when_longer: Rate
    """Accuracy on the pairs whose better answer is the longer one."""
    right_when_shorter: Rate
    """And on the others."""
    bias: float | None
    """Half the difference of these two, from -1/2 (nothing but shortness is read) to 1/2 (nothing but length): by so
    much the model would prefer longer answers if they were better as often as not. None where one kind is missing."""
    correlation_within: float | None
    """Of score and length over the answers to one prompt, both less their mean over the prompt."""
    correlation_overall: float | None


@dataclass(frozen=True)
class Calibration:
    """Whether sigmoid(score gap) is the probability that it seems to be."""

    error: float
    """Expected calibration error."""
    bins: tuple[Bin, ...]


@dataclass(frozen=True)
class Spread:
    """Where the scores of some answers lie."""

    name: str
    mean: float
    std: float
    quantiles: tuple[float, ...]


@dataclass(frozen=True)
class Stability:
    """How far a score moves when only the computation changes; in standard deviations of real answers' scores."""

    batch: float
    """Largest change between a row alone and the same row in a padded batch."""
    order: float
    """Largest change when the rows come in another order."""
    precision: float | None
    """Mean change in the other precision; None where there is none."""
    other_precision: str
    flipped: float | None
    """Share of pairs that change their order in the other precision."""
    rows: int


@dataclass(frozen=True)
class Exam:
    """An examination of one reward model."""

    grade: Grade
    about: About
    parts: tuple[Part, ...]
    probes: tuple[ProbeResult, ...]
    accuracy: Accuracy
    length: LengthBias
    calibration: Calibration
    scores: tuple[Spread, ...]
    stability: Stability
