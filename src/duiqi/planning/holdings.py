"""What a run holds from its beginning to its end: weights, by the role they are for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from torch import Tensor, nn

from duiqi.models.lean import GATED, PROJECTIONS, llama_shaped_layers
from duiqi.models.own_weights import OwnWeights
from duiqi.models.shared_base import SharedBase
from duiqi.planning.sketch import Sketch


@dataclass(frozen=True)
class Part:
    """Something that takes memory."""

    owner: str
    """A role, or what else it is for: base, update, libraries."""
    what: str
    num_bytes: int


def weights_held(sketch: Sketch) -> list[Part]:
    """Every weight and buffer once, by role: adapters and heads first, then the networks that they are on."""
    return [Part(owner, what, size_of(tensors)) for owner, what, tensors in _apart(sketch) if tensors]


def size_of(tensors: Iterable[Tensor]) -> int:
    """Bytes of tensors, shared ones counted each time."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _apart(sketch: Sketch) -> Iterator[tuple[str, str, list[Tensor]]]:
    base, taken = sketch.base, set[int]()

    def take(tensors: Iterable[Tensor]) -> list[Tensor]:
        found = {id(tensor): tensor for tensor in tensors if id(tensor) not in taken}
        taken.update(found)
        return list(found.values())

    networks: list[tuple[str, str, nn.Module]] = []
    for role in base.roles:
        seat = base.seat(role)
        if seat.stack:
            yield role, "adapter", take(seat.parameters().values())
        if role in base.heads:
            yield role, "head", take(base.heads[role].parameters())
        if seat.network is not base.model:
            learns = any(p.requires_grad for p in seat.network.parameters())
            networks.append((role, "a copy that learns" if learns else "a frozen copy", seat.network))
    networks += [(name, "a network of its own", network) for name, network in sketch.standalone]
    dtype = str(base.dtype).removeprefix("torch.")
    for owner, what, network in [("base", f"weights in {dtype}", base.model), *networks]:
        replaced = (p for each in _own_weights(base) for p in each.originals) if network is base.model else ()
        yield owner, what, take((*network.parameters(), *network.buffers(), *replaced))


def _own_weights(base: SharedBase) -> Iterator[OwnWeights]:
    """The weights that stand in the base's places while a role is heard."""
    for role in base.roles:
        yield from (mounted.own for mounted in base.seat(role).stack if mounted.own is not None)


def laid_side_by_side(sketch: Sketch) -> int:
    """Bytes of the matrices that `models.lean.slim` lays side by side, which makes new ones of them."""
    if not sketch.base.layout.is_packed:
        return 0
    names = (*PROJECTIONS, *GATED)
    layers = llama_shaped_layers(sketch.base.model)
    return sum(
        size_of(p for key, p in layer.get_submodule(name).named_parameters() if "lora_" not in key)
        for layer in layers
        for name in names
    )
