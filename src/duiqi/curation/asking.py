"""Asking many questions: each content once, what was paid for before not again, and an account of all that became."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from duiqi.curation.crew import Asked, Crew, Effort, Malformed
from duiqi.curation.endpoint import EndpointError, Usage
from duiqi.curation.ledger import Ledger
from duiqi.curation.paid import PaidAnswers
from duiqi.curation.place import digest
from duiqi.curation.spending import Caps, Purse, Spent

Answer = TypeVar("Answer")
Tracked = Callable[[Iterable[str], int], Iterator[str]]

HOPELESS = 20
"""So many questions without a single answer, and the endpoint is taken to be out of order."""


@dataclass(frozen=True)
class Question(Generic[Answer]):
    """A request, and how its answer is read."""

    make: Callable[[], Mapping[str, Any]]
    """The request. It is made when it is needed: a million of them would fill the memory."""
    read: Callable[[str], Answer]
    """Raises Malformed where the answer cannot be used; then it is asked for again."""

    @property
    def body(self) -> Mapping[str, Any]:
        """The request, made anew."""
        return self.make()

    def key(self, base_url: str) -> str:
        """What stands for the contents of the request."""
        return digest({"base_url": base_url, "body": self.body})


@dataclass(frozen=True)
class Account:
    """What the asking took."""

    different: int
    """Questions of different contents."""
    from_cache: int
    """Of these, answered before."""
    retries: int
    used: Usage
    """Taken by all of it, earlier runs and requests that failed included."""
    used_now: Usage
    uncounted: int
    """Of all requests those whose tokens are not known: they got no answer, or the server does not count."""


@dataclass
class Outcome(Generic[Answer]):
    """What became of the questions, in their order: an answer, a reason in `failures`, or neither."""

    answers: list[Answer | None]
    account: Account
    failures: dict[int, str] = field(default_factory=dict)
    """Reasons by the question's place."""
    is_capped: bool = False
    """Whether the cap left questions unasked."""

    @property
    def is_settled(self) -> bool:
        """Whether every question has an answer or a reason."""
        return all(answer is not None or place in self.failures for place, answer in enumerate(self.answers))


def ask_all(
    questions: Sequence[Question[Answer]],
    endpoint: Asked,
    *,
    paid: PaidAnswers,
    ledger: Ledger,
    caps: Caps,
    effort: Effort,
    stop: Callable[[], object] = lambda: False,
    tracked: Tracked = lambda keys, _total: iter(keys),
) -> Outcome[Answer]:
    """Ask every question that has not been answered before, each content once.

    Args:
        ledger: What was spent on requests without an answer that is kept; it counts against the caps and goes on.
        stop: Asked between answers; what is under way is still waited for and kept.
        tracked: Passes on the questions that are settled, of so many, and shows that they are.

    Raises:
        EndpointError: The endpoint refuses everything, or gave no answer at all to many questions.
        RunError: The ledger is damaged, or an answer cannot be kept.
    """
    caps.check()
    purse = Purse(caps)
    for spent in ledger.read():
        purse.count(spent)
    places: dict[str, list[int]] = {}
    for place, question in enumerate(questions):
        places.setdefault(question.key(endpoint.base_url), []).append(place)
    answers = {key: answer for key, same in places.items() if (answer := _kept(questions[same[0]], key, paid, purse))}
    from_cache, before = len(answers), purse.used
    unanswered = {key: questions[same[0]] for key, same in places.items() if key not in answers}
    crew = Crew(unanswered, endpoint, paid=paid, purse=purse, ledger=ledger)
    reasons: dict[str, str] = {}
    with closing(ledger):
        for key in tracked(crew.work(effort, stop), len(unanswered)):
            settled = crew.settled[key]
            if isinstance(settled, str):
                reasons[key] = settled
                if len(reasons) >= HOPELESS and len(answers) == from_cache:
                    crew.halt()
            else:
                answers[key] = (settled.answer,)
    if len(reasons) >= HOPELESS and len(answers) == from_cache:
        raise EndpointError(
            f"gave no answer to {len(reasons)} questions; the last time: {list(reasons.values())[-1]}",
            where=endpoint.base_url,
            remedy="see what is wrong with it; the same command goes on",
        )
    account = Account(len(places), from_cache, crew.retries, purse.used, purse.used - before, purse.uncounted)
    outcome: Outcome[Answer] = Outcome([None] * len(questions), account, is_capped=crew.is_capped)
    for key, same in places.items():
        for place in same:
            if key in answers:
                outcome.answers[place] = answers[key][0]
            elif key in reasons:
                outcome.failures[place] = reasons[key]
    return outcome


def _kept(question: Question[Answer], key: str, paid: PaidAnswers, purse: Purse) -> tuple[Answer] | None:
    """The answer that was paid for before; None where there is none that can be read."""
    found = paid.find(key)
    if found is None:
        return None
    try:
        answer = question.read(found.text)
    except Malformed:
        return None
    purse.count(Spent(found.usage))
    return (answer,)
