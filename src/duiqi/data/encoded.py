"""Whole datasets as token ids, with everything that was cut, dropped or repeated counted."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Generic

from duiqi.data.compact import TOKEN, CompactRows, EncodedT, RankingWriter, Repetitions, SequenceWriter
from duiqi.data.encoding import (
    EncodedPrompt,
    EncodedRanking,
    EncodedSequence,
    TokenBudget,
    TrainOn,
    WholeRow,
    encode_conversation,
    encode_ranking,
    encode_whole,
    fit_prompt,
)
from duiqi.data.templates import Template
from duiqi.errors import DataError
from duiqi.types import Example, Origin

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


ROWS_AT_ONCE = 512
"""Rows whose texts are tokenised together: enough to keep all cores busy, few enough to stay near them."""


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


@dataclass(frozen=True, slots=True)
class EncodedData(Generic[EncodedT]):
    """Encoded rows, the examples they came from (in step), and the counts."""

    items: Sequence[EncodedT]
    examples: Sequence[Example]
    """Empty where the rows come from the cache."""
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
    writer, repetitions, counts = SequenceWriter(), Repetitions(), Counter[str]()
    for example, whole in _encode_by_batch(template, tokenizer, examples):
        item = encode_conversation(template, tokenizer, example=example, budget=budget, train_on=train_on, whole=whole)
        writer.add(item)
        repetitions.look_at(item.input_ids)
        counts["tokens"] += len(item.input_ids)
        counts["learned_tokens"] += sum(item.answer_mask)
        counts["truncated_prompts"] += item.prompt_truncated
        counts["truncated_answers"] += item.answer_truncated
        counts["empty_answers"] += len(item.input_ids) == item.prompt_length + 1
    rows = writer.rows()
    return EncodedData(
        rows,
        examples,
        EncodingReport(
            rows=len(rows),
            tokens=counts["tokens"],
            learned_tokens=counts["learned_tokens"],
            truncated_prompts=counts["truncated_prompts"],
            truncated_answers=counts["truncated_answers"],
            empty_answers=counts["empty_answers"],
            duplicates=repetitions.count,
        ),
    )


def encode_prompts(
    template: Template, tokenizer: PreTrainedTokenizerBase, *, examples: Sequence[Example], max_prompt_tokens: int
) -> EncodedData[EncodedPrompt]:
    """Every prompt, without its answers."""
    bare = [replace(example, answers=()) for example in examples]
    items = [
        fit_prompt(
            template, tokenizer, messages=example.prompt, max_prompt_tokens=max_prompt_tokens, whole=whole.prompt
        )
        for example, whole in _encode_by_batch(template, tokenizer, bare)
    ]
    repetitions = Repetitions()
    for item in items:
        repetitions.look_at(item.input_ids)
    report = EncodingReport(
        rows=len(items),
        tokens=sum(len(item.input_ids) for item in items),
        truncated_prompts=sum(item.truncated for item in items),
        duplicates=repetitions.count,
    )
    return EncodedData(items, examples, report)


def encode_rankings(
    template: Template, tokenizer: PreTrainedTokenizerBase, *, examples: Sequence[Example], budget: TokenBudget
) -> EncodedData[EncodedRanking]:
    """Every ranking that still has two different answers, one better than the other.

    Raises:
        DataError: No ranking has.
    """
    writer, repetitions, counts = RankingWriter(), Repetitions(), Counter[str]()
    kept: list[Example] = []
    identical: list[Origin] = []
    for example, whole in _encode_by_batch(template, tokenizer, examples):
        item = encode_ranking(template, tokenizer, example=example, budget=budget, whole=whole)
        counts["truncated_prompts"] += item.prompt_truncated
        counts["truncated_answers"] += item.answers_truncated
        if not item.pairs:
            identical.append(example.origin)
            continue
        kept.append(example)
        writer.add(item)
        repetitions.look_at(item.prompt_ids, *item.answers)
        learned = sum(map(len, item.answers))
        counts["tokens"] += len(item.prompt_ids) + learned
        counts["learned_tokens"] += learned
        counts["empty_answers"] += sum(len(answer) == 1 for answer in item.answers)
        counts["repeated_answers"] += item.answers_dropped
    if not kept:
        raise DataError(
            "in every row the answers are the same once they are cut",
            where="max_target_length",
            remedy="raise max_target_length or cutoff_len",
        )
    report = EncodingReport(
        rows=len(kept),
        tokens=counts["tokens"],
        learned_tokens=counts["learned_tokens"],
        truncated_prompts=counts["truncated_prompts"],
        truncated_answers=counts["truncated_answers"],
        empty_answers=counts["empty_answers"],
        duplicates=repetitions.count,
        repeated_answers=counts["repeated_answers"],
        identical_rankings=tuple(identical),
    )
    return EncodedData(writer.rows(), kept, report)


def encode_text(
    tokenizer: PreTrainedTokenizerBase, *, examples: Sequence[Example], block_size: int
) -> EncodedData[EncodedSequence]:
    """Plain texts as blocks. See `pack_text`."""
    blocks = pack_text([example.answers[0] for example in examples], tokenizer, block_size=block_size)
    tokens = len(blocks.columns["tokens"])
    return EncodedData(blocks, examples, EncodingReport(rows=len(blocks), tokens=tokens, learned_tokens=tokens))


def pack_text(
    texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, *, block_size: int
) -> CompactRows[EncodedSequence]:
    """Documents one after the other, each ended by EOS, in blocks of `block_size` tokens; the last may be shorter.

    A document begins with BOS where the tokenizer adds one. Every token is learned. A last block of one token is left
    out: with nothing before it, there is nothing to predict it from.
    """
    stream = array(TOKEN)
    for start in range(0, len(texts), ROWS_AT_ONCE):
        for ids in document_ids(texts[start : start + ROWS_AT_ONCE], tokenizer):
            stream.extend(ids)
    writer = SequenceWriter()
    for start in range(0, len(stream) - 1, block_size):
        block = stream[start : start + block_size].tolist()
        writer.add(EncodedSequence(block, [True] * len(block), prompt_length=0))
    return writer.rows()


def document_ids(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> Iterator[list[int]]:
    """The token ids of each document, ended by EOS."""
    for ids in tokenizer(list(texts), verbose=False)["input_ids"]:
        yield ids if ids[-1:] == [tokenizer.eos_token_id] else [*ids, tokenizer.eos_token_id]


def _encode_by_batch(
    template: Template, tokenizer: PreTrainedTokenizerBase, examples: Sequence[Example]
) -> Iterator[tuple[Example, WholeRow]]:
    """The texts of many rows tokenised at once.

    Raises:
        DataError: A text has half a character, which fast tokenizers take for no text at all.
    """
    for start in range(0, len(examples), ROWS_AT_ONCE):
        batch = examples[start : start + ROWS_AT_ONCE]
        try:
            encoded = encode_whole(template, tokenizer, batch)
        except (TypeError, UnicodeEncodeError) as error:
            _refuse_half_characters(batch, error)
            raise
        yield from zip(batch, encoded, strict=True)


def _refuse_half_characters(examples: Sequence[Example], error: Exception) -> None:
    """Say at which row an encoding failed, if it is for half a character."""
    for example in examples:
        texts = (*(message.content for message in example.prompt), *example.answers)
        if any("\ud800" <= character <= "\udfff" for text in texts for character in text):
            raise DataError(
                "found half a character, of which no tokenizer makes tokens",
                where=str(example.origin),
                remedy="mend the row (often an emoji was cut in two); duiqi data check lists all such rows",
            ) from error
