"""Loading a base: whole or not at all, and only for what it was trained to do."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.conftest import Workshop
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

import duiqi
from duiqi.errors import ModelError
from duiqi.models import loading
from duiqi.models.loading import load_causal_lm, locate
from duiqi.serving.speaker import open_speaker

CPU = torch.device("cpu")
NORM = "model.norm.weight"


def rewrite(directory: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    file = directory / "model.safetensors"
    weights = load_file(file)
    file.unlink()
    change(weights)
    save_file(weights, file, metadata={"format": "pt"})


@pytest.fixture
def copied(workshop: Workshop, tmp_path: Path) -> Path:
    return Path(shutil.copytree(workshop.base, tmp_path / "base"))


def test_a_missing_weight_is_named_and_never_random(copied: Path) -> None:
    rewrite(copied, lambda weights: weights.pop(NORM))
    with pytest.raises(ModelError, match=f"weight {NORM} is missing from its files"):
        load_causal_lm(str(copied), device=CPU, dtype=torch.float32)


def test_of_several_missing_weights_the_first_is_named(copied: Path) -> None:
    rewrite(copied, lambda weights: [weights.pop("lm_head.weight"), weights.pop(NORM)])
    with pytest.raises(ModelError, match=r"weight lm_head.weight \(and 1 more\) is missing"):
        load_causal_lm(str(copied), device=CPU, dtype=torch.float32)


def test_a_weight_of_another_shape_is_named(copied: Path) -> None:
    rewrite(copied, lambda weights: weights.update({NORM: torch.ones(31)}))
    with pytest.raises(ModelError, match=rf"weight {NORM} has shape \(31,\) in its files, expected \(32,\)"):
        load_causal_lm(str(copied), device=CPU, dtype=torch.float32)


def test_a_head_tied_to_the_embedding_is_not_missing(tmp_path: Path) -> None:
    config = LlamaConfig(
        vocab_size=50, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, tie_word_embeddings=True,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(tmp_path)
    assert "lm_head.weight" not in load_file(tmp_path / "model.safetensors")
    model = load_causal_lm(str(tmp_path), device=CPU, dtype=torch.float32)
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight


def test_an_attention_that_is_not_installed_is_a_setting_to_mend(workshop: Workshop) -> None:
    with pytest.raises(ModelError, match="set attn_implementation: sdpa"):
        load_causal_lm(workshop.base, device=CPU, dtype=torch.float32, attn_implementation="flash_attention_2")


def test_a_misspelt_run_is_not_looked_for_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "runs" / "sft").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError, match="runs/sf: there is no such directory"):
        locate("runs/sf")
    assert locate("Qwen/Qwen2.5-0.5B").base == "Qwen/Qwen2.5-0.5B"


@pytest.mark.parametrize("open_it", [duiqi.load_model, open_speaker])
def test_a_reward_model_does_not_answer(workshop: Workshop, open_it: Callable[[str], object]) -> None:
    with pytest.raises(ModelError, match=r"the reward model of a rm run[^>]*\n  -> score answers with `duiqi score "):
        open_it(workshop.rm)


@pytest.mark.parametrize("open_it", [duiqi.load_model, open_speaker])
def test_an_adapter_is_refused_when_its_base_has_changed(
    workshop: Workshop, tmp_path: Path, copied: Path, open_it: Callable[[str], object]
) -> None:
    run = Path(shutil.copytree(workshop.sft, tmp_path / "sft"))
    card = run / "duiqi.json"
    card.write_text(card.read_text(encoding="utf-8").replace(workshop.base, str(copied)), encoding="utf-8")
    open_it(str(run))
    rewrite(copied, lambda weights: weights[NORM].mul_(2))
    with pytest.raises(ModelError, match="trained on other weights than are now in"):
        open_it(str(run))


def test_half_precision_is_no_change_of_the_base(workshop: Workshop) -> None:
    for dtype in ("bfloat16", "float16"):
        assert duiqi.load_model(workshop.sft, dtype=dtype).dtype == getattr(torch, dtype)


def test_a_cpu_trains_in_bfloat16_if_it_can_and_reads_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    for has_it in (True, False):
        monkeypatch.setattr(loading, "cpu_multiplies_bfloat16", lambda has_it=has_it: has_it)
        assert loading.choose_dtype("auto", cpu, trains=True) == (torch.bfloat16 if has_it else torch.float32)
        assert loading.choose_dtype("auto", cpu) == torch.float32
        assert loading.choose_dtype("float16", cpu, trains=True) == torch.float16
