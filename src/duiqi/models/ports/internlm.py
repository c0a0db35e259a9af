"""InternLM-7B and InternLM-20B (2023): Llama's network, with biases in the attention of the smaller one."""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification, LlamaModel, LlamaPreTrainedModel


class InternLMConfig(LlamaConfig):  # type: ignore[misc]  # transformers is untyped for us
    """What the released config.json files hold: Llama's keys, `bias`, and in later files `rotary`."""

    model_type = "internlm"

    rope_parameters: dict[str, Any] | None = None
    bias: bool = True
    """Whether the attention's four linear layers have biases; the MLP's have none."""

    def __post_init__(self, **kwargs: Any) -> None:
        kwargs.pop("auto_map", None)  # code that is not run here
        rotary: dict[str, Any] = kwargs.pop("rotary", None) or {}
        if self.rope_parameters is None:  # "dynamic" turns other angles beyond max_position_embeddings only
            self.rope_parameters = {"rope_type": "default", "rope_theta": float(rotary.get("base", 10000.0))}
        self.attention_bias = self.bias
        super().__post_init__(**kwargs)


class InternLMForCausalLM(LlamaForCausalLM):  # type: ignore[misc]
    """The language model; its weights have Llama's names."""

    config: InternLMConfig
    config_class = InternLMConfig


class InternLMForSequenceClassification(LlamaForSequenceClassification):  # type: ignore[misc]
    """The same trunk with a head `score`."""

    config: InternLMConfig
    config_class = InternLMConfig

    def __init__(self, config: InternLMConfig) -> None:
        LlamaPreTrainedModel.__init__(self, config)
        self.num_labels = config.num_labels
        self.model = LlamaModel(config)
        self.score = nn.Linear(config.hidden_size, self.num_labels, bias=False)
        self.post_init()
