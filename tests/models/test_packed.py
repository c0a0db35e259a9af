"""Packed matrices give what plain ones give, and none that learns is ever packed."""

from __future__ import annotations

from collections.abc import Iterator
from unittest.mock import patch

import pytest
import torch
from tests.models.architectures import ARCHITECTURES
from torch import Tensor, nn

from duiqi.algorithms.log_probs import OutputHead
from duiqi.models import lean_decoding
from duiqi.models.adapters import LoRASpec
from duiqi.models.joined import Joined
from duiqi.models.lean_decoding import LeanDecoder, is_head_worth_copying
from duiqi.models.own_weights import OwnParameter
from duiqi.models.packed import PackedLinear
from duiqi.models.shared_base import SharedBase

VOCAB = 97
EXACTNESS = {torch.float32: 1e-5, torch.bfloat16: 8e-3}


def distance(found: Tensor, expected: Tensor) -> float:
    return float((found.float() - expected.float()).norm() / expected.float().norm())


def packs(dtype: torch.dtype = torch.float32) -> bool:
    return PackedLinear.of(torch.zeros(2, 2, dtype=dtype)) is not None


needs_packing = pytest.mark.skipif(not packs(), reason="this torch packs nothing")


@pytest.fixture
def base() -> SharedBase:
    """A small Qwen2 with a policy whose adapter does something."""
    torch.manual_seed(0)
    base = SharedBase(ARCHITECTURES["qwen2"].build(VOCAB), name="qwen2")
    base.seat_new_adapter("policy", LoRASpec(rank=4))
    for parameter in base.role_parameters("policy").values():
        parameter.data = 0.3 * torch.randn(parameter.shape)
    return base


@pytest.fixture
def without_packing() -> Iterator[None]:
    """As where torch was built without the operator."""

    def missing(*_: object) -> None:
        raise AttributeError("'_OpNamespace' 'mkldnn' object has no attribute '_reorder_linear_weight'")

    with patch.object(torch.ops.mkldnn, "_reorder_linear_weight", missing):
        yield


@needs_packing
@pytest.mark.parametrize("dtype", EXACTNESS)
@pytest.mark.parametrize("rows", [1, 2, 15, 16, 17, 65])
@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("has_residual", [False, True])
def test_a_packed_product_is_the_plain_one(dtype: torch.dtype, rows: int, has_bias: bool, has_residual: bool) -> None:
    if not packs(dtype):
        pytest.skip("this processor packs nothing in this precision")
    torch.manual_seed(rows)
    weight, bias = torch.randn(33, 20).to(dtype), torch.randn(33).to(dtype) if has_bias else None
    x, onto = torch.randn(rows, 20).to(dtype), torch.randn(rows, 33).to(dtype)
    packed = PackedLinear.of(weight, bias)
    assert packed is not None
    expected = nn.functional.linear(x, weight, bias)
    before = onto.clone()
    found = packed.outputs(x, onto=onto if has_residual else None)
    assert found.shape == expected.shape
    assert found.dtype == dtype
    assert torch.equal(onto, before), "the residual stays as it is"
    assert distance(found, expected + onto if has_residual else expected) <= EXACTNESS[dtype]


def states_of(base: SharedBase, rows: int, *, copy: bool) -> Tensor:
    """Last hidden states of one more token on each of some texts, through layers prepared for decoding."""
    with base.acting("policy"):
        ids = torch.arange(3, 8).expand(rows, -1)
        _, cache = base.trunk(ids, past_key_values=base.new_cache(), use_cache=True)
        assert cache is not None
        decoder = LeanDecoder.of(base.model, base.seat("policy").low_rank_names, copy=copy)
        tokens = torch.arange(rows).unsqueeze(-1) + 10
        return decoder.step(tokens, torch.full_like(tokens, 5), cache, None)


@needs_packing
@pytest.mark.parametrize("rows", [1, 3, 16])
def test_layers_are_packed_for_decoding_and_compute_what_they_did(base: SharedBase, rows: int) -> None:
    decoder = LeanDecoder.of(base.model, base.seat("policy").low_rank_names, copy=True)
    assert all(isinstance(layer.gated, PackedLinear) for layer in decoder.layers)
    torch.testing.assert_close(
        states_of(base, rows, copy=True), states_of(base, rows, copy=False), rtol=1e-4, atol=1e-5
    )


@pytest.mark.usefixtures("without_packing")
def test_without_the_operator_layers_and_head_stay_plain(base: SharedBase) -> None:
    decoder = LeanDecoder.of(base.model, base.seat("policy").low_rank_names, copy=True)
    assert all(isinstance(layer.gated, Joined) for layer in decoder.layers)
    torch.testing.assert_close(states_of(base, 3, copy=True), states_of(base, 3, copy=False), rtol=1e-4, atol=1e-5)
    hidden = torch.randn(3, base.hidden_size)
    with base.acting("policy"):
        assert torch.equal(base.logits(hidden), base.output_head()(hidden))


@pytest.mark.parametrize("dtype", EXACTNESS)
@pytest.mark.parametrize("rows", [1, 5, 16])
def test_logits_of_a_packed_head_are_those_of_the_head(base: SharedBase, dtype: torch.dtype, rows: int) -> None:
    weight = nn.Parameter(torch.randn(VOCAB, base.hidden_size).to(dtype), requires_grad=False)
    bias = nn.Parameter(torch.randn(VOCAB).to(dtype), requires_grad=False)
    head = OutputHead(weight, bias, scale=0.5, soft_cap=3.0)
    hidden = torch.randn(rows, base.hidden_size).to(dtype)
    with base.acting("policy"), patch.object(base, "output_head", lambda: head):
        logits = base.logits(hidden)
        assert (base._packed(head) is not None) == packs(dtype)
    assert logits.dtype == torch.float32
    assert distance(logits, head(hidden)) <= EXACTNESS[dtype]


@needs_packing
def test_a_frozen_head_is_packed_once_whatever_the_adapter_does(base: SharedBase) -> None:
    with base.acting("policy"):
        first = base._packed(base.output_head())
    for parameter in base.role_parameters("policy").values():
        parameter.data.add_(1.0)
    with base.acting("policy"):
        assert base._packed(base.output_head()) is first is not None


def test_a_head_that_learns_is_never_packed(base: SharedBase) -> None:
    hidden = torch.randn(2, base.hidden_size)
    with base.acting("policy"):
        base.logits(hidden)
    weight = base.model.get_output_embeddings().weight
    weight.requires_grad_(True)
    for _ in range(2):
        weight.data.mul_(2.0)  # as torch's fused AdamW does, which no version tells of
        with base.acting("policy"):
            assert base._packed(base.output_head()) is None
            assert torch.equal(base.logits(hidden), base.output_head()(hidden))
    weight.requires_grad_(False)
    with base.acting("policy"):
        assert distance(base.logits(hidden), base.output_head()(hidden)) <= 1e-5


def test_a_head_that_was_changed_is_packed_anew(base: SharedBase) -> None:
    hidden, head = torch.randn(2, base.hidden_size), base.model.get_output_embeddings()
    for change in (
        lambda: head.weight.mul_(2.0),
        lambda: setattr(head, "weight", nn.Parameter(torch.randn_like(head.weight), requires_grad=False)),
        lambda: setattr(head.weight, "data", torch.randn_like(head.weight)),
    ):
        with base.acting("policy"):
            base.logits(hidden)
            change()
            assert distance(base.logits(hidden), base.output_head()(hidden)) <= 1e-5


def test_a_head_of_a_roles_own_is_not_packed(base: SharedBase) -> None:
    hidden, head = torch.randn(2, base.hidden_size), base.model.get_output_embeddings()
    with base.acting("policy"):
        base.logits(hidden)
        head.weight = OwnParameter(torch.randn_like(head.weight), requires_grad=False)
        assert base._packed(base.output_head()) is None
        assert torch.equal(base.logits(hidden), base.output_head()(hidden))


def test_a_large_head_is_not_copied(base: SharedBase, monkeypatch: pytest.MonkeyPatch) -> None:
    assert is_head_worth_copying(base.model)
    monkeypatch.setattr(lean_decoding, "HEAD_LIMIT", base.model.get_output_embeddings().weight.nbytes - 1)
    assert not is_head_worth_copying(base.model)
    with base.acting("policy"):
        assert base._packed(base.output_head()) is None
