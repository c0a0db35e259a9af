"""A progress bar on terminals, nothing elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import track

Item = TypeVar("Item")


def tracked(items: Iterable[Item], *, total: int, what: str) -> Iterator[Item]:
    """The same items, with a bar on standard error while they pass."""
    if not sys.stderr.isatty():
        yield from items
        return
    yield from track(items, description=what, total=total, console=Console(stderr=True))
