"""Which network a config.json belongs to, and that it loads without the code it names."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.conftest import Workshop
from tests.models.ports.baichuan_by_formula import KINDS, tiny_model

import duiqi
from duiqi.errors import ModelError
from duiqi.models.loading import load_causal_lm, load_tokenizer
from duiqi.models.ports.baichuan import BaichuanConfig, BaichuanForCausalLM
from duiqi.models.ports.registry import PORTS, find_port, model_name, port_of

COMMON = {"model_type": "baichuan", "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "hidden_act": "silu"}
SMALL = {"hidden_size": 4096, "intermediate_size": 11008, "num_attention_heads": 32, "num_hidden_layers": 32}
LARGE = {"hidden_size": 5120, "intermediate_size": 13696, "num_attention_heads": 40, "num_hidden_layers": 40}
RELEASED: dict[str, dict[str, Any]] = {
    "ChatGLM-6B": {
        "model_type": "chatglm", "architectures": ["ChatGLMModel"], "position_encoding_2d": True,
        "inner_hidden_size": 16384, "max_sequence_length": 2048, "gmask_token_id": 130001, "vocab_size": 130528,
    },
    "ChatGLM2-6B": {
        "model_type": "chatglm", "architectures": ["ChatGLMModel"], "padded_vocab_size": 65024,
        "multi_query_attention": True, "kv_channels": 128, "ffn_hidden_size": 13696,
    },
    "Baichuan-7B": {
        **COMMON, **SMALL, "architectures": ["BaiChuanForCausalLM"], "max_position_embeddings": 4096,
        "vocab_size": 64000, "auto_map": {"AutoModelForCausalLM": "modeling_baichuan.BaiChuanForCausalLM"},
    },
    "Baichuan2-7B": {
        **COMMON, **SMALL, "architectures": ["BaichuanForCausalLM"], "max_position_embeddings": 4096,
        "model_max_length": 4096, "vocab_size": 125696, "torch_dtype": "bfloat16", "_from_model_config": True,
    },
    "Baichuan-13B": {
        **COMMON, **LARGE, "architectures": ["BaichuanForCausalLM"], "model_max_length": 4096, "vocab_size": 64000,
    },
    "Baichuan2-13B": {
        **COMMON, **LARGE, "architectures": ["BaichuanForCausalLM"], "model_max_length": 4096, "vocab_size": 125696,
        "gradient_checkpointing": [False], "z_loss_weight": 0,
    },
    "InternLM": {
        **COMMON, **SMALL, "model_type": "internlm", "architectures": ["InternLMForCausalLM"], "bias": True,
        "max_position_embeddings": 2048, "vocab_size": 103168, "rotary": {"base": 10000, "type": "dynamic"},
    },
}  # fmt: skip
"""What tells the released files apart, and what is awkward in them."""

AUTO_MAP = {
    "AutoConfig": "configuration_baichuan.BaichuanConfig",
    "AutoModelForCausalLM": "modeling_baichuan.BaichuanForCausalLM",
}


@pytest.fixture(autouse=True)
def _nobody_to_ask(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> str:
        raise AssertionError("something was asked on the terminal")

    monkeypatch.setattr("builtins.input", refuse)


@pytest.mark.parametrize("name", RELEASED)
def test_released_files_are_told_apart(name: str) -> None:
    assert model_name(RELEASED[name]) == name
    assert port_of(RELEASED[name]) is PORTS[name]
    assert set(RELEASED) == set(PORTS)


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"vocab_size": 97}, "Baichuan-13B"),
        ({"vocab_size": 97, "norm_head": True}, "Baichuan2-13B"),
        ({"vocab_size": 125696, "norm_head": False}, "Baichuan-13B"),
        ({"position_embedding": "rope"}, "Baichuan2-7B"),  # the later spelling
        ({"position_embedding": "rope", "norm_head": False}, "Baichuan-7B"),
        ({"max_position_embeddings": 64, "position_embedding": "alibi"}, "Baichuan-13B"),
        ({"max_position_embeddings": 64}, "Baichuan2-7B"),
        ({"max_position_embeddings": 64, "architectures": ["BaiChuanForCausalLM"]}, "Baichuan-7B"),
        ({"max_position_embeddings": 64, "architectures": None}, "Baichuan-7B"),
        ({"max_position_embeddings": None}, "Baichuan-13B"),
        ({"model_type": "llama"}, None),
        ({"model_type": "chatglm"}, None),
        ({"model_type": None}, None),
    ],
)
def test_two_keys_come_before_all_others(changes: dict[str, Any], name: str | None) -> None:
    assert model_name({**COMMON, "architectures": ["BaichuanForCausalLM"], "vocab_size": 64000, **changes}) == name


@pytest.mark.parametrize("changes", [{"position_embedding": "learned"}, {"norm_head": "yes"}])
def test_a_key_without_meaning_is_refused(changes: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({**RELEASED["Baichuan2-7B"], **changes}))
    with pytest.raises(ModelError, match=f"{next(iter(changes))} is '{next(iter(changes.values()))}'; it can be"):
        load_causal_lm(str(tmp_path), device=torch.device("cpu"), dtype=torch.float32)


@pytest.mark.parametrize("name", [name for name in RELEASED if name.startswith("Baichuan")])
def test_released_files_give_the_released_network(name: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(RELEASED[name]))
    port = find_port(str(tmp_path))
    assert port is not None
    config = port.config_class.from_pretrained(tmp_path)
    with torch.device("meta"):
        model = port.causal_lm_class(config)
    shapes = {name: tuple(weight.shape) for name, weight in model.state_dict().items()}
    hidden, inner, layers = (5120, 13696, 40) if name.endswith("13B") else (4096, 11008, 32)
    assert len(shapes) == 3 + 7 * layers
    assert shapes["lm_head.weight"] == (125696 if "2" in name else 64000, hidden)
    assert shapes["model.layers.0.self_attn.W_pack.weight"] == (3 * hidden, hidden)
    assert shapes["model.layers.31.mlp.down_proj.weight"] == (hidden, inner)
    assert config.position_embedding == ("alibi" if name.endswith("13B") else "rope")
    assert config.norm_head is ("2" in name)


@pytest.mark.parametrize(
    ("name", "numbers"), [("ChatGLM-6B", 6_173_286_400), ("ChatGLM2-6B", 6_243_584_000)], ids=["first", "second"]
)
def test_the_chatglms_have_the_released_number_of_weights(name: str, numbers: int, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(RELEASED[name]))
    port = find_port(str(tmp_path))
    assert port is not None
    with torch.device("meta"):
        model = port.causal_lm_class(port.config_class.from_pretrained(tmp_path))
    assert sum(parameter.numel() for parameter in model.parameters()) == numbers


def test_a_configuration_without_keys_is_that_of_baichuan_13b() -> None:
    config = BaichuanConfig()
    assert model_name(config.to_dict()) == "Baichuan-13B"
    assert (config.vocab_size, config.hidden_size, config.num_hidden_layers) == (64000, 5120, 40)


def test_a_padding_token_beyond_the_vocabulary_becomes_the_first_token() -> None:
    assert BaichuanConfig(**{**RELEASED["Baichuan-7B"], "pad_token_id": 64000}).pad_token_id == 0


# -- directories as they were released ---------------------------------------------------------------------------------
def release(directory: Path, kind: str, workshop: Workshop) -> Path:
    """A tiny model as of old: pickled, with a buffer that is no weight and `auto_map`; the workshop's tokenizer."""
    tokenizer = load_tokenizer(workshop.base)
    tiny_model(kind, vocab_size=len(tokenizer), eos_token_id=tokenizer.eos_token_id).save_pretrained(directory)
    for file in Path(workshop.base).glob("*token*"):
        shutil.copy(file, directory)
    weights = load_file(directory / "model.safetensors")
    weights["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(3)
    torch.save(weights, directory / "pytorch_model.bin")
    (directory / "model.safetensors").unlink()
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({**config, "auto_map": AUTO_MAP}))
    return directory


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("trust", [False, True])
def test_a_released_directory_loads_and_generates_without_its_code(
    kind: str, trust: bool, workshop: Workshop, tmp_path: Path
) -> None:
    model = duiqi.load_model(str(release(tmp_path, kind, workshop)), trust_remote_code=trust)
    assert isinstance(model, BaichuanForCausalLM)
    ids = torch.tensor([[5, 6, 7]])
    assert model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=3, do_sample=False).shape[1] <= 6
    model.save_pretrained(tmp_path / "again")
    assert "auto_map" not in json.loads((tmp_path / "again" / "config.json").read_text())


def test_a_network_can_begin_from_random_weights(workshop: Workshop, tmp_path: Path) -> None:
    path = str(release(tmp_path, "Baichuan2-7B", workshop))
    model = load_causal_lm(path, device=torch.device("cpu"), dtype=torch.bfloat16, from_scratch=True)
    assert isinstance(model, BaichuanForCausalLM)
    assert model.dtype == torch.bfloat16


def test_a_missing_weight_is_named(workshop: Workshop, tmp_path: Path) -> None:
    path = release(tmp_path, "Baichuan-7B", workshop)
    weights = torch.load(path / "pytorch_model.bin")
    del weights["model.layers.1.self_attn.W_pack.weight"]
    torch.save(weights, path / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"weight model.layers.1.self_attn.W_pack.weight is missing"):
        duiqi.load_model(str(path))


def test_code_that_is_not_known_here_is_still_refused(workshop: Workshop, tmp_path: Path) -> None:
    path = release(tmp_path, "Baichuan-7B", workshop)
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, "model_type": "unheard_of"}))
    with pytest.raises(ModelError, match="contains custom code which must be executed"):
        duiqi.load_model(str(path))
