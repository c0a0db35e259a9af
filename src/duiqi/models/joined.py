"""Frozen linear layers that read the same input, computed as one, and the adapters on them.

Their weights lie side by side in memory, so that one matrix product makes the outputs of all. An adapter (rank r,
float32; Hu et al. 2021) costs two thin products beside it; different tokens of a row may hear different adapters.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from peft.tuners.lora import Linear as LoRALinear
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from duiqi.models.own_weights import OwnParameter
from duiqi.models.tree_attention import Voice


def base_of(linear: Any) -> Any:
    return linear.get_base_layer() if isinstance(linear, BaseTunerLayer) else linear


def is_of_frozen_base(parameter: Tensor) -> bool:
    """Whether it neither learns nor stands in for another while a role is heard."""
    return not parameter.requires_grad and not isinstance(parameter, OwnParameter)


def is_plain_linear(linear: nn.Module, adapters: Sequence[str]) -> bool:
    """Whether it is the base's, frozen, and its adapters are two matrices now: no dropout acting, no DoRA."""
    base = base_of(linear)
    if type(base) is not nn.Linear or not is_of_frozen_base(base.weight):
        return False
    if not isinstance(linear, BaseTunerLayer):
        return True
    return type(linear) is LoRALinear and not linear.merged and all(_is_two_matrices(linear, name) for name in adapters)


def _is_two_matrices(layer: Any, adapter: str) -> bool:
    if adapter not in layer.lora_A:
        return True
    dropout = layer.lora_dropout[adapter]
    is_silent = isinstance(dropout, nn.Identity) or not dropout.training or dropout.p == 0.0
    has_bias = layer.lora_A[adapter].bias is not None or layer.lora_B[adapter].bias is not None
    return is_silent and adapter not in layer.lora_variant and not has_bias


def lay_side_by_side(parameters: Sequence[nn.Parameter]) -> None:
    """Move matrices of one width into one piece of memory, one below the other; each stays what it was."""
    if lie_side_by_side(parameters):
        return
    whole = torch.cat([parameter.detach() for parameter in parameters])
    start = 0
    for parameter in parameters:
        parameter.data = whole[start : start + len(parameter)]
        start += len(parameter)


def side_by_side(tensors: Sequence[Tensor]) -> Tensor:
    """Tensors of one width, one below the other: as they are if they lie so in memory, else copied."""
    if not lie_side_by_side(tensors):
        return torch.cat([tensor.detach() for tensor in tensors])
    size = (sum(map(len, tensors)), *tensors[0].shape[1:])
    return tensors[0].detach().as_strided(size, tensors[0].stride())


def lie_side_by_side(tensors: Sequence[Tensor]) -> bool:
    """Whether they follow each other in one piece of memory; asks for no address, which a tensor of a plan has not."""
    storage, place = tensors[0].untyped_storage()._cdata, tensors[0].storage_offset()
    for tensor in tensors:
        if tensor.untyped_storage()._cdata != storage or tensor.storage_offset() != place:
            return False
        if not tensor.is_contiguous():
            return False
        place += tensor.numel()
    return True


@dataclass(frozen=True, slots=True)
class Up:
    """The second matrix of an adapter on one of several linear layers side by side."""

    weight: Tensor
    """N x r, in the precision of the frozen matrix."""
    scale: float
    ranks: slice
    """Its columns of the adapter's inner states."""
    columns: slice
    """Its columns of the joined outputs."""


@dataclass(frozen=True, slots=True)
class Thin:
    """An adapter on linear layers side by side, R ranks in all, heard by some tokens of the row."""

    tokens: slice
    ranks: slice
    """Its columns of the inner states, beside those of other adapters that the same tokens hear."""
    parameters: tuple[Tensor, ...]
    """The matrices that learn, in float32: first (r x K) and second (N x r) of every layer that has them."""
    down: Tensor
    """R x K: all first matrices, in the precision of the frozen ones."""
    ups: tuple[Up, ...]

    @classmethod
    def of(
        cls, linears: Sequence[Any], adapter: str, tokens: slice, dtype: torch.dtype, *, first_rank: int
    ) -> Thin | None:
        """An adapter on these layers; None where it is on none of them."""
        downs, ups, rank, column = list[Tensor](), list[Up](), 0, 0
        parameters: list[Tensor] = []
        for linear in linears:
            columns = slice(column, column + len(base_of(linear).weight))
            column = columns.stop
            if not isinstance(linear, BaseTunerLayer) or adapter not in linear.lora_A:
                continue
            spot: Any = linear
            down, up = spot.lora_A[adapter].weight, spot.lora_B[adapter].weight
            ranks = slice(rank, rank + len(down))
            rank = ranks.stop
            downs.append(down)
            ups.append(Up(up.detach().to(dtype), spot.scaling[adapter], ranks, columns))
            parameters += [down, up]
        if not ups:
            return None
        ranks = slice(first_rank, first_rank + rank)
        return cls(tokens, ranks, tuple(parameters), side_by_side(downs).to(dtype), tuple(ups))

    def rows(self, start: int, count: int) -> slice | None:
        """Which of `count` tokens that begin at `start` hear it."""
        first, last = max(self.tokens.start - start, 0), min(self.tokens.stop - start, count)
        return slice(first, last) if first < last else None


@dataclass(frozen=True, slots=True)
class Joined:
    """Frozen linear layers that read the same input as one: K inputs, N outputs side by side; and their adapters."""

    weight: Tensor
    bias: Tensor | None
    widths: tuple[int, ...]
    """Outputs of each."""
    adapters: tuple[Thin, ...]

    @classmethod
    @torch.no_grad()
    def of(cls, linears: Sequence[Any], voices: Sequence[Voice]) -> Joined:
        """The layers as the voices hear them."""
        bases = [base_of(linear) for linear in linears]
        weight, bias = side_by_side([base.weight for base in bases]), None
        if any(base.bias is not None for base in bases):
            biases = [weight.new_zeros(len(base.weight)) if base.bias is None else base.bias for base in bases]
            bias = side_by_side(biases)
        adapters: list[Thin] = []
        for voice in voices:
            rank = 0
            for name in voice.adapters:
                thin = Thin.of(linears, name, voice.tokens, weight.dtype, first_rank=rank)
                if thin is not None:
                    adapters.append(thin)
                    rank = thin.ranks.stop
        return cls(weight, bias, tuple(len(b.weight) for b in bases), tuple(adapters))

    @property
    def width(self) -> int:
        """N, the outputs of all."""
        return len(self.weight)

    @property
    def rank(self) -> int:
        """The most ranks that one voice has."""
        return max((thin.ranks.stop for thin in self.adapters), default=0)

    @property
    def parameters(self) -> list[Tensor]:
        """What autograd must know of: the matrices of all adapters, in order."""
        return [parameter for thin in self.adapters for parameter in thin.parameters]

    @torch.no_grad()
    def folded(self) -> Joined:
        """A copy in float32, the adapters in it."""
        weight = self.weight.to(torch.float32, copy=True)
        for thin in self.adapters:
            for up, down_weight, up_weight in zip(thin.ups, thin.parameters[::2], thin.parameters[1::2], strict=True):
                weight[up.columns].addmm_(up_weight, down_weight, alpha=up.scale)
        return Joined(weight, None if self.bias is None else self.bias.float(), self.widths, ())

    def outputs(self, x: Tensor, onto: Tensor | None = None) -> Tensor:
        """What x (T x K) becomes (T x N), `onto` added."""
        out = x.new_empty(len(x), self.width)
        self(x, out, x.new_empty(len(x), self.rank), onto=onto)
        return out

    def __call__(self, x: Tensor, out: Tensor, inner: Tensor, *, onto: Tensor | None = None, start: int = 0) -> None:
        """Write the outputs of x (T x K) into `out` (T x N), `onto` added, and the adapters' inner states (T x R).

        Args:
            start: Place of the first of these tokens in the row, by which it is known who hears what.
        """
        if onto is not None:
            torch.addmm(onto, x, self.weight.t(), out=out)
            if self.bias is not None:
                out.add_(self.bias)
        elif self.bias is not None:
            torch.addmm(self.bias, x, self.weight.t(), out=out)
        else:
            torch.mm(x, self.weight.t(), out=out)
        for thin in self.adapters:
            rows = thin.rows(start, len(x))
            if rows is None:
                continue
            states, outputs = inner[rows, thin.ranks], out[rows]
            torch.mm(x[rows], thin.down.t(), out=states)
            for up in thin.ups:
                outputs[:, up.columns].addmm_(states[:, up.ranks], up.weight.t(), alpha=up.scale)


class Gradients:
    """Gradients of the adapters of a `Joined`, gathered over blocks of tokens in float32."""

    def __init__(self, joined: Joined) -> None:
        self.joined = joined
        self._downs = [torch.zeros(thin.down.shape, device=thin.down.device) for thin in joined.adapters]
        # Laid out as r x N, for a product with few columns takes twice as long where they are not its fast dimension.
        self._up_weights = [[up.weight.t().contiguous() for up in thin.ups] for thin in joined.adapters]
        self._ups = [[torch.zeros(w.shape, device=w.device) for w in weights] for weights in self._up_weights]

    def gather(self, gradient: Tensor, x: Tensor, inner: Tensor, *, onto: Tensor | None = None, start: int = 0) -> None:
        """Add what tokens give whose outputs have these gradients (T x N); and the gradient of x to `onto`, if given.

        The gradient of x here is that through the adapters alone.
        """
        each = zip(self.joined.adapters, self._downs, self._up_weights, self._ups, strict=True)
        for thin, grad_down, up_weights, grad_ups in each:
            rows = thin.rows(start, len(x))
            if rows is None:
                continue
            of_rows, states = gradient[rows], inner[rows, thin.ranks]
            grad_states = torch.empty_like(states)
            for up, weight, grad_up in zip(thin.ups, up_weights, grad_ups, strict=True):
                part = of_rows[:, up.columns]
                grad_states[:, up.ranks].addmm_(part, weight.t(), beta=0, alpha=up.scale)
                _add_product(grad_up, states[:, up.ranks].t(), part)
            _add_product(grad_down, grad_states.t(), x[rows])
            if onto is not None:
                onto[rows].addmm_(grad_states, thin.down)

    def back(self, gradient: Tensor, x: Tensor, inner: Tensor, *, onto: Tensor | None = None, start: int = 0) -> Tensor:
        """`gather`, and the whole gradient of x, added in place to `onto` if given."""
        weight = self.joined.weight
        grad_x = gradient @ weight if onto is None else onto.addmm_(gradient, weight)
        self.gather(gradient, x, inner, onto=grad_x, start=start)
        return grad_x

    def found(self) -> list[Tensor]:
        """In the order of `Joined.parameters`."""
        found: list[Tensor] = []
        for thin, grad_down, grad_ups in zip(self.joined.adapters, self._downs, self._ups, strict=True):
            for up, grad_up in zip(thin.ups, grad_ups, strict=True):
                found += [grad_down[up.ranks], grad_up.mul_(up.scale).t()]
        return found


def _add_product(onto: Tensor, first: Tensor, second: Tensor) -> None:
    """onto += first second, `onto` in float32."""
    if first.dtype == onto.dtype:
        onto.addmm_(first, second)
    else:
        onto.add_(first @ second)
