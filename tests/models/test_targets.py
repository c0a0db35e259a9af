"""Names of modules mean exactly what they say, on every naming scheme; the cells of the matrix of 2023 are golden."""

from __future__ import annotations

import pytest
import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    PreTrainedModel,
)

from duiqi.errors import ModelError
from duiqi.models.adapters import FreezeSpec, LoRASpec, adapter_config, attach
from duiqi.models.ports.chatglm import ChatGLMConfig, ChatGLMForConditionalGeneration
from duiqi.models.targets import condensed, select_linears, select_owners

QKV, DENSE, UP, DOWN = "attention.query_key_value", "attention.dense", "mlp.dense_h_to_4h", "mlp.dense_4h_to_h"


@pytest.fixture(scope="module")
def chatglm() -> PreTrainedModel:
    """ChatGLM-6B's 28 layers, a few numbers wide."""
    config = ChatGLMConfig(
        vocab_size=64,
        hidden_size=8,
        num_attention_heads=1,
        num_layers=28,
        inner_hidden_size=8,
        bos_token_id=60,
        eos_token_id=61,
        gmask_token_id=62,
        mask_token_id=63,
        pad_token_id=3,
    )
    return ChatGLMForConditionalGeneration(config)


def linears(model: PreTrainedModel, text: str) -> list[str]:
    return select_linears(model, text, setting="lora_target")


def in_layers(name: str, first: int, last: int) -> list[str]:
    return [f"transformer.layers.{layer}.{name}" for layer in range(first, last + 1)]


def mlp(first: int, last: int) -> list[str]:
    return [path for layer in range(first, last + 1) for name in (UP, DOWN) for path in in_layers(name, layer, layer)]


def tiny_llama(num_layers: int) -> PreTrainedModel:
    shape = {"hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 1}
    return LlamaForCausalLM(LlamaConfig(vocab_size=32, num_hidden_layers=num_layers, **shape))


class TestLayers:
    def test_layer_one_is_not_layer_eleven_or_twenty_one(self, chatglm: PreTrainedModel) -> None:
        assert linears(chatglm, "1.attention.query_key_value") == in_layers(QKV, 1, 1)
        assert linears(chatglm, "7.mlp.dense_4h_to_h") == in_layers(DOWN, 7, 7)

    def test_one_layer_alone_gets_parameters(self) -> None:
        model = tiny_llama(28)
        mounted = attach(model, "policy", adapter_config(LoRASpec(target="1.self_attn.q_proj"), model), trainable=True)
        names = {name.split(".lora_")[0] for name in mounted.parameters(model)}
        assert names == {"model.layers.1.self_attn.q_proj"}
        assert {
            name.split(".lora_")[0] for name, p in model.named_parameters() if p.requires_grad and "lora" in name
        } == names

    @pytest.mark.parametrize(("text", "layers"), [("mlp@0-2", range(3)), ("mlp@25-27", range(25, 28)), ("mlp@4", [4])])
    def test_a_range_counts_both_ends(self, chatglm: PreTrainedModel, text: str, layers: range) -> None:
        wanted = {f"transformer.layers.{layer}.{name}" for layer in layers for name in (UP, DOWN)}
        assert set(linears(chatglm, text)) == wanted

    def test_dense_is_not_dense_h_to_4h(self, chatglm: PreTrainedModel) -> None:
        assert linears(chatglm, "dense") == in_layers(DENSE, 0, 27)

    def test_several_names_are_joined_in_the_order_of_the_network(self, chatglm: PreTrainedModel) -> None:
        found = linears(chatglm, "query_key_value@2, mlp.dense_h_to_4h@1")
        assert found == [*in_layers(UP, 1, 1), *in_layers(QKV, 2, 2)]


class TestEverything:
    def test_all_is_every_linear_layer_but_the_head(self, chatglm: PreTrainedModel) -> None:
        for text in ("all", "all-linear"):
            assert len(linears(chatglm, text)) == 4 * 28
        assert condensed(chatglm, linears(chatglm, "all")) == [
            "query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h",
        ]  # fmt: skip

    def test_all_of_some_layers(self, chatglm: PreTrainedModel) -> None:
        assert len(linears(chatglm, "all@26-27")) == 8

    def test_conv1d_of_gpt2_and_the_projections_of_opt(self) -> None:
        gpt2 = GPT2LMHeadModel(GPT2Config(vocab_size=32, n_embd=8, n_layer=2, n_head=1))
        assert condensed(gpt2, linears(gpt2, "all")) == ["c_attn", "c_proj", "c_fc"]
        shape = {"hidden_size": 8, "ffn_dim": 8, "num_attention_heads": 1, "word_embed_proj_dim": 4}
        opt = OPTForCausalLM(OPTConfig(vocab_size=32, num_hidden_layers=2, **shape, do_layer_norm_before=False))
        assert "model.decoder.project_in" in linears(opt, "all")
        assert linears(opt, "fc1") == [f"model.decoder.layers.{layer}.fc1" for layer in (0, 1)]

    def test_an_adapter_that_is_there_already_changes_nothing(self) -> None:
        config = LlamaConfig(
            vocab_size=32, hidden_size=8, intermediate_size=8, num_hidden_layers=2, num_attention_heads=1
        )
        model = LlamaForCausalLM(config)
        before = linears(model, "all")
        attach(model, "first", adapter_config(LoRASpec(), model), trainable=True)
        assert linears(model, "all") == before
        assert linears(model, "mlp@1") == [p for p in before if ".1.mlp" in p]


class TestRefusals:
    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("query_key_valeu", "no linear layer of this model is named 'query_key_valeu'\n.*query_key_value"),
            ("1.attention.query_key_values", r"named '1.attention.query_key_values'\n.*attention.query_key_value"),
            ("q_proj", "named 'q_proj'\n.*linear layers here: attention.query_key_value, attention.dense, mlp"),
            ("mlp@26-30", None),
            ("mlp@28-30", "'mlp' is in none of the layers 28-30\n.*0-27"),
            ("mlp@3-1", "'mlp@3-1' has no range of layers"),
            ("mlp@last", "'mlp@last' has no range of layers"),
            (" , ", "names no module"),
            ("word_embeddings", "word_embeddings is no linear layer that takes an adapter\n.*modules_to_save"),
            ("lm_head", "lm_head is no linear layer that takes an adapter\n.*modules_to_save: lm_head"),
        ],
    )
    def test_what_matches_nothing_says_what_there_is(
        self, chatglm: PreTrainedModel, text: str, message: str | None
    ) -> None:
        if message is None:
            assert len(linears(chatglm, text)) == 4
            return
        with pytest.raises(ModelError, match=f"(?s){message}"):
            linears(chatglm, text)

    def test_a_module_is_not_trained_twice(self, chatglm: PreTrainedModel) -> None:
        spec = LoRASpec(target="query_key_value", modules_to_save="3.attention")
        with pytest.raises(ModelError, match=r"3\.attention\.query_key_value is trained whole and has an adapter too"):
            adapter_config(spec, chatglm)


MATRIX: dict[int, tuple[LoRASpec | FreezeSpec, list[str]]] = {
    1: (FreezeSpec(3, "mlp"), mlp(25, 27)),
    3: (FreezeSpec(-3, "mlp"), mlp(0, 2)),
    5: (FreezeSpec(3, QKV), in_layers(QKV, 25, 27)),
    7: (FreezeSpec(-3, QKV), in_layers(QKV, 0, 2)),
    11: (LoRASpec(target="mlp@25-27"), mlp(25, 27)),
    13: (LoRASpec(target="mlp@0-2"), mlp(0, 2)),
    15: (LoRASpec(target="mlp"), mlp(0, 27)),
    17: (LoRASpec(target=f"25.{QKV},26.{QKV},27.{QKV}"), in_layers(QKV, 25, 27)),
    19: (LoRASpec(target="query_key_value@0-2"), in_layers(QKV, 0, 2)),
    21: (LoRASpec(target="query_key_value"), in_layers(QKV, 0, 27)),
}
"""Cells of the matrix of April 2023 and the modules that each trains. The even cell after each has more data and the
same modules; 9 and 10 are P-Tuning and train none."""


@pytest.mark.parametrize("cell", [cell for odd in MATRIX for cell in (odd, odd + 1)])
def test_the_matrix_of_2023_trains_the_modules_it_names(chatglm: PreTrainedModel, cell: int) -> None:
    odd = cell - (cell + 1) % 2
    spec, wanted = MATRIX[odd]
    model = type(chatglm)(chatglm.config)
    mounted = attach(model, "policy", adapter_config(spec, model), trainable=True)
    assert len(wanted) == {1: 6, 3: 6, 5: 3, 7: 3, 11: 6, 13: 6, 15: 56, 17: 3, 19: 3, 21: 28}[odd]
    if isinstance(spec, FreezeSpec):
        assert mounted.own is not None
        assert mounted.own.paths() == wanted
    else:
        assert list(dict.fromkeys(name.split(".lora_")[0] for name in mounted.parameters(model))) == wanted
    trained = {name for name, p in model.named_parameters() if p.requires_grad and "lora_" in name}
    assert len(trained) == (0 if isinstance(spec, FreezeSpec) else 2 * len(wanted))


def test_all_of_a_layer_includes_its_norms() -> None:
    model = tiny_llama(3)
    found = select_owners(model, "all@2", setting="freeze_trainable_modules")
    assert set(found) == {
        name for name, m in model.model.layers[2].named_modules(prefix="model.layers.2") if m._parameters
    }
    assert len(found) == 9


@pytest.mark.parametrize("layers", [0, 29, -29])
def test_as_many_layers_as_there_are_can_be_trained(chatglm: PreTrainedModel, layers: int) -> None:
    with pytest.raises(ModelError, match=f"{layers} of 28 layers cannot be trained"):
        adapter_config(FreezeSpec(layers), chatglm)
    assert torch.isfinite(chatglm.lm_head.weight).all()
