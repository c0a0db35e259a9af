"""The prompt of a row, and the answers to it: what most formats have in common."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from duiqi.data.rows.columns import Fields, malformed, number, text
from duiqi.data.rows.turns import (
    ASSISTANT,
    COLON,
    Messages,
    checked,
    history,
    is_open_transcript,
    message_list,
    transcript,
    with_system,
)
from duiqi.errors import DataError
from duiqi.types import Example, Message, Origin, last_user_text

LARGEST_MARGIN = 1e6
"""In score units, which rarely leave the tens: anything above, nan among it, is no margin."""
MESSAGE_COLUMNS = ("messages", "conversations", "context")
"""Where the messages of a prompt may stand."""


def stated_prompt(row: Fields, origin: Origin) -> Messages:
    """The prompt that stands in columns of its own; empty when it is part of the answers' message lists."""
    if "instruction" in row:
        return instruction_prompt(row, origin)
    match row.get("prompt"):
        case None:
            column = next((name for name in MESSAGE_COLUMNS if name in row), None)
            return () if column is None else message_prompt(row, column, origin)
        case list():
            return message_prompt(row, "prompt", origin)
        case _:
            asked = text(row, "prompt", origin)
            return checked(with_system(row, _question(row, asked, origin), origin), "prompt", origin)


def instruction_prompt(row: Fields, origin: Origin) -> Messages:
    """instruction and input (or context), joined by a line break, behind the history.

    LLaMA-Factory joins them so too; ChatGLM-Efficient-Tuning put nothing between.
    """
    instruction = text(row, "instruction", origin, may_be_empty=True)
    given = text(row, "input" if "input" in row else "context", origin, may_be_empty=True)
    question = "\n".join(part for part in (instruction, given) if part)
    if not question.strip():
        malformed("instruction", row.get("instruction"), "a question", origin)
    return checked(with_system(row, _question(row, question, origin), origin), "history", origin)


def message_prompt(row: Fields, column: str, origin: Origin) -> Messages:
    """The prompt that is a list of messages."""
    return checked(with_system(row, message_list(row.get(column), column, origin), origin), column, origin)


def _question(row: Fields, asked: str, origin: Origin) -> Messages:
    """A text that is asked, behind the history; or the turns of a transcript."""
    return transcript(asked) if is_open_transcript(asked) else (*history(row, origin), Message("user", asked))


def reply(
    row: Fields, column: str, stated: Messages, origin: Origin, *, may_be_empty: bool = False
) -> tuple[Messages, str]:
    """The prompt and the answer that one column gives: text, a message, or messages with or without the prompt.

    Raises:
        DataError: There is no answer, or it replies to another prompt than the one stated.
    """
    value = row.get(column)
    if not isinstance(value, list | dict):
        answer = text(row, column, origin, may_be_empty=may_be_empty)
        asked = row.get("prompt", row.get("instruction"))
        return stated, re.sub(rf"^\s*{ASSISTANT}{COLON} ?|^ ", "", answer) if is_open_transcript(asked) else answer
    messages = message_list(value if isinstance(value, list) else [value], column, origin)
    if not messages or messages[-1].role != "assistant":
        raise DataError(f"{column}: found no answer at its end, expected an assistant message", where=str(origin))
    *earlier, answer_message = messages
    if not earlier:
        return stated, answer_message.content
    prompt = checked(tuple(earlier), column, origin)
    if stated and stated != prompt and last_user_text(stated) != last_user_text(prompt):
        raise DataError(f"{column} begins with another prompt than the one stated", where=str(origin))
    return prompt, answer_message.content


def demonstration(prompt: Messages, answer: str, origin: Origin) -> Example:
    """One answer; where it is empty there is nothing to learn, and the row is a prompt."""
    if answer.strip():
        return Example("demonstration", prompt, (answer,), origin)
    return Example("prompt", prompt, (), origin)


def ranking(
    prompt: Messages, answers: Sequence[Any], row: Fields, origin: Origin, *, scores: Sequence[float] = ()
) -> tuple[Example, ...]:
    """Several answers, best first, or in any order with the scores that order them. Nothing when all score the same.

    Repetitions among the answers are left to the encoding, which drops and counts them.

    Raises:
        DataError: There is no prompt, fewer than two answers, or one that is no text.
    """
    if not prompt:
        raise DataError("found no prompt, expected one for the answers to reply to", where=str(origin))
    for answer in answers:
        if not isinstance(answer, str) or not answer.strip():
            malformed("one of the answers", answer, "text", origin)
    if len(answers) < 2:
        raise DataError(f"found {len(answers)} answer, expected at least two, best first", where=str(origin))
    if scores:
        order = sorted(range(len(answers)), key=lambda place: -scores[place])
        answers, scores = [answers[place] for place in order], [scores[place] for place in order]
        if scores[0] == scores[-1]:
            return ()
    return (Example("ranking", prompt, tuple(answers), origin, margin=margin(row, origin), scores=tuple(scores)),)


def margin(row: Fields, origin: Origin) -> float:
    """How much better the row says that the best answer is; 0 when it does not."""
    value = row.get("margin")
    if value is None:
        return 0.0
    if isinstance(value, str):
        malformed("margin", value, f"a number of at most {LARGEST_MARGIN:g}", origin)
    return number(value, "margin", origin, largest=LARGEST_MARGIN)
