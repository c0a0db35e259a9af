"""JSON lines: one record per line, appended as it happens, readable after a kill in mid-line."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from duiqi.errors import RunError
from duiqi.journal.files import atomic_write_text, jsonable, writing


def encode_line(row: Mapping[str, Any]) -> str:
    """One record as one line of valid JSON, Chinese left readable.

    >>> encode_line({"step": 1, "loss": float("inf")})
    '{"step": 1, "loss": "inf"}\\n'
    """
    return json.dumps(jsonable(row), ensure_ascii=False, allow_nan=False) + "\n"


def read_lines(path: Path) -> list[dict[str, Any]]:
    """All records of a file; none when there is no file. A last line cut short by a kill is left out.

    Raises:
        RunError: a line before the last is not a JSON object.
    """
    if not path.exists():
        return []
    rows: list[dict[str, Any]] = []
    lines = path.read_bytes().split(b"\n")  # not splitlines: a model may well write U+2028
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            if not isinstance(row, dict):
                raise ValueError("not an object")
            rows.append(row)
        except (ValueError, RecursionError) as error:
            if number == len(lines):
                break
            raise RunError(
                "this line is not JSON", where=f"{path}:{number}", remedy="remove the line, or restore the file"
            ) from error
    return rows


class JsonLines:
    """A file of JSON lines open for appending; every line reaches the operating system before `append` returns."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._open()

    def append(self, row: Mapping[str, Any]) -> None:
        """Add one record."""
        with writing(self.path):
            self._file.write(encode_line(row))
            self._file.flush()

    def drop_after(self, step: int) -> int:
        """Remove the records of later steps, atomically. Returns how many there were."""
        self.close()
        rows = read_lines(self.path)
        kept = [row for row in rows if row.get("step", 0) <= step]
        if len(kept) < len(rows):
            atomic_write_text(self.path, "".join(map(encode_line, kept)))
        self._open()
        return len(rows) - len(kept)

    def close(self) -> None:
        """Close the file; closing twice is harmless."""
        with writing(self.path):
            self._file.close()

    def _open(self) -> None:
        with writing(self.path):
            _cut_unfinished_line(self.path)
            self._file = self.path.open("a", encoding="utf-8", errors="backslashreplace", newline="\n")


def _cut_unfinished_line(path: Path) -> None:
    """Without this, the first line after a kill would be glued to the half line before it."""
    if not path.exists():
        return
    content = path.read_bytes()
    complete = content.rfind(b"\n") + 1
    if complete < len(content):
        with path.open("rb+") as file:
            file.truncate(complete)
