"""A file in the making: what it is made of stands beside it, so that the same command goes on and another one may not.

`answers.jsonl` is made in the folder `answers.jsonl.making`, which holds `record.json` (the command, its settings, what
came of it) and whatever the making needs to go on. The file itself appears whole or not at all.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from duiqi.errors import DataError, RunError
from duiqi.journal.files import atomic_write_json, atomic_write_text, writing
from duiqi.journal.lines import encode_line
from duiqi.journal.lock import DirectoryLock
from duiqi.serving.files import new_file

FOLDER = ".making"
RECORD = "record.json"
FAILURES = "failures.jsonl"


@dataclass(frozen=True)
class Place:
    """Where a file is made, held by this process alone."""

    target: Path
    command: str
    settings: Mapping[str, Any]
    is_finished: bool
    """Whether the file is there and whole already."""
    summary: Mapping[str, Any] = field(default_factory=dict)
    """What came of it when the command last ended."""

    @property
    def folder(self) -> Path:
        """What belongs to the file and is no data."""
        return self.target.with_name(self.target.name + FOLDER)

    @property
    def identity(self) -> str:
        """Twelve hexadecimal digits that stand for command and settings."""
        return digest({"command": self.command, "settings": self.settings})[:12]

    def write_rows(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Put the rows at the target, whole or not at all."""
        write_rows(self.target, rows)

    def write_failures(self, failures: Sequence[Mapping[str, Any]]) -> Path | None:
        """List what failed, and give the file; None where nothing did, and no such file is left then."""
        path = self.folder / FAILURES
        if not failures:
            path.unlink(missing_ok=True)
            return None
        atomic_write_text(path, "".join(map(encode_line, failures)))
        return path

    def record(self, summary: Mapping[str, Any], *, is_finished: bool) -> None:
        """Note what came of it so far."""
        record = {"command": self.command, "finished": is_finished, "settings": self.settings, "summary": summary}
        atomic_write_json(self.folder / RECORD, record)


@contextmanager
def making(output_file: str, *, command: str, settings: Mapping[str, Any]) -> Iterator[Place]:
    """The place of a file, for as long as it is made.

    Args:
        command: What makes it: "data sample".
        settings: Whatever changes its contents, in values that JSON knows.

    Raises:
        DataError: The file was made or begun by something else, or by the same command with other settings.
        RunError: Another process is making it, or nothing can be written there.
    """
    target = _checked_name(output_file)
    settings = json.loads(json.dumps(settings))
    place = Place(target, command, settings, is_finished=False)
    before = _read_record(place.folder / RECORD)
    if before or target.exists():
        _refuse_another(place, before)
    with writing(place.folder):
        place.folder.mkdir(parents=True, exist_ok=True)
    lock = _locked(place)
    try:
        is_finished = target.exists() and bool(before.get("finished"))
        if not is_finished:
            place.record({}, is_finished=False)
        yield Place(target, command, settings, is_finished, before.get("summary", {}))
    finally:
        lock.release()


def write_rows(target: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows, whole or not at all: an array where the file is called .json, else a row per line."""
    if target.suffix == ".json":
        atomic_write_text(target, json.dumps(list(rows), ensure_ascii=False, indent=1) + "\n")
    else:
        atomic_write_text(target, "".join(map(encode_line, rows)))


def new_rows_file(output_file: str) -> Path:
    """The path of a new file of rows, its folder made.

    Raises:
        DataError: Something is there already, or duiqi would not read it under this name.
    """
    target = _checked_name(output_file)
    new_file(output_file)
    with writing(target):
        target.parent.mkdir(parents=True, exist_ok=True)
    return target


def digest(value: Any) -> str:
    """The sha256 of a value that JSON knows, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(value, ensure_ascii=True, sort_keys=True).encode()).hexdigest()


def _checked_name(output_file: str) -> Path:
    target = Path(output_file)
    if target.suffix not in (".json", ".jsonl"):
        raise DataError(
            f"found the extension {target.suffix!r}, expected .jsonl or .json",
            where=f"output_file: {output_file}",
            remedy="give it one of these, so that duiqi reads it again",
        )
    return target


def _refuse_another(place: Place, before: Mapping[str, Any]) -> None:
    """Refuse what was made, or begun, by another command or with other settings."""
    where, remedy = str(place.target), "give another --output_file"
    if not before:
        raise DataError("this file is already there", where=where, remedy=remedy)
    remedy += f", or remove {place.folder} and the file to begin anew"
    if before.get("command") != place.command:
        raise DataError(f"this file was begun by `duiqi {before.get('command')}`", where=where, remedy=remedy)
    then, now = before.get("settings", {}), place.settings
    differing = [name for name in {**then, **now} if then.get(name) != now.get(name)]
    if differing:
        told = "; ".join(f"{name} was {_brief(then.get(name))} and is {_brief(now.get(name))}" for name in differing)
        raise DataError(f"this file was begun with other settings: {told}", where=where, remedy=remedy)


def _locked(place: Place) -> DirectoryLock:
    try:
        return DirectoryLock(place.folder)
    except RunError as error:
        if error.where == str(place.folder) and "another process" in error.problem:
            raise RunError(
                error.problem.replace("this run", "this file"),
                where=str(place.target),
                remedy="wait for it or stop it, or give another --output_file",
            ) from None
        raise


def _read_record(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        record = None
    parts = [record.get("settings"), record.get("summary")] if isinstance(record, dict) else [None]
    if not isinstance(record, dict) or not all(isinstance(part, dict) for part in parts):
        raise RunError("this file is damaged", where=str(path), remedy=f"remove {path.parent} and begin anew")
    return record


def _brief(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return repr(text if len(text) <= 40 else text[:37] + "...") if isinstance(value, str) else text
