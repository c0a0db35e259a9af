"""The least that must be computed: FLOPs of the floor and of a padded run, from the shapes and the work files.

A matrix product passes one token through P parameters in 2P FLOPs. With LoRA the frozen weights need no gradient of
their own: 2P forward and 2P for the gradient of the input, 4P a token. b are the parameters of all layers' matrices,
h those of the head. Attention's own products and everything that is no matrix product are left out on both sides.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from work import read_rows

FORWARD, TRAIN, TRAIN_FULL = 2.0, 4.0, 6.0
"""FLOPs per parameter and token: forward alone; with the input's gradient; with the weights' gradient too."""


@dataclass(frozen=True)
class Shape:
    """The two numbers of a model that FLOPs depend on."""

    body: float
    """b: parameters of all layers' matrices."""
    head: float
    """h: vocabulary x hidden size."""


def shape_of(config: Mapping[str, Any]) -> Shape:
    """From a configuration of the Llama family (Qwen2, Mistral ...).

    >>> shape_of({"hidden_size": 4, "intermediate_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2,
    ...           "num_key_value_heads": 1, "vocab_size": 10})
    Shape(body=288.0, head=40.0)
    """
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    key_value = hidden // heads * config["num_key_value_heads"]
    attention = 2 * hidden * hidden + 2 * hidden * key_value
    layer = attention + 3 * hidden * config["intermediate_size"]
    return Shape(float(config["num_hidden_layers"] * layer), float(config["vocab_size"] * hidden))


def read_shape(model: Path) -> Shape:
    """Of a model's folder."""
    return shape_of(json.loads((model / "config.json").read_text(encoding="utf-8")))


@dataclass(frozen=True)
class Count:
    """FLOPs of a whole piece of work: at least, and done with padding, repeated prompts and the head everywhere."""

    needed: float
    padded: float

    @property
    def ratio(self) -> float:
        return self.padded / self.needed


def batches(items: Sequence[Any], size: int) -> list[Sequence[Any]]:
    """The items in the order of the file, `size` at a time."""
    return [items[start : start + size] for start in range(0, len(items), size)]


def sft_count(shape: Shape, rows: Sequence[tuple[int, int]], *, batch: int) -> Count:
    """Rows are (tokens, learned tokens). Floor: T x 4b + Lr x 4h."""
    tokens, learned = (sum(column) for column in zip(*rows, strict=True))
    padded = sum(len(group) * max(length for length, _ in group) for group in batches(rows, batch))
    return Count(TRAIN * (tokens * shape.body + learned * shape.head), TRAIN * padded * (shape.body + shape.head))


def pair_tokens(pairs: Sequence[tuple[int, int, int]]) -> tuple[int, int]:
    """Of pairs (prompt, prompt + chosen, prompt + rejected): tokens with the prompt once, and answers' tokens.

    >>> pair_tokens([(3, 5, 8)])
    (10, 7)
    """
    answers = sum(chosen - prompt + rejected - prompt for prompt, chosen, rejected in pairs)
    return answers + sum(prompt for prompt, _, _ in pairs), answers


def padded_pair_tokens(pairs: Sequence[tuple[int, int, int]], batch: int) -> int:
    """Tokens of all sequences, each as long as the longest of its batch."""
    groups = batches(pairs, batch)
    return sum(2 * len(group) * max(max(chosen, rejected) for _, chosen, rejected in group) for group in groups)


def rm_count(shape: Shape, pairs: Sequence[tuple[int, int, int]], *, batch: int) -> Count:
    """Floor: (Lp + 2 Lr) x 4b."""
    needed, _ = pair_tokens(pairs)
    return Count(TRAIN * needed * shape.body, TRAIN * padded_pair_tokens(pairs, batch) * shape.body)


def dpo_count(shape: Shape, pairs: Sequence[tuple[int, int, int]], *, batch: int, remembered: bool = False) -> Count:
    """Floor: (Lp + 2 Lr) x 4b + 2 Lr x 4h, and half of that again for the reference unless it is remembered."""
    needed, answers = pair_tokens(pairs)
    once = needed * shape.body + answers * shape.head
    floor = once * (TRAIN if remembered else TRAIN + FORWARD)
    return Count(floor, (TRAIN + FORWARD) * padded_pair_tokens(pairs, batch) * (shape.body + shape.head))


@dataclass(frozen=True)
class Rounds:
    """The work of PPO and GRPO."""

    prompts: Sequence[int]
    """Tokens of each prompt."""
    answers: int
    """To each prompt."""
    new_tokens: int
    epochs: int
    rollout: int
    """Answers of a round, which share one padded length."""

    @property
    def needed_tokens(self) -> int:
        """With every prompt once."""
        return sum(self.prompts) + self.answer_tokens

    @property
    def answer_tokens(self) -> int:
        return len(self.prompts) * self.answers * self.new_tokens

    @property
    def padded_tokens(self) -> int:
        """With the prompt beside every answer, as long as the longest of its round."""
        groups = batches(self.prompts, max(1, self.rollout // self.answers))
        return sum(len(group) * self.answers * (max(group) + self.new_tokens) for group in groups)


def ppo_count(shape: Shape, work: Rounds, *, critic: str) -> Count:
    """Sample, score, ask the reference, then some epochs; against three full models and the head at every position.

    The padded side: generation, two log-probability passes, reward and value models' passes, and in every epoch the
    policy's and the fully trained value model's forward and backward pass.
    """
    body, head = work.needed_tokens * shape.body, work.answer_tokens * shape.head
    floor = FORWARD * (3 * body + 2 * head) + work.epochs * TRAIN * (body + head)
    if critic != "shared":  # a pass of its own for the old values, and one forwards and back in every epoch
        floor += FORWARD * body + work.epochs * TRAIN * body
    body, both = work.padded_tokens * shape.body, work.padded_tokens * (shape.body + shape.head)
    padded = FORWARD * (3 * both + 2 * body) + work.epochs * (TRAIN * both + TRAIN_FULL * body)
    return Count(floor, padded)


def grpo_count(shape: Shape, work: Rounds) -> Count:
    """The same without a critic; the padded side keeps the head to the answers, as TRL does there."""
    body, head = work.needed_tokens * shape.body, work.answer_tokens * shape.head
    floor = FORWARD * (3 * body + 2 * head) + work.epochs * TRAIN * (body + head)
    body, head = work.padded_tokens * shape.body, work.answer_tokens * shape.head
    padded = FORWARD * (4 * body + 3 * head) + work.epochs * TRAIN * (body + head)
    return Count(floor, padded)


def learned_tokens(root: Path, size: str, rows: Sequence[Mapping[str, Any]]) -> list[tuple[int, int]]:
    """(tokens, tokens of the assistant) of conversations, with the work's own tokenizer."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(root / size / "policy" / "tokenizer.json"))
    found = []
    for row in rows:
        said = [message["content"] for message in row["messages"] if message["role"] == "assistant"]
        found.append((row["tokens"], sum(len(tokenizer.encode(text).ids) + 1 for text in said)))
    return found


def count_work(root: Path, size: str) -> dict[tuple[str, str], Count]:
    """By (work, contender of duiqi): the FLOPs of the whole work at its default settings."""
    shape = read_shape(root / size / "policy")
    conversations = learned_tokens(root, size, read_rows(root, size, "sft", 256))
    pairs = [tuple(row["tokens"]) for row in read_rows(root, size, "pairs", 128)]
    prompts = [row["tokens"] for row in read_rows(root, size, "prompts", 128)]
    single = Rounds(prompts, answers=1, new_tokens=96, epochs=4, rollout=16)
    grouped = Rounds(prompts[: 128 // 8], answers=8, new_tokens=96, epochs=4, rollout=16)
    return {
        ("sft", "duiqi"): sft_count(shape, conversations, batch=8),
        ("rm", "duiqi"): rm_count(shape, pairs, batch=8),
        ("dpo", "duiqi"): dpo_count(shape, pairs, batch=8),
        ("dpo", "duiqi-cached"): dpo_count(shape, pairs, batch=8, remembered=True),
        ("ppo", "duiqi-shared"): ppo_count(shape, single, critic="shared"),
        ("ppo", "duiqi-adapter"): ppo_count(shape, single, critic="adapter"),
        ("grpo", "duiqi"): grpo_count(shape, grouped),
    }
