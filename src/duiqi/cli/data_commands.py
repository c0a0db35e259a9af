"""The commands of `duiqi data`, their settings and what runs them."""

from __future__ import annotations

from duiqi.cli.command import Command
from duiqi.cli.making_commands import MAKING_COMMANDS

DATA_COMMANDS: dict[str, Command] = {**MAKING_COMMANDS}
