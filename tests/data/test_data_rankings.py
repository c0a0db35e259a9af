"""Batches of rankings: every answer once, all pairs among them, micro-batches bounded by answers."""

from __future__ import annotations

import pytest

from duiqi.data.encoding import EncodedRanking
from duiqi.data.rankings import collate_rankings, split_rankings


def ranking(num_answers: int, length: int = 1) -> EncodedRanking:
    answers = [[7] * length + [i] for i in range(num_answers)]
    return EncodedRanking([1, 2], answers, prompt_truncated=False, answers_truncated=0, answers_dropped=0)


def test_four_answers_make_six_pairs_and_four_rows() -> None:
    batch = collate_rankings([ranking(4)], margins=[0.0], sources=["a"], weighting="prompt", pad_token_id=0)
    assert len(batch.sequences.input_ids) == 4
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
    batch = collate_rankings(
        [ranking(2), ranking(3)], margins=[0.5, 0.0], sources=["a", "b"], weighting="pair", pad_token_id=0
    )
    assert list(zip(batch.better.tolist(), batch.worse.tolist(), strict=True)) == [(0, 1), (2, 3), (2, 4), (3, 4)]
    assert batch.weights.tolist() == [1.0] * 4
    assert batch.margins.tolist() == [0.5, 0.0, 0.0, 0.0]
    assert batch.sources == ("a", "b", "b", "b")


def test_micro_batches_are_bounded_by_answers_and_lose_no_ranking() -> None:
    rankings = [ranking(2), ranking(10), ranking(2, length=5), ranking(3), ranking(2)]
    split = split_rankings(rankings, range(5), max_rows=2)
    assert sorted(row for batch in split for row in batch) == [0, 1, 2, 3, 4]
    assert split[0][0] == 2  # the longest first
    counts = [sum(len(rankings[row].answers) for row in batch) for batch in split]
    assert all(count <= 4 or len(batch) == 1 for count, batch in zip(counts, split, strict=True))
