"""The texts within a row, whatever its format: where they stand, and the row with others in their places."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

Path = tuple[str | int, ...]
"""The keys and places that lead from a row to a text."""

FIELDS = (
    (
        "instruction input output system history prompt question query chosen rejected completion response answer "
        "answers reference predict label text target content value messages conversations conversation"
    )
    .lower()
    .split()
)
"""The columns that hold texts in the formats that duiqi reads."""
_WITHIN_MESSAGES = frozenset({"content", "value"})
_NAMES_OF_SPEAKERS = ("role", "from")


def texts_of(row: Mapping[str, Any], fields: Collection[str]) -> Iterator[tuple[Path, str]]:
    """Every text in these columns, in lists and messages too; who speaks a message is no text."""
    for name, value in row.items():
        if name in fields:
            yield from _within((name,), value)


def with_texts(row: Mapping[str, Any], texts: Mapping[Path, str]) -> dict[str, Any]:
    """The same row with other texts in these places; everything else stays as it is, the order of the keys too."""
    changed = copy.deepcopy(dict(row))
    for path, text in texts.items():
        holder: Any = changed
        for key in path[:-1]:
            holder = holder[key]
        holder[path[-1]] = text
    return changed


def with_every_text(value: Any, change: Callable[[str], str]) -> Any:
    """A value with every text in it changed, whatever its place; keys stay."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, list):
        return [with_every_text(item, change) for item in value]
    if isinstance(value, dict):
        return {key: with_every_text(item, change) for key, item in value.items()}
    return value


def _within(path: Path, value: Any) -> Iterator[tuple[Path, str]]:
    if isinstance(value, str):
        yield path, value
    elif isinstance(value, list):
        for number, item in enumerate(value):
            yield from _within((*path, number), item)
    elif isinstance(value, dict):
        is_message = any(name in value for name in _NAMES_OF_SPEAKERS)
        for name, item in value.items():
            if name in (_WITHIN_MESSAGES if is_message else FIELDS):
                yield from _within((*path, name), item)
