"""Which groups of settings each stage has, and where its defaults differ."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from duiqi.settings.groups import (
    AnswerSettings,
    BatchSettings,
    CacheSettings,
    DataSettings,
    HistorySettings,
    ModelSettings,
    OptimizerSettings,
    PPOSettings,
    PreferenceSettings,
    PromptSettings,
    ReferenceSettings,
    ReuseSettings,
    RewardModelSettings,
    RolloutSettings,
    RunSettings,
    SamplingSettings,
    ScoreSettings,
    ScratchSettings,
    StreamSettings,
    TuningSettings,
    WatchSettings,
)

StageName = Literal["pretrain", "sft", "rm", "dpo", "ppo"]


@dataclass(frozen=True)
class PretrainConfig:
    """Continued pretraining, or pretraining from scratch, on plain text."""

    model: ModelSettings
    scratch: ScratchSettings
    tuning: TuningSettings
    data: DataSettings
    cache: CacheSettings
    stream: StreamSettings
    optimizer: OptimizerSettings
    batch: BatchSettings
    run: RunSettings


@dataclass(frozen=True)
class SFTConfig:
    """Supervised fine-tuning on demonstrations."""

    model: ModelSettings
    tuning: TuningSettings
    data: DataSettings
    cache: CacheSettings
    stream: StreamSettings
    prompt: PromptSettings
    answer: AnswerSettings
    history: HistorySettings
    optimizer: OptimizerSettings
    batch: BatchSettings
    run: RunSettings


@dataclass(frozen=True)
class RewardModelConfig:
    """A reward model from ranked answers."""

    model: ModelSettings
    tuning: TuningSettings
    data: DataSettings
    cache: CacheSettings
    prompt: PromptSettings
    answer: AnswerSettings
    reward: RewardModelSettings
    optimizer: OptimizerSettings
    batch: BatchSettings
    run: RunSettings


@dataclass(frozen=True)
class DPOConfig:
    """Direct preference optimisation and its kin."""

    model: ModelSettings
    tuning: TuningSettings
    data: DataSettings
    cache: CacheSettings
    prompt: PromptSettings
    answer: AnswerSettings
    preference: PreferenceSettings
    reference: ReferenceSettings
    memory: ReuseSettings
    watch: WatchSettings
    optimizer: OptimizerSettings
    batch: BatchSettings
    run: RunSettings


@dataclass(frozen=True)
class PPOConfig:
    """Proximal policy optimisation with one base and four roles."""

    model: ModelSettings
    tuning: TuningSettings
    data: DataSettings
    prompt: PromptSettings
    score: ScoreSettings
    reference: ReferenceSettings
    sampling: SamplingSettings
    rollouts: RolloutSettings
    ppo: PPOSettings
    watch: WatchSettings
    optimizer: OptimizerSettings
    run: RunSettings


StageConfig = PretrainConfig | SFTConfig | RewardModelConfig | DPOConfig | PPOConfig

STAGES: dict[StageName, type[StageConfig]] = {
    "pretrain": PretrainConfig,
    "sft": SFTConfig,
    "rm": RewardModelConfig,
    "dpo": DPOConfig,
    "ppo": PPOConfig,
}

STAGE_DEFAULTS: dict[StageName, Mapping[str, Any]] = {
    "pretrain": {"learning_rate": 3e-4},
    "sft": {},
    "rm": {"learning_rate": 5e-5},
    "dpo": {"learning_rate": 5e-5},
    "ppo": {
        "learning_rate": 1e-5,
        "lr_scheduler_type": "constant",
        "logging_steps": 1,
        "eval_steps": 20,
        "save_steps": 20,
        "load_best_model_at_end": True,
    },
}
"""Where a stage's default differs from the group's."""
