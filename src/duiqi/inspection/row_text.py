"""One row as the checks of its text read it, and texts made comparable."""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

from duiqi.types import Example, Message, last_user_text


@dataclass(frozen=True, slots=True)
class RowText:
    """The texts of an example, joined once for all checks."""

    example: Example
    question: str
    """The user's last turn."""
    whole: str
    """Every turn and every answer, a line break between them."""

    @property
    def best(self) -> str:
        """The answer to be learned, or an empty string: one that was not liked is none."""
        return self.example.answers[0] if self.example.answers and self.example.liked is not False else ""


def row_text(example: Example) -> RowText:
    """The texts of an example."""
    whole = "\n".join([*(message.content for message in example.prompt), *example.answers])
    return RowText(example, last_user_text(example.prompt), whole)


def folded(text: str) -> str:
    """A text without spaces, in one width and one case: what it has in common with its near copies.

    >>> folded("Ｈｅｌｌｏ ，world"), folded("hello,World ")
    ('hello,world', 'hello,world')
    """
    squeezed = "".join(text.split())
    return (squeezed if squeezed.isascii() else unicodedata.normalize("NFKC", squeezed)).casefold()


def turns_key(messages: Sequence[Message]) -> str:
    """What was said in a conversation, its system message included: it may name who is asked."""
    return "\x1e".join(f"{message.role[0]}{message.content}" for message in messages)


def digest(*texts: str) -> bytes:
    """A short stand-in for texts, so that a million rows can be compared without being kept twice."""
    joined = "\x1f".join(texts).encode("utf-8", "surrogatepass")
    return hashlib.blake2b(joined, digest_size=16).digest()
