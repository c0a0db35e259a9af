"""Checking what was given against what is known: every problem is found before one of them is raised."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from pydantic import TypeAdapter, ValidationError

from duiqi.errors import SettingsError, did_you_mean
from duiqi.settings.conditions import Condition, first_unmet, listing
from duiqi.settings.describe import SettingInfo
from duiqi.settings.recipe import Given

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
    everything = {setting.name: setting.default for setting in known} | values
    for name, value in values.items():
        condition = first_unmet(name, everything)
        is_default = value == by_name[name].default
        if condition is not None and not (is_default and _is_overruled(last[name], condition, last)):
            problems.append(_without_effect(last[name], condition, everything, last))
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


@cache
def _adapter(annotation: Any) -> TypeAdapter[Any]:
    return TypeAdapter(annotation)


def _unknown(item: Given, by_name: Mapping[str, SettingInfo], *, command: str, elsewhere: Mapping[str, str]) -> Problem:
    if item.key in elsewhere:
        return Problem(item.where, f"has no effect in `{command}`; it belongs to {elsewhere[item.key]}", "remove it")
    remedy = did_you_mean(item.key, by_name) or f"remove it; `duiqi {command} --help` lists the settings there are"
    return Problem(item.where, "unknown setting", remedy)


def _wrong_value(item: Given, setting: SettingInfo, error: ValueError) -> Problem:
    words = [word.strip() for word in item.value.split(",")] if isinstance(item.value, str) else []
    unknown = next((word for word in words if word not in setting.choices), "")
    return Problem(item.where, str(error), did_you_mean(unknown, setting.choices) or setting.help)


def _is_overruled(item: Given, condition: Condition, last: Mapping[str, Given]) -> bool:
    """Whether a recipe's setting was switched off by something given after the recipe."""
    later = {name for name, other in last.items() if not other.is_from_recipe}
    return item.is_from_recipe and not later.isdisjoint(condition.others)


def _without_effect(
    item: Given, condition: Condition, everything: Mapping[str, Any], last: Mapping[str, Given]
) -> Problem:
    beside = listing([_stated(other, everything[other], last) for other in condition.others if other in everything])
    reason = f": {condition.reason}" if condition.reason else ""
    return Problem(item.where, f"has no effect with {beside}{reason}", f"remove it, or set {condition.words}")


def _stated(name: str, value: Any, last: Mapping[str, Given]) -> str:
    """A setting with its value as a recipe would say it, and the place where that was given."""
    where = last[name].where if name in last else name
    place = "" if where == name else f" ({where.removesuffix(f': {last[name].name}')})"
    return f"{name}={_plain(value)}{place}"


def _plain(value: Any) -> str:
    """A value as a recipe says it.

    >>> _plain(None), _plain(True), _plain(0.0)
    ('null', 'true', '0')
    """
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


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
    if value is None or isinstance(value, bool):
        return _plain(value)
    if isinstance(value, list | tuple):
        return "a list"
    return "settings within settings" if isinstance(value, Mapping) else repr(value)
