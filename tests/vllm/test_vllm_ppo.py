"""A short run of PPO that starts vLLM itself: `make test-vllm`, which takes minutes. Everywhere else it is skipped."""

from __future__ import annotations

import json
import os
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.conftest import Workshop
from transformers import LlamaConfig, LlamaForCausalLM

import duiqi

PYTHON = os.environ.get("DUIQI_VLLM_PYTHON", "")
pytestmark = pytest.mark.skipif(not PYTHON, reason="needs an environment with vLLM: make test-vllm")


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def base(workshop: Workshop, tmp_path: Path) -> Path:
    """The workshop's tokenizer on a base with heads as wide as vLLM's kernels want them."""
    config = LlamaConfig.from_pretrained(workshop.base)
    config.update({"hidden_size": 128, "intermediate_size": 192, "head_dim": 32})
    torch.manual_seed(0)
    directory = shutil.copytree(workshop.base, tmp_path / "base", ignore=shutil.ignore_patterns("*.safetensors"))
    LlamaForCausalLM(config).save_pretrained(directory)
    return directory


def test_ppo_starts_a_server_learns_from_its_answers_and_ends_it(
    workshop: Workshop, base: Path, tmp_path: Path
) -> None:
    run, reward = tmp_path / "run", tmp_path / "length.py"
    reward.write_text("def shorter(prompts, answers):\n    return [-len(a) / 10 for a in answers]\n", encoding="utf-8")
    own = {
        "model_name_or_path": str(base),
        "adapter_name_or_path": None,
        "reward_model": f"{reward}:shorter",
        "rollout_engine": "vllm",
        "vllm_python": PYTHON,
        "vllm_memory_share": 0.1,
        "temperature": 0.7,
        "learning_rate": 1e-2,
    }
    result = duiqi.run("ppo", **workshop.settings("ppo", run, **own))
    assert result.steps == 4
    syncs = [event for event in lines(run / "events.jsonl") if event["kind"] == "vllm_sync"]
    assert [event["step"] for event in syncs if event["step"]] == [1, 2, 3, 4]
    assert max(event["gap"] for event in syncs) < 1e-4
    logged = [line for line in lines(run / "metrics.jsonl") if "sampler_gap" in line]
    assert len(logged) == 4
    assert max(line["sampler_gap"] for line in logged) < 1e-4
    assert abs(logged[-1]["kl"]) > 1e-3, "the policy has moved, and the server with it"
    assert (run / "vllm" / "server.log").is_file()
    assert not any(str(run).encode() in words for words in command_lines()), "nothing of the server is left"


def command_lines() -> list[bytes]:
    """Of every process there is."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):  # it has ended by now
            found.append(path.read_bytes())
    return found
