"""What asking may cost. A request is paid for in advance with the most it can take, so that no cap is ever passed."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from duiqi.curation.endpoint import Usage
from duiqi.errors import DuiqiError, SettingsError

_PER_MESSAGE_TOKENS = 16
"""What a server's chat template puts around a message, at most."""
_UNLIMITED_ANSWER_TOKENS = 4096
"""Taken for an answer whose request names no limit."""
_PATIENCE_SECONDS = 0.2


@dataclass(frozen=True, slots=True)
class Spent:
    """What a request took."""

    usage: Usage
    """As far as it is known."""
    unknown: Usage | None = None
    """The most tokens that it may have taken, where nobody says how many."""


class CapReached(DuiqiError):
    """The next request might pass the cap."""


@dataclass(frozen=True, slots=True)
class Prices:
    """In any currency, per million tokens."""

    prompt: float = 0.0
    answer: float = 0.0

    def of(self, usage: Usage) -> float:
        """What the usage costs.

        >>> Prices(prompt=2.0, answer=10.0).of(Usage(1, 500_000, 100_000))
        2.0
        """
        return (usage.prompt_tokens * self.prompt + usage.answer_tokens * self.answer) / 1e6


@dataclass(frozen=True, slots=True)
class Caps:
    """The most that a file may take, earlier runs and requests that failed included."""

    max_requests: int | None = None
    max_cost: float | None = None
    prices: Prices = Prices()

    def check(self) -> None:
        """Refuse a cap on a cost that cannot be known.

        Raises:
            SettingsError: `max_cost` without prices.
        """
        if self.max_cost is not None and self.prices == Prices():
            raise SettingsError(
                "cannot be kept without prices",
                where="max_cost",
                remedy="give --prompt_price and --answer_price, per million tokens",
            )


def most_of(body: Mapping[str, Any]) -> Usage:
    """The most tokens that a request can take: no tokenizer makes more tokens than there are bytes."""
    messages = body["messages"]
    prompt = sum(
        len(json.dumps(message, ensure_ascii=False).encode("utf-8", "surrogatepass")) + _PER_MESSAGE_TOKENS
        for message in messages
    )
    limits = [body[name] for name in ("max_tokens", "max_completion_tokens") if isinstance(body.get(name), int)]
    return Usage(1, prompt, max(limits, default=_UNLIMITED_ANSWER_TOKENS))


class Purse:
    """What was taken so far, safe for several threads.

    A request whose tokens are not known may have been charged; for the cap it counts with the most it can have taken.
    """

    def __init__(self, caps: Caps) -> None:
        self._caps = caps
        self._changed = threading.Condition()
        self._reserved = Usage()
        self._in_flight = 0
        self._unknown = Usage()
        self.used = Usage()
        """What is known to have been taken."""
        self.uncounted = 0
        """Requests whose tokens are not known: they got no answer, or the server does not count."""

    def count(self, spent: Spent) -> None:
        """Count what a request took."""
        with self._changed:
            self.used += spent.usage
            if spent.unknown is not None:
                self.uncounted += 1
                self._unknown += spent.unknown

    def reserve(self, most: Usage) -> None:
        """Set aside what a request may take; waits while only requests under way stand against it.

        Raises:
            CapReached: It might pass a cap.
        """
        with self._changed:
            while not self._has_room(most):
                if not self._in_flight:
                    raise CapReached("the cap is reached")
                self._changed.wait(_PATIENCE_SECONDS)
            self._reserved += most
            self._in_flight += 1

    def settle(self, most: Usage, usage: Usage | None) -> Spent:
        """Give back what was set aside and count what was taken; None: not known. Returns what was counted."""
        unknown = Usage(0, most.prompt_tokens, most.answer_tokens)
        spent = Spent(Usage(requests=1), unknown) if usage is None else Spent(usage)
        with self._changed:
            self._in_flight -= 1
            self._reserved -= most
            self.count(spent)
            self._changed.notify_all()
        return spent

    @property
    def cost(self) -> float:
        """Of what is known to have been taken."""
        return self._caps.prices.of(self.used)

    def _has_room(self, most: Usage) -> bool:
        then = self.used + self._unknown + self._reserved + most
        caps = self._caps
        if caps.max_requests is not None and then.requests > caps.max_requests:
            return False
        return caps.max_cost is None or caps.prices.of(then) <= caps.max_cost
