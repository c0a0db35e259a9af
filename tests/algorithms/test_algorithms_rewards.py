"""From scores to rewards of tokens."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from random_batches import always_the_same, batches
from torch import Tensor
from torch.testing import assert_close
from trl.rewards import get_soft_overlong_punishment

from duiqi.algorithms.rewards import (
    RunningMoments,
    clip_scores,
    overlong_penalty,
    penalise_missing_eos,
    token_rewards,
)

NAN = torch.nan


def test_every_token_pays_for_its_kl_and_the_last_one_earns_the_score() -> None:
    kl = -torch.tensor([[0.1] * 3, [0.2] * 3, [0.3] * 3])
    rewards = token_rewards(torch.tensor([1.0, 2.0, 3.0]), kl, torch.ones(3, 3, dtype=torch.bool), kl_coefficient=0.5)
    assert_close(rewards, torch.tensor([[0.05, 0.05, 1.05], [0.1, 0.1, 2.1], [0.15, 0.15, 3.15]]))


def test_the_score_stands_at_the_last_answer_token_of_each_row() -> None:
    mask = torch.tensor([[False, True, True, False], [True, False, False, False], [False, False, False, True]])
    kl = torch.zeros(3, 4).masked_fill(~mask, NAN)
    rewards = token_rewards(torch.tensor([1.0, 2.0, 3.0]), kl, mask, kl_coefficient=0.1)
    assert rewards.tolist() == [[0, 0, 1, 0], [2, 0, 0, 0], [0, 0, 0, 3]]


def test_a_row_without_answer_tokens_gets_nothing() -> None:
    mask = torch.tensor([[False, False], [True, True]])
    rewards = token_rewards(torch.tensor([5.0, 7.0]), torch.zeros(2, 2), mask, kl_coefficient=0.1)
    assert rewards.tolist() == [[0, 0], [0, 7]]


@always_the_same
@given(batches(1, right_padded=True), st.floats(0, 1))
def test_an_answers_rewards_sum_to_its_score_less_the_weighted_kl(
    batch: tuple[Tensor, Tensor], coefficient: float
) -> None:
    kl, mask = batch
    scores = torch.arange(len(kl), dtype=torch.float64)
    paid = scores - token_rewards(scores, kl, mask, kl_coefficient=coefficient).sum(dim=1)
    assert_close(paid, torch.stack([coefficient * row[kept].sum() for row, kept in zip(kl, mask, strict=True)]))


def test_scores_are_clipped_on_both_sides_unless_the_limit_is_zero() -> None:
    scores = torch.tensor([-9.0, 1.0, 9.0])
    assert clip_scores(scores, 5.0).tolist() == [-5, 1, 5]
    assert clip_scores(scores, 0.0).tolist() == [-9, 1, 9]


def test_answers_that_never_ended_pay_the_penalty() -> None:
    scores = penalise_missing_eos(torch.tensor([1.0, 1.0]), torch.tensor([True, False]), 0.75)
    assert scores.tolist() == [1.0, 0.25]


def test_overlong_penalty_falls_in_a_straight_line_to_minus_one() -> None:
    penalties = overlong_penalty(torch.tensor([1, 80, 90, 100, 130]), limit=100, buffer=20)
    assert penalties.tolist() == [0.0, 0.0, -0.5, -1.0, -1.0]


def test_overlong_penalty_is_that_of_trl() -> None:
    lengths = list(range(1, 60, 7))
    theirs = get_soft_overlong_punishment(max_completion_len=50, soft_punish_cache=30)([[0] * n for n in lengths])
    assert_close(overlong_penalty(torch.tensor(lengths), limit=50, buffer=30), torch.tensor(theirs))


@always_the_same
@given(st.lists(st.lists(st.floats(-50, 50, width=32), min_size=1, max_size=5), min_size=1, max_size=5))
def test_running_moments_do_not_depend_on_how_the_scores_were_split(parts: list[list[float]]) -> None:
    moments = RunningMoments()
    for part in parts:
        moments = moments.update(torch.tensor(part))
    everything = torch.tensor(sum(parts, []), dtype=torch.float64)
    assert moments.count == len(everything)
    assert moments.mean == pytest.approx(float(everything.mean()), abs=1e-9)
    if len(everything) > 1:
        assert moments.std == pytest.approx(float(everything.std()), abs=1e-9)


def test_spread_is_one_until_two_scores_were_seen() -> None:
    assert RunningMoments().std == 1.0
    assert RunningMoments().update(torch.tensor([3.0])).std == 1.0


def test_normalised_scores_are_in_standard_deviations_from_the_mean() -> None:
    scores = torch.tensor([1.0, 3.0])
    assert_close(RunningMoments().update(scores).normalise(scores), torch.tensor([-0.70710678, 0.70710678]))


def test_normalising_equal_scores_gives_zeros() -> None:
    scores = torch.full((4,), 2.5)
    assert RunningMoments().update(scores).normalise(scores).tolist() == [0, 0, 0, 0]
