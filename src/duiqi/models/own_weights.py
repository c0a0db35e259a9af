"""Weights of the base that a role has for itself: the layers that freeze tuning trains, embeddings and head of a grown
vocabulary. They stand in the network while the role is heard; the base's own stay what they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from duiqi.errors import ModelError
from duiqi.models.targets import plain_modules


class OwnParameter(nn.Parameter):
    """A parameter of the base as one role has it, learning or not."""


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a parameter stands in a network."""

    path: str
    """Of the module."""
    module: nn.Module
    name: str
    """Of the parameter in the module."""

    @property
    def full_name(self) -> str:
        return f"{self.path}.{self.name}"

    @property
    def parameter(self) -> nn.Parameter | None:
        return self.module._parameters[self.name]

    def put(self, parameter: nn.Parameter) -> None:
        self.module._parameters[self.name] = parameter


@dataclass(frozen=True, slots=True)
class _Own:
    """A copy, the base's parameter that it stands for, and its places: several where weights are tied."""

    copy: nn.Parameter
    original: nn.Parameter
    places: tuple[_Place, ...]


class OwnWeights:
    """Copies in float32 of some of a network's weights, to be put in their places and taken out again.

    Args:
        network: Whose weights stand in their places now.
        paths: Of the modules whose weights, with those of all modules in them, are copied.
        trainable: Whether the copies learn.

    Raises:
        ModelError: One is quantised: what is stored are codes and not its values.
    """

    def __init__(self, network: nn.Module, paths: Sequence[str], *, trainable: bool) -> None:
        everywhere = list(_places(network))
        wanted = {id(place.parameter) for place in everywhere if any(_is_in(place.path, path) for path in paths)}
        by_parameter: dict[int, list[_Place]] = {}
        for place in everywhere:
            if id(place.parameter) in wanted:
                by_parameter.setdefault(id(place.parameter), []).append(place)
        self._own: list[_Own] = []
        for places in by_parameter.values():
            original = places[0].parameter
            assert original is not None
            if not original.is_floating_point():
                raise ModelError(
                    f"the weights of {places[0].path} are stored in few bits, so nothing can stand in their place",
                    where="quantization_bit",
                    remedy="remove it for an adapter that trains this layer whole",
                )
            copy = OwnParameter(original.detach().to(torch.float32, copy=True), requires_grad=trainable)
            self._own.append(_Own(copy, original, tuple(places)))
            for place in places:
                _compute_in_precision_of_weights(place.module, original.dtype)

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """The copies, by the full name of the first place that each has."""
        return {own.places[0].full_name: own.copy for own in self._own}

    @property
    def originals(self) -> list[nn.Parameter]:
        """What stood in their places before."""
        return [own.original for own in self._own]

    def paths(self, *, but: nn.Module | None = None) -> list[str]:
        """The modules that they stand in, tied ones included, without `but`."""
        return list(dict.fromkeys(place.path for own in self._own for place in own.places if place.module is not but))

    def put_in(self) -> None:
        """Let the network compute with them."""
        for own in self._own:
            for place in own.places:
                place.put(own.copy)

    def take_out(self) -> None:
        """Let the network compute with the base's own again."""
        for own in self._own:
            for place in own.places:
                place.put(own.original)

    def exchange(self, new: Callable[[nn.Parameter], nn.Parameter]) -> None:
        """Go by other tensors, which stand in the network in place of those known so far."""
        self._own = [_Own(new(own.copy), new(own.original), own.places) for own in self._own]

    @torch.no_grad()
    def load(self, weights: Mapping[str, Tensor]) -> None:
        """Take the values of `weights`, by the full name of any place.

        Raises:
            KeyError: One is missing.
            RuntimeError: One has another shape.
        """
        for own in self._own:
            names = [place.full_name for place in own.places]
            own.copy.copy_(weights[next((name for name in names if name in weights), names[0])])

    def state(self, *, but: nn.Module | None = None) -> dict[str, Tensor]:
        """Their values by the full names of all places, without those in the module `but`."""
        return {
            place.full_name: own.copy.detach() for own in self._own for place in own.places if place.module is not but
        }


def dtype_of(network: nn.Module) -> torch.dtype:
    """The precision of the weights that a network came with; its first one, which `network.dtype` is of, may be own."""
    return next(
        parameter.dtype
        for name, parameter in network.named_parameters()
        if parameter.is_floating_point() and not isinstance(parameter, OwnParameter) and "lora_" not in name
    )


def _places(network: nn.Module) -> Iterator[_Place]:
    for path, module in plain_modules(network):
        for name, parameter in module._parameters.items():
            if parameter is not None:
                yield _Place(path, module, name)


def _is_in(path: str, above: str) -> bool:
    return path == above or path.startswith(f"{above}.")


def _compute_in_precision_of_weights(module: nn.Module, dtype: torch.dtype) -> None:
    """Let a module of a network in half precision compute in float32 while its weights are."""
    if dtype != torch.float32 and _to_precision_of_weights not in module._forward_pre_hooks.values():
        module.register_forward_pre_hook(_to_precision_of_weights)
        module.register_forward_hook(partial(_back_to, dtype))


def _to_precision_of_weights(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    dtype = next(iter(module.parameters())).dtype
    return tuple(x.to(dtype) if isinstance(x, Tensor) and x.is_floating_point() else x for x in inputs)


def _back_to(dtype: torch.dtype, _module: nn.Module, _inputs: tuple[Any, ...], output: Tensor) -> Tensor:
    return output.to(dtype)


def forget_precision(network: nn.Module) -> None:
    """Let the modules of a copy that is in one precision now compute as they are."""
    for module in network.modules():
        for before_id, before in list(module._forward_pre_hooks.items()):
            if before is _to_precision_of_weights:
                del module._forward_pre_hooks[before_id]
        for after_id, after in list(module._forward_hooks.items()):
            if isinstance(after, partial) and after.func is _back_to:
                del module._forward_hooks[after_id]
