"""`duiqi data judge`: another model ranks or rates answers.

A judge that reads two answers has a liking for one place, most often the first. So each pair is asked about in both
orders, and only a verdict that survives the exchange counts; otherwise the pair is a tie (Zheng et al. 2023, section
3.4, call this the conservative approach).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from typing import Any, Literal

from duiqi.curation.answered import Answered, read_answered
from duiqi.curation.asking import Question, ask_all
from duiqi.curation.bureau import Bureau, Made, close
from duiqi.curation.ledger import Ledger
from duiqi.curation.place import digest, making
from duiqi.curation.rubric import (
    RUBRICS,
    Language,
    Place,
    comparison,
    language_of,
    rating,
    read_comparison,
    read_rating,
    read_rubric,
)
from duiqi.errors import Interrupted
from duiqi.serving.progress import tracked
from duiqi.training.interruption import listening

Method = Literal["rank", "score"]
_SWAPPED: dict[Place, Place] = {"first": "second", "second": "first", "tie": "tie"}


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two answers to one prompt, by their places in the row, and what the judge said in either order."""

    one: int
    other: int
    as_is: Place
    swapped: Place
    """With the other answer shown first; first and second mean the places in that request."""

    @property
    def better(self) -> int | None:
        """The answer that is better in both orders; None: a tie."""
        if self.as_is != _SWAPPED[self.swapped] or self.as_is == "tie":
            return None
        return self.one if self.as_is == "first" else self.other

    @property
    def is_consistent(self) -> bool:
        """Whether the two orders gave the same verdict."""
        return self.as_is == _SWAPPED[self.swapped]

    @property
    def place_that_won(self) -> Place | None:
        """The place that was preferred whatever stood there; None where no place was."""
        return self.as_is if self.as_is == self.swapped and self.as_is != "tie" else None

    def row(self) -> dict[str, Any]:
        """The same as it stands in a file."""
        return {"between": [self.one, self.other], "better": self.better, "votes": [self.as_is, self.swapped]}


@dataclass(frozen=True)
class Consistency:
    """How far a judge can be trusted."""

    pairs: int
    ties: int
    consistent: int
    first_place: int
    """Pairs in which whatever stood first won."""
    second_place: int

    def lines(self) -> list[str]:
        """Plain sentences for the terminal."""
        if not self.pairs:
            return []
        lines = [
            f"{self.pairs} pairs, {self.ties} of them ties; the judge said the same in both orders for "
            f"{100 * self.consistent / self.pairs:.0f} % of them"
        ]
        if swayed := self.first_place + self.second_place:
            lines.append(
                f"position bias: in {swayed} pairs one place won whatever stood there: "
                f"{self.first_place} times the first, {self.second_place} times the second"
            )
        return lines


def judge_file(
    file: str,
    output_file: str,
    *,
    bureau: Bureau,
    method: Method = "rank",
    rubric: str | None = None,
    language: Literal["auto", "zh", "en"] = "auto",
    max_samples: int | None = None,
) -> Made:
    """Have the answers of `file` judged, and write them with their scores to `output_file`.

    Ranked, the score of an answer is the share of its comparisons that it won, a tie being half a win. Rated, it is the
    judge's number from 1 to 10.

    A row that got no verdict is left out and listed; the same command asks about it again.

    Raises:
        UserError: File, rubric or endpoint cannot be used, or the output belongs to something else.
        Interrupted: It was asked to stop; what was paid for is kept.
    """
    rows = read_answered(file)[:max_samples]
    settings = {
        "rows": digest([row.row() for row in rows])[:16],
        "method": method,
        "rubric": rubric and read_rubric(rubric, "en"),
        "language": language,
        **bureau.settings(),
    }
    with making(output_file, command="data judge", settings=settings) as place, listening() as stop:
        if place.is_finished:
            return Made([f"all {place.summary.get('rows')} rows were finished before: nothing was asked"])
        standards = {spoken: read_rubric(rubric, spoken) for spoken in RUBRICS}
        plans = [_plan(row, bureau, method, standards, language) for row in rows]
        outcome = ask_all(
            [question for plan in plans for question in plan],
            bureau.endpoint,
            paid=bureau.paid,
            ledger=Ledger(place.folder),
            caps=bureau.caps,
            effort=bureau.effort,
            stop=lambda: stop,
            tracked=lambda keys, total: tracked(keys, total=total, what="verdicts"),
        )
        if stop and not outcome.is_settled:
            raise Interrupted("what the judge has said is kept; the same command goes on")
        written, comparisons, failures, begin = [], [], [], 0
        for row, plan in zip(rows, plans, strict=True):
            places = range(begin, begin + len(plan))
            begin += len(plan)
            if reasons := [outcome.failures[at] for at in places if at in outcome.failures]:
                failures.append({"where": row.where, "reason": reasons[0]})
                continue
            verdicts = [verdict for at in places if (verdict := outcome.answers[at]) is not None]
            if len(verdicts) < len(plan):
                continue
            scores, compared = _scores(row, verdicts, method)
            comparisons += compared
            written.append(_judged_row(row, scores, compared, place.identity))
        lines = [f"{len(written)} of {len(rows)} rows judged", *consistency(comparisons).lines()]
        lines += bureau.lines(outcome.account)
        return close(place, written, failures, outcome, num_wanted=len(rows), lines=lines)


def _plan(
    row: Answered,
    bureau: Bureau,
    method: Method,
    standards: Mapping[Language, str],
    language: Literal["auto", "zh", "en"],
) -> list[Question[Any]]:
    """What is to be asked about a row. Answers that are the same are asked about once."""
    spoken: Language = language_of(row.prompt) if language == "auto" else language
    distinct = list(dict.fromkeys(row.answers))

    def rate(answer: str) -> Mapping[str, Any]:
        return bureau.body(rating(row.prompt, answer, rubric=standards[spoken], language=spoken))

    def compare(first: str, second: str) -> Mapping[str, Any]:
        return bureau.body(comparison(row.prompt, first, second, rubric=standards[spoken], language=spoken))

    if method == "score":
        return [Question(partial(rate, answer), read_rating) for answer in distinct]
    orders = [order for pair in combinations(distinct, 2) for order in (pair, pair[::-1])]
    return [Question(partial(compare, *order), read_comparison) for order in orders]


def _scores(row: Answered, verdicts: Sequence[Any], method: Method) -> tuple[list[float], list[Comparison]]:
    """The score of every answer, and the comparisons it comes from, by the places of the answers in the row."""
    distinct = list(dict.fromkeys(row.answers))
    if method == "score":
        by_text = dict(zip(distinct, verdicts, strict=True))
        return [by_text[answer] for answer in row.answers], []
    places = [row.answers.index(answer) for answer in distinct]
    compared = [
        Comparison(one, other, as_is, swapped)
        for (one, other), as_is, swapped in zip(combinations(places, 2), verdicts[::2], verdicts[1::2], strict=True)
    ]
    won = dict.fromkeys(places, 0.0)
    for each in compared:
        for place in (each.one, each.other):
            won[place] += 0.5 if each.better is None else float(each.better == place)
    rounds = max(1, len(places) - 1)
    by_text = {row.answers[place]: wins / rounds if compared else 0.5 for place, wins in won.items()}
    return [by_text[answer] for answer in row.answers], compared


def _judged_row(row: Answered, scores: list[float], compared: Sequence[Comparison], identity: str) -> dict[str, Any]:
    judged = Answered(row.prompt, row.answers, row.where, row.reference, tuple(scores), row.finished)
    comparisons = {"comparisons": [each.row() for each in compared]} if compared else {}
    return judged.row() | comparisons | {"judge": identity}


def consistency(compared: Sequence[Comparison]) -> Consistency:
    return Consistency(
        pairs=len(compared),
        ties=sum(each.better is None for each in compared),
        consistent=sum(each.is_consistent for each in compared),
        first_place=sum(each.place_that_won == "first" for each in compared),
        second_place=sum(each.place_that_won == "second" for each in compared),
    )
