"""Writing files so that a killed process leaves the old one or the new one, never half of either."""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from duiqi.errors import DuiqiError, RunError

MIB = 1024 * 1024

_REFUSALS = {
    errno.ENOSPC: ("no space is left on this disk", "free some space, or set output_dir on another disk"),
    errno.EDQUOT: ("your disk quota is used up", "free some space, or set output_dir on another disk"),
    errno.EACCES: ("no permission to write here", "set output_dir to a directory you own"),
    errno.EPERM: ("no permission to write here", "set output_dir to a directory you own"),
    errno.EROFS: ("this file system is read-only", "set output_dir on a disk that can be written"),
    errno.EEXIST: ("a file is in the way of this directory", "move the file, or set another output_dir"),
    errno.ENOTDIR: ("a file is in the way of this directory", "move the file, or set another output_dir"),
    errno.ENAMETOOLONG: ("this name is longer than the file system takes", "set output_dir to a shorter path"),
    errno.EFBIG: (
        "this file would be larger than is allowed here",
        "raise the limit (`ulimit -f`), or write elsewhere",
    ),
    errno.EIO: ("the disk reports an error", "look after the disk, or set output_dir on another one"),
}
_OS_ERROR = re.compile(r"\(os error (\d+)\)")


@contextlib.contextmanager
def writing(place: Path) -> Iterator[None]:
    """Turn the operating system's refusals (full disk, no permission, ...) into a message that can be acted on.

    Raises:
        RunError: `place` cannot be written, for a reason the user can mend.
    """
    try:
        yield
    except Exception as refusal:
        number = _number_of(refusal)
        if number not in _REFUSALS:
            raise
        problem, remedy = _REFUSALS[number]
        raise RunError(problem, where=str(place), remedy=remedy) from refusal


def _number_of(error: Exception) -> int | None:
    """The system's number of an error. Libraries written in Rust (safetensors, tokenizers) tell it in words only."""
    if isinstance(error, OSError):
        return error.errno
    found = None if isinstance(error, DuiqiError) else _OS_ERROR.search(str(error))
    return int(found[1]) if found else None


def check_free_space(directory: Path, num_bytes: int) -> None:
    """Refuse to begin what the disk cannot hold.

    Raises:
        RunError: fewer than `num_bytes` are free where `directory` lies.
    """
    free = shutil.disk_usage(directory).free
    if free < num_bytes:
        raise RunError(
            f"{free // MIB} MiB are free on this disk, {math.ceil(num_bytes / MIB)} MiB are needed",
            where=str(directory),
            remedy="free some space, or set output_dir on another disk",
        )


def atomic_write_text(path: Path, text: str) -> None:
    """Put `text` at `path` as UTF-8: complete and on disk, or not at all."""
    draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with writing(path):
        try:
            # A lone surrogate (half an emoji in somebody's JSON) has no UTF-8; its escape is valid in JSON.
            with draft.open("w", encoding="utf-8", errors="backslashreplace", newline="\n") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            os.replace(draft, path)
        finally:
            draft.unlink(missing_ok=True)


def atomic_write_json(path: Path, value: Any) -> None:
    """Put `value` at `path` as indented JSON, complete or not at all."""
    atomic_write_text(path, json.dumps(jsonable(value), ensure_ascii=False, allow_nan=False, indent=2) + "\n")


def jsonable(value: Any) -> Any:
    """The same value in what JSON knows: numbers that are not finite become the words "nan", "inf" and "-inf".

    >>> jsonable({"loss": float("nan"), "parts": (1, float("-inf"))})
    {'loss': 'nan', 'parts': [1, '-inf']}
    """
    if isinstance(value, float) and not math.isfinite(value):
        return str(float(value))
    if isinstance(value, Mapping):
        return {str(key): jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [jsonable(item) for item in value]
    return str(value) if isinstance(value, Path) else value
