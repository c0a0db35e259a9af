"""Counting what is computed without computing it: bytes of all tensors that are alive, and the FLOPs of products.

A rehearsal runs the real code on tensors that have a shape, a precision and a device but no content (torch's fake
tensors), so that what is counted is what the code does, whatever the architecture.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

from duiqi.planning.heap import Heap

aten = torch.ops.aten


@dataclass
class Moment:
    """A part of a run, such as sampling or an update, and the most that was alive in it."""

    name: str
    peak: int = 0
    """Bytes."""
    parts: Counter[str] = field(default_factory=Counter)
    """The same by label, at that time."""
    flops: float = 0.0
    """Of the matrix products of everything rehearsed in it."""


class Tally(TorchDispatchMode):
    """Within this context every new tensor counts from when it is made until it is gone.

    Args:
        heap: Where a CPU would put them; None: nowhere, and gaps between tensors are not known.
        known: Tensors that were there before and are counted elsewhere.
        labels: What tensors of some width (their last dimension) are, whoever makes them.
    """

    def __init__(
        self, *, heap: Heap | None = None, known: Iterable[Tensor] = (), labels: Mapping[int, str] | None = None
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.heap, self.moments = heap, list[Moment]()
        self.alive: Counter[str] = Counter()
        """Bytes by label, now."""
        self._label, self._labels = "activations", labels or {}
        self._blocks: dict[int, _Block] = {}
        self._known = {_key(tensor) for tensor in known}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        found = func(*args, **(kwargs or {}))
        if self.moments and (formula := FLOPS.get(func.overloadpacket)):
            self.moments[-1].flops += formula(*args, **(kwargs or {}), out_val=found)
        for tensor in [found] if isinstance(found, Tensor) else tree_leaves(found):
            if isinstance(tensor, Tensor):
                self._note(tensor)
        return found

    @property
    def total(self) -> int:
        """Bytes of everything alive now."""
        return self.alive.total()

    @contextmanager
    def moment(self, name: str) -> Iterator[Moment]:
        """Within this context peaks and FLOPs belong to the moment of this name; what is alive already counts in it."""
        moment = next((known for known in self.moments if known.name == name), None) or Moment(name)
        self.moments = [*(known for known in self.moments if known is not moment), moment]
        self._compare()
        yield moment

    @contextmanager
    def labelled(self, label: str) -> Iterator[None]:
        """Within this context new tensors get this label."""
        before, self._label = self._label, label
        try:
            yield
        finally:
            self._label = before

    def relabel(self, tensor: Tensor, label: str) -> None:
        """Give a tensor that is counted already another label."""
        block = self._blocks.get(_key(tensor))
        if block is not None:
            self.alive[block.label] -= block.size
            self.alive[label] += block.size
            block.label = label

    def _note(self, tensor: Tensor) -> None:
        storage, key = tensor.untyped_storage(), _key(tensor)
        if key in self._blocks or key in self._known:
            return
        size = storage.nbytes()
        label = self._labels.get(tensor.shape[-1], self._label) if tensor.ndim > 1 else self._label
        self._blocks[key] = _Block(label, size, self.heap.take(size) if self.heap is not None else 0)
        weakref.finalize(storage, self._forget, key).atexit = False
        self.alive[label] += size
        self._compare()

    def _forget(self, key: int) -> None:
        block = self._blocks.pop(key)
        self.alive[block.label] -= block.size
        if self.heap is not None:
            self.heap.release(block.address)

    def _compare(self) -> None:
        if self.moments and self.total > self.moments[-1].peak:
            self.moments[-1].peak, self.moments[-1].parts = self.total, +self.alive


@dataclass(slots=True)
class _Block:
    label: str
    size: int
    address: int


def _key(tensor: Tensor) -> int:
    """What tensors that share memory have in common."""
    return int(tensor.untyped_storage()._cdata)


def _cpu_attention(query: Tensor, key: Tensor, value: Tensor, *rest: Any, **_: Any) -> int:
    is_causal = len(rest) > 1 and rest[1]
    return int(sdpa_flop_count(query.shape, key.shape, value.shape)) // (2 if is_causal else 1)


def _cpu_attention_backward(gradient: Tensor, query: Tensor, key: Tensor, value: Tensor, *rest: Any, **_: Any) -> int:
    is_causal = len(rest) > 3 and rest[3]
    count = sdpa_backward_flop_count(gradient.shape, query.shape, key.shape, value.shape)
    return int(count) // (2 if is_causal else 1)


FLOPS: dict[Any, Callable[..., float]] = {
    **flop_registry,
    aten.addmm_: flop_registry[aten.addmm],
    aten._scaled_dot_product_flash_attention_for_cpu: _cpu_attention,
    aten._scaled_dot_product_flash_attention_for_cpu_backward: _cpu_attention_backward,
}
"""FLOPs of an operation by torch's own formulas, and of two that it has none for."""
