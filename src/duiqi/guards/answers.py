"""What a batch of answers looks like from outside: length, ends, emptiness, variety, language."""

from __future__ import annotations

import re
from collections.abc import Hashable, Sequence
from itertools import combinations

from duiqi.types import Rollout

_CHARACTERS = r"\u3400-\u4dbf\u4e00-\u9fff\u3040-\u30ff\uac00-\ud7af"
_UNIT = re.compile(rf"[{_CHARACTERS}]|[^\W_{_CHARACTERS}]+")
"""A Chinese, Japanese or Korean character, or a run of other letters and digits."""
_CHARACTER = re.compile(f"[{_CHARACTERS}]")

AT_ONCE = 2
"""An answer of at most so many tokens, its end token included, ended before it said anything."""

FEWEST_ENDED = 8
"""Fewer answers that ended by themselves say nothing of how long such answers are."""

MAX_COMPARED = 32
"""Answers that are compared with each other, two at a time; more would say no more."""


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
    grams = [gram for answer in answers for gram in _grams(answer, n)]
    return len(set(grams)) / len(grams) if grams else 0.0


def repetition_rate(answers: Sequence[str], n: int = 3) -> float:
    """Mean over answers of the share of n-grams that occurred before in the same answer."""
    return _mean([repetition(answer, n) for answer in answers])


def repetition(answer: str, n: int = 3) -> float:
    """Share of the n-grams of one answer that occurred in it before.

    >>> repetition("谢谢谢谢谢谢")
    0.75
    """
    grams = _grams(answer, n)
    return 1.0 - len(set(grams)) / len(grams) if grams else 0.0


def self_similarity(answers: Sequence[str], prompts: Sequence[Hashable]) -> float:
    """How much answers to different prompts have in common: mean Jaccard index of their bigrams; 0 without a pair.

    Args:
        answers: Of which the first MAX_COMPARED are looked at.
        prompts: Which prompt each is an answer to. Answers to the same one may well be alike.

    >>> self_similarity(["I do not know", "I do not know", "it is a cat"], [0, 1, 2])
    0.3333333333333333
    """
    grams = [(prompt, set(_grams(answer, 2))) for prompt, answer in zip(prompts, answers, strict=True)]
    pairs = [(a, b) for (p, a), (q, b) in combinations(grams[:MAX_COMPARED], 2) if p != q and (a or b)]
    return _mean([len(a & b) / len(a | b) for a, b in pairs])


def is_chinese(text: str) -> bool | None:
    """Whether most of a text is in characters (Chinese, Japanese, Korean) rather than in words; None if it is empty.

    >>> is_chinese("我在用 Python 写代码"), is_chinese("what does 你好 mean?"), is_chinese("!")
    (True, False, None)
    """
    found = units(text)
    return sum(bool(_CHARACTER.match(unit)) for unit in found) * 2 > len(found) if found else None


def has_switched(prompt: str, answer: str) -> bool:
    """Whether an answer is in characters and its prompt in words, or the other way round."""
    asked, said = is_chinese(prompt), is_chinese(answer)
    return asked is not None and said is not None and asked != said


def answer_statistics(rollouts: Sequence[Rollout], prompts: Sequence[str] = ()) -> dict[str, float]:
    """Length in tokens, share that ended by themselves, share that is empty, variety, repetition, language.

    Args:
        rollouts: A batch of answers. Where hardly any of them ended by itself, there is no `ended_length`.
        prompts: What the user said last before each answer; without it nothing is said of languages.
    """
    answers = [rollout.answer for rollout in rollouts]
    lengths = [len(rollout.answer_ids) for rollout in rollouts]
    ended = [len(rollout.answer_ids) for rollout in rollouts if rollout.finished]
    found = {
        "answer_length": _mean(lengths),
        "eos_rate": _mean([rollout.finished for rollout in rollouts]),
        "empty_rate": empty_rate(answers),
        "ends_at_once": _mean([rollout.finished and len(rollout.answer_ids) <= AT_ONCE for rollout in rollouts]),
        "distinct_1": distinct_n(answers, 1),
        "distinct_2": distinct_n(answers, 2),
        "repetition_rate": repetition_rate(answers),
        "self_similarity": self_similarity(answers, [rollout.prompt_ids for rollout in rollouts]),
    }
    if len(ended) >= FEWEST_ENDED:
        found["ended_length"] = _mean(ended)
    if prompts:
        found["language_switch"] = _mean([has_switched(*pair) for pair in zip(prompts, answers, strict=True)])
    return found


def outlier_gap(scores: Sequence[float]) -> float:
    """How far the best score is above the mean of the others, in standard deviations of the others.

    0 with fewer than eight scores, or where the others are all the same: then there is no spread to measure by.

    >>> outlier_gap([0.0, 1.0, 0.0, 1.0, 0.0, 1.0, 0.0, 1.0, 4.5])
    8.0
    """
    if len(scores) < 8:
        return 0.0
    *others, best = sorted(scores)
    mean = _mean(others)
    std = _mean([(score - mean) ** 2 for score in others]) ** 0.5
    return (best - mean) / std if std > 0 else 0.0


def _grams(answer: str, n: int) -> list[tuple[str, ...]]:
    words = units(answer)
    return [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
