"""Batches of answers that were liked or not. An answer and its prompt are encoded as a ranking of one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from duiqi.data.encoded import EncodedData, EncodingReport
from duiqi.data.encoding import EncodedRanking, TokenBudget, encode_ranking
from duiqi.data.templates import Template
from duiqi.packing.batch import PackedBatch, pack
from duiqi.packing.budget import deal
from duiqi.types import Example

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class FeedbackBatch:
    """Some answers, and which of them were liked."""

    rankings: tuple[EncodedRanking, ...]
    """Each of one answer."""
    sequences: PackedBatch
    liked: Bool[Tensor, " B"]
    baseline: Float[Tensor, ""]
    """z0 of the step that they belong to."""

    def to(self, device: torch.device) -> FeedbackBatch:
        """The same batch on a device."""
        return replace(
            self,
            sequences=self.sequences.to(device),
            liked=self.liked.to(device),
            baseline=self.baseline.to(device),
        )


def encode_feedback(
    template: Template, tokenizer: PreTrainedTokenizerBase, *, examples: Sequence[Example], budget: TokenBudget
) -> EncodedData[EncodedRanking]:
    """Every answer with its prompt."""
    items = [encode_ranking(template, tokenizer, example=example, budget=budget) for example in examples]
    report = EncodingReport(
        rows=len(items),
        tokens=sum(len(item.prompt_ids) + len(item.answers[0]) for item in items),
        learned_tokens=sum(len(item.answers[0]) for item in items),
        truncated_prompts=sum(item.prompt_truncated for item in items),
        truncated_answers=sum(item.answers_truncated for item in items),
        empty_answers=sum(len(item.answers[0]) == 1 for item in items),
        duplicates=len(items) - len({(*item.prompt_ids, -1, *item.answers[0]) for item in items}),
    )
    return EncodedData(items, list(examples), report)


def feedback_batches(
    data: EncodedData[EncodedRanking],
    rows: Sequence[int],
    *,
    baseline: Float[Tensor, ""],
    max_tokens: int,
    packed: bool,
) -> Iterator[FeedbackBatch]:
    """Rows of a dataset in micro-batches of at most so many tokens."""
    for picked in deal([data.items[row].family for row in rows], max_tokens=max_tokens, packed=packed):
        chosen = [rows[i] for i in picked]
        yield collate_feedback(
            [data.items[row] for row in chosen],
            liked=[bool(data.examples[row].liked) for row in chosen],
            baseline=baseline,
        )


def collate_feedback(
    items: Sequence[EncodedRanking], *, liked: Sequence[bool], baseline: Float[Tensor, ""]
) -> FeedbackBatch:
    """The answers as one batch."""
    return FeedbackBatch(tuple(items), pack([item.family for item in items]), torch.tensor(liked), baseline)


def mismatched(items: Sequence[EncodedRanking], *, max_tokens: int) -> list[EncodedRanking]:
    """Each prompt with the answer of the row before it, cut to `max_tokens` in all; nothing where there is one row."""
    if len(items) < 2:
        return []
    return [
        replace(item, answers=[before.answers[0][: max(1, max_tokens - len(item.prompt_ids))]])
        for before, item in zip([items[-1], *items[:-1]], items, strict=True)
    ]
