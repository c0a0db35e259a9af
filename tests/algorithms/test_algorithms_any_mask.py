"""What holds for any rewards and any mask, holes and nan outside included."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays, from_dtype
from torch import Tensor
from torch.testing import assert_close

from duiqi.algorithms.advantages import Advantages, gae, grpo, reinforce_plus_plus, rloo
from duiqi.algorithms.kl import AdaptiveKL, k3
from duiqi.algorithms.masked import explained_variance
from duiqi.algorithms.policy import Aggregation, policy_loss, ppo_loss, value_loss
from duiqi.algorithms.rewards import overlong_penalty, token_rewards

always_the_same = settings(deadline=None, max_examples=40, derandomize=True)

BY_GROUP: dict[str, Callable[[Tensor, Tensor, Tensor], Advantages]] = {
    "rloo": rloo,
    "grpo": grpo,
    "dr grpo": partial(grpo, divide_by_std=False),
}
WITHOUT_CRITIC = {**BY_GROUP, "reinforce++": lambda rewards, _, mask: reinforce_plus_plus(rewards, mask)}


@st.composite
def numbers_and_mask(draw: st.DrawFn, count: int) -> tuple[Tensor, ...]:
    """`count` tensors of one shape, B x T in float64, and a mask of any pattern."""
    shape = draw(st.tuples(st.integers(1, 4), st.integers(1, 6)))
    thousandths = st.integers(-8000, 8000).map(lambda n: n / 1000)
    values = [torch.from_numpy(draw(arrays("float64", shape, elements=thousandths))) for _ in range(count)]
    return (*values, torch.from_numpy(draw(arrays("bool", shape, elements=st.booleans()))))


@always_the_same
@given(numbers_and_mask(2), st.floats(0, 1))
def test_gae_with_lambda_one_is_discounted_reward_to_go_minus_value(batch: tuple[Tensor, ...], gamma: float) -> None:
    rewards, values, mask = batch
    advantages = gae(rewards, values, mask, gamma=gamma, lam=1.0).advantages
    for row, answer in enumerate(mask):
        steps = rewards[row, answer].tolist()
        to_go = [sum(reward * gamma**k for k, reward in enumerate(steps[t:])) for t in range(len(steps))]
        assert_close(advantages[row, answer], torch.tensor(to_go, dtype=torch.float64) - values[row, answer])


def test_positions_outside_the_mask_take_no_time() -> None:
    rewards, values = torch.tensor([[0.0, torch.nan, 0.0, 1.0]]), torch.tensor([[0.5, torch.nan, 0.4, 0.3]])
    found = gae(rewards, values, torch.tensor([[True, False, True, True]]), gamma=1.0, lam=0.95)
    assert_close(found.advantages, torch.tensor([[0.43675, 0.0, 0.565, 0.7]]))


@pytest.mark.parametrize("name", WITHOUT_CRITIC)
@always_the_same
@given(numbers_and_mask(1))
def test_nan_outside_the_mask_does_not_reach_the_advantages(name: str, batch: tuple[Tensor, Tensor]) -> None:
    rewards, mask = batch
    groups = torch.arange(len(rewards)) % 2
    clean = WITHOUT_CRITIC[name](rewards, groups, mask)
    dirty = WITHOUT_CRITIC[name](rewards.masked_fill(~mask, torch.nan), groups, mask)
    assert_close(dirty.advantages, clean.advantages)
    assert_close(dirty.returns, clean.returns)
    assert not clean.advantages[~mask].any()


@pytest.mark.parametrize("name", BY_GROUP)
@always_the_same
@given(st.lists(st.integers(-50, 50), min_size=2, max_size=6), st.integers(-50, 50))
def test_a_groups_advantages_sum_to_zero_and_forget_what_all_its_answers_share(
    name: str, rewards: list[int], shared: int
) -> None:
    totals = torch.tensor(rewards, dtype=torch.float64).unsqueeze(1)
    group, mask = torch.zeros(len(rewards), dtype=torch.long), torch.ones_like(totals, dtype=torch.bool)
    advantages = BY_GROUP[name](totals, group, mask).advantages
    assert abs(float(advantages.sum())) < 1e-9
    assert_close(BY_GROUP[name](totals + shared, group, mask).advantages, advantages)


@always_the_same
@given(numbers_and_mask(1), st.floats(0, 1))
def test_an_answers_rewards_add_up_to_its_score_less_the_weighted_kl(
    batch: tuple[Tensor, Tensor], coefficient: float
) -> None:
    kl, mask = batch
    scores = torch.arange(1, len(kl) + 1, dtype=torch.float64)
    rewards = token_rewards(scores, kl.masked_fill(~mask, torch.nan), mask, kl_coefficient=coefficient)
    for row, answer in enumerate(mask):
        expected = float(scores[row]) - coefficient * float(kl[row, answer].sum()) if answer.any() else 0.0
        assert float(rewards[row].sum()) == pytest.approx(expected, abs=1e-9)


@always_the_same
@given(from_dtype(torch.zeros(0).numpy().dtype, min_value=-20, max_value=20))
def test_k3_is_not_negative_even_where_float32_rounds(log_ratio: float) -> None:
    assert float(k3(torch.tensor(log_ratio))) >= 0.0


@pytest.mark.parametrize(
    ("observed", "expected"),
    [(6.6, 0.201), (5.4, 0.199), (600.0, 0.202), (-600.0, 0.198)],
    ids=["a tenth above", "a tenth below", "far above", "far below"],
)
def test_the_adaptive_controller_answers_errors_up_to_a_fifth(observed: float, expected: float) -> None:
    controller = AdaptiveKL(0.2, target=6.0, horizon=1_000.0)
    assert controller.update(observed, 50).coefficient == pytest.approx(expected)


def test_explained_variance_is_zero_when_the_returns_do_not_vary() -> None:
    returns, mask = torch.ones(1, 3), torch.ones(1, 3, dtype=torch.bool)
    assert float(explained_variance(returns, returns, mask)) == 0.0
    assert float(explained_variance(torch.tensor([[0.0, 1.0, 2.0]]), returns, mask)) == 0.0


def test_a_short_answer_has_no_overlong_penalty_and_no_minus_sign() -> None:
    assert str(overlong_penalty(torch.tensor([10]), limit=100, buffer=20).item()) == "0.0"


def test_approximate_kl_is_k3_of_tokens_drawn_from_the_old_policy() -> None:
    old, mask = torch.tensor([[-1.0, -1.0, torch.nan]]), torch.tensor([[True, True, False]])
    moved = torch.tensor([[math.log(2.0), 0.0, torch.nan]])  # ratios 2 and 1: (2 - 1 - log 2) and 0
    loss = policy_loss(old + moved, old, torch.zeros(1, 3), mask)
    assert loss.stats["approx_kl"].mean == pytest.approx((1.0 - math.log(2.0)) / 2)


@pytest.mark.parametrize("aggregation", ["token", "sequence"])
def test_ppo_loss_hands_every_setting_on_to_its_parts(aggregation: Aggregation) -> None:
    mask = torch.tensor([[True, False, False], [True, True, True]])
    log_probs = torch.tensor([[1.2, 0.0, 0.0], [1.0, -0.8, 0.15]])
    advantages = torch.tensor([[-1.0, 0.0, 0.0], [2.0, -1.0, 1.0]])
    values = torch.tensor([[0.5, 0.0, 0.0], [-0.5, 1.0, 0.0]])
    old_values, returns = torch.zeros_like(values), 2.0 * values
    old = torch.zeros_like(log_probs)
    whole = ppo_loss(
        log_probs=log_probs,
        old_log_probs=old,
        advantages=advantages,
        mask=mask,
        values=values,
        old_values=old_values,
        returns=returns,
        entropy=torch.tensor([[4.0, 9.0, 9.0], [1.0, 2.0, 3.0]]),
        clip_low=0.1,
        clip_high=0.4,
        dual_clip=1.5,
        value_clip=0.05,
        vf_coef=0.3,
        entropy_coef=0.01,
        aggregation=aggregation,
    )
    policy = policy_loss(
        log_probs, old, advantages, mask, clip_low=0.1, clip_high=0.4, dual_clip=1.5, aggregation=aggregation
    )
    critic = value_loss(values, old_values, returns, mask, value_clip=0.05, aggregation=aggregation)
    entropy = {"token": 10.0, "sequence": 4.0 + 2.0}[aggregation]
    assert_close(whole.total, policy.total + 0.3 * critic.total - 0.01 * entropy)
    assert_close(whole.weight, policy.weight)
