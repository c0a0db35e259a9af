"""How a row of any known format becomes an `Example`; the columns of a dataset's first row tell the format.

In alpaca rows the question is instruction, line break, input, as in LLaMA-Factory (ChatGLM-Efficient-Tuning joined the
two with nothing between).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from duiqi.data.reading import describe
from duiqi.errors import DataError
from duiqi.types import Example, ExampleKind, Message, Origin, Role, last_user_text

Fields = Mapping[str, Any]
Messages = tuple[Message, ...]

ROLES: dict[str, Role] = {
    "system": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
}
COMPLETION_COLUMNS = ("completion", "response", "output")
LARGEST_MARGIN = 1e6
"""In score units, which rarely leave the tens: anything above, nan among it, is no margin."""


@dataclass(frozen=True, slots=True)
class Format:
    """One way of writing rows down."""

    columns: str
    """The columns that make it, as messages name them."""
    kinds: frozenset[ExampleKind]
    """What its rows can teach."""
    recognise: Callable[[Fields], bool]
    convert: Callable[[Fields, Origin], Example]


def recognise_format(row: Fields, origin: Origin) -> str:
    """The name of the format (a key of `FORMATS`) that the columns of `row` belong to.

    Raises:
        DataError: No format has these columns.
    """
    for name, form in FORMATS.items():
        if form.recognise(row):
            return name
    expected = "; ".join(f"{name} ({form.columns})" for name, form in FORMATS.items())
    raise DataError(
        f"found the columns {', '.join(row) or '(none)'}, expected those of one of: {expected}",
        where=str(origin),
        remedy="rename the columns, or map them under `columns` in dataset_info.json",
    )


def convert(row: Fields, format_name: str, origin: Origin) -> Example:
    """The example that a row of the named format stands for.

    Raises:
        DataError: The row is malformed: what was found and what was expected.
    """
    return FORMATS[format_name].convert(row, origin)


def _alpaca(row: Fields, origin: Origin) -> Example:
    answer = _text(row, "output", origin, may_be_empty=True)
    return _demonstration(_alpaca_prompt(row, origin), answer, origin)


def _comparison(row: Fields, origin: Origin) -> Example:
    answers = row.get("output")
    if not isinstance(answers, list):
        _malformed("output", answers, "a list of answers, best first", origin)
    return _ranking(_stated_prompt(row, origin), answers, row, origin)


def _preference(row: Fields, origin: Origin) -> Example:
    """Two answers to one prompt, which stands in columns of its own or at the head of both message lists."""
    stated = _stated_prompt(row, origin)
    prompts, answers = zip(*(_reply(row, column, stated, origin) for column in ("chosen", "rejected")), strict=True)
    if prompts[0] != prompts[1]:
        raise DataError("chosen and rejected answer different prompts, expected the same prompt", where=str(origin))
    return _ranking(prompts[0], answers, row, origin)


def _hh_rlhf(row: Fields, origin: Origin) -> Example:
    """Two whole transcripts that differ in their last answer."""
    prompts, answers = [], []
    for column in ("chosen", "rejected"):
        turns = _transcript(_text(row, column, origin))
        if not turns or turns[-1].role != "assistant":
            raise DataError(f"{column}: found a transcript that does not end in an answer", where=str(origin))
        prompts.append(_checked(turns[:-1], column, origin))
        answers.append(turns[-1].content)
    if prompts[0] != prompts[1]:
        raise DataError("chosen and rejected differ before their last answer, expected one prompt", where=str(origin))
    return _ranking(prompts[0], answers, row, origin)


def _messages(row: Fields, origin: Origin) -> Example:
    return _conversation(row, "messages", origin)


def _sharegpt(row: Fields, origin: Origin) -> Example:
    return _conversation(row, "conversations", origin)


def _conversation(row: Fields, column: str, origin: Origin) -> Example:
    messages = _with_system(row, _message_list(row.get(column), column, origin), origin)
    if messages and messages[-1].role == "assistant":
        return _demonstration(_checked(messages[:-1], column, origin), messages[-1].content, origin)
    return _demonstration(_checked(messages, column, origin), "", origin)


def _completion(row: Fields, origin: Origin) -> Example:
    column = next((name for name in COMPLETION_COLUMNS if name in row), COMPLETION_COLUMNS[0])
    prompt, answer = _reply(row, column, _stated_prompt(row, origin), origin, may_be_empty=True)
    return _demonstration(prompt, answer, origin)


def _prompt(row: Fields, origin: Origin) -> Example:
    return _demonstration(_stated_prompt(row, origin), "", origin)


def _plain_text(row: Fields, origin: Origin) -> Example:
    return Example("text", (), (_text(row, "text", origin),), origin)


def _demonstration(prompt: Messages, answer: str, origin: Origin) -> Example:
    """One answer; where it is empty there is nothing to learn, and the row is a prompt."""
    if answer.strip():
        return Example("demonstration", prompt, (answer,), origin)
    return Example("prompt", prompt, (), origin)


def _ranking(prompt: Messages, answers: Sequence[Any], row: Fields, origin: Origin) -> Example:
    """Several answers, best first. Repetitions among them are left to the encoding, which drops and counts them."""
    if not prompt:
        raise DataError("found no prompt, expected one for the answers to reply to", where=str(origin))
    for answer in answers:
        if not isinstance(answer, str) or not answer.strip():
            _malformed("one of the answers", answer, "text", origin)
    if len(answers) < 2:
        raise DataError(f"found {len(answers)} answer, expected at least two, best first", where=str(origin))
    return Example("ranking", prompt, tuple(answers), origin, margin=_margin(row, origin))


def _margin(row: Fields, origin: Origin) -> float:
    value = row.get("margin")
    if value is None:
        return 0.0
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= LARGEST_MARGIN:
        _malformed("margin", value, f"a number of at most {LARGEST_MARGIN:g}", origin)
    return float(value)


def _stated_prompt(row: Fields, origin: Origin) -> Messages:
    """The prompt that stands in columns of its own; empty when it is part of the answers' message lists."""
    if "messages" in row or "conversations" in row:
        column = "messages" if "messages" in row else "conversations"
        messages = _with_system(row, _message_list(row[column], column, origin), origin)
        return _checked(messages, column, origin)
    if "instruction" in row:
        return _alpaca_prompt(row, origin)
    match row.get("prompt"):
        case None:
            return ()
        case list():
            return _checked(_message_list(row["prompt"], "prompt", origin), "prompt", origin)
        case _:
            text = _text(row, "prompt", origin)
            turns = _transcript(text) if _is_transcript(text) else (*_history(row, origin), Message("user", text))
            return _checked(_with_system(row, turns, origin), "prompt", origin)


def _alpaca_prompt(row: Fields, origin: Origin) -> Messages:
    instruction = _text(row, "instruction", origin, may_be_empty=True)
    given = _text(row, "input", origin, may_be_empty=True)
    question = "\n".join(part for part in (instruction, given) if part)
    if not question.strip():
        _malformed("instruction", row.get("instruction"), "a question", origin)
    turns = (*_history(row, origin), Message("user", question))
    return _checked(_with_system(row, turns, origin), "history", origin)


def _history(row: Fields, origin: Origin) -> Messages:
    history = row.get("history") or []
    if not isinstance(history, list):
        _malformed("history", history, "a list of [question, answer]", origin)
    turns: list[Message] = []
    for pair in history:
        if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(text, str) for text in pair):
            _malformed("history", pair, "pairs of text [question, answer]", origin)
        turns += Message("user", pair[0]), Message("assistant", pair[1])
    return tuple(turns)


def _with_system(row: Fields, messages: Messages, origin: Origin) -> Messages:
    """The messages behind the row's own system message, where it has one and they have none."""
    system = _text(row, "system", origin, may_be_empty=True)
    if not system.strip() or (messages and messages[0].role == "system"):
        return messages
    return (Message("system", system), *messages)


def _reply(
    row: Fields, column: str, stated: Messages, origin: Origin, *, may_be_empty: bool = False
) -> tuple[Messages, str]:
    """The prompt and the answer that one column gives: text, a message, or messages with or without the prompt."""
    value = row.get(column)
    if not isinstance(value, list | dict):
        answer = _text(row, column, origin, may_be_empty=may_be_empty)
        return stated, answer.removeprefix(" ") if _is_transcript(row.get("prompt")) else answer
    messages = _message_list(value if isinstance(value, list) else [value], column, origin)
    if not messages or messages[-1].role != "assistant":
        raise DataError(f"{column}: found no answer at its end, expected an assistant message", where=str(origin))
    *earlier, answer_message = messages
    if not earlier:
        return stated, answer_message.content
    prompt = _checked(tuple(earlier), column, origin)
    if stated and stated != prompt and last_user_text(stated) != last_user_text(prompt):
        raise DataError(f"{column} begins with another prompt than the one stated", where=str(origin))
    return prompt, answer_message.content


def _message_list(value: Any, column: str, origin: Origin) -> Messages:
    if not isinstance(value, list):
        _malformed(column, value, "a list of messages", origin)
    messages = []
    for item in value:
        if not isinstance(item, dict):
            _malformed(column, item, "messages with role and content (or from and value)", origin)
        role, content = (item["role"], item.get("content")) if "role" in item else (item.get("from"), item.get("value"))
        if not isinstance(role, str) or role not in ROLES:
            _malformed(f"{column}: role", role, "system, user (human) or assistant (gpt)", origin)
        if not isinstance(content, str):
            _malformed(f"{column}: content of {role}", content, "text", origin)
        messages.append(Message(ROLES[role], content))
    return tuple(messages)


def _checked(messages: Messages, column: str, origin: Origin) -> Messages:
    """The prompt itself, after checking its turns: a system message or none, then user and assistant by turns."""
    turns = messages[1:] if messages and messages[0].role == "system" else messages
    for number, message in enumerate(turns, start=1):
        expected = "user" if number % 2 else "assistant"
        if message.role != expected:
            raise DataError(f"{column}: turn {number} is {message.role}'s, expected {expected}'s", where=str(origin))
        if not message.content.strip():
            raise DataError(f"{column}: turn {number} is empty, expected text", where=str(origin))
    if not turns or turns[-1].role != "user":
        raise DataError(f"{column}: found no last turn of the user, expected a question", where=str(origin))
    return messages


def _is_transcript(value: Any) -> bool:
    return isinstance(value, str) and re.match(r"\s*Human:.*Assistant:\s*$", value, re.DOTALL) is not None


def _transcript(text: str) -> Messages:
    """The turns of `Human: ... Assistant: ...`; an open `Assistant:` at the end is no turn."""
    text = re.sub(r"\s*Assistant:\s*$", "", text)
    pieces = re.split(r"(?:^\s*|\n\n)(Human|Assistant):", text)
    roles: dict[str, Role] = {"Human": "user", "Assistant": "assistant"}
    return tuple(
        Message(roles[speaker], words.strip()) for speaker, words in zip(pieces[1::2], pieces[2::2], strict=True)
    )


def _text(row: Fields, column: str, origin: Origin, *, may_be_empty: bool = False) -> str:
    value = row.get(column)
    if value is None and may_be_empty:
        return ""
    if not isinstance(value, str) or not (may_be_empty or value.strip()):
        _malformed(column, value, "text", origin)
    return value


def _malformed(column: str, value: Any, expected: str, origin: Origin) -> NoReturn:
    raise DataError(f"{column}: found {describe(value)}, expected {expected}", where=str(origin))


def _has(row: Fields, *columns: str) -> bool:
    return all(column in row for column in columns)


def _has_transcripts(row: Fields) -> bool:
    chosen = row.get("chosen")
    return _has(row, "chosen", "rejected") and isinstance(chosen, str) and chosen.startswith("\n\nHuman:")


def _has_question(row: Fields) -> bool:
    return "instruction" in row or "prompt" in row


RANKING: frozenset[ExampleKind] = frozenset({"ranking"})
CONVERSATION: frozenset[ExampleKind] = frozenset({"demonstration", "prompt"})
PROMPT: frozenset[ExampleKind] = frozenset({"prompt"})
TEXT: frozenset[ExampleKind] = frozenset({"text"})

FORMATS: dict[str, Format] = {
    "hh_rlhf": Format("chosen and rejected transcripts of Human: and Assistant:", RANKING, _has_transcripts, _hh_rlhf),
    "preference": Format("prompt, chosen, rejected", RANKING, lambda row: _has(row, "chosen", "rejected"), _preference),
    "comparison": Format(
        "instruction, output: a list of answers, best first",
        RANKING,
        lambda row: _has_question(row) and isinstance(row.get("output"), list),
        _comparison,
    ),
    "messages": Format("messages: role, content", CONVERSATION, lambda row: _has(row, "messages"), _messages),
    "sharegpt": Format("conversations: from, value", CONVERSATION, lambda row: _has(row, "conversations"), _sharegpt),
    "alpaca": Format(
        "instruction, input, output, history", CONVERSATION, lambda row: _has(row, "instruction", "output"), _alpaca
    ),
    "completion": Format(
        "prompt, completion (or response, output)",
        CONVERSATION,
        lambda row: "prompt" in row and any(column in row for column in COMPLETION_COLUMNS),
        _completion,
    ),
    "prompt": Format("prompt, or instruction without output", PROMPT, _has_question, _prompt),
    "text": Format("text", TEXT, lambda row: "text" in row, _plain_text),
}
"""Tried in this order: the more particular comes first."""
