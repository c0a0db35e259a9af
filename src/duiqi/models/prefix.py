"""P-Tuning v2 (Liu et al. 2021), prefix tuning (Li and Liang 2021): keys and values before the first token that learn.

The slots are positions 0 to P - 1 and the first token of a row stands at P, as in PEFT; the ports of ChatGLM count
tokens alone. What is written to disk opens as PEFT's prefix tuning.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from peft import PrefixTuningConfig
from torch import Tensor, nn
from transformers import Cache, DynamicCache, PreTrainedModel

from duiqi.errors import ModelError
from duiqi.models.own_weights import dtype_of


@dataclass(frozen=True)
class PrefixSpec:
    """The shape of a new prefix."""

    num_slots: int = 16
    projection: bool = False
    """Whether the slots are learned in the hidden size, and brought to keys and values by two linear layers."""


@dataclass(frozen=True, slots=True)
class KeyShape:
    """What one token leaves in the cache, the same in every layer."""

    layers: int
    heads: int
    head_size: int

    @property
    def size(self) -> int:
        """Numbers in the keys of one layer."""
        return self.heads * self.head_size


class Prefix(nn.Module):
    """Keys and values of P slots for every layer, in float32.

    Args:
        shape: Of the keys.
        num_slots: P.
        projected_from: The width in which the slots are learned; None: they are keys and values themselves.
    """

    def __init__(self, shape: KeyShape, num_slots: int, *, projected_from: int | None = None) -> None:
        super().__init__()
        self.shape, self.num_slots = shape, num_slots
        size = 2 * shape.layers * shape.size
        self.embedding = nn.Parameter(torch.randn(num_slots, projected_from or size))
        self.transform: nn.Sequential | None = None
        if projected_from is not None:
            inner = nn.Linear(projected_from, projected_from)
            self.transform = nn.Sequential(inner, nn.Tanh(), nn.Linear(projected_from, size))

    def flat(self) -> Float[Tensor, "P size"]:
        """Keys and values of all slots, layer after layer, keys first: as PEFT stores them."""
        slots: Tensor = self.embedding if self.transform is None else self.transform(self.embedding)
        return slots

    def copy(self, *, trainable: bool) -> Prefix:
        """Another one with the same weights."""
        copied = copy.deepcopy(self)
        copied.requires_grad_(trainable)
        return copied

    def begin(self, cache: Cache, *, rows: int, dtype: torch.dtype) -> None:
        """Write the slots into an empty cache of `rows` rows."""
        shape = self.shape
        states = self.flat().to(dtype).view(self.num_slots, 2 * shape.layers, shape.heads, shape.head_size)
        keys_and_values = states.permute(1, 2, 0, 3).unsqueeze(1).expand(-1, rows, -1, -1, -1)
        for layer in range(shape.layers):
            cache.update(keys_and_values[2 * layer], keys_and_values[2 * layer + 1], layer)


def prefix_config(prefix: Prefix) -> PrefixTuningConfig:
    """PEFT's description of a prefix as it is stored: without its projection."""
    return PrefixTuningConfig(
        task_type="CAUSAL_LM",
        num_virtual_tokens=prefix.num_slots,
        num_layers=prefix.shape.layers,
        num_attention_heads=prefix.shape.heads,
        token_dim=prefix.shape.size,
        encoder_hidden_size=prefix.shape.size,
        num_transformer_submodules=1,
        prefix_projection=False,
    )


@torch.no_grad()
def read_keys(trunk: nn.Module, network: PreTrainedModel, ids: Sequence[int]) -> tuple[KeyShape, Tensor]:
    """What these tokens leave in the cache (P x size, as `Prefix.flat`), and its shape.

    Raises:
        ModelError: The layers keep something else than keys and values of one shape.
    """
    cache = DynamicCache(config=network.config)
    device = next(network.parameters()).device
    trunk(input_ids=torch.tensor([list(ids)], device=device), past_key_values=cache, use_cache=True)
    pairs: list[Tensor] = []
    for layer in cache.layers[: network.config.get_text_config().num_hidden_layers]:
        pairs += [x for x in (getattr(layer, "keys", None), getattr(layer, "values", None)) if isinstance(x, Tensor)]
    if len(pairs) < 2 * network.config.get_text_config().num_hidden_layers or len({x.shape for x in pairs}) > 1:
        raise ModelError(
            f"the layers of {type(network).__name__} do not all keep keys and values of one shape",
            where="finetuning_type: p_tuning",
            remedy="set finetuning_type: lora",
        )
    _, heads, num_slots, head_size = pairs[0].shape
    flat = torch.stack(pairs)[:, 0].permute(2, 0, 1, 3).reshape(num_slots, -1).float()
    return KeyShape(len(pairs) // 2, heads, head_size), flat


def new_prefix(trunk: nn.Module, network: PreTrainedModel, spec: PrefixSpec, *, opening: Sequence[int]) -> Prefix:
    """A prefix to be learned. Without a projection it begins as what the network makes of the tokens `opening`.

    So the network behind it begins as one that has read some text, and not as one that has read noise (Li and Liang
    2021, section 7.5, found this better where data are few).

    Args:
        opening: Token ids, repeated to the number of slots.

    Raises:
        ModelError: The layers of this network do not keep keys and values of one shape.
    """
    ids = [opening[i % len(opening)] for i in range(spec.num_slots)]
    shape, flat = read_keys(trunk, network, ids)
    width = int(network.get_input_embeddings().weight.shape[1]) if spec.projection else None
    prefix = Prefix(shape, spec.num_slots, projected_from=width).to(flat.device)
    if width is None:
        with torch.no_grad():
            prefix.embedding.copy_(flat)
    return prefix


def saved_prefix(config: PrefixTuningConfig, flat: Float[Tensor, "P size"]) -> Prefix:
    """The prefix that PEFT's files describe."""
    heads = int(config.num_attention_heads)
    prefix = Prefix(KeyShape(int(config.num_layers), heads, int(config.token_dim) // heads), len(flat))
    with torch.no_grad():
        prefix.embedding.copy_(flat)
    return prefix


def call_behind(
    prefix: Prefix,
    trunk: nn.Module,
    input_ids: Int[Tensor, "B T"],
    *,
    attention_mask: Tensor | None,
    position_ids: Int[Tensor, "B T"] | None,
    cache: Cache,
) -> Any:
    """What the trunk gives for tokens behind a prefix; the slots are written to the cache where it is empty.

    Args:
        attention_mask: 1 at real tokens, for all tokens so far, without the slots.
        position_ids: Counted without the slots.
    """
    if cache.get_seq_length() == 0:
        prefix.begin(cache, rows=len(input_ids), dtype=dtype_of(trunk))
    if attention_mask is not None:
        attention_mask = nn.functional.pad(attention_mask, (prefix.num_slots, 0), value=1)
    if position_ids is not None:
        position_ids = position_ids + prefix.num_slots
    return trunk(
        input_ids=input_ids,
        attention_mask=attention_mask,
        position_ids=position_ids,
        past_key_values=cache,
        use_cache=True,
    )
