"""KTO by hand: what it costs to be liked or not, and where its baseline lies."""

from __future__ import annotations

import pytest
import torch

from duiqi.algorithms.feedback import LikedLogProbs, kto_baseline, kto_loss
from duiqi.algorithms.loss import Loss


def loss(log_ratios: list[float], liked: list[bool], *, baseline: float = 0.0, **weights: float) -> Loss:
    policy = torch.tensor(log_ratios)
    answers = LikedLogProbs(policy - 10.0, torch.full_like(policy, -10.0), torch.tensor(liked))
    given = {"liked_weight": 1.0, "disliked_weight": 1.0} | weights
    return kto_loss(answers, beta=0.5, baseline=torch.tensor(baseline), **given)


def test_it_begins_at_one_half_and_counts_ties_half() -> None:
    found = loss([0.0, 0.0, 0.0], [True, False, False])
    assert float(found.total) == pytest.approx(1.5)
    assert float(found.weight) == 3.0
    assert found.stats["rewards/accuracies"].mean == 0.5


def test_a_hand_computed_step() -> None:
    # sigmoid(0.5 * (3 - 1)) = 0.7310586; sigmoid(0.5 * (1 - 2)) = 0.3775407
    found = loss([3.0, 2.0], [True, False], baseline=1.0, liked_weight=2.0)
    assert float(found.total) == pytest.approx(2 * (1 - 0.7310586) + (1 - 0.3775407), abs=1e-6)
    assert found.stats["rewards/chosen"].mean == pytest.approx(1.5)
    assert found.stats["rewards/rejected"].mean == pytest.approx(1.0)
    assert found.stats["rewards/accuracies"].mean == 0.5
    assert found.stats["kl"].mean == 1.0


def test_liked_answers_are_raised_and_the_others_lowered() -> None:
    policy = torch.tensor([-3.0, -3.0], requires_grad=True)
    answers = LikedLogProbs(policy, torch.tensor([-3.0, -3.0]), torch.tensor([True, False]))
    kto_loss(answers, beta=0.1, baseline=torch.tensor(0.0), liked_weight=1.0, disliked_weight=1.0).total.backward()
    assert policy.grad is not None
    assert policy.grad.tolist() == pytest.approx([-0.025, 0.025])


def test_the_baseline_is_a_kl_and_never_negative() -> None:
    assert float(kto_baseline(torch.tensor([-1.0, -2.0]), torch.tensor([-2.0, -2.0]))) == 0.5
    assert float(kto_baseline(torch.tensor([-3.0]), torch.tensor([-2.0]))) == 0.0
