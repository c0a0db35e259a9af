"""What the runs gave: reading the results, medians, ratios to the better peer, and the targets to hold them against."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from work import WORKS

PLANNED_TARGET = 1.35
"""Of PPO's peak memory, as a multiple of what was planned."""


@dataclass(frozen=True)
class Measurement:
    """One run of one contender."""

    work: str
    contender: str
    size: str
    dtype: str
    flags: str
    """More flags than the work's own; empty for the whole work."""
    session: str
    """When the comparison that it belongs to began."""
    round: int
    train_s: float
    wall_s: float
    peak_rss_mb: float
    real_tokens: int
    waiting_share: float
    """Share of its time that it stood in the queue of the processor because of others."""
    is_disturbed: bool
    threads: int
    versions: dict[str, str]
    revision: str
    """duiqi's git revision, with + when files were changed."""
    machine: str
    peak_over_planned: float | None = None
    """duiqi's PPO and GRPO: peak memory beyond Python's own, as a multiple of what the shapes ask for."""


def parse(line: dict[str, Any]) -> Measurement:
    """A line of the results file."""
    return Measurement(**{name: line[name] for name in Measurement.__dataclass_fields__ if name in line})


def read_results(path: Path) -> list[Measurement]:
    """All measurements of a file; none where there is no file."""
    if not path.is_file():
        return []
    return [parse(json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]


def latest_of_each(measurements: Iterable[Measurement]) -> list[Measurement]:
    """Of every work, size and precision the measurements of the newest session that has it."""
    measurements = list(measurements)
    newest: dict[tuple[str, str, str, str], str] = {}
    for m in measurements:
        newest[m.work, m.size, m.dtype, m.flags] = max(m.session, newest.get((m.work, m.size, m.dtype, m.flags), ""))
    return [m for m in measurements if m.session == newest[m.work, m.size, m.dtype, m.flags]]


@dataclass(frozen=True)
class Contest:
    """Who is compared with whom on a piece of work, and what duiqi sets out to reach."""

    work: str
    contender: str
    rivals: tuple[str, ...]
    title: str
    """The work in words, for the tables."""
    faster: dict[str, float] = field(default_factory=dict)
    """By precision: how many times as fast as the better rival."""
    memory: float | None = None
    """At most this share of the peak memory of the smaller rival."""


PEER_NAMES = ("trl", "llamafactory")
CONTESTS: tuple[Contest, ...] = (
    Contest("sft", "duiqi", PEER_NAMES, "SFT", {"fp32": 2.3, "bf16": 2.5}, 0.55),
    Contest("rm", "duiqi", PEER_NAMES, "reward model", {"fp32": 3.5, "bf16": 4.0}, 0.42),
    Contest("dpo", "duiqi", PEER_NAMES, "DPO", {"fp32": 3.4, "bf16": 4.0}, 0.38),
    Contest("dpo", "duiqi-cached", ("duiqi",), "DPO again, reference remembered", {"fp32": 1.3, "bf16": 1.3}),
    Contest("ppo", "duiqi-shared", ("trl",), "PPO, critic: shared", {"fp32": 2.6, "bf16": 2.6}, 0.75),
    Contest("ppo", "duiqi-adapter", ("trl",), "PPO, critic: adapter", {"fp32": 1.5, "bf16": 1.7}, 0.75),
    Contest("ppo", "duiqi-model", ("trl",), "PPO, critic: model"),
    Contest("grpo", "duiqi", ("trl",), "GRPO, 8 answers", {"fp32": 2.5}, 0.75),
)


@dataclass(frozen=True)
class Verdict:
    """How a contest ended."""

    contest: Contest
    size: str
    dtype: str
    seconds: float
    """Median of the training."""
    rival: str
    """The faster one."""
    rival_seconds: float
    ratio: float
    """Of the medians."""
    lowest: float
    """Smallest ratio to the faster rival within one round, in which everybody runs once."""
    highest: float
    tokens_per_second: float
    peak_mb: float
    rival_peak_mb: float
    """The smallest peak of the rivals."""
    rounds: int
    disturbed: int
    """Runs in it that others held up."""
    peak_over_planned: float | None

    @property
    def memory_share(self) -> float:
        return self.peak_mb / self.rival_peak_mb

    @property
    def speed_target(self) -> float | None:
        return self.contest.faster.get(self.dtype)

    @property
    def is_fast_enough(self) -> bool:
        return self.speed_target is None or self.ratio >= self.speed_target

    @property
    def is_small_enough(self) -> bool:
        return self.contest.memory is None or self.memory_share <= self.contest.memory


def judge(measurements: Sequence[Measurement], contest: Contest, *, size: str, dtype: str) -> Verdict | None:
    """The verdict on a contest; None when the contender or every rival is missing.

    >>> lines = [("duiqi", 0, 10.0, 500.0), ("trl", 0, 30.0, 900.0), ("duiqi", 1, 12.0, 500.0), ("trl", 1, 30.0, 800.0)]
    >>> runs = [Measurement("sft", who, "small", "fp32", "", "", r, s, s, mb, 1000, 0.0, False, 2, {}, "", "")
    ...         for who, r, s, mb in lines]
    >>> verdict = judge(runs, CONTESTS[0], size="small", dtype="fp32")
    >>> round(verdict.ratio, 2), verdict.lowest, verdict.highest, round(verdict.memory_share, 2)
    (2.73, 2.5, 3.0, 0.59)
    """
    ours: dict[int, Measurement] = {}
    theirs: dict[str, dict[int, Measurement]] = {}
    for m in measurements:
        if (m.work, m.size, m.dtype) != (contest.work, size, dtype):
            continue
        if m.contender == contest.contender:
            ours[m.round] = m
        elif m.contender in contest.rivals:
            theirs.setdefault(m.contender, {})[m.round] = m
    if not ours or not theirs:
        return None
    rival = min(theirs, key=lambda name: middle(theirs[name].values(), train_s))
    in_rounds = [theirs[rival][r].train_s / m.train_s for r, m in ours.items() if r in theirs[rival]]
    seconds, rival_seconds = middle(ours.values(), train_s), middle(theirs[rival].values(), train_s)
    ratio = rival_seconds / seconds
    return Verdict(
        contest=contest,
        size=size,
        dtype=dtype,
        seconds=seconds,
        rival=rival,
        rival_seconds=rival_seconds,
        ratio=ratio,
        lowest=min(in_rounds, default=ratio),
        highest=max(in_rounds, default=ratio),
        tokens_per_second=next(iter(ours.values())).real_tokens / seconds,
        peak_mb=middle(ours.values(), peak),
        rival_peak_mb=min(middle(runs.values(), peak) for runs in theirs.values()),
        rounds=len(ours),
        peak_over_planned=max((m.peak_over_planned for m in ours.values() if m.peak_over_planned), default=None),
        disturbed=sum(m.is_disturbed for runs in (ours, theirs[rival]) for m in runs.values()),
    )


def train_s(measurement: Measurement) -> float:
    return measurement.train_s


def peak(measurement: Measurement) -> float:
    return measurement.peak_rss_mb


def middle(measurements: Iterable[Measurement], of: Callable[[Measurement], float]) -> float:
    """The median of a quantity."""
    return median(map(of, measurements))


def judge_all(measurements: Sequence[Measurement], works: Iterable[str] = WORKS) -> list[Verdict]:
    """Every verdict that the measurements allow, work by work, then by size and precision."""
    works = tuple(works)
    sizes = sorted({m.size for m in measurements}, reverse=True)
    dtypes = sorted({m.dtype for m in measurements}, reverse=True)
    found = [
        judge(measurements, contest, size=size, dtype=dtype)
        for size in sizes
        for contest in CONTESTS
        if contest.work in works
        for dtype in dtypes
    ]
    return [verdict for verdict in found if verdict is not None]


def in_words(verdict: Verdict) -> str:
    """A verdict as lines for a terminal."""
    v, names = verdict, {"trl": "TRL", "llamafactory": "LLaMA-Factory", "duiqi": "duiqi without it"}
    lines = [
        f"{v.contest.title} ({v.size}, {v.dtype}, {v.rounds} rounds): {v.seconds:.1f} s, {v.tokens_per_second:.0f} "
        f"tokens/s; {names[v.rival]} {v.rival_seconds:.1f} s",
        f"  speed  {v.ratio:.2f} times ({v.lowest:.2f} to {v.highest:.2f}){_target(v.speed_target, v.is_fast_enough)}",
    ]
    if v.contest.memory is not None:
        share = _target(v.contest.memory, v.is_small_enough, at_most=True)
        lines.append(f"  memory {v.memory_share:.2f} of {v.rival_peak_mb:.0f} MB: {v.peak_mb:.0f} MB{share}")
    if v.peak_over_planned is not None:
        planned = _target(PLANNED_TARGET, v.peak_over_planned <= PLANNED_TARGET, at_most=True)
        lines.append(f"  peak   {v.peak_over_planned:.2f} times what was planned{planned}")
    if v.disturbed:
        lines.append(f"  {v.disturbed} of these runs were held up by other processes")
    return "\n".join(lines)


def _target(value: float | None, is_met: bool, *, at_most: bool = False) -> str:
    if value is None:
        return ""
    return f", target {'at most' if at_most else 'at least'} {value:g}: {'met' if is_met else 'MISSED'}"
