"""A question put to a villager: how it is worded, and how it is read back from the text of a prompt."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from duiqi.errors import DataError
from duiqi.playground.people import KINDS, LANGUAGES, PEOPLE, Kind, Language, Person
from duiqi.playground.phrases import QUESTIONS
from duiqi.types import Message


@dataclass(frozen=True, slots=True)
class Question:
    """Who is asked for which kind of fact, in which language and wording."""

    person: Person
    kind: Kind
    language: Language
    wording: int
    """Position in QUESTIONS[language][kind]."""

    @property
    def text(self) -> str:
        """The question alone, without a name or a greeting."""
        return QUESTIONS[self.language][self.kind][self.wording]

    @property
    def fact(self) -> str:
        """The right fact, in the language of the question."""
        return self.person.fact(self.kind).say(self.language)


def every_question() -> list[Question]:
    """All questions that can be asked: persons x kinds x languages x wordings."""
    return [
        Question(person, kind, language, wording)
        for person in PEOPLE
        for kind in KINDS
        for language in LANGUAGES
        for wording in range(len(QUESTIONS[language][kind]))
    ]


def contains(text: str, phrase: str) -> bool:
    """Whether a phrase stands in a text: whole words in English, any place in Chinese; case is ignored.

    >>> contains("I am a cook.", "a cook"), contains("a cookie", "a cook")
    (True, False)
    """
    return _last_position(text.lower(), phrase.lower()) >= 0


def read_question(prompt: str | Sequence[Message]) -> Question:
    """The last question in a prompt, and the villager named last before its end.

    Works on messages and on text in any template, as long as the wording is one of QUESTIONS.

    Raises:
        DataError: Nobody from Xiaoman is named, or nothing known is asked.
    """
    text = prompt if isinstance(prompt, str) else "\n".join(message.content for message in prompt)
    lowered = text.lower()
    position, kind, language, wording = max(
        (_last_position(lowered, wording_text.lower()), kind, language, wording)
        for language in LANGUAGES
        for kind in KINDS
        for wording, wording_text in enumerate(QUESTIONS[language][kind])
    )
    named_at, index = max(
        (_last_position(lowered[: max(position, 0)], name.lower()), index)
        for index, person in enumerate(PEOPLE)
        for name in (person.name.zh, person.name.en)
    )
    if position < 0 or named_at < 0:
        raise DataError(
            "this prompt asks no question of the built-in world",
            where=repr(text[:80]),
            remedy="the gold reward judges only prompts that the built-in world wrote",
        )
    return Question(PEOPLE[index], kind, language, wording)


def _last_position(text: str, phrase: str) -> int:
    """Where a lower-case phrase stands last in a lower-case text; -1 when it does not."""
    position = text.rfind(phrase)
    if position < 0 or not phrase.isascii():
        return position
    return max((match.start() for match in re.finditer(rf"(?<![a-z]){re.escape(phrase)}(?![a-z])", text)), default=-1)
