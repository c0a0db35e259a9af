"""What a batch of answers looks like from outside: length, ends, emptiness, variety."""

from __future__ import annotations

import re
from collections.abc import Sequence

from duiqi.types import Rollout

_CHARACTERS = r"\u3400-\u4dbf\u4e00-\u9fff\u3040-\u30ff\uac00-\ud7af"
_UNIT = re.compile(rf"[{_CHARACTERS}]|[^\W_{_CHARACTERS}]+")
"""A Chinese, Japanese or Korean character, or a run of other letters and digits."""


def units(text: str) -> list[str]:
    """The characters of Chinese and the words of other languages, lower case, without punctuation.

    >>> units("我喝3杯green tea!")
    ['我', '喝', '3', '杯', 'green', 'tea']
    """
    return _UNIT.findall(text.lower())


def empty_rate(answers: Sequence[str]) -> float:
    """Share of answers without a letter, digit or character."""
    return _mean([not units(answer) for answer in answers])


def distinct_n(answers: Sequence[str], n: int) -> float:
    """Different n-grams over all n-grams of all answers together (Li et al. 2016); 0 when there is none.

    >>> distinct_n(["a b a b"], 2)
    0.6666666666666666
    """
    grams = [tuple(words[i : i + n]) for words in map(units, answers) for i in range(len(words) - n + 1)]
    return len(set(grams)) / len(grams) if grams else 0.0


def repetition_rate(answers: Sequence[str], n: int = 3) -> float:
    """Mean over answers of the share of n-grams that occurred before in the same answer."""
    rates = []
    for words in map(units, answers):
        grams = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
        rates.append(1.0 - len(set(grams)) / len(grams) if grams else 0.0)
    return _mean(rates)


def answer_statistics(rollouts: Sequence[Rollout]) -> dict[str, float]:
    """Length in tokens, share that ended by themselves, share that is empty, variety, repetition."""
    answers = [rollout.answer for rollout in rollouts]
    return {
        "answer_length": _mean([len(rollout.answer_ids) for rollout in rollouts]),
        "eos_rate": _mean([rollout.finished for rollout in rollouts]),
        "empty_rate": empty_rate(answers),
        "distinct_1": distinct_n(answers, 1),
        "distinct_2": distinct_n(answers, 2),
        "repetition_rate": repetition_rate(answers),
    }


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
