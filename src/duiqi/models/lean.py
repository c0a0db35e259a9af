"""A decoder layer of the Llama shape (Llama, Mistral, Qwen2, Qwen3 ...) on frozen weights, with little to remember.

What is learned are adapters, so nothing needs the gradient of a frozen weight: a layer keeps its input, the inverse
norms, queries, keys, values, the attention's output, and the two halves of the gated MLP; normalised inputs and
activations are computed again in the backward pass, element by element. Linear layers that read the same input are
computed together, a residual is added by the matrix product that ends in it, and an adapter (rank r, float32) costs
two thin products beside each frozen matrix (Hu et al. 2021).

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

from duiqi.models.tree_attention import attention_forward

PROJECTIONS = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")
GATED = ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
NORMS = ("input_layernorm", "post_attention_layernorm")


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
    linears = [parts.get(name) for name in (*PROJECTIONS, *GATED)]
    own = {name for name, _ in parts["self_attn"].named_children()}
    return (
        all(isinstance(linear, nn.Linear | BaseTunerLayer) for linear in linears)
        and own <= {"q_proj", "k_proj", "v_proj", "o_proj", "q_norm", "k_norm"}
        and isinstance(getattr(parts["mlp"], "act_fn", None), nn.SiLU | SiLUActivation)
        and all(hasattr(parts[name], "variance_epsilon") for name in NORMS)
        and all(hasattr(parts["self_attn"], name) for name in ("head_dim", "scaling", "layer_idx"))
    )


def slim(layers: Sequence[nn.Module]) -> None:
    """Let these layers compute the lean way."""
    for layer in layers:
        layer.forward = MethodType(_forward, layer)


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
    spots = [attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj]
    spots += [mlp.gate_proj, mlp.up_proj, mlp.down_proj]
    assert position_embeddings is not None
    if not all(map(_is_plain, spots)):
        given = dict(position_ids=position_ids, past_key_values=past_key_values, use_cache=use_cache, **kwargs)
        given["position_embeddings"] = position_embeddings
        output: Tensor = type(layer).forward(layer, hidden_states, attention_mask, **given)
        return output
    q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj = map(Matrix.of, spots)
    batch, length, width = hidden_states.shape
    flat = hidden_states.reshape(-1, width)

    queries, keys, values = normed_projections(flat, layer.input_layernorm, (q_proj, k_proj, v_proj))
    heads = (batch, length, -1, attention.head_dim)
    query, key, value = queries.view(heads), keys.view(heads), values.view(heads)
    if hasattr(attention, "q_norm"):
        query, key = attention.q_norm(query), attention.k_norm(key)
    cos, sin = position_embeddings
    query, key = rotate(query, cos, sin).transpose(1, 2), rotate(key, cos, sin).transpose(1, 2)
    value = value.transpose(1, 2)
    if past_key_values is not None:
        key, value = past_key_values.update(key, value, attention.layer_idx)
    attended, _ = attention_forward(
        attention,
        query,
        key,
        value,
        attention_mask,
        dropout=attention.attention_dropout if attention.training else 0.0,
        scaling=attention.scaling,
        sliding_window=_window_of(attention),
    )
    flat = residual_projection(flat, attended.reshape(flat.shape[0], -1), o_proj)
    return residual_mlp(flat, layer.post_attention_layernorm, gate_proj, up_proj, down_proj).view(hidden_states.shape)


def _window_of(attention: Any) -> int | None:
    """The layer's sliding window: its own where it has one (Qwen2), else its configuration's (Mistral)."""
    window: int | None = getattr(attention, "sliding_window", getattr(attention.config, "sliding_window", None))
    return window


# -- a frozen matrix and its adapter -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Matrix:
    """A frozen linear layer (N x K, perhaps a bias) and the adapter heard on it (r x K and N x r), if any."""

    weight: Tensor
    bias: Tensor | None
    down: Tensor | None = None
    up: Tensor | None = None
    scale: float = 1.0
    thin: tuple[Tensor, Tensor] | None = None
    """The adapter's two matrices in the precision of the weight, the scale within the second."""

    @classmethod
    def of(cls, linear: Any) -> Matrix:
        if not isinstance(linear, BaseTunerLayer):
            return cls(linear.weight, linear.bias)
        base: Any = linear.get_base_layer()
        name = _adapter_heard(linear)
        if name is None:
            return cls(base.weight, base.bias)
        spot: Any = linear
        down, up, scale = spot.lora_A[name].weight, spot.lora_B[name].weight, spot.scaling[name]
        dtype = base.weight.dtype
        return cls(base.weight, base.bias, down, up, scale, (down.detach().to(dtype), (up.detach() * scale).to(dtype)))

    def folded(self) -> Tensor:
        """A copy of the matrix in float32, its adapter in it."""
        weight = self.weight.float()
        if self.down is None or self.up is None:
            return weight
        return torch.addmm(weight, self.up, self.down, alpha=self.scale)


def _adapter_heard(layer: Any) -> str | None:
    if layer._disable_adapters:
        return None
    return next((name for name in layer._active_adapter if name in layer.lora_A), None)


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


def _times(matrix: Matrix, x: Tensor, onto: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
    """x W' + bias + the adapter's part, added to `onto` if given; and the adapter's inner states (T x r)."""
    y = nn.functional.linear(x, matrix.weight, matrix.bias) if onto is None else _add_product(onto, x, matrix)
    if matrix.thin is None:
        return y, None
    down, up = matrix.thin
    inner = x @ down.t()
    return y.addmm_(inner, up.t()), inner


def _add_product(onto: Tensor, x: Tensor, matrix: Matrix) -> Tensor:
    y = torch.addmm(onto, x, matrix.weight.t())
    return y if matrix.bias is None else y.add_(matrix.bias)


def _back(
    matrix: Matrix, gradient: Tensor, x: Tensor, inner: Tensor | None, onto: Tensor | None
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Gradients of `_times`: of x (added in place to `onto` if given), of the adapter's two matrices."""
    grad_x = gradient @ matrix.weight if onto is None else onto.addmm_(gradient, matrix.weight)
    if matrix.thin is None or inner is None:
        return grad_x, None, None
    down, up = matrix.thin
    grad_inner = gradient @ up
    grad_x.addmm_(grad_inner, down)
    grad_up = (gradient.t() @ inner).float().mul_(matrix.scale)
    return grad_x, (grad_inner.t() @ x).float(), grad_up


def _adapters(matrices: Sequence[Matrix]) -> list[Tensor | None]:
    """What autograd must know of: the adapters' matrices, in order."""
    return [part for matrix in matrices for part in (matrix.down, matrix.up)]


# -- root mean square norm ---------------------------------------------------------------------------------------------


def inverse_norm(x: Tensor, eps: float) -> Tensor:
    """1 / sqrt(mean(x^2) + eps) of every row, T x 1 in float32."""
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


# -- the three pieces of a layer ---------------------------------------------------------------------------------------


def normed_projections(x: Tensor, norm: Any, matrices: tuple[Matrix, ...]) -> tuple[Tensor, ...]:
    """Several linear layers of the normed input (T x H), each T x N."""
    found: tuple[Tensor, ...] = _NormedProjections.apply(  # type: ignore[no-untyped-call]
        x, norm.weight, norm.variance_epsilon, matrices, *_adapters(matrices)
    )
    return found


class _NormedProjections(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, eps: float, matrices: tuple[Matrix, ...], *_adapters: Tensor | None
    ) -> tuple[Tensor, ...]:
        inverse = inverse_norm(x, eps)
        normed = _normed(x, inverse, weight)
        outputs, inner = zip(*(_times(matrix, normed) for matrix in matrices), strict=True)
        ctx.save_for_backward(x, inverse, weight, *inner)
        ctx.matrices = matrices
        return tuple(outputs)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, inverse, weight, *inner = ctx.saved_tensors
        normed = _normed(x, inverse, weight)
        grad: Tensor | None = None
        thin: list[Tensor | None] = []
        for matrix, gradient, states in zip(ctx.matrices, gradients, inner, strict=True):
            grad, *of_adapter = _back(matrix, gradient, normed, states, grad)
            thin += of_adapter
        assert grad is not None
        return (_norm_backward(grad, x, inverse, weight), None, None, None, *thin)


def residual_projection(x: Tensor, states: Tensor, matrix: Matrix) -> Tensor:
    """x + a linear layer of `states`."""
    output: Tensor = _ResidualProjection.apply(x, states, matrix, *_adapters([matrix]))  # type: ignore[no-untyped-call]
    return output


class _ResidualProjection(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, states: Tensor, matrix: Matrix, *_adapters: Tensor | None) -> Tensor:
        output, inner = _times(matrix, states, onto=x)
        ctx.save_for_backward(states, inner)
        ctx.matrix = matrix
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        states, inner = ctx.saved_tensors
        grad, *thin = _back(ctx.matrix, gradients[0], states, inner, None)
        return (gradients[0], grad, None, *thin)


def residual_mlp(x: Tensor, norm: Any, gate: Matrix, up: Matrix, down: Matrix) -> Tensor:
    """x + down(silu(gate(n)) up(n)), n the normed x (Shazeer 2020)."""
    output: Tensor = _ResidualMLP.apply(  # type: ignore[no-untyped-call]
        x, norm.weight, norm.variance_epsilon, (gate, up, down), *_adapters([gate, up, down])
    )
    return output


class _ResidualMLP(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, eps: float, matrices: tuple[Matrix, ...], *_adapters: Tensor | None
    ) -> Tensor:
        inverse = inverse_norm(x, eps)
        normed = _normed(x, inverse, weight)
        (gate, gate_inner), (up, up_inner) = (_times(matrix, normed) for matrix in matrices[:2])
        del normed
        output, down_inner = _times(matrices[2], nn.functional.silu(gate).mul_(up), onto=x)
        ctx.save_for_backward(x, inverse, weight, gate, up, gate_inner, up_inner, down_inner)
        ctx.matrices = matrices
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, inverse, weight, gate, up, gate_inner, up_inner, down_inner = ctx.saved_tensors
        gate_proj, up_proj, down_proj = ctx.matrices
        silu = nn.functional.silu(gate)
        grad_product, *thin_down = _back(down_proj, gradients[0], silu * up, down_inner, None)
        grad_gate = torch.ops.aten.silu_backward(grad_product * up, gate)
        grad_up = grad_product.mul_(silu)
        normed = _normed(x, inverse, weight)
        grad, *thin_up = _back(up_proj, grad_up, normed, up_inner, None)
        grad, *thin_gate = _back(gate_proj, grad_gate, normed, gate_inner, grad)
        grad_x = _norm_backward(grad, x, inverse, weight).add_(gradients[0])
        return (grad_x, None, None, None, *thin_gate, *thin_up, *thin_down)


# -- rotary positions --------------------------------------------------------------------------------------------------


def rotate(states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions (Su et al. 2021) on B x T x heads x D, with cos and sin B x T x D whose halves are equal."""
    output: Tensor = _Rotate.apply(states, cos, sin)  # type: ignore[no-untyped-call]
    return output


class _Rotate(torch.autograd.Function):
    """A rotation: its gradient is the gradient turned back."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        half = states.shape[-1] // 2
        cos, sin = cos[..., :half].unsqueeze(-2), sin[..., :half].unsqueeze(-2)
        ctx.save_for_backward(cos, sin)
        return turned(states, cos, sin, 1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        cos, sin = ctx.saved_tensors
        return turned(gradients[0], cos, sin, -1), None, None


def turned(states: Tensor, cos: Tensor, sin: Tensor, sign: int) -> Tensor:
    """States ... x D turned by angles whose cosines and sines are ... x D/2; back again with sign -1."""
    first, second = states.chunk(2, dim=-1)
    out = torch.empty_like(states)
    left, right = out.chunk(2, dim=-1)
    torch.mul(first, cos, out=left).addcmul_(second, sin, value=-sign)
    torch.mul(second, cos, out=right).addcmul_(first, sin, value=sign)
    return out
