"""A decoder layer of the Llama shape (Llama, Mistral, Qwen2, Qwen3 ...) on frozen weights, with little to remember.

What is learned are adapters, so nothing needs the gradient of a frozen weight. A layer keeps its input, the inverse
norms, rotated queries, keys and values, the attention's output, and the two halves of the gated MLP; normalised inputs
and activations are computed again in the backward pass. Linear layers that read the same input are one matrix product,
their adapters (rank r, float32) two thin ones beside it (Hu et al. 2021), and a residual is added by the product that
ends in it. A CPU goes through long rows in blocks, so that what only one step of the computation needs stays small.
Of the last layer's states most stages read some only: there queries, MLP and all else behind the keys and values are
computed for these tokens alone, which for a reward model saves nearly the whole layer.

The layers stay transformers' and PEFT's: only `forward` is replaced, where `layout` has seen that it gives the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from types import MethodType
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from transformers import Cache, PreTrainedModel
from transformers.activations import SiLUActivation
from transformers.modeling_layers import GradientCheckpointingLayer

from duiqi.models.joined import Gradients, Joined, base_of, is_of_frozen_base, is_plain_linear, lay_side_by_side
from duiqi.models.tree_attention import Plan, TreeMask, Voice
from duiqi.packing.runs import Runs

PROJECTIONS = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
OUTPUT = "self_attn.o_proj"
GATED = ("mlp.gate_proj", "mlp.up_proj")
DOWN = "mlp.down_proj"
LINEARS = (*PROJECTIONS, OUTPUT, *GATED, DOWN)
NORMS = ("input_layernorm", "post_attention_layernorm")
BLOCK = 2048
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
        all(type(part := parts.get(name)) is nn.Linear or isinstance(part, BaseTunerLayer) for name in LINEARS)
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
            bases = [base_of(linear) for linear in linears]
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


def _forward(layer: Any, hidden_states: Tensor, **kwargs: Any) -> Tensor:
    """A layer's `forward`: hidden states B x T x H to the same, computed again in the backward pass where that is on.

    transformers' recomputation is in the class's `forward`, which ours stands in the place of; older releases have it
    in `__call__`.
    """
    recomputes = layer.training and getattr(layer, "gradient_checkpointing", False)
    if recomputes and "__call__" not in vars(GradientCheckpointingLayer):
        found: Tensor = layer._gradient_checkpointing_func(partial(_compute, layer, **kwargs), hidden_states)
        return found
    return _compute(layer, hidden_states, **kwargs)


def _compute(
    layer: Any,
    hidden_states: Tensor,
    attention_mask: Tensor | None = None,
    position_ids: Tensor | None = None,
    past_key_values: Cache | None = None,
    use_cache: bool | None = False,
    position_embeddings: tuple[Tensor, Tensor] | None = None,
    **kwargs: Any,
) -> Tensor:
    attention, mlp = layer.self_attn, layer.mlp
    shape = hidden_states.shape
    assert position_embeddings is not None
    plan: Plan | None = None
    voices: tuple[Voice, ...] = (_heard(layer, shape[0] * shape[1]),)
    is_last = attention.layer_idx == attention.config.num_hidden_layers - 1
    if isinstance(attention_mask, TreeMask):
        plan = attention_mask.plan_for(_window_of(attention), is_last=is_last)
        voices = attention_mask.voices or voices
    has_dropout = attention.training and attention.attention_dropout > 0
    if plan is not None and not has_dropout and _is_plain(attention, layer.input_layernorm, voices):
        hidden_states = residual_attention(hidden_states[0], layer, plan, voices, position_embeddings).unsqueeze(0)
    else:
        assert len(voices) == 1, "several voices in a layer that cannot tell them apart"
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
    if is_last and isinstance(attention_mask, TreeMask) and attention_mask.last.places is not None:
        if hidden_states.shape == shape:
            hidden_states = hidden_states[:, attention_mask.last.places]
        voices = _narrowed(voices, attention_mask.last.asked)
        attention_mask.is_narrowed = True
    if not _is_plain(mlp, layer.post_attention_layernorm, voices):
        assert len(voices) == 1, "several voices in a layer that cannot tell them apart"
        output: Tensor = hidden_states + mlp(layer.post_attention_layernorm(hidden_states))
        return output
    return residual_mlp(hidden_states.reshape(-1, shape[-1]), layer, voices).view(hidden_states.shape)


def _narrowed(voices: Sequence[Voice], asked: Runs) -> tuple[Voice, ...]:
    """The voices, their tokens numbered among the asked ones."""
    return tuple(Voice(voice.adapters, asked.numbers(voice.tokens)) for voice in voices)


def _heard(layer: Any, num_tokens: int) -> Voice:
    """The adapters that PEFT lets all tokens of a row hear now."""
    for linear in (layer.get_submodule(name) for name in LINEARS):
        if isinstance(linear, BaseTunerLayer):
            spot: Any = linear
            return Voice(() if spot._disable_adapters else tuple(spot._active_adapter), slice(0, num_tokens))
    return Voice((), slice(0, num_tokens))


def _window_of(attention: Any) -> int | None:
    """The layer's sliding window: its own where it has one (Qwen2), else its configuration's (Mistral)."""
    window: int | None = getattr(attention, "sliding_window", getattr(attention.config, "sliding_window", None))
    return window


def tells_apart(model: PreTrainedModel, mask: TreeMask) -> bool:
    """Whether tokens of the row of `mask` may hear the different adapters of its voices."""
    layers: list[Any] = llama_shaped_layers(model)
    linears = {layer.get_submodule(name) for layer in layers for name in LINEARS}
    adapted = {module for module in model.modules() if isinstance(module, BaseTunerLayer)}
    has_plans = all(mask.plan_for(_window_of(layer.self_attn)) is not None for layer in layers)
    return (
        has_plans
        and adapted <= linears
        and all(_is_plain(part, norm, mask.voices) for layer in layers for part, norm in _halves(layer))
    )


def _halves(layer: Any) -> list[tuple[nn.Module, nn.Module]]:
    """Attention and MLP, each with the norm before it."""
    return [(layer.self_attn, layer.input_layernorm), (layer.mlp, layer.post_attention_layernorm)]


def _is_plain(part: nn.Module, norm: Any, voices: Sequence[Voice]) -> bool:
    """Whether attention, or an MLP, is frozen, with adapters that are nothing but two matrices now."""
    linears = [child for name, child in part.named_children() if name.endswith("_proj")]
    norms: list[Any] = [norm, *(child for name, child in part.named_children() if name.endswith("_norm"))]
    return all(is_of_frozen_base(each.weight) for each in norms) and all(
        is_plain_linear(linear, voice.adapters) for linear in linears for voice in voices
    )


# -- blocks of tokens, and norms --------------------------------------------------------------------------------------


def _blocks(x: Tensor) -> list[slice]:
    """The rows of x in pieces on a CPU, in one elsewhere."""
    size = BLOCK if x.device.type == "cpu" else max(1, len(x))
    return [slice(start, min(start + size, len(x))) for start in range(0, len(x), size)]


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


def residual_attention(
    x: Tensor, layer: Any, plan: Plan, voices: Sequence[Voice], position_embeddings: tuple[Tensor, Tensor]
) -> Tensor:
    """x + attention of the normed x over the tree of `plan`, T x H; at the tokens that it asks for, R x H."""
    spots = layer.self_attn
    projections = Joined.of([spots.q_proj, spots.k_proj, spots.v_proj], voices)
    output = Joined.of([spots.o_proj], _narrowed(voices, plan.asked))
    found: Tensor = _Attention.apply(  # type: ignore[no-untyped-call]
        x, layer, plan, position_embeddings, projections, output, *projections.parameters, *output.parameters
    )
    return found


class _Attention(torch.autograd.Function):
    """Tensors inside are T x heads x D; queries, keys and values are columns of one tensor.

    Where the plan asks for R of T tokens, queries and all that follows from them have R rows.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        layer: Any,
        plan: Plan,
        position_embeddings: tuple[Tensor, Tensor],
        projections: Joined,
        output: Joined,
        *_parameters: Tensor,
    ) -> Tensor:
        attention, norm = layer.self_attn, layer.input_layernorm
        dim = attention.head_dim
        counts = tuple(width // dim for width in projections.widths)
        cos, sin = (each[0, :, None, : dim // 2] for each in position_embeddings)
        blocks, inverse = _blocks(x), inverse_norm(x, norm.variance_epsilon)
        joined, inner = x.new_empty(len(x), projections.width), x.new_empty(len(x), projections.rank)
        states = joined.view(len(x), -1, dim)
        turning = states[:, : sum(counts[:2])]
        head_norms = _HeadNorms(attention.q_norm, attention.k_norm, counts[0]) if hasattr(attention, "q_norm") else None
        before: list[Tensor] = []
        for rows in blocks:
            normed = _normed(x[rows], inverse[rows], norm.weight)
            projections(normed, joined[rows], inner[rows], start=rows.start)
            if head_norms is not None:
                before.append(turning[rows].clone())
                head_norms.apply_(turning[rows])
            turn_(turning[rows], cos[rows], sin[rows])
        q, k, v = states.split(counts, dim=1)
        residual, q = (x, q) if plan.places is None else (x[plan.places], q[plan.places])
        attended, lse = plan.attend(q, k, v, attention.scaling)
        result, output_inner = torch.empty_like(residual), x.new_empty(len(residual), output.rank)
        for rows in _blocks(residual):
            output(attended[rows].flatten(1), result[rows], output_inner[rows], onto=residual[rows], start=rows.start)
        ctx.save_for_backward(x, inverse, joined, inner, attended, lse, output_inner, cos, sin, *before)
        ctx.plan, ctx.scale, ctx.weight, ctx.head_norms = plan, attention.scaling, norm.weight, head_norms
        ctx.projections, ctx.output, ctx.counts = projections, output, counts
        return result

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, inverse, joined, inner, attended, lse, output_inner, cos, sin, *before = ctx.saved_tensors
        gradient, places = gradients[0].contiguous(), ctx.plan.places
        of_output, of_projections = Gradients(ctx.output), Gradients(ctx.projections)
        dtype = ctx.plan.backward_dtype(x.dtype)
        grad_attended = torch.empty(attended.shape, dtype=dtype, device=x.device)
        for rows in _blocks(gradient):
            states = attended[rows]
            found = of_output.back(gradient[rows], states.flatten(1), output_inner[rows], start=rows.start)
            grad_attended[rows] = found.view_as(states)
        states = joined.view(len(x), sum(ctx.counts), -1).to(dtype)
        grads = torch.empty_like(states)
        q, k, v = states.split(ctx.counts, dim=1)
        grad_q, grad_k, grad_v = grads.split(ctx.counts, dim=1)
        if places is None:
            into = grad_q, grad_k, grad_v
        else:
            q = q[places]
            into = torch.empty_like(q), grad_k, grad_v
        ctx.plan.attend_backward(q, k, v, attended.to(dtype), lse, grad_attended, ctx.scale, into)
        if places is not None:
            grad_q.zero_().index_copy_(0, places, into[0])
        del states, q, k, v, grad_attended, into
        grad_x = torch.empty_like(x) if ctx.needs_input_grad[0] else None
        for index, rows in enumerate(_blocks(x)):
            turning = grads[rows, : sum(ctx.counts[:2])]
            turn_(turning, cos[rows], -sin[rows])
            if ctx.head_norms is not None:
                ctx.head_norms.backward_(turning, before[index])
            normed = _normed(x[rows], inverse[rows], ctx.weight)
            part = grads[rows].flatten(1).to(x.dtype)
            if grad_x is None:  # the first layer: embeddings do not learn
                of_projections.gather(part, normed, inner[rows], start=rows.start)
                continue
            grad_normed = of_projections.back(part, normed, inner[rows], start=rows.start)
            grad_before = _norm_backward(grad_normed, x[rows], inverse[rows], ctx.weight)
            if places is None:
                torch.add(grad_before, gradient[rows], out=grad_x[rows])
            else:
                grad_x[rows] = grad_before
        if places is not None and grad_x is not None:
            grad_x.index_add_(0, places, gradient)
        return (grad_x, None, None, None, None, None, *of_projections.found(), *of_output.found())


@dataclass(frozen=True, slots=True)
class _HeadNorms:
    """The norms of queries and keys, head by head (Qwen3)."""

    query: Any
    key: Any
    heads: int

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


def residual_mlp(x: Tensor, layer: Any, voices: Sequence[Voice]) -> Tensor:
    """x + down(silu(gate(n)) up(n)), n the normed x (T x H; Shazeer 2020)."""
    mlp = layer.mlp
    gate, up, down = (Joined.of([linear], voices) for linear in (mlp.gate_proj, mlp.up_proj, mlp.down_proj))
    output: Tensor = _MLP.apply(  # type: ignore[no-untyped-call]
        x, layer.post_attention_layernorm, gate, up, down, *gate.parameters, *up.parameters, *down.parameters
    )
    return output


class _MLP(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, norm: Any, gate_proj: Joined, up_proj: Joined, down_proj: Joined, *_parameters: Tensor
    ) -> Tensor:
        inverse, result = inverse_norm(x, norm.variance_epsilon), torch.empty_like(x)
        gate, up = x.new_empty(len(x), gate_proj.width), x.new_empty(len(x), up_proj.width)
        inners = [x.new_empty(len(x), linear.rank) for linear in (gate_proj, up_proj, down_proj)]
        for rows in _blocks(x):
            gate_inner, up_inner, down_inner = (inner[rows] for inner in inners)
            normed = _normed(x[rows], inverse[rows], norm.weight)
            gate_proj(normed, gate[rows], gate_inner, start=rows.start)
            up_proj(normed, up[rows], up_inner, start=rows.start)
            product = nn.functional.silu(gate[rows]).mul_(up[rows])
            down_proj(product, result[rows], down_inner, onto=x[rows], start=rows.start)
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
            grad_product = of_down.back(gradient[rows], silu * up[rows], down_inner, start=rows.start)
            grad_gate = torch.ops.aten.silu_backward(grad_product * up[rows], gate[rows])
            grad_up = grad_product.mul_(silu)
            normed = _normed(x[rows], inverse[rows], ctx.weight)
            grad_normed = of_up.back(grad_up, normed, up_inner, start=rows.start)
            grad_normed = of_gate.back(grad_gate, normed, gate_inner, onto=grad_normed, start=rows.start)
            grad_before = _norm_backward(grad_normed, x[rows], inverse[rows], ctx.weight)
            torch.add(grad_before, gradient[rows], out=grad_x[rows])
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
