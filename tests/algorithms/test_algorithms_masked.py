"""Sums, means, whitening over the tokens that count."""

from __future__ import annotations

import torch
from hypothesis import assume, given
from random_batches import always_the_same, batches, with_nan_outside
from torch import Tensor
from torch.testing import assert_close

from duiqi.algorithms.masked import (
    explained_variance,
    masked_mean,
    masked_row_sums,
    masked_sum,
    masked_variance,
    whiten,
)

NAN = torch.nan
VALUES = torch.tensor([[1.0, 2.0, NAN], [4.0, NAN, NAN]])
MASK = torch.tensor([[True, True, False], [True, False, False]])
NOTHING = torch.zeros(2, 3, dtype=torch.bool)


def test_sum_mean_and_variance_see_the_masked_values_only() -> None:
    assert float(masked_sum(VALUES, MASK)) == 7.0
    assert masked_row_sums(VALUES, MASK).tolist() == [3.0, 4.0]
    assert_close(masked_mean(VALUES, MASK), torch.tensor(7.0 / 3.0))
    assert_close(masked_variance(VALUES, MASK), torch.tensor(7.0 / 3.0))  # (16 + 1 + 25) / 9 / (3 - 1)


def test_an_empty_mask_gives_zeros() -> None:
    assert float(masked_sum(VALUES, NOTHING)) == 0.0
    assert float(masked_mean(VALUES, NOTHING)) == 0.0
    assert float(masked_variance(VALUES, NOTHING)) == 0.0
    assert whiten(VALUES, NOTHING).tolist() == [[0.0] * 3] * 2


def test_gradient_of_a_sum_is_the_mask_even_beside_nan() -> None:
    values = VALUES.clone().requires_grad_()
    masked_sum(values, MASK).backward()
    assert_close(values.grad, MASK.float())


@always_the_same
@given(batches(1))
def test_variance_is_that_of_the_selected_values(batch: tuple[Tensor, Tensor]) -> None:
    values, mask = batch
    assume(mask.sum() > 1)
    assert_close(masked_variance(with_nan_outside(values, mask), mask), values[mask].var())


@always_the_same
@given(batches(1))
def test_whitened_values_have_mean_zero_and_variance_one(batch: tuple[Tensor, Tensor]) -> None:
    values, mask = batch
    assume(mask.sum() > 1)
    assume(values[mask].var() > 1e-3)
    white = whiten(with_nan_outside(values, mask), mask)
    assert abs(float(white[mask].mean())) < 1e-9
    assert abs(float(white[mask].var()) - 1.0) < 1e-4
    assert bool((white[~mask] == 0).all())


@always_the_same
@given(batches(1))
def test_whitening_without_shift_keeps_the_mean(batch: tuple[Tensor, Tensor]) -> None:
    values, mask = batch
    white = whiten(with_nan_outside(values, mask), mask, shift_mean=False)
    assert_close(white[mask].mean(), values[mask].mean())


@always_the_same
@given(batches(1))
def test_whitening_forgets_scale_and_origin(batch: tuple[Tensor, Tensor]) -> None:
    values, mask = batch
    assume(mask.sum() > 1)
    assume(values[mask].var() > 1e-2)
    assert_close(whiten(3.0 * values + 5.0, mask), whiten(values, mask), atol=1e-5, rtol=0.0)


def test_whitening_equal_values_gives_zeros() -> None:
    assert_close(whiten(torch.full((2, 3), 4.0), ~NOTHING), torch.zeros(2, 3))


def test_explained_variance_of_known_critics() -> None:
    returns = torch.tensor([[1.0, -1.0, 2.0, NAN]])
    mask = torch.tensor([[True, True, True, False]])
    assert_close(explained_variance(returns.clone(), returns, mask), torch.tensor(1.0))
    assert_close(explained_variance(torch.full_like(returns, 7.0), returns, mask), torch.tensor(0.0))
    assert_close(explained_variance(-returns, returns, mask), torch.tensor(-3.0))


def test_explained_variance_is_zero_when_the_returns_do_not_vary() -> None:
    returns, mask = torch.ones(1, 3), torch.ones(1, 3, dtype=torch.bool)
    assert float(explained_variance(returns, returns, mask)) == 0.0
    assert float(explained_variance(torch.tensor([[0.0, 1.0, 2.0]]), returns, mask)) == 0.0
