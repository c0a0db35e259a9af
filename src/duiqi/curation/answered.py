"""Prompts with several answers: the rows that `duiqi data sample`, `judge` and `pair` hand to one another."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from duiqi.data.loading import load_examples
from duiqi.data.reading import BadRow, Row, describe, list_files, read_file
from duiqi.data.registry import DatasetSpec
from duiqi.data.rows.turns import ROLES
from duiqi.errors import DataError
from duiqi.types import Message


@dataclass(frozen=True, slots=True)
class Answered:
    """A prompt, answers to it, and what is known of them; the tuples run parallel to `answers`."""

    prompt: tuple[Message, ...]
    answers: tuple[str, ...]
    where: str
    """File and line, for messages."""
    reference: str = ""
    """The answer that the data gives; empty where it gives none."""
    scores: tuple[float, ...] = ()
    """Higher is better; empty where nobody scored them."""
    finished: tuple[bool, ...] = ()
    """Whether each answer ended by itself; empty where that is not known."""

    def row(self) -> dict[str, Any]:
        """The same as it stands in a file."""
        row: dict[str, Any] = {"prompt": as_dicts(self.prompt), "answers": list(self.answers)}
        row |= {"reference": self.reference} if self.reference else {}
        row |= {"scores": list(self.scores)} if self.scores else {}
        return row | ({"finished": list(self.finished)} if self.finished else {})


def as_dicts(messages: Sequence[Message]) -> list[dict[str, str]]:
    """A conversation as role and content."""
    return [{"role": message.role, "content": message.content} for message in messages]


def read_answered(file: str) -> list[Answered]:
    """The rows of a file of `duiqi data sample`, `data judge` or `generate`, or of any dataset of prompts and answers.

    Raises:
        DataError: The file is missing, malformed, or has no answers.
    """
    rows = [row for path in list_files(Path(file)) for row in read_file(path).rows]
    first = next((row for row in rows if isinstance(row, Row)), None)
    if first is not None and "prompt" in first.fields and isinstance(first.fields.get("answers"), list):
        return [_sampled(row) for row in rows]
    if first is not None and {"prompt", "predict", "label"} <= first.fields.keys():
        return [_generated(row) for row in rows]
    examples = load_examples([DatasetSpec(file)], dataset_dir=".", need="conversation", seed=0).examples
    for example in examples:
        if not example.answers:
            raise DataError("found no answer, expected at least one", where=str(example.origin))
    return [Answered(example.prompt, example.answers, str(example.origin)) for example in examples]


def _sampled(row: Row | BadRow) -> Answered:
    fields, where = _good(row)
    answers = fields.get("answers")
    if not isinstance(answers, list) or not answers or not all(isinstance(answer, str) for answer in answers):
        _malformed("answers", answers, "a list of texts", where)
    reference = fields.get("reference", "")
    if not isinstance(reference, str):
        _malformed("reference", reference, "text", where)
    scores = _parallel(fields, "scores", len(answers), where)
    if not all(isinstance(s, int | float) and not isinstance(s, bool) and math.isfinite(s) for s in scores):
        _malformed("scores", scores, "finite numbers", where)
    finished = _parallel(fields, "finished", len(answers), where)
    if not all(isinstance(flag, bool) for flag in finished):
        _malformed("finished", finished, "true or false for each answer", where)
    return Answered(
        _prompt(fields.get("prompt"), where),
        tuple(answers),
        where,
        reference=reference,
        scores=tuple(map(float, scores)),
        finished=tuple(finished),
    )


def _generated(row: Row | BadRow) -> Answered:
    fields, where = _good(row)
    answer, reference = fields.get("predict"), fields.get("label")
    if not isinstance(answer, str) or not isinstance(reference, str):
        _malformed("predict and label", answer if not isinstance(answer, str) else reference, "texts", where)
    return Answered(_prompt(fields.get("prompt"), where), (answer,), where, reference=reference)


def _good(row: Row | BadRow) -> tuple[Mapping[str, Any], str]:
    where = f"{row.file}:{row.line}"
    if isinstance(row, BadRow):
        raise DataError(row.reason, where=where, remedy="mend it, or remove the line")
    return row.fields, where


def _prompt(value: Any, where: str) -> tuple[Message, ...]:
    if isinstance(value, str) and value.strip():
        return (Message("user", value),)
    if not isinstance(value, list) or not value:
        _malformed("prompt", value, "text or a list of messages", where)
    messages = []
    for item in value:
        role = item.get("role") if isinstance(item, dict) else None
        if role not in ROLES or not isinstance(item.get("content"), str):
            _malformed("prompt", item, "messages with role and content", where)
        messages.append(Message(ROLES[role], item["content"]))
    return tuple(messages)


def _parallel(fields: Mapping[str, Any], column: str, count: int, where: str) -> Sequence[Any]:
    """A list with an entry for each answer, or an empty one."""
    values = fields.get(column) or []
    if not isinstance(values, list) or len(values) not in (0, count):
        _malformed(column, values, f"a list of {count}, one for each answer", where)
    return values


def _malformed(column: str, value: Any, expected: str, where: str) -> NoReturn:
    raise DataError(f"{column}: found {describe(value)}, expected {expected}", where=where)
