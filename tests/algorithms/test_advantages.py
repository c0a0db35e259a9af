"""Advantages with a critic, and by comparing answers."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from answer_batches import answer_masks, noise, seeds
from hypothesis import given, settings
from torch import Tensor
from torch.nn.functional import pad

from duiqi.algorithms.advantages import Advantages, gae, grpo, reinforce_plus_plus, rewards_to_go, rloo

few = settings(max_examples=30, deadline=None)


def column(*values: float) -> Tensor:
    """One-token answers, B x 1."""
    return torch.tensor(values, dtype=torch.float64).unsqueeze(1)


def one_token(estimate: Callable[..., Advantages], scores: list[float], groups: list[int], **options: bool) -> Tensor:
    """Advantages of one-token answers with these scores."""
    mask = torch.ones(len(scores), 1, dtype=torch.bool)
    return estimate(column(*scores), torch.tensor(groups), mask, **options).advantages.squeeze(1)


def test_golden_gae() -> None:
    found = gae(
        torch.tensor([[0.0, 0.0, 1.0], [0.0, 2.0, 0.0]], dtype=torch.float64),
        torch.tensor([[0.5, 0.4, 0.3], [0.1, 0.2, 9.9]], dtype=torch.float64),
        torch.tensor([[True, True, True], [True, True, False]]),
        gamma=1.0,
        lam=0.95,
    )
    advantages = torch.tensor([[0.43675, 0.565, 0.7], [1.81, 1.8, 0.0]], dtype=torch.float64)
    returns = torch.tensor([[0.93675, 0.965, 1.0], [1.91, 2.0, 0.0]], dtype=torch.float64)
    torch.testing.assert_close(found.advantages, advantages)
    torch.testing.assert_close(found.returns, returns)


def test_gae_with_lambda_zero_is_the_one_step_error() -> None:
    rewards, values = torch.tensor([[1.0, 0.0, 2.0]]), torch.tensor([[0.5, 1.0, 4.0]])
    found = gae(rewards, values, torch.ones(1, 3, dtype=torch.bool), gamma=0.5, lam=0.0)
    assert found.advantages.tolist() == [[1.0, 1.0, -2.0]]


@few
@given(answer_masks(), seeds)
def test_gae_with_lambda_one_is_reward_to_go_minus_value(mask: Tensor, seed: int) -> None:
    rewards, values = noise(seed, 2, *mask.shape) * mask
    found = gae(rewards, values, mask, gamma=1.0, lam=1.0)
    to_go = rewards.flip(1).cumsum(1).flip(1) * mask
    torch.testing.assert_close(found.advantages, to_go - values)
    torch.testing.assert_close(found.returns, to_go)


@few
@given(answer_masks(), seeds)
def test_a_critic_that_knows_the_rewards_leaves_no_advantage(mask: Tensor, seed: int) -> None:
    rewards = noise(seed, *mask.shape)
    knowing = rewards_to_go(rewards, mask, gamma=0.9)
    found = gae(rewards, knowing, mask, gamma=0.9, lam=0.7)
    torch.testing.assert_close(found.advantages, torch.zeros_like(rewards))


@few
@given(answer_masks(), seeds)
def test_gae_ignores_padding_and_what_stands_in_it(mask: Tensor, seed: int) -> None:
    rewards, values = noise(seed, 2, *mask.shape)
    wide = (2, 3)
    expected = gae(rewards, values, mask)
    found = gae(
        pad(rewards.masked_fill(~mask, torch.nan), wide, value=torch.nan),
        pad(values.masked_fill(~mask, torch.inf), wide, value=torch.inf),
        pad(mask, wide),
    )
    torch.testing.assert_close(found.advantages, pad(expected.advantages, wide))
    torch.testing.assert_close(found.returns, pad(expected.returns, wide))


def test_discounted_rewards_to_go() -> None:
    rewards = torch.tensor([[1.0, 2.0, 4.0, 9.0]])
    mask = torch.tensor([[True, True, True, False]])
    assert rewards_to_go(rewards, mask, gamma=0.5).tolist() == [[3.0, 4.0, 4.0, 0.0]]


def test_golden_rloo() -> None:
    found = one_token(rloo, [1, 2, 3, 6], [7, 7, 7, 7])
    assert found.tolist() == pytest.approx([-2.6667, -1.3333, 0.0, 4.0], abs=1e-4)


def test_golden_grpo() -> None:
    found = one_token(grpo, [1, 2, 3, 6], [7, 7, 7, 7])
    assert found.tolist() == pytest.approx([-0.925777, -0.462889, 0.0, 1.388666], abs=1e-6)


def test_golden_grpo_without_standard_deviation() -> None:
    assert one_token(grpo, [1, 2, 3, 6], [7, 7, 7, 7], divide_by_std=False).tolist() == [-2.0, -1.0, 0.0, 3.0]


@pytest.mark.parametrize("estimate", [rloo, grpo])
def test_answers_are_compared_with_their_own_group_in_any_order(estimate: Callable[..., Advantages]) -> None:
    together = one_token(estimate, [1, 3, 10, 50], [0, 0, 1, 1])
    interleaved = one_token(estimate, [1, 10, 3, 50], [5, 2, 5, 2])
    assert interleaved.tolist() == together[[0, 2, 1, 3]].tolist()


@pytest.mark.parametrize("estimate", [rloo, grpo])
@pytest.mark.parametrize("scores", [[4.0], [4.0, 4.0, 4.0]], ids=["alone", "equal"])
def test_an_answer_without_a_better_or_worse_one_teaches_nothing(
    estimate: Callable[..., Advantages], scores: list[float]
) -> None:
    assert not one_token(estimate, scores, [0] * len(scores)).any()


@few
@given(answer_masks(), seeds)
@pytest.mark.parametrize("estimate", [rloo, grpo])
def test_every_token_of_an_answer_has_the_advantage_of_the_whole(
    estimate: Callable[..., Advantages], mask: Tensor, seed: int
) -> None:
    rewards = noise(seed, *mask.shape)
    groups = torch.arange(len(mask)) // 2
    found = estimate(rewards.masked_fill(~mask, torch.nan), groups, mask)
    expected = one_token(estimate, (rewards * mask).sum(dim=1).tolist(), groups.tolist())
    torch.testing.assert_close(found.advantages, expected.unsqueeze(1) * mask)


@few
@given(answer_masks(), seeds)
def test_reinforce_plus_plus_compares_with_the_whole_batch(mask: Tensor, seed: int) -> None:
    rewards = 100.0 * noise(seed, *mask.shape)
    found = reinforce_plus_plus(rewards, mask)
    assert float(found.advantages[mask].mean()) == pytest.approx(0.0, abs=1e-9)
    assert not found.advantages[~mask].any()
    in_order = found.returns[mask].argsort()
    assert (found.advantages[mask][in_order].diff() >= 0).all()
