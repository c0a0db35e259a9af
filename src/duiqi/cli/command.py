"""What the help and the command line know of one command."""

from __future__ import annotations

from dataclasses import dataclass

ANY_SETTINGS = "[setting=value | --setting value] ..."


@dataclass(frozen=True, slots=True)
class Command:
    """One command: how the help presents it and what runs it."""

    summary: str
    group: str
    usage: str
    example: str
    runner: str
    """`module:function`; the function takes the command's name and its parsed arguments."""
