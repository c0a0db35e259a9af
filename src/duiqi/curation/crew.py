"""Threads that ask: retries with growing pauses, a pause for all where the server asks for one, and an orderly end."""

from __future__ import annotations

import queue
import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from duiqi.curation.endpoint import EndpointError, NoAnswer, Reply, Usage
from duiqi.curation.ledger import Ledger
from duiqi.curation.paid import Paid, PaidAnswers
from duiqi.curation.spending import CapReached, Purse, Spent, most_of

Answer = TypeVar("Answer")
Answer_co = TypeVar("Answer_co", covariant=True)

FIRST_WAIT_SECONDS = 1.0
LONGEST_WAIT_SECONDS = 60.0
LONGEST_WAIT_ASKED_SECONDS = 600.0
"""A server that wants to be left alone for longer has a quota for the day."""
BUSY_PER_RETRY = 10
"""A server that says it is busy is not at fault: so many times as often it is asked again."""
_LOOK_SECONDS = 0.1


class Malformed(ValueError):
    """A model's answer is not in the form that was asked for; the message ends a sentence."""


class Asked(Protocol):
    """Whatever answers requests."""

    @property
    def base_url(self) -> str: ...

    def ask(self, body: Mapping[str, Any]) -> Reply: ...


class Readable(Protocol[Answer_co]):
    """A request whose answer can be read."""

    @property
    def body(self) -> Mapping[str, Any]: ...

    @property
    def read(self) -> Callable[[str], Answer_co]: ...


@dataclass(frozen=True, slots=True)
class Effort:
    """How hard to try."""

    concurrency: int = 8
    """Requests under way at once."""
    max_retries: int = 6
    """How often a request that failed is sent again."""


@dataclass(frozen=True, slots=True)
class Settled(Generic[Answer]):
    """A question that got its answer."""

    answer: Answer


class _Halted(Exception):
    """The crew is asked to end."""


class Crew(Generic[Answer]):
    """Asks questions at once and keeps every answer before it is told of; requests without one go into the ledger.

    `settled` holds the answer of a question, or the reason why there is none; questions that an end came before are not
    in it.
    """

    def __init__(
        self,
        questions: Mapping[str, Readable[Answer]],
        endpoint: Asked,
        *,
        paid: PaidAnswers,
        purse: Purse,
        ledger: Ledger,
    ) -> None:
        self._questions, self._endpoint, self._paid, self._purse = questions, endpoint, paid, purse
        self._ledger = ledger
        self._waiting = iter(questions)
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._not_before = 0.0
        self._told: queue.SimpleQueue[str | BaseException | None] = queue.SimpleQueue()
        self.settled: dict[str, Settled[Answer] | str] = {}
        self.retries = 0
        self.is_capped = False

    def halt(self) -> None:
        """Ask nothing more; what is under way is waited for."""
        self._ended.set()

    def work(self, effort: Effort, stop: Callable[[], object]) -> Iterator[str]:
        """The keys of the questions, each when it is settled.

        Raises:
            EndpointError: The endpoint cannot be used.
            RunError: An answer cannot be kept.
        """
        at_work = min(effort.concurrency, len(self._questions))
        for _ in range(at_work):
            threading.Thread(target=self._labour, args=(effort,), daemon=True).start()
        trouble: BaseException | None = None
        try:
            while at_work:
                if stop():
                    self.halt()
                try:
                    told = self._told.get(timeout=_LOOK_SECONDS)
                except queue.Empty:
                    continue
                if told is None:
                    at_work -= 1
                elif isinstance(told, BaseException):
                    trouble = trouble or told
                    self.halt()
                else:
                    yield told
        finally:
            self.halt()
        if trouble is not None:
            raise trouble

    def _labour(self, effort: Effort) -> None:
        """One thread: question after question, until there is none or the end is asked for."""
        try:
            while not self._ended.is_set():
                with self._lock:
                    key = next(self._waiting, None)
                if key is None:
                    return
                self.settled[key] = self._settle(key, effort)
                self._told.put(key)
        except _Halted:
            pass
        except CapReached:
            self.is_capped = True
            self.halt()
        except BaseException as error:  # told to the thread that waits, which raises it
            self._told.put(error)
        finally:
            self._told.put(None)

    def _settle(self, key: str, effort: Effort) -> Settled[Answer] | str:
        """The answer to a question, or the last reason why there is none."""
        question = self._questions[key]
        body = question.body
        failures = busy = 0
        while True:
            self._rest()
            try:
                reply, spent = self._ask(body)
            except NoAnswer as trouble:
                reason, passes, asked = trouble.reason, trouble.passes, trouble.wait_seconds
                busy, failures = busy + trouble.is_busy, failures + (not trouble.is_busy)
            else:
                try:
                    answer = question.read(reply.text)
                except Malformed as trouble:
                    self._ledger.note(spent)
                    reason, passes, asked = f"the answer cannot be used: {trouble}", True, None
                    failures += 1
                else:
                    self._paid.keep(key, Paid(reply.text, spent.usage))
                    self._ledger.note(Spent(Usage(), spent.unknown))
                    return Settled(answer)
            if not passes or failures > effort.max_retries or busy > effort.max_retries * BUSY_PER_RETRY:
                return reason
            self._wait(failures + busy, asked, reason)

    def _ask(self, body: Mapping[str, Any]) -> tuple[Reply, Spent]:
        """One request, paid for in advance with the most it can take; without a reply it is in the ledger."""
        most = most_of(body)
        self._purse.reserve(most)
        try:
            reply = self._endpoint.ask(body)
        except BaseException as trouble:
            usage = trouble.usage if isinstance(trouble, NoAnswer) else Usage(requests=1)
            self._ledger.note(self._purse.settle(most, usage))
            raise
        return reply, self._purse.settle(most, reply.usage)

    def _rest(self) -> None:
        """Wait as long as the server asked everybody to, and a little longer, each thread another time."""
        while (remaining := self._not_before - time.monotonic()) > 0:
            self._sleep(remaining + random.uniform(0.0, min(1.0, remaining)))
        if self._ended.is_set():
            raise _Halted

    def _wait(self, attempts: int, asked: float | None, reason: str) -> None:
        """The pause after a failure: as long as the server asks, or twice as long each time, give or take a half."""
        with self._lock:
            self.retries += 1
        if asked is None or asked < FIRST_WAIT_SECONDS:
            pause = min(LONGEST_WAIT_SECONDS, FIRST_WAIT_SECONDS * 2 ** min(attempts - 1, 16))
            self._sleep(pause * random.uniform(0.5, 1.5))
            return
        if asked > LONGEST_WAIT_ASKED_SECONDS:
            raise EndpointError(
                f"asks to be left alone for {asked:.0f} seconds ({reason})",
                where=self._endpoint.base_url,
                remedy="come back then: the same command goes on",
            )
        with self._lock:
            self._not_before = max(self._not_before, time.monotonic() + asked)

    def _sleep(self, seconds: float) -> None:
        if self._ended.wait(seconds):
            raise _Halted
