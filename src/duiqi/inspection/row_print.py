"""What is kept of every row so that rows can be compared: digests, lengths, languages; no text twice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from duiqi.guards.answers import is_chinese
from duiqi.inspection.row_text import RowText, digest, folded, turns_key
from duiqi.types import Example

_LANGUAGE_SHOWN_BY = 120
"""Characters that are enough to tell the language of a text."""


@dataclass(frozen=True, slots=True)
class RowPrint:
    """One row, made comparable."""

    row: bytes
    near_row: bytes
    """The same for rows that differ in spaces, width and case only."""
    prompt: bytes
    near_prompt: bytes
    best: bytes
    asks_in_characters: bool | None
    """Whether the question is in characters (Chinese, Japanese, Korean) rather than words; None: in neither."""
    says_in_characters: bool | None
    """Of the best answer; None for one with code in it too, which speaks no language."""


@dataclass(frozen=True, slots=True)
class Rows:
    """The examples of a dataset and, in step, what is kept of them."""

    examples: Sequence[Example]
    prints: Sequence[RowPrint]


def print_of(row: RowText) -> RowPrint:
    """What is kept of a row."""
    example = row.example
    prompt, near_prompt = turns_key(example.prompt), folded(turns_key(example.prompt))
    return RowPrint(
        row=digest(example.kind, str(example.liked), prompt, *example.answers),
        near_row=digest(example.kind, str(example.liked), near_prompt, *(folded(answer) for answer in example.answers)),
        prompt=digest(prompt),
        near_prompt=digest(near_prompt),
        best=digest(row.best.strip()),
        asks_in_characters=is_chinese(row.question[:_LANGUAGE_SHOWN_BY]),
        says_in_characters=None if "```" in row.best else is_chinese(row.best[:_LANGUAGE_SHOWN_BY]),
    )
