"""Files of ChatGLM-6B: configuration, checkpoints and adapters of 2023, quantised weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import save_file
from tests.models.ports.chatglm_oracle import randomised
from tests.models.ports.test_chatglm import (
    ANSWER,
    LAYERS,
    PROMPT,
    REPLY,
    SHORT,
    WIDTH,
    config_of,
    model_of,
    padded,
    row,
)
from torch import Tensor

import duiqi
from duiqi.errors import ModelError
from duiqi.models.loading import load_causal_lm
from duiqi.models.ports.chatglm import (
    ChatGLMConfig,
    ChatGLMForConditionalGeneration,
    ChatGLMForSequenceClassification,
)
from duiqi.models.ports.chatglm_quantized import dequantize


def test_the_configuration_of_2023_loads_as_it_is(tmp_path: Path) -> None:
    released = {
        "_name_or_path": "THUDM/chatglm-6b",
        "architectures": ["ChatGLMModel"],
        "auto_map": {"AutoConfig": "configuration_chatglm.ChatGLMConfig"},
        "bos_token_id": 130004,
        "eos_token_id": 130005,
        "mask_token_id": 130000,
        "gmask_token_id": 130001,
        "pad_token_id": 3,
        "hidden_size": 4096,
        "inner_hidden_size": 16384,
        "layernorm_epsilon": 1e-05,
        "max_sequence_length": 2048,
        "model_type": "chatglm",
        "num_attention_heads": 32,
        "num_layers": 28,
        "position_encoding_2d": True,
        "torch_dtype": "float16",
        "transformers_version": "4.23.1",
        "use_cache": True,
        "vocab_size": 130528,
    }
    (tmp_path / "config.json").write_text(json.dumps(released), encoding="utf-8")
    config = ChatGLMConfig.from_pretrained(tmp_path)
    for key, value in ChatGLMConfig().to_dict().items():
        if key in released and key not in ("transformers_version", "architectures", "_name_or_path"):
            assert getattr(config, key) == value == released[key], key
    assert config.dtype == torch.float16
    assert config.num_hidden_layers == 28


def test_configurations_without_mask_tokens_have_them_before_sop() -> None:
    old = ChatGLMConfig(vocab_size=150528, bos_token_id=150004, eos_token_id=150005, pad_token_id=20003)
    assert (old.mask_token_id, old.gmask_token_id) == (150000, 150001)


def test_the_code_that_a_configuration_names_is_not_named_again(tmp_path: Path) -> None:
    config_of(auto_map={"AutoConfig": "configuration_chatglm.ChatGLMConfig"}).save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    assert "auto_map" not in saved
    assert saved["gmask_token_id"] == config_of().gmask_token_id


def test_parameters_have_the_names_of_the_checkpoints() -> None:
    names = {name for name in model_of().state_dict() if ".layers.1." not in name}
    layer = "transformer.layers.0."
    assert names == {
        "lm_head.weight",
        "transformer.word_embeddings.weight",
        "transformer.final_layernorm.weight",
        "transformer.final_layernorm.bias",
        *(
            f"{layer}{norm}.{kind}"
            for norm in ("input_layernorm", "post_attention_layernorm")
            for kind in ("weight", "bias")
        ),
        *(f"{layer}attention.{name}.{kind}" for name in ("query_key_value", "dense") for kind in ("weight", "bias")),
        *(f"{layer}mlp.{name}.{kind}" for name in ("dense_h_to_4h", "dense_4h_to_h") for kind in ("weight", "bias")),
    }


def test_what_was_saved_loads_and_the_head_stays_tied(tmp_path: Path) -> None:
    model = model_of().float()
    model.save_pretrained(tmp_path)
    again, info = ChatGLMForConditionalGeneration.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert again.lm_head.weight is again.transformer.word_embeddings.weight
    torch.testing.assert_close(again(row(PROMPT)).logits, model(row(PROMPT)).logits)


def test_a_checkpoint_of_2023_loads_with_its_rotary_tables_and_both_copies_of_the_embedding(tmp_path: Path) -> None:
    model = model_of().half()
    model.config.save_pretrained(tmp_path)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for layer in range(LAYERS):
        state[f"transformer.layers.{layer}.attention.rotary_emb.inv_freq"] = torch.ones(4).half()
    torch.save(state, tmp_path / "pytorch_model.bin")
    again, info = ChatGLMForConditionalGeneration.from_pretrained(
        tmp_path, dtype=torch.float32, output_loading_info=True
    )
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert again.lm_head.weight is again.transformer.word_embeddings.weight
    torch.testing.assert_close(again(row(PROMPT)).logits, model.float()(row(PROMPT)).logits)


@pytest.mark.parametrize("target", ["query_key_value", "1.attention.query_key_value"])
def test_a_lora_of_2023_loads_and_is_heard(tmp_path: Path, target: str) -> None:
    model = model_of().float()
    layers = range(LAYERS) if target == "query_key_value" else [1]
    torch.manual_seed(2)
    state, expected = {}, {name: w.clone() for name, w in model.state_dict().items()}
    for i in layers:
        name = f"transformer.layers.{i}.attention.query_key_value"
        a, b = torch.randn(4, WIDTH) * 0.2, torch.randn(3 * WIDTH, 4) * 0.2
        state[f"base_model.model.{name}.lora_A.weight"] = a
        state[f"base_model.model.{name}.lora_B.weight"] = b
        expected[f"{name}.weight"] += b @ a * (32 / 4)
    torch.save(state, tmp_path / "adapter_model.bin")
    fields = {
        "base_model_name_or_path": "THUDM/chatglm-6b",
        "bias": "none",
        "enable_lora": None,
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "lora_alpha": 32.0,
        "lora_dropout": 0.1,
        "merge_weights": False,
        "modules_to_save": None,
        "peft_type": "LORA",
        "r": 4,
        "target_modules": [target],
        "task_type": "CAUSAL_LM",
    }
    (tmp_path / "adapter_config.json").write_text(json.dumps(fields), encoding="utf-8")
    merged = model_of().float()
    merged.load_state_dict(expected)
    found = PeftModel.from_pretrained(model, tmp_path)(input_ids=row(PROMPT)).logits
    torch.testing.assert_close(found, merged(row(PROMPT)).logits, atol=1e-4, rtol=1e-4)


def pack_int4(numbers: Tensor) -> Tensor:
    """Column 2j in the high half of a byte, column 2j + 1 in the low half."""
    bytes_ = [[((int(r[j]) & 15) << 4 | (int(r[j + 1]) & 15)) for j in range(0, len(r), 2)] for r in numbers]
    return torch.tensor(bytes_, dtype=torch.uint8).view(torch.int8)


@pytest.mark.parametrize("bits", [8, 4])
def test_a_quantised_checkpoint_loads_as_floats(tmp_path: Path, bits: int) -> None:
    model = model_of().float()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items() if name != "lm_head.weight"}
    expected = dict(state)
    quantised = [name for name in state if name.endswith("weight") and ("query_key_value" in name or "dense" in name)]
    assert len(quantised) == 4 * LAYERS
    for name in quantised:
        scale = (state[name].abs().amax(1) / (2 ** (bits - 1) - 1)).half()
        whole = (state[name] / scale.float()[:, None]).round().clamp(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
        expected[name] = whole * scale.float()[:, None]
        state[name] = whole.to(torch.int8) if bits == 8 else pack_int4(whole)
        state[f"{name}_scale"] = scale
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    config_of(quantization_bit=bits).save_pretrained(tmp_path)
    loaded, info = ChatGLMForConditionalGeneration.from_pretrained(
        tmp_path, dtype=torch.float32, output_loading_info=True
    )
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert loaded.config.quantization_bit == 0
    for name, tensor in expected.items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    assert loaded.lm_head.weight is loaded.transformer.word_embeddings.weight
    found = load_causal_lm(str(tmp_path), device=torch.device("cpu"), dtype=torch.float32)
    torch.testing.assert_close(found(row(PROMPT)).logits, loaded(row(PROMPT)).logits)
    scorer = ChatGLMForSequenceClassification.from_pretrained(tmp_path, dtype=torch.float32, num_labels=1)
    name = "transformer.layers.1.mlp.dense_4h_to_h.weight"
    assert torch.equal(scorer.state_dict()[name], expected[name])
    loaded.save_pretrained(tmp_path / "plain")
    plain = duiqi.load_model(str(tmp_path / "plain"), dtype="float32")
    torch.testing.assert_close(plain(row(PROMPT)).logits, loaded(row(PROMPT)).logits)


@pytest.mark.parametrize(
    ("bits", "weights", "reason"),
    [
        (2, {"model.safetensors": {"transformer.a.weight": torch.ones(2)}}, "quantization_bit is 2; only 4 and 8"),
        (8, {}, "no weights are here"),
        (8, {"model.safetensors": {"a.weight": torch.ones(2, 2).char()}}, "a.weight_scale is not among the weights"),
    ],
)
def test_a_quantised_checkpoint_that_cannot_be_read_says_why(
    tmp_path: Path, bits: int, weights: dict[str, dict[str, Tensor]], reason: str
) -> None:
    config_of(quantization_bit=bits).save_pretrained(tmp_path)
    for name, state in weights.items():
        save_file(state, tmp_path / name, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=reason):
        load_causal_lm(str(tmp_path), device=torch.device("cpu"), dtype=torch.float32)


def test_four_bits_are_signed() -> None:
    numbers = torch.tensor([[-8, 7, 0, -1], [1, -7, 3, 5]])
    found = dequantize(pack_int4(numbers), torch.tensor([2.0, 0.5]), bits=4, dtype=torch.float32)
    assert found.tolist() == [[-16.0, 14.0, 0.0, -2.0], [0.5, -3.5, 1.5, 2.5]]


def test_a_reward_model_scores_the_last_token() -> None:
    model = randomised(ChatGLMForSequenceClassification(config_of(num_labels=1)))
    ids, mask = padded([PROMPT + ANSWER, SHORT + REPLY], "right")
    scores = model(ids, attention_mask=mask).logits
    alone = [model(row(ids)).logits[0] for ids in (PROMPT + ANSWER, SHORT + REPLY)]
    torch.testing.assert_close(scores, torch.stack(alone))
