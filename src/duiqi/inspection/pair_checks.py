"""What can be wrong between the answers of a ranking. A check gives an excerpt of the fault, or an empty string."""

from __future__ import annotations

from collections.abc import Callable

from duiqi.inspection.findings import excerpt
from duiqi.inspection.row_text import RowText, folded


def _identical_answers(row: RowText) -> str:
    answers = row.example.answers
    return excerpt(answers[0]) if len(set(answers)) == 1 else ""


def _repeated_answer(row: RowText) -> str:
    answers = row.example.answers
    if 1 < len(set(answers)) < len(answers):
        return excerpt(next(answer for place, answer in enumerate(answers) if answer in answers[:place]))
    return ""


def _nearly_identical_answers(row: RowText) -> str:
    different = list(dict.fromkeys(row.example.answers))
    if len(different) < 2 or max(map(len, different)) > 2 * min(map(len, different)) + 8:
        return ""
    return excerpt(different[0]) if len({folded(answer) for answer in different}) == 1 else ""


def _negative_margin(row: RowText) -> str:
    return f"margin {row.example.margin:g}" if row.example.margin < 0 else ""


def _beginning_of_other(row: RowText) -> str:
    chosen, *others = dict.fromkeys(row.example.answers)
    for other in others:
        shorter, longer = sorted((chosen.strip(), other.strip()), key=len)
        if len(shorter) >= 8 and shorter != longer and longer.startswith(shorter):
            return excerpt(longer, len(shorter), len(longer))
    return ""


PAIR_CHECKS: dict[str, Callable[[RowText], str]] = {
    "identical_answers": _identical_answers,
    "repeated_answer": _repeated_answer,
    "nearly_identical_answers": _nearly_identical_answers,
    "negative_margin": _negative_margin,
    "beginning_of_other": _beginning_of_other,
}
