"""`duiqi data fill`: names in the place of [NAME], <AUTHOR> and the like, in every text of a file."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from duiqi.curation.place import new_rows_file, write_rows
from duiqi.curation.texts import with_every_text
from duiqi.data.reading import BadRow, list_files, read_file
from duiqi.errors import DataError, SettingsError

_PLACEHOLDER = re.compile(r"\[([A-Z][A-Z_]+)\]|<([A-Z][A-Z_]+)>|\{\{\s*([A-Za-z][A-Za-z_]+)\s*\}\}")


@dataclass(frozen=True, slots=True)
class FillReport:
    """What was put where."""

    rows: int
    filled: Counter[str]
    left: Counter[str]
    """What looks like a placeholder, was not given, and stays: [INST] is one of a template."""

    def lines(self) -> list[str]:
        """Plain sentences for the terminal."""
        lines = [f"{self.rows} rows; filled: {_told(self.filled)}"]
        return lines + ([f"left as they are: {_told(self.left)}"] if self.left else [])


_PERSONAL = "NAME AUTHOR DATE MODEL COMPANY TEAM DEVELOPER CREATOR OWNER ORGANIZATION ORGANISATION EMAIL BIRTHDAY"
PERSONAL = frozenset(_PERSONAL.split())
"""Placeholders of self-descriptions. A model must never learn to say these words, so one that is left is an error."""


def parse_fill(text: str) -> dict[str, str]:
    """Read names and what they stand for.

    >>> parse_fill("NAME=小对, AUTHOR=a team in Hangzhou")
    {'NAME': '小对', 'AUTHOR': 'a team in Hangzhou'}

    Raises:
        SettingsError: A part has no name or no `=`.
    """
    fill: dict[str, str] = {}
    for part in re.split(r",(?=\s*[A-Za-z_]+\s*=)", text):
        name, equals, value = part.partition("=")
        name = name.strip().upper()
        if not equals or not re.fullmatch(r"[A-Z][A-Z_]+", name):
            raise SettingsError(
                f"{part.strip()!r} names no placeholder", where="fill", remedy="write NAME=小对,AUTHOR=我们"
            )
        if name in fill:
            raise SettingsError(f"{name} is given twice", where="fill")
        fill[name] = value.strip()
    return fill


def fill_file(file: str, output_file: str, *, fill: str) -> FillReport:
    """Fill the placeholders [NAME], <NAME> and {{NAME}} of every row; everything else stays.

    Args:
        fill: What they stand for, as `parse_fill` reads it.

    Raises:
        SettingsError: `fill` cannot be read.
        DataError: The file cannot be read, a placeholder of `PERSONAL` in it is not given, or one that is given is not
            in it.
    """
    names = parse_fill(fill)
    target = new_rows_file(output_file)
    filled: Counter[str] = Counter()
    left: Counter[str] = Counter()
    unknown: dict[str, str] = {}
    where = ""

    def put(found: re.Match[str]) -> str:
        name = next(group for group in found.groups() if group).upper()
        if name in names:
            filled[name] += 1
            return names[name]
        left[found[0]] += 1
        if name in PERSONAL:
            unknown.setdefault(name, f"{found[0]} at {where}")
        return found[0]

    rows = []
    for path in list_files(Path(file)):
        for row in read_file(path).rows:
            where = f"{row.file}:{row.line}"
            if isinstance(row, BadRow):
                raise DataError(row.reason, where=where, remedy="mend it, or remove the row")
            rows.append(with_every_text(row.fields, lambda text: _PLACEHOLDER.sub(put, text)))
    if unknown:
        raise DataError(
            f"nothing is given for {'; '.join(unknown.values())}",
            where=f"fill: {file}",
            remedy=f"add {','.join(f'{name}=...' for name in unknown)}",
        )
    if missing := [name for name in names if not filled[name]]:
        absent = " and ".join(missing)
        raise DataError(f"{absent} stands nowhere in the file", where=f"fill: {file}", remedy="remove it")
    write_rows(target, rows)
    return FillReport(len(rows), filled, left)


def _told(counts: Counter[str]) -> str:
    return ", ".join(f"{name} ×{count}" for name, count in sorted(counts.items()))
