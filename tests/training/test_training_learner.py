"""The training step: independent of the split, clipped as torch clips, and never applied when it is not finite."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from duiqi.algorithms.loss import Loss
from duiqi.packing.memory import MemoryBudget, OutOfMemory
from duiqi.training.learner import Learner, NonFiniteStep
from duiqi.training.schedule import Schedule


def make(weight_decay: float = 0.0, max_grad_norm: float = 0.0) -> tuple[nn.Linear, Learner]:
    torch.manual_seed(0)
    layer = nn.Linear(3, 1)
    schedule = Schedule(0.1, total_steps=10, shape="constant")
    learner = Learner(dict(layer.named_parameters()), schedule, weight_decay=weight_decay, max_grad_norm=max_grad_norm)
    return layer, learner


def squares(layer: nn.Linear, rows: Tensor) -> Loss:
    losses = layer(rows).squeeze(1) ** 2
    return Loss(losses.sum(), torch.tensor(float(len(rows))))


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(1, 4), min_size=1, max_size=5))
def test_any_split_gives_the_same_update(parts: list[int]) -> None:
    rows = torch.randn(sum(parts), 3, generator=torch.Generator().manual_seed(1))
    whole_layer, whole = make()
    split_layer, split = make()
    report = whole.step(lambda _: [rows], lambda batch: squares(whole_layer, batch), number=1)
    again = split.step(lambda _: rows.split(parts), lambda batch: squares(split_layer, batch), number=1)
    assert again.loss == pytest.approx(report.loss, rel=1e-5)
    assert again.gradient_norm == pytest.approx(report.gradient_norm, rel=1e-4)
    assert torch.allclose(whole_layer.weight, split_layer.weight, atol=1e-6)


def test_an_update_is_adamw_on_the_mean_loss() -> None:
    rows = torch.randn(5, 3)
    layer, learner = make(weight_decay=0.1, max_grad_norm=0.5)
    twin, _ = make()
    optimizer = torch.optim.AdamW(
        [{"params": [twin.weight], "weight_decay": 0.1}, {"params": [twin.bias], "weight_decay": 0.0}], lr=0.1
    )
    for number in (1, 2, 3):
        learner.step(lambda _: [rows], lambda batch: squares(layer, batch), number=number)
        optimizer.zero_grad()
        (twin(rows) ** 2).mean().backward()
        nn.utils.clip_grad_norm_(twin.parameters(), 0.5)
        optimizer.step()
    assert torch.allclose(layer.weight, twin.weight, atol=1e-6)
    assert torch.allclose(layer.bias, twin.bias, atol=1e-6)


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_changes_nothing(poison: float) -> None:
    layer, learner = make()
    before = layer.weight.detach().clone()
    rows = torch.tensor([[1.0, 2.0, poison]])
    with pytest.raises(NonFiniteStep, match="loss: 1 of 1 numbers are nan or inf"):
        learner.step(lambda _: [rows], lambda batch: squares(layer, batch), number=1)
    assert torch.equal(layer.weight, before)


def test_a_gradient_that_is_not_finite_names_the_parameter() -> None:
    layer, learner = make()
    before = layer.weight.detach().clone()

    def finite_loss_infinite_gradient(batch: Tensor) -> Loss:
        zero = (layer(batch) * 0.0).sum()
        return Loss(zero.abs().sqrt(), torch.tensor(1.0))

    with pytest.raises(NonFiniteStep, match=r"gradient of (weight|bias): \d of \d numbers are nan or inf"):
        learner.step(lambda _: [torch.ones(1, 3)], finite_loss_infinite_gradient, number=1)
    assert torch.equal(layer.weight, before)
    assert layer.weight.grad is None


def test_the_optimizer_state_survives_a_round_trip() -> None:
    rows = torch.randn(4, 3)
    layer, learner = make()
    other_layer, other = make()
    learner.step(lambda _: [rows], lambda batch: squares(layer, batch), number=1)
    with torch.no_grad():
        for mine, theirs in zip(layer.parameters(), other_layer.parameters(), strict=True):
            theirs.copy_(mine)
    other.load_state(learner.state())
    learner.step(lambda _: [rows], lambda batch: squares(layer, batch), number=2)
    other.step(lambda _: [rows], lambda batch: squares(other_layer, batch), number=2)
    assert torch.equal(layer.weight, other_layer.weight)


def test_when_memory_runs_out_the_step_begins_again_with_half_the_tokens() -> None:
    rows = torch.randn(8, 3, generator=torch.Generator().manual_seed(1))
    plain_layer, plain = make()
    layer, learner = make()
    learner.budget = MemoryBudget(512, on_halved=(said := []).append)  # type: ignore[var-annotated]

    def too_much_above_two_rows(batch: Tensor) -> Loss:
        loss = squares(layer, batch)
        if len(batch) > 2:
            loss.total.backward(retain_graph=True)  # what a failed backward pass may leave behind
            raise torch.OutOfMemoryError("out of memory")
        return loss

    report = learner.step(lambda tokens: rows.split(tokens // 64), too_much_above_two_rows, number=1)
    expected = plain.step(lambda _: [rows], lambda batch: squares(plain_layer, batch), number=1)
    assert said == [256, 128]
    assert learner.budget.tokens == 128
    assert report.loss == pytest.approx(expected.loss, rel=1e-6)
    assert torch.allclose(layer.weight, plain_layer.weight, atol=1e-7)


def test_memory_too_small_for_one_row_is_said_with_what_to_change() -> None:
    _, learner = make()
    learner.budget = MemoryBudget(200)

    def never_fits(_: Tensor) -> Loss:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 99 bytes.")

    with pytest.raises(OutOfMemory, match="gradient_checkpointing: true"):
        learner.step(lambda _: [torch.ones(1, 3)], never_fits, number=1)


def test_other_errors_are_no_lack_of_memory() -> None:
    _, learner = make()

    def broken(_: Tensor) -> Loss:
        raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes do not match"):
        learner.step(lambda _: [torch.ones(1, 3)], broken, number=1)
