"""What PPO should need in memory, from the shapes alone: weights, adapters, optimizer, and activations of the widest
moment. A run's real peak, less what Python and its libraries take before the model is there, is held against it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from floor import shape_of

BYTES = {"fp32": 4, "bf16": 2}
CHUNK_LOGITS = 2**22
"""Logits of a chunk, of which two exist at a time (duiqi.algorithms.log_probs)."""
DECODER_COPY = 2**28
"""Bytes up to which the sampler keeps a float32 copy of the layers (duiqi.models.lean_decoding)."""


@dataclass(frozen=True)
class Plan:
    """Bytes, by what they are for."""

    weights: float
    adapters: float
    """Of all roles, with gradients and the optimizer's two moments for those that learn."""
    sampler: float
    """The layers' copy, and keys and values of all answers."""
    activations: float
    """Of an update, or of a pass without gradient, whichever is wider."""

    @property
    def megabytes(self) -> float:
        return (self.weights + self.adapters + self.sampler + self.activations) / 1e6


def ppo_plan(
    config: Mapping[str, Any],
    *,
    dtype: str,
    critic: str,
    rank: int,
    update_tokens: int,
    update_answers: int,
    read_tokens: int,
    rollout_tokens: int,
) -> Plan:
    """Plan a run of PPO or GRPO on a base of the Llama family.

    Args:
        config: Of the base.
        dtype: fp32 or bf16.
        critic: none, shared, adapter or model.
        rank: Of the adapters, on all linear layers.
        update_tokens: Tokens of a mini-batch.
        update_answers: Those of them that are answers, where the head reads.
        read_tokens: Tokens of a pass without gradient.
        rollout_tokens: Tokens whose keys and values the sampler keeps.
    """
    shape, size = shape_of(config), BYTES[dtype]
    hidden, layers, vocabulary = config["hidden_size"], config["num_hidden_layers"], config["vocab_size"]
    key_value = hidden // config["num_attention_heads"] * config["num_key_value_heads"]
    inner = config["intermediate_size"]
    widths = [2 * hidden, 2 * (hidden + key_value), 2 * hidden, 3 * (hidden + inner)]  # q; k and v; o; gate, up, down
    adapter = 4 * rank * layers * sum(widths)
    learning = {"none": 1, "shared": 1, "adapter": 2, "model": 1}[critic]
    adapters = (
        adapter * (2 + (critic == "adapter")) + 3 * adapter * learning
    )  # policy, reward, critic; Adam and gradient
    full_critic = 4 * 4 * (shape.body + shape.head) if critic == "model" else 0
    tied = 1 if config.get("tie_word_embeddings") else 2
    copy = 4 * shape.body if 4 * shape.body <= DECODER_COPY else 0
    kept = size * layers * (4 * hidden + 2 * key_value + 2 * inner)  # input, q, k, v, attended, input again, gate, up
    passing = 4 * (3 * inner + 4 * hidden)  # of one layer, while its backward pass runs
    logits = 4 * min(update_answers * vocabulary, CHUNK_LOGITS) + (size < 4) * size * CHUNK_LOGITS
    update = update_tokens * (kept * (2 if critic == "adapter" else 1) + passing) + logits
    reading = size * read_tokens * (2 * hidden + 2 * inner) + 4 * min(read_tokens * vocabulary, CHUNK_LOGITS)
    return Plan(
        weights=size * (shape.body + tied * shape.head) + full_critic,
        adapters=float(adapters),
        sampler=copy + size * rollout_tokens * 2 * key_value * layers,
        activations=float(max(update, reading)),
    )
