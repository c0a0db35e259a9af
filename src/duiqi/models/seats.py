"""What a role on the shared base is made of: a network, and the adapters heard together on it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from peft import LoraConfig
from torch import nn
from transformers import PreTrainedModel

from duiqi.models.adapter_files import SavedAdapter, mount
from duiqi.models.adapters import Mounted, hear
from duiqi.models.prefix import Prefix


@dataclass(frozen=True)
class Seat:
    """A network with adapters one above the other; none: the network as it is."""

    network: PreTrainedModel
    stack: tuple[Mounted, ...] = ()
    """Heard together; the role's own one is the last, those it was trained on stand below it."""

    @property
    def own(self) -> Mounted | None:
        """The role's own adapter."""
        return self.stack[-1] if self.stack else None

    @property
    def below(self) -> tuple[Mounted, ...]:
        """The adapters that its own one was trained on."""
        return self.stack[:-1]

    @property
    def low_rank_names(self) -> tuple[str, ...]:
        """The low-rank adapters, as PEFT's modules know them."""
        return tuple(mounted.name for mounted in self.stack if mounted.has_lora)

    @property
    def prefix(self) -> Prefix | None:
        """The prefix behind which it reads: the uppermost one."""
        return next((mounted.prefix for mounted in reversed(self.stack) if mounted.prefix is not None), None)

    @property
    def has_own_weights(self) -> bool:
        """Whether some of the network's weights are replaced while it is heard."""
        return any(mounted.own is not None for mounted in self.stack)

    @property
    def is_two_matrices(self) -> bool:
        """Whether its low-rank adapters are nothing but two matrices for each layer."""
        configs = [mounted.config for mounted in self.stack if isinstance(mounted.config, LoraConfig)]
        return not any(config.use_dora or config.lora_bias for config in configs)

    def take(self) -> None:
        """Let its adapters act in the network."""
        hear(self.network, self.low_rank_names)
        for mounted in self.stack:
            if mounted.own is not None:
                mounted.own.put_in()

    def leave(self) -> None:
        """Let the network be what it was; the low-rank adapters act until another seat is taken."""
        for mounted in reversed(self.stack):
            if mounted.own is not None:
                mounted.own.take_out()

    def parameters(self) -> dict[str, nn.Parameter]:
        """Those of all its adapters, by name."""
        return {name: p for mounted in self.stack for name, p in mounted.parameters(self.network).items()}


def take_seat(network: PreTrainedModel, role: str, adapters: Sequence[SavedAdapter]) -> Seat:
    """A seat for the one role of a network that nobody shares, its adapters (the lowest first) acting from now on.

    Raises:
        ModelError: One does not fit the network.
    """
    seat = Seat(network)
    for index, saved in enumerate(adapters):
        seat.leave()
        seat.take()
        seat = Seat(network, (*seat.stack, mount(network, f"{role}_{index}", saved, trainable=False)))
    seat.take()
    return seat


def apart_parameters(seats: Iterable[Seat]) -> dict[str, nn.Parameter]:
    """What these seats have outside their networks' modules: own weights and prefixes."""
    return {
        name: parameter
        for seat in seats
        for mounted in seat.stack
        for name, parameter in mounted.parameters(seat.network).items()
        if name.startswith(("own.", "prefix."))
    }
