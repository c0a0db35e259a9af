"""Finding the first quantity that is not a number."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from duiqi.guards.finite import first_non_finite

NAN, INF = torch.nan, torch.inf


def test_finite_quantities_pass() -> None:
    assert (
        first_non_finite([("loss", torch.tensor(1.0)), ("ids", torch.tensor([1, 2])), ("none", torch.ones(0))]) is None
    )


def test_the_first_bad_quantity_is_named_with_its_counts() -> None:
    named = [
        ("loss", torch.tensor(1.0)),
        ("values", torch.tensor([[0.0, NAN], [INF, -INF]])),
        ("later", torch.tensor(NAN)),
    ]
    assert first_non_finite(named) == "values: 3 of 4 numbers are nan or inf (1 nan, 2 inf)"


def test_half_precision_overflow_is_found() -> None:
    overflow = torch.tensor([70000.0]).half()
    assert first_non_finite([("hidden", overflow)]) == "hidden: 1 of 1 numbers are nan or inf (0 nan, 1 inf)"


def test_nothing_after_the_first_bad_quantity_is_computed() -> None:
    def quantities() -> Iterator[tuple[str, Tensor]]:
        yield "loss", torch.tensor(NAN)
        raise AssertionError("read on after the first finding")

    assert first_non_finite(quantities()) is not None
