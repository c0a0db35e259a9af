"""Attention over a packed row: every token sees its own segment up to itself, and the segments that its own continues.

The tree is attended in two parts whose results are joined by their log-sum-exps: each segment over itself (causal, no
mask), and for each shared segment all tokens that continue it over the whole of it (no mask at all). So a prompt's keys
are neither copied nor masked for each of its answers, and nothing of size T x T is ever made. The backward pass needs
only queries, keys, values, the output and its log-sum-exp (Dao et al. 2022, section 3.1), which hold for the parts
because the joined log-sum-exp normalises all of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from duiqi.packing.tree import Segment, SegmentTree

NAME = "duiqi"
"""What transformers calls this attention."""

SHORT = 96
"""Segments of at most this many tokens are attended several at once, padded to a common length."""
SIMILAR = 1.25
"""The longest of them is at most this many times as long as the shortest."""


class TreeMask(Tensor):
    """An empty mask that carries a tree through transformers' layers, which hand a 4-D mask on as it is."""

    plan: Plan
    windows: set[int | None]
    """The sliding windows that layers asked for."""

    @staticmethod
    def carrying(tree: SegmentTree, *, device: torch.device, dtype: torch.dtype) -> TreeMask:
        """The mask for layers that compute in `dtype`."""
        mask: TreeMask = torch.empty(1, 1, tree.num_tokens, 0, dtype=torch.bool, device=device).as_subclass(TreeMask)
        mask.plan, mask.windows = Plan.of(tree, device=device, dtype=dtype), set()
        return mask

    def plan_for(self, window: int | None) -> Plan | None:
        """The plan by which a layer with this sliding window can attend; None: it needs dense masks."""
        self.windows.add(window)
        slides = window is not None and window < self.plan.tree.deepest
        return None if slides or self.plan.kernel is None else self.plan


def attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """transformers' attention function: over the tree that the mask carries, else transformers' own.

    Raises:
        NotImplementedError: The layer asks for something that the tree does not have (soft caps, sinks, biases);
            `layout` then chooses padded rows for this architecture.
    """
    if not isinstance(attention_mask, TreeMask):
        if sliding_window is not None:
            kwargs["sliding_window"] = sliding_window
        output, _ = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
        return output, None
    asked = [name for name in ("softcap", "s_aux", "position_bias") if kwargs.get(name) is not None]
    if asked or kwargs.get("is_causal") is False or query.shape[0] != 1:
        raise NotImplementedError(f"attention over a packed row that is not causal, or with {asked}")
    plan = attention_mask.plan_for(sliding_window)
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    if plan is None or dropout or query.shape[-1] != value.shape[-1]:
        tree = attention_mask.plan.tree
        attended = masked_attention(query, key, value, tree, scale=scale, window=sliding_window, dropout=dropout)
    else:
        attended = tree_attention(query, key, value, plan, scale=scale)
    return attended.transpose(1, 2), None


def register() -> None:
    """Make this attention known to transformers."""
    AttentionInterface.register(NAME, attention_forward)
    AttentionMaskInterface.register(NAME, sdpa_mask)


def tree_attention(query: Tensor, key: Tensor, value: Tensor, plan: Plan, *, scale: float) -> Tensor:
    """Attention of a packed row: queries 1 x heads x T x D, keys and values with as many heads or fewer."""
    output: Tensor = _TreeAttention.apply(query, key, value, plan, scale)  # type: ignore[no-untyped-call]
    return output


def masked_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    tree: SegmentTree,
    *,
    scale: float,
    window: int | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """The same by dense masks, one per root; with `window`, tokens that far back or farther are not seen."""
    outputs = []
    for root in tree.roots:
        visible = tree.visible(root)
        if window is not None and window < tree.deepest:
            positions = tree.positions()[root.start : root.stop]
            visible &= positions[:, None] - positions[None, :] < window
        span = slice(root.start, root.stop)
        outputs.append(
            nn.functional.scaled_dot_product_attention(
                query[:, :, span],
                key[:, :, span],
                value[:, :, span],
                attn_mask=visible.to(query.device),
                dropout_p=dropout,
                scale=scale,
                enable_gqa=key.shape[1] != query.shape[1],
            )
        )
    return torch.cat(outputs, dim=2)


# -- the parts of a tree, and their kernels ----------------------------------------------------------------------------


@dataclass(frozen=True)
class _Part:
    """Some queries of the row over some of its keys: ranges, or indices of any shape that the kernel likes."""

    queries: Tensor | slice
    keys: Tensor | slice
    is_causal: bool
    count: int = 1
    """Sequences of equal length in the ranges."""
    is_real: Tensor | None = None
    """Where `queries` is not filling; None: nowhere is any."""
    bounds: tuple[Tensor, Tensor, int, int] | None = None
    """For variable-length kernels: cumulative lengths of queries and of keys, and the longest of each."""

    def queries_of(self, states: Tensor) -> Tensor:
        """The part's queries of something that the row has per token."""
        return self._cut(states, self.queries)

    def keys_of(self, states: Tensor) -> Tensor:
        """The part's keys of something that the row has per token."""
        return self._cut(states, self.keys)

    def _cut(self, states: Tensor, places: Tensor | slice) -> Tensor:
        found = states[places]
        return found if self.count == 1 else found.unflatten(0, (self.count, -1))

    def put(self, whole: Tensor, found: Tensor, places: Tensor | slice) -> None:
        """Write what was found at these places into the row, without its filling."""
        if self.is_real is None:
            whole[places] = found if isinstance(places, Tensor) else found.reshape(whole[places].shape)
        else:
            assert isinstance(places, Tensor)
            whole[places[self.is_real]] = found[self.is_real].to(whole.dtype)


class _Kernel(Protocol):
    """How the parts of a tree are computed. Tensors are ... x heads x D, log-sum-exps ... x heads."""

    def backward_dtype(self, dtype: torch.dtype) -> torch.dtype:
        """What the backward pass computes in, where the forward pass computed in `dtype`."""

    def own(self, tree: SegmentTree) -> list[_Part]:
        """Every segment over itself: each token is a query once."""

    def shared(self, tree: SegmentTree) -> list[_Part]:
        """What continues a segment over that segment: no token is a query twice in one part."""

    def forward(self, part: _Part, q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        """Output and log-sum-exp."""

    def backward(
        self, part: _Part, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, grad_out: Tensor, scale: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of queries, keys and values."""


@dataclass(frozen=True)
class Plan:
    """What a batch needs to attend over its tree; made once, used by every layer."""

    tree: SegmentTree
    kernel: _Kernel | None
    """None: dense masks."""
    own: list[_Part]
    shared: list[_Part]

    @classmethod
    def of(cls, tree: SegmentTree, *, device: torch.device, dtype: torch.dtype) -> Plan:
        """CPUs have a flash kernel of their own, GPUs in half precision one for rows of any lengths."""
        kernel: _Kernel
        if device.type == "cpu" and dtype in (torch.float32, torch.bfloat16):
            kernel = _CPU()
        elif device.type == "cuda" and dtype in (torch.float16, torch.bfloat16):
            kernel = _CUDA(device)
        else:
            return cls(tree, None, [], [])
        return cls(tree, kernel, kernel.own(tree), kernel.shared(tree))

    def attend(self, q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        """What every token sees: T x heads x D, and the log-sum-exp of its scores, T x heads in float32."""
        assert self.kernel is not None
        out, lse = torch.empty(q.shape, dtype=q.dtype, device=q.device), q.new_empty(q.shape[:2], dtype=torch.float32)
        for part in self.own:
            found, normaliser = self.kernel.forward(part, part.queries_of(q), part.keys_of(k), part.keys_of(v), scale)
            part.put(out, found, part.queries)
            part.put(lse, normaliser, part.queries)
        for part in self.shared:
            at = part.queries
            found, normaliser = self.kernel.forward(part, q[at], k[part.keys], v[part.keys], scale)
            joined = torch.logaddexp(lse[at], normaliser)
            own_share, share = (lse[at] - joined).exp_().unsqueeze(-1), (normaliser - joined).exp_().unsqueeze(-1)
            out[at] = (out[at] * own_share).addcmul_(found, share)
            lse[at] = joined
        return out, lse

    def attend_backward(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        out: Tensor,
        lse: Tensor,
        grad_out: Tensor,
        scale: float,
        into: tuple[Tensor, Tensor, Tensor],
    ) -> None:
        """Write the gradients of queries, keys and values, given that of `out`; all in `backward_dtype`."""
        assert self.kernel is not None
        for part in self.own + self.shared:
            gradient = part.queries_of(grad_out)
            if part.is_real is not None:
                gradient = gradient * part.is_real[..., None, None]
            asked, output, normaliser = (part.queries_of(states) for states in (q, out, lse))
            keys, values = part.keys_of(k), part.keys_of(v)
            found = self.kernel.backward(part, asked, keys, values, output, normaliser, gradient, scale)
            for whole, piece, places in zip(into, found, (part.queries, part.keys, part.keys), strict=True):
                if part.is_causal:
                    part.put(whole, piece, places)
                else:
                    whole[places] += piece

    def backward_dtype(self, dtype: torch.dtype) -> torch.dtype:
        """What `attend_backward` computes in, where `attend` computed in `dtype`."""
        assert self.kernel is not None
        return self.kernel.backward_dtype(dtype)


class _TreeAttention(torch.autograd.Function):
    """`Plan.attend` for transformers' layers; tensors inside are T x heads x D, so that a segment is a slice."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, plan: Plan, scale: float) -> Tensor:
        q, k, v = (states[0].transpose(0, 1) for states in (query, key, value))
        out, lse = plan.attend(q, k, v, scale)
        ctx.save_for_backward(q, k, v, out, lse)
        ctx.plan, ctx.scale = plan, scale
        return out.transpose(0, 1).unsqueeze(0)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out, lse = ctx.saved_tensors
        dtype = ctx.plan.backward_dtype(q.dtype)
        grads = tuple(torch.empty(states.shape, dtype=dtype, device=q.device) for states in (q, k, v))
        given = (states.to(dtype) for states in (q, k, v, out))
        grad_out = gradients[0][0].transpose(0, 1).to(dtype)
        ctx.plan.attend_backward(*given, lse, grad_out, ctx.scale, grads)
        q_k_v = (grad.to(gradients[0].dtype).transpose(0, 1).unsqueeze(0) for grad in grads)
        return (*q_k_v, None, None)


class _CPU:
    """torch's flash attention for CPUs; short segments of similar length go through it together.

    Segments of one length that stand side by side do so as they are. Others are gathered, the shorter ones filled up on
    the right with their own last token: under a causal mask no real query sees the filling, and what is computed for
    it is dropped.
    """

    def backward_dtype(self, dtype: torch.dtype) -> torch.dtype:
        del dtype
        return torch.float32  # in bfloat16 the kernel's backward pass is the slower one, and less exact

    def own(self, tree: SegmentTree) -> list[_Part]:
        parts, group = [], list[Segment]()
        for segment in sorted(tree.segments, key=lambda segment: (segment.length, segment.start)):
            if group and not self._go_together(group, segment):
                parts.append(self._together(group))
                group = []
            group.append(segment)
        return [*parts, self._together(group)]

    def _go_together(self, group: list[Segment], segment: Segment) -> bool:
        if self._touch([*group, segment]):
            return True
        if len(group) > 1 and self._touch(group):
            return False
        return segment.length <= SHORT and segment.length <= SIMILAR * group[0].length + 1

    def _touch(self, group: list[Segment]) -> bool:
        """Whether they are of one length and stand side by side."""
        first = group[0]
        return all(s.length == first.length and s.start == first.start + i * s.length for i, s in enumerate(group))

    def _together(self, group: list[Segment]) -> _Part:
        if self._touch(group):
            span = slice(group[0].start, group[-1].end)
            return _Part(span, span, is_causal=True, count=len(group))
        steps = torch.arange(group[-1].length)
        starts = torch.tensor([[segment.start] for segment in group])
        ends = torch.tensor([[segment.end] for segment in group])
        places, is_real = torch.minimum(starts + steps, ends - 1), starts + steps < ends
        return _Part(places, places, is_causal=True, is_real=None if bool(is_real.all()) else is_real)

    def shared(self, tree: SegmentTree) -> list[_Part]:
        segments = [segment for level in tree.levels for segment in level]
        return [_Part(slice(s.end, s.stop), slice(s.start, s.end), is_causal=False) for s in segments]

    def forward(self, part: _Part, q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            *map(_heads_first, (q, k, v)), 0.0, part.is_causal, scale=scale
        )
        return out.transpose(1, 2).view_as(q), lse.transpose(1, 2).view(q.shape[:-1])

    def backward(
        self, part: _Part, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, grad_out: Tensor, scale: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        queries, keys, values, output, gradient = map(_heads_first, (q, k, v, out, grad_out))
        normaliser = _heads_first(lse.unsqueeze(-1)).squeeze(-1)
        grads = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
            gradient.contiguous(), queries, keys, values, output, normaliser, 0.0, part.is_causal, scale=scale
        )
        grad_q, grad_k, grad_v = (
            grad.transpose(1, 2).reshape(states.shape) for grad, states in zip(grads, (q, k, v), strict=True)
        )
        return grad_q, grad_k, grad_v


def _heads_first(states: Tensor) -> Tensor:
    """B x L x heads x D, or L x heads x D, as B x heads x L x D."""
    return (states if states.ndim == 4 else states.unsqueeze(0)).transpose(1, 2)


@dataclass(frozen=True)
class _CUDA:
    """torch's variable-length flash attention: all segments in one call, and one more for each depth of the tree."""

    device: torch.device

    def backward_dtype(self, dtype: torch.dtype) -> torch.dtype:
        return dtype

    def own(self, tree: SegmentTree) -> list[_Part]:
        lengths = [segment.length for segment in tree.segments]
        everything = slice(0, tree.num_tokens)
        return [_Part(everything, everything, is_causal=True, bounds=self._bounds(lengths, lengths))]

    def shared(self, tree: SegmentTree) -> list[_Part]:
        parts = []
        for level in tree.levels:
            queries = torch.cat([torch.arange(segment.end, segment.stop) for segment in level])
            keys = torch.cat([torch.arange(segment.start, segment.end) for segment in level])
            bounds = self._bounds([s.stop - s.end for s in level], [s.length for s in level])
            parts.append(_Part(queries.to(self.device), keys.to(self.device), is_causal=False, bounds=bounds))
        return parts

    def _bounds(self, queries: list[int], keys: list[int]) -> tuple[Tensor, Tensor, int, int]:
        cumulative = (torch.tensor([0, *accumulate(n)], dtype=torch.int32, device=self.device) for n in (queries, keys))
        return (*cumulative, max(queries), max(keys))  # type: ignore[return-value]

    def forward(self, part: _Part, q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        assert part.bounds is not None
        out, lse, *_ = torch.ops.aten._flash_attention_forward(
            q, k, v, *part.bounds, 0.0, part.is_causal, False, scale=scale
        )
        return out, lse.transpose(0, 1)

    def backward(
        self, part: _Part, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, grad_out: Tensor, scale: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        assert part.bounds is not None
        no_dropout = torch.zeros(2, dtype=torch.uint64, device=self.device), torch.empty(0, device=self.device)
        grads: tuple[Tensor, Tensor, Tensor] = torch.ops.aten._flash_attention_backward(
            grad_out.contiguous(),
            q,
            k,
            v,
            out,
            lse.transpose(0, 1).contiguous(),
            *part.bounds,
            0.0,
            part.is_causal,
            *no_dropout,
            scale=scale,
        )
        return grads
