"""The arithmetic of an examination: shares with intervals, calibration, correlations, quantiles. Plain Python."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from statistics import fmean

Z_95 = 1.959963984540054
"""Half the width of a 95 % interval, in standard deviations of a normal distribution."""
NUM_BINS = 10
"""Bins of the reliability diagram, as in Guo et al. 2017."""
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


@dataclass(frozen=True)
class Rate:
    """A share of some trials, with its 95 % interval."""

    share: float
    low: float
    high: float
    trials: float
    """How many; not whole where trials have weights."""


@dataclass(frozen=True)
class Bin:
    """Predictions of about the same confidence, and how many of them were right."""

    low: float
    high: float
    confidence: float
    accuracy: float
    weight: float


def wilson(wins: float, trials: float) -> Rate:
    """The share of wins, with the interval of Wilson 1927, which keeps to [0, 1] and means something at 0 of 20 too.

    >>> rate = wilson(0, 20)
    >>> rate.share, rate.low, round(rate.high, 3)
    (0.0, 0.0, 0.161)
    """
    if trials <= 0:
        return Rate(0.0, 0.0, 1.0, 0.0)
    share, square = wins / trials, Z_95**2
    centre = (share + square / (2 * trials)) / (1 + square / trials)
    reach = Z_95 / (1 + square / trials) * math.sqrt(share * (1 - share) / trials + square / (4 * trials**2))
    return Rate(share, max(0.0, min(share, centre - reach)), min(1.0, max(share, centre + reach)), trials)


def win(one: float, other: float) -> float:
    """1 where the first is higher, 1/2 where they are equal, else 0."""
    return 1.0 if one > other else 0.5 if one == other else 0.0


def sigmoid(x: float) -> float:
    """1 / (1 + exp(-x)), for any x.

    >>> sigmoid(0.0), sigmoid(-1e6)
    (0.5, 0.0)
    """
    return 1.0 / (1.0 + math.exp(-x)) if x >= 0 else math.exp(x) / (1.0 + math.exp(x))


def reliability(gaps: Sequence[float], weights: Sequence[float]) -> tuple[float, list[Bin]]:
    """How far the probability that a reward model gives its choices is from how often they are right.

    A gap g between the scores of a better and a worse answer says, by Bradley and Terry, that the better one wins with
    probability sigmoid(g). The model's choice is the likelier answer, its confidence max(p, 1 - p), in [1/2, 1].

    Args:
        gaps: Score of the better less score of the worse answer, by pair.
        weights: What each pair counts.

    Returns:
        The expected calibration error (Guo et al. 2017, equation 3), and the bins that are not empty.
    """
    bins: list[list[tuple[float, float, float]]] = [[] for _ in range(NUM_BINS)]
    for gap, weight in zip(gaps, weights, strict=True):
        confidence = sigmoid(abs(gap))
        place = min(NUM_BINS - 1, int((confidence - 0.5) * 2 * NUM_BINS))
        bins[place].append((confidence, win(gap, 0.0), weight))
    found: list[Bin] = []
    total = sum(weights)
    for place, members in enumerate(bins):
        if weight := sum(w for _, _, w in members):
            low = 0.5 + place / (2 * NUM_BINS)
            confidence = sum(c * w for c, _, w in members) / weight
            accuracy = sum(right * w for _, right, w in members) / weight
            found.append(Bin(low, low + 0.5 / NUM_BINS, confidence, accuracy, weight))
    error = sum(abs(each.accuracy - each.confidence) * each.weight for each in found) / total if total else 0.0
    return error, found


def correlation(xs: Sequence[float], ys: Sequence[float]) -> float | None:
    """Pearson's correlation; None where one of the two does not vary.

    >>> round(correlation([1.0, 2.0, 3.0], [2.0, 4.0, 6.0]) or 0.0, 9), correlation([1.0, 1.0], [1.0, 2.0])
    (1.0, None)
    """
    if len(xs) < 2:
        return None
    x_mean, y_mean = fmean(xs), fmean(ys)
    x_square = sum((x - x_mean) ** 2 for x in xs)
    y_square = sum((y - y_mean) ** 2 for y in ys)
    if x_square <= 0 or y_square <= 0:
        return None
    product = sum((x - x_mean) * (y - y_mean) for x, y in zip(xs, ys, strict=True))
    return min(1.0, max(-1.0, product / math.sqrt(x_square) / math.sqrt(y_square)))


def centred(values: Sequence[float], groups: Sequence[Hashable]) -> list[float]:
    """Each value less the mean of its group.

    >>> centred([1.0, 3.0, 10.0], ["a", "a", "b"])
    [-1.0, 1.0, 0.0]
    """
    members: dict[Hashable, list[float]] = {}
    for value, group in zip(values, groups, strict=True):
        members.setdefault(group, []).append(value)
    means = {group: fmean(found) for group, found in members.items()}
    return [value - means[group] for value, group in zip(values, groups, strict=True)]


def quantiles(values: Sequence[float]) -> tuple[float, ...]:
    """The 5th, 25th, 50th, 75th and 95th percentile, interpolated; empty where there is no value.

    >>> quantiles([0.0, 10.0])
    (0.5, 2.5, 5.0, 7.5, 9.5)
    """
    if not values:
        return ()
    ordered = sorted(values)
    found = []
    for share in QUANTILES:
        place = share * (len(ordered) - 1)
        below = math.floor(place)
        above = min(below + 1, len(ordered) - 1)
        found.append(ordered[below] + (ordered[above] - ordered[below]) * (place - below))
    return tuple(found)
