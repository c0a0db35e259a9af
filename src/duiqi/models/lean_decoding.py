"""One token at a time through lean layers: the step of the sampler, where the cost is in calls and not in arithmetic.

A layer is prepared once per round of rollouts. Small bases on a CPU are copied for it: matrices that read the same
input stand in one, the adapter is folded into them in float32 (W + s B A), and they are packed where torch can. It is
never folded in half precision, where a small update is lost in the rounding of W and the sampler would follow another
policy than the one that learns. Large bases, and GPUs, keep their matrices where they are; only the adapter's thin ones
are prepared.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache, PreTrainedModel

from duiqi.models.joined import Joined
from duiqi.models.layout import trunk_of
from duiqi.models.lean import inverse_norm, llama_shaped_layers, turn_
from duiqi.models.packed import PackedLinear
from duiqi.models.tree_attention import Voice

COPY_LIMIT, HEAD_LIMIT = 2**28, 2**25
"""Bytes that copies may have: of the layers in float32, which stays until the adapter has changed, and of the head.
That of a large vocabulary would be more than all else that a rollout holds."""

FEWEST_SHARING = 4
"""Query heads on one head of keys from which a CPU takes them for tokens of one text, in float32: with 2 that was
slower, with 7 faster. In half precision it was faster with 2 already."""


@dataclass(frozen=True)
class _Norm:
    """A norm of the root mean square, prepared."""

    weight: Tensor
    eps: float

    @classmethod
    def of(cls, norm: Any, *, copy: bool) -> _Norm:
        return cls(norm.weight.float() if copy else norm.weight, norm.variance_epsilon)

    def __call__(self, x: Tensor) -> Tensor:
        if x.dtype == self.weight.dtype == torch.float32:
            return torch.rms_norm(x, self.weight.shape, self.weight, self.eps)
        normed: Tensor = (x * inverse_norm(x, self.eps)).mul_(self.weight).to(x.dtype)
        return normed


@dataclass(frozen=True)
class _Layer:
    """A decoder layer, prepared."""

    attention: Any
    before_attention: _Norm
    before_mlp: _Norm
    projections: Joined | PackedLinear
    output: Joined | PackedLinear
    gated: Joined | PackedLinear
    down: Joined | PackedLinear
    heads: int
    key_heads: int

    @classmethod
    def of(cls, layer: Any, adapters: Sequence[str], *, copy: bool) -> _Layer:
        attention, mlp = layer.self_attn, layer.mlp
        joined = [
            Joined.of(linears, [Voice(tuple(adapters), slice(0, sys.maxsize))])
            for linears in (
                [attention.q_proj, attention.k_proj, attention.v_proj],
                [attention.o_proj],
                [mlp.gate_proj, mlp.up_proj],
                [mlp.down_proj],
            )
        ]
        heads, key_heads, _ = (width // attention.head_dim for width in joined[0].widths)
        projections, output, gated, down = map(_folded, joined) if copy else joined
        before_attention = _Norm.of(layer.input_layernorm, copy=copy)
        before_mlp = _Norm.of(layer.post_attention_layernorm, copy=copy)
        return cls(attention, before_attention, before_mlp, projections, output, gated, down, heads, key_heads)

    def __call__(
        self, x: Tensor, cos: Tensor, sin: Tensor, cache: Cache, mask: Tensor | None, dtype: torch.dtype
    ) -> Tensor:
        """The next hidden states (N x H) of one new token per row; the cache is kept in `dtype`."""
        attention = self.attention
        joined = self.projections.outputs(self.before_attention(x))
        states = joined.view(len(x), self.heads + 2 * self.key_heads, attention.head_dim)
        turning, value = states.split([self.heads + self.key_heads, self.key_heads], dim=1)
        if hasattr(attention, "q_norm"):
            query, key = turning.split([self.heads, self.key_heads], dim=1)
            turning = torch.cat([attention.q_norm(query), attention.k_norm(key)], dim=1)
        turn_(turning, cos, sin)
        query, key = turning.split([self.heads, self.key_heads], dim=1)
        query, key, value = (states.unsqueeze(2).to(dtype) for states in (query, key, value))
        keys, values = cache.update(key, value, attention.layer_idx)
        attended = _attend(query, keys, values, mask, attention.scaling)
        x = self.output.outputs(attended.reshape(len(x), -1).to(x.dtype), onto=x)
        gate, up = self.gated.outputs(self.before_mlp(x)).chunk(2, dim=-1)
        return self.down.outputs(nn.functional.silu(gate).mul_(up), onto=x)


def _folded(joined: Joined) -> Joined | PackedLinear:
    """A copy in float32 with the adapters in it, packed where that can be."""
    folded = joined.folded()
    return PackedLinear.of(folded.weight, folded.bias) or folded


def is_worth_copying(network: PreTrainedModel) -> bool:
    """Whether the layers are small enough for a copy, on a CPU."""
    size = 4 * sum(p.numel() for layer in llama_shaped_layers(network) for p in layer.parameters())
    return size <= COPY_LIMIT and network.device.type == "cpu"


def is_head_worth_copying(network: PreTrainedModel) -> bool:
    """Whether the output head is small enough for a copy, on a CPU."""
    weight: Tensor = network.get_output_embeddings().weight
    return weight.nbytes <= HEAD_LIMIT and network.device.type == "cpu"


@dataclass(frozen=True)
class LeanDecoder:
    """The layers of a network with its adapters heard, ready to take one token per row."""

    trunk: Any
    layers: list[_Layer]
    norm: _Norm
    is_copy: bool
    """Whether the layers are copies in float32."""

    @classmethod
    @torch.no_grad()
    def of(cls, network: PreTrainedModel, adapters: Sequence[str], *, copy: bool | None = None) -> LeanDecoder:
        """Prepare the network with adapters as they are now; after an update it needs another one.

        Args:
            copy: Whether to copy the layers in float32; None: where `is_worth_copying`.
        """
        layers = llama_shaped_layers(network)
        copy = is_worth_copying(network) if copy is None else copy
        trunk: Any = trunk_of(network)
        prepared = [_Layer.of(layer, adapters, copy=copy) for layer in layers]
        return cls(trunk, prepared, _Norm.of(trunk.norm, copy=copy), is_copy=copy)

    def step(self, ids: Tensor, positions: Tensor, cache: Cache, visible: Tensor | None) -> Tensor:
        """Hidden states (N x 1 x H, after the final norm) of one token per row (N x 1), the cache grown by it.

        Args:
            visible: True at the tokens of the cache, and the new one, that are not padding (N x S); None: all.
        """
        embedded: Tensor = self.trunk.embed_tokens(ids.squeeze(1))
        x = embedded.float() if self.is_copy else embedded
        cos, sin = self.trunk.rotary_emb(x, positions)
        half = cos.shape[-1] // 2
        cos, sin = cos[..., :half], sin[..., :half]
        mask = None
        if visible is not None:
            hidden = ~visible.bool()[:, None, None, :]
            mask = torch.zeros(hidden.shape, dtype=embedded.dtype, device=x.device).masked_fill_(hidden, -torch.inf)
        for layer in self.layers:
            x = layer(x, cos, sin, cache, mask, embedded.dtype)
        return self.norm(x).to(embedded.dtype).unsqueeze(1)


def _attend(query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """One query per row over all keys that it may see; heads that share keys are not given copies of them."""
    if query.device.type == "cpu":
        shape, sharing = query.shape, query.shape[1] // keys.shape[1]
        if sharing >= (FEWEST_SHARING if query.dtype == torch.float32 else 2):
            query = query.reshape(len(query), keys.shape[1], sharing, -1)
        found: Tensor = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            query, keys, values, 0.0, False, attn_mask=mask, scale=scale
        )[0]
        return found.reshape(shape)
    return nn.functional.scaled_dot_product_attention(query, keys, values, attn_mask=mask, scale=scale, enable_gqa=True)
