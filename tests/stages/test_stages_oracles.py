"""The same batch through duiqi and through transformers.Trainer or TRL: the same loss and the same gradient norm."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import PeftModel
from tests.conftest import Workshop
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    Trainer,
    TrainingArguments,
)
from trl import DPOConfig, DPOTrainer, RewardConfig, RewardTrainer

import duiqi
from duiqi.data.encoding import encode_conversation
from duiqi.data.loading import load_examples
from duiqi.data.registry import DatasetSpec
from duiqi.data.templates import get_template
from duiqi.types import Example

ROWS = 8
ONE_STEP = {
    "per_device_train_batch_size": ROWS,
    "max_steps": 1,
    "learning_rate": 0.0,
    "max_grad_norm": 1e9,
    "logging_steps": 1,
    "report_to": "none",
    "use_cpu": True,
    "save_strategy": "no",
    "disable_tqdm": True,
    "gradient_checkpointing": False,
    "bf16": False,
}
SPLITS = [4096, 300, 64]
"""tokens_per_micro_batch: all rows at once, a few, one at a time."""


def first_metrics(directory: Path) -> dict[str, Any]:
    rows = [json.loads(line) for line in (directory / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return next(row for row in rows if row["step"] == 1 and "grad_norm" in row)


def our_step(workshop: Workshop, stage: str, directory: Path, split: int, **changes: Any) -> dict[str, Any]:
    settings = workshop.settings(stage, directory, max_steps=1, learning_rate=0.0, max_samples=ROWS, **changes)
    settings |= {"per_device_train_batch_size": ROWS, "tokens_per_micro_batch": split}
    duiqi.run(stage, **settings)  # type: ignore[arg-type]
    return first_metrics(directory)


def examples(workshop: Workshop, dataset: str, need: Any) -> list[Example]:
    return load_examples(
        [DatasetSpec(dataset)], dataset_dir=workshop.data, need=need, seed=42, max_samples=ROWS
    ).examples


def as_messages(example: Example) -> list[dict[str, str]]:
    return [{"role": m.role, "content": m.content} for m in example.prompt]


def logged(trainer: Trainer) -> dict[str, float]:
    trainer.train()
    return next(entry for entry in trainer.state.log_history if "grad_norm" in entry)


def with_adapter(workshop: Workshop, adapter: str) -> PeftModel:
    model = AutoModelForCausalLM.from_pretrained(workshop.base, dtype=torch.float32)
    return PeftModel.from_pretrained(model, adapter, is_trainable=True)


@pytest.fixture(scope="module")
def sft_oracle(workshop: Workshop, tmp_path_factory: pytest.TempPathFactory) -> dict[str, float]:
    tokenizer = AutoTokenizer.from_pretrained(workshop.base)
    template = get_template(None, tokenizer)
    rows = []
    for example in examples(workshop, "sft", "demonstration"):
        sequence = encode_conversation(template, tokenizer, example=example, train_on="all")
        marked = zip(sequence.input_ids, sequence.answer_mask, strict=True)
        labels = [token if learned else -100 for token, learned in marked]
        rows.append({"input_ids": sequence.input_ids, "labels": labels})
    width = max(len(row["input_ids"]) for row in rows)

    def pad(batch: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
        ids = [row["input_ids"] + [0] * (width - len(row["input_ids"])) for row in batch]
        labels = [row["labels"] + [-100] * (width - len(row["labels"])) for row in batch]
        mask = [[1] * len(row["input_ids"]) + [0] * (width - len(row["input_ids"])) for row in batch]
        return {
            "input_ids": torch.tensor(ids),
            "labels": torch.tensor(labels),
            "attention_mask": torch.tensor(mask),
        }

    args = TrainingArguments(str(tmp_path_factory.mktemp("sft")), **ONE_STEP)
    model = with_adapter(workshop, workshop.sft)
    return logged(Trainer(model, args, train_dataset=Dataset.from_list(rows), data_collator=pad))


@pytest.mark.parametrize("split", SPLITS)
def test_sft_step_equals_transformers(
    workshop: Workshop, tmp_path: Path, sft_oracle: dict[str, float], split: int
) -> None:
    ours = our_step(workshop, "sft", tmp_path, split, adapter_name_or_path=workshop.sft)
    assert ours["loss"] == pytest.approx(sft_oracle["loss"], rel=1e-5)
    assert ours["grad_norm"] == pytest.approx(sft_oracle["grad_norm"], rel=1e-5)


@pytest.fixture(scope="module")
def dpo_oracle(workshop: Workshop, tmp_path_factory: pytest.TempPathFactory) -> dict[str, float]:
    rows = [
        {
            "prompt": as_messages(example),
            "chosen": [{"role": "assistant", "content": example.answers[0]}],
            "rejected": [{"role": "assistant", "content": example.answers[1]}],
        }
        for example in examples(workshop, "rm", "ranking")
    ]
    args = DPOConfig(str(tmp_path_factory.mktemp("dpo")), beta=0.1, max_length=None, **ONE_STEP)
    trainer = DPOTrainer(
        with_adapter(workshop, workshop.sft),
        args=args,
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(workshop.base),
    )
    return logged(trainer)


@pytest.mark.parametrize("split", SPLITS)
def test_dpo_step_equals_trl_and_begins_at_ln_2(
    workshop: Workshop, tmp_path: Path, dpo_oracle: dict[str, float], split: int
) -> None:
    ours = our_step(workshop, "dpo", tmp_path, split, reuse_reference=False)
    assert ours["loss"] == pytest.approx(0.693147, abs=1e-6)
    assert ours["loss"] == pytest.approx(dpo_oracle["loss"], rel=1e-4)  # TRL rounds what it logs
    assert ours["grad_norm"] == pytest.approx(dpo_oracle["grad_norm"], rel=1e-5)
    assert ours["rewards/accuracies"] == 0.5  # before the first step every pair is a tie


@pytest.fixture(scope="module")
def rm_oracle(workshop: Workshop, tmp_path_factory: pytest.TempPathFactory) -> dict[str, float]:
    rows = [
        {
            "chosen": [*as_messages(example), {"role": "assistant", "content": example.answers[0]}],
            "rejected": [*as_messages(example), {"role": "assistant", "content": example.answers[1]}],
        }
        for example in examples(workshop, "rm", "ranking")
    ]
    base = AutoModelForSequenceClassification.from_pretrained(workshop.base, num_labels=1, dtype=torch.float32)
    model = PeftModel.from_pretrained(base, workshop.rm, is_trainable=True)
    args = RewardConfig(
        str(tmp_path_factory.mktemp("rm")), center_rewards_coefficient=0.01, max_length=None, **ONE_STEP
    )
    trainer = RewardTrainer(
        model,
        args=args,
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(workshop.base),
    )
    return logged(trainer)


@pytest.mark.parametrize("split", SPLITS)
def test_reward_model_step_equals_trl(
    workshop: Workshop, tmp_path: Path, rm_oracle: dict[str, float], split: int
) -> None:
    ours = our_step(workshop, "rm", tmp_path, split, adapter_name_or_path=workshop.rm, center_rewards_coefficient=0.01)
    assert ours["loss"] == pytest.approx(rm_oracle["loss"], rel=1e-4)  # TRL rounds what it logs
    assert ours["grad_norm"] == pytest.approx(rm_oracle["grad_norm"], rel=1e-5)
