"""Adapters folded into their network, which is plain afterwards: W + s B A, and own weights in their places."""

from __future__ import annotations

from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers import PreTrainedModel

from duiqi.models.own_weights import dtype_of, forget_precision
from duiqi.models.seats import Seat


@torch.no_grad()
def merge(seat: Seat) -> PreTrainedModel:
    """Fold everything that a seat hears into its network, in place; no adapter is left on it.

    Sums are taken in float32 and rounded once, to the precision that each weight has. Asserts that it has no prefix.
    """
    assert seat.prefix is None, "a prefix is no weight"
    network = seat.network
    dtype = dtype_of(network)
    seat.take()
    for mounted in seat.stack:
        for parameter in mounted.own.parameters.values() if mounted.own is not None else ():
            parameter.data = parameter.data.to(dtype)
    forget_precision(network)
    _unwrap(network, seat.low_rank_names)
    network.peft_config = {}
    return network.requires_grad_(False)


def _unwrap(module: nn.Module, adapters: tuple[str, ...]) -> None:
    """Put merged layers in the places of those with adapters, in a module and all that it holds."""
    for name, child in list(module.named_children()):
        if isinstance(child, BaseTunerLayer):
            setattr(module, name, _merged(child, adapters))
        else:
            _unwrap(child, adapters)


def _merged(layer: Any, adapters: tuple[str, ...]) -> nn.Module:
    base: Any = layer.get_base_layer()
    dtype = base.weight.dtype
    base.weight.data = base.weight.data.float()
    layer.merge(adapter_names=[name for name in adapters if name in layer.lora_A])
    base.weight.data = base.weight.data.to(dtype)
    merged: nn.Module = base
    return merged
