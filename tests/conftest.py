"""A small workshop that many tests share: the built-in world's data, a tokenizer, a tiny random base, trained runs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import duiqi
from duiqi.playground.files import WorldSizes, write_world
from duiqi.playground.tokenizer import train_tokenizer
from duiqi.playground.world import World

torch.set_num_threads(1)  # models this small only wait for each other on two


@dataclass(frozen=True)
class Workshop:
    """Paths of what the tests start from; nothing in here is changed by a test."""

    root: Path

    @property
    def base(self) -> str:
        return str(self.root / "base")

    @property
    def data(self) -> str:
        return str(self.root / "data")

    @property
    def sft(self) -> str:
        return str(self.root / "sft")

    @property
    def rm(self) -> str:
        return str(self.root / "rm")

    def settings(self, stage: str, output_dir: Path, **changes: Any) -> dict[str, Any]:
        """Settings of a short run of `stage`."""
        common = {
            "model_name_or_path": self.base,
            "dataset_dir": self.data,
            "output_dir": str(output_dir),
            "cutoff_len": 160,
            "dtype": "float32",
            "max_steps": 4,
            "logging_steps": 1,
            "learning_rate": 1e-3,
        }
        rows = {"per_device_train_batch_size": 4}
        own: dict[str, dict[str, Any]] = {
            "pretrain": {"dataset": "pretrain", "cutoff_len": 64, **rows},
            "sft": {"dataset": "sft", **rows},
            "rm": {"dataset": "rm", "eval_dataset": "rm_heldout", **rows},
            "dpo": {"dataset": "rm", "eval_dataset": "rm_heldout", "adapter_name_or_path": self.sft, **rows},
            "ppo": {
                "dataset": "ppo_prompts",
                "eval_dataset": "heldout_prompts@4",
                "adapter_name_or_path": self.sft,
                "reward_model": self.rm,
                "max_new_tokens": 10,
                "rollout_batch_size": 8,
                "mini_batch_size": 4,
            },
        }
        return {**common, **own[stage], **changes}


@pytest.fixture(scope="session", autouse=True)
def _cache_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What is remembered between runs is remembered within one test session only."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    """A tiny base with an SFT adapter and a reward model, a few steps each."""
    return build_workshop(tmp_path_factory.mktemp("workshop"))


def build_workshop(root: Path) -> Workshop:
    """Make everything in a workshop, in an empty directory."""
    shop = Workshop(root)
    sizes = WorldSizes(
        pretrain=100, demonstrations=48, preferences=48, held_out_pairs=12, prompts=48, held_out_prompts=12
    )
    write_world(shop.root / "data", 0, sizes=sizes)
    texts = [example.answers[0] for example in World(0).pretraining_texts(200)]
    tokenizer = train_tokenizer(texts, shop.root / "base", vocab_size=500)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        initializer_range=0.1,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(shop.root / "base")
    duiqi.run("sft", **shop.settings("sft", Path(shop.sft)))
    duiqi.run("rm", **shop.settings("rm", Path(shop.rm)))
    return shop
