"""Weights with which the length of an answer says nothing about whether it is the better one.

Preferences often go to the longer answer, and a reward model learns to count (Singhal et al. 2023). ODIN (Chen et al.
2024) penalises the correlation of score and length in a batch. A correlation is no sum over rows, so it would depend on
how a step is split; here the pairs are weighted instead, by the inverse of how often their kind occurs (inverse
propensity weighting, Rosenbaum and Rubin 1983). Nothing changes where scores are computed, and a rule that takes the
longer answer is right on exactly half of the weighted pairs. What was right in the labels' preference for length goes
with the rest.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass

from duiqi.errors import DataError

NUM_BINS = 4
"""Bins of the difference in length, with about as many pairs each: a preference may depend on how large it is."""
LARGEST_WEIGHT = 10.0
"""Of a pair of the rarer kind, so that a few rows do not decide everything."""


@dataclass(frozen=True)
class LengthBalance:
    """What a pair counts, by how much longer its better answer is."""

    edges: tuple[int, ...]
    """Largest difference of every bin but the last, ascending."""
    longer: tuple[float, ...]
    """By bin: the weight of pairs in which the longer answer is the better one."""
    shorter: tuple[float, ...]
    """By bin: of those in which the shorter one is."""
    share_longer: float
    """Of all unequal pairs, before they are weighted."""

    def weight(self, gap: int) -> float:
        """What a pair counts whose better answer is `gap` tokens longer than the worse one."""
        if not gap:
            return 1.0
        place = bisect_left(self.edges, abs(gap))
        return self.longer[place] if gap > 0 else self.shorter[place]

    def line(self) -> str:
        """A sentence for the log."""
        low, high = min(*self.longer, *self.shorter), max(*self.longer, *self.shorter)
        return (
            f"the longer answer wins in {self.share_longer:.0%} of pairs: they are weighted by {low:.2f} to {high:.2f}"
        )


def balance_lengths(pairs: Iterable[tuple[int, float]]) -> LengthBalance:
    """The weights that balance some pairs.

    Args:
        pairs: Tokens of the better answer less those of the worse one, and what the pair counts so far.

    Raises:
        DataError: The longer answer always wins, or never.

    >>> balance_lengths([(5, 1.0), (7, 1.0), (6, 1.0), (-6, 1.0)]).share_longer
    0.75
    """
    unequal = [(gap, weight) for gap, weight in pairs if gap]
    longer = sum(weight for gap, weight in unequal if gap > 0)
    total = sum(weight for _, weight in unequal)
    if not 0 < longer < total:
        which = "always" if total and longer else "never"
        raise DataError(
            f"the longer answer {which} wins in these pairs, so length cannot be told from quality",
            where="length_bias: balanced",
            remedy="set length_bias: none, or add pairs that go the other way",
        )
    sizes = sorted(abs(gap) for gap, _ in unequal)
    edges = tuple(sorted({sizes[len(sizes) * i // NUM_BINS - 1] for i in range(1, NUM_BINS) if len(sizes) >= NUM_BINS}))
    weights = _weights(unequal, edges)
    if any(weight is None for weight in weights):
        edges, weights = (), _weights(unequal, ())
    known = [weight for weight in weights if weight is not None]
    return LengthBalance(edges, tuple(a for a, _ in known), tuple(b for _, b in known), longer / total)


def _weights(unequal: list[tuple[int, float]], edges: tuple[int, ...]) -> list[tuple[float, float] | None]:
    """By bin, the two weights with which both kinds count the same; None where one of the kinds is missing."""
    sums = [[0.0, 0.0] for _ in range(len(edges) + 1)]
    for gap, weight in unequal:
        sums[bisect_left(edges, abs(gap))][gap < 0] += weight
    return [_even(longer, shorter) for longer, shorter in sums]


def _even(longer: float, shorter: float) -> tuple[float, float] | None:
    """Weights that leave the total as it is, unless the rarer kind would count more than LARGEST_WEIGHT."""
    if not longer or not shorter:
        return None
    half = (longer + shorter) / 2
    scale = min(1.0, LARGEST_WEIGHT * min(longer, shorter) / half)
    return scale * half / longer, scale * half / shorter
