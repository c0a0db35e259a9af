"""Cross-entropy of the learned tokens."""

from __future__ import annotations

import pytest
import torch
from answer_batches import answer_masks, assert_split_is_irrelevant, noise, seeds
from hypothesis import given, settings
from torch import Tensor
from torch.nn.functional import cross_entropy

from duiqi.algorithms.log_probs import token_log_probs
from duiqi.algorithms.supervised import cross_entropy_loss


def test_loss_is_a_sum_and_its_weight_the_number_of_learned_tokens() -> None:
    loss = cross_entropy_loss(torch.tensor([-0.5, -1.0, -2.0]))
    assert float(loss.total) == pytest.approx(3.5)
    assert float(loss.weight) == 3.0


def test_loss_and_gradient_are_those_of_torch_cross_entropy() -> None:
    logits = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(0), requires_grad=True)
    targets, mask = torch.tensor([[0, 1, 2], [3, 4, 0]]), torch.tensor([[False, True, True], [True, True, False]])
    loss = cross_entropy_loss(token_log_probs(logits, targets)[mask])
    labels = targets.masked_fill(~mask, -100)
    expected = cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100)
    torch.testing.assert_close(loss.total / loss.weight, expected)
    torch.testing.assert_close(
        torch.autograd.grad(loss.total / loss.weight, logits), torch.autograd.grad(expected, logits)
    )


@settings(max_examples=25, deadline=None)
@given(answer_masks(), seeds)
def test_the_split_into_micro_batches_is_irrelevant(mask: Tensor, seed: int) -> None:
    log_probs = -noise(seed, *mask.shape).abs()
    assert_split_is_irrelevant(lambda rows: cross_entropy_loss(log_probs[rows][mask[rows]]), len(mask))
