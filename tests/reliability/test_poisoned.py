"""Runs that cannot go well end as they should: with a reason, with what led there, and without a traceback."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from transformers import GPT2Config, GPT2LMHeadModel

from duiqi.cli.main import main
from tests.conftest import Workshop

Start = Callable[..., tuple[int, str]]


@pytest.fixture
def start(workshop: Workshop, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Start:
    """Runs a stage in tmp_path/run and gives its exit status and what it said to whom it may concern."""

    def begin(stage: str, **changes: Any) -> tuple[int, str]:
        recipe = tmp_path / "recipe.yaml"
        recipe.write_text(yaml.safe_dump(workshop.settings(stage, tmp_path / "run", **changes)), encoding="utf-8")
        status = main([stage, str(recipe)])
        message = capsys.readouterr().err
        assert "Traceback" not in message
        return status, message

    return begin


def poisoned(source: str, directory: Path, *, file: str, name: str) -> str:
    """A copy of a model or an adapter with one number that is nan."""
    shutil.copytree(source, directory, symlinks=True)
    weights = load_file(directory / file)
    weights[name][1, 2] = float("nan")
    (directory / file).unlink()
    save_file(weights, directory / file, metadata={"format": "pt"})
    return str(directory)


@pytest.fixture
def poisoned_adapter(workshop: Workshop, tmp_path: Path) -> str:
    name = "base_model.model.model.layers.1.mlp.up_proj.lora_B.weight"
    return poisoned(workshop.sft, tmp_path / "adapter", file="adapter_model.safetensors", name=name)


def test_a_base_with_a_weight_that_is_nan_is_refused_with_its_name(
    start: Start, workshop: Workshop, tmp_path: Path
) -> None:
    name = "model.layers.1.mlp.up_proj.weight"
    base = poisoned(workshop.base, tmp_path / "base", file="model.safetensors", name=name)
    status, message = start("sft", model_name_or_path=base)
    assert status == 2
    assert f"weight {name} of the base holds nan or inf" in message


@pytest.mark.parametrize("stage", ["sft", "rm", "dpo"])
def test_an_adapter_with_a_weight_that_is_nan_stops_the_run_and_is_named(
    start: Start, poisoned_adapter: str, tmp_path: Path, stage: str
) -> None:
    status, message = start(stage, adapter_name_or_path=poisoned_adapter)
    assert status == 3, message
    assert "stopped: loss: 1 of 1 numbers are nan or inf" in message
    finding = json.loads((tmp_path / "run" / "anomaly" / "finding.json").read_text(encoding="utf-8"))
    assert any("model.layers.1.mlp.up_proj.lora_B" in name for name in finding["weights_not_finite"])
    assert "layers.1" in finding["first_bad_module"]
    assert "nan" in finding["norms"].values()
    assert (tmp_path / "run" / "anomaly" / "batch.safetensors").exists()


def test_nothing_is_sampled_from_a_network_that_is_nan(start: Start, poisoned_adapter: str, tmp_path: Path) -> None:
    status, message = start("ppo", adapter_name_or_path=poisoned_adapter)
    assert status == 3, message
    assert "are not finite" in message
    assert (tmp_path / "run" / "anomaly" / "finding.json").exists()


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("return [float('inf')] * len(answers)", "returned inf for the answer"),
        ("return [float('nan')] * len(answers)", "returned nan for the answer"),
        ("return [0.0] * (len(answers) - 1)", "scores for"),
        ("return ['good'] * len(answers)", "something else than numbers"),
        ("return None", "raised TypeError"),
        ("raise KeyError('no such word')", "raised KeyError: 'no such word'"),
        ("return [10 ** 400] * len(answers)", "something else than numbers"),
    ],
)
def test_a_reward_function_that_fails_is_named_with_what_it_did(
    start: Start, tmp_path: Path, body: str, said: str
) -> None:
    reward = write(tmp_path / "reward.py", f"def score(prompts, answers):\n    {body}\n")
    status, message = start("ppo", reward_model=f"{reward}:score")
    assert status == 2
    assert f"the reward function {reward}:score" in message
    assert said in message


def test_answers_that_are_all_empty_are_counted_and_crash_nothing(
    start: Start, workshop: Workshop, tmp_path: Path
) -> None:
    base = tmp_path / "silent"
    shutil.copytree(workshop.base, base)
    (base / "model.safetensors").unlink()
    config = json.loads((base / "config.json").read_text(encoding="utf-8"))
    eos, size = config["eos_token_id"], config["vocab_size"]
    model = GPT2LMHeadModel(
        GPT2Config(vocab_size=size, n_embd=32, n_layer=1, n_head=2, n_positions=256, eos_token_id=eos, bos_token_id=eos)
    )
    with torch.no_grad():  # whatever was said, the end token comes next
        model.transformer.ln_f.bias[0] = 30.0
        model.transformer.wte.weight[:, 0] = 0.0
        model.transformer.wte.weight[eos, 0] = 1.0
    model.save_pretrained(base)
    reward = write(
        tmp_path / "reward.py", "def score(prompts, answers):\n    return [float(len(a)) for a in answers]\n"
    )
    changes = {"adapter_name_or_path": None, "reward_model": f"{reward}:score", "min_new_tokens": 0}
    status, _ = start("ppo", model_name_or_path=str(base), **changes)
    assert status in (0, 3)  # a guard may find that such a policy has collapsed
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert all(line["empty_rate"] == 1.0 for line in lines if "empty_rate" in line)
    assert any("empty_rate" in line for line in lines)


def test_demonstrations_that_are_all_empty_are_refused(start: Start, tmp_path: Path) -> None:
    rows = write(tmp_path / "rows.jsonl", '{"instruction": "a", "output": ""}\n' * 8)
    status, message = start("sft", dataset=str(rows))
    assert status == 2
    assert "rows.jsonl:1: found no answer, expected one answer per row" in message


def test_a_dataset_of_which_nothing_is_left_is_refused(start: Start, tmp_path: Path) -> None:
    rows = write(tmp_path / "rows.jsonl", '{"instruction": "a", "output": 7}\n' * 3)
    status, message = start("sft", dataset=str(rows), max_bad_rows=3)
    assert status == 2
    assert "no row can be used" in message


def test_a_tokenizer_without_an_end_token_is_given_the_usual_one_aloud_or_refused(
    start: Start, workshop: Workshop, tmp_path: Path
) -> None:
    base = tmp_path / "endless"
    shutil.copytree(workshop.base, base)
    for name in ("tokenizer_config.json", "special_tokens_map.json", "config.json", "generation_config.json"):
        if (base / name).exists():
            fields = json.loads((base / name).read_text(encoding="utf-8"))
            kept = {key: value for key, value in fields.items() if "eos" not in key}
            (base / name).write_text(json.dumps(kept), encoding="utf-8")
    assert start("sft", model_name_or_path=str(base))[0] == 0
    events = (tmp_path / "run" / "events.jsonl").read_text(encoding="utf-8")
    assert "the tokenizer names no end token: answers end with" in events
    usual = json.loads(events.split("answers end with ")[1].split(",")[0].join(('"', '"')))
    tokens = (base / "tokenizer.json").read_text(encoding="utf-8")
    (base / "tokenizer.json").write_text(tokens.replace(usual, "<stop>"), encoding="utf-8")
    for file in base.glob("*.j*"):
        file.write_text(file.read_text(encoding="utf-8").replace(usual, "<stop>"), encoding="utf-8")
    shutil.rmtree(tmp_path / "run")
    status, message = start("sft", model_name_or_path=str(base))
    assert status == 2
    assert "has no end token" in message
