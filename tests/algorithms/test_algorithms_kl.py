"""Estimators of the KL divergence and controllers of its weight."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from random_batches import always_the_same
from torch.distributions import Categorical, kl_divergence
from torch.testing import assert_close

from duiqi.algorithms.kl import KL_ESTIMATORS, AdaptiveKL, FixedKL, k1, k2, k3

LOG_RATIO = torch.tensor([0.1, -0.2, 0.3], dtype=torch.float64)
logits = st.lists(st.floats(-3, 3), min_size=4, max_size=4).map(lambda row: torch.tensor(row, dtype=torch.float64))


def test_estimators_of_known_log_ratios() -> None:
    assert_close(k1(LOG_RATIO), LOG_RATIO)
    assert_close(k2(LOG_RATIO), torch.tensor([0.005, 0.02, 0.045], dtype=torch.float64))
    expected = torch.tensor([0.00483742, 0.02140276, 0.04081822], dtype=torch.float64)
    assert_close(k3(LOG_RATIO), expected, atol=5e-9, rtol=0.0)
    assert_close(KL_ESTIMATORS["abs"](LOG_RATIO), torch.tensor([0.1, 0.2, 0.3], dtype=torch.float64))


def test_the_table_holds_four_estimators_that_vanish_where_the_policies_agree() -> None:
    assert list(KL_ESTIMATORS) == ["k1", "k2", "k3", "abs"]
    assert all(float(estimate(torch.zeros(1))) == 0.0 for estimate in KL_ESTIMATORS.values())


@pytest.mark.parametrize("name", ["k1", "k3"])
@always_the_same
@given(logits, logits)
def test_k1_and_k3_are_unbiased(name: str, p_logits: torch.Tensor, q_logits: torch.Tensor) -> None:
    p, q = Categorical(logits=p_logits), Categorical(logits=q_logits)
    expectation = (p.probs * KL_ESTIMATORS[name](p.logits - q.logits)).sum()
    assert_close(expectation, kl_divergence(p, q), atol=1e-9, rtol=1e-9)


@always_the_same
@given(st.floats(-20, 20, width=32))
def test_k3_is_never_negative(log_ratio: float) -> None:
    assert float(k3(torch.tensor(log_ratio, dtype=torch.float32))) >= 0.0


def test_adaptive_controller_of_the_paper() -> None:
    assert AdaptiveKL(0.2, target=6.0, horizon=10_000.0).update(12.0, 256).coefficient == pytest.approx(0.201024)


@pytest.mark.parametrize(
    ("observed", "expected"),
    [(6.0, 0.2), (6.6, 0.201), (5.4, 0.199), (600.0, 0.202), (-600.0, 0.198)],
    ids=["on target", "a tenth above", "a tenth below", "far above", "far below"],
)
def test_adaptive_controller_follows_the_error_up_to_a_fifth(observed: float, expected: float) -> None:
    controller = AdaptiveKL(0.2, target=6.0, horizon=1_000.0)
    assert controller.update(observed, 50).coefficient == pytest.approx(expected)
    assert controller.coefficient == 0.2


def test_fixed_controller_stays() -> None:
    assert FixedKL(0.3).update(100.0, 256) == FixedKL(0.3)
