"""Where in a network a number first stops being finite."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn


def first_bad_module(networks: Iterable[nn.Module], compute: Callable[[], object]) -> str | None:
    """The first module whose output holds nan or inf although what it was given does not, while `compute` runs.

    Innermost modules end first, so the one named is as small as the network lets hooks see. None: all of them give
    finite numbers, and the trouble is in the loss or its gradient.

    >>> network = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    >>> _ = network[1].weight.data.fill_(float("nan"))
    >>> first_bad_module([network], lambda: network(torch.ones(1, 2)))
    '1'
    """
    found: list[str] = []

    def look(name: str, _module: nn.Module, given: tuple[Any, ...], named: dict[str, Any], output: Any) -> None:
        if not found and not _all_finite(output) and _all_finite((given, named)):
            found.append(name or "the network itself")

    handles = [
        module.register_forward_hook(partial(look, name), with_kwargs=True)
        for network in networks
        for name, module in network.named_modules()
    ]
    try:
        with torch.no_grad():
            compute()
    finally:
        for handle in handles:
            handle.remove()
    return found[0] if found else None


def bad_weights(networks: Iterable[nn.Module]) -> list[str]:
    """The names of the parameters that hold nan or inf."""
    return [
        name
        for network in networks
        for name, parameter in network.named_parameters()
        if not bool(torch.isfinite(parameter).all())
    ]


def _all_finite(value: Any) -> bool:
    return all(bool(torch.isfinite(tensor).all()) for tensor in _tensors_in(value))


def _tensors_in(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        if value.is_floating_point():
            yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _tensors_in(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors_in(item)
