"""The distribution answers are drawn from: transformers' processors as oracle, and draws done by hand."""

from __future__ import annotations

import math

import pytest
import torch
from transformers import (
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from duiqi.rollouts.sampling import adjust_logits, draw, keep_likely, log_probs_of, penalise_repetition, uniforms

LARGEST_UNIFORM = 1 - 2.0**-24


def random_logits(seed: int, rows: int = 6, vocabulary: int = 50) -> torch.Tensor:
    return 3 * torch.randn(rows, vocabulary, generator=torch.Generator().manual_seed(seed))


def test_temperature_agrees_with_transformers() -> None:
    logits = random_logits(0)
    ours = adjust_logits(logits, temperature=0.7, suppressed=None, stop_token_ids=[2])
    torch.testing.assert_close(ours, TemperatureLogitsWarper(0.7)(None, logits))


def test_greedy_log_probabilities_are_untempered() -> None:
    logits = random_logits(0)
    assert adjust_logits(logits, temperature=0.0, suppressed=None, stop_token_ids=[2]).equal(logits)


def test_half_precision_logits_are_adjusted_in_float32() -> None:
    logits = random_logits(0).bfloat16()
    ours = adjust_logits(logits, temperature=0.7, suppressed=None, stop_token_ids=[])
    assert ours.dtype == torch.float32
    assert ours.equal(logits.float() / 0.7)


def test_suppressed_stop_tokens_have_probability_zero_and_the_rest_is_renormalised() -> None:
    logits = torch.tensor([[0.1, 0.2, 0.3, 0.4]]).log().repeat(2, 1)
    suppressed = torch.tensor([True, False])
    before = logits.clone()
    ours = adjust_logits(logits, temperature=1.0, suppressed=suppressed, stop_token_ids=[1, 3]).softmax(-1)
    torch.testing.assert_close(ours, torch.tensor([[0.25, 0.0, 0.75, 0.0], [0.1, 0.2, 0.3, 0.4]]))
    assert logits.equal(before)


def test_suppression_composes_with_a_batch_of_sequences() -> None:
    logits = random_logits(0, rows=6).view(2, 3, 50)
    suppressed = torch.tensor([[True, False, False], [True, True, False]])
    ours = adjust_logits(logits, temperature=1.0, suppressed=suppressed, stop_token_ids=[4]).softmax(-1)
    assert (ours[..., 4] == 0).equal(suppressed)


def test_tempering_after_suppressing_gives_the_same_distribution_and_a_finite_entropy() -> None:
    logits, everywhere = random_logits(1), torch.ones(6, dtype=torch.bool)
    at_once = adjust_logits(logits, temperature=0.1, suppressed=everywhere, stop_token_ids=[2])
    later = adjust_logits(logits, temperature=1.0, suppressed=everywhere, stop_token_ids=[2]) / 0.1
    torch.testing.assert_close(at_once.softmax(-1), later.softmax(-1))
    assert (later.softmax(-1) * later).isfinite().all()


def test_suppression_leaves_entropy_and_gradient_finite() -> None:
    logits = random_logits(1).requires_grad_()
    ours = adjust_logits(logits, temperature=0.5, suppressed=torch.ones(6, dtype=torch.bool), stop_token_ids=[2])
    log_probs = ours.log_softmax(-1)
    entropy = -(log_probs.exp() * log_probs).sum(-1)
    (entropy.sum() + log_probs[:, 5].sum()).backward()
    assert entropy.isfinite().all()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()
    assert (logits.grad[:, 2] == 0).all()


@pytest.mark.parametrize("penalty", [0.8, 1.3])
def test_repetition_penalty_agrees_with_transformers(penalty: float) -> None:
    logits, history = random_logits(2), torch.randint(50, (6, 9), generator=torch.Generator().manual_seed(1))
    ours = penalise_repetition(logits, history, penalty=penalty)
    torch.testing.assert_close(ours, RepetitionPenaltyLogitsProcessor(penalty)(history, logits.clone()))


@pytest.mark.parametrize("top_k", [1, 5, 49])
def test_top_k_agrees_with_transformers(top_k: int) -> None:
    logits = random_logits(3)
    torch.testing.assert_close(keep_likely(logits, top_k=top_k), TopKLogitsWarper(top_k)(None, logits))


@pytest.mark.parametrize("top_p", [0.0, 0.1, 0.5, 0.9, 0.999])
def test_top_p_agrees_with_transformers(top_p: float) -> None:
    logits = random_logits(4)
    torch.testing.assert_close(keep_likely(logits, top_p=top_p), TopPLogitsWarper(top_p)(None, logits))


def test_top_k_comes_before_top_p() -> None:
    logits = random_logits(5)
    oracle = TopPLogitsWarper(0.8)(None, TopKLogitsWarper(10)(None, logits))
    torch.testing.assert_close(keep_likely(logits, top_k=10, top_p=0.8), oracle)


def test_more_than_the_vocabulary_keeps_everything() -> None:
    logits = random_logits(6)
    assert keep_likely(logits, top_k=1000, top_p=1.0).equal(logits)


@pytest.mark.parametrize(
    ("uniform", "token"), [(0.0, 0), (0.2499, 0), (0.25, 1), (0.7499, 1), (0.75, 2), (LARGEST_UNIFORM, 2)]
)
def test_draw_inverts_the_cumulative_distribution(uniform: float, token: int) -> None:
    logits = torch.tensor([[0.25, 0.5, 0.25]]).log()
    assert draw(logits, torch.tensor([uniform])).tolist() == [token]


@pytest.mark.parametrize("uniform", [0.0, LARGEST_UNIFORM])
@pytest.mark.parametrize("seed", range(20))
def test_draw_never_gives_a_token_of_probability_zero(uniform: float, seed: int) -> None:
    logits = random_logits(seed, vocabulary=1000)
    logits[:, :10] = -torch.inf
    logits[:, -10:] = torch.finfo(torch.float32).min
    tokens = draw(logits, torch.full((6,), uniform))
    assert ((tokens >= 10) & (tokens < 990)).all()


def test_draw_from_a_broken_distribution_is_in_range_and_shows_in_the_log_probability() -> None:
    logits = random_logits(7)
    logits[0, 3], logits[1, 3] = torch.nan, torch.inf
    tokens = draw(logits, torch.full((6,), 0.5))
    assert ((tokens >= 0) & (tokens < 50)).all()
    assert log_probs_of(logits, tokens).isfinite().tolist() == [False, False, True, True, True, True]


def test_uniforms_depend_on_their_own_counters_alone() -> None:
    whole = uniforms(seed=3, step=5, rows=torch.arange(8), num_tokens=16)
    part = uniforms(seed=3, step=5, rows=torch.tensor([6, 2]), num_tokens=9)
    assert part.equal(whole[[6, 2], :9])


@pytest.mark.parametrize(("seed", "step"), [(4, 5), (3, 6), (5, 3), (-3, 5), (2**63 - 1, 5)])
def test_another_seed_or_step_gives_other_uniforms(seed: int, step: int) -> None:
    ours = uniforms(seed=3, step=5, rows=torch.arange(64), num_tokens=64)
    others = uniforms(seed=seed, step=step, rows=torch.arange(64), num_tokens=64)
    assert (ours == others).float().mean() < 0.01


def test_uniforms_stay_the_same_between_versions() -> None:
    golden = [[0.81641400, 0.95958644, 0.04892325], [0.21962386, 0.46809322, 0.84583533]]
    ours = uniforms(seed=0, step=1, rows=torch.tensor([0, 1]), num_tokens=3)
    torch.testing.assert_close(ours, torch.tensor(golden), rtol=0, atol=1e-7)


def test_uniforms_are_uniform_and_uncorrelated() -> None:
    many = uniforms(seed=0, step=0, rows=torch.arange(500), num_tokens=200)
    assert many.min() >= 0
    assert many.max() < 1
    counts = many.flatten().histc(bins=50, min=0, max=1)
    chi_square = ((counts - 2000) ** 2 / 2000).sum().item()
    assert chi_square < 100, "49 degrees of freedom: above 100 about once in 50,000"
    centred = many - 0.5
    bound = 5 / (12 * math.sqrt(many.numel()))
    assert (centred[1:] * centred[:-1]).mean().abs() < bound
    assert (centred[:, 1:] * centred[:, :-1]).mean().abs() < bound
