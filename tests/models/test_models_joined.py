"""Linear layers that are computed as one stay what they were, each by itself."""

from __future__ import annotations

import torch
from torch import nn

from duiqi.models.joined import lay_side_by_side, side_by_side


def matrices() -> list[nn.Parameter]:
    return [nn.Parameter(torch.randn(rows, 3)) for rows in (2, 4, 1)]


def test_parameters_laid_side_by_side_keep_their_values_and_what_refers_to_them() -> None:
    parameters = matrices()
    values = [parameter.detach().clone() for parameter in parameters]
    optimizer = torch.optim.SGD(parameters, lr=1.0)
    lay_side_by_side(parameters)
    for parameter, value in zip(parameters, values, strict=True):
        assert torch.equal(parameter, value)
    sum(parameter.sum() for parameter in parameters).backward()
    optimizer.step()
    assert torch.equal(side_by_side(parameters), torch.cat(values) - 1.0)


def test_what_lies_side_by_side_is_seen_as_one_and_not_copied() -> None:
    parameters = matrices()
    lay_side_by_side(parameters)
    whole = side_by_side(parameters)
    assert whole.data_ptr() == parameters[0].data_ptr()
    place = whole.data_ptr()
    lay_side_by_side(parameters)
    assert parameters[0].data_ptr() == place, "what lies well is not moved again"


def test_what_was_moved_apart_is_copied_and_still_right() -> None:
    parameters = matrices()
    lay_side_by_side(parameters)
    parameters[1].data = parameters[1].data.clone()
    assert torch.equal(side_by_side(parameters), torch.cat([parameter.detach() for parameter in parameters]))
    swapped = [parameters[2], parameters[0]]
    assert torch.equal(side_by_side(swapped), torch.cat([parameter.detach() for parameter in swapped]))
