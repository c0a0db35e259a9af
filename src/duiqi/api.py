"""Training from Python: the same stages and settings as on the command line."""

from __future__ import annotations

from typing import Any

from duiqi.settings.resolve import resolve
from duiqi.settings.stages import StageName
from duiqi.types import StageResult


def run(stage: StageName, **settings: Any) -> StageResult:
    """Train one stage: `run("sft", model_name_or_path="...", dataset="...", output_dir="...")`.

    Args:
        stage: pretrain, sft, rm, dpo or ppo.
        settings: The stage's settings, under the names that `duiqi STAGE --help` lists.

    Raises:
        SettingsError: A setting is unknown, missing, of the wrong type or without effect.
    """
    config = resolve(stage, values=settings)

    from duiqi.stages.launch import run as launch

    return launch(stage, config)
