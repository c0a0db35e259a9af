"""How an architecture computes a batch: packed or padded, with lean layers or transformers' own. Tried, not listed."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from duiqi.models.lean import llama_shaped_layers, restore, slim
from duiqi.models.own_weights import dtype_of
from duiqi.models.quantized import rounds_activations
from duiqi.models.tree_attention import NAME, TreeMask, register
from duiqi.packing.batch import Family, pack
from duiqi.packing.runs import Runs

TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.06, torch.float16: 0.02}
"""How far hidden states may be from those of the plain path, relative to their size, in each precision."""


@dataclass(frozen=True)
class Layout:
    """What was found, and why in a few words for the log."""

    is_packed: bool
    is_lean: bool
    reason: str = ""

    def __str__(self) -> str:
        if not self.is_packed:
            return f"padded rows ({self.reason})"
        return "packed rows, shared prompts computed once" + (", lean layers" if self.is_lean else "")


def trunk_of(network: PreTrainedModel) -> nn.Module:
    """The network without its output head."""
    decoder: nn.Module = network.get_decoder()
    inner: nn.Module = getattr(network, network.base_model_prefix)
    return inner if decoder is network else decoder


def precision_of(model: PreTrainedModel) -> torch.dtype:
    """How exactly two ways to compute the same agree: as in bfloat16 where activations are rounded to 8 bits."""
    return torch.bfloat16 if rounds_activations(model) else dtype_of(model)


@torch.no_grad()
def find_layout(model: PreTrainedModel) -> Layout:
    """Choose the fastest way to compute batches that gives the hidden states of one sequence at a time.

    A packed row with a shared prompt is computed and compared; an architecture whose attention cannot take it (ALiBi,
    state spaces, soft caps) either refuses it or differs, and is then computed in padded rows. What is chosen stays
    set on the model.
    """
    asked = model.config._attn_implementation
    if asked != "sdpa":
        return Layout(is_packed=False, is_lean=False, reason=f"{asked} attention")
    if odd := _odd_layers(model):
        return Layout(is_packed=False, is_lean=False, reason=f"{type(model).__name__} has layers of {odd}")
    wanted = _apart(model)
    register()
    model.set_attn_implementation(NAME)
    reason = _difference(model, wanted)
    if reason:
        model.set_attn_implementation(asked)
        return Layout(is_packed=False, is_lean=False, reason=reason)
    layers = llama_shaped_layers(model)
    slim(layers)
    if layers and _difference(model, wanted):
        restore(layers)
        layers = []
    return Layout(is_packed=True, is_lean=bool(layers))


@torch.no_grad()
def likely_layout(model: PreTrainedModel) -> Layout:
    """What `find_layout` will most likely choose, for a network of shapes without weights (on torch's meta device).

    Whether an architecture takes packed rows shows in the shapes; whether it gives the right numbers then does not.
    Positions that are biases on the scores (ALiBi) never do.
    """
    asked = model.config._attn_implementation
    if asked != "sdpa":
        return Layout(is_packed=False, is_lean=False, reason=f"{asked} attention")
    if odd := _odd_layers(model):
        return Layout(is_packed=False, is_lean=False, reason=f"{type(model).__name__} has layers of {odd}")
    if getattr(model.config, "alibi", False) or getattr(model.config, "position_embedding", None) == "alibi":
        return Layout(is_packed=False, is_lean=False, reason=f"{type(model).__name__} has ALiBi positions")
    register()
    model.set_attn_implementation(NAME)
    if reason := _difference(model, None):
        model.set_attn_implementation(asked)
        return Layout(is_packed=False, is_lean=False, reason=reason)
    layers = llama_shaped_layers(model)
    slim(layers)
    return Layout(is_packed=True, is_lean=bool(layers))


def unslimmed(layout: Layout, model: PreTrainedModel) -> Layout:
    """The layout for weights that learn: lean layers are for frozen ones."""
    restore(llama_shaped_layers(model))
    return replace(layout, is_lean=False)


def unpacked(layout: Layout, model: PreTrainedModel, reason: str) -> Layout:
    """The layout of padded rows, for whatever cannot be packed."""
    if not layout.is_packed:
        return layout
    return replace(unslimmed(layout, model), is_packed=False, reason=reason)


def _odd_layers(model: PreTrainedModel) -> str:
    """A kind of layer that packed rows do not exist for; empty when there is none."""
    kinds = set(getattr(model.config, "layer_types", None) or ())
    return min(kinds - {"full_attention", "sliding_attention"}, default="")


def _difference(model: PreTrainedModel, wanted: Tensor | None) -> str:
    """Why the packed row is not the same as its sequences apart (`wanted`; None: any will do); empty when it is."""
    try:
        found, mask = _packed(model)
    except (NotImplementedError, RuntimeError, ValueError, TypeError, IndexError, AttributeError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        return f"{type(model).__name__} does not take packed rows: {reason}"
    if wanted is not None and found.shape != wanted.shape:
        return f"{type(model).__name__} does not take packed rows"
    if _slides(model) and mask.windows <= {None}:
        return f"{type(model).__name__} keeps its sliding window to itself"
    if wanted is None:
        return ""
    gap = (found - wanted).norm() / wanted.norm()
    return "" if gap <= TOLERANCE[precision_of(model)] else f"{type(model).__name__} mixes packed sequences"


_PROMPT, _ANSWERS, _ALONE = 5, (3, 4), 6


def _sequences(model: PreTrainedModel) -> tuple[list[int], list[list[int]], list[int]]:
    """A prompt, answers to it, and a sequence of its own, of any tokens."""
    size = len(model.get_output_embeddings().weight)
    ids = [(7 * i + 3) % size for i in range(_PROMPT + sum(_ANSWERS) + _ALONE)]
    prompt, rest = ids[:_PROMPT], ids[_PROMPT:]
    return prompt, [rest[: _ANSWERS[0]], rest[_ANSWERS[0] : sum(_ANSWERS)]], rest[sum(_ANSWERS) :]


def _slides(model: PreTrainedModel) -> bool:
    """Whether a layer sees only so many tokens back, which the short rows tried here would not show."""
    kinds = getattr(model.config, "layer_types", None)
    return getattr(model.config, "sliding_window", None) is not None and (kinds is None or "sliding_attention" in kinds)


def _packed(model: PreTrainedModel) -> tuple[Tensor, TreeMask]:
    """The states of both answers and of the sequence of its own, computed in one row and asked for alone."""
    prompt, answers, alone = _sequences(model)
    batch = pack([Family(prompt, answers), Family((), [alone])]).to(model.device)
    asked = Runs(((_PROMPT, batch.num_tokens),))
    mask = TreeMask.carrying(batch.tree, device=model.device, dtype=model.dtype, asked=asked)
    hidden: Tensor = trunk_of(model)(
        input_ids=batch.input_ids.unsqueeze(0),
        attention_mask=mask,
        position_ids=batch.positions.unsqueeze(0),
        use_cache=False,
    ).last_hidden_state
    return (hidden[0] if mask.is_narrowed else hidden[0, _PROMPT:]).float(), mask


def _apart(model: PreTrainedModel) -> Tensor:
    """The same states, computed one sequence at a time."""
    prompt, answers, alone = _sequences(model)
    states = [
        trunk_of(model)(input_ids=torch.tensor([ids], device=model.device), use_cache=False).last_hidden_state[0]
        for ids in ([*prompt, *answers[0]], [*prompt, *answers[1]], alone)
    ]
    return torch.cat([states[0][_PROMPT:], states[1][_PROMPT:], states[2]]).float()
