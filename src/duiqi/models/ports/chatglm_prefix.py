"""What stands before and beside the keys of a ChatGLM: P-Tuning's prefix slots, and the tokens read so far."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import Cache
from transformers.cache_utils import DynamicLayer


class PrefixEncoder(nn.Module):
    """Keys and values of prefix slots for every layer, learned (P-Tuning v2), by the names of 2023's checkpoints.

    Args:
        num_slots: P, the slots before every row (`pre_seq_len`).
        num_heads: Heads of keys and values.
        projected_from: None: the slots are learned as they are. A width: learned there, and brought to keys and values
            by two linear layers with a tanh between them (`prefix_projection`).
        inner_size: Width between those two layers.
    """

    def __init__(
        self,
        *,
        num_slots: int,
        num_layers: int,
        num_heads: int,
        head_size: int,
        projected_from: int | None,
        inner_size: int,
    ) -> None:
        super().__init__()
        self.shape = (num_slots, 2 * num_layers, num_heads, head_size)
        size = 2 * num_layers * num_heads * head_size
        self.embedding = nn.Embedding(num_slots, projected_from or size)
        if projected_from:
            self.trans = nn.Sequential(nn.Linear(projected_from, inner_size), nn.Tanh(), nn.Linear(inner_size, size))

    def forward(self) -> Float[Tensor, "2L 1 heads P D"]:
        """Layer i's keys at 2i, its values at 2i + 1."""
        states = self.embedding.weight
        if hasattr(self, "trans"):
            states = self.trans(states)
        return states.view(self.shape).permute(1, 2, 0, 3).unsqueeze(1)


@dataclass(frozen=True)
class Seen:
    """Every token of the rows so far, those of this pass last."""

    ids: Int[Tensor, "B S"]
    is_real: Bool[Tensor, "B S"]
    """False: padding."""
    num_slots: int
    """Slots in the cache before the first token: a prefix that was learned, not read."""

    @property
    def counts(self) -> Int[Tensor, "B S"]:
        """0, 1, 2 ... over the real tokens of each row; 0 for padding on the left."""
        return (self.is_real.cumsum(-1) - 1).clamp(min=0)

    def visible(self, num_queries: int, *, prompt: Bool[Tensor, "B S"] | None = None) -> Bool[Tensor, "B 1 Q K"]:
        """What each of the last tokens sees: real ones up to itself and real ones of the `prompt`, and every slot.

        Padding sees itself too, so that its softmax has something to sum.
        """
        num_tokens = self.ids.shape[1]
        columns = torch.arange(num_tokens, device=self.ids.device)
        queries = columns[num_tokens - num_queries :, None]
        seen = (columns <= queries).unsqueeze(0)
        if prompt is not None:
            seen = seen | prompt.unsqueeze(1)
        seen = (seen & self.is_real.unsqueeze(1)) | (columns == queries)
        return nn.functional.pad(seen.unsqueeze(1), (self.num_slots, 0), value=True)


def look_back(
    input_ids: Int[Tensor, "B T"],
    attention_mask: Tensor | None,
    cache: Cache | None,
    *,
    num_layers: int,
) -> Seen:
    """The tokens of this pass and those before it, which the cache keeps in a layer of its own behind the others.

    There they follow whatever happens to its rows (selecting, repeating, reordering). Keys that no token was read for
    are slots of a prefix, as PEFT's prefix tuning hands them over.

    Args:
        attention_mask: 1 = real, for all tokens so far, with or without the slots before them; None: none is padding,
            except where an earlier mask said so.

    Raises:
        ValueError: The mask is as wide as neither.
    """
    is_real = torch.ones_like(input_ids, dtype=torch.bool)
    num_slots = num_past = 0
    if cache is not None:
        layer = _token_layer(cache, num_layers)
        num_past = layer.get_seq_length()
        num_slots = cache.get_seq_length() - num_past
    num_tokens = num_past + input_ids.shape[1]
    mask = None
    if attention_mask is not None:
        if attention_mask.shape[-1] not in (num_tokens, num_slots + num_tokens):
            raise ValueError(
                f"attention_mask is {attention_mask.shape[-1]} wide; there are {num_tokens} tokens"
                + (f" behind {num_slots} prefix slots" if num_slots else "")
            )
        mask = attention_mask[:, -num_tokens:] != 0
        is_real = mask[:, num_past:]
    if cache is None:
        return Seen(input_ids, is_real, num_slots)
    ids, real = layer.update(input_ids[:, None, :, None], is_real.to(input_ids.dtype)[:, None, :, None])
    return Seen(ids[:, 0, :, 0], real[:, 0, :, 0] != 0 if mask is None else mask, num_slots)


def _token_layer(cache: Cache, index: int) -> DynamicLayer:
    while len(cache.layers) <= index:
        cache.layers.append(DynamicLayer())
    return cache.layers[index]


def behind(slots: Float[Tensor, "1 N P D"], states: Float[Tensor, "B N T D"]) -> Float[Tensor, "B N P+T D"]:
    """Keys or values of every row with those of the prefix slots before them."""
    return torch.cat([slots.expand(len(states), -1, -1, -1), states], dim=2)
