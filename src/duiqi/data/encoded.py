"""Whole datasets as token ids, with everything that was cut, dropped or repeated counted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

from duiqi.data.encoding import (
    EncodedPrompt,
    EncodedRanking,
    EncodedSequence,
    TokenBudget,
    TrainOn,
    encode_conversation,
    encode_ranking,
    fit_prompt,
)
from duiqi.data.templates import Template
from duiqi.errors import DataError
from duiqi.types import Example, Origin

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class EncodingReport:
    """What became of the rows of a dataset on their way to token ids."""

    rows: int = 0
    tokens: int = 0
    """Tokens in all sequences; a prompt counts once."""
    learned_tokens: int = 0
    truncated_prompts: int = 0
    truncated_answers: int = 0
    empty_answers: int = 0
    """Answers of nothing but the stop token."""
    duplicates: int = 0
    """Rows equal to an earlier one; they are kept."""
    repeated_answers: int = 0
    """Answers dropped from a ranking because, perhaps after being cut, they repeat a better one."""
    identical_rankings: tuple[Origin, ...] = ()
    """Rows dropped because fewer than two different answers were left."""

    def lines(self) -> list[str]:
        """Plain sentences for the terminal; what did not happen is not mentioned."""
        sentences = [f"{self.rows} rows, {self.tokens} tokens, of which {self.learned_tokens} are learned or scored"]
        happened = [
            ("prompts cut at their beginning to fit", self.truncated_prompts),
            ("answers cut at their end to fit (they keep their stop token)", self.truncated_answers),
            ("empty answers", self.empty_answers),
            ("rows that repeat an earlier row (kept)", self.duplicates),
            ("answers that repeat a better one of their row, perhaps after being cut (dropped)", self.repeated_answers),
        ]
        if self.identical_rankings:
            first = f"rows without two different answers (dropped; the first is {self.identical_rankings[0]})"
            happened.append((first, len(self.identical_rankings)))
        return sentences + [f"{what}: {count}" for what, count in happened if count]


EncodedT = TypeVar("EncodedT", EncodedSequence, EncodedPrompt, EncodedRanking)


@dataclass(frozen=True, slots=True)
class EncodedData(Generic[EncodedT]):
    """Encoded rows, the examples they came from (in step), and the counts."""

    items: list[EncodedT]
    examples: list[Example]
    report: EncodingReport


def encode_demonstrations(
    template: Template,
    tokenizer: PreTrainedTokenizerBase,
    *,
    examples: Sequence[Example],
    budget: TokenBudget,
    train_on: TrainOn = "all",
) -> EncodedData[EncodedSequence]:
    """Every demonstration as a sequence."""
    items = [
        encode_conversation(template, tokenizer, example=example, budget=budget, train_on=train_on)
        for example in examples
    ]
    report = EncodingReport(
        rows=len(items),
        tokens=sum(len(item.input_ids) for item in items),
        learned_tokens=sum(sum(item.answer_mask) for item in items),
        truncated_prompts=sum(item.prompt_truncated for item in items),
        truncated_answers=sum(item.answer_truncated for item in items),
        empty_answers=sum(len(item.input_ids) == item.prompt_length + 1 for item in items),
        duplicates=_count_repeats(items, lambda item: tuple(item.input_ids)),
    )
    return EncodedData(items, list(examples), report)


def encode_prompts(
    template: Template, tokenizer: PreTrainedTokenizerBase, *, examples: Sequence[Example], max_prompt_tokens: int
) -> EncodedData[EncodedPrompt]:
    """Every prompt, without its answers."""
    items = [
        fit_prompt(template, tokenizer, messages=example.prompt, max_prompt_tokens=max_prompt_tokens)
        for example in examples
    ]
    report = EncodingReport(
        rows=len(items),
        tokens=sum(len(item.input_ids) for item in items),
        truncated_prompts=sum(item.truncated for item in items),
        duplicates=_count_repeats(items, lambda item: tuple(item.input_ids)),
    )
    return EncodedData(items, list(examples), report)


def encode_rankings(
    template: Template, tokenizer: PreTrainedTokenizerBase, *, examples: Sequence[Example], budget: TokenBudget
) -> EncodedData[EncodedRanking]:
    """Every ranking that still has two different answers, one better than the other.

    Raises:
        DataError: No ranking has.
    """
    rankings = [encode_ranking(template, tokenizer, example=example, budget=budget) for example in examples]
    kept = [(item, example) for item, example in zip(rankings, examples, strict=True) if item.pairs]
    if not kept:
        raise DataError(
            "in every row the answers are the same once they are cut",
            where="max_target_length",
            remedy="raise max_target_length or cutoff_len",
        )
    items = [item for item, _ in kept]
    report = EncodingReport(
        rows=len(items),
        tokens=sum(len(item.prompt_ids) + sum(map(len, item.answers)) for item in items),
        learned_tokens=sum(sum(map(len, item.answers)) for item in items),
        truncated_prompts=sum(item.prompt_truncated for item in rankings),
        truncated_answers=sum(item.answers_truncated for item in rankings),
        empty_answers=sum(len(answer) == 1 for item in items for answer in item.answers),
        duplicates=_count_repeats(items, lambda item: (tuple(item.prompt_ids), *map(tuple, item.answers))),
        repeated_answers=sum(item.answers_dropped for item in items),
        identical_rankings=tuple(
            example.origin for item, example in zip(rankings, examples, strict=True) if not item.pairs
        ),
    )
    return EncodedData(items, [example for _, example in kept], report)


def pack_text(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, *, block_size: int) -> list[EncodedSequence]:
    """Documents one after the other, each ended by EOS, in blocks of `block_size` tokens; the last may be shorter.

    A document begins with BOS where the tokenizer adds one. Every token is learned. A last block of one token is left
    out: with nothing before it, there is nothing to predict it from.
    """
    stream: list[int] = []
    for text in texts:
        ids = tokenizer(text, verbose=False)["input_ids"]
        stream += ids if ids[-1:] == [tokenizer.eos_token_id] else [*ids, tokenizer.eos_token_id]
    blocks = [stream[start : start + block_size] for start in range(0, len(stream) - 1, block_size)]
    return [EncodedSequence(block, [True] * len(block), prompt_length=0) for block in blocks]


def _count_repeats(items: Sequence[EncodedT], key: Callable[[EncodedT], object]) -> int:
    return len(items) - len({key(item) for item in items})
