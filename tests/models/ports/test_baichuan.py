"""The four Baichuan networks against their formulae; padding, caches, packed texts and the scaled head."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from tests.models.ports.baichuan_by_formula import (
    KINDS,
    VOCAB,
    logits_by_formula,
    slopes_by_formula,
    tiny_config,
    tiny_model,
)
from torch import Tensor
from transformers import DynamicCache
from transformers.models.bloom.modeling_bloom import build_alibi_tensor

from duiqi.models.ports.alibi import alibi_bias, alibi_slopes
from duiqi.models.ports.baichuan import BaichuanForCausalLM, BaichuanForSequenceClassification
from duiqi.models.ports.norm_head import NormHead

IDS = [5, 80, 3, 3, 41, 17, 96]
CLOSE = {"rtol": 1e-4, "atol": 1e-4}

each_kind = pytest.mark.parametrize("kind", KINDS)


@torch.no_grad()
def logits_of(model: BaichuanForCausalLM, ids: list[int], mask: list[int] | None = None) -> Tensor:
    rows = None if mask is None else torch.tensor([mask])
    return model(torch.tensor([ids]), attention_mask=rows).logits[0]


# -- the formulae ------------------------------------------------------------------------------------------------------
@each_kind
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_logits_are_those_of_the_formulae(kind: str, attention: str) -> None:
    model = tiny_model(kind, attn_implementation=attention)
    expected = logits_by_formula(model.state_dict(), model.config, IDS)
    torch.testing.assert_close(logits_of(model, IDS).double(), expected, **CLOSE)


def test_alibi_slopes_of_eight_heads_are_halves() -> None:
    assert alibi_slopes(8) == [1 / 2, 1 / 4, 1 / 8, 1 / 16, 1 / 32, 1 / 64, 1 / 128, 1 / 256]


def test_the_thirteen_billion_models_have_32_slopes_and_8_between() -> None:
    slopes = alibi_slopes(40)
    assert slopes[:4] == pytest.approx([2**-0.25, 2**-0.5, 2**-0.75, 2**-1])
    assert slopes[32:] == pytest.approx([2 ** -(i / 8) for i in range(1, 17, 2)])


@pytest.mark.parametrize("num_heads", [1, 2, 3, 5, 7, 8, 12, 16, 40])
def test_alibi_slopes_are_those_of_the_formula_and_of_bloom(num_heads: int) -> None:
    assert alibi_slopes(num_heads) == pytest.approx(slopes_by_formula(num_heads))
    bloom = build_alibi_tensor(torch.ones(1, 2), num_heads, torch.float32)[:, 0, 1]
    assert alibi_slopes(num_heads) == pytest.approx(bloom.tolist())


def test_alibi_far_into_a_text_keeps_its_precision_in_half() -> None:
    exact = alibi_bias(3, num_queries=1, num_keys=4096, device=torch.device("cpu"))
    near = slice(-64, None)
    gap = (exact.to(torch.bfloat16).float() - exact)[..., near].abs().max()
    assert float(gap) < 0.05


# -- padding, packed texts, caches -------------------------------------------------------------------------------------
@each_kind
def test_padding_on_either_side_changes_nothing(kind: str) -> None:
    model, real = tiny_model(kind), [1] * len(IDS)
    alone = logits_of(model, IDS)
    left = logits_of(model, [0, 0, 0, *IDS], [0, 0, 0, *real])[3:]
    right = logits_of(model, [*IDS, 9, 9], [*real, 0, 0])[:-2]
    torch.testing.assert_close(left, alone, **CLOSE)
    torch.testing.assert_close(right, alone, **CLOSE)


@each_kind
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_padding_is_never_nan(kind: str, attention: str) -> None:
    model = tiny_model(kind, attn_implementation=attention)
    assert logits_of(model, [0, 0, *IDS, 0], [0, 0, *([1] * len(IDS)), 0]).isfinite().all()


@each_kind
def test_texts_with_different_numbers_in_a_mask_do_not_see_each_other(kind: str) -> None:
    model = tiny_model(kind)
    both = logits_of(model, IDS + IDS[:4] + [0], [1] * len(IDS) + [2] * 4 + [0])
    torch.testing.assert_close(both[: len(IDS)], logits_of(model, IDS), **CLOSE)
    torch.testing.assert_close(both[len(IDS) : -1], logits_of(model, IDS[:4]), **CLOSE)


@each_kind
def test_a_text_read_in_parts_through_a_cache_is_the_text(kind: str) -> None:
    model, cache = tiny_model(kind), DynamicCache()
    parts = []
    with torch.no_grad():
        for part in (IDS[:3], IDS[3:6], IDS[6:]):
            parts.append(model(torch.tensor([part]), past_key_values=cache, use_cache=True).logits[0])
    torch.testing.assert_close(torch.cat(parts), logits_of(model, IDS), **CLOSE)


@each_kind
def test_greedy_decoding_is_the_same_with_a_cache_without_one_and_beside_a_longer_row(kind: str) -> None:
    model = tiny_model(kind, eos_token_id=None)
    settings = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0}
    row = torch.tensor([IDS[:4]])
    alone = model.generate(row, attention_mask=torch.ones_like(row), **settings)[0, 4:]
    uncached = model.generate(row, attention_mask=torch.ones_like(row), use_cache=False, **settings)[0, 4:]
    rows, mask = torch.tensor([IDS, [0, 0, 0, *IDS[:4]]]), torch.tensor([[1] * 7, [0, 0, 0, 1, 1, 1, 1]])
    beside = model.generate(rows, attention_mask=mask, **settings)[1, 7:]
    step_by_step = list(IDS[:4])
    for _ in range(12):
        step_by_step.append(int(logits_of(model, step_by_step)[-1].argmax()))
    assert alone.tolist() == uncached.tolist() == beside.tolist() == step_by_step[4:]


def test_a_mask_of_another_length_is_refused() -> None:
    with pytest.raises(ValueError, match="the attention mask has 5 tokens, and there are 7 keys"):
        logits_of(tiny_model("Baichuan-7B"), IDS, [0] + [1] * 4)


def test_attention_weights_are_refused_rather_than_left_out() -> None:
    with pytest.raises(ValueError, match="does not return attention weights"):
        tiny_model("Baichuan-7B")(torch.tensor([IDS]), output_attentions=True)


@each_kind
def test_hidden_states_are_those_before_every_layer_and_the_last(kind: str) -> None:
    model = tiny_model(kind)
    output = model(torch.tensor([IDS]), output_hidden_states=True)
    assert len(output.hidden_states) == 3
    assert torch.equal(model.lm_head(output.hidden_states[-1]), output.logits)
    assert torch.equal(output.hidden_states[0][0], model.model.embed_tokens.weight[IDS])


# -- losses and gradients ----------------------------------------------------------------------------------------------
def gradients_of(model: BaichuanForCausalLM) -> dict[str, Tensor]:
    model.zero_grad()
    ids = torch.tensor([IDS])
    model(ids, labels=ids, use_cache=False).loss.backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


@each_kind
def test_the_loss_is_the_mean_surprise_at_the_labels(kind: str) -> None:
    model, labels = tiny_model(kind), [-100, -100, *IDS[2:]]
    log_probs = logits_by_formula(model.state_dict(), model.config, IDS).log_softmax(-1)
    expected = -sum(float(log_probs[t - 1, label]) for t, label in enumerate(labels) if label >= 0) / 5
    loss = model(torch.tensor([IDS]), labels=torch.tensor([labels])).loss
    assert loss.item() == pytest.approx(expected, rel=1e-4)


def test_z_loss_adds_the_mean_square_of_the_largest_logit_over_all_shifted_places() -> None:
    plain, weighted = tiny_model("Baichuan2-7B"), tiny_model("Baichuan2-7B", z_loss_weight=0.25)
    ids, labels = torch.tensor([IDS]), torch.tensor([[-100] * 6 + IDS[6:]])
    largest = logits_by_formula(plain.state_dict(), plain.config, IDS)[:-1].max(-1).values
    added = (weighted(ids, labels=labels).loss - plain(ids, labels=labels).loss).item()
    assert added == pytest.approx(0.25 * float((largest**2).mean()), rel=1e-3)


@each_kind
def test_gradients_are_the_same_with_checkpointing(kind: str) -> None:
    model = tiny_model(kind).train()
    expected = gradients_of(model)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    found = gradients_of(model)
    assert found.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-4, atol=1e-6)


def test_checkpointing_starts_only_when_asked_for() -> None:
    assert not tiny_model("Baichuan2-13B", gradient_checkpointing=[False]).model.gradient_checkpointing


# -- the scaled head ---------------------------------------------------------------------------------------------------
def test_learning_cannot_lengthen_a_row_that_is_scaled() -> None:
    """The gradient of something that depends on a row's direction alone is at right angles to the row."""
    head = tiny_model("Baichuan2-7B").lm_head
    head(torch.randn(5, 24)).square().sum().backward()
    along = (head.weight.grad * head.weight).sum(-1)
    assert float(head.weight.grad.norm()) > 1
    assert along.abs().max().item() < 1e-4


def test_a_frozen_head_is_scaled_once_and_again_after_a_change() -> None:
    head = NormHead(24, VOCAB).requires_grad_(False)
    first = head.unit_rows()
    assert head.unit_rows() is first
    with torch.no_grad():
        head.weight[0] = head.weight[1]
    assert torch.equal(head.unit_rows()[0], first[1])
    other = copy.deepcopy(head).to(torch.float64)
    assert other.unit_rows().dtype == torch.float64
    head.requires_grad_(True)
    assert head.unit_rows().requires_grad


def test_a_row_of_zeros_gives_zero() -> None:
    head = NormHead(4, 2)
    torch.nn.init.zeros_(head.weight)
    assert head(torch.ones(1, 4)).tolist() == [[0.0, 0.0]]


def test_reading_does_not_change_what_is_saved() -> None:
    model = tiny_model("Baichuan2-13B").requires_grad_(False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    logits_of(model, IDS)
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_larger_vocabulary_keeps_its_rows_and_their_scaling() -> None:
    model = tiny_model("Baichuan2-7B")
    before = logits_of(model, IDS)
    model.resize_token_embeddings(VOCAB + 7)
    assert isinstance(model.get_output_embeddings(), NormHead)
    torch.testing.assert_close(logits_of(model, IDS)[:, :VOCAB], before, **CLOSE)


# -- names and files ---------------------------------------------------------------------------------------------------
def test_weights_have_the_released_names() -> None:
    names = set(tiny_model("Baichuan2-13B", num_hidden_layers=1).state_dict())
    layer = {
        "self_attn.W_pack", "self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj",
        "input_layernorm", "post_attention_layernorm",
    }  # fmt: skip
    others = {"model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"}
    assert names == {f"model.layers.0.{name}.weight" for name in layer} | others


@each_kind
def test_a_saved_model_is_the_same_when_it_is_loaded(kind: str, tmp_path: Path) -> None:
    model = tiny_model(kind)
    model.save_pretrained(tmp_path)
    again = BaichuanForCausalLM.from_pretrained(tmp_path)
    assert type(again.lm_head) is type(model.lm_head)
    assert (again.config.position_embedding, again.config.norm_head) == (
        KINDS[kind]["position_embedding"], KINDS[kind]["norm_head"],
    )  # fmt: skip
    assert torch.equal(logits_of(again.eval(), IDS), logits_of(model, IDS))


def test_a_classifier_reads_the_last_real_token() -> None:
    torch.manual_seed(0)
    model = BaichuanForSequenceClassification(tiny_config("Baichuan-13B", num_labels=1)).eval()
    with torch.no_grad():
        alone = model(torch.tensor([IDS])).logits
        padded = model(torch.tensor([[*IDS, 0, 0]]), attention_mask=torch.tensor([[1] * 7 + [0, 0]])).logits
    torch.testing.assert_close(padded, alone)
