"""One resident base model, computing as the role that is active: batches, single tokens, logits, values."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import reduce
from itertools import accumulate

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import Cache, DynamicCache, PreTrainedModel

from duiqi.algorithms.log_probs import OutputHead
from duiqi.models.joined import is_of_frozen_base
from duiqi.models.layout import Layout, trunk_of
from duiqi.models.lean import tells_apart
from duiqi.models.lean_decoding import LeanDecoder, is_head_worth_copying
from duiqi.models.output_head import output_head_of
from duiqi.models.own_weights import dtype_of
from duiqi.models.packed import PackedLinear
from duiqi.models.prefix import call_behind
from duiqi.models.seating import Seating
from duiqi.models.tree_attention import TreeMask, Voice
from duiqi.packing.batch import PackedBatch
from duiqi.packing.runs import Runs

ROUND_LENGTH = 64
"""Where every new length costs, packed rows are filled up to a multiple of this many tokens, long ones to an eighth of
a power of two: so there are few lengths, and an eighth of filling at most."""
ASKED_SHARE = 0.9
"""Where more tokens than this share of a row are asked for their last states, the last layer computes all of them."""


@dataclass
class _Prepared:
    """Layers made ready for decoding, and what they were made from."""

    adapter_state: tuple[object, ...]
    decoder: LeanDecoder
    is_checked: bool = False


@dataclass(frozen=True)
class _HeadCopy:
    """The base's frozen output head packed for decoding, and what it was made from."""

    head: OutputHead
    state: tuple[object, ...]
    """Of the head at that time."""
    packed: PackedLinear | None
    """None where it is too large, or torch packs nothing."""


class SharedBase(Seating):
    """The base model with its roles, and what they compute.

    Args:
        model: A causal language model; frozen here.
        name: The path or hub name it was loaded from, recorded with every adapter.
        layout: How batches are computed, where that cannot be tried: on a network of shapes without weights, which a
            plan is made on. It has no fingerprint.
    """

    def __init__(self, model: PreTrainedModel, *, name: str, layout: Layout | None = None) -> None:
        super().__init__(model, name=name, layout=layout)
        self._prepared: _Prepared | None = None
        self._head_copy: _HeadCopy | None = None

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
        if self._active.prefix is not None:
            cache = self.new_cache() if past_key_values is None else past_key_values
            behind = call_behind(
                self._active.prefix,
                trunk_of(self._active.network),
                input_ids,
                attention_mask=attention_mask,
                position_ids=position_ids,
                cache=cache,
            )
            return behind.last_hidden_state, cache if use_cache else None
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
        seat = self._active
        if not self.layout.is_lean or torch.is_grad_enabled() or seat.network is not self.model:
            return False
        one_precision = not seat.has_own_weights or self.dtype == torch.float32
        return seat.is_two_matrices and one_precision and not any(layer.is_sliding for layer in cache.layers)

    def _decoder(self) -> LeanDecoder:
        """The layers prepared for the active role; whether they still are is asked once per `acting`."""
        if self._prepared is None or not self._prepared.is_checked:
            state = self._adapter_state()
            if self._prepared is None or self._prepared.adapter_state != state:
                self._prepared = None  # or two copies would stand in memory at once
                self._prepared = _Prepared(state, LeanDecoder.of(self.model, self._active.low_rank_names))
            self._prepared.is_checked = True
        return self._prepared.decoder

    def _adapter_state(self) -> tuple[object, ...]:
        """Changes with every update of the active adapters. (torch's fused AdamW does not count tensor versions.)"""
        parameters: list[Tensor] = list(self._active.parameters().values())
        names = tuple(mounted.name for mounted in self._active.stack)
        return (names, *(torch.stack(torch._foreach_norm(parameters)).tolist() if parameters else ()))

    def logits(self, hidden: Float[Tensor, "N H"]) -> Float[Tensor, "N V"]:
        """Float32 logits of the active role's head, for few positions at a time."""
        head = self.output_head()
        packed = None if torch.is_grad_enabled() else self._packed(head)
        if packed is None:
            return head(hidden)
        return head.finished(packed.outputs(hidden.to(head.weight.dtype)))

    def _packed(self, head: OutputHead) -> PackedLinear | None:
        """The matrix and bias of a head packed as they are now, if they are the base's own and do not learn."""
        parts = [part for part in (head.weight, head.bias) if part is not None]
        is_frozen = all(isinstance(part, nn.Parameter) and is_of_frozen_base(part) for part in parts)
        if not is_frozen or self._active.network is not self.model:
            self._head_copy = None
            return None
        state = tuple((id(part), part.untyped_storage()._cdata, part._version) for part in parts)
        if self._head_copy is None or self._head_copy.state != state:
            self._head_copy = None  # or two copies would stand in memory at once
            packed = PackedLinear.of(head.weight, head.bias) if is_head_worth_copying(self.model) else None
            self._head_copy = _HeadCopy(head, state, packed)
        return self._head_copy.packed

    def values(self, hidden: Float[Tensor, "*N H"]) -> Float[Tensor, "*N"] | None:
        """The value head's estimates, or None where the active role is not the critic."""
        if self._active is not self._seats.get("value"):
            return None
        estimates: Tensor = self.heads["value"](hidden)
        return estimates

    @property
    def _prepares_every_shape(self) -> bool:
        """In bfloat16 on a CPU, oneDNN compiles and keeps a kernel for every new size of a matrix product."""
        return self.device.type == "cpu" and dtype_of(self._active.network) == torch.bfloat16

    def output_head(self) -> OutputHead:
        """What turns the active role's hidden states into logits."""
        return output_head_of(self._active.network)

    def read(self, batch: PackedBatch) -> Float[Tensor, "N H"]:
        """The states that predict the learned tokens, from one pass of the active role over a batch.

        Rows are packed where the architecture allows it, else padded.
        """
        if self.layout.is_packed:
            row = self._filled(batch)
            return self._read_row(row, self._mask(row, row.predicting), row.before)
        hidden, _ = self._read_padded(batch)
        return hidden[batch.rows, batch.positions[batch.before]]

    def read_ends(self, batch: PackedBatch) -> Float[Tensor, "B H"]:
        """The states at the end of every sequence, from one pass of the active role over a batch."""
        if self.layout.is_packed:
            row = self._filled(batch)
            return self._read_row(row, self._mask(row, row.ending), row.last)
        hidden, mask = self._read_padded(batch)
        return hidden[torch.arange(len(batch), device=self.device), mask.sum(dim=1) - 1]

    def read_each(self, batches: Mapping[str, PackedBatch]) -> dict[str, Tensor]:
        """`read` for each role: all in one pass where the layers can tell roles apart, else in a pass each.

        One pass multiplies every frozen matrix once, over the tokens of all roles, and adds each role's adapter to its
        own tokens. The result is the same.
        """
        together = self._together(batches) if len(batches) > 1 else None
        if together is None:
            found = {}
            for role, batch in batches.items():
                with self.role(role):
                    found[role] = self.read(batch)
            return found
        row, mask = together
        with self.role(next(iter(batches))):
            states = self._read_row(row, mask, row.before)
        return dict(zip(batches, states.split([len(batch.before) for batch in batches.values()]), strict=True))

    def _together(self, batches: Mapping[str, PackedBatch]) -> tuple[PackedBatch, TreeMask] | None:
        """The batches in one row, if these roles differ in nothing but the adapters of lean layers."""
        seats = [self.seat(role) for role in batches]
        if not self.layout.is_lean or any(seat.network is not self.model or seat.has_own_weights for seat in seats):
            return None
        filled = [self._filled(batch) for batch in batches.values()]
        row = reduce(PackedBatch.followed_by, filled)
        mask = self._mask(row, row.predicting)
        stops = list(accumulate(batch.num_tokens for batch in filled))
        starts = [0, *stops]
        mask.voices = tuple(
            Voice(seat.low_rank_names, slice(start, stop))
            for seat, start, stop in zip(seats, starts, stops, strict=False)
        )
        return (row, mask) if tells_apart(self.model, mask) else None

    def _filled(self, batch: PackedBatch) -> PackedBatch:
        """The batch with filling behind it where every new length costs."""
        if not self._prepares_every_shape:
            return batch
        return batch.filled(_rounded(batch.num_tokens))

    def _mask(self, row: PackedBatch, asked: Runs) -> TreeMask:
        """What the layers go by, where the last states are read at the asked tokens."""
        if self._prepares_every_shape:
            asked = asked.filled(_rounded(asked.num_tokens), row.num_tokens)
        is_worth_it = self.layout.is_lean and 0 < asked.num_tokens <= ASKED_SHARE * row.num_tokens
        dtype = dtype_of(self._active.network)
        return TreeMask.carrying(row.tree, device=self.device, dtype=dtype, asked=asked if is_worth_it else None)

    def _read_row(self, row: PackedBatch, mask: TreeMask, places: Int[Tensor, " N"]) -> Float[Tensor, "N H"]:
        """Last hidden states of a packed row at some of the tokens that the mask asks for."""
        ids, positions = row.input_ids.unsqueeze(0), row.positions.unsqueeze(0)
        hidden, _ = self.trunk(ids, attention_mask=mask, position_ids=positions)
        if mask.is_narrowed:
            assert mask.last.places is not None
            places = torch.searchsorted(mask.last.places, places)
        return hidden[0, places]

    def _read_padded(self, batch: PackedBatch) -> tuple[Float[Tensor, "B L H"], Bool[Tensor, "B L"]]:
        """Last hidden states of all sequences side by side, and which of them are real."""
        input_ids, mask = batch.padded()
        hidden, _ = self.trunk(input_ids, attention_mask=None if batch.is_even else mask.long())
        return hidden, mask


def _rounded(count: int) -> int:
    """What a number of tokens is filled up to a multiple of, where every new number costs."""
    return max(ROUND_LENGTH, 1 << max(count.bit_length() - 4, 0))
