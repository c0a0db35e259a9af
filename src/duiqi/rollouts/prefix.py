"""What has been read of answers in the making: kept in a cache, or read again for every token where none can be."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from typing import Protocol

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import DynamicCache

from duiqi.models.layout import TOLERANCE
from duiqi.rollouts.cache import reserve, select_rows
from duiqi.rollouts.engine import DecodableModel

Ids = tuple[int, ...]


class Decoding(Enum):
    """How answers in the making stand side by side, the fastest way first."""

    TOGETHER = "prompts of any length together, from a cache"
    EQUAL_LENGTHS = "prompts of equal length together, from a cache (this architecture's states cannot be padded)"
    REREAD = "slowly, the whole text read again for every token (this architecture has no cache that duiqi can keep)"

    def __str__(self) -> str:
        return self.value


class Prefix(Protocol):
    """The texts so far of N answers, the prompts included, as their next token is to be predicted."""

    hidden: Float[Tensor, "N H"]
    """The states that predict the next tokens."""

    @property
    def prompts(self) -> Int[Tensor, "N P"]:
        """Tokens of the prompts; rows are filled up with tokens that are in them anyway."""

    def grow(self, tokens: Int[Tensor, " N"]) -> None:
        """Read one more token of every text."""

    def select(self, indices: Int[Tensor, " M"]) -> None:
        """Keep these texts; one may be named more than once."""


class CachedPrefix:
    """Texts whose keys, values and states are kept; shorter prompts are padded on the left, and the padding masked.

    Args:
        prompts: Different from each other.
        room: How many tokens will be read after the prompts.
    """

    hidden: Float[Tensor, "N H"]
    _mask: Bool[Tensor, "N S"] | None
    """Which of the prompt's and all future answer tokens are real; None when no prompt is padded."""

    def __init__(self, model: DecodableModel, prompts: Sequence[Ids], *, pad_token_id: int, room: int) -> None:
        self._model = model
        device, width = model.device, max(map(len, prompts))
        self._ids = pad_sequence(
            [torch.tensor(prompt) for prompt in prompts],
            batch_first=True,
            padding_value=pad_token_id,
            padding_side="left",
        ).to(device)
        self._num_read = 0
        self._next_positions = torch.tensor([len(prompt) for prompt in prompts]).to(device)
        positions = torch.arange(width + room, device=device) - (width - self._next_positions).unsqueeze(-1)
        # Without padding there is no mask at all, which spares the attention a dense one.
        self._mask = positions >= 0 if min(map(len, prompts)) < width else None
        self._cache: DynamicCache = model.new_cache()
        self._read(self._ids, positions[:, :width].clamp(min=0))
        self._room, self._has_room = room, False

    @property
    def prompts(self) -> Int[Tensor, "N P"]:
        """Tokens of the prompts, padding replaced by the last one."""
        if self._mask is None:
            return self._ids
        return torch.where(self._mask[:, : self._ids.shape[1]], self._ids, self._ids[:, -1:])

    def grow(self, tokens: Int[Tensor, " N"]) -> None:
        """Read one more token of every text."""
        if not self._has_room:
            reserve(self._cache, self._room)
            self._has_room = True
        self._read(tokens.unsqueeze(-1), self._next_positions.unsqueeze(-1))
        self._next_positions = self._next_positions + 1

    def select(self, indices: Int[Tensor, " M"]) -> None:
        """Keep these texts; one may be named more than once."""
        select_rows(self._cache, indices)
        self.hidden, self._ids = self.hidden[indices], self._ids[indices]
        self._next_positions = self._next_positions[indices]
        if self._mask is not None:
            self._mask = self._mask[indices]

    def _read(self, input_ids: Int[Tensor, "N T"], positions: Int[Tensor, "N T"]) -> None:
        """Grow the cache by these tokens, and keep the state that predicts the next one."""
        self._num_read += input_ids.shape[1]
        hidden, cache = self._model.trunk(
            input_ids,
            attention_mask=None if self._mask is None else self._mask[:, : self._num_read],
            position_ids=positions,
            past_key_values=self._cache,
            use_cache=True,
        )
        if cache is None:
            raise NotImplementedError("the model keeps no cache")
        self._cache, self.hidden = cache, hidden[:, -1]


class RereadPrefix:
    """Texts of which nothing is kept but the tokens: any causal network can read them, padded on the right.

    Every token costs a pass over the whole text.
    """

    hidden: Float[Tensor, "N H"]

    def __init__(self, model: DecodableModel, prompts: Sequence[Ids], *, room: int) -> None:
        self._model = model
        device, width = model.device, max(map(len, prompts))
        rows = [torch.tensor(prompt + (prompt[0],) * (width - len(prompt) + room)) for prompt in prompts]
        self._ids = torch.stack(rows).to(device)
        self._lengths = torch.tensor([len(prompt) for prompt in prompts]).to(device)
        self.prompts = self._ids[:, :width]
        self._read()

    def grow(self, tokens: Int[Tensor, " N"]) -> None:
        """Read one more token of every text."""
        self._ids = self._ids.scatter(1, self._lengths.unsqueeze(-1), tokens.unsqueeze(-1))
        self._lengths = self._lengths + 1
        self._read()

    def select(self, indices: Int[Tensor, " M"]) -> None:
        """Keep these texts; one may be named more than once."""
        self.hidden, self._ids, self._lengths = self.hidden[indices], self._ids[indices], self._lengths[indices]
        self.prompts = self.prompts[indices]

    def _read(self) -> None:
        width = int(self._lengths.max())
        mask = torch.arange(width, device=self._ids.device) < self._lengths.unsqueeze(-1)
        hidden, _ = self._model.trunk(
            self._ids[:, :width],
            attention_mask=None if bool(mask.all()) else mask.long(),
            position_ids=None,
            past_key_values=None,
            use_cache=False,
        )
        self.hidden = hidden[torch.arange(len(hidden), device=hidden.device), self._lengths - 1]


def read_prompts(
    model: DecodableModel, prompts: Sequence[Ids], decoding: Decoding, *, pad_token_id: int, room: int
) -> Prefix:
    """Prompts as they were read, ready to grow by `room` tokens; each distinct one is read once.

    Args:
        prompts: One per answer.
        decoding: The way that the model allows (see `find_decoding`).
        pad_token_id: Fills the left of short prompts; masked, so any valid id does.
    """
    rows = {prompt: row for row, prompt in enumerate(dict.fromkeys(prompts))}
    prefix: Prefix
    if decoding is Decoding.REREAD:
        prefix = RereadPrefix(model, list(rows), room=room)
    else:
        prefix = CachedPrefix(model, list(rows), pad_token_id=pad_token_id, room=room)
    if len(rows) < len(prompts):
        prefix.select(torch.tensor([rows[prompt] for prompt in prompts]).to(model.device))
    return prefix


# -- which way an architecture allows ----------------------------------------------------------------------------------

_LONG, _SHORT = (5, 3, 7, 4, 6), (4, 6)
_AFTER = ((3, 5, 4), (6, 4), (7, 3))
"""Tokens that continue the texts tried, step by step; after the first step one text has ended."""


def find_decoding(model: DecodableModel, *, pad_token_id: int) -> Decoding:
    """The fastest way to decode that gives the states of texts read anew. Tried, not listed."""
    for decoding, other in ((Decoding.TOGETHER, _SHORT), (Decoding.EQUAL_LENGTHS, _LONG[::-1])):
        prompts = [_LONG, other, _LONG]
        try:
            found = _states(model, prompts, decoding, pad_token_id)
        except (NotImplementedError, RuntimeError, ValueError, TypeError, IndexError, AttributeError, KeyError):
            continue
        wanted = _states(model, prompts, Decoding.REREAD, pad_token_id)
        if bool((found - wanted).norm() <= TOLERANCE[found.dtype] * wanted.norm()):
            return decoding
    return Decoding.REREAD


def _states(model: DecodableModel, prompts: Sequence[Ids], decoding: Decoding, pad_token_id: int) -> Tensor:
    """What predicts the next tokens of some texts as they grow and become fewer."""
    prefix = read_prompts(model, prompts, decoding, pad_token_id=pad_token_id, room=len(_AFTER))
    states = [prefix.hidden]
    for tokens in _AFTER:
        if len(tokens) < len(prefix.hidden):
            prefix.select(torch.tensor([0, 1], device=model.device))
        prefix.grow(torch.tensor(tokens, device=model.device))
        states.append(prefix.hidden)
    return torch.cat(states)
