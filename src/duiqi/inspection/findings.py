"""What an inspection finds: a kind of fault, how grave it is here, and where it is."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from duiqi.types import Example, Origin

Severity = Literal["error", "warning", "note"]
"""error: training on it goes wrong or is refused; warning: it spoils what is learned; note: worth knowing."""

SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")

Item = TypeVar("Item")
Tracker = Callable[[Sequence[Any], str], Iterable[Any]]
"""(items, what they are) -> the same items, with whatever shows that they pass."""


def untracked(items: Sequence[Item], what: str) -> Iterable[Item]:  # noqa: ARG001 (the signature is the Tracker's)
    """The items alone."""
    return items


@dataclass(frozen=True, slots=True)
class Place:
    """Where a fault is, and what stands there."""

    file: str
    line: int
    """1-based; 0 where the fault is not in one line."""
    excerpt: str = ""

    def __str__(self) -> str:
        return f"{self.file}:{self.line}" if self.line else self.file


@dataclass(frozen=True, slots=True)
class Finding:
    """All places of one kind of fault."""

    kind: str
    """A key of `kinds.KINDS`, which says what it means and what to do."""
    severity: Severity
    count: int
    """Rows that have the fault; 0 where it is in no row but in the whole."""
    places: tuple[Place, ...] = ()
    """In the order of the rows."""
    detail: str = ""
    """What was measured, as a sentence."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a question about tokenizer and template found."""

    asks: str
    is_fine: bool
    text: str


@dataclass(frozen=True, slots=True)
class LengthRow:
    """What one value of `cutoff_len` does to the data."""

    cutoff_len: int
    prompts_cut: int
    answers_cut: int
    """Rows with an answer that loses its end."""
    tokens_lost: int
    tokens: int
    """Before anything is cut."""


@dataclass(frozen=True, slots=True)
class TokenLook:
    """What was seen through a tokenizer and its template."""

    model: str
    findings: list[Finding]
    answers: dict[str, Answer]
    """By the kind of finding that a bad answer is."""
    lengths: list[LengthRow]


Look = Callable[[Sequence[Example], Tracker], TokenLook]
"""Looks at examples as tokens; so that texts can be checked without torch and transformers being there."""


def place_of(origin: Origin, excerpt: str = "") -> Place:
    """The place of an example."""
    return Place(origin.file or origin.dataset, origin.line, excerpt)


def excerpt(text: str, start: int = 0, end: int = 0, *, around: int = 18, room: int = 64) -> str:
    """A stretch of a text with a little around it, on one line; what cannot be seen is spelled out.

    >>> excerpt("It is called [NAME], and it is a fine assistant indeed.", 13, 19)
    'It is called [NAME], and it is a fine…'
    >>> excerpt("a\\u200bb\\nc")
    'a\\\\u200bb ⏎ c'
    """
    left = max(0, start - around)
    right = min(len(text), max(end, start) + around if end else left + room)
    right = min(right, left + room + around)
    flat = " ".join(visible(text[left:right]).replace("\n", " ⏎ ").split())
    return f"{'…' if left else ''}{flat}{'…' if right < len(text) else ''}"


def visible(text: str) -> str:
    """A text that a terminal can be given: what cannot be seen, or would command the terminal, is spelled out.

    >>> visible("a\\n\\x1b[31mb")
    'a\\n\\\\x1b[31mb'
    """
    return text if text.isprintable() else "".join(_visible(letter) for letter in text)


def _visible(letter: str) -> str:
    if letter.isprintable() or letter == "\n":
        return letter
    return " " if letter in "\t\u3000\xa0" else letter.encode("unicode_escape").decode()
