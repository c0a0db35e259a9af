"""Advantage estimators, by a critic and by comparison."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from random_batches import always_the_same, batches, with_nan_outside
from torch import Tensor
from torch.testing import assert_close

from duiqi.algorithms.advantages import Advantages, gae, grpo, reinforce_plus_plus, rewards_to_go, rloo

REWARDS = torch.tensor([[0.0, 0.0, 1.0], [0.0, 2.0, 0.0]], dtype=torch.float64)
VALUES = torch.tensor([[0.5, 0.4, 0.3], [0.1, 0.2, 9.9]], dtype=torch.float64)
MASK = torch.tensor([[True, True, True], [True, True, False]])

TOTALS = torch.tensor([1.0, 2.0, 3.0, 6.0], dtype=torch.float64)
ONE_GROUP = torch.zeros(4, dtype=torch.long)

BY_COMPARISON: list[Callable[[Tensor, Tensor, Tensor], Advantages]] = [
    rloo,
    grpo,
    lambda rewards, groups, mask: grpo(rewards, groups, mask, divide_by_std=False),
    lambda rewards, _, mask: reinforce_plus_plus(rewards, mask),
]


def answers_with(totals: Tensor) -> tuple[Tensor, Tensor]:
    """Two-token answers whose rewards sum to `totals`, and their mask; a third position holds nan."""
    rewards = torch.stack([totals - 10.0, torch.full_like(totals, 10.0), torch.full_like(totals, torch.nan)], dim=1)
    return rewards, ~rewards.isnan()


def test_gae_of_a_known_batch() -> None:
    found = gae(REWARDS, VALUES, MASK, gamma=1.0, lam=0.95)
    assert_close(found.advantages, torch.tensor([[0.43675, 0.565, 0.7], [1.81, 1.8, 0.0]], dtype=torch.float64))
    assert_close(found.returns, torch.tensor([[0.93675, 0.965, 1.0], [1.91, 2.0, 0.0]], dtype=torch.float64))


def test_gae_with_lambda_zero_is_the_one_step_error() -> None:
    found = gae(REWARDS, VALUES, MASK, gamma=0.5, lam=0.0)
    expected = torch.tensor([[-0.3, -0.25, 0.7], [0.0, 1.8, 0.0]], dtype=torch.float64)
    assert_close(found.advantages, expected)


@always_the_same
@given(batches(2), st.floats(0, 1))
def test_gae_with_lambda_one_is_reward_to_go_minus_value(batch: tuple[Tensor, ...], gamma: float) -> None:
    rewards, values, mask = batch
    found = gae(rewards, values, mask, gamma=gamma, lam=1.0)
    for row, kept in enumerate(mask):
        steps = rewards[row, kept]
        to_go = [sum(float(r) * gamma**k for k, r in enumerate(steps[t:])) for t in range(len(steps))]
        expected = torch.tensor(to_go, dtype=torch.float64) - values[row, kept]
        assert_close(found.advantages[row, kept], expected)


@always_the_same
@given(batches(1), st.floats(0, 1), st.floats(0, 1))
def test_a_perfect_critic_leaves_no_advantage(batch: tuple[Tensor, Tensor], gamma: float, lam: float) -> None:
    rewards, mask = batch
    values = rewards_to_go(rewards, mask, gamma=gamma)
    found = gae(rewards, values, mask, gamma=gamma, lam=lam)
    assert_close(found.advantages, torch.zeros_like(rewards), atol=1e-9, rtol=0.0)
    assert_close(found.returns, values)


@always_the_same
@given(batches(2), st.integers(0, 3), st.integers(0, 3))
def test_gae_does_not_see_padding_on_either_side(batch: tuple[Tensor, ...], left: int, right: int) -> None:
    rewards, values, mask = batch
    found = gae(rewards, values, mask, gamma=0.9, lam=0.8)
    pads = (left, right)
    padded_rewards, padded_values = (torch.nn.functional.pad(x, pads, value=torch.nan) for x in (rewards, values))
    padded = gae(padded_rewards, padded_values, torch.nn.functional.pad(mask, pads), gamma=0.9, lam=0.8)
    end = left + mask.shape[1]
    assert_close(padded.advantages[:, left:end], found.advantages)
    assert_close(padded.returns[:, left:end], found.returns)


def test_positions_outside_the_mask_take_no_time() -> None:
    gapped = gae(
        torch.tensor([[0.0, torch.nan, 0.0, 1.0]]),
        torch.tensor([[0.5, torch.nan, 0.4, 0.3]]),
        torch.tensor([[True, False, True, True]]),
        gamma=1.0,
        lam=0.95,
    )
    assert_close(gapped.advantages, torch.tensor([[0.43675, 0.0, 0.565, 0.7]]))


def test_rewards_to_go_are_discounted_by_their_distance() -> None:
    to_go = rewards_to_go(torch.tensor([[1.0, 0.0, 2.0]]), torch.ones(1, 3, dtype=torch.bool), gamma=0.5)
    assert to_go.tolist() == [[1.5, 1.0, 2.0]]


def test_rloo_of_a_known_group() -> None:
    found = rloo(*reorder(*answers_with(TOTALS), ONE_GROUP))
    expected = torch.tensor([-2.6667, -1.3333, 0.0, 4.0], dtype=torch.float64)
    assert_close(found.advantages[:, 0], expected, atol=5e-5, rtol=0.0)
    assert_close(found.returns[:, 0], TOTALS)


def test_grpo_of_a_known_group() -> None:
    found = grpo(*reorder(*answers_with(TOTALS), ONE_GROUP))
    expected = torch.tensor([-0.925777, -0.462889, 0.0, 1.388666], dtype=torch.float64)
    assert_close(found.advantages[:, 0], expected, atol=5e-7, rtol=0.0)


def test_grpo_without_the_deviation_is_the_distance_to_the_mean() -> None:
    found = grpo(*reorder(*answers_with(TOTALS), ONE_GROUP), divide_by_std=False)
    assert found.advantages[:, 0].tolist() == [-2, -1, 0, 3]


@pytest.mark.parametrize("estimate", BY_COMPARISON[:3], ids=["rloo", "grpo", "dr grpo"])
def test_every_token_of_an_answer_gets_its_advantage(estimate: Callable[..., Advantages]) -> None:
    advantages = estimate(*reorder(*answers_with(TOTALS), ONE_GROUP)).advantages
    assert_close(advantages[:, 0], advantages[:, 1])
    assert advantages[:, 2].tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize("estimate", BY_COMPARISON[:3], ids=["rloo", "grpo", "dr grpo"])
def test_groups_do_not_see_each_other_and_their_order_does_not_matter(estimate: Callable[..., Advantages]) -> None:
    totals = torch.tensor([1.0, 5.0, 2.0, 9.0, 3.0], dtype=torch.float64)
    together = estimate(*reorder(*answers_with(totals), torch.tensor([7, 3, 7, 3, 7]))).advantages
    for rows in (torch.tensor([0, 2, 4]), torch.tensor([3, 1])):
        alone = estimate(*reorder(*answers_with(totals[rows]), torch.zeros(len(rows), dtype=torch.long))).advantages
        assert_close(together[rows], alone)


@pytest.mark.parametrize("estimate", BY_COMPARISON[:3], ids=["rloo", "grpo", "dr grpo"])
@always_the_same
@given(st.lists(st.integers(-50, 50), min_size=2, max_size=6), st.integers(-50, 50))
def test_a_groups_advantages_sum_to_zero_and_forget_what_all_its_answers_share(
    estimate: Callable[..., Advantages], rewards: list[int], shared: int
) -> None:
    totals = torch.tensor(rewards, dtype=torch.float64)
    group = torch.zeros(len(rewards), dtype=torch.long)
    advantages = estimate(*reorder(*answers_with(totals), group)).advantages[:, 0]
    assert abs(float(advantages.sum())) < 1e-9
    assert_close(estimate(*reorder(*answers_with(totals + shared), group)).advantages[:, 0], advantages)


@pytest.mark.parametrize("estimate", BY_COMPARISON[:3], ids=["rloo", "grpo", "dr grpo"])
def test_an_answer_alone_in_its_group_gets_zero(estimate: Callable[..., Advantages]) -> None:
    rewards, mask = answers_with(torch.tensor([4.0, 5.0]))
    assert estimate(rewards, torch.tensor([0, 1]), mask).advantages.tolist() == [[0, 0, 0], [0, 0, 0]]


def test_grpo_gives_zero_where_all_answers_are_equally_good() -> None:
    rewards, mask = answers_with(torch.full((3,), 2.0))
    assert grpo(rewards, torch.zeros(3, dtype=torch.long), mask).advantages.abs().max() == 0


def test_reinforce_plus_plus_whitens_rewards_to_go() -> None:
    mask = torch.ones(2, 2, dtype=torch.bool)
    found = reinforce_plus_plus(torch.tensor([[0.0, 1.0], [0.0, -1.0]]), mask)
    assert found.returns.tolist() == [[1, 1], [-1, -1]]
    assert_close(found.advantages, torch.tensor([[0.8660254, 0.8660254], [-0.8660254, -0.8660254]]))


@pytest.mark.parametrize("estimate", BY_COMPARISON, ids=["rloo", "grpo", "dr grpo", "reinforce++"])
@always_the_same
@given(batches(1))
def test_what_stands_outside_the_mask_does_not_matter(
    estimate: Callable[..., Advantages], batch: tuple[Tensor, Tensor]
) -> None:
    rewards, mask = batch
    groups = torch.arange(len(rewards)) % 2
    clean, dirty = estimate(rewards, groups, mask), estimate(with_nan_outside(rewards, mask), groups, mask)
    assert_close(dirty.advantages, clean.advantages)
    assert_close(dirty.returns, clean.returns)
    assert bool((clean.advantages[~mask] == 0).all())


def reorder(rewards: Tensor, mask: Tensor, groups: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The arguments in the order of the estimators."""
    return rewards, groups, mask
