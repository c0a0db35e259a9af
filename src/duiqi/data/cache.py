"""Prepared rows on disk, so that a run with the same data begins at once: whole or absent, and never out of date.

An entry is a folder named after its key: arrays to be mapped into memory, a JSON file of facts, and the checksums of
both. It is written elsewhere and renamed, so that processes that prepare the same rows at once do not disturb each
other: the last one stays, and all are alike.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy

from duiqi.data.compact import Columns
from duiqi.journal.checksums import find_damage, write_checksums
from duiqi.journal.files import MIB, jsonable

LARGEST_BYTES = 20 * 1024 * MIB
"""What all entries together may take: the ones unused for longest make room for a new one."""
DRAFT_SECONDS = 24 * 3600
"""After so long an unfinished entry is that of a process that was killed."""
FACTS = "facts.json"


@dataclass(frozen=True)
class Entry:
    """What was kept under a key."""

    parts: dict[str, dict[str, Any]]
    """The columns of each part, mapped from their files."""
    facts: Any
    place: Path


ATTEMPTS = 100
"""To put an entry into its place while others do the same."""
_ENTRY = re.compile(r"[0-9a-f]{64}")
"""How an entry's folder is named; the user may have named a folder for the cache that holds other things too."""
_DRAFT = re.compile(r"\.[0-9a-f]{64}\..+")


class RowCache:
    """The entries in one folder."""

    def __init__(self, home: Path) -> None:
        self._home = home

    def place(self, key: str) -> Path:
        """The folder of an entry."""
        return self._home / key

    def find(self, key: str) -> tuple[Entry | None, str]:
        """The entry of a key, and what is wrong with it where it is there and cannot be used."""
        place = self.place(key)
        if not place.is_dir():
            return None, ""
        try:
            damage = find_damage(place)
            if damage is None:
                entry = _open(place)
                os.utime(place)
                return entry, ""
        except (OSError, ValueError) as error:  # damaged, or replaced by another process at this moment
            damage = str(error)
        return None, f"the rows kept in {place} are damaged ({damage}): they are prepared anew"

    def keep(self, key: str, parts: Mapping[str, Columns], facts: object) -> str:
        """Put an entry there, in place of another of its key.

        Returns:
            Why it could not be kept; empty when it was.
        """
        place, draft = self.place(key), None
        try:
            self._home.mkdir(parents=True, exist_ok=True)
            draft = Path(tempfile.mkdtemp(prefix=f".{key}.", dir=self._home))
            _write(draft, parts, facts)
            _replace(place, draft)
            self._make_room(but=place)
        except OSError as refusal:
            return f"the prepared rows cannot be kept in {self._home} ({refusal.strerror or refusal})"
        finally:
            if draft is not None:
                shutil.rmtree(draft, ignore_errors=True)
        return ""

    def _make_room(self, *, but: Path) -> None:
        """Remove what is unused for longest, and what killed processes left; never what others keep in the folder."""
        folders = [(_last_use(path), path) for path in self._home.iterdir() if path.is_dir() and path != but]
        total = _size(but)
        for used, path in sorted(folders, reverse=True):
            if _DRAFT.fullmatch(path.name) and used < time.time() - DRAFT_SECONDS:
                shutil.rmtree(path, ignore_errors=True)
            if not _ENTRY.fullmatch(path.name):
                continue
            total += _size(path)
            if total > LARGEST_BYTES:
                shutil.rmtree(path, ignore_errors=True)


def cache_home() -> Path:
    """Where duiqi keeps what it can make again: the user's cache directory."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "duiqi"


def _write(draft: Path, parts: Mapping[str, Columns], facts: object) -> None:
    for part, columns in parts.items():
        for name, values in columns.items():
            numpy.save(draft / f"{part}.{name}.npy", values, allow_pickle=False)
    (draft / FACTS).write_text(json.dumps(jsonable(facts), ensure_ascii=False), encoding="utf-8")
    write_checksums(draft)


def _open(place: Path) -> Entry:
    parts: dict[str, dict[str, Any]] = {}
    for path in sorted(place.glob("*.npy")):
        part, name = path.stem.split(".")
        parts.setdefault(part, {})[name] = numpy.load(path, mmap_mode="r", allow_pickle=False)
    if not parts:
        raise FileNotFoundError("its rows are gone")
    return Entry(parts, json.loads((place / FACTS).read_bytes()), place)


def _replace(place: Path, draft: Path) -> None:
    """Rename a draft to its place; an entry that is there goes. Where another process is quicker, its entry stays."""
    aside = draft.with_name(f"{draft.name}.old")
    with contextlib.suppress(FileNotFoundError):
        os.rename(place, aside)
    try:
        for attempts_left in reversed(range(ATTEMPTS)):
            try:
                os.rename(draft, place)
                return
            except OSError:
                if place.is_dir():
                    return
                if not attempts_left:  # it was not another process, which moves its own entry aside for a moment
                    raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _last_use(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:  # another process removed it
        return 0.0


def _size(path: Path) -> int:
    total = 0
    with contextlib.suppress(OSError):  # another process may remove it meanwhile
        for file in path.glob("*"):
            with contextlib.suppress(OSError):
                total += file.stat().st_size
    return total
