"""What trainers of 2023 left on disk: value heads, layers that were trained alone, adapters of an older PEFT."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from tests.conftest import Workshop
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

import duiqi
from duiqi.errors import ModelError
from duiqi.models.adapter_files import read_adapter
from duiqi.models.lineage import stack_up
from duiqi.models.loading import locate
from duiqi.models.reward import load_standalone_reward
from duiqi.models.shared_base import SharedBase
from duiqi.serving.export import export
from duiqi.serving.speaker import open_speaker
from duiqi.types import Message

IDS = torch.tensor([[5, 9, 14, 3, 77, 2]])
HUB_NAME = "THUDM/chatglm-6b"


def old_lora(directory: Path, base: str, *, named: str, seed: int = 1) -> nn.Module:
    """An adapter as PEFT wrote it in 2023, and the network with it, as PEFT itself computes it."""
    torch.manual_seed(seed)
    config = LoraConfig(r=2, lora_alpha=8, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    network = get_peft_model(AutoModelForCausalLM.from_pretrained(base), config).eval()
    for name, parameter in network.named_parameters():
        if "lora_" in name:
            nn.init.normal_(parameter, std=0.3)
    directory.mkdir(parents=True, exist_ok=True)
    weights = {n.replace(".default", ""): p.detach() for n, p in network.named_parameters() if "lora_" in n}
    torch.save(weights, directory / "adapter_model.bin")
    write_config(directory, named, target_modules=["q_proj", "v_proj"])
    (directory / "finetuning_args.bin").write_bytes(b"a pickle that nobody opens")
    return network


def write_config(directory: Path, base: str, **fields: object) -> None:
    """adapter_config.json as PEFT 0.3 wrote it."""
    text = {"base_model_name_or_path": base, "bias": "none", "fan_in_fan_out": False, "inference_mode": True,
            "init_lora_weights": True, "lora_alpha": 8.0, "lora_dropout": 0.1, "modules_to_save": None,
            "peft_type": "LORA", "r": 2, "task_type": "CAUSAL_LM"}  # fmt: skip
    (directory / "adapter_config.json").write_text(json.dumps({**text, **fields}), encoding="utf-8")


def old_value_head(directory: Path, size: int, *, prefix: str = "", seed: int = 2) -> tuple[Tensor, Tensor]:
    torch.manual_seed(seed)
    weight, bias = torch.randn(1, size), torch.randn(1)
    torch.save({f"{prefix}summary.weight": weight, f"{prefix}summary.bias": bias}, directory / "value_head.bin")
    return weight, bias


def last_hidden(network: nn.Module, ids: Tensor) -> Tensor:
    with torch.no_grad():
        hidden: Tensor = network(ids, output_hidden_states=True).hidden_states[-1][:, -1]
    return hidden


@pytest.mark.parametrize("prefix", ["", "v_head."])
def test_an_old_reward_model_scores_as_its_trainer_did_but_for_a_constant(
    workshop: Workshop, tmp_path: Path, prefix: str
) -> None:
    network = old_lora(tmp_path, workshop.base, named=workshop.base)
    weight, _ = old_value_head(tmp_path, 32, prefix=prefix)
    reward = load_standalone_reward(str(tmp_path))
    other = IDS.flip(1)
    theirs = torch.cat([last_hidden(network, ids) @ weight[0] for ids in (IDS, other)])
    ours = torch.cat([reward(ids, torch.ones_like(ids).bool()) for ids in (IDS, other)])
    assert torch.allclose(ours, theirs, atol=1e-5)


def test_a_value_head_as_safetensors_beside_a_full_model_makes_it_a_reward_model(
    workshop: Workshop, tmp_path: Path
) -> None:
    directory = Path(shutil.copytree(workshop.base, tmp_path / "full"))
    weight = torch.randn(1, 32, generator=torch.Generator().manual_seed(3))
    save_file(
        {"v_head.summary.weight": weight, "v_head.summary.bias": torch.zeros(1)}, directory / "value_head.safetensors"
    )
    theirs = last_hidden(AutoModelForCausalLM.from_pretrained(workshop.base).eval(), IDS) @ weight[0]
    assert torch.allclose(load_standalone_reward(str(directory))(IDS, torch.ones_like(IDS).bool()), theirs, atol=1e-5)


def test_an_old_policy_with_a_critic_s_head_beside_it_is_still_a_policy(workshop: Workshop, tmp_path: Path) -> None:
    old_lora(tmp_path / "ppo", workshop.base, named=HUB_NAME)
    old_value_head(tmp_path / "ppo", 32)
    changes = {"adapter_name_or_path": str(tmp_path / "ppo"), "max_steps": 1}
    duiqi.run("sft", **workshop.settings("sft", tmp_path / "sft", **changes))


def test_ppo_puts_an_old_reward_model_on_the_policy_s_base(workshop: Workshop, tmp_path: Path) -> None:
    old_lora(tmp_path / "rm", workshop.base, named=HUB_NAME)
    old_value_head(tmp_path / "rm", 32)
    changes = {"reward_model": str(tmp_path / "rm"), "max_steps": 1, "eval_dataset": None}
    duiqi.run("ppo", **workshop.settings("ppo", tmp_path / "ppo", **changes))
    manifest = json.loads((tmp_path / "ppo" / "manifest.json").read_text(encoding="utf-8"))
    assert "a network of its own" not in json.dumps(manifest)


def test_a_reward_model_goes_on_from_an_old_one_with_its_head(workshop: Workshop, tmp_path: Path) -> None:
    old_lora(tmp_path / "old", workshop.base, named=HUB_NAME)
    weight, _ = old_value_head(tmp_path / "old", 32)
    changes = {"adapter_name_or_path": str(tmp_path / "old"), "max_steps": 1, "learning_rate": 0.0}
    duiqi.run("rm", **workshop.settings("rm", tmp_path / "rm", **changes))
    score = read_adapter(tmp_path / "rm").score
    assert score is not None
    assert torch.equal(score, weight)


@pytest.mark.parametrize("layout", ["adapter_model.bin alone", "pytorch_model.bin with its arguments"])
def test_layers_that_freeze_tuning_saved_alone_replace_those_of_the_base(
    workshop: Workshop, tmp_path: Path, layout: str
) -> None:
    network = AutoModelForCausalLM.from_pretrained(workshop.base).eval()
    learned = {name: p.detach() * 1.5 for name, p in network.named_parameters() if "layers.1.mlp" in name}
    torch.save(learned, tmp_path / layout.split()[0])
    if layout.startswith("pytorch"):
        (tmp_path / "finetuning_args.json").write_text('{"finetuning_type": "freeze"}', encoding="utf-8")
        (tmp_path / "config.json").write_text(json.dumps({"_name_or_path": workshop.base}), encoding="utf-8")
    network.load_state_dict(learned, strict=False)
    base = SharedBase(AutoModelForCausalLM.from_pretrained(workshop.base), name=workshop.base)
    base.seat_saved_adapter("policy", read_adapter(tmp_path), trainable=False)
    with base.acting("policy"), torch.no_grad():
        ours = base.logits(base.trunk(IDS)[0])
    assert torch.allclose(ours, network(IDS).logits[0], atol=1e-5)
    changes = {"adapter_name_or_path": str(tmp_path), "max_steps": 1}
    duiqi.run("sft", **workshop.settings("sft", tmp_path / "sft", **changes))


def test_layers_alone_that_name_no_base_say_what_to_give(tmp_path: Path) -> None:
    torch.save({"model.layers.1.mlp.up_proj.weight": torch.zeros(64, 32)}, tmp_path / "adapter_model.bin")
    with pytest.raises(ModelError, match=r"does not say which base[^>]*-> name the base too: BASE,"):
        locate(str(tmp_path))


def test_adapters_without_their_configuration_are_no_trained_layers(tmp_path: Path) -> None:
    torch.save({"model.layers.0.q.lora_A.weight": torch.zeros(2, 2)}, tmp_path / "adapter_model.bin")
    with pytest.raises(ModelError, match=r"adapter_config\.json is missing"):
        read_adapter(tmp_path)


def test_names_that_were_mere_endings_of_paths_bring_every_layer_they_made(tmp_path: Path) -> None:
    config = LlamaConfig(
        vocab_size=90, hidden_size=8, intermediate_size=8, num_hidden_layers=12, num_attention_heads=2,
        num_key_value_heads=2,
    )  # fmt: skip
    torch.manual_seed(0)
    network = LlamaForCausalLM(config).eval()
    made = [f"model.layers.{layer}.self_attn.q_proj" for layer in (1, 11)]
    theirs = get_peft_model(network, LoraConfig(r=2, lora_alpha=8, target_modules=made, task_type="CAUSAL_LM")).eval()
    for name, parameter in theirs.named_parameters():
        if "lora_" in name:
            nn.init.normal_(parameter, std=0.3)
    weights = {n.replace(".default", ""): p.detach() for n, p in theirs.named_parameters() if "lora_" in n}
    torch.save(weights, tmp_path / "adapter_model.bin")
    write_config(tmp_path, HUB_NAME, target_modules=["1.self_attn.q_proj"])
    with torch.no_grad():
        expected = theirs(IDS).logits[0]
    torch.manual_seed(0)
    base = SharedBase(LlamaForCausalLM(config), name="tiny")
    base.seat_saved_adapter("policy", read_adapter(tmp_path), trainable=False)
    with base.acting("policy"), torch.no_grad():
        assert torch.allclose(base.logits(base.trunk(IDS)[0]), expected, atol=1e-5)


def test_a_list_of_old_adapters_is_one_stack(workshop: Workshop, tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("first", "second")]
    first, second = (old_lora(path, workshop.base, named=HUB_NAME, seed=i) for i, path in enumerate(paths))
    plain = AutoModelForCausalLM.from_pretrained(workshop.base).eval()
    base = SharedBase(AutoModelForCausalLM.from_pretrained(workshop.base), name=workshop.base)
    below, last = stack_up(paths)
    base.seat_saved_adapter("policy", last, trainable=False, above=[below])
    merged = {
        name: weight + sum(each.merge_and_unload().state_dict()[name] - weight for each in (first, second))
        for name, weight in plain.state_dict().items()
    }
    plain.load_state_dict(merged)
    with base.acting("policy"), torch.no_grad():
        assert torch.allclose(base.logits(base.trunk(IDS)[0]), plain(IDS).logits[0], atol=1e-4)


class Touch:
    """What a pickle can do to whom opens it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return Path.touch, (self.path,)  # type: ignore[return-value]


@pytest.mark.parametrize("save", [torch.save, lambda value, path: path.write_bytes(pickle.dumps(value, protocol=2))])
@pytest.mark.parametrize("name", ["value_head.bin", "adapter_model.bin", "pytorch_model.bin", "finetuning_args.bin"])
def test_a_file_that_is_a_program_runs_nothing(
    workshop: Workshop, tmp_path: Path, save: Callable[[object, Path], object], name: str
) -> None:
    directory = tmp_path / "old"
    if name in ("value_head.bin", "finetuning_args.bin"):
        old_lora(directory, workshop.base, named=HUB_NAME)
    directory.mkdir(exist_ok=True)
    (directory / "finetuning_args.json").write_text('{"finetuning_type": "freeze"}', encoding="utf-8")
    save({"summary.weight": Touch(tmp_path / "TOUCHED")}, directory / name)
    if name == "finetuning_args.bin":
        read_adapter(directory)
    else:
        with pytest.raises(ModelError, match="cannot be read"):
            read_adapter(directory)
    assert not (tmp_path / "TOUCHED").exists()


def test_an_old_adapter_answers_and_is_exported_with_its_base_named_beside_it(
    workshop: Workshop, tmp_path: Path
) -> None:
    network = old_lora(tmp_path / "old", workshop.base, named=HUB_NAME)
    both = f"{workshop.base},{tmp_path / 'old'}"
    with torch.no_grad():
        theirs = network(IDS).logits
    assert torch.allclose(duiqi.load_model(both)(IDS).logits, theirs, atol=1e-5)
    assert open_speaker(both, template="raw").prompt_ids([Message("user", "你好")])
    export(both, str(tmp_path / "plain"))
    with torch.no_grad():
        merged = AutoModelForCausalLM.from_pretrained(tmp_path / "plain").eval()(IDS).logits
    assert torch.allclose(merged, theirs, atol=1e-4)


@pytest.mark.parametrize("wrong", ["{sft},{sft}", "{base},{base}", "{base},nowhere"])
def test_a_base_and_an_adapter_are_told_apart(workshop: Workshop, wrong: str) -> None:
    with pytest.raises(ModelError, match="BASE,ADAPTER names a full model and one adapter on it"):
        locate(wrong.format(sft=workshop.sft, base=workshop.base))
