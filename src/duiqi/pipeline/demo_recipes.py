"""The settings of the demo's stages: what a user would write in five small recipes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from duiqi.playground.files import WorldSizes
from duiqi.settings.stages import StageName

RECIPES: dict[StageName, dict[str, Any]] = {
    "pretrain": {
        "train_from_scratch": True,
        "finetuning_type": "full",
        "cutoff_len": 128,
        "per_device_train_batch_size": 8,
        "max_steps": 550,
        "learning_rate": 2e-3,
        "warmup_ratio": 0.05,
        "logging_steps": 25,
    },
    "sft": {
        "lora_rank": 16,
        "cutoff_len": 160,
        "per_device_train_batch_size": 32,
        "learning_rate": 2e-3,
        "max_steps": 75,
        "logging_steps": 5,
    },
    "rm": {
        "lora_rank": 16,
        "cutoff_len": 160,
        "per_device_train_batch_size": 32,
        "learning_rate": 1e-3,
        "max_steps": 90,
        "logging_steps": 5,
    },
    "dpo": {
        "cutoff_len": 160,
        "per_device_train_batch_size": 32,
        "learning_rate": 7e-4,
        "max_steps": 60,
        "logging_steps": 5,
    },
    "ppo": {
        "cutoff_len": 160,
        "max_new_tokens": 40,
        "rollout_batch_size": 64,
        "mini_batch_size": 32,
        "ppo_epochs": 1,
        "init_kl_coef": 0.2,
        "learning_rate": 1e-3,
        "max_steps": 60,
        "eval_steps": 20,
    },
}


def _model() -> dict[str, Any]:
    return {
        "hidden_size": 256,
        "intermediate_size": 704,
        "num_hidden_layers": 3,
        "num_attention_heads": 8,
        "num_key_value_heads": 8,
        "initializer_range": 0.06,
    }


@dataclass(frozen=True)
class Sizes:
    """How large the world and its model are."""

    world: WorldSizes = field(default_factory=WorldSizes)
    vocabulary: int = 1400
    model: Mapping[str, Any] = field(default_factory=_model)
    steps: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Settings that replace those of a stage's recipe."""

    @classmethod
    def quick(cls) -> Sizes:
        """A few steps of everything."""
        few = {"max_steps": 3, "logging_steps": 1}
        return cls(
            world=WorldSizes(
                pretrain=200, demonstrations=64, preferences=64, held_out_pairs=16, prompts=64, held_out_prompts=16
            ),
            vocabulary=600,
            model={**_model(), "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2},
            steps={
                **dict.fromkeys(("pretrain", "sft", "rm", "dpo"), few),
                "ppo": {
                    "max_steps": 2,
                    "rollout_batch_size": 8,
                    "mini_batch_size": 4,
                    "eval_steps": 1,
                    "watch": "off",  # a reward model of three steps is no good, and is not meant to be
                },
                "lab": {"max_steps": 2, "eval_steps": 1, "save_steps": 1},
            },
        )
