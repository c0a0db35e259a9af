"""The settings of the commands of `duiqi data`, declared like those of the stages."""

from __future__ import annotations

DATA_CONFIGS: dict[str, type] = {}
