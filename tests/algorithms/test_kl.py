"""Estimators of the KL divergence, and controllers of its weight."""

from __future__ import annotations

import json
from dataclasses import asdict

import pytest
import torch
from answer_batches import noise, seeds
from hypothesis import given, settings
from hypothesis import strategies as st

from duiqi.algorithms.kl import KL_ESTIMATORS, AdaptiveKL, FixedKL

LOG_RATIO = torch.tensor([0.1, -0.2, 0.3], dtype=torch.float64)
few = settings(max_examples=30, deadline=None)


def test_the_table_names_every_estimator() -> None:
    assert sorted(KL_ESTIMATORS) == ["abs", "k1", "k2", "k3"]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("k1", [0.1, -0.2, 0.3]),
        ("k2", [0.005, 0.02, 0.045]),
        ("k3", [0.00483742, 0.02140276, 0.04081822]),
        ("abs", [0.1, 0.2, 0.3]),
    ],
)
def test_golden_estimates(name: str, expected: list[float]) -> None:
    assert KL_ESTIMATORS[name](LOG_RATIO).tolist() == pytest.approx(expected, abs=1e-8)


@few
@given(seeds)
@pytest.mark.parametrize("name", ["k1", "k3"])
def test_unbiased_estimators_have_the_divergence_as_their_expectation(name: str, seed: int) -> None:
    p, q = (torch.distributions.Categorical(logits=logits) for logits in noise(seed, 2, 6))
    expectation = (p.probs * KL_ESTIMATORS[name](p.logits - q.logits)).sum()
    torch.testing.assert_close(expectation, torch.distributions.kl_divergence(p, q))


@few
@given(seeds)
@pytest.mark.parametrize("name", ["k2", "k3", "abs"])
def test_positive_estimators_are_zero_only_where_both_policies_agree(name: str, seed: int) -> None:
    log_ratio = noise(seed, 20)
    assert (KL_ESTIMATORS[name](log_ratio) > 0).all()
    assert not KL_ESTIMATORS[name](torch.zeros(3)).any()


def test_golden_adaptive_coefficient() -> None:
    controller = AdaptiveKL(0.2, target=6.0, horizon=10_000.0)
    assert controller.update(12.0, 256).coefficient == pytest.approx(0.201024, abs=1e-12)
    assert controller.update(0.0, 256).coefficient == pytest.approx(0.198976, abs=1e-12)


def test_adaptive_coefficient_rests_on_target() -> None:
    controller = AdaptiveKL(0.2, target=6.0, horizon=10_000.0)
    assert controller.update(6.0, 256) == controller


@few
@given(st.floats(-100.0, 100.0))
def test_adaptive_coefficient_moves_against_the_error_and_stays_positive(observed: float) -> None:
    after = AdaptiveKL(0.2, target=6.0, horizon=100.0).update(observed, 50).coefficient
    assert after > 0
    assert after >= 0.2 if observed > 6.0 else after <= 0.2


def test_fixed_coefficient_stays() -> None:
    assert FixedKL(0.1).update(100.0, 256) == FixedKL(0.1)


def test_a_controller_survives_a_checkpoint() -> None:
    controller = AdaptiveKL(0.2, target=6.0, horizon=10_000.0).update(12.0, 256)
    assert AdaptiveKL(**json.loads(json.dumps(asdict(controller)))) == controller
