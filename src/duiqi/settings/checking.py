"""Checking what was given against what is known: every problem is found before one of them is raised."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from pydantic import TypeAdapter, ValidationError

from duiqi.errors import SettingsError, did_you_mean
from duiqi.settings.describe import SettingInfo, condition_in_words
from duiqi.settings.recipe import Given
from duiqi.settings.stages import ONLY_WITH

_WORDS_FOR_NONE = ("none", "null")


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong with the settings."""

    where: str
    text: str
    remedy: str = ""


def check(
    given: Sequence[Given], known: Sequence[SettingInfo], *, command: str, elsewhere: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """The values of everything given, checked; of a setting given twice, the last.

    Args:
        command: The command these settings are for, as its user types it.
        elsewhere: Known settings of other commands, each with the commands that have it in words.

    Raises:
        SettingsError: One message with every problem found.
    """
    by_name = {setting.name: setting for setting in known}
    problems: list[Problem] = []
    values: dict[str, Any] = {}
    last = {item.key: item for item in given}
    for item in last.values():
        if item.key not in by_name:
            problems.append(_unknown(item, by_name, command=command, elsewhere=elsewhere or {}))
            continue
        try:
            values[item.key] = read_value(item.value, by_name[item.key])
        except ValueError as error:
            problems.append(_wrong_value(item, by_name[item.key], error))
    problems += _without_effect(last, values, known)
    problems += [
        Problem(name, "required, but not given", f"{name}=...: {setting.help}")
        for name, setting in by_name.items()
        if setting.required and name not in last
    ]
    if problems:
        raise _as_error(problems)
    return values


def read_value(value: Any, setting: SettingInfo) -> Any:
    """A value as the setting's type: text is read, anything else must be of the type already.

    Raises:
        ValueError: It is not, in words that end a sentence: "expected an integer above 0, found 'eight'".
    """
    if isinstance(value, str) and setting.allows_none and value.lower() in _WORDS_FOR_NONE:
        return None
    adapter = _adapter(setting.annotation)
    try:
        checked = adapter.validate_python(value, strict=not isinstance(value, str | tuple))
    except ValidationError:
        raise ValueError(f"expected {_with_article(setting.type_text)}, found {_found(value)}") from None
    if isinstance(checked, float) and not math.isfinite(checked):
        raise ValueError(f"expected a finite number, found {_found(value)}")
    return checked


def is_active(name: str, values: Mapping[str, Any]) -> bool:
    """Whether a setting acts beside these values of all settings."""
    if name not in ONLY_WITH:
        return True
    other, allowed = ONLY_WITH[name]
    return other not in values or values[other] in allowed


@cache
def _adapter(annotation: Any) -> TypeAdapter[Any]:
    return TypeAdapter(annotation)


def _unknown(item: Given, by_name: Mapping[str, SettingInfo], *, command: str, elsewhere: Mapping[str, str]) -> Problem:
    if item.key in elsewhere:
        return Problem(item.where, f"has no effect in `{command}`; it belongs to {elsewhere[item.key]}", "remove it")
    remedy = did_you_mean(item.key, by_name) or f"remove it; `duiqi {command} --help` lists the settings there are"
    return Problem(item.where, "unknown setting", remedy)


def _wrong_value(item: Given, setting: SettingInfo, error: ValueError) -> Problem:
    near = did_you_mean(item.value, setting.choices) if isinstance(item.value, str) else ""
    return Problem(item.where, str(error), near or setting.help)


def _without_effect(
    last: Mapping[str, Given], values: Mapping[str, Any], known: Sequence[SettingInfo]
) -> list[Problem]:
    everything = {setting.name: setting.default for setting in known} | dict(values)
    return [
        Problem(
            last[name].where,
            f"has no effect with {ONLY_WITH[name][0]}={everything[ONLY_WITH[name][0]]}",
            f"remove it, or set {condition_in_words(name, everything)}",
        )
        for name in values
        if not is_active(name, everything)
    ]


def _as_error(problems: Sequence[Problem]) -> SettingsError:
    if len(problems) == 1:
        (problem,) = problems
        return SettingsError(problem.text, where=problem.where, remedy=problem.remedy or None)
    lines = [f"{problem.where}: {problem.text} -> {problem.remedy}" for problem in problems]
    return SettingsError(f"{len(problems)} settings cannot be used\n  " + "\n  ".join(lines))


def _with_article(type_text: str) -> str:
    """The type as the object of "expected": integers and numbers take an article.

    >>> _with_article("integer above 0"), _with_article("text")
    ('an integer above 0', 'text')
    """
    articles = {"integer": "an", "number": "a"}
    first = type_text.split()[0].rstrip(",")
    return f"{articles[first]} {type_text}" if first in articles else type_text


def _found(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return "a list"
    return "settings within settings" if isinstance(value, Mapping) else repr(value)
