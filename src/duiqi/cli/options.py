"""The settings of the commands that are no stage, declared like those of the stages."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass as plain_dataclass
from typing import Any, Literal

from pydantic.dataclasses import dataclass

from duiqi.cli.legacy_options import LEGACY_CONFIGS
from duiqi.cli.looking_options import LOOKING_CONFIGS
from duiqi.cli.making_options import MAKING_CONFIGS, MAKING_DEFAULTS
from duiqi.cli.model_options import (
    DecodingOptions,
    FileOptions,
    ModelToAskOptions,
    PlacementOptions,
    PromptOptions,
)
from duiqi.settings.describe import SettingInfo, describe
from duiqi.settings.groups import GROUP, Count, Positive
from duiqi.settings.stages import STAGE_DEFAULTS, STAGES


@dataclass(frozen=True, kw_only=True, config=GROUP)
class RepeatOptions:
    """Repeats"""

    num_repeats: Positive = 1
    """Answer every row so many times, with seed, seed + 1 ...; metrics are then given with their spread."""


@dataclass(frozen=True, kw_only=True, config=GROUP)
class RewardModelToAskOptions:
    """Model"""

    reward_model: str
    """A reward-model run."""


@dataclass(frozen=True, kw_only=True, config=GROUP)
class ExportOptions:
    """Export"""

    output_dir: str
    """A new or empty directory for the plain model."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Precision of the weights that are written. auto: as the base is stored."""
    max_shard_size: str = "5GB"
    """Size of one file of weights."""
    prompts: str | None = None
    """Rows on whose prompts the result is compared with base and adapters. Default: a few of our own."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps."""


@dataclass(frozen=True, kw_only=True, config=GROUP)
class ReportOptions:
    """Report"""

    runs: tuple[str, ...]
    """The run directories to compare."""
    output: str = "report.html"
    """The page to write (-o for short)."""
    title: str = ""
    """Title of the page. Default: the names of the runs."""


@dataclass(frozen=True, kw_only=True, config=GROUP)
class ExamOptions:
    """Examination"""

    reward_model: str
    """A reward-model run, a sequence classifier with one label, or file.py:function."""
    dataset: str | None = None
    """Rankings to examine on, named as in a stage. Default: those of the run, held-out ones before others."""
    dataset_dir: str | None = None
    """The folder of dataset_info.json and its files. Default: the run's, else data."""
    max_samples: Positive = 200
    """At most this many prompts; probes are made of a hundred of them."""
    seed: Count = 0
    """Seed of the choice of prompts and of the probes."""
    output_dir: str | None = None
    """Where exam.json and exam.html are written. Default: with the reward model, where duiqi ppo looks for them."""
    min_grade: Literal["A", "B", "C", "D", "F"] = "D"
    """The lowest grade that passes; below it the exit status is 3."""
    batch_size: Positive = 16
    """Rows computed at once."""


@dataclass(frozen=True, kw_only=True, config=GROUP)
class DemoOptions:
    """Demo"""

    output_dir: str = "runs/demo"
    """Where the world, the runs, the report and summary.json are written."""
    seed: Count = 0
    """Seed of the world and of every stage."""
    quick: bool = False
    """A few steps per stage: shows that everything works, not that it learns."""


@dataclass(frozen=True, kw_only=True, config=GROUP)
class LabOptions:
    """Laboratory"""

    experiment: Literal["overoptimisation"]
    """What is to be tried."""
    output_dir: str = "runs/lab"
    """Where worlds, runs, lab.json and the page lab.html are written. One that was interrupted is gone on with."""
    seeds: str = "0"
    """Seeds of the worlds, with commas between, or a range: 0-4. Each takes about half an hour of one core."""
    quick: bool = False
    """A few steps per stage: shows that everything works, not what happens."""


@dataclass(frozen=True, kw_only=True, config=GROUP)
class PlanOptions:
    """Plan"""

    json: bool = False
    """Print JSON: sizes in bytes, times in seconds. All other settings are those of the stage: duiqi STAGE --help."""


@plain_dataclass(frozen=True)
class PlanConfig:
    """How a plan is printed."""

    plan: PlanOptions


@plain_dataclass(frozen=True)
class GenerateConfig:
    """Answers to a file of prompts."""

    source: ModelToAskOptions
    files: FileOptions
    prompt: PromptOptions
    decoding: DecodingOptions
    repeats: RepeatOptions
    placement: PlacementOptions


@plain_dataclass(frozen=True)
class ScoreConfig:
    """Scores for a file of answers or pairs."""

    source: RewardModelToAskOptions
    files: FileOptions
    placement: PlacementOptions


@plain_dataclass(frozen=True)
class ChatConfig:
    """A conversation in the terminal."""

    source: ModelToAskOptions
    prompt: PromptOptions
    decoding: DecodingOptions
    placement: PlacementOptions


@plain_dataclass(frozen=True)
class ExportConfig:
    """One plain model from a run and its base."""

    source: ModelToAskOptions
    export: ExportOptions


@plain_dataclass(frozen=True)
class ReportConfig:
    """One page about several runs."""

    report: ReportOptions


@plain_dataclass(frozen=True)
class ExamConfig:
    """An examination of a reward model."""

    exam: ExamOptions
    placement: PlacementOptions


@plain_dataclass(frozen=True)
class DemoConfig:
    """The whole way on the built-in world."""

    demo: DemoOptions


@plain_dataclass(frozen=True)
class LabConfig:
    """An experiment on the built-in world."""

    lab: LabOptions


@plain_dataclass(frozen=True)
class EnvironmentConfig:
    """Versions and hardware: nothing to set."""


def settings_of(command: str) -> list[SettingInfo]:
    """Every setting of a command, with the command's own defaults."""
    return describe(CONFIGS[command], DEFAULTS.get(command, {}))


def words_of(command: str) -> list[SettingInfo]:
    """Every setting that a command line of this command may name: for a plan or a recipe, those of all stages too."""
    if command not in ("plan", "train"):
        return settings_of(command)
    of_stages = {setting.name: setting for stage in STAGES for setting in settings_of(stage)}
    return [*settings_of(command), *of_stages.values()]


CONFIGS: dict[str, type] = {
    **{str(stage): config for stage, config in STAGES.items()},
    "plan": PlanConfig,
    "generate": GenerateConfig,
    "score": ScoreConfig,
    "chat": ChatConfig,
    "export": ExportConfig,
    "report": ReportConfig,
    "exam": ExamConfig,
    "demo": DemoConfig,
    "lab": LabConfig,
    "env": EnvironmentConfig,
    **LOOKING_CONFIGS,
    **LEGACY_CONFIGS,
    **MAKING_CONFIGS,
}

DEFAULTS: dict[str, Mapping[str, Any]] = {
    **{str(stage): defaults for stage, defaults in STAGE_DEFAULTS.items()},
    "chat": {"max_new_tokens": 512, "temperature": 0.7},
    **MAKING_DEFAULTS,
}
"""Where a command's default differs from the group's."""
