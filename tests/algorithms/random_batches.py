"""Random batches for properties: float64 tensors of one shape and a mask."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch import Tensor

always_the_same = settings(deadline=None, max_examples=40, derandomize=True)


@st.composite
def batches(draw: st.DrawFn, count: int = 1, *, limit: float = 8.0, right_padded: bool = False) -> tuple[Tensor, ...]:
    """`count` tensors B x T with entries within plus or minus `limit`, then a mask with at least one True.

    With `right_padded` every row's True positions are its first ones, and every row has some.
    """
    shape = draw(st.tuples(st.integers(1, 4), st.integers(1, 6)))
    numbers = st.integers(-1000, 1000).map(lambda n: n * limit / 1000)
    values = [torch.from_numpy(draw(arrays(np.float64, shape, elements=numbers))) for _ in range(count)]
    if right_padded:
        lengths = draw(st.lists(st.integers(1, shape[1]), min_size=shape[0], max_size=shape[0]))
        mask = torch.arange(shape[1]) < torch.tensor(lengths).unsqueeze(1)
    else:
        mask = torch.from_numpy(draw(arrays(np.bool_, shape, elements=st.booleans()).filter(np.any)))
    return (*values, mask)


def with_nan_outside(values: Tensor, mask: Tensor) -> Tensor:
    """A copy that is nan wherever the mask is False."""
    return values.masked_fill(~mask, torch.nan)
