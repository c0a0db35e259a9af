"""What holds for any pair: symmetries of the preference losses, and the edges of their domain."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from duiqi.algorithms.loss import Loss
from duiqi.algorithms.preference import (
    PairLogProbs,
    cpo_loss,
    dpo_loss,
    hinge_loss,
    ipo_loss,
    kto_pair_loss,
    orpo_loss,
    simpo_loss,
)

AGAINST_REFERENCE: dict[str, Callable[[PairLogProbs], Loss]] = {
    "dpo": partial(dpo_loss, beta=0.1),
    "smoothed dpo": partial(dpo_loss, beta=0.1, label_smoothing=0.1),
    "ipo": partial(ipo_loss, beta=0.1),
    "hinge": partial(hinge_loss, beta=0.1),
    "kto": partial(kto_pair_loss, beta=0.1),
}
EVERY_LOSS = {
    **AGAINST_REFERENCE,
    "orpo": partial(orpo_loss, beta=0.1),
    "simpo": partial(simpo_loss, beta=2.0, gamma=1.0),
    "cpo": partial(cpo_loss, beta=0.1),
}
always_the_same = settings(deadline=None, max_examples=30, derandomize=True)


@st.composite
def log_probs_of_pairs(draw: st.DrawFn) -> tuple[Tensor, ...]:
    """Chosen, rejected, and both under the reference, of up to five pairs."""
    count = draw(st.integers(1, 5))
    column = st.lists(st.floats(-40, -0.5), min_size=count, max_size=count)
    return tuple(torch.tensor(draw(column), dtype=torch.float64) for _ in range(4))


def pairs_of(chosen: Tensor, rejected: Tensor, reference_chosen: Tensor, reference_rejected: Tensor) -> PairLogProbs:
    """Pairs of answers of one token."""
    ones = torch.ones_like(chosen)
    return PairLogProbs(chosen, rejected, reference_chosen, reference_rejected, ones, ones)


@always_the_same
@given(log_probs_of_pairs(), st.floats(0, 1))
def test_swapping_the_answers_swaps_the_label_smoothing(log_probs: tuple[Tensor, ...], label_smoothing: float) -> None:
    chosen, rejected, reference_chosen, reference_rejected = log_probs
    swapped = pairs_of(rejected, chosen, reference_rejected, reference_chosen)
    assert_close(
        dpo_loss(swapped, beta=0.3, label_smoothing=1.0 - label_smoothing).total,
        dpo_loss(pairs_of(*log_probs), beta=0.3, label_smoothing=label_smoothing).total,
    )


@pytest.mark.parametrize("name", AGAINST_REFERENCE)
@always_the_same
@given(log_probs_of_pairs(), st.floats(-5, 5))
def test_only_the_distance_to_the_reference_matters(name: str, log_probs: tuple[Tensor, ...], shift: float) -> None:
    chosen, rejected, reference_chosen, reference_rejected = log_probs
    moved = pairs_of(chosen + shift, rejected - shift, reference_chosen + shift, reference_rejected - shift)
    assert_close(AGAINST_REFERENCE[name](moved).total, AGAINST_REFERENCE[name](pairs_of(*log_probs)).total)


def test_raising_the_kto_baseline_is_lowering_both_log_ratios() -> None:
    zero, chosen, rejected = torch.zeros(1), torch.tensor([1.0]), torch.tensor([-0.5])
    with_baseline = kto_pair_loss(pairs_of(chosen, rejected, zero, zero), beta=0.1, kl=2.0)
    assert_close(with_baseline.total, kto_pair_loss(pairs_of(chosen - 2.0, rejected - 2.0, zero, zero), beta=0.1).total)


@pytest.mark.parametrize("name", EVERY_LOSS)
@pytest.mark.parametrize("probable", [0.0, -1e-9, -1e-3], ids=["certain", "nearly certain", "probable"])
@pytest.mark.parametrize("other", [0.0, -1.0, -2000.0])
def test_certain_answers_have_finite_losses_and_gradients(name: str, probable: float, other: float) -> None:
    chosen, rejected = (torch.tensor([value], requires_grad=True) for value in (probable, other))
    total = EVERY_LOSS[name](pairs_of(chosen, rejected, torch.zeros(1), torch.zeros(1))).total
    gradients = torch.autograd.grad(total, [chosen, rejected])
    assert all(math.isfinite(number.detach()) for number in (total, *gradients))
