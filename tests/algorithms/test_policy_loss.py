"""The losses of PPO."""

from __future__ import annotations

import pytest
import torch
from answer_batches import answer_masks, assert_split_is_irrelevant, noise, seeds
from hypothesis import given, settings
from torch import Tensor

from duiqi.algorithms.advantages import gae
from duiqi.algorithms.masked import whiten
from duiqi.algorithms.policy import policy_loss, ppo_loss, value_loss
from duiqi.algorithms.rewards import token_rewards

few = settings(max_examples=25, deadline=None)


def doubles(rows: list[list[float]]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


FLOAT32_NOISE = 2e-7
"""The golden losses were computed in float32, as sums of terms near 1 that mostly cancel."""


class TestGoldenStep:
    """One PPO update computed by the TRL of 2023: rewards, returns, advantages and losses."""

    mask = torch.tensor([[True, True, True, True], [True, True, True, False]])
    log_probs = doubles([[-1.0, -0.5, -2.0, -0.2], [-0.3, -1.2, -0.7, 0.0]])
    reference = doubles([[-1.2, -0.4, -2.5, -0.2], [-0.1, -1.0, -0.9, 0.0]])
    values = doubles([[0.1, 0.2, 0.0, -0.1], [0.3, 0.0, 0.1, 9.0]])
    scores = torch.tensor([1.0, -0.5], dtype=torch.float64)

    @property
    def rewards(self) -> Tensor:
        return token_rewards(self.scores, self.log_probs - self.reference, self.mask, kl_coefficient=0.2)

    def assert_equal(self, found: Tensor, expected: list[list[float]]) -> None:
        torch.testing.assert_close(found, doubles(expected), atol=1e-6, rtol=0.0)

    def test_rewards(self) -> None:
        self.assert_equal(self.rewards, [[-0.04, 0.02, -0.1, 1.0], [0.04, 0.04, -0.54, 0.0]])

    def test_returns(self) -> None:
        found = gae(self.rewards, self.values, self.mask, gamma=1.0, lam=0.95)
        self.assert_equal(found.returns, [[0.751612, 0.82275, 0.845, 1.0], [-0.4046, -0.468, -0.54, 0.0]])

    def test_whitened_advantages(self) -> None:
        found = whiten(gae(self.rewards, self.values, self.mask).advantages, self.mask)
        self.assert_equal(found, [[0.583501, 0.546130, 0.833902, 1.164078], [-1.172536, -0.866184, -1.088891, 0.0]])

    def test_losses(self) -> None:
        found = gae(self.rewards, self.values, self.mask)
        loss = ppo_loss(
            log_probs=doubles([[-0.9, -0.8, -1.6, -0.2], [-0.5, -1.2, -0.5, 0.0]]),
            old_log_probs=self.log_probs,
            advantages=whiten(found.advantages, self.mask),
            mask=self.mask,
            values=doubles([[0.5, 0.1, 0.1, 0.0], [0.2, 0.1, -0.3, 0.0]]),
            old_values=self.values,
            returns=found.returns,
            vf_coef=0.1,
        )
        assert loss.stats["policy_loss"].mean == pytest.approx(-0.008294617, abs=FLOAT32_NOISE)
        assert loss.stats["value_loss"].mean == pytest.approx(0.225936517, abs=FLOAT32_NOISE)
        assert float(loss.total / loss.weight) == pytest.approx(0.014299036, abs=FLOAT32_NOISE)
        assert loss.stats["clip_fraction"].mean == pytest.approx(1 / 7)


def one_token_loss(ratio: float, advantage: float, *, dual_clip: float | None = None) -> tuple[float, float]:
    """Loss of one token, and its derivative with respect to the token's log-probability."""
    log_probs = doubles([[ratio]]).log().requires_grad_()
    mask = torch.ones(1, 1, dtype=torch.bool)
    total = policy_loss(
        log_probs, torch.zeros_like(log_probs), doubles([[advantage]]), mask, clip_high=0.3, dual_clip=dual_clip
    ).total
    (slope,) = torch.autograd.grad(total, log_probs)
    return float(total.detach()), float(slope)


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "slope"),
    [
        (1.5, 1.0, -1.3, 0.0),
        (1.25, 1.0, -1.25, -1.25),
        (1.5, -1.0, 1.5, 1.5),
        (0.5, -1.0, 0.8, 0.0),
        (0.5, 1.0, -0.5, -0.5),
        (1.0, 2.0, -2.0, -2.0),
    ],
)
def test_a_token_that_has_gone_far_enough_stops_learning(
    ratio: float, advantage: float, loss: float, slope: float
) -> None:
    assert one_token_loss(ratio, advantage) == pytest.approx((loss, slope))


def test_golden_clip() -> None:
    ones = torch.ones(1, 3, dtype=torch.float64)
    loss = policy_loss(
        doubles([[1.5, 1.5, 0.5]]).log(), 0 * ones, doubles([[1.0, -1.0, -1.0]]), ones.bool(), clip_high=0.2
    )
    assert float(loss.total) == pytest.approx(-1.2 + 1.5 + 0.8)
    assert loss.stats["clip_fraction"].mean == pytest.approx(2 / 3)


def test_golden_dual_clip() -> None:
    assert one_token_loss(5.0, -1.0, dual_clip=3.0) == pytest.approx((3.0, 0.0))
    assert one_token_loss(5.0, -1.0) == pytest.approx((5.0, 5.0))
    assert one_token_loss(2.0, -1.0, dual_clip=3.0) == pytest.approx((2.0, 2.0)), "too near to be bounded"


@few
@given(answer_masks(), seeds)
def test_before_the_first_update_nothing_is_clipped_and_the_gradient_is_the_advantage(mask: Tensor, seed: int) -> None:
    log_probs, advantages = noise(seed, 2, *mask.shape)
    log_probs.requires_grad_()
    loss = policy_loss(log_probs, log_probs.detach(), advantages, mask)
    loss.total.backward()
    assert {name: stat.mean for name, stat in loss.stats.items()} == {
        "ratio": 1.0,
        "approx_kl": 0.0,
        "clip_fraction": 0.0,
    }
    torch.testing.assert_close(log_probs.grad, -advantages * mask)


def test_a_broken_token_cannot_make_the_loss_infinite() -> None:
    log_probs = torch.tensor([[500.0]], requires_grad=True)
    loss = policy_loss(log_probs, torch.zeros(1, 1), -torch.ones(1, 1), torch.ones(1, 1, dtype=torch.bool))
    loss.total.backward()
    assert torch.isfinite(loss.total)
    assert log_probs.grad is not None
    assert torch.isfinite(log_probs.grad).all()


def test_by_sequence_every_answer_counts_once_however_long() -> None:
    mask = torch.tensor([[True, False, False, False], [True, True, True, True]])
    zeros, advantages = torch.zeros(2, 4), torch.tensor([[1.0], [3.0]]).expand(2, 4)
    by_token = policy_loss(zeros, zeros, advantages, mask, aggregation="token")
    by_sequence = policy_loss(zeros, zeros, advantages, mask, aggregation="sequence")
    assert float(by_token.total / by_token.weight) == pytest.approx(-13 / 5)
    assert float(by_sequence.total / by_sequence.weight) == pytest.approx(-2.0)


def test_value_loss_takes_the_larger_of_clipped_and_free_error() -> None:
    old, returns = doubles([[0.0, 0.0, 0.0]]), doubles([[1.0, -1.0, 0.1]])
    values, mask = doubles([[0.5, 0.5, 0.1]]), torch.ones(1, 3, dtype=torch.bool)
    clipped = value_loss(values, old, returns, mask, value_clip=0.2)
    free = value_loss(values, old, returns, mask, value_clip=0.0)
    assert float(clipped.total) == pytest.approx((0.64 + 2.25 + 0.0) / 2)
    assert float(free.total) == pytest.approx((0.25 + 2.25 + 0.0) / 2)
    assert float(free.weight) == 3.0


def test_entropy_is_rewarded_and_a_missing_critic_costs_nothing() -> None:
    log_probs, mask = torch.zeros(1, 2), torch.tensor([[True, True]])
    entropy = torch.tensor([[0.5, 1.5]], requires_grad=True)
    loss = ppo_loss(
        log_probs=log_probs,
        old_log_probs=log_probs,
        advantages=torch.zeros(1, 2),
        mask=mask,
        entropy=entropy,
        entropy_coef=0.1,
    )
    loss.total.backward()
    assert float(loss.total.detach()) == pytest.approx(-0.2)
    assert entropy.grad is not None
    assert entropy.grad.tolist() == [pytest.approx([-0.1, -0.1])]
    assert loss.stats["token_entropy"].mean == pytest.approx(1.0)
    assert "value_loss" not in loss.stats


@few
@given(answer_masks(), seeds)
@pytest.mark.parametrize("aggregation", ["token", "sequence"])
def test_the_split_into_micro_batches_is_irrelevant(aggregation: str, mask: Tensor, seed: int) -> None:
    log_probs, old, advantages, values, old_values, returns, entropy = noise(seed, 7, *mask.shape)
    assert_split_is_irrelevant(
        lambda rows: ppo_loss(
            log_probs=log_probs[rows],
            old_log_probs=old[rows],
            advantages=advantages[rows],
            mask=mask[rows],
            values=values[rows],
            old_values=old_values[rows],
            returns=returns[rows],
            entropy=entropy[rows],
            dual_clip=3.0,
            entropy_coef=0.01,
            aggregation=aggregation,
        ),
        len(mask),
    )


@few
@given(answer_masks(), seeds)
def test_what_stands_outside_the_answers_changes_neither_loss_nor_gradient(mask: Tensor, seed: int) -> None:
    inputs = noise(seed, 7, *mask.shape)

    def total_and_gradients(junk: float) -> tuple[Tensor, ...]:
        log_probs, old, advantages, values, old_values, returns, entropy = inputs.masked_fill(~mask, junk)
        learned = [log_probs.requires_grad_(), values.requires_grad_(), entropy.requires_grad_()]
        loss = ppo_loss(
            log_probs=log_probs,
            old_log_probs=old,
            advantages=advantages,
            mask=mask,
            values=values,
            old_values=old_values,
            returns=returns,
            entropy=entropy,
            dual_clip=3.0,
            entropy_coef=0.01,
        )
        return (loss.total, *torch.autograd.grad(loss.total, learned))

    for with_zeros, with_nans in zip(total_and_gradients(0.0), total_and_gradients(torch.nan), strict=True):
        torch.testing.assert_close(with_nans, with_zeros)
