"""How much answers are like the labels they were asked beside: BLEU, ROUGE and a common beginning.

As ChatGLM-Efficient-Tuning and LLaMA-Factory of 2023 computed them, number by number, so that results can be compared.
They count common characters and words; a good answer in other words gets little.
"""

from __future__ import annotations

import importlib
import logging
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from importlib.util import find_spec
from statistics import mean, stdev
from typing import Any

from duiqi.errors import UserError

_PACKAGES = ("jieba", "rouge_chinese", "nltk")
INSTALL = "pip install duiqi[metrics]"


@dataclass(frozen=True, slots=True)
class TextMetrics:
    """One answer against its label, or the mean over many."""

    bleu_4: float
    """Up to four characters in a row that both have, 0 to 100."""
    rouge_1: float
    """F of the words that both have, 0 to 100."""
    rouge_2: float
    """F of two words in a row, 0 to 100."""
    rouge_l: float
    """F of the longest common subsequences of words, 0 to 100."""
    accuracy: float
    """Whether the answer begins with the label, 0 to 1."""


_NOTHING = TextMetrics(0.0, 0.0, 0.0, 0.0, 0.0)


def can_measure() -> bool:
    """Whether the packages of the extra `metrics` are installed."""
    return all(find_spec(package) is not None for package in _PACKAGES)


def text_metrics(answers: Sequence[str], labels: Sequence[str]) -> TextMetrics:
    """The mean over all answers, each beside its label; one that is empty on either side counts as 0.

    Raises:
        UserError: The packages are not installed.
    """
    assert answers, "there is nothing to take the mean of"
    return _over(mean, [one_text_metrics(answer, label) for answer, label in zip(answers, labels, strict=True)])


def deviation(repeats: Sequence[TextMetrics]) -> TextMetrics:
    """The standard deviation of each number over repeats (of a sample: n - 1)."""
    return _over(stdev, repeats)


def average(repeats: Sequence[TextMetrics]) -> TextMetrics:
    """The mean of each number over repeats."""
    return _over(mean, repeats)


def one_text_metrics(answer: str, label: str) -> TextMetrics:
    """One answer against its label; each number rounded to four places.

    Raises:
        UserError: The packages are not installed.
    """
    jieba = _package("jieba")
    jieba.setLogLevel(logging.WARNING)  # it announces its dictionary on standard error
    if not answer.strip() or not label.strip():
        return _NOTHING
    words, label_words = jieba.lcut(answer), jieba.lcut(label)
    with _depth(len(words) + len(label_words)):
        rouge = _package("rouge_chinese").Rouge().get_scores(" ".join(words), " ".join(label_words))[0]
    bleu = _package("nltk.translate.bleu_score")
    smoothing = bleu.SmoothingFunction().method3
    return TextMetrics(
        bleu_4=round(100 * bleu.sentence_bleu([list(label)], list(answer), smoothing_function=smoothing), 4),
        rouge_1=round(100 * rouge["rouge-1"]["f"], 4),
        rouge_2=round(100 * rouge["rouge-2"]["f"], 4),
        rouge_l=round(100 * rouge["rouge-l"]["f"], 4),
        accuracy=float(answer.startswith(label)),
    )


def _over(function: Any, values: Sequence[TextMetrics]) -> TextMetrics:
    names = [field.name for field in fields(TextMetrics)]
    return TextMetrics(**{name: float(function([getattr(value, name) for value in values])) for name in names})


@contextmanager
def _depth(num_words: int) -> Iterator[None]:
    """Room for rouge_chinese, which follows a common subsequence by calling itself once per word."""
    usual = sys.getrecursionlimit()
    sys.setrecursionlimit(usual + num_words)
    try:
        yield
    finally:
        sys.setrecursionlimit(usual)


def _package(name: str) -> Any:
    try:
        with warnings.catch_warnings(action="ignore"):  # jieba's own code is warned about when it is first read
            return importlib.import_module(name)
    except ImportError as error:
        raise UserError(f"BLEU and ROUGE need {error.name}, which is not installed", remedy=INSTALL) from None
