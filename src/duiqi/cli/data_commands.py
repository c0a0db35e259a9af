"""The commands of `duiqi data`, their settings and what runs them."""

from __future__ import annotations

from duiqi.cli.command import Command
from duiqi.cli.looking_commands import LOOKING_COMMANDS

DATA_COMMANDS: dict[str, Command] = {**LOOKING_COMMANDS}
