"""What degenerate answers are made of: the prompts and answers of the data, cut into words and sentences.

`evaluation.probes` makes answers to examine with, `data.negatives` others to train against. They share this and nothing
else, so that a reward model passes for what it learned and not for what it saw.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from duiqi.types import Example, last_user_text

Language = Literal["zh", "en"]

_HAN = "\u3400-\u4dbf\u4e00-\u9fff"
_PIECE = re.compile(rf"[{_HAN}]|[^\W{_HAN}]+")
_SENTENCE_END = re.compile(r"(?<=[。！？!?\n])|(?<=\.)\s+")


@dataclass(frozen=True)
class Material:
    """What can be made into answers to one prompt."""

    question: str
    """The user's last message."""
    good: str
    """The best answer."""
    language: Language
    """Of the question."""
    alike: tuple[str, ...]
    """Best answers to other prompts, in this language."""
    foreign: tuple[str, ...]
    """Those in the other one."""
    worse: tuple[str, ...]
    """Worst answers to other prompts in this language."""
    marks: tuple[str, ...] = ()
    """Special tokens as they are written."""


def gather_materials(examples: Sequence[Example], *, marks: Sequence[str] = ()) -> list[Material]:
    """The material of each example, which must have answers, best first."""
    goods = [example.answers[0] for example in examples]
    spoken = [language_of(good) for good in goods]
    by_language = {language: [i for i, own in enumerate(spoken) if own == language] for language in ("zh", "en")}
    found = []
    for row, (example, good) in enumerate(zip(examples, goods, strict=True)):
        question = last_user_text(example.prompt)
        language = language_of(question if pieces_of(question) else good)
        alike = [i for i in _near(by_language[language], row) if examples[i].prompt != example.prompt]
        foreign = [i for i in _near(by_language[other_language(language)], row) if i != row]
        found.append(
            Material(
                question=question,
                good=good,
                language=language,
                alike=tuple(goods[i] for i in alike if goods[i] != good),
                foreign=tuple(goods[i] for i in foreign),
                worse=tuple(examples[i].answers[-1] for i in alike if examples[i].answers[-1] != good),
                marks=tuple(marks),
            )
        )
    return found


def _near(rows: Sequence[int], row: int, *, most: int = 64) -> list[int]:
    """At most so many of some rows, beginning behind this one and going round: enough to choose from, however many."""
    start = next((place for place, other in enumerate(rows) if other > row), 0)
    return [*rows[start:], *rows[:start]][:most]


def language_of(text: str) -> Language:
    """Chinese where at least half of the words are Chinese characters, else English.

    >>> language_of("你好，Lan!"), language_of("What does 对齐 mean?")
    ('zh', 'en')
    """
    pieces = pieces_of(text)
    chinese = sum(re.match(f"[{_HAN}]", piece) is not None for piece in pieces)
    return "zh" if pieces and 2 * chinese >= len(pieces) else "en"


def other_language(language: Language) -> Language:
    """The one of the two that this is not."""
    return "en" if language == "zh" else "zh"


def joined(parts: Sequence[str]) -> str:
    """Words or sentences as one text: with spaces between, but not in Chinese.

    >>> joined(["好", "茶"]), joined(["good", "tea"])
    ('好茶', 'good tea')
    """
    return ("" if language_of(" ".join(parts)) == "zh" else " ").join(parts)


def pieces_of(text: str) -> list[str]:
    """Chinese characters one by one and other words whole, without punctuation.

    >>> pieces_of("我喝3杯Tea.")
    ['我', '喝', '3', '杯', 'Tea']
    """
    return _PIECE.findall(text)


def ends_of_pieces(text: str) -> list[int]:
    """Where each piece ends.

    >>> ends_of_pieces("好 tea")
    [1, 5]
    """
    return [match.end() for match in _PIECE.finditer(text)]


def sentences_of(text: str) -> list[str]:
    """A text cut behind full stops, question marks, exclamation marks and line breaks.

    >>> sentences_of("好。It is 3.5 km. Go")
    ['好。', 'It is 3.5 km.', 'Go']
    """
    return [piece.strip() for piece in _SENTENCE_END.split(text) if piece.strip()]
