"""What becomes of rows on their way to token ids: what is cut, what is lost, what turns into a command."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from duiqi.data.encoding import encode_ranking, fit_prompt, token_budget
from duiqi.errors import DataError, TemplateError
from duiqi.inspection.findings import LengthRow, excerpt
from duiqi.inspection.lens import Lens, LensSettings
from duiqi.inspection.row_text import row_text
from duiqi.inspection.text_checks import has_half_character, question_of
from duiqi.types import Example

LENGTHS = (256, 512, 1024, 2048, 4096, 8192)
"""Values of `cutoff_len` that the report compares."""
SHORT_PROMPT = 64
"""Tokens of a prompt that no sensible budget cuts."""


@dataclass(frozen=True, slots=True)
class Lengths:
    """How long a row is: all that the table of lengths needs."""

    prompts: tuple[int, ...]
    """Tokens of the prompt: whole, without its oldest round, without its two oldest ... and its last question alone."""
    answers: tuple[int, ...]

    def kept_of_prompt(self, most: int) -> int:
        """Tokens that are left of the prompt where it may have `most`: rounds go first, then part of the question."""
        return next((length for length in self.prompts if length <= most), most)


@dataclass(frozen=True, slots=True)
class RowTokens:
    """A row as token ids, before and after it is fitted into its budget."""

    example: Example
    prompt: list[int]
    """Whole."""
    answers: list[list[int]]
    """Whole, each with its end token, those that repeat a better one left out."""
    lengths: Lengths
    kept_prompt: int
    """Tokens of the prompt that a stage keeps."""
    kept_answers: int
    """Different answers that are left when they are cut."""
    room: int
    """Tokens that an answer may have."""


def tokens_of(example: Example, lens: Lens) -> RowTokens | str:
    """A row as tokens, or why it has none.

    Raises:
        TemplateError: There is no template.
    """
    if has_half_character(example):
        return "half of a character has no bytes"
    template, tokenizer, budget = lens.needed_template(), lens.tokenizer, lens.budget
    try:
        whole = encode_ranking(template, tokenizer, example=example)
        is_long = len(whole.prompt_ids) > budget.prompt or any(
            len(answer) > budget.answer_room(len(whole.prompt_ids)) for answer in whole.answers
        )
        kept = encode_ranking(template, tokenizer, example=example, budget=budget) if is_long else whole
    except (DataError, TemplateError) as error:
        return error.problem
    return RowTokens(
        example=example,
        prompt=whole.prompt_ids,
        answers=whole.answers,
        lengths=Lengths(_prompt_lengths(example, lens, len(whole.prompt_ids)), tuple(map(len, whole.answers))),
        kept_prompt=len(kept.prompt_ids),
        kept_answers=len(kept.answers),
        room=budget.answer_room(len(kept.prompt_ids)),
    )


def length_table(rows: Sequence[Lengths], settings: LensSettings) -> list[LengthRow]:
    """What some values of `cutoff_len`, the one that is set among them, would cut; up to the first that cuts nothing.

    A question that is cut within is counted as filling its budget, which it does to a token or two.
    """
    table = []
    for cutoff in sorted({*LENGTHS, settings.cutoff_len}):
        if settings.max_source_length is not None and settings.max_source_length + 2 > cutoff:
            continue
        budget = token_budget(
            cutoff, max_prompt_tokens=settings.max_source_length, max_answer_tokens=settings.max_target_length
        )
        prompts_cut = answers_cut = lost = tokens = 0
        for row in rows:
            whole, kept = row.prompts[0], row.kept_of_prompt(budget.prompt)
            over = [max(0, answer - budget.answer_room(kept)) for answer in row.answers]
            prompts_cut += kept < whole
            answers_cut += any(over)
            lost += whole - kept + sum(over)
            tokens += whole + sum(row.answers)
        table.append(LengthRow(cutoff, prompts_cut, answers_cut, lost, tokens))
        if lost == 0 and cutoff >= settings.cutoff_len:
            break
    return table


def _prompt_lengths(example: Example, lens: Lens, whole: int) -> tuple[int, ...]:
    """Of the prompt without its oldest rounds; of a short one nothing is ever cut, so only the whole is measured."""
    lengths = [whole]
    system = [message for message in example.prompt if message.role == "system"]
    turns = [message for message in example.prompt if message.role != "system"]
    while len(turns) > 1 and lengths[-1] > SHORT_PROMPT:
        turns = turns[2:]
        template = lens.needed_template()
        fitted = fit_prompt(template, lens.tokenizer, messages=[*system, *turns], max_prompt_tokens=None)
        lengths.append(len(fitted.input_ids))
    return tuple(lengths)


def _identical_after_cut(row: RowTokens, _lens: Lens) -> str:
    if row.kept_answers < 2 <= len(row.answers):
        return f"the same in their first {row.room} tokens: {excerpt(row.example.answers[0])}"
    return ""


def _cut_prompt(row: RowTokens, _lens: Lens) -> str:
    if row.kept_prompt < len(row.prompt):
        return f"{row.kept_prompt:,} of {len(row.prompt):,} tokens are kept: {question_of(row_text(row.example))}"
    return ""


def _cut_answer(row: RowTokens, _lens: Lens) -> str:
    longest = max(map(len, row.answers), default=0)
    if longest > row.room:
        return f"{row.room:,} of {longest:,} tokens are kept: {question_of(row_text(row.example))}"
    return ""


def _unknown_token(row: RowTokens, lens: Lens) -> str:
    unknown = lens.tokenizer.unk_token_id
    if unknown is None or not any(unknown in ids for ids in (row.prompt, *row.answers)):
        return ""
    text = row_text(row.example).whole
    for place, letter in enumerate(text):
        if unknown in lens.tokenizer(letter, add_special_tokens=False)["input_ids"]:
            return excerpt(text, place, place + 1)
    return excerpt(text)


def _special_token(row: RowTokens, lens: Lens) -> str:
    text = row_text(row.example).whole
    found = lens.special_token.search(text)
    return excerpt(text, *found.span()) if found else ""


def _changed_by_tokenizer(row: RowTokens, lens: Lens) -> str:
    for answer in row.example.answers[:1]:
        ids = lens.tokenizer(answer, add_special_tokens=False)["input_ids"]
        back = lens.tokenizer.decode(ids, clean_up_tokenization_spaces=False)
        if back.strip() != answer.strip() and lens.tokenizer.unk_token_id not in ids:
            place = next((i for i, pair in enumerate(zip(back, answer, strict=False)) if pair[0] != pair[1]), 0)
            return f"{excerpt(answer, place, place + 1)} becomes {excerpt(back, place, place + 1)}"
    return ""


TOKEN_CHECKS: dict[str, Callable[[RowTokens, Lens], str]] = {
    "identical_after_cut": _identical_after_cut,
    "special_token": _special_token,
    "unknown_token": _unknown_token,
    "cut_answer": _cut_answer,
    "cut_prompt": _cut_prompt,
}
SAMPLED_CHECKS: dict[str, Callable[[RowTokens, Lens], str]] = {"changed_by_tokenizer": _changed_by_tokenizer}
"""Those that take as long as all others, and find what is in many rows if it is in one."""
