"""From scores to rewards."""

from __future__ import annotations

import json
from dataclasses import asdict

import pytest
import torch
from answer_batches import answer_masks, noise, seeds
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from duiqi.algorithms.rewards import (
    RunningMoments,
    clip_scores,
    overlong_penalty,
    token_rewards,
)

few = settings(max_examples=30, deadline=None)


def test_golden_rewards() -> None:
    kl = torch.tensor([[-0.1], [-0.2], [-0.3]], dtype=torch.float64).expand(3, 3)
    scores = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    rewards = token_rewards(scores, kl, torch.ones(3, 3, dtype=torch.bool), kl_coefficient=0.5)
    expected = torch.tensor([[0.05, 0.05, 1.05], [0.1, 0.1, 2.1], [0.15, 0.15, 3.15]], dtype=torch.float64)
    torch.testing.assert_close(rewards, expected)


def test_the_score_stands_at_the_last_answer_token_wherever_the_padding_is() -> None:
    mask = torch.tensor([[True, True, False, False], [False, False, True, True], [False, True, False, False]])
    rewards = token_rewards(torch.tensor([1.0, 2.0, 3.0]), torch.zeros(3, 4), mask, kl_coefficient=0.1)
    assert rewards.tolist() == [[0.0, 1.0, 0.0, 0.0], [0.0, 0.0, 0.0, 2.0], [0.0, 3.0, 0.0, 0.0]]


def test_a_row_without_answer_tokens_gets_nothing() -> None:
    rewards = token_rewards(torch.ones(1), torch.ones(1, 3), torch.zeros(1, 3, dtype=torch.bool), kl_coefficient=0.1)
    assert rewards.tolist() == [[0.0, 0.0, 0.0]]


@few
@given(answer_masks(), seeds)
def test_rewards_ignore_what_stands_outside_the_answer(mask: Tensor, seed: int) -> None:
    kl, scores = noise(seed, *mask.shape), noise(seed, len(mask))
    rewards = token_rewards(scores, kl.masked_fill(~mask, torch.nan), mask, kl_coefficient=0.3)
    assert not rewards[~mask].any()
    torch.testing.assert_close(rewards, token_rewards(scores, kl, mask, kl_coefficient=0.3))


@few
@given(answer_masks(), seeds)
def test_without_a_penalty_the_rewards_of_an_answer_add_up_to_its_score(mask: Tensor, seed: int) -> None:
    scores = noise(seed, len(mask))
    rewards = token_rewards(scores, noise(seed, *mask.shape), mask, kl_coefficient=0.0)
    torch.testing.assert_close(rewards.sum(dim=1), scores)


def test_scores_are_clipped_on_both_sides_and_not_at_all_for_zero() -> None:
    scores = torch.tensor([-9.0, 1.0, 9.0])
    assert clip_scores(scores, 5.0).tolist() == [-5.0, 1.0, 5.0]
    assert clip_scores(scores, 0.0).tolist() == [-9.0, 1.0, 9.0]


def test_golden_overlong_penalty() -> None:
    found = overlong_penalty(torch.tensor([10, 80, 90, 100, 120]), limit=100, buffer=20)
    assert found.tolist() == pytest.approx([0.0, 0.0, -0.5, -1.0, -1.0])


@few
@given(seeds, st.lists(st.integers(1, 6), min_size=2, max_size=5))
def test_running_moments_are_those_of_all_scores_together(seed: int, sizes: list[int]) -> None:
    scores = 100.0 + noise(seed, sum(sizes))
    moments = RunningMoments()
    for part in scores.split(sizes):
        moments = moments.update(part)
    assert moments.count == len(scores)
    assert moments.mean == pytest.approx(float(scores.mean()))
    assert moments.std == pytest.approx(float(scores.std()))


def test_normalised_scores_are_in_standard_deviations_from_the_mean() -> None:
    scores = torch.tensor([1.0, 2.0, 3.0])
    assert RunningMoments().update(scores).normalise(scores).tolist() == pytest.approx([-1.0, 0.0, 1.0])


def test_equal_scores_normalise_to_zero() -> None:
    scores = torch.full((3,), 2.5)
    assert RunningMoments().update(scores).normalise(scores).tolist() == [0.0, 0.0, 0.0]


def test_a_single_score_is_centred_but_not_scaled() -> None:
    moments = RunningMoments().update(torch.tensor([4.0]))
    assert moments.normalise(torch.tensor([7.0])).tolist() == [3.0]


def test_moments_survive_a_checkpoint() -> None:
    moments = RunningMoments().update(torch.tensor([1.0, 2.5]))
    assert RunningMoments(**json.loads(json.dumps(asdict(moments)))) == moments
