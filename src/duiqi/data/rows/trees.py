"""OpenAssistant's conversations: trees of messages in which the replies to a question are ranked.

They are published as whole trees, one in a row, and as messages that name their parents.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from duiqi.data.reading import BadRow, Row
from duiqi.data.rows.columns import Fields, malformed, number, text
from duiqi.data.rows.prompts import demonstration, ranking
from duiqi.data.rows.turns import ROLES, Messages
from duiqi.errors import DataError
from duiqi.types import Example, Message, Origin

Node = Mapping[str, Any]


def tree(row: Fields, origin: Origin) -> tuple[Example, ...]:
    """A ranking for every question with ranked replies, and a demonstration for every conversation of best replies.

    Deleted messages are passed over, and what follows them.
    """
    root = row.get("prompt")
    if not isinstance(root, Mapping):
        malformed("prompt", root, "a message with text, role and replies", origin)
    return tuple(_examples(root, (), origin, is_best=True))


def _examples(node: Node, before: Messages, origin: Origin, *, is_best: bool) -> Iterator[Example]:
    """What a question and everything below it teach. `is_best`: every answer on the way to it was the best one."""
    if _role(node, origin) != "user":
        raise DataError("found an answer where a question was expected", where=str(origin))
    path = (*before, Message("user", text(node, "text", origin)))
    answers = sorted(_replies(node, origin), key=lambda reply: _rank(reply, origin))
    ranked = [reply for reply in answers if reply.get("rank") is not None]
    if len(ranked) > 1:
        yield from ranking(path, [text(reply, "text", origin) for reply in ranked], {}, origin)
    for place, reply in enumerate(answers):
        if _role(reply, origin) != "assistant":
            raise DataError("found a question where an answer was expected", where=str(origin))
        said, goes_on = text(reply, "text", origin), _replies(reply, origin)
        follows_best = is_best and place == 0
        if follows_best and not any(_replies(question, origin) for question in goes_on):
            yield demonstration(path, said, origin)
        for question in goes_on:
            yield from _examples(question, (*path, Message("assistant", said)), origin, is_best=follows_best)


def _replies(node: Node, origin: Origin) -> list[Node]:
    replies = node.get("replies") or []
    if not isinstance(replies, list) or not all(isinstance(reply, Mapping) for reply in replies):
        malformed("replies", replies, "a list of messages", origin)
    return [reply for reply in replies if not reply.get("deleted")]


def _rank(node: Node, origin: Origin) -> float:
    """0 is the best; a reply without a rank comes last."""
    rank = node.get("rank")
    return float("inf") if rank is None else number(rank, "rank", origin)


def _role(node: Node, origin: Origin) -> str:
    role = node.get("role")
    if not isinstance(role, str) or role not in ROLES:
        malformed("role", role, "prompter or assistant", origin)
    return ROLES[role]


def gather(rows: Sequence[Row | BadRow]) -> list[Row | BadRow]:
    """The trees that single messages make, each with the place of its first message.

    A message that does not go back to a first one is a bad row, for what it answers is not known.
    """
    placed = [row for row in rows if isinstance(row, Row) and _knows_its_place(row)]
    nodes: dict[str, dict[str, Any]] = {row.fields["message_id"]: {**row.fields, "replies": []} for row in placed}
    gathered: list[Row | BadRow] = []
    for row in rows:
        if not isinstance(row, Row):
            gathered.append(row)
        elif not _knows_its_place(row):
            gathered.append(BadRow(row.file, row.line, "message_id or parent_id is no text", row.fields))
        elif reason := _is_lost(row, nodes):
            gathered.append(BadRow(row.file, row.line, reason, row.fields))
        elif (parent := row.fields.get("parent_id")) is not None:
            nodes[parent]["replies"].append(nodes[row.fields["message_id"]])
        elif not row.fields.get("deleted"):
            gathered.append(Row({"prompt": nodes[row.fields["message_id"]]}, row.file, row.line))
    return gathered


def _knows_its_place(row: Row) -> bool:
    parent = row.fields.get("parent_id")
    return isinstance(row.fields.get("message_id"), str) and (parent is None or isinstance(parent, str))


def _is_lost(row: Row, nodes: Mapping[str, Node]) -> str:
    """Why a message belongs to no tree; empty when it does."""
    passed: set[str] = set()
    message: Node = row.fields
    while (parent := message.get("parent_id")) is not None:
        if parent not in nodes:
            return f"the message {parent}, which comes before it, is not in the data"
        if parent in passed:
            return "its parents lead round in a circle"
        passed.add(parent)
        message = nodes[parent]
    return ""
