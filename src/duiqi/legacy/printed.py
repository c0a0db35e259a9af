"""A translation as a person reads it: a table, what differs, the command to type."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Iterator, Sequence

from duiqi.legacy.dialect import Line, Old
from duiqi.legacy.translation import Translation

_UNSAID = "(not said)"
_NOTHING = "-"
_DEFAULT = "its default there"


def translation_lines(translation: Translation, *, strict: bool = True) -> list[str]:
    """The table of a translation with everything below it, fitted to the terminal."""
    width = max(60, min(shutil.get_terminal_size((110, 24)).columns, 120))
    rows = [_row(line, translation) for line in translation.lines]
    rows += [(_said(t.flags, translation), "refused" if strict else "left out", t.reason) for t in translation.troubles]
    lines = [f"{translation.tool} -> duiqi {translation.command}", "", *_table(rows, width)]
    for remark in translation.remarks:
        lines += ["", *textwrap.wrap(f"note: {remark}", width, subsequent_indent="      ")]
    if not translation.old.is_inline:
        lines += ["", "the same in duiqi's words:", f"  {translation.line}"]
    return [*lines, ""]


def _row(line: Line, translation: Translation) -> tuple[str, str, str]:
    new = f"{line.setting}: {_visible(line.value)}" if line.setting else _NOTHING
    return _said(line.flags, translation), new, line.note or ("" if line.flags else _DEFAULT)


def _said(flags: Sequence[str], translation: Translation) -> str:
    """Old flags as they were given.

    Those that a line speaks of although nobody gave them are left out.
    """
    given = [_as_said(flag, translation.old) for flag in flags if flag in translation.old.said]
    return " ".join(given) if given else _UNSAID


def _as_said(flag: str, old: Old) -> str:
    value = old.said[flag]
    if flag in old.places:
        return f"{flag}: {_visible(value)}"
    return f"--{flag}" if value == "true" else f"--{flag} {_visible(value)}"


def _visible(value: str) -> str:
    """A value as a reader sees it: one of nothing or white space in quotes."""
    return value if value.strip() else f"'{value}'"


def _table(rows: Sequence[tuple[str, str, str]], width: int) -> Iterator[str]:
    """Three columns; the last takes what is left, the first two at most a third each."""
    header = ("old", "new", "note")
    third = width // 3
    sizes = [min(third, max(len(row[column]) for row in (header, *rows))) for column in range(2)]
    rest = max(20, width - sum(sizes) - 4)
    for row in (header, *rows):
        cells = [
            textwrap.wrap(text, size, break_on_hyphens=False) or [""]
            for text, size in zip(row, (*sizes, rest), strict=True)
        ]
        for place in range(max(map(len, cells))):
            parts = [cell[place] if place < len(cell) else "" for cell in cells]
            yield f"{parts[0]:<{sizes[0]}}  {parts[1]:<{sizes[1]}}  {parts[2]}".rstrip()
        if row is header:
            yield "-" * (
                sum(sizes) + 4 + max(4, max((len(each[2]) for each in rows), default=0) if rest > 60 else rest)
            )
