"""A decoder layer of the Llama shape (Llama, Mistral, Qwen2, Qwen3 ...) on frozen weights, with little to remember.

What is learned are adapters, so nothing needs the gradient of a frozen weight. A layer keeps its input, the inverse
norms, rotated queries, keys and values, the attention's output, and the two halves of the gated MLP; normalised inputs
and activations are computed again in the backward pass. Linear layers that read the same input are one matrix product,
their adapters (rank r, float32) two thin ones beside it (Hu et al. 2021), and a residual is added by the product that
ends in it. A CPU goes through long rows in blocks, so that what only one step of the computation needs stays small.

The layers stay transformers' and PEFT's: only `forward` is replaced, where `layout` has seen that it gives the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import MethodType
from typing import Any

import torch
from peft.tuners.lora import Linear as LoRALinear
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from transformers import Cache, PreTrainedModel
from transformers.activations import SiLUActivation

from duiqi.models.tree_attention import Plan, TreeMask

PROJECTIONS = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
OUTPUT = "self_attn.o_proj"
GATED = ("mlp.gate_proj", "mlp.up_proj")
DOWN = "mlp.down_proj"
LINEARS = (*PROJECTIONS, OUTPUT, *GATED, DOWN)
NORMS = ("input_layernorm", "post_attention_layernorm")
BLOCK = 1024
"""Tokens that a CPU computes together where every one is computed alone; more keep more memory and save no time."""


def llama_shaped_layers(model: PreTrainedModel) -> list[nn.Module]:
    """The decoder layers of a model if all of them have the parts of Llama's, by name; else none."""
    layers = getattr(model.get_decoder(), "layers", None)
    if not isinstance(layers, nn.ModuleList):
        return []
    return list(layers) if all(_has_shape(layer) for layer in layers) else []


def _has_shape(layer: nn.Module) -> bool:
    children = {name for name, _ in layer.named_children()}
    if children != {"self_attn", "mlp", *NORMS}:
        return False
    parts = dict(layer.named_modules())
    own = {name for name, _ in parts["self_attn"].named_children()}
    return (
        all(isinstance(parts.get(name), nn.Linear | BaseTunerLayer) for name in LINEARS)
        and own - {"q_norm", "k_norm"} == {"q_proj", "k_proj", "v_proj", "o_proj"}
        and ("q_norm" in own) == ("k_norm" in own)
        and isinstance(getattr(parts["mlp"], "act_fn", None), nn.SiLU | SiLUActivation)
        and all(hasattr(parts[name], "variance_epsilon") for name in NORMS)
        and all(hasattr(parts["self_attn"], name) for name in ("head_dim", "scaling", "layer_idx"))
    )


def slim(layers: Sequence[nn.Module]) -> None:
    """Let these layers compute the lean way, and lay what they multiply together side by side in memory."""
    for layer in layers:
        layer.forward = MethodType(_forward, layer)
        for linears in _joined_linears(layer):
            bases = [_base_of(linear) for linear in linears]
            lay_side_by_side([base.weight for base in bases])
            if all(base.bias is not None for base in bases):
                lay_side_by_side([base.bias for base in bases])


def gather_adapters(layers: Sequence[nn.Module]) -> None:
    """Lay the adapters of layers that multiply together side by side in memory too, whoever hears them."""
    for layer in layers:
        for linears in _joined_linears(layer):
            adapted: list[Any] = [linear for linear in linears if isinstance(linear, BaseTunerLayer)]
            for name in {name for linear in adapted for name in linear.lora_A}:
                lay_side_by_side([linear.lora_A[name].weight for linear in adapted if name in linear.lora_A])


def _joined_linears(layer: nn.Module) -> list[list[nn.Module]]:
    """The linear layers of a decoder layer that read the same input."""
    return [[layer.get_submodule(name) for name in names] for names in (PROJECTIONS, GATED)]


def restore(layers: Sequence[nn.Module]) -> None:
    """Let these layers compute as transformers does."""
    for layer in layers:
        vars(layer).pop("forward", None)


def _forward(
    layer: Any,
    hidden_states: Tensor,
    attention_mask: Tensor | None = None,
    position_ids: Tensor | None = None,
    past_key_values: Cache | None = None,
    use_cache: bool | None = False,
    position_embeddings: tuple[Tensor, Tensor] | None = None,
    **kwargs: Any,
) -> Tensor:
    """A layer's `forward`: hidden states B x T x H to the same."""
    attention, mlp = layer.self_attn, layer.mlp
    shape = hidden_states.shape
    assert position_embeddings is not None
    plan = attention_mask.plan_for(_window_of(attention)) if isinstance(attention_mask, TreeMask) else None
    has_dropout = attention.training and attention.attention_dropout > 0
    projections = [attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj]
    if plan is not None and not has_dropout and all(map(_is_plain, projections)):
        hidden_states = residual_attention(hidden_states[0], layer, plan, position_embeddings)
    else:
        attended, _ = attention(
            hidden_states=layer.input_layernorm(hidden_states),
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            use_cache=use_cache,
            position_embeddings=position_embeddings,
            **kwargs,
        )
        hidden_states = hidden_states + attended
    if not all(map(_is_plain, (mlp.gate_proj, mlp.up_proj, mlp.down_proj))):
        output: Tensor = hidden_states + mlp(layer.post_attention_layernorm(hidden_states))
        return output.view(shape)
    return residual_mlp(hidden_states.reshape(-1, shape[-1]), layer).view(shape)


def _window_of(attention: Any) -> int | None:
    """The layer's sliding window: its own where it has one (Qwen2), else its configuration's (Mistral)."""
    window: int | None = getattr(attention, "sliding_window", getattr(attention.config, "sliding_window", None))
    return window


def _is_plain(linear: nn.Module) -> bool:
    """Whether a layer is frozen, and its adapter nothing but two matrices now: no dropout acting, no DoRA."""
    if not isinstance(linear, BaseTunerLayer):
        return isinstance(linear, nn.Linear) and not linear.weight.requires_grad
    if type(linear) is not LoRALinear or linear.get_base_layer().weight.requires_grad:
        return False
    layer: Any = linear
    name = _adapter_heard(layer)
    if name is None:
        return True
    dropout = layer.lora_dropout[name]
    is_silent = isinstance(dropout, nn.Identity) or not dropout.training or dropout.p == 0.0
    has_bias = layer.lora_A[name].bias is not None or layer.lora_B[name].bias is not None
    return is_silent and name not in layer.lora_variant and not has_bias and not layer.merged


def _adapter_heard(layer: Any) -> str | None:
    if layer._disable_adapters:
        return None
    return next((name for name in layer._active_adapter if name in layer.lora_A), None)


def _base_of(linear: Any) -> Any:
    return linear.get_base_layer() if isinstance(linear, BaseTunerLayer) else linear


# -- frozen matrices that read the same input, and their adapters ------------------------------------------------------


def lay_side_by_side(parameters: Sequence[nn.Parameter]) -> None:
    """Move matrices of one width into one piece of memory, one below the other; each stays what it was."""
    if side_by_side(parameters).data_ptr() == parameters[0].data_ptr():
        return
    whole = torch.cat([parameter.detach() for parameter in parameters])
    start = 0
    for parameter in parameters:
        parameter.data = whole[start : start + len(parameter)]
        start += len(parameter)


def side_by_side(tensors: Sequence[Tensor]) -> Tensor:
    """Tensors of one width, one below the other: as they are if they lie so in memory, else copied."""
    first, place = tensors[0], tensors[0].data_ptr()
    storage = first.untyped_storage().data_ptr()
    for tensor in tensors:
        if tensor.data_ptr() != place or tensor.untyped_storage().data_ptr() != storage or not tensor.is_contiguous():
            return torch.cat([tensor.detach() for tensor in tensors])
        place += tensor.nbytes
    size = (sum(map(len, tensors)), *first.shape[1:])
    return first.detach().as_strided(size, first.stride())


@dataclass(frozen=True, slots=True)
class Matrix:
    """A frozen linear layer (N x K, perhaps a bias) and the adapter heard on it (r x K and N x r), if any."""

    weight: Tensor
    bias: Tensor | None
    down: Tensor | None = None
    up: Tensor | None = None
    scale: float = 1.0

    @classmethod
    def of(cls, linear: Any) -> Matrix:
        base = _base_of(linear)
        name = _adapter_heard(linear) if isinstance(linear, BaseTunerLayer) else None
        if name is None:
            return cls(base.weight, base.bias)
        return cls(base.weight, base.bias, linear.lora_A[name].weight, linear.lora_B[name].weight, linear.scaling[name])

    def folded(self) -> Tensor:
        """A copy of the matrix in float32, its adapter in it."""
        weight = self.weight.float()
        if self.down is None or self.up is None:
            return weight
        return torch.addmm(weight, self.up, self.down, alpha=self.scale)


@dataclass(frozen=True, slots=True)
class Up:
    """The second matrix of an adapter among several side by side."""

    weight: Tensor
    """N x r, in the precision of the frozen matrices."""
    scale: float
    ranks: slice
    """Its columns of the joined inner states."""
    columns: slice
    """Its columns of the joined outputs."""


@dataclass(frozen=True, slots=True)
class Joined:
    """Linear layers that read the same input as one: K inputs, N outputs side by side, R ranks in all."""

    matrices: tuple[Matrix, ...]
    weight: Tensor
    bias: Tensor | None
    down: Tensor | None
    """R x K; None: no adapter is heard."""
    ups: tuple[Up, ...]

    @classmethod
    @torch.no_grad()
    def of(cls, linears: Sequence[Any]) -> Joined:
        matrices = tuple(map(Matrix.of, linears))
        weight = side_by_side([matrix.weight for matrix in matrices])
        biases = [matrix.bias for matrix in matrices]
        bias = None
        if any(each is not None for each in biases):
            filled = [weight.new_zeros(len(m.weight)) if m.bias is None else m.bias for m in matrices]
            bias = side_by_side(filled)
        ups, rank, column = [], 0, 0
        for matrix in matrices:
            columns = slice(column, column + len(matrix.weight))
            if matrix.up is not None:
                ranks = slice(rank, rank + matrix.up.shape[1])
                ups.append(Up(matrix.up.detach().to(weight.dtype), matrix.scale, ranks, columns))
                rank = ranks.stop
            column = columns.stop
        downs = [matrix.down for matrix in matrices if matrix.down is not None]
        down = side_by_side(downs).to(weight.dtype) if downs else None
        return cls(matrices, weight, bias, down, tuple(ups))

    @property
    def width(self) -> int:
        """N, the outputs of all."""
        return len(self.weight)

    @property
    def rank(self) -> int:
        """R, the ranks of all adapters."""
        return 0 if self.down is None else len(self.down)

    @property
    def adapters(self) -> list[Tensor | None]:
        """What autograd must know of: the adapters' matrices, in order."""
        return [part for matrix in self.matrices for part in (matrix.down, matrix.up)]

    def folded(self) -> Joined:
        """A copy in float32 with the adapters in it."""
        weight = torch.cat([matrix.folded() for matrix in self.matrices])
        return Joined(self.matrices, weight, None if self.bias is None else self.bias.float(), None, ())

    def outputs(self, x: Tensor, onto: Tensor | None = None) -> Tensor:
        """What x (T x K) becomes (T x N), `onto` added."""
        out = x.new_empty(len(x), self.width)
        self(x, out, x.new_empty(len(x), self.rank), onto)
        return out

    def __call__(self, x: Tensor, out: Tensor, inner: Tensor, onto: Tensor | None = None) -> None:
        """Write the outputs of x (T x K) into `out` (T x N), `onto` added, and the adapters' inner states (T x R)."""
        if onto is not None:
            torch.addmm(onto, x, self.weight.t(), out=out)
            if self.bias is not None:
                out.add_(self.bias)
        elif self.bias is not None:
            torch.addmm(self.bias, x, self.weight.t(), out=out)
        else:
            torch.mm(x, self.weight.t(), out=out)
        if self.down is not None:
            torch.mm(x, self.down.t(), out=inner)
            for up in self.ups:
                out[:, up.columns].addmm_(inner[:, up.ranks], up.weight.t(), alpha=up.scale)


class Gradients:
    """Gradients of the adapters of a `Joined`, gathered over blocks of tokens in float32."""

    def __init__(self, joined: Joined) -> None:
        self.joined = joined
        device = joined.weight.device
        self._down = torch.zeros(joined.rank, joined.weight.shape[1], device=device)
        self._ups = [torch.zeros(up.weight.shape[1], len(up.weight), device=device) for up in joined.ups]

    def gather(self, gradient: Tensor, x: Tensor, inner: Tensor) -> Tensor:
        """Add what tokens with these gradients of their outputs (T x N) give; return those of the inner states."""
        grad_inner = torch.empty_like(inner)
        for up, gathered in zip(self.joined.ups, self._ups, strict=True):
            part = gradient[:, up.columns]
            grad_inner[:, up.ranks].addmm_(part, up.weight, beta=0, alpha=up.scale)
            _add_product(gathered, inner[:, up.ranks].t(), part)
        _add_product(self._down, grad_inner.t(), x)
        return grad_inner

    def back(self, gradient: Tensor, x: Tensor, inner: Tensor, onto: Tensor | None = None) -> Tensor:
        """`gather`, and return the gradient of x, added in place to `onto` if given."""
        joined = self.joined
        grad_x = gradient @ joined.weight if onto is None else onto.addmm_(gradient, joined.weight)
        grad_inner = self.gather(gradient, x, inner)
        return grad_x if joined.down is None else grad_x.addmm_(grad_inner, joined.down)

    def found(self) -> list[Tensor | None]:
        """In the order of `Joined.adapters`."""
        found: list[Tensor | None] = []
        ups = iter(zip(self.joined.ups, self._ups, strict=True))
        for matrix in self.joined.matrices:
            if matrix.up is None:
                found += [None, None]
                continue
            up, gathered = next(ups)
            found += [self._down[up.ranks], gathered.mul_(up.scale).t()]
        return found


def _add_product(onto: Tensor, first: Tensor, second: Tensor) -> None:
    """onto += first second, `onto` in float32."""
    if first.dtype == onto.dtype:
        onto.addmm_(first, second)
    else:
        onto.add_(first @ second)


def _blocks(x: Tensor) -> list[slice]:
    """The rows of x in pieces on a CPU, in one elsewhere."""
    size = BLOCK if x.device.type == "cpu" else max(1, len(x))
    return [slice(start, min(start + size, len(x))) for start in range(0, len(x), size)]


# -- root mean square norm ---------------------------------------------------------------------------------------------


def inverse_norm(x: Tensor, eps: float) -> Tensor:
    """1 / sqrt(mean(x^2) + eps) of every row, ... x 1 in float32."""
    norm: Tensor = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)
    return norm.square_().div_(x.shape[-1]).add_(eps).rsqrt_()


def _normed(x: Tensor, inverse: Tensor, weight: Tensor) -> Tensor:
    normed: Tensor = (x * inverse).to(x.dtype).mul_(weight)
    return normed


def _norm_backward(grad: Tensor, x: Tensor, inverse: Tensor, weight: Tensor) -> Tensor:
    """The gradient of x, given that of `_normed`: with n = x / rms and g' = g w, (g' - n mean(g' n)) / rms."""
    scaled = grad * weight
    mean = (scaled * x).sum(-1, keepdim=True, dtype=torch.float32).div_(x.shape[-1]).mul_(inverse.pow(3))
    grad_x: Tensor = torch.addcmul(scaled * inverse, x, mean, value=-1).to(x.dtype)
    return grad_x


# -- the two halves of a layer -----------------------------------------------------------------------------------------


def residual_attention(x: Tensor, layer: Any, plan: Plan, position_embeddings: tuple[Tensor, Tensor]) -> Tensor:
    """x + attention of the normed x over the tree of `plan` (T x H each)."""
    spots = layer.self_attn
    projections, output = Joined.of([spots.q_proj, spots.k_proj, spots.v_proj]), Joined.of([spots.o_proj])
    found: Tensor = _Attention.apply(  # type: ignore[no-untyped-call]
        x, layer, plan, position_embeddings, projections, output, *projections.adapters, *output.adapters
    )
    return found


class _Attention(torch.autograd.Function):
    """Tensors inside are T x heads x D; queries, keys and values are columns of one tensor."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        layer: Any,
        plan: Plan,
        position_embeddings: tuple[Tensor, Tensor],
        projections: Joined,
        output: Joined,
        *_adapters: Tensor | None,
    ) -> Tensor:
        attention, norm = layer.self_attn, layer.input_layernorm
        dim = attention.head_dim
        key_heads = len(projections.matrices[1].weight) // dim
        heads = projections.width // dim - 2 * key_heads
        cos, sin = (each[0, :, None, : dim // 2] for each in position_embeddings)
        blocks, inverse = _blocks(x), inverse_norm(x, norm.variance_epsilon)
        joined, inner = x.new_empty(len(x), projections.width), x.new_empty(len(x), projections.rank)
        states = joined.view(len(x), -1, dim)
        turning = states[:, : heads + key_heads]
        head_norms = _HeadNorms.of(attention, heads) if hasattr(attention, "q_norm") else None
        before: list[Tensor] = []
        for rows in blocks:
            projections(_normed(x[rows], inverse[rows], norm.weight), joined[rows], inner[rows])
            if head_norms is not None:
                before.append(turning[rows].clone())
                head_norms.apply_(turning[rows])
            turn_(turning[rows], cos[rows], sin[rows])
        q, k, v = states.split([heads, key_heads, key_heads], dim=1)
        attended, lse = plan.attend(q, k, v, attention.scaling)
        result, output_inner = torch.empty_like(x), x.new_empty(len(x), output.rank)
        for rows in blocks:
            output(attended[rows].flatten(1), result[rows], output_inner[rows], onto=x[rows])
        ctx.save_for_backward(x, inverse, joined, inner, attended, lse, output_inner, cos, sin, *before)
        ctx.plan, ctx.scale, ctx.weight, ctx.head_norms = plan, attention.scaling, norm.weight, head_norms
        ctx.projections, ctx.output, ctx.heads = projections, output, (heads, key_heads, key_heads)
        return result

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, inverse, joined, inner, attended, lse, output_inner, cos, sin, *before = ctx.saved_tensors
        gradient, blocks = gradients[0].contiguous(), _blocks(x)
        of_output, of_projections = Gradients(ctx.output), Gradients(ctx.projections)
        dtype = ctx.plan.backward_dtype(x.dtype)
        grad_attended = torch.empty(attended.shape, dtype=dtype, device=x.device)
        for rows in blocks:
            grad_attended[rows] = of_output.back(gradient[rows], attended[rows].flatten(1), output_inner[rows]).view_as(
                attended[rows]
            )
        states = joined.view(len(x), sum(ctx.heads), -1).to(dtype)
        grads = torch.empty_like(states)
        q, k, v = states.split(ctx.heads, dim=1)
        into = grads.split(ctx.heads, dim=1)
        ctx.plan.attend_backward(q, k, v, attended.to(dtype), lse, grad_attended, ctx.scale, into)
        del states, q, k, v, grad_attended
        grad_x = torch.empty_like(x) if ctx.needs_input_grad[0] else None
        for index, rows in enumerate(blocks):
            turning = grads[rows, : sum(ctx.heads[:2])]
            turn_(turning, cos[rows], -sin[rows])
            if ctx.head_norms is not None:
                ctx.head_norms.backward_(turning, before[index])
            normed = _normed(x[rows], inverse[rows], ctx.weight)
            part = grads[rows].flatten(1).to(x.dtype)
            if grad_x is None:  # the first layer: embeddings do not learn
                of_projections.gather(part, normed, inner[rows])
                continue
            grad_normed = of_projections.back(part, normed, inner[rows])
            grad_before = _norm_backward(grad_normed, x[rows], inverse[rows], ctx.weight)
            torch.add(grad_before, gradient[rows], out=grad_x[rows])
        return (grad_x, None, None, None, None, None, *of_projections.found(), *of_output.found())


@dataclass(frozen=True, slots=True)
class _HeadNorms:
    """The norms of queries and keys, head by head (Qwen3)."""

    query: Any
    key: Any
    heads: int

    @classmethod
    def of(cls, attention: Any, heads: int) -> _HeadNorms:
        return cls(attention.q_norm, attention.k_norm, heads)

    def apply_(self, states: Tensor) -> None:
        """Normalise queries and keys (T x heads x D) in place."""
        for norm, part in zip((self.query, self.key), self._parts(states), strict=True):
            part.copy_(_normed(part, inverse_norm(part, norm.variance_epsilon), norm.weight))

    def backward_(self, gradient: Tensor, before: Tensor) -> None:
        """Turn the gradient of what `apply_` made of `before` into that of `before`, in place."""
        for norm, part, x in zip((self.query, self.key), self._parts(gradient), self._parts(before), strict=True):
            part.copy_(_norm_backward(part, x, inverse_norm(x, norm.variance_epsilon), norm.weight))

    def _parts(self, states: Tensor) -> tuple[Tensor, Tensor]:
        return states[:, : self.heads], states[:, self.heads :]


def residual_mlp(x: Tensor, layer: Any) -> Tensor:
    """x + down(silu(gate(n)) up(n)), n the normed x (T x H; Shazeer 2020)."""
    mlp = layer.mlp
    gate, up, down = (Joined.of([linear]) for linear in (mlp.gate_proj, mlp.up_proj, mlp.down_proj))
    output: Tensor = _MLP.apply(  # type: ignore[no-untyped-call]
        x, layer.post_attention_layernorm, gate, up, down, *gate.adapters, *up.adapters, *down.adapters
    )
    return output


class _MLP(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, norm: Any, gate_proj: Joined, up_proj: Joined, down_proj: Joined, *_adapters: Tensor | None
    ) -> Tensor:
        inverse, result = inverse_norm(x, norm.variance_epsilon), torch.empty_like(x)
        gate, up = x.new_empty(len(x), gate_proj.width), x.new_empty(len(x), up_proj.width)
        inners = [x.new_empty(len(x), linear.rank) for linear in (gate_proj, up_proj, down_proj)]
        for rows in _blocks(x):
            of_gate, of_up, of_down = (inner[rows] for inner in inners)
            normed = _normed(x[rows], inverse[rows], norm.weight)
            gate_proj(normed, gate[rows], of_gate)
            up_proj(normed, up[rows], of_up)
            down_proj(nn.functional.silu(gate[rows]).mul_(up[rows]), result[rows], of_down, onto=x[rows])
        ctx.save_for_backward(x, inverse, gate, up, *inners)
        ctx.weight, ctx.linears = norm.weight, (gate_proj, up_proj, down_proj)
        return result

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, inverse, gate, up, *inners = ctx.saved_tensors
        of_gate, of_up, of_down = map(Gradients, ctx.linears)
        gradient, grad_x = gradients[0].contiguous(), torch.empty_like(x)
        for rows in _blocks(x):
            gate_inner, up_inner, down_inner = (inner[rows] for inner in inners)
            silu = nn.functional.silu(gate[rows])
            grad_product = of_down.back(gradient[rows], silu * up[rows], down_inner)
            grad_gate = torch.ops.aten.silu_backward(grad_product * up[rows], gate[rows])
            grad_up = grad_product.mul_(silu)
            normed = _normed(x[rows], inverse[rows], ctx.weight)
            grad_normed = of_up.back(grad_up, normed, up_inner)
            grad_normed = of_gate.back(grad_gate, normed, gate_inner, onto=grad_normed)
            torch.add(_norm_backward(grad_normed, x[rows], inverse[rows], ctx.weight), gradient[rows], out=grad_x[rows])
        return (grad_x, None, None, None, None, *of_gate.found(), *of_up.found(), *of_down.found())


# -- rotary positions --------------------------------------------------------------------------------------------------


def turn_(states: Tensor, cos: Tensor, sin: Tensor) -> None:
    """Rotary positions (Su et al. 2021) in place: states ... x D by angles of cosine and sine ... x D/2.

    It is a rotation: with -sin, it turns a gradient back.
    """
    first, second = states.chunk(2, dim=-1)
    moved = first * sin
    first.mul_(cos).addcmul_(second, sin, value=-1)
    second.mul_(cos).add_(moved)
