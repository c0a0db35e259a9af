"""Batches of rankings: every answer is computed once, however many pairs it belongs to."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from duiqi.data.encoded import EncodedData
from duiqi.data.encoding import EncodedRanking
from duiqi.data.length_balance import LengthBalance, balance_lengths
from duiqi.packing.batch import PackedBatch, pack
from duiqi.packing.budget import deal

PairWeighting = Literal["prompt", "pair"]


@dataclass(frozen=True)
class RankingBatch:
    """All answers of some rankings, and the pairs among them."""

    rankings: tuple[EncodedRanking, ...]
    sequences: PackedBatch
    """A sequence per answer; the answers of a ranking share their prompt."""
    better: Int[Tensor, " P"]
    """Number of the better answer of each pair."""
    worse: Int[Tensor, " P"]
    weights: Float[Tensor, " P"]
    margins: Float[Tensor, " P"]
    sources: tuple[str, ...]
    """The dataset each pair came from."""

    def to(self, device: torch.device) -> RankingBatch:
        """The same batch on a device."""
        return replace(
            self,
            sequences=self.sequences.to(device),
            better=self.better.to(device),
            worse=self.worse.to(device),
            weights=self.weights.to(device),
            margins=self.margins.to(device),
        )


def collate_rankings(
    rankings: Sequence[EncodedRanking],
    *,
    margins: Sequence[float],
    sources: Sequence[str],
    weighting: PairWeighting,
    balance: LengthBalance | None = None,
) -> RankingBatch:
    """The rankings as one batch; K answers make K(K-1)/2 pairs, less those of equal scores.

    With `weighting="prompt"` the pairs of a ranking share the weight 1, so that a prompt with ten answers does not
    outweigh 45 prompts with two (Ouyang et al. 2022, equation 1). `balance` multiplies the weights by its own.
    """
    num_answers = 0
    better: list[int] = []
    worse: list[int] = []
    weights: list[float] = []
    pair_margins: list[float] = []
    pair_sources: list[str] = []
    for ranking, margin, source in zip(rankings, margins, sources, strict=True):
        first, count = num_answers, len(ranking.answers)
        num_answers += count
        pairs = ranking.pairs
        better += [first + i for i, _ in pairs]
        worse += [first + j for _, j in pairs]
        weight = 1.0 / len(pairs) if weighting == "prompt" else 1.0
        gaps = length_gaps(ranking)
        weights += [weight if balance is None else weight * balance.weight(gap) for gap in gaps]
        pair_margins += [margin] * len(pairs)
        pair_sources += [source] * len(pairs)
    return RankingBatch(
        rankings=tuple(rankings),
        sequences=pack([ranking.family for ranking in rankings]),
        better=torch.tensor(better),
        worse=torch.tensor(worse),
        weights=torch.tensor(weights),
        margins=torch.tensor(pair_margins),
        sources=tuple(pair_sources),
    )


def ranking_batches(
    data: EncodedData[EncodedRanking],
    rows: Sequence[int],
    *,
    weighting: PairWeighting,
    max_tokens: int,
    packed: bool,
    balance: LengthBalance | None = None,
) -> Iterator[RankingBatch]:
    """Rankings of a dataset in micro-batches of at most so many tokens; a ranking is never divided."""
    for picked in deal([data.items[row].family for row in rows], max_tokens=max_tokens, packed=packed):
        chosen = [rows[i] for i in picked]
        yield collate_rankings(
            [data.items[row] for row in chosen],
            margins=[data.examples[row].margin for row in chosen],
            sources=[data.examples[row].origin.dataset for row in chosen],
            weighting=weighting,
            balance=balance,
        )


def length_gaps(ranking: EncodedRanking) -> list[int]:
    """By pair, how many tokens the better answer has more than the worse one."""
    return [len(ranking.answers[better]) - len(ranking.answers[worse]) for better, worse in ranking.pairs]


def make_balance(data: EncodedData[EncodedRanking], *, weighting: PairWeighting) -> LengthBalance:
    """The weights that balance the pairs of a dataset.

    Raises:
        DataError: They cannot be balanced.
    """
    gaps = [length_gaps(ranking) for ranking in data.items]
    return balance_lengths((gap, 1.0 / len(own) if weighting == "prompt" else 1.0) for own in gaps for gap in own)
