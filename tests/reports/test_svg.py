"""Charts: axes with round numbers, trends without lag, long runs without weight."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from duiqi.reports.families import FAMILIES, group
from duiqi.reports.read import Series
from duiqi.reports.svg import Line, chart, smooth, thin, ticks

values = st.floats(-1e6, 1e6)


@given(low=values, width=st.floats(1e-6, 1e6))
def test_ticks_lie_within_the_axis_and_are_few(low: float, width: float) -> None:
    high = low + width
    if high - low < abs(low) * 1e-6:
        return
    found = ticks(low, high)
    slack = (high - low) * 1e-3
    assert 2 <= len(found) <= 10
    assert all(low - slack <= tick <= high + slack for tick in found)


@given(st.lists(values, min_size=1, max_size=80))
def test_a_trend_stays_within_the_data(points: list[float]) -> None:
    trend = smooth(list(enumerate(points)))
    assert len(trend) == len(points)
    assert all(min(points) <= value <= max(points) for _, value in trend)


def test_a_trend_meets_both_ends_of_a_straight_line() -> None:
    line = [(step, 3.0 - step / 50) for step in range(100)]
    assert smooth(line) == [(step, pytest.approx(value)) for step, value in line]


def test_a_trend_is_calmer_than_its_points() -> None:
    noise = random.Random(0)
    points = [(step, noise.gauss(0, 1)) for step in range(200)]
    assert max(abs(value) for _, value in smooth(points)[20:-20]) < 1


def test_a_long_series_keeps_its_peaks_and_loses_its_weight() -> None:
    points = [(step, 100.0 if step == 54_321 else math.sin(step)) for step in range(100_000)]
    kept = thin(points)
    assert len(kept) <= 300
    assert (54_321, 100.0) in kept
    assert [step for step, _ in kept] == sorted(step for step, _ in kept)
    assert len(smooth(points)) <= 600


@pytest.mark.parametrize("series", [Series((5,), (1.0,)), Series((1, 2), (0.0, 0.0)), Series((1, 2), (-1e-9, 1e9))])
def test_any_series_can_be_drawn(series: Series) -> None:
    drawn = chart([Line("loss", series, 0)], description="loss")
    assert drawn.startswith("<svg")
    assert "nan" not in drawn


def test_a_series_without_a_finite_value_says_so() -> None:
    assert "no finite value" in chart([Line("loss", Series((1,), (math.nan,)), 0)], description="loss")


def test_wild_points_do_not_flatten_the_rest() -> None:
    series = Series(tuple(range(50)), (-1000.0, *(math.sin(i) for i in range(49))))
    assert ">0.5</text>" in chart([Line("value explained", series, 0)], description="value explained by step")


def test_what_stages_log_finds_its_family() -> None:
    titles = {name: family.title for family, names in group(STAGE_METRICS) for name in names}
    assert titles == STAGE_METRICS


def test_no_two_families_share_a_title() -> None:
    assert len({family.title for family in FAMILIES}) == len(FAMILIES) == 31


STAGE_METRICS = {
    "eval_loss": "Loss",
    "score": "Score",
    "score_std": "Score in detail",
    "score_chosen": "Chosen and rejected",
    "eval_rewards/accuracies": "Accuracy",
    "rewards/margins": "Margin",
    "eval_score_margin": "Margin",
    "rewards/rejected": "Chosen and rejected",
    "logps/chosen": "Log-probability of answers",
    "kl": "KL from the reference",
    "kl_k3": "KL from the reference",
    "kl_coef": "KL coefficient",
    "approx_kl": "KL of one update",
    "eval_answer_length": "Answer length",
    "eos_rate": "Answers that end",
    "empty_rate": "Empty answers",
    "distinct_2": "Variety",
    "value_loss": "Policy and value loss",
    "seconds/score": "Seconds",
    "score_tokens_per_second": "Tokens per second",
    "grad_norm": "Gradient norm",
}
