"""Who sits where on one resident base model: policy, reference, reward, value.

A role is a stack of adapters (or none) and perhaps a head on the same frozen weights. Nothing is merged, and two things
only are copies: what full fine-tuning, which moves the base itself, compares with; and a critic of which every weight
learns.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from peft import LoraConfig
from torch import Tensor, nn
from transformers import PreTrainedModel

from duiqi.errors import ModelError
from duiqi.models.adapter_files import SavedAdapter, mount
from duiqi.models.adapters import AdapterSpec, LoRASpec, Mounted, adapter_config, attach, attach_copy, keep_only
from duiqi.models.fingerprint import fingerprint, weights_digest
from duiqi.models.heads import ScalarHead
from duiqi.models.layout import Layout, find_layout, precision_of, trunk_of, unpacked, unslimmed
from duiqi.models.lean import gather_adapters, llama_shaped_layers, restore
from duiqi.models.output_head import check_head_splits
from duiqi.models.own_weights import dtype_of, forget_precision
from duiqi.models.pissa import begin_with_principal_directions
from duiqi.models.prefix import PrefixSpec, new_prefix, prefix_config
from duiqi.models.seats import Seat, apart_parameters
from duiqi.models.targets import module_of
from duiqi.models.vocabulary import num_rows

FUNCTIONAL_DROPOUTS = frozenset(
    {"dropout", "attention_dropout", "hidden_dropout", "activation_dropout", "attn_dropout"}
)
"""Names under which transformers' modules keep a dropout probability that they apply without an nn.Dropout."""


class Seating:
    """The base model, the roles on it, and which of them is active.

    Args:
        model: A causal language model; frozen here.
        name: The path or hub name it was loaded from, recorded with every adapter.
        layout: How batches are computed, where that cannot be tried: on a network of shapes without weights, which a
            plan is made on. It has no fingerprint.
    """

    def __init__(self, model: PreTrainedModel, *, name: str, layout: Layout | None = None) -> None:
        self.model = model
        self.name = name
        self.fingerprint = "" if layout else fingerprint(model)
        self._num_rows = num_rows(model)
        self._device: torch.device = next(model.parameters()).device
        self.heads: dict[str, ScalarHead] = {}
        model.requires_grad_(False)
        model.eval()
        if layout is None:
            check_head_splits(model)
        self.layout = layout or find_layout(model)
        """How batches are computed on this architecture."""
        self._seats: dict[str, Seat] = {}
        self._learning_copies: dict[str, PreTrainedModel] = {}
        self._below: dict[tuple[object, ...], Mounted] = {}
        """Adapters that stand below a role's own one, by their network and the files of the stack up to them."""
        self._active = Seat(model)

    @property
    def device(self) -> torch.device:
        return self._device

    @property
    def networks(self) -> list[PreTrainedModel]:
        """The base, and the copies that roles have of it."""
        everybody = (self.model, *(seat.network for seat in self._seats.values()))
        return list({id(network): network for network in everybody}.values())

    def moved(self, device: torch.device) -> None:
        """Say that somebody has put all weights on this device."""
        self._device = device

    @property
    def dtype(self) -> torch.dtype:
        """The precision of the base's weights, whatever a role has for itself."""
        return dtype_of(self.model)

    @property
    def precision(self) -> torch.dtype:
        """How exactly two ways to compute the same agree on this base."""
        return precision_of(self.model)

    @property
    def is_grown(self) -> bool:
        """Whether the vocabulary has more rows than the base came with."""
        return num_rows(self.model) > self._num_rows

    @property
    def hidden_size(self) -> int:
        return int(self.model.get_output_embeddings().weight.shape[1])

    def seat(self, role: str) -> Seat:
        """What `role` is made of; asserts that it was seated."""
        assert role in self._seats, f"role {role} has no seat"
        return self._seats[role]

    @property
    def roles(self) -> tuple[str, ...]:
        """Everybody seated, in order."""
        return tuple(self._seats)

    def has(self, role: str) -> bool:
        return role in self._seats

    def seat_new_adapter(self, role: str, spec: AdapterSpec, *, above: Sequence[SavedAdapter] = ()) -> None:
        """Give `role` a fresh adapter that trains, above others; its output is theirs until it has learned.

        Raises:
            ModelError: The spec names no module of this network, or one of the others does not fit it.
        """
        below = self._mount(self.model, role, above)
        with self._taken(Seat(self.model, below)):
            own = attach(self.model, role, adapter_config(spec, self.model), trainable=True)
            if isinstance(spec, LoRASpec) and spec.pissa:
                begin_with_principal_directions(self.model, own)
        self._seat(role, Seat(self.model, (*below, own)))

    def seat_new_prefix(
        self, role: str, spec: PrefixSpec, *, opening: Sequence[int], above: Sequence[SavedAdapter] = ()
    ) -> None:
        """Give `role` a fresh prefix that trains, above adapters. It begins as what they make of the tokens `opening`.

        Raises:
            ModelError: The layers of this network cannot have one, an adapter does not fit it, or it has a prefix.
        """
        if any(saved.prefix is not None for saved in above):
            raise ModelError(
                "it reads behind a learned prefix already, which a second one would replace",
                where="finetuning_type: p_tuning",
                remedy="remove create_new_adapter to train that prefix on, or train a low-rank adapter above it",
            )
        below = self._mount(self.model, role, above)
        with self._taken(Seat(self.model, below)):
            prefix = new_prefix(trunk_of(self.model), self.model, spec, opening=opening)
        self._seat(role, Seat(self.model, (*below, Mounted(role, prefix_config(prefix), prefix=prefix))))

    def seat_saved_adapter(
        self,
        role: str,
        saved: SavedAdapter,
        *,
        trainable: bool,
        above: Sequence[SavedAdapter] = (),
        beside: str | None = None,
    ) -> None:
        """Give `role` a copy of an adapter on disk, on the base or on the network of the role `beside`.

        Args:
            above: The adapters that it was trained on, the lowest first; they stay as they are.

        Raises:
            ModelError: One does not fit the network.
        """
        network = self.seat(beside).network if beside else self.model
        below = self._mount(network, role, above)
        with self._taken(Seat(network, below)):
            own = mount(network, role, saved, trainable=trainable)
        self._seat(role, Seat(network, (*below, own)))

    def _mount(self, network: PreTrainedModel, role: str, adapters: Sequence[SavedAdapter]) -> tuple[Mounted, ...]:
        """Adapters one above the other that do not learn; one that another role has below its own is shared."""
        stack: tuple[Mounted, ...] = ()
        for index, saved in enumerate(adapters):
            key = (id(network), *(str(each.path.resolve()) for each in adapters[: index + 1]))
            if key not in self._below:
                with self._taken(Seat(network, stack)):
                    self._below[key] = mount(network, f"{role}_below_{index}", saved, trainable=False)
            stack = (*stack, self._below[key])
        return stack

    def seat_copy(self, role: str, of: str, *, trainable: bool) -> None:
        """Give `role` what role `of` is now: its own copy of the adapter, or the same bare network."""
        source = self.seat(of)
        if source.own is None:
            self._seats[role] = source
            return
        with self._taken(Seat(source.network, source.below)):
            own = attach_copy(source.network, role, source.own, trainable=trainable)
        self._seat(role, replace(source, stack=(*source.below, own)))

    def seat_bare(self, role: str) -> None:
        """Let `role` be the base as it is, without an adapter."""
        self._seats[role] = Seat(self.model)

    def share_seat(self, role: str, of: str) -> None:
        """Let `role` be the same network and adapter as role `of`, now and later."""
        self._seats[role] = self.seat(of)

    def seat_full(self, role: str) -> None:
        """Let `role` be the base itself, every weight of it trainable."""
        self.model.requires_grad_(True)
        self.layout = unslimmed(self.layout, self.model)
        self._seats[role] = Seat(self.model)

    def seat_frozen_copy(self, role: str) -> None:
        """Let `role` be a frozen copy of the whole base as it is now; only full fine-tuning needs that."""
        frozen = copy.deepcopy(self.model).requires_grad_(False).eval()
        self._seats[role] = Seat(frozen)

    def seat_learning_copy(self, role: str, of: str) -> None:
        """Let `role` be a copy of what role `of` is now, in float32, every weight of its trunk trainable.

        The adapter of `of` is heard in it and stays as it is. Other adapters are left out of the copy, and so is the
        output head: logits of `role` cannot be asked for.
        """
        source = self.seat(of)
        with self._taken(source):
            network = copy.deepcopy(source.network).float().eval()
        restore(llama_shaped_layers(network))
        forget_precision(network)
        keep_only(network, source.low_rank_names)
        network.set_output_embeddings(None)
        network.requires_grad_(False)
        for name, parameter in trunk_of(network).named_parameters():
            parameter.requires_grad_("lora_" not in name)
        self._learning_copies[role] = network
        self._seats[role] = Seat(network, tuple(mounted.in_copy() for mounted in source.stack))

    def add_head(self, role: str, weight: Tensor | None = None, *, trainable: bool = True) -> ScalarHead:
        """Put a head of one output on `role`: with `weight` (1 x H), or zero.

        Raises:
            ModelError: The weight is of another size.
        """
        head = ScalarHead(self.hidden_size, device=self.device)
        if weight is not None and weight.shape != head.weight.shape:
            shapes = f"{tuple(weight.shape)}, expected {tuple(head.weight.shape)}"
            raise ModelError(f"the head of the {role} has shape {shapes}", remedy="give the base it was trained on")
        with torch.no_grad():
            head.reset_to_zero() if weight is None else head.weight.copy_(weight)
        head.requires_grad_(trainable)
        self.heads[role] = head
        return head

    def rest_on(self, role: str) -> None:
        """Let `role` be the active one outside every context: what a recomputation in the backward pass will see."""
        self._take(self.seat(role))

    def _seat(self, role: str, seat: Seat) -> None:
        """Seat a role on adapters that were attached just now."""
        self._seats[role] = seat
        if seat.prefix is not None:
            self.layout = unpacked(self.layout, self.model, "a learned prefix")
        if self.layout.is_lean:
            gather_adapters(llama_shaped_layers(self.model))

    def _take(self, seat: Seat) -> None:
        if seat is not self._active:
            self._active.leave()
            seat.take()
            self._active = seat

    @contextmanager
    def _taken(self, seat: Seat) -> Iterator[None]:
        before = self._active
        self._take(seat)
        try:
            yield
        finally:
            self._take(before)

    @contextmanager
    def role(self, name: str) -> Iterator[None]:
        """Within this context the network is `name`: its weights, its adapters."""
        with self._taken(self.seat(name)):
            yield

    def trainable_parameters(self) -> dict[str, nn.Parameter]:
        """Every parameter that learns, by name; those of a copy begin with its role, those of heads with `heads.`."""
        apart = apart_parameters(self._seats.values())
        is_apart = {id(parameter) for parameter in apart.values()}
        found = {name: p for name, p in self.model.named_parameters() if id(p) not in is_apart}
        found.update(apart)
        for role, network in self._learning_copies.items():
            found.update({f"{role}.{name}": p for name, p in network.named_parameters()})
        for role, head in self.heads.items():
            found.update({f"heads.{role}.{name}": p for name, p in head.named_parameters()})
        return {name: parameter for name, parameter in found.items() if parameter.requires_grad}

    def trained_modules(self) -> list[tuple[str, nn.Parameter]]:
        """What learns, each parameter with the path of the module of the base that it changes; heads by their roles."""
        return [(module_of(name), parameter) for name, parameter in self.trainable_parameters().items()]

    @property
    def _learning_networks(self) -> tuple[PreTrainedModel, ...]:
        """The base, of which adapters learn or all weights, and its copies that learn."""
        return (self.model, *self._learning_copies.values())

    def role_parameters(self, role: str) -> dict[str, nn.Parameter]:
        """The parameters of one role's adapters, or of the whole network where it has none."""
        seat = self.seat(role)
        return seat.parameters() if seat.stack else dict(seat.network.named_parameters())

    def role_fingerprint(self, role: str) -> str:
        """What a role's outputs depend on, in hex digits: the weights of its network and of its adapters."""
        seat = self.seat(role)
        with self.role(role):
            base = {name: p for name, p in seat.network.named_parameters() if "lora_" not in name}
            plain = {name.replace(".base_layer.", "."): p for name, p in base.items()}
            digests = [weights_digest(plain)]
        for mounted in seat.stack:
            own = mounted.parameters(seat.network)
            digests.append(weights_digest({name.replace(f".{mounted.name}.", "."): p for name, p in own.items()}))
            if isinstance(mounted.config, LoraConfig):
                config = mounted.config
                digests.append(f"{config.lora_alpha}{config.use_rslora}{config.use_dora}")
        return "-".join(digests)

    def prepare_training(self, *, gradient_checkpointing: bool) -> None:
        """Put what learns into training mode, dropout on; checkpointing computes activations again backwards."""
        if gradient_checkpointing:
            self.enable_checkpointing()
        for network in self._learning_networks:
            network.train()

    def enable_checkpointing(self) -> None:
        """From now on activations are computed again in the backward pass, whenever a network is in training mode.

        Raises:
            ModelError: Somebody reads behind a prefix: a layer that is computed again is not given its cache.
        """
        if any(seat.prefix is not None for seat in self._seats.values()):
            raise ModelError(
                "layers that are computed again would not see the learned prefix",
                where="gradient_checkpointing",
                remedy="remove it, or lower tokens_per_micro_batch instead",
            )
        for network in self._learning_networks:
            network.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})

    @contextmanager
    def training_mode(self) -> Iterator[None]:
        """Within this context what learns is in training mode, which checkpointing needs."""
        for network in self._learning_networks:
            network.train()
        try:
            yield
        finally:
            for network in self._learning_networks:
                network.eval()

    def disable_dropout(self) -> None:
        """Set every dropout to zero, so that training and scoring see the same network (PPO, DPO).

        Call it when everybody is seated: adapters bring dropouts of their own.
        """
        for module in (module for network in self._learning_networks for module in network.modules()):
            if isinstance(module, nn.Dropout):
                module.p = 0.0
            for name in FUNCTIONAL_DROPOUTS & vars(module).keys():
                if isinstance(getattr(module, name), float):
                    setattr(module, name, 0.0)
