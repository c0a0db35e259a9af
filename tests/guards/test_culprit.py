"""The module in which a number stops being finite is found, however deep it lies."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from duiqi.guards.culprit import bad_weights, first_bad_module


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(2, 2)
        self.outer = nn.Linear(2, 2)

    def forward(self, hidden: Tensor, *, double: bool = False) -> tuple[Tensor, None]:
        found = self.outer(self.inner(hidden))
        return (found * 2 if double else found), None


@pytest.mark.parametrize("bad", ["0.inner", "0.outer", "1"])
def test_the_innermost_module_is_named(bad: str) -> None:
    network = nn.Sequential(Block(), nn.Linear(2, 1))
    module = network.get_submodule(bad)
    assert isinstance(module, nn.Linear)
    module.weight.data[0, 0] = float("nan")

    def compute() -> Tensor:
        hidden, _ = network[0](torch.ones(1, 2), double=True)
        answer: Tensor = network[1](hidden)
        return answer

    assert first_bad_module([network], compute) == bad
    assert bad_weights([network]) == [f"{bad}.weight"]
    assert all(not module._forward_hooks for module in network.modules())


def test_where_everything_is_finite_nobody_is_named() -> None:
    network = nn.Linear(2, 1)
    assert first_bad_module([network], lambda: network(torch.ones(1, 2))) is None
    assert bad_weights([network]) == []


def test_hooks_are_gone_after_an_error_too() -> None:
    network = nn.Linear(2, 1)
    with pytest.raises(RuntimeError):
        first_bad_module([network], lambda: network(torch.ones(1, 5)))
    assert not network._forward_hooks
