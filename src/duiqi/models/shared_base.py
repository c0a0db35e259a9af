"""One resident base model and the roles that share it: policy, reference, reward, value.

A role is an adapter (or none) and perhaps a head on the same frozen weights. Nothing is merged, and two things only are
copies: what full fine-tuning, which moves the base itself, compares with; and a critic of which every weight learns.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import reduce
from itertools import accumulate
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import Cache, DynamicCache, PreTrainedModel

from duiqi.algorithms.log_probs import OutputHead
from duiqi.models.adapters import (
    LoRASpec,
    SavedAdapter,
    adapter_parameters,
    attach,
    copy_weights,
    hear,
    heard,
    keep_only,
    lora_config,
    mount,
)
from duiqi.models.fingerprint import fingerprint, weights_digest
from duiqi.models.heads import ScalarHead
from duiqi.models.layout import find_layout, trunk_of, unslimmed
from duiqi.models.lean import gather_adapters, llama_shaped_layers, restore, tells_apart
from duiqi.models.lean_decoding import LeanDecoder
from duiqi.models.output_head import check_head_splits, output_head_of
from duiqi.models.reading import Reading
from duiqi.models.tree_attention import TreeMask, Voice
from duiqi.packing.batch import PackedBatch

FUNCTIONAL_DROPOUTS = frozenset(
    {"dropout", "attention_dropout", "hidden_dropout", "activation_dropout", "attn_dropout"}
)
"""Names under which transformers' modules keep a dropout probability that they apply without an nn.Dropout."""


ROUND_LENGTH = 64
"""Where every new length costs, packed rows are filled up to a multiple of this many tokens, long ones to an eighth of
a power of two: so there are few lengths, and an eighth of filling at most."""


@dataclass(frozen=True)
class Seat:
    """What a role is made of: the network it runs on, and the adapter heard there (None: the bare network)."""

    network: PreTrainedModel
    adapter: str | None = None
    config: Any = None
    """PEFT's configuration of the adapter, kept for saving."""


@dataclass
class _Prepared:
    """Layers made ready for decoding, and what they were made from."""

    adapter_state: tuple[object, ...]
    decoder: LeanDecoder
    is_checked: bool = False


class SharedBase:
    """The base model with its roles.

    Args:
        model: A causal language model; frozen here.
        name: The path or hub name it was loaded from, recorded with every adapter.
    """

    def __init__(self, model: PreTrainedModel, *, name: str) -> None:
        self.model = model
        self.name = name
        self.fingerprint = fingerprint(model)
        self._device: torch.device = next(model.parameters()).device
        self.heads: dict[str, ScalarHead] = {}
        model.requires_grad_(False)
        model.eval()
        check_head_splits(model)
        self.layout = find_layout(model)
        """How batches are computed on this architecture."""
        self._seats: dict[str, Seat] = {}
        self._learning_copies: dict[str, PreTrainedModel] = {}
        self._active = Seat(model)
        self._prepared: _Prepared | None = None

    # -- roles ---------------------------------------------------------------------------------------------------------

    @property
    def device(self) -> torch.device:
        return self._device

    @property
    def hidden_size(self) -> int:
        return int(self.model.get_output_embeddings().weight.shape[1])

    def seat(self, role: str) -> Seat:
        """What `role` is made of; asserts that it was seated."""
        assert role in self._seats, f"role {role} has no seat"
        return self._seats[role]

    def has(self, role: str) -> bool:
        return role in self._seats

    def seat_new_adapter(self, role: str, spec: LoRASpec) -> None:
        """Give `role` a fresh adapter that trains; its output is the base's until it has learned."""
        config = lora_config(spec, self.model)
        attach(self.model, role, config, trainable=True)
        self._seats[role] = Seat(self.model, role, config)
        self._settle()

    def seat_saved_adapter(self, role: str, saved: SavedAdapter, *, trainable: bool, beside: str | None = None) -> None:
        """Give `role` a copy of an adapter on disk, on the base or on the network of the role `beside`."""
        network = self.seat(beside).network if beside else self.model
        mount(network, role, saved, trainable=trainable)
        self._seats[role] = Seat(network, role, saved.config)
        self._settle()

    def seat_copy(self, role: str, of: str, *, trainable: bool) -> None:
        """Give `role` what role `of` is now: its own copy of the adapter, or the same bare network."""
        source = self.seat(of)
        if source.adapter is None:
            self._seats[role] = source
            return
        attach(self.model, role, source.config, trainable=trainable)
        copy_weights(self.model, source.adapter, role)
        self._seats[role] = replace(source, adapter=role)
        self._settle()

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
        network = copy.deepcopy(source.network).float().eval()
        restore(llama_shaped_layers(network))
        keep_only(network, source.adapter)
        network.set_output_embeddings(None)
        network.requires_grad_(False)
        for name, parameter in trunk_of(network).named_parameters():
            parameter.requires_grad_("lora_" not in name)
        self._learning_copies[role] = network
        self._seats[role] = replace(source, network=network)

    def add_head(self, role: str, weight: Tensor | None = None, *, trainable: bool = True) -> ScalarHead:
        """Put a head of one output on `role`: with `weight` (1 x H), or zero."""
        head = ScalarHead(self.hidden_size, device=self.device)
        with torch.no_grad():
            head.reset_to_zero() if weight is None else head.weight.copy_(weight)
        head.requires_grad_(trainable)
        self.heads[role] = head
        return head

    def rest_on(self, role: str) -> None:
        """Let `role` be the active one outside every context: what a recomputation in the backward pass will see."""
        self._active = self.seat(role)
        self._settle()

    def _settle(self) -> None:
        """Attaching an adapter makes PEFT listen to it; listen to the active role again."""
        if self.layout.is_lean:
            gather_adapters(llama_shaped_layers(self.model))
        hear(self._active.network, self._active.adapter)

    @contextmanager
    def role(self, name: str) -> Iterator[None]:
        """Within this context the network is `name`: its weights, its adapter."""
        seat, before = self.seat(name), self._active
        self._active = seat
        try:
            with heard(seat.network, seat.adapter):
                yield
        finally:
            self._active = before

    @contextmanager
    def acting(self, name: str) -> Iterator[None]:
        """`role(name)` for inference: dropout off, no gradient."""
        network = self.seat(name).network
        was_training = network.training
        network.eval()
        if self._prepared is not None:
            self._prepared.is_checked = False
        try:
            with torch.no_grad(), self.role(name):
                yield
        finally:
            network.train(was_training)

    def trainable_parameters(self) -> dict[str, nn.Parameter]:
        """Every parameter that learns, by name; those of a copy begin with its role, those of heads with `heads.`."""
        found = {name: p for name, p in self.model.named_parameters() if p.requires_grad}
        for role, network in self._learning_copies.items():
            found.update({f"{role}.{name}": p for name, p in network.named_parameters() if p.requires_grad})
        for role, head in self.heads.items():
            found.update({f"heads.{role}.{name}": p for name, p in head.named_parameters() if p.requires_grad})
        return found

    @property
    def _learning_networks(self) -> tuple[PreTrainedModel, ...]:
        """The base, of which adapters learn or all weights, and its copies that learn."""
        return (self.model, *self._learning_copies.values())

    def role_parameters(self, role: str) -> dict[str, nn.Parameter]:
        """The parameters of one role's adapter, or of the whole network where it has none."""
        seat = self.seat(role)
        if seat.adapter is None:
            return dict(seat.network.named_parameters())
        return adapter_parameters(seat.network, seat.adapter)

    def role_fingerprint(self, role: str) -> str:
        """What a role's outputs depend on, in hex digits: the weights of its network and of its adapter."""
        seat = self.seat(role)
        own = {} if seat.adapter is None else adapter_parameters(seat.network, seat.adapter)
        base = {name: p for name, p in seat.network.named_parameters() if "lora_" not in name}
        adapter = {name.replace(f".{seat.adapter}.", "."): p for name, p in own.items()}
        plain = {name.replace(".base_layer.", "."): p for name, p in base.items()}
        shape = "" if seat.config is None else f"{seat.config.lora_alpha}{seat.config.use_rslora}{seat.config.use_dora}"
        return f"{weights_digest(plain)}-{weights_digest(adapter)}-{shape}"

    def prepare_training(self, *, gradient_checkpointing: bool) -> None:
        """Put what learns into training mode, dropout on; checkpointing computes activations again backwards."""
        if gradient_checkpointing:
            self.enable_checkpointing()
        for network in self._learning_networks:
            network.train()

    def enable_checkpointing(self) -> None:
        """From now on activations are computed again in the backward pass, whenever a network is in training mode."""
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

    # -- computing with the active role --------------------------------------------------------------------------------

    def new_cache(self) -> DynamicCache:
        """An empty key-value cache of the right kind for this architecture."""
        return DynamicCache(config=self.model.config)

    def trunk(
        self,
        input_ids: Int[Tensor, "B T"],
        *,
        attention_mask: Tensor | None = None,
        position_ids: Int[Tensor, "B T"] | None = None,
        past_key_values: Cache | None = None,
        use_cache: bool = False,
    ) -> tuple[Float[Tensor, "B T H"], Cache | None]:
        """Last hidden states (after the final norm) of the active role, and the cache if asked for."""
        one_each = use_cache and input_ids.shape[1] == 1
        if (
            one_each
            and position_ids is not None
            and past_key_values is not None
            and self._decodes_lean(past_key_values)
        ):
            return self._decoder().step(input_ids, position_ids, past_key_values, attention_mask), past_key_values
        output = trunk_of(self._active.network)(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            use_cache=use_cache,
        )
        return output.last_hidden_state, getattr(output, "past_key_values", None)  # some networks have no cache

    def _decodes_lean(self, cache: Cache) -> bool:
        """Whether one token per row can take the short way: lean layers, no gradient, nothing that slides."""
        if not self.layout.is_lean or torch.is_grad_enabled() or self._active.network is not self.model:
            return False
        spec = self._active.config
        is_plain = spec is None or not (spec.use_dora or spec.lora_bias)
        return is_plain and not any(layer.is_sliding for layer in cache.layers)

    def _decoder(self) -> LeanDecoder:
        """The layers prepared for the active role; whether they still are is asked once per `acting`."""
        if self._prepared is None or not self._prepared.is_checked:
            state = self._adapter_state()
            if self._prepared is None or self._prepared.adapter_state != state:
                self._prepared = _Prepared(state, LeanDecoder.of(self.model, self._active.adapter))
            self._prepared.is_checked = True
        return self._prepared.decoder

    def _adapter_state(self) -> tuple[object, ...]:
        """Changes with every update of the active adapter. (torch's fused AdamW does not count tensor versions.)"""
        adapter = self._active.adapter
        if adapter is None:
            return (None,)
        parameters: list[Tensor] = list(adapter_parameters(self.model, adapter).values())
        return (adapter, *torch.stack(torch._foreach_norm(parameters)).tolist())

    def logits(self, hidden: Float[Tensor, "N H"]) -> Float[Tensor, "N V"]:
        """Float32 logits of the active role's head."""
        return self.output_head()(hidden)

    def values(self, hidden: Float[Tensor, "*N H"]) -> Float[Tensor, "*N"] | None:
        """The value head's estimates, or None where the active role is not the critic."""
        if self._active is not self._seats.get("value"):
            return None
        estimates: Tensor = self.heads["value"](hidden)
        return estimates

    @property
    def _prepares_every_shape(self) -> bool:
        """In bfloat16 on a CPU, oneDNN compiles and keeps a kernel for every new size of a matrix product."""
        return self.device.type == "cpu" and self._active.network.dtype == torch.bfloat16

    def output_head(self) -> OutputHead:
        """What turns the active role's hidden states into logits."""
        return output_head_of(self._active.network)

    def read(self, batch: PackedBatch) -> Reading:
        """One pass of the active role over a batch: packed where the architecture allows it, else padded rows."""
        if self.layout.is_packed:
            row = self._filled(batch)
            return Reading(self._read_row(row, self._mask(row)), batch.before, batch.last)
        input_ids, mask = batch.padded()
        hidden, _ = self.trunk(input_ids, attention_mask=None if bool(mask.all()) else mask.long())
        width = input_ids.shape[1]
        last = torch.arange(len(batch), device=self.device) * width + mask.sum(dim=1) - 1
        before = batch.rows * width + batch.positions[batch.before]
        return Reading(hidden.flatten(0, 1), before, last)

    def read_each(self, batches: Mapping[str, PackedBatch]) -> dict[str, Reading]:
        """A batch for each role: all in one pass where the layers can tell roles apart, else in a pass each.

        One pass multiplies every frozen matrix once, over the tokens of all roles, and adds each role's adapter to its
        own tokens. The result is the same.
        """
        together = self._together(batches) if len(batches) > 1 else None
        if together is None:
            readings = {}
            for role, batch in batches.items():
                with self.role(role):
                    readings[role] = self.read(batch)
            return readings
        row, mask = together
        with self.role(next(iter(batches))):
            hidden = self._read_row(row, mask)
        spans = [voice.tokens for voice in mask.voices]
        return {
            role: Reading(hidden[span], batch.before, batch.last)
            for (role, batch), span in zip(batches.items(), spans, strict=True)
        }

    def _together(self, batches: Mapping[str, PackedBatch]) -> tuple[PackedBatch, TreeMask] | None:
        """The batches in one row, if these roles differ in nothing but the adapters of lean layers."""
        seats = [self.seat(role) for role in batches]
        if not self.layout.is_lean or any(seat.network is not self.model for seat in seats):
            return None
        filled = [self._filled(batch) for batch in batches.values()]
        row = reduce(PackedBatch.followed_by, filled)
        mask = self._mask(row)
        stops = list(accumulate(batch.num_tokens for batch in filled))
        starts = [0, *stops]
        mask.voices = tuple(
            Voice(seat.adapter, slice(start, stop)) for seat, start, stop in zip(seats, starts, stops, strict=False)
        )
        adapters = {seat.adapter for seat in seats if seat.adapter is not None}
        return (row, mask) if tells_apart(self.model, adapters, mask) else None

    def _filled(self, batch: PackedBatch) -> PackedBatch:
        """The batch with filling behind it where every new length costs."""
        if not self._prepares_every_shape:
            return batch
        return batch.filled(max(ROUND_LENGTH, 2 ** (batch.num_tokens.bit_length() - 4)))

    def _mask(self, row: PackedBatch) -> TreeMask:
        return TreeMask.carrying(row.tree, device=self.device, dtype=self._active.network.dtype)

    def _read_row(self, row: PackedBatch, mask: TreeMask) -> Float[Tensor, "T H"]:
        """Last hidden states of a packed row."""
        ids, positions = row.input_ids.unsqueeze(0), row.positions.unsqueeze(0)
        hidden, _ = self.trunk(ids, attention_mask=mask, position_ids=positions)
        return hidden[0]
