"""PiSSA (Meng et al. 2024): an adapter that begins as the largest singular directions of the weight it is on.

The paper takes them out of the frozen weight, which here other roles share. So they are taken out in the adapter: it
has twice the rank, one half that learns, (A, B), and one that stays, (A0, -B0) with B0 A0 what the first began as. The
base is as it was, the adapter changes nothing before it has learned, and it opens as plain LoRA anywhere.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from duiqi.errors import ModelError
from duiqi.models.adapters import Mounted, tuner_layers

POWER_ITERATIONS, MORE_DIRECTIONS = 16, 8
"""Of the randomised SVD (Halko et al. 2011): so the leading directions are exact to float32's last digits."""


@torch.no_grad()
def begin_with_principal_directions(network: nn.Module, mounted: Mounted) -> None:
    """Set both halves of a new adapter, and let the second learn nothing.

    Raises:
        ModelError: A weight has fewer directions than the adapter's half has ranks.
    """
    for layer in tuner_layers(network):
        if mounted.name in layer.lora_A:
            _begin(layer, mounted.name)


def _begin(layer: Any, name: str) -> None:
    down, up = layer.lora_A[name].weight, layer.lora_B[name].weight
    rank = len(down) // 2
    weight = layer.get_base_layer().weight.detach().float()
    if weight.is_meta:  # shapes alone, of a plan
        return
    weight = weight.t() if layer.fan_in_fan_out else weight
    if rank > min(weight.shape):
        raise ModelError(
            f"a weight of {len(weight)} x {weight.shape[1]} has no {rank} singular directions",
            where="pissa_init",
            remedy=f"set lora_rank: {min(weight.shape)} or less, or lora_target without this layer",
        )
    directions = min(rank + MORE_DIRECTIONS, *weight.shape)
    left, values, right = torch.svd_lowrank(weight, q=directions, niter=POWER_ITERATIONS)
    root = (values[:rank] / layer.scaling[name]).sqrt()
    first_down, first_up = (right[:, :rank] * root).t(), left[:, :rank] * root
    down.copy_(torch.cat([first_down, first_down]))
    up.copy_(torch.cat([first_up, -first_up], dim=1))
    down.register_hook(lambda gradient: _first_half(gradient, rows=rank))
    up.register_hook(lambda gradient: _first_half(gradient, columns=rank))


def _first_half(gradient: Tensor, *, rows: int | None = None, columns: int | None = None) -> Tensor:
    """The gradient of the half that learns; nothing for the other."""
    kept = torch.zeros_like(gradient)
    kept[:rows, :columns] = gradient[:rows, :columns]
    return kept
