"""Batches of rankings: every answer is computed once, however many pairs it belongs to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from duiqi.data.batching import Batch, collate
from duiqi.data.encoding import EncodedRanking, EncodedSequence

PairWeighting = Literal["prompt", "pair"]


@dataclass(frozen=True)
class RankingBatch:
    """All answers of some rankings, and the pairs among them."""

    sequences: Batch
    """One row per answer, prompt included."""
    better: Int[Tensor, " P"]
    """Row of the better answer of each pair."""
    worse: Int[Tensor, " P"]
    weights: Float[Tensor, " P"]
    margins: Float[Tensor, " P"]
    sources: tuple[str, ...]
    """The dataset each pair came from."""

    def to(self, device: torch.device) -> RankingBatch:
        """The same batch on a device."""
        return RankingBatch(
            sequences=self.sequences.to(device),
            better=self.better.to(device),
            worse=self.worse.to(device),
            weights=self.weights.to(device),
            margins=self.margins.to(device),
            sources=self.sources,
        )


def collate_rankings(
    rankings: Sequence[EncodedRanking],
    *,
    margins: Sequence[float],
    sources: Sequence[str],
    weighting: PairWeighting,
    pad_token_id: int,
) -> RankingBatch:
    """The rankings as one batch; K answers make K(K-1)/2 pairs.

    With `weighting="prompt"` the pairs of a ranking share the weight 1, so that a prompt with ten answers does not
    outweigh 45 prompts with two (Ouyang et al. 2022, equation 1).
    """
    sequences: list[EncodedSequence] = []
    better: list[int] = []
    worse: list[int] = []
    weights: list[float] = []
    pair_margins: list[float] = []
    pair_sources: list[str] = []
    for ranking, margin, source in zip(rankings, margins, sources, strict=True):
        first = len(sequences)
        count = len(ranking.answers)
        sequences += [ranking.sequence(i) for i in range(count)]
        pairs = list(combinations(range(first, first + count), 2))
        better += [i for i, _ in pairs]
        worse += [j for _, j in pairs]
        weights += [1.0 / len(pairs) if weighting == "prompt" else 1.0] * len(pairs)
        pair_margins += [margin] * len(pairs)
        pair_sources += [source] * len(pairs)
    return RankingBatch(
        sequences=collate(sequences, pad_token_id=pad_token_id),
        better=torch.tensor(better),
        worse=torch.tensor(worse),
        weights=torch.tensor(weights),
        margins=torch.tensor(pair_margins),
        sources=tuple(pair_sources),
    )


def split_rankings(rankings: Sequence[EncodedRanking], rows: Sequence[int], *, max_rows: int) -> list[list[int]]:
    """The rankings of one step in micro-batches, those with the longest answers first.

    A micro-batch has at most 2 x `max_rows` answers, as `max_rows` pairs would have, unless a single ranking has more:
    so a ranking of ten answers takes the place of five pairs.
    """
    longest_first = sorted(rows, key=lambda row: -_length(rankings[row]))
    micro_batches: list[list[int]] = []
    num_answers = 0
    for row in longest_first:
        count = len(rankings[row].answers)
        if not micro_batches or num_answers + count > 2 * max_rows:
            micro_batches.append([])
            num_answers = 0
        micro_batches[-1].append(row)
        num_answers += count
    return micro_batches


def _length(ranking: EncodedRanking) -> int:
    return len(ranking.prompt_ids) + max(map(len, ranking.answers))
