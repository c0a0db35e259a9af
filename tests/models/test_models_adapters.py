"""Adapters on a shared base: files that plain PEFT reads, switches that really switch, bases that are told apart."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import PeftModel
from tests.conftest import Workshop
from transformers import AutoModelForCausalLM, AutoTokenizer

import duiqi
from duiqi.models.adapter_files import read_adapter
from duiqi.models.adapters import LoRASpec
from duiqi.models.fingerprint import fingerprint
from duiqi.models.shared_base import SharedBase

IDS = torch.tensor([[5, 6, 7, 8, 9]])


def load_base(workshop: Workshop) -> SharedBase:
    return SharedBase(AutoModelForCausalLM.from_pretrained(workshop.base), name=workshop.base)


def logits(base: SharedBase, role: str) -> torch.Tensor:
    with base.acting(role):
        return base.logits(base.trunk(IDS)[0])


@torch.no_grad()
def test_plain_peft_gives_the_same_logits(workshop: Workshop) -> None:
    theirs = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(workshop.base), workshop.sft).eval()
    ours = duiqi.load_model(workshop.sft)
    assert torch.allclose(ours(input_ids=IDS).logits, theirs(input_ids=IDS).logits, atol=1e-6)
    base = load_base(workshop)
    base.seat_saved_adapter("policy", read_adapter(workshop.sft), trainable=False)
    assert torch.allclose(logits(base, "policy"), theirs(input_ids=IDS).logits, atol=1e-6)


@torch.no_grad()
def test_roles_hear_their_own_adapter_and_the_bare_base_hears_none(workshop: Workshop) -> None:
    plain = AutoModelForCausalLM.from_pretrained(workshop.base).eval()(input_ids=IDS).logits
    base = load_base(workshop)
    base.seat_bare("bare")
    base.seat_saved_adapter("policy", read_adapter(workshop.sft), trainable=True)
    base.seat_saved_adapter("reward", read_adapter(workshop.rm), trainable=False)
    base.rest_on("policy")
    resting = base.logits(base.trunk(IDS)[0])
    assert torch.allclose(logits(base, "bare"), plain, atol=1e-6)
    assert torch.equal(logits(base, "policy"), resting)
    assert not torch.allclose(logits(base, "policy"), plain, atol=1e-5)
    assert not torch.allclose(logits(base, "reward"), resting, atol=1e-5)
    assert torch.equal(base.logits(base.trunk(IDS)[0]), resting)


def test_a_copy_is_equal_and_apart(workshop: Workshop) -> None:
    base = load_base(workshop)
    base.seat_saved_adapter("policy", read_adapter(workshop.sft), trainable=True)
    base.seat_copy("reference", "policy", trainable=False)
    assert torch.equal(logits(base, "reference"), logits(base, "policy"))
    with torch.no_grad():
        for parameter in base.role_parameters("policy").values():
            parameter.add_(0.1)
    assert not torch.allclose(logits(base, "reference"), logits(base, "policy"), atol=1e-3)


def test_a_copy_that_learns_takes_its_adapter_along_and_no_other(workshop: Workshop) -> None:
    base = SharedBase(AutoModelForCausalLM.from_pretrained(workshop.base, dtype=torch.bfloat16), name=workshop.base)
    base.seat_saved_adapter("policy", read_adapter(workshop.sft), trainable=True)
    base.seat_saved_adapter("reward", read_adapter(workshop.rm), trainable=False)
    base.rest_on("policy")
    before = set(base.trainable_parameters())
    base.seat_learning_copy("value", "reward")
    own = dict(base.seat("value").network.named_parameters())
    assert {p.dtype for p in own.values()} == {torch.float32}
    assert {name.split(".")[-2] for name in own if "lora_" in name} == {"reward"}
    learning = set(base.trainable_parameters()) - before
    assert learning == {f"value.{name}" for name in own if "lora_" not in name}
    assert base.model.dtype == torch.bfloat16
    assert len(base.role_parameters("policy")) == len(base.role_parameters("reward")) == 2 * 2 * 7


def test_a_copy_that_learns_may_have_no_adapter(workshop: Workshop) -> None:
    base = load_base(workshop)
    base.seat_bare("bare")
    base.seat_saved_adapter("policy", read_adapter(workshop.sft), trainable=True)
    base.seat_learning_copy("value", "bare")
    with base.acting("bare"):
        expected = base.trunk(IDS)[0]
    with base.acting("value"):
        assert torch.allclose(base.trunk(IDS)[0], expected, atol=1e-6)
    assert not any("lora_" in name for name, _ in base.seat("value").network.named_parameters())


def test_only_the_seated_adapter_trains(workshop: Workshop) -> None:
    base = load_base(workshop)
    base.seat_new_adapter("policy", LoRASpec(rank=2))
    base.seat_copy("reference", "policy", trainable=False)
    trained = set(base.trainable_parameters())
    assert trained == set(base.role_parameters("policy"))
    assert len(trained) == 2 * 2 * 7  # A and B, two layers, seven linear maps each


def test_a_new_adapter_changes_nothing_yet(workshop: Workshop) -> None:
    base = load_base(workshop)
    base.seat_bare("bare")
    base.seat_new_adapter("policy", LoRASpec(rank=2))
    assert torch.equal(logits(base, "policy"), logits(base, "bare"))


def test_the_fingerprint_knows_the_weights_and_not_their_precision(workshop: Workshop) -> None:
    exact = AutoModelForCausalLM.from_pretrained(workshop.base, dtype=torch.float32)
    half = AutoModelForCausalLM.from_pretrained(workshop.base, dtype=torch.bfloat16)
    assert fingerprint(exact) == fingerprint(half)
    with torch.no_grad():
        exact.model.layers[1].mlp.up_proj.weight.mul_(1.5)
    assert fingerprint(exact) != fingerprint(half)


def test_a_folder_of_runs_can_be_moved(workshop: Workshop, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(workshop.root, tmp_path / "moved", symlinks=True)
    moved = tmp_path / "moved" / "sft"
    card = (moved / "duiqi.json").read_text(encoding="utf-8").replace(str(workshop.root), "/gone")
    (moved / "duiqi.json").unlink()
    (moved / "duiqi.json").write_text(card, encoding="utf-8")
    with torch.no_grad():
        here = duiqi.load_model(str(moved))(input_ids=IDS).logits
        there = duiqi.load_model(workshop.sft)(input_ids=IDS).logits
    assert torch.equal(here, there)


def test_the_tokenizer_and_its_template_travel_with_the_adapter(workshop: Workshop) -> None:
    ours = AutoTokenizer.from_pretrained(workshop.sft)
    assert ours.chat_template == AutoTokenizer.from_pretrained(workshop.base).chat_template


@pytest.mark.parametrize("shape", [(32000, 1024), (1, 1), (3, 5)])
def test_tensors_of_any_size_have_a_fingerprint(shape: tuple[int, int]) -> None:
    layer = torch.nn.Linear(shape[1], shape[0], bias=False, dtype=torch.bfloat16)
    assert len(fingerprint(layer)) == 16


def test_functional_dropouts_are_disabled_too(workshop: Workshop) -> None:
    base = load_base(workshop)
    base.seat_new_adapter("policy", LoRASpec(rank=2, dropout=0.5))
    base.model.model.layers[0].self_attn.attention_dropout = 0.3
    base.model.model.layers[1].mlp.hidden_dropout = 0.2
    base.disable_dropout()
    assert base.model.model.layers[0].self_attn.attention_dropout == 0.0
    assert base.model.model.layers[1].mlp.hidden_dropout == 0.0
    assert all(module.p == 0.0 for module in base.model.modules() if isinstance(module, torch.nn.Dropout))


@pytest.mark.parametrize("kind", ["use_dora", "use_rslora"])
def test_variants_of_lora_train_serve_as_reference_and_open_in_peft(
    workshop: Workshop, tmp_path: Path, kind: str
) -> None:
    sft, ppo = tmp_path / "sft", tmp_path / "ppo"
    duiqi.run("sft", **workshop.settings("sft", sft, max_steps=2, **{kind: True}))
    duiqi.run("ppo", **workshop.settings("ppo", ppo, max_steps=1, adapter_name_or_path=str(sft)))
    theirs = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(workshop.base), ppo).eval()
    with torch.no_grad():
        assert torch.allclose(duiqi.load_model(str(ppo))(input_ids=IDS).logits, theirs(input_ids=IDS).logits, atol=1e-5)
