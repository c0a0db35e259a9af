"""The loss of a reward model."""

from __future__ import annotations

import math

import pytest
import torch
from answer_batches import assert_split_is_irrelevant, noise, seeds
from hypothesis import given, settings

from duiqi.algorithms.reward_modelling import pairwise_loss

CHOSEN, REJECTED = torch.tensor([1.5], dtype=torch.float64), torch.tensor([0.2], dtype=torch.float64)
few = settings(max_examples=25, deadline=None)


def test_golden_loss() -> None:
    assert float(pairwise_loss(CHOSEN, REJECTED).total) == pytest.approx(0.2410084538, abs=1e-9)


def test_golden_loss_with_margin() -> None:
    margin = torch.tensor([0.5], dtype=torch.float64)
    assert float(pairwise_loss(CHOSEN, REJECTED, margin=margin).total) == pytest.approx(0.3711006659, abs=1e-9)


def test_golden_centering() -> None:
    added = pairwise_loss(CHOSEN, REJECTED, centering=0.01).total - pairwise_loss(CHOSEN, REJECTED).total
    assert float(added) == pytest.approx(0.0289, abs=1e-9)


@pytest.mark.parametrize(("gap", "loss", "slope"), [(-200.0, 200.0, -1.0), (200.0, 0.0, 0.0), (0.0, math.log(2), -0.5)])
def test_loss_and_gradient_are_exact_however_far_apart_the_scores(gap: float, loss: float, slope: float) -> None:
    chosen = torch.tensor([gap], requires_grad=True)
    found = pairwise_loss(chosen, torch.zeros(1)).total
    found.backward()
    assert float(found.detach()) == pytest.approx(loss)
    assert chosen.grad is not None
    assert chosen.grad.tolist() == pytest.approx([slope])


@few
@given(seeds)
def test_without_centering_only_differences_of_scores_matter(seed: int) -> None:
    chosen, rejected = noise(seed, 2, 5)
    torch.testing.assert_close(pairwise_loss(chosen + 3.0, rejected + 3.0).total, pairwise_loss(chosen, rejected).total)


def test_with_weights_of_one_over_its_pairs_a_prompt_counts_once() -> None:
    of_one_pair, of_three_pairs = torch.tensor([2.0]), torch.tensor([1.0, 0.5, -0.5])
    loss = pairwise_loss(
        torch.cat([of_one_pair, of_three_pairs]),
        torch.zeros(4),
        weights=torch.tensor([1.0, 1 / 3, 1 / 3, 1 / 3]),
    )
    single, triple = (pairwise_loss(gaps, torch.zeros_like(gaps)) for gaps in (of_one_pair, of_three_pairs))
    torch.testing.assert_close(loss.total, single.total + triple.total / 3)
    torch.testing.assert_close(loss.weight, torch.tensor(2.0))
    assert loss.stats["accuracy"].mean == pytest.approx((1 + 2 / 3) / 2)


def test_a_tie_counts_half() -> None:
    loss = pairwise_loss(torch.tensor([1.0, 1.0, 0.0, 2.0]), torch.tensor([0.0, 1.0, 1.0, 2.0]))
    assert loss.stats["accuracy"].mean == 0.5


def test_statistics_are_means_over_pairs_and_carry_no_gradient() -> None:
    chosen = torch.tensor([1.0, 3.0], requires_grad=True)
    stats = pairwise_loss(chosen, torch.tensor([0.0, 1.0])).stats
    assert {name: stat.mean for name, stat in stats.items()} == {
        "accuracy": 1.0,
        "score_chosen": 2.0,
        "score_rejected": 0.5,
        "score_margin": 1.5,
    }
    assert not any(stat.total.requires_grad for stat in stats.values())


@few
@given(seeds)
def test_the_split_into_micro_batches_is_irrelevant(seed: int) -> None:
    chosen, rejected, margin, weights = noise(seed, 4, 5)
    assert_split_is_irrelevant(
        lambda rows: pairwise_loss(
            chosen[rows], rejected[rows], margin=margin[rows], weights=weights[rows].abs(), centering=0.1
        ),
        5,
    )
