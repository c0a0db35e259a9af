"""The settings of the commands of `duiqi data`, declared like those of the stages."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from duiqi.cli.making_options import MAKING_CONFIGS, MAKING_DEFAULTS

DATA_CONFIGS: dict[str, type] = {**MAKING_CONFIGS}
DATA_DEFAULTS: dict[str, Mapping[str, Any]] = {**MAKING_DEFAULTS}
