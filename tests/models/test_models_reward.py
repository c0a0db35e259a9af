"""A reward model's score of a row: independent of padding and batch, and the same outside duiqi."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tests.conftest import Workshop
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer, BertConfig
from transformers.utils import logging as transformers_logging

import duiqi
from duiqi.errors import ModelError
from duiqi.models.reward import StandaloneReward, score_token_rows

TEXTS = ["阿海，你家住哪儿？", "Hello Lan! What do you eat?", "你好"]
IN_ANOTHER_PROCESS = """
import json, sys, torch
from peft import PeftModel
from transformers import AutoModelForSequenceClassification, AutoTokenizer
base, adapter, rows = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
tokenizer = AutoTokenizer.from_pretrained(adapter)
model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1, pad_token_id=tokenizer.pad_token_id)
model = PeftModel.from_pretrained(model, adapter).eval()
assert "duiqi" not in sys.modules
with torch.no_grad():
    print(json.dumps([model(input_ids=torch.tensor([row])).logits[0, 0].item() for row in rows]))
"""


@pytest.fixture(scope="module")
def reward(workshop: Workshop) -> StandaloneReward:
    return StandaloneReward(duiqi.load_reward_model(workshop.rm))


@pytest.fixture(scope="module")
def rows(workshop: Workshop) -> list[list[int]]:
    tokenizer = AutoTokenizer.from_pretrained(workshop.rm)
    return [tokenizer(text)["input_ids"] + [tokenizer.eos_token_id] for text in TEXTS]


@pytest.mark.parametrize("pads", [0, 7])
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_does_not_move_a_score(reward: StandaloneReward, rows: list[list[int]], pads: int, side: str) -> None:
    for row in rows:
        alone = reward(torch.tensor([row]), torch.ones(1, len(row), dtype=torch.bool))
        filler, real = [0] * pads, [True] * len(row)
        ids = filler + row if side == "left" else row + filler
        mask = [False] * pads + real if side == "left" else real + [False] * pads
        padded = reward(torch.tensor([ids]), torch.tensor([mask]))
        assert padded.item() == pytest.approx(alone.item(), abs=1e-5)


def test_a_batch_scores_as_its_rows_alone(reward: StandaloneReward, rows: list[list[int]]) -> None:
    together = score_token_rows(reward, rows, batch_size=3)
    alone = score_token_rows(reward, rows, batch_size=1)
    assert torch.allclose(together, alone, atol=1e-5)


def test_padding_with_the_end_token_does_not_move_a_score(reward: StandaloneReward, rows: list[list[int]]) -> None:
    end = rows[0][-1]
    ids, mask = torch.tensor([rows[0] + [end] * 3]), torch.tensor([[True] * len(rows[0]) + [False] * 3])
    assert reward(ids, mask).item() == pytest.approx(score_token_rows(reward, rows[:1]).item(), abs=1e-5)


def test_plain_peft_and_transformers_give_the_same_score(
    workshop: Workshop, reward: StandaloneReward, rows: list[list[int]]
) -> None:
    words = [sys.executable, "-c", IN_ANOTHER_PROCESS, workshop.base, workshop.rm, json.dumps(rows)]
    output = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    theirs = torch.tensor(json.loads(output))
    assert torch.allclose(score_token_rows(reward, rows), theirs, atol=1e-5)


def test_a_fully_tuned_reward_model_loads_with_plain_transformers(workshop: Workshop, tmp_path: Path) -> None:
    duiqi.run("rm", **workshop.settings("rm", tmp_path / "rm", finetuning_type="full", max_steps=2))
    theirs = AutoModelForSequenceClassification.from_pretrained(tmp_path / "rm").eval()
    assert theirs.config.num_labels == 1
    ours = StandaloneReward(duiqi.load_reward_model(str(tmp_path / "rm")))
    row = [5, 6, 7, 8]
    with torch.no_grad():
        expected = theirs(input_ids=torch.tensor([row])).logits[0, 0]
    assert score_token_rows(ours, [row]).item() == pytest.approx(expected.item(), abs=1e-5)


def test_a_policy_is_refused_as_reward_model(workshop: Workshop) -> None:
    with pytest.raises(ModelError, match="not a reward model"):
        duiqi.load_reward_model(workshop.sft)


def test_a_language_model_is_refused_as_reward_model(workshop: Workshop) -> None:
    with pytest.raises(ModelError, match=r"score\.weight is missing[^>]*\n  -> give the output_dir of a"):
        duiqi.load_reward_model(workshop.base)


def test_a_classifier_with_two_labels_is_refused(workshop: Workshop, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(workshop.base)
    tokenizer.save_pretrained(tmp_path)
    config = AutoConfig.from_pretrained(workshop.base, num_labels=2)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"score\.weight has shape \(2, 32\) in its files, expected \(1, 32\)"):
        duiqi.load_reward_model(str(tmp_path))


def test_a_classifier_without_a_linear_score_is_refused(workshop: Workshop, tmp_path: Path) -> None:
    AutoTokenizer.from_pretrained(workshop.base).save_pretrained(tmp_path)
    config = BertConfig(
        vocab_size=500, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, num_labels=1
    )
    AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="BertForSequenceClassification keeps its score elsewhere"):
        duiqi.load_reward_model(str(tmp_path))


def test_a_damaged_base_is_refused_with_its_place(workshop: Workshop, tmp_path: Path) -> None:
    shutil.copytree(workshop.base, tmp_path / "base")
    weights = tmp_path / "base" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(ModelError, match="cannot be loaded as a reward model"):
        duiqi.load_reward_model(str(tmp_path / "base"))
    with pytest.raises(ModelError, match="cannot be loaded as a causal language model"):
        duiqi.load_model(str(tmp_path / "base"))


def test_in_half_precision_it_is_still_a_module_that_can_be_called(workshop: Workshop, rows: list[list[int]]) -> None:
    network = duiqi.load_reward_model(workshop.rm, dtype="bfloat16")
    logits = network(input_ids=torch.tensor(rows[:1])).logits
    assert logits.item() == pytest.approx(score_token_rows(StandaloneReward(network), rows[:1]).item(), abs=1e-3)


def test_loading_says_nothing(workshop: Workshop, capfd: pytest.CaptureFixture[str]) -> None:
    before = transformers_logging.get_verbosity()
    duiqi.load_reward_model(workshop.rm)
    duiqi.load_model(workshop.sft)
    assert capfd.readouterr() == ("", "")
    assert transformers_logging.get_verbosity() == before
