"""Tiny random networks of many architectures, and how duiqi computes each: packed or padded, and how it decodes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from duiqi.models.ports.registry import port_of
from duiqi.rollouts.prefix import Decoding

HIDDEN, HEADS, LAYERS = 32, 4, 2
_SIZES = {"hidden_size": HIDDEN, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS}
_GATED = {**_SIZES, "intermediate_size": 48, "num_key_value_heads": 2, "max_position_embeddings": 256}
_HEADED = {**_GATED, "head_dim": 8}
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
_DELTA_RULE = {
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "layer_types": ["linear_attention", "full_attention"],
}
_MAMBA2 = {
    "mamba_n_heads": 8,
    "mamba_d_head": 8,
    "mamba_d_state": 8,
    "mamba_n_groups": 1,
    "mamba_chunk_size": 16,
}
SPREAD = 0.15
"""Standard deviation of the random weights: far from uniform predictions, so that mistakes show."""


@dataclass(frozen=True)
class Architecture:
    """A tiny configuration, and what is expected of it."""

    model_type: str
    fields: dict[str, Any]
    layout: str
    """How rows are computed: lean (packed, on duiqi's own layers), packed, or padded."""
    decoding: Decoding = Decoding.TOGETHER
    spread: str = "initializer_range"
    """What the configuration calls the standard deviation of its weights."""

    def config(self, vocab_size: int, **changes: Any) -> PreTrainedConfig:
        """The configuration; `changes` name special tokens."""
        tokens = {"pad_token_id": 0, "bos_token_id": None, "eos_token_id": 1, **changes}
        port = port_of({"model_type": self.model_type})
        kind = partial(AutoConfig.for_model, self.model_type) if port is None else port.config_class
        return kind(vocab_size=vocab_size, **{self.spread: SPREAD}, **tokens, **self.fields)

    def build(self, vocab_size: int, **changes: Any) -> PreTrainedModel:
        """A random network, always the same; nothing in it is zero or one by initialisation."""
        torch.manual_seed(0)
        port = port_of({"model_type": self.model_type})
        kind = AutoModelForCausalLM.from_config if port is None else port.causal_lm_class
        model: PreTrainedModel = kind(self.config(vocab_size, **changes))
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1 and (name.endswith("bias") or "norm" in name or "ln_" in name):
                parameter.data += 0.1 * torch.randn_like(parameter)
        return model.eval()


ARCHITECTURES: dict[str, Architecture] = {
    "llama": Architecture("llama", _GATED, "lean"),
    "qwen2": Architecture("qwen2", _GATED, "lean"),
    "qwen3": Architecture("qwen3", _HEADED, "lean"),
    "mistral, sliding": Architecture("mistral", {**_GATED, "sliding_window": 6}, "lean"),
    "gemma": Architecture("gemma", _HEADED, "packed"),
    "gemma2, soft caps": Architecture("gemma2", {**_HEADED, "sliding_window": 6}, "padded"),
    "gemma3, sliding and full": Architecture(
        "gemma3_text",
        {**_HEADED, "sliding_window": 6, "layer_types": ["sliding_attention", "full_attention"]},
        "packed",
    ),
    "glm4": Architecture("glm4", _HEADED, "packed"),
    "internlm": Architecture("internlm", _GATED, "lean"),
    "internlm3": Architecture("internlm3", _HEADED, "lean"),
    "bloom, ALiBi": Architecture("bloom", {"hidden_size": HIDDEN, "n_layer": LAYERS, "n_head": HEADS}, "padded"),
    "opt, projected": Architecture(
        "opt",
        {
            **_SIZES,
            "ffn_dim": 48,
            "word_embed_proj_dim": 16,
            "do_layer_norm_before": False,
            "max_position_embeddings": 256,
        },
        "packed",
        spread="init_std",
    ),
    "gpt2": Architecture("gpt2", {"n_embd": HIDDEN, "n_layer": LAYERS, "n_head": HEADS, "n_positions": 256}, "packed"),
    "mixtral, experts": Architecture("mixtral", {**_GATED, "num_local_experts": 4}, "packed"),
    "qwen2_moe, a shared expert": Architecture(
        "qwen2_moe", {**_GATED, **_EXPERTS, "shared_expert_intermediate_size": 16}, "packed"
    ),
    "qwen3_next, gated delta rule": Architecture(
        "qwen3_next", {**_HEADED, **_EXPERTS, **_DELTA_RULE, "shared_expert_intermediate_size": 16}, "padded"
    ),
    "lfm2, convolutions": Architecture(
        "lfm2", {**_GATED, "layer_types": ["conv", "full_attention"], "block_multiple_of": 8}, "padded"
    ),
    "jamba, Mamba and experts": Architecture(
        "jamba",
        {
            **_GATED,
            "attn_layer_period": 2,
            "attn_layer_offset": 1,
            "expert_layer_period": 2,
            "expert_layer_offset": 1,
            "num_experts": 2,
            "num_experts_per_tok": 1,
            "mamba_d_state": 4,
            "mamba_dt_rank": 4,
            "use_mamba_kernels": False,
        },
        "padded",
    ),
    "falcon_h1, Mamba beside attention": Architecture("falcon_h1", {**_HEADED, **_MAMBA2, "mamba_d_ssm": 64}, "padded"),
    "mamba": Architecture(
        "mamba",
        {"hidden_size": HIDDEN, "num_hidden_layers": LAYERS, "state_size": 4, "time_step_rank": 4},
        "padded",
        Decoding.REREAD,
    ),
}
