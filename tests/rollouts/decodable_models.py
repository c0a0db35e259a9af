"""Tiny random models behind the decoder's protocol, and a decoder over them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from transformers import (
    DynamicCache,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from duiqi.rollouts.decoder import Decoder
from duiqi.rollouts.prefix import Decoding

VOCAB, PAD, STOP = 101, 0, 2
_SHAPE = {"vocab_size": VOCAB, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
_TOKENS = {"pad_token_id": PAD, "bos_token_id": 1, "eos_token_id": STOP}
_GATED = {**_SHAPE, **_TOKENS, "intermediate_size": 48, "num_key_value_heads": 2}
ARCHITECTURES: dict[str, Callable[[], PreTrainedModel]] = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**_GATED)),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**_GATED)),
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(vocab_size=VOCAB, n_embd=32, n_layer=2, n_head=4, **_TOKENS)),
    "mistral": lambda: MistralForCausalLM(MistralConfig(**_GATED, sliding_window=6)),
}


class TinyModel:
    """A random transformers model, with a value head and a preference for stopping."""

    def __init__(self, architecture: str = "llama", *, stop_bias: float = 0.0, has_value_head: bool = True) -> None:
        torch.manual_seed(0)
        self.network = ARCHITECTURES[architecture]().eval()
        for weight in self.network.parameters():
            weight.data.mul_(4.0 if weight.ndim > 1 else 1.0)  # far from uniform, so that mistakes show
        self.value_head = nn.Linear(32, 1) if has_value_head else None
        self.logit_bias = torch.zeros(VOCAB)
        self.logit_bias[STOP] = stop_bias
        self.device = torch.device("cpu")
        self.row_tokens_run = 0

    def new_cache(self) -> DynamicCache:
        return DynamicCache(config=self.network.config)

    def trunk(self, input_ids: Tensor, **arguments: object) -> tuple[Tensor, DynamicCache]:
        self.row_tokens_run += input_ids.numel()
        output = self.network.get_decoder()(input_ids=input_ids, **arguments)
        return output.last_hidden_state, output.past_key_values

    def logits(self, hidden: Tensor) -> Tensor:
        return self.network.lm_head(hidden) + self.logit_bias

    def values(self, hidden: Tensor) -> Tensor | None:
        return None if self.value_head is None else self.value_head(hidden).squeeze(-1)

    @torch.no_grad()
    def teacher_forced(self, prompt: Sequence[int], answer: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Logits and hidden states that predict each answer token, from one plain forward pass."""
        hidden = self.network.get_decoder()(input_ids=torch.tensor([[*prompt, *answer]])).last_hidden_state[0]
        hidden = hidden[len(prompt) - 1 : -1]
        return self.logits(hidden), hidden


def make_decoder(model: TinyModel, **options: object) -> Decoder:
    return Decoder(
        model,
        decode=lambda ids: " ".join(map(str, ids)),
        **{
            "stop_token_ids": [STOP],
            "pad_token_id": PAD,
            "max_batch_rows": 8,
            "decoding": Decoding.TOGETHER,
            **options,
        },
    )
