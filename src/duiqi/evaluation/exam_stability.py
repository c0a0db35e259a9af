"""Whether a score depends on anything but the answer: padding, company, order, precision."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from statistics import fmean, pstdev

from duiqi.evaluation.exam import Paper, Question
from duiqi.evaluation.exam_result import Stability
from duiqi.evaluation.exam_statistics import win
from duiqi.rollouts.scoring import Candidate

Score = Callable[[Sequence[Candidate]], Sequence[float]]

ROWS = 16
"""Scored alone as well as together."""
ROWS_IN_OTHER_PRECISION = 128


def measure_stability(paper: Paper, scores: Sequence[float], score: Score) -> Stability:
    """Score a few rows of the paper again: one by one, all in one batch, and in that batch backwards.

    The rows are taken at equal distances over the paper's lengths, so that the batch pads nearly all of them.

    Args:
        scores: Of `paper.candidates`, for the unit: the standard deviation of the real answers' scores.
        score: Scores what it is given in one batch.
    """
    candidates = paper.candidates
    by_length = sorted(range(len(candidates)), key=lambda i: len(candidates[i].answer))
    picked = [by_length[i * (len(by_length) - 1) // (ROWS - 1)] for i in range(ROWS)]
    rows = [candidates[i] for i in dict.fromkeys(picked)]
    alone = [float(score([row])[0]) for row in rows]
    together = score(rows)
    backwards = list(reversed(list(score(rows[::-1]))))
    unit = unit_of(paper, scores)
    return Stability(
        batch=_largest(alone, together, unit),
        order=_largest(together, backwards, unit),
        precision=None,
        other_precision="",
        flipped=None,
        rows=len(rows),
    )


def with_other_precision(
    stability: Stability, paper: Paper, scores: Sequence[float], score: Score, *, name: str
) -> Stability:
    """The same, and how the first questions are scored in another precision."""
    questions: list[Question] = []
    count = 0
    for question in paper.questions:
        if count + len(question.answers) > ROWS_IN_OTHER_PRECISION and questions:
            break
        questions.append(question)
        count += len(question.answers)
    others = score([Candidate(q.prompt, answer) for q in questions for answer in q.answers])
    changes = [abs(one - other) for one, other in zip(scores[:count], others, strict=True)]
    flips: list[float] = []
    start = 0
    for question in questions:
        last = start + len(question.answers) - 1
        flips.append(float(win(scores[start], scores[last]) != win(others[start], others[last])))
        start = last + 1
    return replace(
        stability,
        precision=_in_units(fmean(changes), unit_of(paper, scores)),
        other_precision=name,
        flipped=fmean(flips),
    )


def unit_of(paper: Paper, scores: Sequence[float]) -> float:
    """The standard deviation of the scores of real answers."""
    return pstdev(scores[: sum(len(question.answers) for question in paper.questions)])


def _largest(ones: Sequence[float], others: Sequence[float], unit: float) -> float:
    return _in_units(max(abs(one - other) for one, other in zip(ones, others, strict=True)), unit)


def _in_units(change: float, unit: float) -> float:
    """A change where nothing varies is beyond all measure."""
    return change / unit if unit else math.inf if change else 0.0
