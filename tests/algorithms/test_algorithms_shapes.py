"""Shapes and types that the annotations promise are enforced while the tests run."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from jaxtyping import TypeCheckError

from duiqi.algorithms.advantages import gae
from duiqi.algorithms.log_probs import LogProbs, token_log_probs
from duiqi.algorithms.loss import Loss, WeightedSum
from duiqi.algorithms.masked import masked_mean

ONE, TWO = torch.tensor(1.0), torch.tensor(2.0)
MASK = torch.ones(2, 3, dtype=torch.bool)


@pytest.mark.parametrize(
    "misuse",
    [
        lambda: masked_mean(torch.zeros(2, 3), torch.ones(2, 3)),
        lambda: masked_mean(torch.zeros(2, 4), MASK),
        lambda: gae(torch.zeros(2, 3), torch.zeros(3, 2), MASK),
        lambda: token_log_probs(torch.zeros(2, 3, 5), torch.zeros(2, 4, dtype=torch.long)),
        lambda: Loss(torch.zeros(2), ONE),
        lambda: LogProbs(torch.zeros(2, 2), None),
    ],
    ids=["float mask", "lengths differ", "transposed", "targets differ", "loss not summed", "record of a matrix"],
)
def test_a_wrong_shape_or_type_is_refused(misuse: Callable[[], object]) -> None:
    with pytest.raises(TypeCheckError):
        misuse()


def test_weighted_sums_add_up_to_the_mean_over_everything() -> None:
    assert (WeightedSum(TWO, ONE) + WeightedSum(TWO, 3 * ONE)).mean == 1.0


def test_a_mean_over_nothing_is_zero() -> None:
    assert WeightedSum(0 * ONE, 0 * ONE).mean == 0.0
