"""Every way to tune in every stage on four kinds of network: it trains, saves, and what is loaded again is the same."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from tests.conftest import Workshop
from tests.models.ports.tiny_releases import RELEASES
from torch import Tensor
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaForCausalLM,
    PreTrainedModel,
)

import duiqi
from duiqi.errors import ModelError, SettingsError
from duiqi.models.adapter_files import read_adapter
from duiqi.models.lineage import read_stack
from duiqi.models.loading import load_causal_lm, load_tokenizer
from duiqi.models.quantized import Quantization, quantization_config
from duiqi.models.reward import load_standalone_reward
from duiqi.models.saving import save_role
from duiqi.models.shared_base import SharedBase
from duiqi.rollouts.scoring import ModelScorer
from duiqi.rollouts.standalone import open_reward_model
from duiqi.serving.export import export
from duiqi.stages import dpo, ppo, ppo_cast, reward_model, sft

IDS = torch.tensor([[5, 6, 7, 8, 9]])
METHODS: dict[str, dict[str, Any]] = {
    "lora": {"lora_rank": 2},
    "lora and head": {"lora_rank": 2, "modules_to_save": "lm_head"},
    "pissa": {"lora_rank": 2, "pissa_init": True},
    "freeze": {"finetuning_type": "freeze", "freeze_trainable_layers": 1},
    "p_tuning": {"finetuning_type": "p_tuning", "pre_seq_len": 4},
    "projected": {"finetuning_type": "p_tuning", "pre_seq_len": 4, "prefix_projection": True},
    "full": {"finetuning_type": "full"},
}
KINDS = ("llama", "gpt2", "bloom", "ChatGLM-6B")
OTHERS = ("ChatGLM2-6B", "Baichuan-7B", "Baichuan2-13B")


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
    for kind in (*KINDS, *OTHERS):
        if kind in RELEASES:
            found[kind] = str(tmp_path_factory.mktemp(kind))
            RELEASES[kind].write(Path(found[kind]))
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


def cells() -> list[tuple[str, str]]:
    """Every method on four networks, and on others those that touch a network most."""
    return [*product(KINDS, METHODS), *product(OTHERS, ("freeze", "p_tuning"))]


@pytest.mark.parametrize(("kind", "method"), cells())
def test_it_trains_saves_and_loads_equal_in_every_stage(
    workshop: Workshop, bases: dict[str, str], witness: Witness, tmp_path: Path, kind: str, method: str
) -> None:
    is_full = method == "full"
    common: dict[str, Any] = {"model_name_or_path": bases[kind], "max_steps": 2, "eval_dataset": None}
    if kind in RELEASES:
        common |= {"template": RELEASES[kind].template, "cutoff_len": 640}
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


BITS: dict[str, dict[str, Any]] = {
    "nf4": {"quantization_bit": 4},
    "fp4": {"quantization_bit": 4, "quantization_type": "fp4"},
    "int8": {"quantization_bit": 8},
}


@pytest.mark.parametrize(("kind", "name"), product(KINDS, BITS))
def test_a_quantised_base_trains_in_every_stage(
    workshop: Workshop, bases: dict[str, str], witness: Witness, tmp_path: Path, kind: str, name: str
) -> None:
    bits, place = BITS[name], bases[kind]
    common = {"model_name_or_path": place, "max_steps": 2, "eval_dataset": None, **bits}
    if kind in RELEASES:
        common |= {"template": RELEASES[kind].template, "cutoff_len": 640}
    later = {**common, "adapter_name_or_path": str(tmp_path / "sft")}
    reward = {"reward_model": str(tmp_path / "rm"), "rollout_batch_size": 4}
    duiqi.run("sft", **workshop.settings("sft", tmp_path / "sft", **common))
    duiqi.run("rm", **workshop.settings("rm", tmp_path / "rm", **common))
    duiqi.run("dpo", **workshop.settings("dpo", tmp_path / "dpo", **later))
    duiqi.run("ppo", **workshop.settings("ppo", tmp_path / "ppo", **later, **reward))
    first, *others = witness.bases.values()
    stored = torch.int8 if name == "int8" else torch.uint8
    assert {weight.dtype for weight in first.values()} >= {torch.float32, stored}
    assert all(torch.equal(other[key], weight) for other in others for key, weight in first.items())
    network = load_causal_lm(
        place,
        device=torch.device("cpu"),
        dtype=torch.float32,
        quantization=Quantization(bits["quantization_bit"], bits.get("quantization_type", "nf4")),
    )
    base = SharedBase(network, name=place)
    *_, own = read_stack(tmp_path / "dpo")
    base.seat_saved_adapter("policy", own, trainable=False)
    with base.acting("policy"):
        again = base.logits(base.trunk(IDS)[0])
    assert torch.allclose(again, witness.logits["dpo"], atol=0.05 if stored == torch.int8 else 1e-5)
    assert loaded(tmp_path / "dpo").isfinite().all()  # on the base as it was before


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"finetuning_type": "full"}, "quantization_bit: has no effect with finetuning_type=full"),
        ({"finetuning_type": "freeze"}, "quantization_bit: has no effect with finetuning_type=freeze"),
        ({"quantization_bit": 5}, "5 bits are not to be had"),
        ({"quantization_bit": 8, "quantization_type": "fp4"}, "set quantization_bit=4"),
        ({"lora_target": "q_proj", "modules_to_save": "mlp@1"}, "mlp.gate_proj are stored in few bits"),
    ],
)
def test_what_cannot_be_quantised_is_refused(
    workshop: Workshop, tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises((SettingsError, ModelError), match=message):
        duiqi.run("sft", **workshop.settings("sft", tmp_path, **{"quantization_bit": 4, **settings}))


def test_a_reward_model_of_a_quantised_base_is_never_mounted_on_a_merged_one(
    workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    apart: list[str] = []

    def opened(source: str, **how: Any) -> ModelScorer:
        apart.append(source)
        return open_reward_model(source, **how)

    monkeypatch.setattr(ppo_cast, "open_reward_model", opened)
    export(workshop.sft, str(tmp_path / "merged"))
    reward = str(tmp_path / "rm")
    duiqi.run("rm", **workshop.settings("rm", Path(reward), quantization_bit=4, max_steps=1, eval_dataset=None))
    common = {"max_steps": 1, "eval_dataset": None, "adapter_name_or_path": None, "reward_model": reward}
    duiqi.run("ppo", **workshop.settings("ppo", tmp_path / "raw", **common))
    assert apart == []
    merged = {**common, "model_name_or_path": str(tmp_path / "merged")}
    duiqi.run("ppo", **workshop.settings("ppo", tmp_path / "ppo", **merged))
    assert apart == [reward]


@pytest.mark.parametrize("bits", [4, 8])
def test_layers_that_were_trained_whole_cannot_stand_in_a_quantised_base(
    workshop: Workshop, tmp_path: Path, bits: int
) -> None:
    freeze = {"finetuning_type": "freeze", "freeze_trainable_layers": 1, "max_steps": 1}
    duiqi.run("sft", **workshop.settings("sft", tmp_path / "sft", **freeze))
    later = {"adapter_name_or_path": str(tmp_path / "sft"), "quantization_bit": bits}
    with pytest.raises(ModelError, match="are stored in few bits, so nothing can stand in their place"):
        duiqi.run("dpo", **workshop.settings("dpo", tmp_path / "dpo", **later))


def test_without_bitsandbytes_or_a_device_for_it_that_is_said(
    workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ModelError, match="bitsandbytes has no kernels for meta"):
        quantization_config(Quantization(4), device=torch.device("meta"), dtype=torch.float32)
    monkeypatch.setattr("importlib.util.find_spec", lambda *_: None)
    with pytest.raises(ModelError, match=r"bitsandbytes is not installed\n.*duiqi\[quantized\]"):
        duiqi.run("sft", **workshop.settings("sft", tmp_path, quantization_bit=4))


def test_the_way_to_tune_may_be_said_again_when_a_stage_goes_on(workshop: Workshop, tmp_path: Path) -> None:
    freeze = {"finetuning_type": "freeze", "max_steps": 1}
    duiqi.run("sft", **workshop.settings("sft", tmp_path / "sft", **freeze, freeze_trainable_layers=1))
    later = {"adapter_name_or_path": str(tmp_path / "sft"), "max_steps": 1}
    duiqi.run("dpo", **workshop.settings("dpo", tmp_path / "dpo", **{**freeze, **later}))
    with pytest.raises(SettingsError, match="is trained in the shape it has"):
        duiqi.run("dpo", **workshop.settings("dpo", tmp_path / "other", **later, finetuning_type="p_tuning"))


class TestVocabulary:
    GROWN: ClassVar[dict[str, Any]] = {"resize_vocab": True, "add_tokens": "<a>,<b>,<c>", "lora_rank": 2}

    def test_new_tokens_are_learned_saved_and_merged(
        self, workshop: Workshop, witness: Witness, tmp_path: Path
    ) -> None:
        whole = {"modules_to_save": "embed_tokens,lm_head", "max_steps": 3}
        duiqi.run("sft", **workshop.settings("sft", tmp_path / "grown", **self.GROWN, **whole))
        rows = len(load_tokenizer(workshop.base)) + 3
        assert witness.logits["grown"].shape[-1] == rows
        assert torch.allclose(loaded(tmp_path / "grown"), witness.logits["grown"], atol=1e-6)
        assert load_tokenizer(str(tmp_path / "grown")).convert_tokens_to_ids("<c>") == rows - 1
        made = export(str(tmp_path / "grown"), str(tmp_path / "plain"))
        assert made.gap < 1e-5
        assert torch.allclose(loaded(tmp_path / "plain"), witness.logits["grown"], atol=1e-5)
        duiqi.run("dpo", **workshop.settings("dpo", tmp_path / "dpo", adapter_name_or_path=str(tmp_path / "grown")))
        assert torch.allclose(loaded(tmp_path / "dpo"), witness.logits["dpo"], atol=1e-6)

        again = {"adapter_name_or_path": str(tmp_path / "grown"), "resize_vocab": True, "add_tokens": "<d>"}
        with pytest.raises(SettingsError, match=f"has grown the vocabulary to {rows} tokens already"):
            duiqi.run("dpo", **workshop.settings("dpo", tmp_path / "again", **again))

    def test_a_reward_model_of_new_tokens_scores_by_itself(
        self, workshop: Workshop, witness: Witness, tmp_path: Path
    ) -> None:
        whole = {"modules_to_save": "embed_tokens,lm_head", "max_steps": 1}
        duiqi.run("sft", **workshop.settings("sft", tmp_path / "sft", **self.GROWN, **whole))
        later = {"adapter_name_or_path": str(tmp_path / "sft"), "max_steps": 1}
        duiqi.run("rm", **workshop.settings("rm", tmp_path / "rm", **later))
        assert torch.allclose(loaded(tmp_path / "rm"), witness.logits["rm"], atol=1e-5)

    @pytest.mark.parametrize(("kind", "names"), [("llama", "embed_tokens,lm_head"), ("gpt2", "wte,lm_head")])
    def test_tokens_that_could_never_learn_are_refused(
        self, workshop: Workshop, bases: dict[str, str], tmp_path: Path, kind: str, names: str
    ) -> None:
        settings = {
            **self.GROWN,
            "model_name_or_path": bases[kind],
            "add_tokens": ",".join(f"<{i}>" for i in range(99)),
        }
        with pytest.raises(SettingsError, match=rf"new tokens would never learn.*\n.*modules_to_save: {names}$"):
            duiqi.run("sft", **workshop.settings("sft", tmp_path, **settings))

    def test_so_are_those_that_find_a_spare_row(self, workshop: Workshop, tmp_path: Path) -> None:
        config = LlamaForCausalLM.from_pretrained(workshop.base).config
        config.vocab_size += 64
        shutil.copytree(workshop.base, tmp_path / "base")
        LlamaForCausalLM(config).save_pretrained(tmp_path / "base")
        settings = workshop.settings("sft", tmp_path / "run", model_name_or_path=str(tmp_path / "base"), **self.GROWN)
        with pytest.raises(SettingsError, match="3 new tokens would never learn"):
            duiqi.run("sft", **settings)

    def test_tokens_without_rows_are_refused(self, workshop: Workshop, tmp_path: Path) -> None:
        tokenizer = load_tokenizer(workshop.base)
        tokenizer.add_tokens(["<extra>"])
        shutil.copytree(workshop.base, tmp_path / "base")
        tokenizer.save_pretrained(tmp_path / "base")
        settings = workshop.settings("sft", tmp_path / "run", model_name_or_path=str(tmp_path / "base"))
        with pytest.raises(ModelError, match="resize_vocab: true"):
            duiqi.run("sft", **settings)


def test_lora_plus_moves_the_second_matrices_further(workshop: Workshop, tmp_path: Path) -> None:
    sizes = []
    for name, ratio in (("plain", None), ("plus", 16.0)):
        settings = workshop.settings("sft", tmp_path / name, max_steps=2, lora_rank=2, loraplus_lr_ratio=ratio)
        duiqi.run("sft", **settings)
        weights = read_adapter(tmp_path / name).low_rank
        sizes.append(sum(float(weight.norm()) for key, weight in weights.items() if "lora_B" in key))
    assert sizes[1] > 4 * sizes[0]


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


def test_an_adapter_above_a_prefix_is_loaded_behind_it(workshop: Workshop, witness: Witness, tmp_path: Path) -> None:
    prefix = {"finetuning_type": "p_tuning", "pre_seq_len": 4, "learning_rate": 0.05, "max_steps": 2}
    duiqi.run("sft", **workshop.settings("sft", tmp_path / "sft", **prefix))
    above = {"adapter_name_or_path": str(tmp_path / "sft"), "create_new_adapter": True, "max_steps": 2}
    duiqi.run("dpo", **workshop.settings("dpo", tmp_path / "dpo", **above))
    assert torch.allclose(loaded(tmp_path / "dpo"), witness.logits["dpo"], atol=1e-5)


def test_a_reward_model_above_an_output_head_scores_without_it(
    workshop: Workshop, witness: Witness, tmp_path: Path
) -> None:
    head = {"modules_to_save": "lm_head", "max_steps": 1}
    duiqi.run("sft", **workshop.settings("sft", tmp_path / "sft", **head))
    above = {"adapter_name_or_path": str(tmp_path / "sft"), "create_new_adapter": True, "max_steps": 1}
    duiqi.run("rm", **workshop.settings("rm", tmp_path / "rm", **above))
    assert torch.allclose(loaded(tmp_path / "rm"), witness.logits["rm"], atol=1e-5)


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

    def test_a_reward_model_without_its_card_is_known_by_its_head(self, workshop: Workshop, tmp_path: Path) -> None:
        shutil.copytree(workshop.rm, tmp_path / "rm")
        (tmp_path / "rm" / "duiqi.json").unlink()
        for name in ("adapter_name_or_path", "ref_model"):
            with pytest.raises(ModelError, match="this is a reward model"):
                duiqi.run("dpo", **workshop.settings("dpo", tmp_path / "dpo", **{name: str(tmp_path / "rm")}))

    def test_an_empty_list_names_no_adapter(self, workshop: Workshop, tmp_path: Path) -> None:
        with pytest.raises(SettingsError, match="adapter_name_or_path: names no adapter"):
            duiqi.run("dpo", **workshop.settings("dpo", tmp_path, adapter_name_or_path=" , "))

    def test_a_new_adapter_needs_one_to_stand_on(self, workshop: Workshop, tmp_path: Path) -> None:
        settings = workshop.settings("sft", tmp_path, create_new_adapter=True)
        with pytest.raises(SettingsError, match="there is no adapter to train a new one above"):
            duiqi.run("sft", **settings)

    def test_settings_of_a_new_adapter_have_no_effect_on_an_old_one(self, workshop: Workshop, tmp_path: Path) -> None:
        with pytest.raises(SettingsError, match="create_new_adapter=true"):
            duiqi.run("dpo", **workshop.settings("dpo", tmp_path, lora_rank=4))

    @pytest.mark.parametrize("changes", [{"finetuning_type": "full"}, {"finetuning_type": "freeze"}])
    def test_that_is_said_before_anything_is_loaded(
        self, workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]
    ) -> None:
        monkeypatch.delattr("duiqi.stages.start.load_causal_lm")
        with pytest.raises((SettingsError, ModelError), match=r"cannot start from an adapter|have no effect"):
            duiqi.run("dpo", **workshop.settings("dpo", tmp_path, **changes))

    def test_without_low_rank_layers_there_is_nothing_to_learn_faster(self, workshop: Workshop, tmp_path: Path) -> None:
        freeze = {"finetuning_type": "freeze", "freeze_trainable_layers": 1, "max_steps": 1}
        duiqi.run("sft", **workshop.settings("sft", tmp_path / "sft", **freeze))
        later = {"adapter_name_or_path": str(tmp_path / "sft"), "loraplus_lr_ratio": 16.0}
        with pytest.raises(SettingsError, match="loraplus_lr_ratio: no low-rank adapter learns here"):
            duiqi.run("dpo", **workshop.settings("dpo", tmp_path / "dpo", **later))


def test_the_output_head_has_no_part_in_a_score(workshop: Workshop, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="the output head has no part in a score"):
        duiqi.run("rm", **workshop.settings("rm", tmp_path, modules_to_save="lm_head"))


def test_a_prefix_and_recomputation_exclude_each_other(workshop: Workshop, tmp_path: Path) -> None:
    settings = workshop.settings("sft", tmp_path, finetuning_type="p_tuning", gradient_checkpointing=True)
    with pytest.raises(ModelError, match="would not see the learned prefix"):
        duiqi.run("sft", **settings)
