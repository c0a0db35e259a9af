"""Whom to ask and under what conditions: what `duiqi data judge` and `duiqi data translate` share."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from duiqi.curation.asking import Account, Outcome
from duiqi.curation.crew import Effort
from duiqi.curation.endpoint import Endpoint
from duiqi.curation.paid import PaidAnswers
from duiqi.curation.place import Place
from duiqi.curation.spending import Caps
from duiqi.errors import RunError, SettingsError


@dataclass(frozen=True)
class Bureau:
    """An endpoint, the model asked there, and what that may take."""

    endpoint: Endpoint
    model: str
    parameters: Mapping[str, Any]
    """Of every request beside its messages, such as temperature."""
    paid: PaidAnswers
    caps: Caps = field(default_factory=Caps)
    effort: Effort = field(default_factory=Effort)

    def body(self, messages: Sequence[Mapping[str, str]]) -> dict[str, Any]:
        """The request that puts these messages to the model."""
        return {"model": self.model, "messages": list(messages), **self.parameters}

    def settings(self) -> dict[str, Any]:
        """Everything here that can change an answer."""
        return {"base_url": self.endpoint.base_url, "model": self.model, "parameters": dict(self.parameters)}

    def lines(self, account: Account) -> list[str]:
        """What the asking took, in plain sentences."""
        used, now = account.used, account.used_now
        lines = [
            f"{used.requests} requests, {now.requests} of them now ({account.retries} again after a failure); "
            f"{account.from_cache} of {account.different} questions were answered before",
            f"{used.prompt_tokens} tokens of prompts and {used.answer_tokens} of answers, "
            f"{now.prompt_tokens} and {now.answer_tokens} of them now",
        ]
        if account.uncounted:
            lines.append(f"{account.uncounted} requests whose tokens are not known may have been charged too")
        cost = self.caps.prices.of
        if cost(used):
            lines.append(f"cost {cost(used):.4f}, {cost(now):.4f} of it now")
        return lines


def open_bureau(
    endpoint: Endpoint,
    *,
    model: str,
    temperature: float,
    max_new_tokens: int | None,
    request: str | None,
    cache_dir: Path,
    caps: Caps,
    effort: Effort,
) -> Bureau:
    """A bureau from what the command line gave.

    Args:
        request: Further parameters of every request as a JSON object; null takes one away.

    Raises:
        SettingsError: `request` is no JSON object, or a cap cannot be kept.
    """
    caps.check()
    parameters: dict[str, Any] = {"temperature": temperature, "max_tokens": max_new_tokens}
    if request is not None:
        try:
            further = json.loads(request)
        except ValueError:
            further = None
        if not isinstance(further, dict) or {"model", "messages", "stream", "n"} & further.keys():
            raise SettingsError(
                "is no JSON object of parameters",
                where="request",
                remedy='write for example \'{"max_tokens": null, "max_completion_tokens": 800}\'; '
                "model, messages, stream and n are not for it",
            )
        parameters |= further
    parameters = {name: value for name, value in parameters.items() if value is not None}
    return Bureau(endpoint, model, parameters, PaidAnswers(cache_dir), caps, effort)


@dataclass(frozen=True)
class Made:
    """What came of a file: what is to be said, and what is missing from it."""

    lines: list[str]
    missing: RunError | None = None


def close(
    place: Place,
    rows: Sequence[Mapping[str, Any]],
    failures: Sequence[Mapping[str, Any]],
    outcome: Outcome[Any],
    *,
    num_wanted: int,
    lines: list[str],
) -> Made:
    """Write the rows that are whole, list those that failed, and say what is missing.

    Args:
        failures: Where each failed row stands, and why it failed.
        num_wanted: Rows that the file has once nothing is missing.
    """
    if rows:
        place.write_rows(rows)
    failed_file = place.write_failures(failures)
    is_whole = len(rows) == num_wanted
    place.record(
        {"lines": lines, "rows": len(rows), "failures": len(failures), "account": asdict(outcome.account)},
        is_finished=is_whole,
    )
    if is_whole:
        return Made(lines)
    problems = [f"{num_wanted - len(rows)} of {num_wanted} rows are missing"]
    problems += [f"{len(failures)} failed, see {failed_file}"] if failures else []
    problems += ["the cap was reached"] if outcome.is_capped else []
    remedy = "the same command asks for what is missing"
    remedy += ", once max_requests or max_cost is raised" if outcome.is_capped else ""
    return Made(lines, RunError("; ".join(problems), where=str(place.target), remedy=remedy))
