"""Conversations as rows hold them: lists of messages, pairs of a history, transcripts with markers."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from duiqi.data.rows.columns import Fields, malformed, text
from duiqi.errors import DataError
from duiqi.types import Message, Origin, Role

Messages = tuple[Message, ...]

ROLES: dict[str, Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "model": "assistant",
}
TOOL_ROLES = frozenset(
    {"tool", "function", "function_call", "function_response", "tool_call", "tool_response", "observation", "ipython"}
)
SPELLINGS = (("role", "content"), ("from", "value"), ("role", "text"))
"""Under which names a message tells its role and its content."""
HUMAN, ASSISTANT = r"(?:Human|User|USER|人类|用户)", r"(?:Assistant|ASSISTANT|助手|助理)"
COLON = r"\s?[:：]"
_OPEN_TRANSCRIPT = re.compile(rf"\s*{HUMAN}{COLON}.*\s{ASSISTANT}{COLON}\s*$", re.DOTALL)
_TRANSCRIPT = re.compile(rf"\n\n{HUMAN}{COLON}|\s*{HUMAN}{COLON}.*\s{ASSISTANT}{COLON}", re.DOTALL)
_OPEN_END = re.compile(rf"\s+{ASSISTANT}{COLON}\s*$")


def message_list(value: Any, column: str, origin: Origin) -> Messages:
    """The messages of a list of objects with role and content (or from and value).

    Raises:
        DataError: It is none, a role is unknown or a tool's, or a content is no text.
    """
    if not isinstance(value, list):
        malformed(column, value, "a list of messages", origin)
    return tuple(_message(item, column, origin) for item in value)


def _message(item: Any, column: str, origin: Origin) -> Message:
    if not isinstance(item, dict):
        malformed(column, item, "messages with role and content (or from and value)", origin)
    role_key, content_key = next(
        (names for names in SPELLINGS if names[0] in item and names[1] in item),
        SPELLINGS[0] if "role" in item else SPELLINGS[1],
    )
    role, content = item.get(role_key), item.get(content_key)
    name = role.lower() if isinstance(role, str) else ""
    if name in TOOL_ROLES or item.get("tool_calls"):
        raise DataError(f"{column}: a message calls a tool or tells its result, which duiqi does not train on",
                        where=str(origin))  # fmt: skip
    if name not in ROLES:
        malformed(f"{column}: role", role, "system, user (human) or assistant (gpt)", origin)
    if isinstance(content, list):
        content = _joined_parts(content, column, origin)
    if not isinstance(content, str):
        malformed(f"{column}: content of {role}", content, "text", origin)
    return Message(ROLES[name], content)


def _joined_parts(parts: list[Any], column: str, origin: Origin) -> str:
    """The text of a content that is written in parts, as OpenAI's messages may be."""
    found = []
    for part in parts:
        if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            kind = part.get("type") if isinstance(part, dict) else None
            malformed(f"{column}: a part of a message", kind or part, "text alone, no pictures or sounds", origin)
        found.append(part["text"])
    return "".join(found)


def alternating(values: Sequence[str]) -> Messages:
    """Texts of a conversation in which the user begins and each speaks in turn."""
    roles: tuple[Role, Role] = ("user", "assistant")
    return tuple(Message(roles[number % 2], value) for number, value in enumerate(values))


def checked(messages: Messages, column: str, origin: Origin) -> Messages:
    """The prompt itself, after checking its turns: a system message or none, then user and assistant by turns.

    Raises:
        DataError: They do not alternate, one is empty, or the last is not the user's.
    """
    turns = messages[1:] if messages and messages[0].role == "system" else messages
    for place, message in enumerate(turns, start=1):
        expected = "user" if place % 2 else "assistant"
        if message.role != expected:
            raise DataError(f"{column}: turn {place} is {message.role}'s, expected {expected}'s", where=str(origin))
        if not message.content.strip():
            raise DataError(f"{column}: turn {place} is empty, expected text", where=str(origin))
    if not turns or turns[-1].role != "user":
        raise DataError(f"{column}: found no last turn of the user, expected a question", where=str(origin))
    return messages


def with_system(row: Fields, messages: Messages, origin: Origin) -> Messages:
    """The messages behind the row's own system message, where it has one and they have none."""
    system = text(row, "system", origin, may_be_empty=True)
    if not system.strip() or (messages and messages[0].role == "system"):
        return messages
    return (Message("system", system), *messages)


def history(row: Fields, origin: Origin) -> Messages:
    """The finished rounds of the column `history`: pairs of question and answer, oldest first.

    Raises:
        DataError: It holds something else.
    """
    rounds = row.get("history") or []
    if not isinstance(rounds, list):
        malformed("history", rounds, "a list of [question, answer]", origin)
    turns: list[Message] = []
    for pair in rounds:
        if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(said, str) for said in pair):
            malformed("history", pair, "pairs of text [question, answer]", origin)
        turns += Message("user", pair[0]), Message("assistant", pair[1])
    return tuple(turns)


def is_open_transcript(value: Any) -> bool:
    """Whether a text is `Human: ... Assistant:`, with the answer still to come."""
    return isinstance(value, str) and _OPEN_TRANSCRIPT.match(value) is not None


def is_transcript(value: Any) -> bool:
    """Whether a text begins as `Human: ... Assistant: ...`."""
    return isinstance(value, str) and _TRANSCRIPT.match(value) is not None


def transcript(value: str) -> Messages:
    """The turns of `Human: ... Assistant: ...`; an open `Assistant:` at the end is no turn.

    Markers stand behind a blank line where the text begins with one (HH-RLHF). Otherwise behind a blank line or a line
    break, whichever gives more turns by turns; behind a space only where neither is there.
    """
    closed = _OPEN_END.sub("", value)
    if value.startswith("\n\n"):
        return _split(closed, r"\n\n")
    if not re.search(rf"\n{ASSISTANT}{COLON}", value):
        return _split(closed, r"\s+")
    attempts = [_split(closed, r"\n\n"), _split(closed, r"\n")]
    return max(attempts, key=lambda turns: len(turns) if _alternate(turns) else -1)


def _split(value: str, before: str) -> Messages:
    pieces = re.split(rf"(?:^\s*|{before}\s*)({HUMAN}|{ASSISTANT}){COLON}", value)
    speakers, words = pieces[1::2], pieces[2::2]
    return tuple(
        Message("user" if re.fullmatch(HUMAN, speaker) else "assistant", said.strip())
        for speaker, said in zip(speakers, words, strict=True)
    )


def _alternate(turns: Messages) -> bool:
    return all((turn.role == "user") == (place % 2 == 0) for place, turn in enumerate(turns))
