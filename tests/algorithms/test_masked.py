"""Sums, means and whitening over the tokens that count."""

from __future__ import annotations

import pytest
import torch
from answer_batches import answer_masks, noise, seeds
from hypothesis import given, settings
from torch import Tensor

from duiqi.algorithms.masked import (
    explained_variance,
    masked_mean,
    masked_row_sums,
    masked_sum,
    masked_variance,
    whiten,
)

NAN = float("nan")
VALUES = torch.tensor([[1.0, 2.0, NAN], [6.0, NAN, NAN]])
MASK = torch.tensor([[True, True, False], [True, False, False]])
few = settings(max_examples=30, deadline=None)


def test_what_stands_outside_the_mask_does_not_matter() -> None:
    assert masked_sum(VALUES, MASK) == 9.0
    assert masked_mean(VALUES, MASK) == 3.0
    assert masked_variance(VALUES, MASK) == 7.0
    assert masked_row_sums(VALUES, MASK).tolist() == [3.0, 6.0]


def test_nothing_to_average_gives_zero() -> None:
    nothing = torch.zeros_like(MASK)
    assert masked_mean(VALUES, nothing) == 0.0
    assert masked_variance(VALUES, nothing) == 0.0
    assert torch.equal(whiten(VALUES, nothing), torch.zeros_like(VALUES))


def test_a_single_token_has_no_variance() -> None:
    assert masked_variance(torch.tensor([[5.0, 9.0]]), torch.tensor([[True, False]])) == 0.0


@few
@given(answer_masks(), seeds)
def test_variance_is_that_of_the_selected_values(mask: Tensor, seed: int) -> None:
    values = noise(seed, *mask.shape)
    torch.testing.assert_close(masked_variance(values, mask), values[mask].var())


@few
@given(answer_masks(), seeds)
def test_whitened_values_have_mean_zero_and_variance_one(mask: Tensor, seed: int) -> None:
    white = whiten(5.0 + 300.0 * noise(seed, *mask.shape), mask)
    assert float(white[mask].mean()) == pytest.approx(0.0, abs=1e-9)
    assert float(white[mask].var()) == pytest.approx(1.0, abs=1e-4)
    assert not white[~mask].any()


@few
@given(answer_masks(), seeds)
def test_whitening_without_shift_keeps_the_mean(mask: Tensor, seed: int) -> None:
    values = 5.0 + 300.0 * noise(seed, *mask.shape)
    white = whiten(values, mask, shift_mean=False)
    torch.testing.assert_close(white[mask].mean(), values[mask].mean())
    assert float(white[mask].var()) == pytest.approx(1.0, abs=1e-4)


@few
@given(answer_masks(), seeds)
def test_whitening_forgets_scale_and_origin(mask: Tensor, seed: int) -> None:
    values = 100.0 * noise(seed, *mask.shape)
    torch.testing.assert_close(whiten(values, mask), whiten(40.0 * values - 7.0, mask), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("values", "expected"),
    [([1.0, 2.0, 3.0], 1.0), ([2.0, 2.0, 2.0], 0.0), ([11.0, 12.0, 13.0], 1.0), ([3.0, 2.0, 1.0], -3.0)],
    ids=["perfect", "constant", "shifted", "reversed"],
)
def test_explained_variance_of_a_critic(values: list[float], expected: float) -> None:
    returns = torch.tensor([[1.0, 2.0, 3.0, NAN]])
    mask = torch.tensor([[True, True, True, False]])
    found = explained_variance(torch.tensor([[*values, NAN]]), returns, mask)
    assert float(found) == pytest.approx(expected, abs=1e-6)
