"""What to change first when a run does not fit: settings that change no result come first."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from typing import Any

import torch

from duiqi.planning.rows import Rows
from duiqi.settings.stages import PPOConfig, StageConfig

SMALLEST_MICRO_BATCH = 64
"""The least that tokens_per_micro_batch can be."""


@dataclass(frozen=True)
class Change:
    """One setting that would make a run smaller."""

    setting: str
    value: Any
    config: StageConfig
    cost: str
    """What it costs, in a few words."""

    def __str__(self) -> str:
        value = str(self.value).lower() if isinstance(self.value, bool) else self.value
        return f"{self.setting}: {value}"


@dataclass(frozen=True)
class Advice:
    """The first setting to change."""

    change: Change
    peak: int
    """Bytes that the run then needs."""
    fits: bool


def first_change(
    config: StageConfig, rows: Rows, *, dtype: torch.dtype, available: int, peak_of: Callable[[StageConfig], int]
) -> Advice | None:
    """The first of the changes after which a run fits; if none is enough, the one that helps most. None: none helps.

    Args:
        dtype: Of the base now.
        available: Bytes that the device has.
        peak_of: Bytes that a run needs at most.
    """
    best: Advice | None = None
    for change in changes(config, rows, dtype):
        peak = peak_of(change.config)
        if peak <= available:
            return Advice(change, peak, fits=True)
        if best is None or peak < best.peak:
            best = Advice(change, peak, fits=False)
    return best


def changes(config: StageConfig, rows: Rows, dtype: torch.dtype) -> Iterator[Change]:
    """What could be changed in this run, the most harmless first."""
    nothing, longest = "changes no result", max(family.longest for family in rows.families)
    tokens = config.optimizer.tokens_per_micro_batch
    while tokens // 2 >= max(SMALLEST_MICRO_BATCH, longest // 2):
        tokens //= 2
        yield _change(config, "tokens_per_micro_batch", tokens, nothing)
    if isinstance(config, PPOConfig) and config.rollouts.rollout_engine == "own":
        for share in (2, 4, 8):
            if rows_at_once := config.sampling.generation_batch_size // share:
                yield _change(config, "generation_batch_size", rows_at_once, "slower rollouts, the same answers")
    is_full = config.tuning.finetuning_type == "full"
    if dtype == torch.float32 and not is_full:
        yield _change(config, "dtype", "bfloat16", "the frozen base is rounded; slow on a CPU without bfloat16")
    has_critic_adapter = isinstance(config, PPOConfig) and _critic(config) == "adapter"
    if not config.optimizer.gradient_checkpointing and not has_critic_adapter:
        yield _change(config, "gradient_checkpointing", True, "a third more time")
    if isinstance(config, PPOConfig) and _critic(config) in ("adapter", "model"):
        yield _change(config, "critic", "shared", "what the critic learns moves the policy's adapter too")
    if is_full:
        yield _change(config, "finetuning_type", "lora", "adapters learn instead of every weight")


def _critic(config: PPOConfig) -> str:
    return config.ppo.critic if config.ppo.advantage == "gae" else "none"


def _change(config: StageConfig, setting: str, value: Any, cost: str) -> Change:
    """The config with one setting changed, whichever group it is in."""
    for group in fields(config):
        settings = getattr(config, group.name)
        if setting in (field.name for field in fields(settings)):
            changed: StageConfig = replace(config, **{group.name: replace(settings, **{setting: value})})
            return Change(setting, value, changed, cost)
    raise AssertionError(f"no group has {setting}")
