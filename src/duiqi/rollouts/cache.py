"""A key-value cache with room to grow, so that a new token is written in place and no old one is copied."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, LinearAttentionCacheLayerMixin


def select_rows(cache: DynamicCache, indices: Tensor) -> None:
    """Keep these rows of the cache; a row may be named more than once."""
    for layer in cache.layers:
        if isinstance(layer, LinearAttentionCacheLayerMixin):
            layer.reorder_cache(indices)  # the only one of transformers' selections that takes states along
        else:
            layer.batch_select_indices(indices)


def reserve(cache: DynamicCache, num_tokens: int) -> None:
    """Give every growing layer of the cache room for `num_tokens` more tokens; what it holds stays.

    transformers' growing layer concatenates, which copies the whole cache for every token. Other kinds of layer
    (sliding windows, linear attention) do not grow and are left as they are.
    """
    cache.layers = [_RoomyLayer(layer, num_tokens) if type(layer) is DynamicLayer else layer for layer in cache.layers]


class _RoomyLayer(DynamicLayer):  # type: ignore[misc]  # transformers is untyped for us
    """A layer whose `keys` and `values` are the written part of larger tensors."""

    def __init__(self, layer: DynamicLayer, num_tokens: int) -> None:
        super().__init__()
        self.dtype, self.device, self.is_initialized = layer.dtype, layer.device, True
        self._key_room, self._value_room = _with_room(layer.keys, num_tokens), _with_room(layer.values, num_tokens)
        self._show(layer.get_seq_length())

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        start, end = self.keys.shape[-2], self.keys.shape[-2] + key_states.shape[-2]
        self._key_room[..., start:end, :] = key_states
        self._value_room[..., start:end, :] = value_states
        self._show(end)
        return self.keys, self.values

    def batch_select_indices(self, indices: Tensor) -> None:
        self._key_room, self._value_room = self._key_room[indices], self._value_room[indices]
        self._show(self.keys.shape[-2])

    def _show(self, num_tokens: int) -> None:
        self.keys, self.values = self._key_room[..., :num_tokens, :], self._value_room[..., :num_tokens, :]


def _with_room(states: Tensor, num_tokens: int) -> Tensor:
    *lead, length, width = states.shape
    room = states.new_empty(*lead, length + num_tokens, width)
    room[..., :length, :] = states
    return room
