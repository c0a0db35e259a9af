"""How attention over the parts of a packed row is computed: one class for CPUs, one for GPUs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Protocol

import torch
from torch import Tensor

from duiqi.packing.runs import Runs
from duiqi.packing.tree import Segment, SegmentTree

SHORT = 96
"""On a CPU, segments of at most this many tokens are attended several at once, filled up to a common length."""
LONG, PIECE = range(384, 769), 256
"""On a CPU, segments of such a length are cut into pieces of about so many tokens."""
SIMILAR = 1.25
"""The longest of them is at most this many times as long as the shortest."""


@dataclass(frozen=True)
class Part:
    """Some of the asked queries over some of the row's keys: ranges, or indices of any shape that the kernel likes."""

    queries: Tensor | slice
    keys: Tensor | slice
    is_causal: bool
    count: int = 1
    """Sequences of equal length in the ranges."""
    is_real: Tensor | None = None
    """Where `queries` is not filling; None: nowhere is any."""
    real: Tensor | None = None
    """The same as places, counted through all sequences: indices need no look at the numbers of a tensor."""
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
        if self.real is None:
            whole[places] = found if isinstance(places, Tensor) else found.reshape(whole[places].shape)
        else:
            assert isinstance(places, Tensor)
            whole[places.flatten()[self.real]] = found.flatten(0, 1)[self.real].to(whole.dtype)

    def add(self, whole: Tensor, found: Tensor, places: Tensor | slice) -> None:
        """Add what was found at these places; a part that fills up adds nothing."""
        if isinstance(places, slice):
            whole[places].add_(found)
        else:
            whole.index_add_(0, places, found)


class Kernel(Protocol):
    """How the parts of a tree are computed. Tensors are ... x heads x D, log-sum-exps ... x heads.

    Queries are those of the asked tokens alone, in their order; segments are asked as a whole or not at all.
    """

    def backward_dtype(self, dtype: torch.dtype) -> torch.dtype:
        """What the backward pass computes in, where the forward pass computed in `dtype`."""

    def cut(self, tree: SegmentTree) -> SegmentTree:
        """The tree with segments cut where that is faster."""

    def own(self, tree: SegmentTree, asked: Runs) -> list[Part]:
        """Every asked segment over itself: each of its tokens is a query once."""

    def shared(self, tree: SegmentTree, asked: Runs) -> list[Part]:
        """What is asked of those that continue a segment over that segment: no token is a query twice in one part."""

    def forward(self, part: Part, q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        """Output and log-sum-exp."""

    def backward(
        self, part: Part, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, grad_out: Tensor, scale: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of queries, keys and values."""


def kernel_for(device: torch.device, dtype: torch.dtype) -> Kernel | None:
    """CPUs have a flash kernel of their own, GPUs in half precision one for rows of any lengths; None: neither."""
    if device.type == "cpu" and dtype in (torch.float32, torch.bfloat16):
        return _CPU()
    if device.type == "cuda" and dtype in (torch.float16, torch.bfloat16):
        return _CUDA(device)
    return None


class _CPU:
    """torch's flash attention for CPUs; short segments of similar length go through it together.

    Segments of one length that stand side by side do so as they are. Others are gathered, the shorter ones filled up on
    the right with their own last token: under a causal mask no real query sees the filling, and what is computed for
    it is dropped.

    The kernel goes through keys in blocks of 512 and computes a block as a whole, also where the causal mask hides half
    of it. Of a segment cut in two, a quarter of the scores is never computed.
    """

    def backward_dtype(self, dtype: torch.dtype) -> torch.dtype:
        del dtype
        return torch.float32  # in bfloat16 the kernel's backward pass is the slower one, and less exact

    def cut(self, tree: SegmentTree) -> SegmentTree:
        places: list[int] = []
        for segment in tree.segments:
            if segment.length in LONG:
                pieces = round(segment.length / PIECE)
                places += [segment.start + segment.length * piece // pieces for piece in range(1, pieces)]
        return tree.cut(places)

    def own(self, tree: SegmentTree, asked: Runs) -> list[Part]:
        parts, group = [], list[Segment]()
        for segment in sorted(_asked_of(tree.segments, asked), key=lambda segment: (segment.length, segment.start)):
            if group and not self._go_together(group, segment):
                parts.append(self._together(group, asked))
                group = []
            group.append(segment)
        return [*parts, self._together(group, asked)]

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

    def _together(self, group: list[Segment], asked: Runs) -> Part:
        if self._touch(group):
            span = slice(group[0].start, group[-1].end)
            return Part(asked.numbers(span), span, is_causal=True, count=len(group))
        longest = group[-1].length
        steps = torch.arange(longest)
        starts = torch.tensor([[segment.start] for segment in group])
        numbers = torch.tensor([[asked.number(segment.start)] for segment in group])
        lengths = torch.tensor([[segment.length] for segment in group])
        within = torch.minimum(steps, lengths - 1)
        if group[0].length == longest:
            return Part(numbers + within, starts + within, is_causal=True)
        # Counted here and not asked of the tensors, so that a rehearsal can do it with tensors that hold no numbers.
        real = [row * longest + step for row, segment in enumerate(group) for step in range(segment.length)]
        is_real = steps < lengths
        return Part(numbers + within, starts + within, is_causal=True, is_real=is_real, real=torch.tensor(real))

    def shared(self, tree: SegmentTree, asked: Runs) -> list[Part]:
        segments = [segment for level in tree.levels for segment in _continued(level, asked)]
        return [Part(asked.numbers(slice(s.end, s.stop)), slice(s.start, s.end), is_causal=False) for s in segments]

    def forward(self, part: Part, q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            *map(_heads_first, (q, k, v)), 0.0, part.is_causal, scale=scale
        )
        return out.transpose(1, 2).view_as(q), lse.transpose(1, 2).view(q.shape[:-1])

    def backward(
        self, part: Part, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, grad_out: Tensor, scale: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        queries, keys, values, output, gradient = map(_heads_first, (q, k, v, out, grad_out))
        normaliser = _heads_first(lse.unsqueeze(-1)).squeeze(-1)
        grads = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
            gradient, queries, keys, values, output, normaliser, 0.0, part.is_causal, scale=scale
        )
        grad_q, grad_k, grad_v = (
            grad.transpose(1, 2).reshape(states.shape) for grad, states in zip(grads, (q, k, v), strict=True)
        )
        return grad_q, grad_k, grad_v


def _asked_of(segments: Iterable[Segment], asked: Runs) -> list[Segment]:
    return [segment for segment in segments if asked.number(segment.end) > asked.number(segment.start)]


def _continued(segments: Iterable[Segment], asked: Runs) -> list[Segment]:
    """Those of which something that continues them is asked."""
    return [segment for segment in segments if asked.number(segment.stop) > asked.number(segment.end)]


def _heads_first(states: Tensor) -> Tensor:
    """B x L x heads x D, or L x heads x D, as B x heads x L x D."""
    return (states if states.ndim == 4 else states.unsqueeze(0)).transpose(1, 2)


@dataclass(frozen=True)
class _CUDA:
    """torch's variable-length flash attention: all segments in one call, and one more for each depth of the tree."""

    device: torch.device

    def backward_dtype(self, dtype: torch.dtype) -> torch.dtype:
        return dtype

    def cut(self, tree: SegmentTree) -> SegmentTree:
        return tree

    def own(self, tree: SegmentTree, asked: Runs) -> list[Part]:
        segments = _asked_of(tree.segments, asked)
        lengths = [segment.length for segment in segments]
        queries = slice(0, asked.num_tokens)
        keys = slice(0, tree.num_tokens) if len(segments) == len(tree.segments) else self._places(segments)
        return [Part(queries, keys, is_causal=True, bounds=self._bounds(lengths, lengths))]

    def shared(self, tree: SegmentTree, asked: Runs) -> list[Part]:
        parts = []
        for segments in filter(None, (_continued(level, asked) for level in tree.levels)):
            spans = [asked.numbers(slice(segment.end, segment.stop)) for segment in segments]
            queries = torch.cat([torch.arange(span.start, span.stop) for span in spans])
            bounds = self._bounds([span.stop - span.start for span in spans], [s.length for s in segments])
            parts.append(Part(queries.to(self.device), self._places(segments), is_causal=False, bounds=bounds))
        return parts

    def _places(self, segments: Sequence[Segment]) -> Tensor:
        return torch.cat([torch.arange(segment.start, segment.end) for segment in segments]).to(self.device)

    def _bounds(self, queries: list[int], keys: list[int]) -> tuple[Tensor, Tensor, int, int]:
        cumulative = (torch.tensor([0, *accumulate(n)], dtype=torch.int32, device=self.device) for n in (queries, keys))
        return (*cumulative, max(queries), max(keys))  # type: ignore[return-value]

    def forward(self, part: Part, q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        assert part.bounds is not None
        out, lse, *_ = torch.ops.aten._flash_attention_forward(
            q, k, v, *part.bounds, 0.0, part.is_causal, False, scale=scale
        )
        return out, lse.transpose(0, 1)

    def backward(
        self, part: Part, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, grad_out: Tensor, scale: float
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
