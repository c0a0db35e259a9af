"""Batches of answers for property tests: rows of unequal length behind prompts of unequal length."""

from __future__ import annotations

from collections.abc import Callable

import torch
from hypothesis import strategies as st
from torch import Tensor

from duiqi.algorithms.loss import Loss


@st.composite
def answer_masks(draw: st.DrawFn) -> Tensor:
    """Bool[B, T]: one run of True per row, somewhere in it, never empty."""
    spans = draw(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 5)), min_size=2, max_size=4))
    width = max(start + length for start, length in spans) + draw(st.integers(0, 2))
    mask = torch.zeros(len(spans), width, dtype=torch.bool)
    for row, (start, length) in enumerate(spans):
        mask[row, start : start + length] = True
    return mask


seeds = st.integers(0, 2**31 - 1)


def noise(seed: int, *shape: int) -> Tensor:
    """Normal numbers in float64, the same for the same seed."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def assert_split_is_irrelevant(loss_of: Callable[[slice], Loss], num_rows: int) -> None:
    """The sums over any split of the rows add up to the sums over all of them, statistics included."""
    whole, parts = loss_of(slice(None)), [loss_of(slice(row, row + 1)) for row in range(num_rows)]
    torch.testing.assert_close(sum(part.total for part in parts), whole.total)
    torch.testing.assert_close(sum(part.weight for part in parts), whole.weight)
    for name, stat in whole.stats.items():
        torch.testing.assert_close(sum(part.stats[name].total for part in parts), stat.total)
        torch.testing.assert_close(sum(part.stats[name].weight for part in parts), stat.weight)
