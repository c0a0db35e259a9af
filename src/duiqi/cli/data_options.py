"""The settings of the commands of `duiqi data`, declared like those of the stages."""

from __future__ import annotations

from duiqi.cli.looking_options import LOOKING_CONFIGS

DATA_CONFIGS: dict[str, type] = {**LOOKING_CONFIGS}
