"""The configuration of the four Baichuan models, and how one config.json is told from another."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, get_args

from transformers import PreTrainedConfig

PositionEmbedding = Literal["rope", "alibi"]

BAICHUAN2_VOCABULARY = 125696
SECOND_SPELLING = "BaichuanForCausalLM"
"""Baichuan-7B spells it BaiChuanForCausalLM, all later models so."""

_SIZES: dict[PositionEmbedding, dict[str, int]] = {
    "rope": {
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
    },
    "alibi": {
        "hidden_size": 5120,
        "intermediate_size": 13696,
        "num_hidden_layers": 40,
        "num_attention_heads": 40,
    },
}
"""Of the models with 7 and with 13 billion parameters."""


def position_embedding_of(config: Mapping[str, Any]) -> PositionEmbedding:
    """How a model of this config.json knows where its tokens stand.

    The key `position_embedding` decides where there is one. Of the released models those with rotary positions have
    `max_position_embeddings`, those with ALiBi have not.

    Raises:
        ValueError: `position_embedding` is something else.
    """
    named: PositionEmbedding | None = config.get("position_embedding")
    if named is None:
        return "alibi" if config.get("max_position_embeddings") is None else "rope"
    if named not in get_args(PositionEmbedding):
        raise ValueError(f"position_embedding is {named!r}; it can be rope or alibi")
    return named


def has_norm_head(config: Mapping[str, Any]) -> bool:
    """Whether the rows of the output head are scaled to unit length: so in Baichuan2.

    The key `norm_head` decides where there is one, else the size of the vocabulary; and rotary positions with the later
    spelling are found in Baichuan2-7B alone.

    Raises:
        ValueError: `norm_head` is neither true nor false.
    """
    named = config.get("norm_head")
    if isinstance(named, bool):
        return named
    if named is not None:
        raise ValueError(f"norm_head is {named!r}; it can be true or false")
    spells_late = SECOND_SPELLING in (config.get("architectures") or ())
    return config.get("vocab_size") == BAICHUAN2_VOCABULARY or (spells_late and position_embedding_of(config) == "rope")


class BaichuanConfig(PreTrainedConfig):  # type: ignore[misc]  # transformers is untyped for us
    """What the released config.json files hold, under their own keys.

    Two keys are ours: `position_embedding` and `norm_head`. They are found out where they are missing and always
    written, so that a model with another vocabulary, or a tiny one, is not mistaken for another when it is read again.
    """

    model_type = "baichuan"
    keys_to_ignore_at_inference: ClassVar[list[str]] = ["past_key_values"]

    vocab_size: int = 64000
    hidden_size: int = 0
    """This and the next three: 0 is the size of the released model."""
    intermediate_size: int = 0
    num_hidden_layers: int = 0
    num_attention_heads: int = 0
    hidden_act: str = "silu"
    max_position_embeddings: int | None = None
    """Only with rotary positions."""
    model_max_length: int | None = None
    initializer_range: float = 0.02
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    use_cache: bool = True
    pad_token_id: int | None = 0
    bos_token_id: int | None = 1
    eos_token_id: int | list[int] | None = 2
    tie_word_embeddings: bool = False
    z_loss_weight: float = 0.0
    """Weight of the mean square of the largest logit in the loss (Baichuan2)."""
    position_embedding: PositionEmbedding | None = None
    norm_head: bool | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        kwargs.pop("auto_map", None)  # code that is not run here
        kwargs.pop("gradient_checkpointing", None)  # Baichuan2-13B stores [false], which would switch it on
        given = {
            "architectures": self.architectures,
            "max_position_embeddings": self.max_position_embeddings,
            "vocab_size": self.vocab_size,
            "position_embedding": self.position_embedding,
            "norm_head": self.norm_head,
        }
        self.position_embedding, self.norm_head = position_embedding_of(given), has_norm_head(given)
        for name, size in _SIZES[self.position_embedding].items():
            if not getattr(self, name):
                setattr(self, name, size)
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} is no multiple of num_attention_heads {self.num_attention_heads}"
            )
        if self.pad_token_id is not None and not 0 <= self.pad_token_id < self.vocab_size:
            self.pad_token_id = 0  # early files of Baichuan-7B name 64000, one past the last token
        super().__post_init__(**kwargs)
