"""ChatGLM2-6B and ChatGLM3-6B: one causal network with grouped keys, half of every head rotated, and a gated MLP.

Modules and parameters have the names of the released checkpoints, for which 2023's adapters were made.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import Cache, DynamicCache, GenerationMixin, PreTrainedConfig, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_layers import GenericForSequenceClassification, GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from duiqi.models.ports.chatglm_prefix import PrefixEncoder, Seen, behind, look_back
from duiqi.models.ports.chatglm_quantized import FromQuantized

PREFIX_DROPOUT = 0.1
ROTARY_BASE = 10000.0
BUILT_FOR: dict[str, object] = {
    "rmsnorm": True,
    "post_layer_norm": True,
    "apply_residual_connection_post_layernorm": False,
    "multi_query_attention": True,
    "original_rope": True,
    "fp32_residual_connection": False,
    "hidden_dropout": 0.0,
    "attention_dropout": 0.0,
}
"""Keys of config.json that could be otherwise, and are not in any released checkpoint."""


class ChatGLM2Config(PreTrainedConfig):  # type: ignore[misc]  # transformers is untyped for us
    """The keys of ChatGLM2-6B's and ChatGLM3-6B's config.json; the defaults are those of the released ChatGLM2.

    Raises:
        ValueError: A key has a value that no released checkpoint has and this network is not built for.
    """

    model_type = "chatglm"
    keys_to_ignore_at_inference = ("past_key_values",)
    attribute_map: ClassVar[dict[str, str]] = {"num_hidden_layers": "num_layers", "vocab_size": "padded_vocab_size"}

    num_layers: int = 28
    padded_vocab_size: int = 65024
    hidden_size: int = 4096
    ffn_hidden_size: int = 13696
    kv_channels: int = 128
    num_attention_heads: int = 32
    multi_query_attention: bool = True
    multi_query_group_num: int = 2
    """Heads of keys and values."""
    seq_length: int = 32768
    layernorm_epsilon: float = 1e-5
    rmsnorm: bool = True
    post_layer_norm: bool = True
    apply_residual_connection_post_layernorm: bool = False
    add_bias_linear: bool = False
    add_qkv_bias: bool = True
    hidden_dropout: float = 0.0
    attention_dropout: float = 0.0
    bias_dropout_fusion: bool = True
    apply_query_key_layer_scaling: bool = True
    """A guard against overflow in float16 that cancels out; nothing here depends on it."""
    attention_softmax_in_fp32: bool = True
    fp32_residual_connection: bool = False
    original_rope: bool = True
    rope_ratio: float = 1.0
    """What the long variants stretch positions by; see `rope_ratio_scales`."""
    rope_ratio_scales: Literal["positions", "base"] | None = None
    """What `rope_ratio` scales: the positions are divided by it (ChatGLM2-6B-32K), or the rotary base is multiplied
    (ChatGLM3-6B-32K). A key of ours: the original config.json does not tell the two apart."""
    use_cache: bool = True
    eos_token_id: int | list[int] | None = 2
    pad_token_id: int | None = 0
    tie_word_embeddings: bool = False
    quantization_bit: int = 0
    """What the stored weights are quantised to; see `chatglm_quantized`. The network itself computes in floats."""
    pre_seq_len: int | None = None
    """Slots of a learned prefix (P-Tuning v2)."""
    prefix_projection: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        kwargs.pop("auto_map", None)  # code that is not run here
        super().__post_init__(**kwargs)
        # Under these names PEFT (prefix tuning) and transformers (static caches) look for the shape of keys.
        self.num_key_value_heads, self.head_dim = self.multi_query_group_num, self.kv_channels
        for key, value in BUILT_FOR.items():
            if getattr(self, key) != value:
                raise ValueError(f"{key} is {getattr(self, key)!r} in this config.json; only {value!r} is implemented")
        if self.rope_ratio != 1.0 and self.rope_ratio_scales is None:
            raise ValueError(
                f'rope_ratio is {self.rope_ratio}: add "rope_ratio_scales": "positions" to config.json for '
                'ChatGLM2-6B-32K, or "base" for ChatGLM3-6B-32K'
            )


class RotatedHalf:
    """The rotation of the first half of every head, pair by pair: (a, b) becomes (a cos - b sin, b cos + a sin)."""

    def __init__(self, positions: Int[Tensor, "B T"], config: ChatGLM2Config) -> None:
        stretches_base = config.rope_ratio_scales == "base"
        base = ROTARY_BASE * config.rope_ratio if stretches_base else ROTARY_BASE
        self.size = config.kv_channels // 2
        exponents = torch.arange(0, self.size, 2, device=positions.device, dtype=torch.float32) / self.size
        at = positions[:, None, :, None].float() / (1.0 if stretches_base else config.rope_ratio)
        angles = at * base**-exponents
        self.cos, self.sin = angles.cos(), angles.sin()  # B x 1 x T x D/4

    def __call__(self, states: Float[Tensor, "B N T D"]) -> Float[Tensor, "B N T D"]:
        """The states, rotated."""
        cos, sin = self.cos.to(states.dtype), self.sin.to(states.dtype)
        even, odd = states[..., : self.size].unflatten(-1, (-1, 2)).unbind(-1)
        turned = torch.stack((even * cos - odd * sin, odd * cos + even * sin), dim=-1).flatten(-2)
        return torch.cat([turned, states[..., self.size :]], dim=-1)


class RMSNorm(nn.Module):
    """w * u / sqrt(mean(u^2) + eps), the statistics in float32 at least."""

    def __init__(self, size: int, *, eps: float) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(size)), eps

    def forward(self, states: Float[Tensor, "*B H"]) -> Float[Tensor, "*B H"]:
        wide = states.to(torch.promote_types(states.dtype, torch.float32))
        normed = wide * torch.rsqrt(wide.square().mean(dim=-1, keepdim=True) + self.eps)
        return self.weight * normed.to(states.dtype)


class SelfAttention(nn.Module):
    """Causal attention; as many query heads as a group has share its keys and values."""

    is_causal = True

    def __init__(self, config: ChatGLM2Config, layer_idx: int) -> None:
        super().__init__()
        self.config, self.layer_idx = config, layer_idx
        heads, groups, size = config.num_attention_heads, config.multi_query_group_num, config.kv_channels
        self.num_key_value_groups = heads // groups
        self.sections = [heads * size, groups * size, groups * size]
        self.query_key_value = nn.Linear(
            config.hidden_size, sum(self.sections), bias=config.add_bias_linear or config.add_qkv_bias
        )
        self.dense = nn.Linear(heads * size, config.hidden_size, bias=config.add_bias_linear)

    def forward(
        self,
        hidden: Float[Tensor, "B T H"],
        visible: Tensor | None,
        rotated: RotatedHalf,
        prefix: tuple[Tensor, Tensor] | None,
        cache: Cache | None,
    ) -> Float[Tensor, "B T H"]:
        query, key, value = (
            states.unflatten(-1, (-1, self.config.kv_channels)).transpose(1, 2)
            for states in self.query_key_value(hidden).split(self.sections, dim=-1)
        )
        query, key = rotated(query), rotated(key)
        if prefix is not None:
            key, value = behind(prefix[0], key), behind(prefix[1], value)
        if cache is not None:
            key, value = cache.update(key, value, self.layer_idx)
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, sdpa_attention_forward)
        attended, _ = attend(self, query, key, value, visible, scaling=self.config.kv_channels**-0.5)
        projected: Tensor = self.dense(attended.flatten(2))
        return projected


class MLP(nn.Module):
    """One projection into two halves; the first, through a SiLU, gates the second."""

    def __init__(self, config: ChatGLM2Config) -> None:
        super().__init__()
        self.dense_h_to_4h = nn.Linear(config.hidden_size, 2 * config.ffn_hidden_size, bias=config.add_bias_linear)
        self.dense_4h_to_h = nn.Linear(config.ffn_hidden_size, config.hidden_size, bias=config.add_bias_linear)

    def forward(self, hidden: Float[Tensor, "B T H"]) -> Float[Tensor, "B T H"]:
        gate, up = self.dense_h_to_4h(hidden).chunk(2, dim=-1)
        out: Tensor = self.dense_4h_to_h(nn.functional.silu(gate) * up)
        return out


class GLMBlock(GradientCheckpointingLayer):  # type: ignore[misc]
    """A layer: attention and MLP, each behind a norm and beside its own input."""

    def __init__(self, config: ChatGLM2Config, layer_idx: int) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, eps=config.layernorm_epsilon)
        self.self_attention = SelfAttention(config, layer_idx)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, eps=config.layernorm_epsilon)
        self.mlp = MLP(config)

    def forward(
        self,
        hidden: Float[Tensor, "B T H"],
        visible: Tensor | None,
        rotated: RotatedHalf,
        prefix: tuple[Tensor, Tensor] | None,
        past_key_values: Cache | None = None,
    ) -> Float[Tensor, "B T H"]:
        hidden = hidden + self.self_attention(self.input_layernorm(hidden), visible, rotated, prefix, past_key_values)
        out: Tensor = hidden + self.mlp(self.post_attention_layernorm(hidden))
        return out


class Embedding(nn.Module):
    """The word embeddings, in the place where checkpoints have them."""

    def __init__(self, config: ChatGLM2Config) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(config.padded_vocab_size, config.hidden_size)


class GLMTransformer(nn.Module):
    """The layers and the final norm, in the place where checkpoints have them."""

    def __init__(self, config: ChatGLM2Config) -> None:
        super().__init__()
        self.layers = nn.ModuleList(GLMBlock(config, index) for index in range(config.num_layers))
        self.final_layernorm = RMSNorm(config.hidden_size, eps=config.layernorm_epsilon)


class ChatGLM2PreTrainedModel(FromQuantized, PreTrainedModel):  # type: ignore[misc]
    """What transformers has to know of this architecture."""

    config_class = ChatGLM2Config
    config: ChatGLM2Config
    base_model_prefix = "transformer"
    supports_gradient_checkpointing = True
    _no_split_modules = ("GLMBlock",)
    _skip_keys_device_placement = ("past_key_values",)
    _keys_to_ignore_on_load_unexpected = (r"inv_freq$",)
    _supports_sdpa = True


class ChatGLM2Model(ChatGLM2PreTrainedModel):
    """The trunk. The output layer lives in it, as in the checkpoints, but is not part of its forward pass."""

    def __init__(self, config: ChatGLM2Config) -> None:
        super().__init__(config)
        self.embedding = Embedding(config)
        self.encoder = GLMTransformer(config)
        self.output_layer = nn.Linear(config.hidden_size, config.padded_vocab_size, bias=False)
        if config.pre_seq_len:
            numbers = 2 * config.num_layers * config.multi_query_group_num * config.kv_channels
            self.prefix_encoder = PrefixEncoder(
                num_slots=config.pre_seq_len,
                num_layers=config.num_layers,
                num_heads=config.multi_query_group_num,
                head_size=config.kv_channels,
                projected_from=numbers if config.prefix_projection else None,
                inner_size=config.hidden_size,
            )
            self.dropout = nn.Dropout(PREFIX_DROPOUT)
        self.gradient_checkpointing = False
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.embedding.word_embeddings

    def set_input_embeddings(self, value: Any) -> None:
        self.embedding.word_embeddings = value

    def forward(
        self,
        input_ids: Int[Tensor, "B T"] | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Int[Tensor, "B T"] | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Float[Tensor, "B T H"] | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        **_: Any,
    ) -> BaseModelOutputWithPast:
        """Hidden states after the final norm.

        Args:
            attention_mask: B x S, 1 = real, for all tokens so far; 4-D ones go to the attention as they are.
            position_ids: Without them, and always behind a prefix, which no position counts, real tokens are counted.

        Raises:
            ValueError: There are neither ids nor embeddings or both, or the mask does not fit.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give either input_ids or inputs_embeds")
        hidden = self.embedding.word_embeddings(input_ids) if inputs_embeds is None else inputs_embeds
        use_cache = self.config.use_cache if use_cache is None else use_cache
        if self.gradient_checkpointing and self.training:
            use_cache = False
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
        dense = attention_mask if attention_mask is not None and attention_mask.dim() == 4 else None
        flat = attention_mask if dense is None else None
        ids = hidden.new_zeros(hidden.shape[:2], dtype=torch.long) if input_ids is None else input_ids
        seen = look_back(ids, flat, past_key_values, num_layers=self.config.num_layers)
        prefixes = self._prefixes(hidden, past_key_values)
        visible = self._visible(seen, ids.shape[1], flat) if dense is None else dense
        if prefixes[0] is not None and visible is not None:
            open_ = True if visible.dtype == torch.bool else 0.0  # numbers are added to the scores
            visible = nn.functional.pad(visible, (prefixes[0][0].shape[2], 0), value=open_)
        if position_ids is None or seen.num_slots:
            position_ids = seen.counts[:, -ids.shape[1] :]
        rotated = RotatedHalf(position_ids, self.config)
        states: list[Tensor] = []
        for layer, prefix in zip(self.encoder.layers, prefixes, strict=True):
            states += [hidden] if output_hidden_states else []
            hidden = layer(hidden, visible, rotated, prefix, past_key_values=past_key_values)
        hidden = self.encoder.final_layernorm(hidden)
        return BaseModelOutputWithPast(
            last_hidden_state=hidden,
            past_key_values=past_key_values if use_cache else None,
            hidden_states=(*states, hidden) if output_hidden_states else None,
        )

    def _visible(self, seen: Seen, num_queries: int, mask: Tensor | None) -> Tensor | None:
        """The mask; None where attention is plainly causal, which is computed faster."""
        has_prefix = seen.num_slots or self.config.pre_seq_len
        if mask is None and not has_prefix and num_queries == seen.ids.shape[1]:
            return None
        return seen.visible(num_queries)  # tokens in the cache may be padding, whether or not a mask says so again

    def _prefixes(self, hidden: Tensor, cache: Cache | None) -> list[tuple[Tensor, Tensor] | None]:
        """Each layer's prefix, where the model has one and the cache not yet."""
        if not self.config.pre_seq_len or (cache is not None and cache.get_seq_length()):
            return [None] * self.config.num_layers
        slots = self.dropout(self.prefix_encoder()).to(hidden.dtype)
        return list(zip(slots[0::2], slots[1::2], strict=True))


class ChatGLM2ForConditionalGeneration(ChatGLM2PreTrainedModel, GenerationMixin):  # type: ignore[misc]
    """The trunk and its head. Despite the name, a causal language model."""

    _tied_weights_keys: ClassVar[dict[str, str]] = {
        "transformer.output_layer.weight": "transformer.embedding.word_embeddings.weight"
    }

    def __init__(self, config: ChatGLM2Config) -> None:
        super().__init__(config)
        self.transformer = ChatGLM2Model(config)
        self.post_init()

    def get_output_embeddings(self) -> nn.Module:
        return self.transformer.output_layer

    def set_output_embeddings(self, new_embeddings: Any) -> None:
        self.transformer.output_layer = new_embeddings

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
        """Logits, and the loss where there are labels (-100: not learned). See `ChatGLM2Model.forward`."""
        output = self.transformer(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            output_hidden_states=kwargs.pop("output_hidden_states", None),
        )
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.transformer.output_layer(output.last_hidden_state[:, kept])
        loss = None
        if labels is not None:
            loss = self.loss_function(logits, labels, vocab_size=self.config.vocab_size, **kwargs)
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=output.past_key_values,
            hidden_states=output.hidden_states,
        )


class ChatGLM2ForSequenceClassification(
    GenericForSequenceClassification,  # type: ignore[misc]
    ChatGLM2PreTrainedModel,
):
    """The trunk with a head `score` that is read at each row's last token: a reward model."""

    base_model_prefix = "transformer"

    def __init__(self, config: ChatGLM2Config) -> None:
        super(GenericForSequenceClassification, self).__init__(config)
        self.num_labels = config.num_labels
        self.transformer = ChatGLM2Model(config)
        self.score = nn.Linear(config.hidden_size, config.num_labels, bias=False)
        self.post_init()
