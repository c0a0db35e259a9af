"""Balanced pairs: length says nothing about the label any more, in any bin; equal lengths are left alone."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from duiqi.data.encoded import EncodedData, EncodingReport
from duiqi.data.encoding import EncodedRanking
from duiqi.data.length_balance import LARGEST_WEIGHT, balance_lengths
from duiqi.data.rankings import collate_rankings, make_balance
from duiqi.errors import DataError

GAPS = st.lists(st.integers(-40, 40), min_size=2, max_size=60).filter(lambda g: min(g) < 0 < max(g))


@given(GAPS)
def test_the_longer_answer_wins_half_of_the_weighted_pairs(gaps: list[int]) -> None:
    balance = balance_lengths((gap, 1.0) for gap in gaps)
    longer = sum(balance.weight(gap) for gap in gaps if gap > 0)
    shorter = sum(balance.weight(gap) for gap in gaps if gap < 0)
    assert longer == pytest.approx(shorter)
    assert all(0 < balance.weight(gap) <= LARGEST_WEIGHT + 1e-9 for gap in gaps)


def test_in_every_bin_of_the_difference_too() -> None:
    gaps = [1, 1, 2, -1, 9, 9, 9, -9, 20, -20, -21, -22, 40, 41, -40, -41]
    balance = balance_lengths((gap, 1.0) for gap in gaps)
    assert len(balance.longer) == 4
    for low, high in zip((0, *balance.edges), (*balance.edges, 99), strict=True):
        inside = [gap for gap in gaps if low < abs(gap) <= high]
        assert sum(balance.weight(gap) * (1 if gap > 0 else -1) for gap in inside) == pytest.approx(0.0)


def test_three_to_one_by_hand() -> None:
    balance = balance_lengths([(5, 1.0), (7, 1.0), (6, 1.0), (-6, 1.0)])
    assert (balance.weight(5), balance.weight(-6), balance.weight(0)) == (pytest.approx(2 / 3), 2.0, 1.0)
    assert balance.line().startswith("the longer answer wins in 75% of pairs")


def test_a_rare_kind_does_not_decide_everything() -> None:
    balance = balance_lengths([(5, 1.0)] * 99 + [(-5, 1.0)])
    assert balance.weight(-5) == pytest.approx(LARGEST_WEIGHT)
    assert balance.weight(5) == pytest.approx(LARGEST_WEIGHT / 99)


@pytest.mark.parametrize(("gaps", "word"), [([1, 2], "always"), ([-1, -2], "never"), ([0, 0], "never")])
def test_what_cannot_be_balanced_is_refused(gaps: list[int], word: str) -> None:
    with pytest.raises(DataError, match=f"the longer answer {word} wins"):
        balance_lengths((gap, 1.0) for gap in gaps)


def test_a_batch_has_the_weights_of_its_pairs() -> None:
    def ranking(*lengths: int) -> EncodedRanking:
        answers = [[i] * length for i, length in enumerate(lengths)]
        return EncodedRanking([1], answers, prompt_truncated=False, answers_truncated=0, answers_dropped=0)

    items = [ranking(9, 3), ranking(8, 2), ranking(7, 1), ranking(2, 8)]
    balance = make_balance(EncodedData(items, [], EncodingReport()), weighting="prompt")
    batch = collate_rankings(items, weighting="prompt", balance=balance)
    assert batch.weights.tolist() == pytest.approx([2 / 3, 2 / 3, 2 / 3, 2.0])
    assert float(batch.weights.sum()) == pytest.approx(4.0)
