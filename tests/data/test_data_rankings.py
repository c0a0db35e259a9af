"""Batches of rankings: every answer once, its prompt once for all of them, all pairs among them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from duiqi.data.encoding import EncodedRanking
from duiqi.data.rankings import collate_rankings, length_gaps


def ranking(num_answers: int, *, margin: float = 0.0, source: str = "a") -> EncodedRanking:
    answers = [[7, i] for i in range(num_answers)]
    return EncodedRanking(
        [1, 2],
        answers,
        prompt_truncated=False,
        answers_truncated=0,
        answers_dropped=0,
        margin=margin,
        source=source,
    )


def test_four_answers_make_six_pairs_and_four_rows() -> None:
    batch = collate_rankings([ranking(4)], weighting="prompt")
    assert len(batch.sequences) == 4
    assert batch.sequences.num_tokens == 2 + 4 * 2  # a prompt of two tokens once, four answers of two
    assert list(zip(batch.better.tolist(), batch.worse.tolist(), strict=True)) == [
        (0, 1),
        (0, 2),
        (0, 3),
        (1, 2),
        (1, 3),
        (2, 3),
    ]
    assert batch.weights.tolist() == pytest.approx([1 / 6] * 6)


def test_pairs_never_cross_rankings() -> None:
    batch = collate_rankings([ranking(2, margin=0.5), ranking(3, source="b")], weighting="pair")
    assert list(zip(batch.better.tolist(), batch.worse.tolist(), strict=True)) == [(0, 1), (2, 3), (2, 4), (3, 4)]
    assert batch.weights.tolist() == [1.0] * 4
    assert batch.margins.tolist() == [0.5, 0.0, 0.0, 0.0]
    assert batch.sources == ("a", "b", "b", "b")


def test_answers_of_equal_scores_make_no_pair_and_the_others_share_the_weight() -> None:
    tied = replace(ranking(4), scores=(3.0, 1.0, 1.0, 0.0))
    batch = collate_rankings([ranking(2), tied], weighting="prompt")
    pairs = list(zip(batch.better.tolist(), batch.worse.tolist(), strict=True))
    assert pairs == [(0, 1), (2, 3), (2, 4), (2, 5), (3, 5), (4, 5)]
    assert batch.weights.tolist() == pytest.approx([1.0] + [1 / 5] * 5)
    assert len(length_gaps(tied)) == 5
