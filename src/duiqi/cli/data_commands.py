"""The commands of `duiqi data`, their settings and what runs them."""

from __future__ import annotations

from duiqi.cli.command import Command

DATA_COMMANDS: dict[str, Command] = {}
