"""Reading files into rows that know their line: .json, .jsonl, .csv, .txt, .parquet, and folders of one of them.

The readers are our own because a message about a row must name the line that an editor shows.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from duiqi.data.hub import read_parquet, stream_parquet
from duiqi.data.json_window import JsonWindow
from duiqi.errors import DataError
from duiqi.journal.files import MIB


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a file, as it was written."""

    fields: dict[str, Any]
    file: str
    line: int
    """1-based line at which the row begins; the row's number in a file without lines."""


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that cannot be used, and why."""

    file: str
    line: int
    reason: str
    row: Any = None
    """What stood there, for rejects.jsonl."""


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A file that was read: its rows and what identifies its contents."""

    path: str
    sha256: str
    rows: tuple[Row | BadRow, ...]


def list_files(path: Path) -> list[Path]:
    """The data files at `path`: the file itself, or everything in a folder, sorted by name.

    Raises:
        DataError: Nothing is there, the extension is unknown, or a folder mixes extensions.
    """
    if not os.path.exists(path):
        raise DataError("no such file or folder", where=str(path), remedy="check the path of the dataset")
    if path.is_file():
        if path.suffix not in READERS:
            raise DataError(
                f"found the extension {path.suffix!r}, expected one of {', '.join(READERS)}",
                where=str(path),
                remedy="convert the file, or rename it if its contents are one of these",
            )
        return [path]
    files = sorted(f for f in path.iterdir() if f.is_file() and not f.name.startswith("."))
    readable = Counter(f.suffix for f in files if f.suffix in READERS)
    if not readable:
        raise DataError(f"the folder holds no file of {', '.join(READERS)}", where=str(path))
    common = readable.most_common(1)[0][0]
    for file in files:
        if file.suffix != common:
            raise DataError(
                f"found {file.name} among {common} files, expected one kind of file in a folder",
                where=str(path),
                remedy="move it elsewhere, or convert it",
            )
    return files


def read_file(path: Path) -> SourceFile:
    """All rows of one file, good and bad, and the sha256 of its bytes.

    Raises:
        DataError: The file cannot be read, is not UTF-8, is empty, or is broken beyond telling its rows apart.
    """
    with _opened(path) as file:
        hashed = _HashedFile(file)
        buffered = io.BufferedReader(hashed, buffer_size=MIB)
        rows = tuple(READERS[path.suffix](path, buffered))
        while buffered.read(MIB):  # what the reader did not need
            pass
    if not rows:
        raise DataError("found no rows, expected at least one", where=str(path))
    return SourceFile(str(path), hashed.digest.hexdigest(), rows)


def stream_file(path: Path) -> Iterator[Row | BadRow]:
    """The rows of one file as they are read; no more of the file is held than a row needs.

    Raises:
        DataError: As `read_file`, when the place is reached.
    """
    with _opened(path) as file:
        yield from STREAMING_READERS[path.suffix](path, io.BufferedReader(file, buffer_size=MIB))


@contextmanager
def _opened(path: Path) -> Iterator[io.FileIO]:
    try:
        with io.FileIO(path) as file:
            yield file
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror}", where=str(path), remedy="check its permissions") from error


class _HashedFile(io.RawIOBase):
    """A file that notes the checksum of what is read of it."""

    def __init__(self, file: io.FileIO) -> None:
        self._file, self.digest = file, hashlib.sha256()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        count = self._file.readinto(buffer)
        self.digest.update(memoryview(buffer)[:count])
        return count


def _read_json(path: Path, opened: BinaryIO) -> Iterator[Row | BadRow]:
    """Rows of a JSON array, or of JSON objects one after the other (JSON lines under the name .json)."""
    text, file = decode(path, opened.read()), str(path)
    try:
        for value, line in _json_values(text):
            yield _as_row(value, file, line)
    except json.JSONDecodeError as error:
        raise DataError(
            f"the JSON breaks off at column {error.colno}: {error.msg}",
            where=f"{file}:{error.lineno}",
            remedy="mend the file at that place",
        ) from None
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, brackets thousands deep
        raise DataError(f"the JSON cannot be read: {error}", where=file, remedy="mend the file") from None


def _json_values(text: str) -> Iterator[tuple[Any, int]]:
    """The values of an array (or the values one after the other), each with the line at which it begins."""
    decoder = json.JSONDecoder()
    position = _skip_space(text, 0)
    line = 1 + text.count("\n", 0, position)
    in_array = text.startswith("[", position)
    if in_array:
        inside = _skip_space(text, position + 1)
        line += text.count("\n", position, inside)
        position = inside
        if text.startswith("]", position):
            return
    while position < len(text) or in_array:
        value, end = decoder.raw_decode(text, position)
        yield value, line
        following = _skip_space(text, end)
        if in_array and text.startswith("]", following):
            if _skip_space(text, following + 1) < len(text):
                raise json.JSONDecodeError("Found more after the end of the array", text, following + 1)
            return
        if in_array:
            if not text.startswith(",", following):
                raise json.JSONDecodeError("Expected ',' or ']' after a row", text, following)
            following = _skip_space(text, following + 1)
        line += text.count("\n", position, following)
        position = following


def _skip_space(text: str, position: int) -> int:
    while position < len(text) and text[position] in " \t\r\n":
        position += 1
    return position


def _stream_json(path: Path, opened: BinaryIO) -> Iterator[Row | BadRow]:
    """As `_read_json`, with no more in memory than a row and what was read with it."""
    window = JsonWindow(path, opened)
    in_array = window.peek() == "["
    if in_array:
        window.skip()
    is_next = window.peek() not in ("", "]")
    while is_next:
        line = window.line
        yield _as_row(window.value(), str(path), line)
        is_next = window.peek() == "," if in_array else window.peek() != ""
        if in_array and is_next:
            window.skip()
            window.peek()
    if in_array:
        if window.peek() != "]":
            raise window.broken("Expected ',' or ']' after a row")
        window.skip()
        if window.peek():
            raise window.broken("Found more after the end of the array")


def _read_jsonl(path: Path, opened: BinaryIO) -> Iterator[Row | BadRow]:
    file = str(path)
    for line, text in enumerate(_lines(path, opened), start=1):
        text = text.removesuffix("\n")
        if not text.strip():
            continue
        try:
            value = json.loads(text)
        except json.JSONDecodeError as error:
            yield BadRow(file, line, f"not valid JSON at column {error.colno}: {error.msg}", text)
        except (ValueError, RecursionError) as error:
            yield BadRow(file, line, f"this JSON cannot be read: {error}", text)
        else:
            yield _as_row(value, file, line)


def _as_row(value: Any, file: str, line: int) -> Row | BadRow:
    if isinstance(value, dict):
        return Row(value, file, line)
    return BadRow(file, line, f"found {describe(value)}, expected an object with named columns", value)


def _read_csv(path: Path, opened: BinaryIO) -> Iterator[Row | BadRow]:
    file = str(path)
    lines = (part for text in _lines(path, opened) for part in io.StringIO(text, newline=""))  # a lone CR ends one too
    reader = csv.reader(lines, strict=True)
    header: list[str] = []
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise DataError(f"not valid CSV: {error}", where=f"{file}:{line}", remedy="check the quotes") from None
        if not cells:
            continue
        if not header:
            header = cells
        elif len(cells) != len(header):
            yield BadRow(file, line, f"found {len(cells)} cells, expected {len(header)} as in the header", cells)
        else:
            yield Row(dict(zip(header, cells, strict=True)), file, line)


def _read_txt(path: Path, opened: BinaryIO) -> Iterator[Row | BadRow]:
    for line, text in enumerate(_lines(path, opened), start=1):
        if text.strip():
            yield Row({"text": text.removesuffix("\n").rstrip("\r")}, str(path), line)


def _read_parquet(path: Path, _opened: BinaryIO) -> Iterator[Row | BadRow]:
    for number, fields in enumerate(read_parquet(path), start=1):
        yield Row(fields, str(path), number)


def _stream_parquet(path: Path, _opened: BinaryIO) -> Iterator[Row | BadRow]:
    for number, fields in enumerate(stream_parquet(path), start=1):
        yield Row(fields, str(path), number)


def _lines(path: Path, opened: BinaryIO) -> Iterator[str]:
    """The lines of a file with their ends: line feeds alone, for a JSON string may hold U+2028 and its kin."""
    before = 0
    for number, line in enumerate(opened, start=1):
        yield decode(path, line, line=number, before=before)
        before += len(line)


def decode(path: Path, contents: bytes, *, line: int = 1, before: int = 0) -> str:
    """The text of a file's bytes, without a byte order mark.

    Args:
        line: The line of the file at which they begin.
        before: How many bytes of the file stand before them.

    Raises:
        DataError: They are not UTF-8; the position of the first wrong byte is named.
    """
    try:
        return contents.decode("utf-8" if before else "utf-8-sig")
    except UnicodeDecodeError as error:
        line += contents.count(b"\n", 0, error.start)
        raise DataError(
            f"found byte 0x{contents[error.start]:02x} at position {before + error.start}, expected UTF-8",
            where=f"{path}:{line}",
            remedy=f"convert it first, for example: iconv -f GB18030 -t UTF-8 {path.name}",
        ) from None


def describe(value: Any) -> str:
    """What a value is, in the words of an error message.

    >>> describe(["a", "b"]), describe("a long story of many words, told again and again")
    ('a list of 2', "text 'a long story of many words, tol...'")
    """
    match value:
        case None:
            return "nothing"
        case bool() | int() | float():
            return f"the value {value!r}"
        case str():
            return f"text {value if len(value) <= 35 else value[:32] + '...'!r}" if value.strip() else "empty text"
        case list():
            return f"a list of {len(value)}"
        case dict():
            return f"an object with {', '.join(map(str, value)) or 'no columns'}"
        case _:
            return f"a {type(value).__name__}"


READERS: dict[str, Callable[[Path, BinaryIO], Iterator[Row | BadRow]]] = {
    ".json": _read_json,
    ".jsonl": _read_jsonl,
    ".csv": _read_csv,
    ".txt": _read_txt,
    ".parquet": _read_parquet,
}
STREAMING_READERS = {**READERS, ".json": _stream_json, ".parquet": _stream_parquet}
"""Those that hold no more of a file than a row needs."""
