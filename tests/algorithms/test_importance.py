"""Truncated importance sampling and the measures of the mismatch it corrects."""

from __future__ import annotations

import math

import pytest
import torch
from answer_batches import answer_masks, noise, seeds
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from duiqi.algorithms.importance import sampler_mismatch, truncated_importance_weights
from duiqi.algorithms.policy import policy_loss

few = settings(max_examples=30, deadline=None)

# Two answers; the second is one token long and what stands after it must not count, nan included.
POLICY = torch.tensor([[0.50, 0.30, 0.08], [0.60, math.nan, 0.5]], dtype=torch.float64).log()
SAMPLER = torch.tensor([[0.25, 0.40, 0.01], [0.60, 0.30, math.nan]], dtype=torch.float64).log()
MASK = torch.tensor([[True, True, True], [True, False, False]])


def test_hand_computed_weights() -> None:
    weights = truncated_importance_weights(POLICY, SAMPLER, MASK, cap=3.0)
    assert weights[0].tolist() == pytest.approx([2.0, 0.75, 3.0])
    assert weights[1].tolist() == pytest.approx([1.0, 0.0, 0.0])


def test_hand_computed_mismatch() -> None:
    found = sampler_mismatch(POLICY, SAMPLER, MASK, cap=3.0)
    means = {name: part.mean for name, part in found.items()}
    assert means == pytest.approx(
        {
            "sampler_gap": (0.6931471806 + 0.2876820724 + 2.0794415417) / 4,
            # k3 is ratio - 1 - log ratio: 2 - 1 - .693147, .75 - 1 + .287682, 8 - 1 - 2.079442, 0
            "sampler_kl": (0.3068528194 + 0.0376820724 + 4.9205584583) / 4,
            "importance_weight": 6.75 / 4,
            "importance_capped": 0.25,
        }
    )
    assert {float(part.weight) for part in found.values()} == {4.0}


def test_equal_distributions_weigh_one_and_show_no_mismatch() -> None:
    mask = torch.ones(2, 3, dtype=torch.bool)
    log_probs = noise(0, 2, 3)
    assert truncated_importance_weights(log_probs, log_probs, mask, cap=2.0).tolist() == [[1.0] * 3] * 2
    means = {name: part.mean for name, part in sampler_mismatch(log_probs, log_probs, mask, cap=2.0).items()}
    assert means == {"sampler_gap": 0.0, "sampler_kl": 0.0, "importance_weight": 1.0, "importance_capped": 0.0}


def test_weights_carry_no_gradient() -> None:
    log_probs = noise(1, 2, 3).requires_grad_()
    weights = truncated_importance_weights(log_probs, noise(2, 2, 3), torch.ones(2, 3, dtype=torch.bool), cap=2.0)
    assert not weights.requires_grad


def test_a_token_that_the_sampler_held_for_impossible_weighs_the_cap() -> None:
    sampler = torch.tensor([[-1e30]])
    assert truncated_importance_weights(torch.zeros(1, 1), sampler, torch.ones(1, 1).bool(), cap=2.0).item() == 2.0


@few
@given(answer_masks(), seeds, st.floats(1.0, 5.0))
def test_weights_lie_between_zero_and_the_cap_and_only_on_answers(mask: Tensor, seed: int, cap: float) -> None:
    log_probs, sampler = noise(seed, 2, *mask.shape)
    weights = truncated_importance_weights(log_probs, sampler, mask, cap=cap)
    assert (weights >= 0).all()
    assert (weights <= cap).all()
    assert ((weights > 0) == mask).all()


@few
@given(seeds)
def test_without_the_cap_a_weighted_mean_over_the_sampler_is_the_mean_over_the_policy(seed: int) -> None:
    policy, sampler = (logits.log_softmax(-1) for logits in noise(seed, 2, 6))
    worth = noise(seed + 1, 6)
    everywhere = torch.ones(1, 6, dtype=torch.bool)
    weights = truncated_importance_weights(policy[None], sampler[None], everywhere, cap=1e30)[0]
    torch.testing.assert_close((sampler.exp() * weights * worth).sum(), (policy.exp() * worth).sum())


@few
@given(answer_masks(), seeds)
def test_weighting_the_advantages_weights_every_token_of_the_clipped_loss(mask: Tensor, seed: int) -> None:
    now, old, sampler, advantages = noise(seed, 4, *mask.shape)
    weights = truncated_importance_weights(old, sampler, mask, cap=2.0)
    loss = policy_loss(now, old, advantages * weights, mask, dual_clip=3.0).total
    by_token = [
        policy_loss(now[at], old[at], advantages[at], mask[at], dual_clip=3.0).total * weights[row, column]
        for row, column in mask.nonzero().tolist()
        for at in [(slice(row, row + 1), slice(column, column + 1))]
    ]
    torch.testing.assert_close(loss, torch.stack(by_token).sum())
