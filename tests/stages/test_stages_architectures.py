"""SFT, reward model, DPO, PPO and chat on one architecture after the other, through the public API."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.conftest import Workshop
from tests.models.architectures import ARCHITECTURES
from torch import Tensor
from transformers import AutoTokenizer

import duiqi
from duiqi.models.measure import measure_scores
from duiqi.models.reward import StandaloneReward, load_reward_model, score_token_rows
from duiqi.models.saving import save_role
from duiqi.models.shared_base import SharedBase
from duiqi.packing.batch import Family, pack
from duiqi.serving.chat import chat
from duiqi.types import Sampling

ROWS = [(5, 6, 7, 8, 9, 10), (11, 12, 13)]


@dataclass
class Memory:
    """What a stage's model said as it was saved, by the stage's name, and whether its base was still the one loaded."""

    said: dict[str, Tensor] = field(default_factory=dict)
    base_is_untouched: list[bool] = field(default_factory=list)

    def record(self, base: SharedBase, role: str, directory: Path, *, card: Any, tokenizer: Any) -> None:
        save_role(base, role, directory, card=card, tokenizer=tokenizer)
        with base.acting(role):
            if role == "reward":
                self.said[card.stage] = measure_scores(base, pack([Family((), [row]) for row in ROWS]), role)
            else:
                self.said[card.stage] = base.logits(base.trunk(torch.tensor(ROWS[:1]))[0])
        original = duiqi.load_model(base.name, dtype="float32").state_dict()
        weights = {n.replace(".base_layer", ""): w for n, w in base.model.state_dict().items() if "lora_" not in n}
        self.base_is_untouched.append(
            weights.keys() == original.keys() and all(torch.equal(weights[n], original[n]) for n in weights)
        )


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> Memory:
    memory = Memory()
    for stage in ("sft", "reward_model", "dpo", "ppo"):
        monkeypatch.setattr(f"duiqi.stages.{stage}.save_role", memory.record)
    return memory


def write_base(name: str, workshop: Workshop, directory: Path) -> None:
    """A random network of an architecture, with the workshop's tokenizer."""
    directory.mkdir()
    for file in Path(workshop.base).iterdir():
        if "token" in file.name or file.suffix == ".jinja":
            shutil.copy(file, directory)
    tokenizer = AutoTokenizer.from_pretrained(workshop.base)
    tokens = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id}
    ARCHITECTURES[name].build(len(tokenizer), **tokens).save_pretrained(directory)


def digest(directory: Path) -> str:
    hasher = hashlib.sha256()
    for file in sorted(directory.iterdir()):
        hasher.update(file.name.encode() + file.read_bytes())
    return hasher.hexdigest()


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_stage_trains_saves_and_loads_again(
    name: str, workshop: Workshop, memory: Memory, tmp_path: Path
) -> None:
    write_base(name, workshop, tmp_path / "base")
    before = digest(tmp_path / "base")
    sft, rm = str(tmp_path / "sft"), str(tmp_path / "rm")
    of_stage: dict[str, dict[str, Any]] = {
        "sft": {},
        "rm": {"eval_dataset": None},
        "dpo": {"eval_dataset": None, "adapter_name_or_path": sft},
        "ppo": {
            "eval_dataset": None,
            "adapter_name_or_path": sft,
            "reward_model": rm,
            "max_new_tokens": 6,
            "rollout_batch_size": 4,
        },
    }
    for stage, changes in of_stage.items():
        common = {"model_name_or_path": str(tmp_path / "base"), "max_steps": 2, "learning_rate": 1e-2}
        duiqi.run(stage, **workshop.settings(stage, tmp_path / stage, **{**common, **changes}))  # type: ignore[arg-type]

    for stage in ("sft", "dpo", "ppo"):
        logits = duiqi.load_model(str(tmp_path / stage), dtype="float32")(torch.tensor(ROWS[:1])).logits
        torch.testing.assert_close(logits.detach(), memory.said[stage], rtol=1e-5, atol=1e-5)
    scores = score_token_rows(StandaloneReward(load_reward_model(rm, dtype="float32")), ROWS)
    torch.testing.assert_close(scores, memory.said["rm"], rtol=1e-5, atol=1e-5)
    assert not torch.equal(memory.said["sft"], memory.said["dpo"])
    assert not torch.equal(memory.said["sft"], memory.said["ppo"])
    assert memory.base_is_untouched
    assert all(memory.base_is_untouched)
    assert digest(tmp_path / "base") == before

    manifest = json.loads((tmp_path / "ppo" / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["layout"].startswith("padded" if ARCHITECTURES[name].layout == "padded" else "packed")
    assert manifest["decoding"] == str(ARCHITECTURES[name].decoding)
    said = io.StringIO()
    chat(
        str(tmp_path / "ppo"), sampling=Sampling(max_new_tokens=5, min_new_tokens=5), input_lines=["你好"], output=said
    )
    assert len(said.getvalue().splitlines()) >= 3
