"""The checksums of a checkpoint's files, kept among them: whether it is still what was written can be told at any time.

They tell damage and mix-ups. They are no signature: who can write a file can write its checksum too.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection
from pathlib import Path, PurePosixPath
from typing import Annotated

from annotated_types import Ge
from pydantic import TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

CHECKSUMS = "checksums.json"
_DRIVE = re.compile("[A-Za-z]:$")


@dataclass(frozen=True)
class FileSum:
    """What a file was when it was written."""

    sha256: str
    bytes: Annotated[int, Ge(0)]


_SUMS = TypeAdapter(dict[str, FileSum])


def write_checksums(directory: Path) -> None:
    """Note size and sha256 of every file in `directory`, as it is on disk now."""
    files = sorted(path for path in directory.rglob("*") if path.is_file() and path.name != CHECKSUMS)
    sums = {
        path.relative_to(directory).as_posix(): {"sha256": _sha256(path), "bytes": path.stat().st_size}
        for path in files
    }
    (directory / CHECKSUMS).write_text(json.dumps(sums, ensure_ascii=False, indent=1), encoding="utf-8")


def find_damage(directory: Path, *, but: Collection[str] = ()) -> str | None:
    """How the files of `directory` differ from what was written there, as the end of a sentence; None: in nothing.

    Files that came later are not looked at.

    Args:
        but: Names of files that are not read now.
    """
    try:
        sums = _SUMS.validate_json((directory / CHECKSUMS).read_bytes())
    except FileNotFoundError:
        return f"{CHECKSUMS} is missing"
    except (OSError, ValidationError) as error:
        return f"{CHECKSUMS} cannot be read ({str(error).splitlines()[0]})"
    for name, written in sums.items():
        if name in but:
            continue
        if not is_inside(name):
            return f"{CHECKSUMS} names {name!r}, which is no file in it"
        path = directory / name
        try:
            size = path.stat().st_size
            if size != written.bytes:
                return f"{name} has {size} bytes, {written.bytes} were written"
            if _sha256(path) != written.sha256:
                return f"the contents of {name} have changed since they were written"
        except FileNotFoundError:
            return f"{name} is missing"
        except (OSError, ValueError) as error:
            return f"{name!r} cannot be read ({error})"
    return None


def is_inside(name: str) -> bool:
    """Whether a relative path stays in the directory that it begins in.

    >>> [is_inside(name) for name in ("rows.json", "zh/rows.json", "../rows.json", "a/../../rows.json", "/etc/passwd")]
    [True, True, False, False, False]
    """
    parts = PurePosixPath(name.replace("\\", "/")).parts
    return bool(parts) and parts[0] != "/" and ".." not in parts and not _DRIVE.match(parts[0])


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
