"""Attention over a packed row: every token sees its own segment up to itself, and the segments that its own continues.

The tree is attended in two parts whose results are joined by their log-sum-exps: each segment over itself (causal, no
mask), and for each shared segment all tokens that continue it over the whole of it (no mask at all). So a prompt's keys
are neither copied nor masked for each of its answers, and nothing of size T x T is ever made. The backward pass needs
only queries, keys, values, the output and its log-sum-exp (Dao et al. 2022, section 3.1), which hold for the parts
because the joined log-sum-exp normalises all of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from duiqi.models.attention_kernels import Kernel, Part, kernel_for
from duiqi.packing.runs import Runs
from duiqi.packing.tree import SegmentTree

NAME = "duiqi"
"""What transformers calls this attention."""


@dataclass(frozen=True, slots=True)
class Voice:
    """Low-rank adapters (none: the bare base) and the tokens of a row that hear them together."""

    adapters: tuple[str, ...]
    tokens: slice


class TreeMask(Tensor):
    """An empty mask that carries a tree through transformers' layers, which hand a 4-D mask on as it is."""

    plan: Plan
    voices: tuple[Voice, ...]
    """Who hears what, where lean layers shall not go by the adapter that is heard; empty: they shall."""
    windows: set[int | None]
    """The sliding windows that layers asked for."""
    last: Plan
    """The plan of the last layer, whose states are read at some tokens only; `plan` where all of them are."""
    is_narrowed: bool
    """Whether the last layer gave the states of the asked tokens alone."""

    @staticmethod
    def carrying(tree: SegmentTree, *, device: torch.device, dtype: torch.dtype, asked: Runs | None = None) -> TreeMask:
        """The mask for layers that compute in `dtype`; the last states are read at the asked tokens (None: all)."""
        with _disable_current_modes():  # of torch's fake tensors, which a plan computes with, no subclass can be made
            empty = torch.empty(1, 1, tree.num_tokens, 0, dtype=torch.bool, device=device)
            mask: TreeMask = empty.as_subclass(TreeMask)
        mask.plan, mask.voices = Plan.of(tree, device=device, dtype=dtype), ()
        mask.windows, mask.is_narrowed = set(), False
        mask.last = mask.plan if asked is None else Plan.of(tree, device=device, dtype=dtype, asked=asked)
        return mask

    def plan_for(self, window: int | None, *, is_last: bool = False) -> Plan | None:
        """The plan by which a layer with this sliding window can attend; None: it needs dense masks."""
        self.windows.add(window)
        slides = window is not None and window < self.plan.tree.deepest
        plan = self.last if is_last else self.plan
        return None if slides or plan.kernel is None else plan


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


# -- a plan for a whole row --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Plan:
    """What a batch needs to attend over its tree; made once, used by every layer."""

    tree: SegmentTree
    kernel: Kernel | None
    """None: dense masks."""
    own: list[Part]
    shared: list[Part]
    asked: Runs
    """The tokens that have queries, R of T."""
    places: Int[Tensor, " R"] | None
    """Where in the row they stand; None: everywhere."""

    @classmethod
    def of(cls, tree: SegmentTree, *, device: torch.device, dtype: torch.dtype, asked: Runs | None = None) -> Plan:
        """The plan of a row for layers that compute in `dtype`, and for the queries of some tokens (None: of all)."""
        kernel = kernel_for(device, dtype)
        places = None if asked is None else asked.places(device)
        if asked is None:
            asked = Runs(((0, tree.num_tokens),))
        if kernel is None:
            return cls(tree, None, [], [], asked, places)
        tree = kernel.cut(tree).cut([bound for span in asked.spans for bound in span])
        return cls(tree, kernel, kernel.own(tree, asked), kernel.shared(tree, asked), asked, places)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        """What the asked tokens see: R x heads x D, and the log-sum-exp of their scores, R x heads in float32."""
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
        if self.places is not None:  # not every key is one of its own part
            for whole in into[1:]:
                whole.zero_()
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
                    part.add(whole, piece, places)

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
