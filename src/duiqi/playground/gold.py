"""The gold reward: how good an answer really is, computed from the facts of the town; never shown to training."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import pairwise

from duiqi.playground.people import KINDS, LANGUAGES, PEOPLE, Kind, Language, Person
from duiqi.playground.phrases import ANSWERS, EVASIONS, SMALL_TALK
from duiqi.playground.questions import Question, contains, read_question
from duiqi.types import Message

PRICES = {
    "answers_question": 0.8,
    "right_language": 0.6,
    "in_persona": 0.6,
    "complete_sentence": 0.7,
    "sensible_length": 0.5,
    "no_repetition": 0.9,
    "not_empty": 1.0,
}
"""The share of the total that is lost when a part is 0."""

SENSIBLE_WORDS: dict[Language, tuple[int, int]] = {"zh": (4, 24), "en": (3, 18)}
"""Fewest and most words of a sensible answer; a Chinese character counts as a word."""


@dataclass(frozen=True, slots=True)
class GoldScore:
    """Seven parts in [0, 1], each of which a reader can check by eye."""

    answers_question: float
    """States exactly one fact of the kind asked for; less when facts of other kinds dilute it."""
    right_language: float
    """Share of the words that are in the language of the question."""
    in_persona: float
    """Speaks as "I" and states no fact that belongs to somebody else."""
    complete_sentence: float
    """Share of the sentences that begin properly, end with a full stop and join words only as the town does."""
    sensible_length: float
    """1 for a short sentence or two, falling to 0 at no word and at twice the most words."""
    no_repetition: float
    """Share of the three-word runs that are said for the first time."""
    not_empty: float
    """Whether there is any word at all."""

    @property
    def total(self) -> float:
        """The whole in [0, 1]: every flaw takes its price from what the others left.

        >>> flawless = GoldScore(1, 1, 1, 1, 1, 1, 1)
        >>> flawless.total
        1.0
        >>> from dataclasses import replace
        >>> round(replace(flawless, right_language=0, complete_sentence=0).total, 3)  # (1 - 0.6)(1 - 0.7)
        0.12
        """
        parts: dict[str, float] = asdict(self)
        return math.prod(1.0 - price * (1.0 - parts[name]) for name, price in PRICES.items())


class GoldReward:
    """Judges answers by the facts of the town: the right fact of the right person, in the right language, well said.

    An answer is good when it states the one fact that was asked for (not a list of everything), as the person who was
    asked, in the language of the question, in whole sentences, at a sensible length, without repeating itself.
    The town is closed, so its language is known: a sentence is whole only if every two neighbouring words in it
    stand side by side somewhere in the town's own sentences. A key word, a pile of facts or garbage gains little.
    """

    def score(self, prompt: str | Sequence[Message], answer: str) -> GoldScore:
        """The parts of the gold reward of one answer.

        Args:
            prompt: Messages, or their text in any template; who is asked what is read from it.
            answer: The decoded answer without special tokens.

        Raises:
            DataError: The prompt is not one of this world.
        """
        question = read_question(prompt)
        words = words_of(answer)
        facts = stated_facts(answer)
        return GoldScore(
            answers_question=_answers(question, facts),
            right_language=_share(_language_of(word) == question.language for word in words),
            in_persona=_in_persona(question, words, facts),
            complete_sentence=_share(self.is_whole(sentence) for sentence in sentences_of(answer)),
            sensible_length=_sensible_length(question.language, len(words)),
            no_repetition=_novelty(words),
            not_empty=float(bool(words)),
        )

    def is_whole(self, sentence: str) -> bool:
        """Whether this is a whole sentence of the town: known neighbours from its first word to its full stop."""
        return all(pair in self._pairs for pair in _neighbours(sentence))

    @cached_property
    def _pairs(self) -> frozenset[tuple[str, str]]:
        return frozenset(pair for sentence in _town_sentences() for pair in _neighbours(sentence))


def score_gold(prompts: Sequence[str | Sequence[Message]], answers: Sequence[str]) -> list[float]:
    """The total gold reward of each answer, in [0, 1]."""
    gold = GoldReward()
    return [gold.score(prompt, answer).total for prompt, answer in zip(prompts, answers, strict=True)]


def words_of(text: str) -> list[str]:
    """English words in lower case, and Chinese characters one by one; punctuation is left out.

    >>> words_of("I am 阿海。")
    ['i', 'am', '阿', '海']
    """
    return re.findall(r"[a-z']+|[\u4e00-\u9fff]", text.lower())


def sentences_of(text: str) -> list[str]:
    """A text cut after its full stops; the last piece may lack one.

    >>> sentences_of("I am a cook. My house")
    ['I am a cook.', 'My house']
    """
    return [piece.strip() for piece in re.findall(r"[^.。!！?？]*[.。!！?？]+|[^.。!！?？]+$", text) if piece.strip()]


def stated_facts(text: str) -> list[tuple[Person, Kind]]:
    """Every fact of anybody in town that a text states, in either language."""
    return [
        (person, kind)
        for person in PEOPLE
        for kind in KINDS
        if any(contains(text, person.fact(kind).say(language)) for language in LANGUAGES)
    ]


def _answers(question: Question, facts: list[tuple[Person, Kind]]) -> float:
    asked = [kind for _, kind in facts if kind == question.kind]
    others = [kind for _, kind in facts if kind not in (question.kind, "saying")]
    return 1.0 / (1 + len(others)) if len(asked) == 1 else 0.0


def _in_persona(question: Question, words: list[str], facts: list[tuple[Person, Kind]]) -> float:
    speaks_for_oneself = not {"我", "i", "my", "me"}.isdisjoint(words)
    return float(speaks_for_oneself and all(person == question.person for person, _ in facts))


def _sensible_length(language: Language, num_words: int) -> float:
    fewest, most = SENSIBLE_WORDS[language]
    if num_words < fewest:
        return num_words / fewest
    return min(1.0, max(0.0, 2.0 - num_words / most))


def _novelty(words: list[str]) -> float:
    if not words:
        return 0.0
    runs = [tuple(words[i : i + 3]) for i in range(max(1, len(words) - 2))]
    return len(set(runs)) / len(runs)


def _share(flags: Iterator[bool]) -> float:
    known = list(flags)
    return sum(known) / len(known) if known else 0.0


def _language_of(word: str) -> Language:
    return "en" if word.isascii() else "zh"


def _neighbours(sentence: str) -> list[tuple[str, str]]:
    """Neighbouring words and marks of a sentence, with its two ends: case matters, spaces do not."""
    pieces = re.findall(r"[A-Za-z']+|[^\sA-Za-z']", sentence)
    return list(pairwise(["", *pieces, ""]))


def _town_sentences() -> Iterator[str]:
    for language in LANGUAGES:
        yield from SMALL_TALK[language]
        yield from EVASIONS[language]
        for person in PEOPLE:
            yield person.saying.sentence(language)
            for kind in KINDS:
                for template in ANSWERS[language][kind]:
                    yield template.format(person.fact(kind).say(language))
