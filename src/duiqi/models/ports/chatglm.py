"""ChatGLM-6B, the first: a prompt that sees itself in both directions, two positions per token, normalised residuals.

Modules and parameters have the names of the released checkpoints, for which 2023's adapters were made.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import Cache, DynamicCache, GenerationMixin, PreTrainedConfig, PreTrainedModel
from transformers.modeling_layers import GenericForSequenceClassification, GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast

from duiqi.models.ports.chatglm_prefix import PrefixEncoder, Seen, behind, look_back
from duiqi.models.ports.chatglm_quantized import FromQuantized

RESIDUAL_SCALE = (2 * 28) ** 0.5
"""DeepNorm's alpha for 28 layers. The original computes with 28 whatever `num_layers` is."""
PREFIX_DROPOUT = 0.1


class ChatGLMConfig(PreTrainedConfig):  # type: ignore[misc]  # transformers is untyped for us
    """The keys of ChatGLM-6B's config.json; the defaults are the released model's."""

    model_type = "chatglm"
    keys_to_ignore_at_inference = ("past_key_values",)
    attribute_map: ClassVar[dict[str, str]] = {"num_hidden_layers": "num_layers"}

    vocab_size: int = 130528
    hidden_size: int = 4096
    num_layers: int = 28
    num_attention_heads: int = 32
    inner_hidden_size: int = 16384
    layernorm_epsilon: float = 1e-5
    max_sequence_length: int = 2048
    position_encoding_2d: bool = True
    use_cache: bool = True
    bos_token_id: int | None = 130004
    """`<sop>`, which begins the answer."""
    eos_token_id: int | list[int] | None = 130005
    pad_token_id: int | None = 3
    mask_token_id: int | None = None
    """This and the next: None is where all releases have them, four and three ids before `<sop>`."""
    gmask_token_id: int | None = None
    tie_word_embeddings: bool = True
    quantization_bit: int = 0
    """What the stored weights are quantised to; see `chatglm_quantized`. The network itself computes in floats."""
    pre_seq_len: int | None = None
    """Slots of a learned prefix (P-Tuning v2)."""
    prefix_projection: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        kwargs.pop("auto_map", None)  # code that is not run here
        super().__post_init__(**kwargs)
        if self.bos_token_id is not None and self.mask_token_id is None:
            self.mask_token_id = self.bos_token_id - 4
        if self.bos_token_id is not None and self.gmask_token_id is None:
            self.gmask_token_id = self.bos_token_id - 3


class RotatedPositions:
    """The rotation of queries and keys: by two positions, each on its half of a head, or by one on the whole of it.

    Args:
        positions: One row of positions for each share, B x A x T.
        head_size: D.
    """

    def __init__(self, positions: Int[Tensor, "B A T"], *, head_size: int) -> None:
        share = head_size // positions.shape[1]
        exponents = torch.arange(0, share, 2, device=positions.device, dtype=torch.float32) / share
        # The original keeps the frequencies in half precision, and the network was trained with their rounding.
        frequencies = (10000.0**-exponents).half().float()
        angles = positions.transpose(1, 2).unsqueeze(1).unsqueeze(-1).float() * frequencies
        self.cos, self.sin = angles.cos(), angles.sin()  # B x 1 x T x A x D/2A

    def __call__(self, states: Float[Tensor, "B N T D"]) -> Float[Tensor, "B N T D"]:
        """Every share [a; b] becomes [a cos - b sin; b cos + a sin]."""
        cos, sin = self.cos.to(states.dtype), self.sin.to(states.dtype)
        first, second = states.unflatten(-1, (cos.shape[-2], 2, cos.shape[-1])).unbind(-2)
        return torch.stack((first * cos - second * sin, second * cos + first * sin), dim=-2).flatten(-3)


class SelfAttention(nn.Module):
    """Attention over what a mask shows, queries and keys rotated."""

    def __init__(self, config: ChatGLMConfig, layer_idx: int) -> None:
        super().__init__()
        self.layer_idx, self.num_heads = layer_idx, config.num_attention_heads
        self.query_key_value = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(
        self,
        hidden: Float[Tensor, "B T H"],
        visible: Bool[Tensor, "B 1 T K"],
        rotated: RotatedPositions,
        prefix: tuple[Tensor, Tensor] | None,
        cache: Cache | None,
    ) -> Float[Tensor, "B T H"]:
        fused = self.query_key_value(hidden).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        query, key, value = fused.chunk(3, dim=-1)  # head by head: [q; k; v] of the first, of the second ...
        query, key = rotated(query), rotated(key)
        if prefix is not None:
            key, value = behind(prefix[0], key), behind(prefix[1], value)
        if cache is not None:
            key, value = cache.update(key, value, self.layer_idx)
        attended = nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=visible)
        projected: Tensor = self.dense(attended.transpose(1, 2).flatten(2))
        return projected


class GLU(nn.Module):
    """Two linear layers with a GELU between them; nothing is gated, but this is the original's name."""

    def __init__(self, config: ChatGLMConfig) -> None:
        super().__init__()
        self.dense_h_to_4h = nn.Linear(config.hidden_size, config.inner_hidden_size)
        self.dense_4h_to_h = nn.Linear(config.inner_hidden_size, config.hidden_size)

    def forward(self, hidden: Float[Tensor, "B T H"]) -> Float[Tensor, "B T H"]:
        out: Tensor = self.dense_4h_to_h(nn.functional.gelu(self.dense_h_to_4h(hidden), approximate="tanh"))
        return out


class GLMBlock(GradientCheckpointingLayer):  # type: ignore[misc]
    """A layer. What goes around attention and MLP is their normalised input, scaled; not the input itself."""

    def __init__(self, config: ChatGLMConfig, layer_idx: int) -> None:
        super().__init__()
        self.input_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layernorm_epsilon)
        self.attention = SelfAttention(config, layer_idx)
        self.post_attention_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layernorm_epsilon)
        self.mlp = GLU(config)

    def forward(
        self,
        hidden: Float[Tensor, "B T H"],
        visible: Bool[Tensor, "B 1 T K"],
        rotated: RotatedPositions,
        prefix: tuple[Tensor, Tensor] | None,
        past_key_values: Cache | None = None,
    ) -> Float[Tensor, "B T H"]:
        normed = self.input_layernorm(hidden)
        hidden = RESIDUAL_SCALE * normed + self.attention(normed, visible, rotated, prefix, past_key_values)
        normed = self.post_attention_layernorm(hidden)
        out: Tensor = RESIDUAL_SCALE * normed + self.mlp(normed)
        return out


class ChatGLMPreTrainedModel(FromQuantized, PreTrainedModel):  # type: ignore[misc]
    """What transformers has to know of this architecture."""

    config_class = ChatGLMConfig
    config: ChatGLMConfig
    base_model_prefix = "transformer"
    supports_gradient_checkpointing = True
    _no_split_modules = ("GLMBlock",)
    _skip_keys_device_placement = ("past_key_values",)
    _keys_to_ignore_on_load_unexpected = (r"inv_freq$",)
    _supports_sdpa = True

    @classmethod
    def _can_set_attn_implementation(cls) -> bool:
        """Any name can be set. The masks are this architecture's own, and torch's SDPA computes them all."""
        return True


class ChatGLMModel(ChatGLMPreTrainedModel):
    """The trunk."""

    def __init__(self, config: ChatGLMConfig) -> None:
        super().__init__(config)
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(GLMBlock(config, index) for index in range(config.num_layers))
        self.final_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layernorm_epsilon)
        if config.pre_seq_len:
            self.prefix_encoder = PrefixEncoder(
                num_slots=config.pre_seq_len,
                num_layers=config.num_layers,
                num_heads=config.num_attention_heads,
                head_size=config.hidden_size // config.num_attention_heads,
                projected_from=config.hidden_size if config.prefix_projection else None,
                inner_size=config.hidden_size,
            )
            self.dropout = nn.Dropout(PREFIX_DROPOUT)
        self.gradient_checkpointing = False
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.word_embeddings

    def set_input_embeddings(self, value: Any) -> None:
        self.word_embeddings = value

    def forward(
        self,
        input_ids: Int[Tensor, "B T"] | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Float[Tensor, "B T H"] | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        **_: Any,
    ) -> BaseModelOutputWithPast:
        """Hidden states after the final norm.

        Args:
            input_ids: Needed also beside `inputs_embeds`: they say where the prompt ends.
            attention_mask: B x S, 1 = real, for all tokens so far; or as the original has it, a boolean
                B x 1 x T x S (B x 1 x 1 x 1: nothing), True = not seen. None: nothing is padding.
            position_ids: B x 2 x T, as the original has them. Others (B x T) count tokens, which is no news here: both
                positions follow from the ids and the mask. So they do behind a prefix, which no position counts.

        Raises:
            ValueError: There are no ids, or the mask does not fit.
        """
        if input_ids is None:
            raise ValueError("ChatGLM needs input_ids, also beside inputs_embeds: they say where the prompt ends")
        use_cache = self.config.use_cache if use_cache is None else use_cache
        if self.gradient_checkpointing and self.training:
            use_cache = False
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
        dense = attention_mask if attention_mask is not None and attention_mask.dim() == 4 else None
        if dense is not None:
            attention_mask = _real_of(dense)
        seen = look_back(input_ids, attention_mask, past_key_values, num_layers=self.config.num_layers)
        visible, positions = self._geometry(seen, input_ids.shape[1], dense, position_ids)
        hidden = self.word_embeddings(input_ids) if inputs_embeds is None else inputs_embeds
        prefixes = self._prefixes(hidden, past_key_values)
        if prefixes[0] is not None:
            visible = nn.functional.pad(visible, (prefixes[0][0].shape[2], 0), value=True)
        rotated = RotatedPositions(positions, head_size=self.config.hidden_size // self.config.num_attention_heads)
        states: list[Tensor] = []
        for layer, prefix in zip(self.layers, prefixes, strict=True):
            states += [hidden] if output_hidden_states else []
            hidden = layer(hidden, visible, rotated, prefix, past_key_values=past_key_values)
        hidden = self.final_layernorm(hidden)
        return BaseModelOutputWithPast(
            last_hidden_state=hidden,
            past_key_values=past_key_values if use_cache else None,
            hidden_states=(*states, hidden) if output_hidden_states else None,
        )

    def _geometry(
        self, seen: Seen, num_queries: int, dense: Tensor | None, position_ids: Tensor | None
    ) -> tuple[Bool[Tensor, "B 1 T K"], Int[Tensor, "B A T"]]:
        """What the tokens of this pass see, and their positions."""
        in_prompt, positions = prompt_and_positions(seen, self.config)
        visible = seen.visible(num_queries, prompt=in_prompt)
        if dense is not None:
            itself = torch.eye(seen.ids.shape[1], dtype=torch.bool, device=dense.device)[-num_queries:]
            visible[..., seen.num_slots :] = ~dense[..., -seen.ids.shape[1] :] | itself
        if position_ids is not None and position_ids.dim() == 3 and not seen.num_slots:
            return visible, position_ids
        return visible, positions[..., -num_queries:]

    def _prefixes(self, hidden: Tensor, cache: Cache | None) -> list[tuple[Tensor, Tensor] | None]:
        """Each layer's prefix, where the model has one and the cache not yet."""
        if not self.config.pre_seq_len or (cache is not None and cache.get_seq_length()):
            return [None] * self.config.num_layers
        slots = self.dropout(self.prefix_encoder()).to(hidden.dtype)
        return list(zip(slots[0::2], slots[1::2], strict=True))


def _real_of(dense: Tensor) -> Tensor | None:
    """What the last token of every row is shown, out of a mask as the original has it.

    Raises:
        ValueError: It is no such mask.
    """
    if not dense.shape[-1]:
        raise ValueError("a prompt sees itself in both directions")  # an empty mask carries a packed row
    if dense.dtype != torch.bool:
        raise ValueError(f"a 4-D attention_mask must be boolean, True = not seen; this one is {dense.dtype}")
    return None if dense.shape[-1] == 1 else ~dense[:, 0, -1, :]


def prompt_and_positions(seen: Seen, config: ChatGLMConfig) -> tuple[Bool[Tensor, "B S"], Int[Tensor, "B A S"]]:
    """Which tokens see each other in both directions, and every token's positions.

    The prompt is what stands before the first `<sop>`. It is numbered by the first position and has 0 for the second;
    from `<sop>` on the first position stays at the mask token ([gMASK], else [MASK]) and the second counts from 1.

    Where the original refuses a row: text without `<sop>` is an answer without end to no prompt (it sees only what is
    before, numbered by the first position); without a mask token, the token before `<sop>` has its place.
    """
    counts, beyond = seen.counts, seen.ids.shape[1]

    def first(token: int | None) -> Int[Tensor, "B 1"]:
        if token is None:
            return torch.full_like(counts[:, :1], beyond)
        return torch.where((seen.ids == token) & seen.is_real, counts, beyond).amin(dim=-1, keepdim=True)

    start, gmask, mask = first(config.bos_token_id), first(config.gmask_token_id), first(config.mask_token_id)
    place = torch.where(mask < beyond, mask, (start - 1).clamp(min=0))
    place = torch.where(gmask < beyond, gmask, place)
    is_answer = (counts >= start) & seen.is_real
    in_prompt = ~is_answer & (start < beyond) & seen.is_real
    if not config.position_encoding_2d:
        moves = is_answer & (gmask == beyond) & (mask < beyond)
        return in_prompt, torch.where(moves, place, counts).unsqueeze(1)
    return in_prompt, torch.stack(
        [torch.where(is_answer, place, counts), torch.where(is_answer, counts - start + 1, 0)], dim=1
    )


class ChatGLMForConditionalGeneration(ChatGLMPreTrainedModel, GenerationMixin):  # type: ignore[misc]
    """The trunk and its head. Despite the name, which checkpoints carry, a causal language model."""

    _tied_weights_keys: ClassVar[dict[str, str]] = {"lm_head.weight": "transformer.word_embeddings.weight"}

    def __init__(self, config: ChatGLMConfig) -> None:
        super().__init__(config)
        self.transformer = ChatGLMModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head

    def set_output_embeddings(self, new_embeddings: Any) -> None:
        self.lm_head = new_embeddings

    def forward(
        self,
        input_ids: Int[Tensor, "B T"] | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Float[Tensor, "B T H"] | None = None,
        labels: Int[Tensor, "B T"] | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Logits, and the loss where there are labels (-100: not learned). See `ChatGLMModel.forward`."""
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
        logits = self.lm_head(output.last_hidden_state[:, kept])
        loss = None
        if labels is not None:
            loss = self.loss_function(logits, labels, vocab_size=self.config.vocab_size, **kwargs)
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=output.past_key_values,
            hidden_states=output.hidden_states,
        )

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """transformers' `generate`; masks and positions as the original wants them (4-D, 3-D) are taken too."""
        mask, positions = kwargs.get("attention_mask"), kwargs.get("position_ids")
        if mask is not None and mask.dim() == 4:
            kwargs["attention_mask"] = None if (real := _real_of(mask)) is None else real.long()
        if positions is not None:
            del kwargs["position_ids"]  # they follow from the ids
        return super().generate(*args, **kwargs)


class ChatGLMForSequenceClassification(
    GenericForSequenceClassification,  # type: ignore[misc]
    ChatGLMPreTrainedModel,
):
    """The trunk with a head `score` that is read at each row's last token: a reward model."""

    base_model_prefix = "transformer"

    def __init__(self, config: ChatGLMConfig) -> None:
        super(GenericForSequenceClassification, self).__init__(config)
        self.num_labels = config.num_labels
        self.transformer = ChatGLMModel(config)
        self.score = nn.Linear(config.hidden_size, config.num_labels, bias=False)
        self.post_init()
