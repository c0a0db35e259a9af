"""Adapters on Baichuan: their gradients, those of 2023, packed and padded reading, sampling, and whole stages."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from tests.conftest import Workshop
from tests.models.ports.baichuan_by_formula import HIDDEN, KINDS, VOCAB, logits_by_formula, tiny_model
from tests.models.test_models_exactness import FAMILIES, apart, assert_same, losses_and_gradients, seated
from torch import Tensor

import duiqi
from duiqi.algorithms.log_probs import head_log_probs
from duiqi.models.adapters import LoRASpec, adapter_config
from duiqi.models.loading import load_tokenizer
from duiqi.models.ports.baichuan import BaichuanForCausalLM, BaichuanForSequenceClassification
from duiqi.models.ports.norm_head import NormHead
from duiqi.models.shared_base import SharedBase
from duiqi.packing.batch import Family, pack
from duiqi.rollouts.decoder import Decoder
from duiqi.types import Sampling

IDS = [5, 80, 3, 41, 17]
SPOT = "model.layers.0.self_attn.W_pack"

each_kind = pytest.mark.parametrize("kind", KINDS)


# -- adapters ----------------------------------------------------------------------------------------------------------
def loss_by_formula(weights: dict[str, Tensor], model: BaichuanForCausalLM) -> float:
    log_probs = logits_by_formula(weights, model.config, IDS).log_softmax(-1)
    return -float(log_probs[range(len(IDS) - 1), IDS[1:]].mean())


@each_kind
def test_the_gradient_of_an_adapter_is_the_slope_of_the_loss_by_formula(kind: str) -> None:
    model = tiny_model(kind)
    weights = {name: value.clone().double() for name, value in model.state_dict().items()}
    adapted = get_peft_model(model, LoraConfig(r=2, lora_alpha=4, target_modules=["W_pack"]))
    down, up = (dict(adapted.named_parameters())[f"base_model.model.{SPOT}.lora_{x}.default.weight"] for x in "AB")
    torch.manual_seed(1)
    up.data = 0.2 * torch.randn_like(up)
    for name, parameter in adapted.named_parameters():  # of the other layer's adapter B is zero: it does nothing
        assert SPOT in name or "lora_B" not in name or not parameter.any()
    ids = torch.tensor([IDS])
    adapted(input_ids=ids, labels=ids).loss.backward()

    def loss(a: Tensor, b: Tensor) -> float:
        return loss_by_formula({**weights, f"{SPOT}.weight": weights[f"{SPOT}.weight"] + 2 * b @ a}, model)

    a, b, step = down.detach().double(), up.detach().double(), 1e-5
    for matrix, gradient in ((a, down.grad), (b, up.grad)):
        for place in gradient.abs().flatten().topk(3).indices.tolist():
            at = divmod(place, matrix.shape[1])
            before = float(matrix[at])
            matrix[at] = before + step
            above = loss(a, b)
            matrix[at] = before - step
            below = loss(a, b)
            matrix[at] = before
            assert float(gradient[at]) == pytest.approx((above - below) / (2 * step), rel=1e-3)


def test_an_adapter_of_2023_loads_through_peft(tmp_path: Path) -> None:
    model = tiny_model("Baichuan2-7B")
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    torch.manual_seed(1)
    pairs = {f"model.layers.{i}.self_attn.W_pack": (torch.randn(3, HIDDEN), torch.randn(3 * HIDDEN, 3)) for i in (0, 1)}
    state = {}
    for name, (a, b) in pairs.items():
        weights[f"{name}.weight"] += 32 / 3 * 0.01 * b @ a
        state[f"base_model.model.{name}.lora_A.weight"] = a
        state[f"base_model.model.{name}.lora_B.weight"] = 0.01 * b
    torch.save(state, tmp_path / "adapter_model.bin")
    config = {
        "base_model_name_or_path": "baichuan-inc/Baichuan2-7B-Base", "bias": "none", "fan_in_fan_out": False,
        "inference_mode": True, "init_lora_weights": True, "layers_pattern": None, "layers_to_transform": None,
        "lora_alpha": 32.0, "lora_dropout": 0.1, "modules_to_save": None, "peft_type": "LORA", "r": 3,
        "revision": None, "target_modules": ["W_pack"], "task_type": "CAUSAL_LM",
    }  # fmt: skip
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    adapted = PeftModel.from_pretrained(model, tmp_path).eval()
    with torch.no_grad():
        found = adapted(input_ids=torch.tensor([IDS])).logits[0]
    torch.testing.assert_close(found.double(), logits_by_formula(weights, model.config, IDS), rtol=1e-4, atol=1e-4)


@each_kind
def test_an_adapter_on_all_layers_leaves_the_head_alone(kind: str) -> None:
    names = adapter_config(LoRASpec(), tiny_model(kind)).target_modules
    assert names == {"W_pack", "o_proj", "gate_proj", "up_proj", "down_proj"}


# -- a shared base -----------------------------------------------------------------------------------------------------
@each_kind
def test_rotary_models_are_packed_and_alibi_models_padded_with_the_reason(kind: str) -> None:
    layout = SharedBase(tiny_model(kind), name="tiny").layout
    assert not layout.is_lean
    if KINDS[kind]["position_embedding"] == "rope":
        assert layout.is_packed
    else:
        assert "ALiBi goes by how far tokens are apart" in str(layout)


@each_kind
def test_a_batch_has_the_losses_and_gradients_of_its_sequences_alone(kind: str) -> None:
    base = seated(tiny_model(kind))
    together = losses_and_gradients(base, [pack(FAMILIES)])
    assert_same(together, losses_and_gradients(base, apart(FAMILIES)))


@each_kind
def test_log_probabilities_on_a_shared_base_are_those_of_the_formulae(kind: str) -> None:
    base = SharedBase(tiny_model(kind), name="tiny")
    base.seat_bare("policy")
    with base.acting("policy"):
        batch = pack([Family(IDS[:2], [IDS[2:], [9, 2]])])
        found = head_log_probs(base.read(batch), batch.targets, base.output_head()).log_probs
    expected = []
    for answer in (IDS[2:], [9, 2]):
        log_probs = logits_by_formula(base.model.state_dict(), base.model.config, IDS[:2] + answer).log_softmax(-1)
        expected += [float(log_probs[1 + i, token]) for i, token in enumerate(answer)]
    assert found.tolist() == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("kind", ["Baichuan2-7B", "Baichuan2-13B"])
def test_a_scaled_head_learns_through_its_scaling_when_all_weights_learn(kind: str) -> None:
    base = SharedBase(tiny_model(kind), name="tiny")
    base.seat_full("policy")
    batch = pack(FAMILIES)
    with base.role("policy"):
        log_probs = head_log_probs(base.read(batch), batch.targets, base.output_head(), chunk_size=4).log_probs
        log_probs.sum().backward()
    head = base.model.lm_head
    assert isinstance(head, NormHead)
    assert float(head.weight.grad.norm()) > 0.1
    assert (head.weight.grad * head.weight).sum(-1).abs().max().item() < 1e-3


@each_kind
def test_what_the_sampler_says_of_its_answers_is_what_reading_them_says(kind: str) -> None:
    base = seated(tiny_model(kind))
    prompts = [[5, 6, 7, 8], [9], [5, 6, 7, 8], list(range(20, 31))]
    decoder = Decoder(
        base, decode=str, stop_token_ids=[2], pad_token_id=0, max_batch_rows=3, active=lambda: base.acting("policy")
    )
    rollouts = decoder.generate(prompts, Sampling(max_new_tokens=9, min_new_tokens=0, seed=3))
    with base.acting("policy"):
        for rollout in rollouts:
            batch = pack([Family(list(rollout.prompt_ids), [list(rollout.answer_ids)])])
            read = head_log_probs(base.read(batch), batch.targets, base.output_head()).log_probs
            assert list(rollout.log_probs) == pytest.approx(read.tolist(), abs=1e-4)
            assert max(rollout.answer_ids) < VOCAB


# -- stages ------------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def bases(workshop: Workshop, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A directory for every kind, with the workshop's tokenizer."""
    tokenizer = load_tokenizer(workshop.base)
    found = {}
    for kind in KINDS:
        directory = tmp_path_factory.mktemp(kind)
        tiny_model(kind, vocab_size=len(tokenizer), eos_token_id=tokenizer.eos_token_id).save_pretrained(directory)
        tokenizer.save_pretrained(directory)
        found[kind] = str(directory)
    return found


@each_kind
def test_sft_and_a_reward_model_train_and_load(
    kind: str, bases: dict[str, str], workshop: Workshop, tmp_path: Path
) -> None:
    shorter = {"model_name_or_path": bases[kind], "max_steps": 2}
    duiqi.run("sft", **workshop.settings("sft", tmp_path / "sft", **shorter))
    model = duiqi.load_model(str(tmp_path / "sft"))
    assert isinstance(model, BaichuanForCausalLM)
    ids = torch.tensor([IDS])
    assert model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=2, do_sample=False).shape[1] <= 7
    duiqi.run("rm", **workshop.settings("rm", tmp_path / "rm", **shorter))
    assert isinstance(duiqi.load_reward_model(str(tmp_path / "rm")), BaichuanForSequenceClassification)


def test_a_reward_model_of_which_all_weights_learned_loads(
    bases: dict[str, str], workshop: Workshop, tmp_path: Path
) -> None:
    settings = {"model_name_or_path": bases["Baichuan2-13B"], "max_steps": 2, "finetuning_type": "full"}
    duiqi.run("rm", **workshop.settings("rm", tmp_path / "rm", **settings))
    assert isinstance(duiqi.load_reward_model(str(tmp_path / "rm")), BaichuanForSequenceClassification)
