"""Shares with intervals, calibration, correlations: numbers that can be checked by hand."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from duiqi.evaluation.exam_statistics import centred, correlation, quantiles, reliability, wilson


def test_the_interval_of_eight_in_ten_is_the_one_in_the_tables() -> None:
    rate = wilson(8, 10)
    assert (rate.low, rate.high) == (pytest.approx(0.4902, abs=1e-4), pytest.approx(0.9433, abs=1e-4))


@given(st.integers(1, 500), st.data())
def test_an_interval_holds_its_share_and_stays_between_0_and_1(trials: int, data: st.DataObject) -> None:
    rate = wilson(data.draw(st.integers(0, trials)), trials)
    assert 0.0 <= rate.low <= rate.share <= rate.high <= 1.0
    assert rate.high - rate.low < 1.0


def test_more_trials_make_a_narrower_interval() -> None:
    few, many = wilson(5, 10), wilson(50, 100)
    assert many.high - many.low < few.high - few.low


def test_without_trials_nothing_is_known() -> None:
    assert (wilson(0, 0).low, wilson(0, 0).high) == (0.0, 1.0)


def test_three_of_four_right_at_three_to_one_is_perfectly_calibrated() -> None:
    gap = math.log(3)  # sigmoid(ln 3) = 3/4
    error, bins = reliability([gap, gap, gap, -gap], [1.0] * 4)
    assert error == pytest.approx(0.0)
    assert len(bins) == 1
    assert (bins[0].confidence, bins[0].accuracy) == (pytest.approx(0.75), pytest.approx(0.75))


def test_always_right_at_three_to_one_is_off_by_a_quarter_and_weights_count() -> None:
    gap = math.log(3)
    assert reliability([gap] * 4, [1.0] * 4)[0] == pytest.approx(0.25)
    # three right, one wrong; the wrong one counts three times: half right, a quarter less than said
    assert reliability([gap, gap, gap, -gap], [1.0, 1.0, 1.0, 3.0])[0] == pytest.approx(0.25)


def test_equal_scores_are_a_coin_toss_and_calibrated() -> None:
    error, (only,) = reliability([0.0, 0.0], [1.0, 1.0])
    assert (error, only.confidence, only.accuracy) == (0.0, 0.5, 0.5)


def test_a_planted_correlation_is_recovered() -> None:
    lengths = [-3.0, -1.0, 1.0, 3.0]
    scores = [2.0 * length for length in lengths]
    assert correlation(scores, lengths) == pytest.approx(1.0)
    orthogonal = [1.0, -1.0, -1.0, 1.0]
    mixed = [length + 5**0.5 * other for length, other in zip(lengths, orthogonal, strict=True)]
    assert correlation(mixed, lengths) == pytest.approx(0.5**0.5)  # half of the variance is the slope


def test_within_groups_the_offsets_of_groups_have_no_part() -> None:
    scores, lengths, groups = [10.0, 11.0, 0.0, 1.0], [1.0, 2.0, 5.0, 6.0], ["a", "a", "b", "b"]
    overall = correlation(scores, lengths)
    assert overall is not None
    assert overall < 0
    assert correlation(centred(scores, groups), centred(lengths, groups)) == pytest.approx(1.0)


@given(st.lists(st.floats(-1e6, 1e6), min_size=1))
def test_quantiles_ascend_within_the_values(values: list[float]) -> None:
    found = quantiles(values)
    assert list(found) == sorted(found)
    assert min(values) <= found[0]
    assert found[-1] <= max(values)
