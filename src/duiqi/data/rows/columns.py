"""Reading one column of a row: what was found, what was expected, and where."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NoReturn

from duiqi.data.reading import describe
from duiqi.errors import DataError
from duiqi.types import Origin

Fields = Mapping[str, Any]


def has(row: Fields, *columns: str) -> bool:
    """Whether the row has all these columns, whatever is in them."""
    return all(column in row for column in columns)


def text(row: Fields, column: str, origin: Origin, *, may_be_empty: bool = False) -> str:
    """The text of a column. Where it may be empty it may be absent too.

    Raises:
        DataError: It is no text.
    """
    value = row.get(column)
    if value is None and may_be_empty:
        return ""
    if not isinstance(value, str) or not (may_be_empty or value.strip()):
        malformed(column, value, "text", origin)
    return value


def texts(row: Fields, column: str, origin: Origin) -> list[str]:
    """The texts of a column that holds a list, without the empty ones.

    Raises:
        DataError: It is no list, or something in it is no text.
    """
    values = row.get(column)
    if not isinstance(values, list):
        malformed(column, values, "a list of texts", origin)
    for value in values:
        if not isinstance(value, str):
            malformed(column, value, "texts", origin)
    return [value for value in values if value.strip()]


def number(value: Any, column: str, origin: Origin, *, largest: float = 1e9) -> float:
    """A number as a float; text that spells one counts.

    Raises:
        DataError: It is none, or its size is above `largest` (nan is).
    """
    try:
        found = float(value) if isinstance(value, int | float | str) and not isinstance(value, bool) else None
    except (ValueError, OverflowError):
        found = None
    if found is None or not abs(found) <= largest:
        malformed(column, value, f"a number of at most {largest:g}", origin)
    return found


def yes_or_no(row: Fields, column: str, origin: Origin) -> bool:
    """The truth value of a column: true or false, 1 or 0, or these as text, as they stand in .csv files.

    Raises:
        DataError: It is neither.
    """
    value = row.get(column)
    if not is_yes_or_no(value):
        malformed(column, value, "true or false", origin)
    return value.strip().lower() in _YES if isinstance(value, str) else bool(value)


def is_yes_or_no(value: Any) -> bool:
    """Whether a value says yes or no.

    >>> is_yes_or_no("False"), is_yes_or_no(0), is_yes_or_no(2)
    (True, True, False)
    """
    if isinstance(value, str):
        return value.strip().lower() in (*_YES, *_NO)
    return isinstance(value, bool) or (isinstance(value, int) and value in (0, 1))


_YES, _NO = ("true", "1"), ("false", "0")


def malformed(column: str, value: Any, expected: str, origin: Origin) -> NoReturn:
    """Refuse a row for what one of its columns holds.

    Raises:
        DataError: Always.
    """
    raise DataError(f"{column}: found {describe(value)}, expected {expected}", where=str(origin))
