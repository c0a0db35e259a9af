"""Every way to tune in every stage on four kinds of network: it trains, saves, and what is loaded again is the same."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.conftest import Workshop
from torch import Tensor
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedModel,
)

import duiqi
from duiqi.errors import ModelError, SettingsError
from duiqi.models.loading import load_tokenizer
from duiqi.models.reward import load_standalone_reward
from duiqi.models.saving import save_role
from duiqi.models.shared_base import SharedBase
from duiqi.stages import dpo, ppo, reward_model, sft

IDS = torch.tensor([[5, 6, 7, 8, 9]])
METHODS: dict[str, dict[str, Any]] = {
    "lora": {"lora_rank": 2},
    "lora and head": {"lora_rank": 2, "modules_to_save": "lm_head"},
    "freeze": {"finetuning_type": "freeze", "freeze_trainable_layers": 1},
    "p_tuning": {"finetuning_type": "p_tuning", "pre_seq_len": 4},
    "projected": {"finetuning_type": "p_tuning", "pre_seq_len": 4, "prefix_projection": True},
    "full": {"finetuning_type": "full"},
}
KINDS = ("llama", "gpt2", "bloom")


def gpt2(vocab_size: int) -> PreTrainedModel:
    shape = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256}
    return GPT2LMHeadModel(GPT2Config(vocab_size=vocab_size, **shape, initializer_range=0.1))


def bloom(vocab_size: int) -> PreTrainedModel:
    config = BloomConfig(vocab_size=vocab_size, hidden_size=32, n_layer=2, n_head=4, initializer_range=0.1)
    return BloomForCausalLM(config)


MAKERS: dict[str, Callable[[int], PreTrainedModel]] = {"gpt2": gpt2, "bloom": bloom}


@pytest.fixture(scope="module")
def bases(workshop: Workshop, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Tiny random checkpoints with the workshop's tokenizer."""
    found = {"llama": workshop.base}
    tokenizer = load_tokenizer(workshop.base)
    for kind, make in MAKERS.items():
        torch.manual_seed(0)
        directory = tmp_path_factory.mktemp(kind)
        model = make(len(tokenizer))
        model.config.eos_token_id = model.generation_config.eos_token_id = tokenizer.eos_token_id
        model.config.pad_token_id = tokenizer.pad_token_id
        model.config.bos_token_id = model.generation_config.bos_token_id = None
        model.save_pretrained(directory)
        for file in Path(workshop.base).glob("*token*"):
            shutil.copy(file, directory)
        for file in Path(workshop.base).glob("chat_template*"):
            shutil.copy(file, directory)
        found[kind] = str(directory)
    return found


@dataclass
class Witness:
    """What roles computed when they were saved, and whether the base was still what it had been."""

    logits: dict[str, Tensor] = field(default_factory=dict)
    bases: dict[str, dict[str, Tensor]] = field(default_factory=dict)

    @torch.no_grad()
    def save(self, base: SharedBase, role: str, directory: Path, **how: Any) -> None:
        save_role(base, role, directory, **how)
        with base.acting(role):
            hidden = base.trunk(IDS)[0]
            seen = base.heads["reward"](hidden[:, -1]) if role == "reward" else base.logits(hidden)
        run = directory.parent.parent.name
        self.logits[run] = seen.clone()
        base.seat_bare("bare")
        with base.role("bare"):
            self.bases[run] = {
                name.replace(".base_layer.", "."): weight.clone()
                for name, weight in base.model.state_dict().items()
                if "lora_" not in name
            }


@pytest.fixture
def witness(monkeypatch: pytest.MonkeyPatch) -> Witness:
    seen = Witness()
    for stage in (sft, reward_model, dpo, ppo):
        monkeypatch.setattr(stage, "save_role", seen.save)
    return seen


@torch.no_grad()
def loaded(run: Path) -> Tensor:
    """The same as the witness saw, from what was written."""
    if run.name == "rm":
        return load_standalone_reward(str(run))(IDS, torch.ones_like(IDS, dtype=torch.bool))
    found: Tensor = duiqi.load_model(str(run))(input_ids=IDS).logits
    return found


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", KINDS)
def test_it_trains_saves_and_loads_equal_in_every_stage(
    workshop: Workshop, bases: dict[str, str], witness: Witness, tmp_path: Path, kind: str, method: str
) -> None:
    is_full = method == "full"
    common: dict[str, Any] = {"model_name_or_path": bases[kind], "max_steps": 2, "eval_dataset": None}
    fresh = {**common, **METHODS[method]}
    start = {"adapter_name_or_path": str(tmp_path / "sft")}
    if is_full:
        start = {"model_name_or_path": str(tmp_path / "sft"), "finetuning_type": "full"}
    later = {**common, "adapter_name_or_path": None, **start}
    reward = {"reward_model": str(tmp_path / "rm"), "rollout_batch_size": 4}
    duiqi.run("sft", **workshop.settings("sft", tmp_path / "sft", **fresh))
    scored = {name: value for name, value in fresh.items() if name != "modules_to_save"}
    duiqi.run("rm", **workshop.settings("rm", tmp_path / "rm", **scored))
    duiqi.run("dpo", **workshop.settings("dpo", tmp_path / "dpo", **later))
    duiqi.run("ppo", **workshop.settings("ppo", tmp_path / "ppo", **later, **reward))
    assert set(witness.logits) == {"sft", "rm", "dpo", "ppo"}
    for name, seen in witness.logits.items():
        assert torch.allclose(loaded(tmp_path / name), seen, atol=1e-5), name
    assert not torch.allclose(witness.logits["sft"], witness.logits["dpo"], atol=1e-4)
    if not is_full:
        before = {name: weight.clone() for name, weight in duiqi.load_model(bases[kind]).state_dict().items()}
        for name, after in witness.bases.items():
            assert after.keys() == before.keys()
            assert all(torch.equal(after[key], weight) for key, weight in before.items()), name


def test_chains_of_new_adapters_load_from_their_leaf(workshop: Workshop, witness: Witness, tmp_path: Path) -> None:
    new = {"create_new_adapter": True, "max_steps": 2, "lora_rank": 2}
    first = workshop.settings("dpo", tmp_path / "first", **new)
    duiqi.run("dpo", **first)
    chain = {"adapter_name_or_path": str(tmp_path / "first"), **new, "lora_target": "q_proj"}
    duiqi.run("dpo", **workshop.settings("dpo", tmp_path / "second", **chain))
    assert torch.allclose(loaded(tmp_path / "second"), witness.logits["second"], atol=1e-5)
    both = f"{workshop.sft},{tmp_path / 'first'}"
    listed = {"adapter_name_or_path": both, "max_steps": 1, "learning_rate": 0.0}
    duiqi.run("dpo", **workshop.settings("dpo", tmp_path / "listed", **listed))
    assert torch.allclose(witness.logits["listed"], witness.logits["first"], atol=1e-6)


class TestLineage:
    def run_above(self, workshop: Workshop, directory: Path, sft: str) -> None:
        new = {"create_new_adapter": True, "max_steps": 1, "adapter_name_or_path": sft}
        duiqi.run("dpo", **workshop.settings("dpo", directory, **new))

    def test_a_missing_parent_is_named(self, workshop: Workshop, tmp_path: Path) -> None:
        shutil.copytree(Path(workshop.sft).resolve(), tmp_path / "sft", symlinks=True)
        self.run_above(workshop, tmp_path / "dpo", str(tmp_path / "sft"))
        shutil.rmtree(tmp_path / "sft")
        with pytest.raises(ModelError, match=f"the adapter {tmp_path / 'sft'}, which it was trained on, is not there"):
            duiqi.load_model(str(tmp_path / "dpo"))

    def test_a_parent_that_was_trained_on_is_refused(self, workshop: Workshop, tmp_path: Path) -> None:
        sft = tmp_path / "sft"
        duiqi.run("sft", **workshop.settings("sft", sft, max_steps=1))
        self.run_above(workshop, tmp_path / "dpo", str(sft))
        duiqi.run("sft", **workshop.settings("sft", sft, max_steps=2, overwrite_output_dir=True))
        with pytest.raises(ModelError, match="has other weights now"):
            duiqi.load_model(str(tmp_path / "dpo"))

    def test_a_stack_that_nobody_trained_is_refused(self, workshop: Workshop, tmp_path: Path) -> None:
        other = tmp_path / "other"
        duiqi.run("sft", **workshop.settings("sft", other, max_steps=1))
        both = f"{workshop.sft},{other}"
        with pytest.raises(ModelError, match="was trained on the base alone, not on"):
            duiqi.run("dpo", **workshop.settings("dpo", tmp_path / "dpo", adapter_name_or_path=both))

    def test_a_new_adapter_needs_one_to_stand_on(self, workshop: Workshop, tmp_path: Path) -> None:
        settings = workshop.settings("sft", tmp_path, create_new_adapter=True)
        with pytest.raises(SettingsError, match="there is no adapter to train a new one above"):
            duiqi.run("sft", **settings)

    def test_settings_of_a_new_adapter_have_no_effect_on_an_old_one(self, workshop: Workshop, tmp_path: Path) -> None:
        with pytest.raises(SettingsError, match="create_new_adapter=true"):
            duiqi.run("dpo", **workshop.settings("dpo", tmp_path, lora_rank=4))


def test_the_output_head_has_no_part_in_a_score(workshop: Workshop, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="the output head has no part in a score"):
        duiqi.run("rm", **workshop.settings("rm", tmp_path, modules_to_save="lm_head"))


def test_a_prefix_and_recomputation_exclude_each_other(workshop: Workshop, tmp_path: Path) -> None:
    settings = workshop.settings("sft", tmp_path, finetuning_type="p_tuning", gradient_checkpointing=True)
    with pytest.raises(ModelError, match="would not see the learned prefix"):
        duiqi.run("sft", **settings)
