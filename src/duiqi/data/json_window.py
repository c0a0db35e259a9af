"""A JSON text of any length, value by value, with no more of it in memory than one value needs."""

from __future__ import annotations

import codecs
import json
from pathlib import Path
from typing import Any, BinaryIO

from duiqi.errors import DataError
from duiqi.journal.files import MIB

LONGEST_VALUE = 64 * MIB
"""In characters: what does not end within so many is taken for broken."""
SPACE = " \t\r\n"


class JsonWindow:
    """The part of a file that is looked at.

    Args:
        path: Named in messages.
        opened: The file.
    """

    def __init__(self, path: Path, opened: BinaryIO) -> None:
        self._path, self._opened = path, opened
        self._incoming = codecs.getincrementaldecoder("utf-8-sig")()
        self._decoder = json.JSONDecoder()
        self._text, self._place = "", 0
        self.line = 1
        """1-based, of the next character."""

    def peek(self) -> str:
        """The next character that is no space; empty at the end of the file."""
        while True:
            while self._place < len(self._text) and self._text[self._place] in SPACE:
                self.line += self._text[self._place] == "\n"
                self._place += 1
            if self._place < len(self._text) or not self._read_on():
                return self._text[self._place : self._place + 1]

    def skip(self) -> None:
        """Pass over the character that `peek` gave."""
        self._place += 1

    def value(self) -> Any:
        """The value that begins here.

        Raises:
            DataError: There is none, or it does not end.
        """
        while True:
            try:
                value, end = self._decoder.raw_decode(self._text, self._place)
            except json.JSONDecodeError as error:
                if len(self._text) - self._place < LONGEST_VALUE and self._read_on():
                    continue
                raise self.broken(f"the JSON of this row breaks off: {error.msg}") from None
            except (ValueError, RecursionError) as error:
                raise self.broken(f"the JSON cannot be read: {error}") from None
            if isinstance(value, int | float) and len(self._text) - end < len("e+1") and self._read_on():
                continue  # the number may go on
            self.line += self._text.count("\n", self._place, end)
            self._place = end
            return value

    def broken(self, problem: str) -> DataError:
        """What is wrong at this place."""
        return DataError(problem, where=f"{self._path}:{self.line}", remedy="mend the file at that place")

    def _read_on(self) -> bool:
        """Read more of the file, and forget what was passed; whether there was more."""
        more = self._opened.read(MIB)
        try:
            text = self._incoming.decode(more, final=not more)
        except UnicodeDecodeError as error:
            raise DataError(
                f"found byte 0x{error.object[error.start]:02x} behind this line, expected UTF-8",
                where=f"{self._path}:{self.line}",
                remedy=f"convert it first, for example: iconv -f GB18030 -t UTF-8 {self._path.name}",
            ) from None
        self._text, self._place = self._text[self._place :] + text, 0
        return bool(more)
