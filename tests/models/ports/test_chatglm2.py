"""ChatGLM2-6B and ChatGLM3-6B: against an independent computation, and what must hold whatever the weights are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, PrefixTuningConfig, get_peft_model
from safetensors.torch import save_file
from tests.models.ports.chatglm_oracle import answer_loss, chatglm2_logits, numbers, randomised, slopes
from torch import Tensor

from duiqi.models.ports.chatglm2 import (
    ChatGLM2Config,
    ChatGLM2ForConditionalGeneration,
    ChatGLM2ForSequenceClassification,
)

LAYERS, HEADS, GROUPS, SIZE, WIDTH = 2, 4, 2, 8, 12
SHAPE = {"heads": HEADS, "groups": GROUPS, "size": SIZE, "layers": LAYERS}
PROMPT, ANSWER = [51, 52, 5, 7, 9, 11], [12, 13, 14, 2]
SHORT, REPLY = [51, 52, 8], [20, 2]
PAD = 0


def config_of(**changes: Any) -> ChatGLM2Config:
    return ChatGLM2Config(
        **{
            "padded_vocab_size": 60,
            "hidden_size": WIDTH,
            "num_layers": LAYERS,
            "num_attention_heads": HEADS,
            "multi_query_group_num": GROUPS,
            "kv_channels": SIZE,
            "ffn_hidden_size": 10,
            **changes,
        }
    )


def model_of(**changes: Any) -> ChatGLM2ForConditionalGeneration:
    model = randomised(ChatGLM2ForConditionalGeneration(config_of(**changes)))
    assert isinstance(model, ChatGLM2ForConditionalGeneration)
    return model


def row(ids: list[int]) -> Tensor:
    return torch.tensor([ids])


def padded(rows: list[list[int]], side: str) -> tuple[Tensor, Tensor]:
    width = max(map(len, rows))
    left = side == "left"
    ids = [[PAD] * (width - len(r)) * left + r + [PAD] * (width - len(r)) * (not left) for r in rows]
    mask = [[0] * (width - len(r)) * left + [1] * len(r) + [0] * (width - len(r)) * (not left) for r in rows]
    return torch.tensor(ids), torch.tensor(mask)


# -- against the formulas ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("ids", [PROMPT + ANSWER, [51]], ids=["ten tokens", "one token"])
def test_logits_are_those_of_the_formulas(ids: list[int], attention: str) -> None:
    model = model_of(attn_implementation=attention)
    expected = torch.from_numpy(chatglm2_logits(numbers(model), ids, **SHAPE))
    torch.testing.assert_close(model(row(ids)).logits[0], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("scales", "numbers_"), [("positions", {"divide": 4.0}), ("base", {"base": 40000.0})])
def test_the_long_variants_scale_what_they_say(scales: str, numbers_: dict[str, float]) -> None:
    model = model_of(rope_ratio=4, rope_ratio_scales=scales)
    expected = torch.from_numpy(chatglm2_logits(numbers(model), PROMPT + ANSWER, **SHAPE, **numbers_))
    torch.testing.assert_close(model(row(PROMPT + ANSWER)).logits[0], expected, atol=1e-5, rtol=1e-5)


def test_a_rope_ratio_without_its_meaning_is_refused() -> None:
    with pytest.raises(ValueError, match='"rope_ratio_scales": "positions"'):
        config_of(rope_ratio=16)


def test_attention_is_causal() -> None:
    model = model_of()
    ids = PROMPT + ANSWER
    whole = model(row(ids)).logits
    torch.testing.assert_close(whole[:, :-1], model(row([*ids[:-1], 33])).logits[:, :-1])


# -- padding and decoding ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", ["left", "right"])
def test_padded_rows_are_the_rows_alone(side: str) -> None:
    model = model_of()
    rows = [PROMPT + ANSWER, SHORT + REPLY, [51]]
    ids, mask = padded(rows, side)
    logits = model(ids, attention_mask=mask).logits
    assert logits.isfinite().all()
    for own, real, alone in zip(logits, mask.bool(), rows, strict=True):
        torch.testing.assert_close(own[real], model(row(alone)).logits[0])


def greedy_without_cache(model: ChatGLM2ForConditionalGeneration, prompt: list[int], num_tokens: int) -> list[int]:
    ids = list(prompt)
    for _ in range(num_tokens):
        ids.append(int(model(row(ids), use_cache=False).logits[0, -1].argmax()))
    return ids[len(prompt) :]


def test_decoding_with_a_cache_is_decoding_without() -> None:
    model = model_of(eos_token_id=None)
    prompts = [PROMPT, SHORT, [51, 52, 9, 8]]
    ids, mask = padded(prompts, "left")
    found = model.generate(ids, attention_mask=mask, max_new_tokens=6, do_sample=False)[:, ids.shape[1] :]
    assert found.tolist() == [greedy_without_cache(model, prompt, 6) for prompt in prompts]
    beams = model.generate(ids, attention_mask=mask, max_new_tokens=4, num_beams=3, do_sample=False)
    alone = [model.generate(row(p), max_new_tokens=4, num_beams=3, do_sample=False)[0, len(p) :] for p in prompts]
    assert beams[:, ids.shape[1] :].tolist() == [tokens.tolist() for tokens in alone]


def test_a_cache_read_in_two_passes_gives_the_logits_of_one() -> None:
    model = model_of()
    whole = model(row(PROMPT + ANSWER)).logits
    first = model(row(PROMPT), use_cache=True)
    second = model(row(ANSWER), past_key_values=first.past_key_values)
    torch.testing.assert_close(torch.cat([first.logits, second.logits], dim=1), whole)


def test_padding_in_a_cache_stays_padding_when_no_mask_says_so_again() -> None:
    model = model_of()
    ids, mask = padded([PROMPT, SHORT], "left")
    caches = [model(ids, attention_mask=mask, use_cache=True).past_key_values for _ in range(2)]
    next_ids = torch.tensor([[12], [12]])
    grown = torch.cat([mask, torch.ones(2, 1, dtype=mask.dtype)], dim=1)
    expected = model(next_ids, attention_mask=grown, past_key_values=caches[0]).logits
    torch.testing.assert_close(model(next_ids, past_key_values=caches[1]).logits, expected)


def test_embeddings_can_be_given_instead_of_ids() -> None:
    model = model_of()
    embeddings = model.get_input_embeddings()(row(PROMPT))
    torch.testing.assert_close(model(inputs_embeds=embeddings).logits, model(row(PROMPT)).logits)
    with pytest.raises(ValueError, match="either input_ids or inputs_embeds"):
        model()


# -- gradients ---------------------------------------------------------------------------------------------------------


def learned(ids: list[int], length: int) -> Tensor:
    return row([-100] * length + ids[length:])


def test_gradients_of_lora_are_the_slopes() -> None:
    targets = ["query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"]
    peft = get_peft_model(model_of(), LoraConfig(r=2, target_modules=targets)).double().eval()
    torch.manual_seed(1)
    parameters = {name: p for name, p in peft.named_parameters() if p.requires_grad}
    assert len(parameters) == 2 * 4 * LAYERS
    for parameter in parameters.values():
        torch.nn.init.normal_(parameter, std=0.3)

    def loss() -> Tensor:
        return answer_loss(peft, PROMPT, ANSWER)

    loss().backward()
    for name, parameter in parameters.items():
        assert parameter.grad is not None, name
        places = [0, parameter.numel() // 2, parameter.numel() - 1]
        expected = slopes(loss, parameter, places=places)
        assert parameter.grad.view(-1)[places].tolist() == pytest.approx(expected, rel=1e-4, abs=1e-7), name


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_checkpointed_gradients_are_the_same(use_reentrant: bool) -> None:
    ids = PROMPT + ANSWER
    model = model_of().train()
    gradients = []
    for checkpoints in (False, True):
        if checkpoints:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": use_reentrant})
        model.zero_grad()
        model(row(ids), labels=learned(ids, len(PROMPT))).loss.backward()
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters()})
    for name in gradients[0]:
        torch.testing.assert_close(gradients[1][name], gradients[0][name])


# -- prefixes (P-Tuning v2) --------------------------------------------------------------------------------------------

SLOTS = 3


def slots_of(table: Any) -> list[Any]:
    """Rows of P x 2L*groups*D numbers as keys and values of each layer."""
    shaped = table.reshape(SLOTS, 2 * LAYERS, GROUPS, SIZE)
    return [(shaped[:, 2 * i].transpose(1, 0, 2), shaped[:, 2 * i + 1].transpose(1, 0, 2)) for i in range(LAYERS)]


@pytest.mark.parametrize("projects", [False, True])
def test_a_prefix_is_that_of_the_formulas(projects: bool) -> None:
    model = model_of(pre_seq_len=SLOTS, prefix_projection=projects)
    weights = numbers(model)
    table = weights["transformer.prefix_encoder.embedding.weight"]
    assert table.shape == (SLOTS, 2 * LAYERS * GROUPS * SIZE)
    if projects:
        first, second = (f"transformer.prefix_encoder.trans.{number}" for number in (0, 2))
        inner = torch.from_numpy(table @ weights[f"{first}.weight"].T + weights[f"{first}.bias"]).tanh().numpy()
        table = inner @ weights[f"{second}.weight"].T + weights[f"{second}.bias"]
    ids = PROMPT + ANSWER
    expected = torch.from_numpy(chatglm2_logits(weights, ids, slots=slots_of(table), **SHAPE))
    for use_cache in (True, False):
        torch.testing.assert_close(model(row(ids), use_cache=use_cache).logits[0], expected, atol=1e-5, rtol=1e-5)
    rows = [PROMPT + ANSWER, SHORT + REPLY]
    for side in ("left", "right"):
        batch, mask = padded(rows, side)
        for logits, real, alone in zip(model(batch, attention_mask=mask).logits, mask.bool(), rows, strict=True):
            torch.testing.assert_close(logits[real], model(row(alone)).logits[0])
    model.generation_config.eos_token_id = None
    batch, mask = padded([PROMPT, SHORT], "left")
    wanted = [greedy_without_cache(model, prompt, 4) for prompt in (PROMPT, SHORT)]
    assert model.generate(batch, attention_mask=mask, max_new_tokens=4)[:, batch.shape[1] :].tolist() == wanted


def test_a_mask_of_numbers_adds_nothing_for_a_prefix() -> None:
    model = model_of(pre_seq_len=SLOTS)
    ids = row(PROMPT + ANSWER)
    causal = torch.full((1, 1, ids.shape[1], ids.shape[1]), torch.finfo(torch.float64).min, dtype=torch.float64).triu(1)
    torch.testing.assert_close(model(ids, attention_mask=causal).logits, model(ids).logits)


def test_gradients_of_a_prefix_are_the_slopes() -> None:
    model = model_of(pre_seq_len=SLOTS)

    def loss() -> Tensor:
        return answer_loss(model, PROMPT, ANSWER)

    loss().backward()
    parameter = model.transformer.prefix_encoder.embedding.weight
    places = [0, parameter.numel() // 2, parameter.numel() - 1]
    assert parameter.grad.view(-1)[places].tolist() == pytest.approx(slopes(loss, parameter, places=places), rel=1e-4)


def test_prefix_tuning_of_peft_is_the_models_own_prefix() -> None:
    own, base = model_of(pre_seq_len=SLOTS, eos_token_id=None), model_of(eos_token_id=None)
    base.load_state_dict({name: w for name, w in own.state_dict().items() if "prefix_encoder" not in name})
    peft = get_peft_model(base, PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=SLOTS)).double().eval()
    peft.prompt_encoder["default"].embedding.weight.data = own.transformer.prefix_encoder.embedding.weight.data.clone()
    ids, mask = padded([PROMPT + ANSWER, SHORT + REPLY], "left")
    expected = own(ids, attention_mask=mask).logits[mask.bool()]
    torch.testing.assert_close(peft(input_ids=ids, attention_mask=mask).logits[mask.bool()], expected)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    counted = peft(input_ids=ids, attention_mask=mask, position_ids=positions).logits[mask.bool()]
    torch.testing.assert_close(counted, expected)
    for model in (own, peft):
        answer_loss(model, PROMPT, ANSWER).backward()
    learned_there, learned_here = peft.prompt_encoder["default"].embedding, own.transformer.prefix_encoder.embedding
    torch.testing.assert_close(learned_there.weight.grad, learned_here.weight.grad)
    ids, mask = padded([PROMPT, SHORT], "left")
    wanted = own.generate(ids, attention_mask=mask, max_new_tokens=4, do_sample=False)
    found = peft.generate(input_ids=ids, attention_mask=mask, max_new_tokens=4, do_sample=False)
    assert found.tolist() == wanted.tolist()


# -- files -------------------------------------------------------------------------------------------------------------


def test_the_configuration_of_2023_loads_as_it_is(tmp_path: Path) -> None:
    released = {
        "_name_or_path": "THUDM/chatglm2-6b",
        "model_type": "chatglm",
        "architectures": ["ChatGLMModel"],
        "auto_map": {"AutoConfig": "configuration_chatglm.ChatGLMConfig"},
        "add_bias_linear": False,
        "add_qkv_bias": True,
        "apply_query_key_layer_scaling": True,
        "apply_residual_connection_post_layernorm": False,
        "attention_dropout": 0.0,
        "attention_softmax_in_fp32": True,
        "bias_dropout_fusion": True,
        "ffn_hidden_size": 13696,
        "fp32_residual_connection": False,
        "hidden_dropout": 0.0,
        "hidden_size": 4096,
        "kv_channels": 128,
        "layernorm_epsilon": 1e-05,
        "multi_query_attention": True,
        "multi_query_group_num": 2,
        "num_attention_heads": 32,
        "num_layers": 28,
        "original_rope": True,
        "padded_vocab_size": 65024,
        "post_layer_norm": True,
        "rmsnorm": True,
        "seq_length": 32768,
        "use_cache": True,
        "torch_dtype": "float16",
        "transformers_version": "4.27.1",
        "tie_word_embeddings": False,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }
    (tmp_path / "config.json").write_text(json.dumps(released), encoding="utf-8")
    config = ChatGLM2Config.from_pretrained(tmp_path)
    for key, value in ChatGLM2Config().to_dict().items():
        if key in released and key not in ("transformers_version", "architectures", "_name_or_path"):
            assert getattr(config, key) == value == released[key], key
    assert config.dtype == torch.float16
    assert (config.vocab_size, config.num_hidden_layers) == (65024, 28)


@pytest.mark.parametrize(("key", "value"), [("rmsnorm", False), ("multi_query_attention", False)])
def test_what_no_release_has_is_refused(key: str, value: bool) -> None:
    with pytest.raises(ValueError, match=f"{key} is False in this config.json; only True is implemented"):
        config_of(**{key: value})


def test_parameters_have_the_names_of_the_checkpoints() -> None:
    names = {name for name in model_of().state_dict() if ".layers.1." not in name}
    layer = "transformer.encoder.layers.0."
    assert names == {
        "transformer.embedding.word_embeddings.weight",
        "transformer.encoder.final_layernorm.weight",
        "transformer.output_layer.weight",
        f"{layer}input_layernorm.weight",
        f"{layer}self_attention.query_key_value.weight",
        f"{layer}self_attention.query_key_value.bias",
        f"{layer}self_attention.dense.weight",
        f"{layer}post_attention_layernorm.weight",
        f"{layer}mlp.dense_h_to_4h.weight",
        f"{layer}mlp.dense_4h_to_h.weight",
    }


def test_what_was_saved_loads(tmp_path: Path) -> None:
    model = model_of().float()
    model.save_pretrained(tmp_path)
    again, info = ChatGLM2ForConditionalGeneration.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    torch.testing.assert_close(again(row(PROMPT)).logits, model(row(PROMPT)).logits)


def test_a_checkpoint_of_2023_loads_with_its_rotary_table(tmp_path: Path) -> None:
    model = model_of().half()
    model.config.save_pretrained(tmp_path)
    table = {"transformer.rotary_pos_emb.inv_freq": torch.ones(2).half()}
    torch.save({**model.state_dict(), **table}, tmp_path / "pytorch_model.bin")
    again, info = ChatGLM2ForConditionalGeneration.from_pretrained(
        tmp_path, dtype=torch.float32, output_loading_info=True
    )
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    torch.testing.assert_close(again(row(PROMPT)).logits, model.float()(row(PROMPT)).logits)


def test_a_lora_of_2023_loads_and_is_heard(tmp_path: Path) -> None:
    model, merged = model_of().float(), model_of().float()
    torch.manual_seed(2)
    state, expected = {}, {name: w.clone() for name, w in model.state_dict().items()}
    for i in range(LAYERS):
        name = f"transformer.encoder.layers.{i}.self_attention.query_key_value"
        a, b = torch.randn(4, WIDTH) * 0.2, torch.randn((HEADS + 2 * GROUPS) * SIZE, 4) * 0.2
        state[f"base_model.model.{name}.lora_A.weight"] = a
        state[f"base_model.model.{name}.lora_B.weight"] = b
        expected[f"{name}.weight"] += b @ a * (32 / 4)
    torch.save(state, tmp_path / "adapter_model.bin")
    fields = {
        "base_model_name_or_path": "THUDM/chatglm2-6b",
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "layers_pattern": None,
        "layers_to_transform": None,
        "lora_alpha": 32.0,
        "lora_dropout": 0.1,
        "modules_to_save": None,
        "peft_type": "LORA",
        "r": 4,
        "revision": None,
        "target_modules": ["query_key_value"],
        "task_type": "CAUSAL_LM",
    }
    (tmp_path / "adapter_config.json").write_text(json.dumps(fields), encoding="utf-8")
    merged.load_state_dict(expected)
    found = PeftModel.from_pretrained(model, tmp_path)(input_ids=row(PROMPT)).logits
    torch.testing.assert_close(found, merged(row(PROMPT)).logits, atol=1e-4, rtol=1e-4)


def test_a_quantised_checkpoint_loads_as_floats(tmp_path: Path) -> None:
    model = model_of().float()
    state, expected = dict(model.state_dict()), dict(model.state_dict())
    quantised = [name for name in state if "query_key_value.w" in name or "dense" in name]
    assert len(quantised) == 4 * LAYERS
    for name in quantised:
        scale = (state[name].abs().amax(1) / 127).half()
        whole = (state[name] / scale.float()[:, None]).round()
        expected[name] = whole * scale.float()[:, None]
        state[name], state[f"{name}_scale"] = whole.to(torch.int8), scale
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    config_of(quantization_bit=8).save_pretrained(tmp_path)
    loaded, info = ChatGLM2ForConditionalGeneration.from_pretrained(
        tmp_path, dtype=torch.float32, output_loading_info=True
    )
    assert not info["missing_keys"]
    for name, tensor in expected.items():
        assert torch.equal(loaded.state_dict()[name], tensor), name


def test_a_reward_model_scores_the_last_token() -> None:
    model = randomised(ChatGLM2ForSequenceClassification(config_of(num_labels=1)))
    rows = [PROMPT + ANSWER, SHORT + REPLY]
    ids, mask = padded(rows, "right")
    scores = model(ids, attention_mask=mask).logits
    torch.testing.assert_close(scores, torch.stack([model(row(ids)).logits[0] for ids in rows]))
