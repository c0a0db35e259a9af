"""From one example to token ids that know which of them are learned, within token budgets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import TYPE_CHECKING, Literal

from duiqi.data.named_templates import Segment
from duiqi.data.templates import Template
from duiqi.errors import DataError, SettingsError
from duiqi.packing.batch import Family
from duiqi.types import Example, Message, ranked_pairs

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TrainOn = Literal["all", "last"]
"""Which answers of a conversation are learned: every one that the template allows, or the last."""

LEARNED_MARKS = ("⟦", "⟧")
BROKEN_CHARACTER = "\ufffd"


@dataclass(frozen=True, slots=True)
class TokenBudget:
    """How long sequences may be, in tokens. Build it with `token_budget`."""

    total: int
    prompt: int
    answer: int | None = None
    """Longest answer with its stop token; None: what the prompt at hand leaves of `total`."""

    def answer_room(self, prompt_length: int) -> int:
        """How many tokens an answer may have after a prompt of this length, its stop token included."""
        room = self.total - prompt_length
        return room if self.answer is None else min(room, self.answer)


def token_budget(
    cutoff_len: int, *, max_prompt_tokens: int | None = None, max_answer_tokens: int | None = None
) -> TokenBudget:
    """The budgets that three settings make together.

    A prompt may have `max_prompt_tokens` (default: half of `cutoff_len`). This does not depend on the answer, so a
    prompt is cut the same way in every stage. An answer may have what its prompt leaves, at most `max_answer_tokens`.

    Raises:
        SettingsError: The prompt's budget leaves no token for an answer.
    """
    prompt = cutoff_len // 2 if max_prompt_tokens is None else max_prompt_tokens
    if prompt + 2 > cutoff_len:
        raise SettingsError(
            f"prompts of {prompt} tokens leave no room for an answer and its stop token in {cutoff_len}",
            where="cutoff_len",
            remedy="raise cutoff_len or lower max_source_length",
        )
    return TokenBudget(cutoff_len, prompt, max_answer_tokens)


@dataclass(frozen=True, slots=True)
class EncodedSequence:
    """A prompt and its answer as token ids."""

    input_ids: list[int]
    answer_mask: list[bool]
    """True at the tokens that are learned or scored, stop tokens included."""
    prompt_length: int
    """Tokens before the last answer."""
    prompt_truncated: bool = False
    answer_truncated: bool = False

    @property
    def truncated(self) -> bool:
        """Whether anything was cut."""
        return self.prompt_truncated or self.answer_truncated

    @property
    def family(self) -> Family:
        """For packing: a sequence of its own."""
        return Family((), (self.input_ids,), (self.answer_mask,))


@dataclass(frozen=True, slots=True)
class EncodedPrompt:
    """A prompt as token ids; `answer_mask` is True at the earlier answers in it."""

    input_ids: list[int]
    answer_mask: list[bool]
    truncated: bool


@dataclass(frozen=True, slots=True)
class EncodedRanking:
    """One prompt and its answers, best first, all different from each other."""

    prompt_ids: list[int]
    answers: list[list[int]]
    """Token ids of each answer, stop token included."""
    prompt_truncated: bool
    answers_truncated: int
    answers_dropped: int
    """Answers that repeat a better one, from the start or after being cut."""
    scores: tuple[float, ...] = ()
    """What the data scored the answers that are left; empty when it does not say."""

    @property
    def pairs(self) -> list[tuple[int, int]]:
        """The places of every (better, worse) pair of answers; equal scores make none."""
        return ranked_pairs(self.answers, self.scores)

    @property
    def family(self) -> Family:
        """For packing: the answers share the prompt."""
        return Family(self.prompt_ids, self.answers)

    def sequence(self, index: int) -> EncodedSequence:
        """The prompt with one of its answers."""
        answer = self.answers[index]
        mask = [False] * len(self.prompt_ids) + [True] * len(answer)
        return EncodedSequence(self.prompt_ids + answer, mask, len(self.prompt_ids), self.prompt_truncated)


def fit_prompt(
    template: Template,
    tokenizer: PreTrainedTokenizerBase,
    *,
    messages: Sequence[Message],
    max_prompt_tokens: int | None,
) -> EncodedPrompt:
    """The prompt within its budget.

    A longer prompt loses its oldest turns, whole ones first, then the head of the last question. The BOS token, the
    system message and the template around the question always stay.

    Raises:
        DataError: The system message and the template alone exceed the budget.
    """
    encoded = _encode_prompt_segments(template, tokenizer, messages)
    if max_prompt_tokens is None or len(encoded.input_ids) <= max_prompt_tokens:
        return encoded
    system = [message for message in messages if message.role == "system"]
    turns = [message for message in messages if message.role != "system"]
    while len(turns) > 1:
        turns = turns[2:]
        encoded = _encode_prompt_segments(template, tokenizer, [*system, *turns])
        if len(encoded.input_ids) <= max_prompt_tokens:
            return replace(encoded, truncated=True)
    question = turns[0].content

    def with_tail(num_characters: int) -> EncodedPrompt:
        tail = question[len(question) - num_characters :]
        return _encode_prompt_segments(template, tokenizer, [*system, Message("user", tail)])

    kept = with_tail(0)
    if len(kept.input_ids) > max_prompt_tokens:
        raise DataError(
            f"template and system message take {len(kept.input_ids)} tokens of a prompt's {max_prompt_tokens}",
            where="max_source_length",
            remedy="raise max_source_length or cutoff_len, or shorten the system message",
        )
    low, high = 0, len(question)  # `low` characters fit, `high` do not
    while high - low > 1:
        middle = (low + high) // 2
        candidate = with_tail(middle)
        if len(candidate.input_ids) <= max_prompt_tokens:
            low, kept = middle, candidate
        else:
            high = middle
    return replace(kept, truncated=True)


def encode_prompt(
    template: Template,
    tokenizer: PreTrainedTokenizerBase,
    *,
    messages: Sequence[Message],
    max_prompt_tokens: int | None = None,
) -> list[int]:
    """The token ids of a prompt, the same in every stage and in chat. See `fit_prompt` for what is cut."""
    return fit_prompt(template, tokenizer, messages=messages, max_prompt_tokens=max_prompt_tokens).input_ids


def encode_answer(
    template: Template,
    tokenizer: PreTrainedTokenizerBase,
    *,
    messages: Sequence[Message],
    answer: str,
    max_answer_tokens: int | None = None,
) -> tuple[list[int], bool]:
    """The token ids of an answer with its stop token, and whether it was cut.

    An answer that is cut keeps its stop token, so that a model trained with a small budget still learns to stop. It is
    cut between characters.
    """
    ids = _tokenize(tokenizer, template.answer_segment(messages, answer).text)
    stop = template.stop_token_ids[0]
    if max_answer_tokens is None or len(ids) < max_answer_tokens:
        return [*ids, stop], False
    ids = ids[: max(0, max_answer_tokens - 1)]
    if BROKEN_CHARACTER not in answer:
        while ids and tokenizer.decode(ids).endswith(BROKEN_CHARACTER):
            ids.pop()
    return [*ids, stop], True


def encode_conversation(
    template: Template,
    tokenizer: PreTrainedTokenizerBase,
    *,
    example: Example,
    answer_index: int = 0,
    budget: TokenBudget | None = None,
    train_on: TrainOn = "last",
) -> EncodedSequence:
    """A prompt with one of its answers, and which tokens are learned.

    `train_on="all"` learns the earlier answers of the conversation too, where `template.learns_history`.
    """
    prompt = fit_prompt(
        template, tokenizer, messages=example.prompt, max_prompt_tokens=budget.prompt if budget else None
    )
    length = len(prompt.input_ids)
    answer, cut = encode_answer(
        template,
        tokenizer,
        messages=example.prompt,
        answer=example.answers[answer_index],
        max_answer_tokens=budget.answer_room(length) if budget else None,
    )
    history = prompt.answer_mask if train_on == "all" else [False] * length
    return EncodedSequence(
        prompt.input_ids + answer, history + [True] * len(answer), length, prompt.truncated, answer_truncated=cut
    )


def encode_spelled_out(
    template: Template,
    tokenizer: PreTrainedTokenizerBase,
    *,
    messages: Sequence[Message],
    answer: str,
    budget: TokenBudget,
) -> list[int]:
    """The row of a prompt and an answer in which special tokens are text: each is read letter by letter.

    For an answer without any it is the row of `encode_conversation`.
    """
    prompt = fit_prompt(template, tokenizer, messages=messages, max_prompt_tokens=budget.prompt).input_ids
    text = template.answer_segment(messages, answer).text
    before, found, after = text.rpartition(answer) if answer else (text, "", "")
    spelled: list[int] = []
    if found:
        spelled = tokenizer(found, add_special_tokens=False, split_special_tokens=True, verbose=False)["input_ids"]
    ids = [*_tokenize(tokenizer, before), *spelled, *_tokenize(tokenizer, after)]
    return [*prompt, *ids[: budget.answer_room(len(prompt)) - 1], template.stop_token_ids[0]]


def encode_ranking(
    template: Template, tokenizer: PreTrainedTokenizerBase, *, example: Example, budget: TokenBudget | None = None
) -> EncodedRanking:
    """A prompt with all its answers; an answer whose ids repeat those of a better one is dropped."""
    prompt = fit_prompt(
        template, tokenizer, messages=example.prompt, max_prompt_tokens=budget.prompt if budget else None
    )
    room = budget.answer_room(len(prompt.input_ids)) if budget else None
    encoded = [
        encode_answer(template, tokenizer, messages=example.prompt, answer=answer, max_answer_tokens=room)
        for answer in example.answers
    ]
    first_places: dict[tuple[int, ...], int] = {}
    for place, (ids, _) in enumerate(encoded):
        first_places.setdefault(tuple(ids), place)
    num_cut = sum(cut for _, cut in encoded)
    return EncodedRanking(
        prompt.input_ids,
        [list(ids) for ids in first_places],
        prompt.truncated,
        num_cut,
        len(encoded) - len(first_places),
        tuple(example.scores[place] for place in first_places.values()) if example.scores else (),
    )


def learned_spans(sequence: EncodedSequence, tokenizer: PreTrainedTokenizerBase) -> list[tuple[str, bool]]:
    """The decoded text in stretches, each with whether it is learned; special tokens are spelled out."""
    marked = zip(sequence.input_ids, sequence.answer_mask, strict=True)
    return [
        (tokenizer.decode([token for token, _ in stretch]), learned)
        for learned, stretch in groupby(marked, key=lambda pair: pair[1])
    ]


def describe_first(sequence: EncodedSequence, tokenizer: PreTrainedTokenizerBase) -> str:
    """The decoded text with the learned stretches between ⟦ and ⟧."""
    opening, closing = LEARNED_MARKS
    spans = learned_spans(sequence, tokenizer)
    return "".join(f"{opening}{text}{closing}" if learned else text for text, learned in spans)


def _encode_prompt_segments(
    template: Template, tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]
) -> EncodedPrompt:
    input_ids = list(template.bos_token_ids)
    answer_mask = [False] * len(input_ids)
    for segment in template.prompt_segments(messages):
        ids = _segment_ids(template, tokenizer, segment)
        input_ids += ids
        answer_mask += [segment.learned] * len(ids)
    input_ids += template.opening_token_ids
    answer_mask += [False] * len(template.opening_token_ids)
    return EncodedPrompt(input_ids, answer_mask, truncated=False)


def _segment_ids(template: Template, tokenizer: PreTrainedTokenizerBase, segment: Segment) -> list[int]:
    ids = _tokenize(tokenizer, segment.text)
    return [*ids, template.stop_token_ids[0]] if segment.learned else ids


def _tokenize(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    return ids
