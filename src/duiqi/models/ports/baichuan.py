"""Baichuan-7B, Baichuan-13B, Baichuan2-7B and Baichuan2-13B.

A decoder as LLaMA's (norms before, a gated MLP, no biases) but for three things: queries, keys and values come from one
matrix `W_pack`; the 13B models have ALiBi in place of rotary positions; Baichuan2 has a `NormHead`. Modules bear the
names of the released weights, which adapters of 2023 refer to.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import Cache, DynamicCache, GenerationMixin, PreTrainedModel
from transformers.activations import ACT2FN
from transformers.modeling_layers import GenericForSequenceClassification, GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from duiqi.models.ports.alibi import alibi_bias, biased
from duiqi.models.ports.baichuan_config import BaichuanConfig
from duiqi.models.ports.causal_mask import is_plain, visible_keys
from duiqi.models.ports.norm_head import NormHead

__all__ = ["BaichuanConfig", "BaichuanForCausalLM", "BaichuanForSequenceClassification", "BaichuanModel"]

Rotation = tuple[Float[Tensor, "B 1 T D"], Float[Tensor, "B 1 T D"]]
"""Cosine and sine of the angle by which each pair of a head's numbers turns."""


class BaichuanRMSNorm(nn.Module):
    """u / sqrt(mean(u^2) + eps) times a weight; the mean in float32."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.variance_epsilon = eps

    def forward(self, hidden: Tensor) -> Tensor:
        wide = hidden.float()
        normed: Tensor = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.variance_epsilon)
        return self.weight * normed.to(hidden.dtype)


class BaichuanMLP(nn.Module):
    """down(silu(gate(x)) up(x))."""

    def __init__(self, config: BaichuanConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)
        self.act_fn = ACT2FN[config.hidden_act]

    def forward(self, hidden: Tensor) -> Tensor:
        output: Tensor = self.down_proj(self.act_fn(self.gate_proj(hidden)) * self.up_proj(hidden))
        return output


class BaichuanAttention(nn.Module):
    """Every head has keys and values of its own. `W_pack` gives all queries, then all keys, then all values."""

    def __init__(self, config: BaichuanConfig, layer_idx: int) -> None:
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        self.num_heads = config.num_attention_heads
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.scaling = self.head_dim**-0.5
        self.is_causal = True
        self.W_pack = nn.Linear(config.hidden_size, 3 * config.hidden_size, bias=False)
        self.o_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=False)

    def forward(
        self,
        hidden: Float[Tensor, "B T H"],
        attention_mask: Tensor | None,
        rotation: Rotation | None,
        past_key_values: Cache | None,
    ) -> Float[Tensor, "B T H"]:
        """What each token gathers; with `rotation` None, queries and keys do not turn."""
        packed = self.W_pack(hidden).unflatten(-1, (3, self.num_heads, self.head_dim))
        query, key, value = packed.permute(2, 0, 3, 1, 4).unbind()
        if rotation is not None:
            query, key = rotate(query, rotation), rotate(key, rotation)
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer_idx)
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention)
        attended, _ = attend(self, query, key, value, attention_mask, dropout=0.0, scaling=self.scaling)
        output: Tensor = self.o_proj(attended.flatten(2))
        return output


def eager_attention(
    _module: nn.Module,
    query: Float[Tensor, "B heads T D"],
    key: Float[Tensor, "B heads S D"],
    value: Float[Tensor, "B heads S D"],
    attention_mask: Tensor | None,
    *,
    scaling: float,
    **_: Any,
) -> tuple[Float[Tensor, "B T heads D"], Tensor]:
    """Attention step by step, its softmax in float32. The mask is true where a query may look, or added to scores."""
    scores = (query @ key.transpose(-1, -2)).float() * scaling
    if attention_mask is not None and attention_mask.dtype == torch.bool:
        scores = scores.masked_fill(~attention_mask, torch.finfo(query.dtype).min)
    elif attention_mask is not None:
        scores = scores + attention_mask
    weights = scores.softmax(-1).to(query.dtype)
    return (weights @ value).transpose(1, 2), weights


def rotation_of(position_ids: Int[Tensor, "B T"], *, head_dim: int, base: float) -> Rotation:
    """Angles p base^(-2j/D) for j = 0 .. D/2-1, twice beside each other (Su et al. 2021), in float32."""
    halves = torch.arange(0, head_dim, 2, device=position_ids.device, dtype=torch.float32)
    angles = position_ids[:, None, :, None].float() * base ** (-halves / head_dim)
    doubled = torch.cat([angles, angles], dim=-1)
    return doubled.cos(), doubled.sin()


def rotate(states: Float[Tensor, "B heads T D"], rotation: Rotation) -> Float[Tensor, "B heads T D"]:
    """Turn number j together with number j + D/2; computed in float32."""
    cos, sin = rotation
    wide = states.float()
    first, second = wide.chunk(2, dim=-1)
    return (wide * cos + torch.cat([-second, first], dim=-1) * sin).to(states.dtype)


class BaichuanDecoderLayer(GradientCheckpointingLayer):  # type: ignore[misc]  # transformers is untyped for us
    """x + attention(norm(x)), then the same with the MLP."""

    def __init__(self, config: BaichuanConfig, layer_idx: int) -> None:
        super().__init__()
        self.self_attn = BaichuanAttention(config, layer_idx)
        self.mlp = BaichuanMLP(config)
        self.input_layernorm = BaichuanRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = BaichuanRMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(
        self,
        hidden: Float[Tensor, "B T H"],
        attention_mask: Tensor | None = None,
        rotation: Rotation | None = None,
        past_key_values: Cache | None = None,
    ) -> Float[Tensor, "B T H"]:
        hidden = hidden + self.self_attn(self.input_layernorm(hidden), attention_mask, rotation, past_key_values)
        output: Tensor = hidden + self.mlp(self.post_attention_layernorm(hidden))
        return output


class BaichuanPreTrainedModel(PreTrainedModel):  # type: ignore[misc]  # transformers is untyped for us
    """What transformers asks about all of these networks."""

    config_class = BaichuanConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules: ClassVar[list[str]] = ["BaichuanDecoderLayer"]
    _skip_keys_device_placement: ClassVar[list[str]] = ["past_key_values"]
    _keys_to_ignore_on_load_unexpected: ClassVar[list[str]] = [r"rotary_emb\.inv_freq$"]
    _supports_sdpa = True
    _supports_attention_backend = True


class BaichuanModel(BaichuanPreTrainedModel):
    """The network without its output head."""

    def __init__(self, config: BaichuanConfig) -> None:
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(BaichuanDecoderLayer(config, index) for index in range(config.num_hidden_layers))
        self.norm = BaichuanRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.gradient_checkpointing = False
        self.post_init()

    def forward(
        self,
        input_ids: Int[Tensor, "B T"] | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Int[Tensor, "B T"] | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Float[Tensor, "B T H"] | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """Hidden states after the final norm.

        Args:
            input_ids: Tokens, those not yet in `past_key_values`.
            attention_mask: B x S over all keys: 1 for real tokens, 0 for padding; or 1, 2, 3 ... for texts packed into
                one row, which do not see each other. Or B x 1 x T x S, true where a query may look.
            position_ids: Rotary models only, where differences alone matter; by default places in the row.
            past_key_values: Keys and values of the tokens before, grown in place.
            inputs_embeds: In place of `input_ids`.
            use_cache: Return `past_key_values`; by default as the configuration says.
            output_hidden_states: Also return the states before each layer, and the last.

        Raises:
            ValueError: Tokens are given twice or not at all, attention weights are asked for, or a mask does not fit.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give either input_ids or inputs_embeds")
        if kwargs.get("output_attentions"):
            raise ValueError("Baichuan does not return attention weights")
        hidden: Tensor = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        recomputes = self.gradient_checkpointing and self.training  # it would write into a cache twice
        wants_cache = (self.config.use_cache if use_cache is None else use_cache) and not recomputes
        if wants_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
        num_seen = 0 if past_key_values is None else int(past_key_values.get_seq_length())
        mask = self._attention_mask(attention_mask, hidden, num_seen)
        rotation = None
        if self.config.position_embedding == "rope":
            if position_ids is None:
                places = torch.arange(num_seen, num_seen + hidden.shape[1], device=hidden.device)
                position_ids = places.unsqueeze(0)
            head_dim = self.config.hidden_size // self.config.num_attention_heads
            rotation = rotation_of(position_ids, head_dim=head_dim, base=self.config.rope_theta)

        wants_states = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        states: tuple[Tensor, ...] = ()
        for layer in self.layers:
            if wants_states:
                states = (*states, hidden)
            hidden = layer(hidden, attention_mask=mask, rotation=rotation, past_key_values=past_key_values)
        hidden = self.norm(hidden)
        return BaseModelOutputWithPast(
            last_hidden_state=hidden,
            past_key_values=past_key_values if wants_cache else None,
            hidden_states=(*states, hidden) if wants_states else None,
        )

    def _attention_mask(
        self, attention_mask: Tensor | None, hidden: Float[Tensor, "B T H"], num_seen: int
    ) -> Tensor | None:
        """What every layer's attention is given. None: causal, which the attention functions do by themselves.

        A mask of four dimensions is handed on as it is, so that one can carry a packed row.
        """
        num_queries, device = hidden.shape[1], hidden.device
        sizes = {"num_queries": num_queries, "num_keys": num_seen + num_queries}
        has_alibi = self.config.position_embedding == "alibi"
        mask = attention_mask
        if mask is None or mask.dim() != 4:
            plain = is_plain(mask)
            needs_none = num_queries == 1 or (num_seen == 0 and self.config._attn_implementation != "eager")
            if plain and needs_none and not has_alibi:
                return None
            mask = visible_keys(None if plain else mask, **sizes, device=device)
        if not has_alibi:
            return mask
        is_real = attention_mask != 0 if attention_mask is not None and attention_mask.dim() == 2 else None
        bias = alibi_bias(self.config.num_attention_heads, **sizes, device=device, is_real=is_real)
        return biased(mask, bias, hidden.dtype)


class BaichuanForCausalLM(BaichuanPreTrainedModel, GenerationMixin):  # type: ignore[misc]
    """The network with its output head."""

    def __init__(self, config: BaichuanConfig) -> None:
        super().__init__(config)
        self.model = BaichuanModel(config)
        self.lm_head: nn.Linear | None
        if config.norm_head:
            self.lm_head = NormHead(config.hidden_size, config.vocab_size)
        else:
            self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def set_output_embeddings(self, new_embeddings: nn.Linear | None) -> None:
        """Replace the head; where it scales its rows, the new one does so too (after a change of the vocabulary)."""
        if self.config.norm_head and new_embeddings is not None and not isinstance(new_embeddings, NormHead):
            new_embeddings = NormHead.of(new_embeddings)
        self.lm_head = new_embeddings

    def forward(
        self,
        input_ids: Int[Tensor, "B T"] | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Int[Tensor, "B T"] | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Float[Tensor, "B T H"] | None = None,
        labels: Int[Tensor, "B T"] | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Logits, and the loss of predicting each label from the tokens before it; -100 is not predicted.

        Args:
            logits_to_keep: Logits of so many tokens at the end alone, or of these places; 0: all. Labels need all.
            **kwargs: As the other arguments, for `BaichuanModel.forward`; the rest for transformers' loss.
        """
        output = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            **kwargs,
        )
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        assert self.lm_head is not None, "the output head was removed"
        logits: Tensor = self.lm_head(output.last_hidden_state[:, kept])
        loss: Tensor | None = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs)
            if self.config.z_loss_weight:
                largest = logits[:, :-1].float().max(dim=-1).values
                loss = loss + self.config.z_loss_weight * largest.square().mean()
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=output.past_key_values,
            hidden_states=output.hidden_states,
        )


class BaichuanForSequenceClassification(GenericForSequenceClassification, BaichuanPreTrainedModel):  # type: ignore[misc]
    """The network with a head `score` that is read at each row's last token: a reward model."""

    def __init__(self, config: BaichuanConfig) -> None:
        super(GenericForSequenceClassification, self).__init__(config)  # whose own asks AutoModel for the trunk
        self.num_labels = config.num_labels
        self.model = BaichuanModel(config)
        self.score = nn.Linear(config.hidden_size, config.num_labels, bias=False)
        self.post_init()
