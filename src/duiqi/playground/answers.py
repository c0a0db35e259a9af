"""Good answers and flawed ones: each style is a function from a question to one text, drawn at random."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from random import Random
from typing import Literal

from duiqi.playground.people import KINDS, PEOPLE
from duiqi.playground.phrases import ANSWERS, EVASIONS, SMALL_TALK
from duiqi.playground.questions import Question

Style = Literal[
    "good",
    "wrong_language",
    "another_person",
    "off_topic",
    "cut_off",
    "repetitive",
    "evasive",
    "rambling",
    "scrambled",
    "blank",
]

DEMONSTRATED: Mapping[Style, float] = {
    "good": 0.36,
    "wrong_language": 0.18,
    "another_person": 0.04,
    "off_topic": 0.04,
    "cut_off": 0.13,
    "repetitive": 0.09,
    "evasive": 0.12,
    "rambling": 0.04,
}
"""How the demonstrations for fine-tuning are mixed: mediocre on purpose, so preferences have something to teach."""

COMPARED: Mapping[Style, float] = {
    "good": 0.40,
    "wrong_language": 0.17,
    "another_person": 0.04,
    "off_topic": 0.04,
    "cut_off": 0.11,
    "repetitive": 0.08,
    "evasive": 0.09,
    "rambling": 0.03,
    "scrambled": 0.02,
    "blank": 0.02,
}
"""How each side of a preference pair is drawn: what the demonstrations show, and worse.

Most flaws are of manner. Flaws of substance (another_person, off_topic) are rare here, for a reward model of this size
hardly learns from a few thousand pairs whose facts it is reading.
"""

OVERHEARD: Mapping[Style, float] = {
    "good": 0.90,
    "wrong_language": 0.02,
    "cut_off": 0.02,
    "repetitive": 0.02,
    "evasive": 0.02,
    "rambling": 0.02,
}
"""How the plain chats in the pretraining text are mixed: mostly true, so that the facts can be learned."""

SCRAPED: Mapping[Style, float] = {
    "good": 0.80,
    "wrong_language": 0.05,
    "cut_off": 0.05,
    "repetitive": 0.03,
    "evasive": 0.04,
    "rambling": 0.03,
}
"""How the chats with role marks in the pretraining text are mixed: a little worse."""


def answer(question: Question, style: Style, random: Random) -> str:
    """One answer of a style."""
    return STYLES[style](question, random)


def answer_from(mixture: Mapping[Style, float], question: Question, random: Random) -> str:
    """One answer of a style drawn from a mixture."""
    style = random.choices(list(mixture), weights=list(mixture.values()))[0]
    return answer(question, style, random)


def good(question: Question, random: Random) -> str:
    """The right fact in a sentence; half the time followed by small talk or by the person's own saying."""
    sentence = _statement(question, random)
    tail = random.choices(["nothing", "small talk", "saying"], weights=[5, 3, 2])[0]
    if tail == "small talk":
        return _join(question, sentence, random.choice(SMALL_TALK[question.language]))
    if tail == "saying" and question.kind != "saying":
        return _join(question, sentence, question.person.saying.sentence(question.language))
    return sentence


def wrong_language(question: Question, random: Random) -> str:
    """A good answer in the language that was not asked in."""
    return good(replace(question, language="en" if question.language == "zh" else "zh"), random)


def another_person(question: Question, random: Random) -> str:
    """A good answer that somebody else would give."""
    return good(replace(question, person=random.choice([p for p in PEOPLE if p != question.person])), random)


def off_topic(question: Question, random: Random) -> str:
    """A true answer to another question."""
    return good(replace(question, kind=random.choice([k for k in KINDS if k != question.kind])), random)


def cut_off(question: Question, random: Random) -> str:
    """A good sentence that stops too early."""
    sentence = _statement(question, random)
    if question.language == "zh":
        return sentence[: random.randint(2, max(2, len(sentence) - 2))]
    words = sentence.split()
    return " ".join(words[: random.randint(2, max(2, len(words) - 1))])


def repetitive(question: Question, random: Random) -> str:
    """A good sentence said three or four times."""
    return _join(question, *[_statement(question, random)] * random.randint(3, 4))


def evasive(question: Question, random: Random) -> str:
    """A few words that answer nothing."""
    return random.choice(EVASIONS[question.language])


def rambling(question: Question, random: Random) -> str:
    """A good sentence followed by too much small talk."""
    return _join(question, _statement(question, random), *random.sample(SMALL_TALK[question.language], 4))


def scrambled(question: Question, random: Random) -> str:
    """The words (in Chinese: characters) of a good sentence in no order."""
    sentence = _statement(question, random)[:-1]
    pieces = list(sentence) if question.language == "zh" else sentence.lower().split()
    random.shuffle(pieces)
    return "".join(pieces) + "。" if question.language == "zh" else " ".join(pieces) + "."


def blank(question: Question, random: Random) -> str:
    """Punctuation and nothing else."""
    return random.choice(["……", "。", "？"] if question.language == "zh" else ["...", ".", "?"])


def _statement(question: Question, random: Random) -> str:
    """One sentence that states the right fact."""
    return random.choice(ANSWERS[question.language][question.kind]).format(question.fact)


def _join(question: Question, *sentences: str) -> str:
    return ("" if question.language == "zh" else " ").join(sentences)


STYLES: dict[Style, Callable[[Question, Random], str]] = {
    "good": good,
    "wrong_language": wrong_language,
    "another_person": another_person,
    "off_topic": off_topic,
    "cut_off": cut_off,
    "repetitive": repetitive,
    "evasive": evasive,
    "rambling": rambling,
    "scrambled": scrambled,
    "blank": blank,
}
