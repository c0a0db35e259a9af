"""Loss scaling: invisible where numbers fit, halved where they do not, and as PyTorch's own."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from duiqi.algorithms.loss import Loss
from duiqi.training import scaling
from duiqi.training.learner import Learner, NonFiniteStep
from duiqi.training.scaling import LossScale
from duiqi.training.schedule import Schedule


class HalfGradient(torch.autograd.Function):
    """A network whose gradients pass through float16, as those of adapters on a base in float16 do."""

    @staticmethod
    def forward(_: object, hidden: Tensor) -> Tensor:
        return hidden.clone()

    @staticmethod
    def backward(_: object, gradient: Tensor) -> Tensor:  # type: ignore[override]
        return gradient.half().float()


def make(scale: LossScale | None) -> tuple[nn.Linear, Learner]:
    torch.manual_seed(0)
    layer = nn.Linear(3, 1)
    schedule = Schedule(0.1, total_steps=10, shape="constant")
    return layer, Learner(dict(layer.named_parameters()), schedule, max_grad_norm=0.0, scale=scale)


def loss_of(layer: nn.Linear, rows: Tensor, size: float = 1.0) -> Loss:
    return Loss((HalfGradient.apply(layer(rows)) * size).sum(), torch.tensor(float(len(rows))))


ROWS = torch.tensor([[1.0, 2.0, 3.0]])


def test_gradients_too_small_for_float16_are_learned_with_a_scale_and_lost_without() -> None:
    for scale, expected in ((None, 0.0), (LossScale(), 1e-9 * 15.0**0.5)):
        layer, learner = make(scale)
        report = learner.step(lambda _: [ROWS], lambda rows, layer=layer: loss_of(layer, rows, 1e-9), number=1)
        assert report.gradient_norm == pytest.approx(expected, rel=0.01)


def test_an_overflow_begins_the_step_again_with_half_the_scale() -> None:
    layer, learner = make(LossScale())
    twin, plain = make(None)
    report = learner.step(lambda _: [ROWS], lambda rows: loss_of(layer, rows, 100.0), number=1)
    plain.step(lambda _: [ROWS], lambda rows: loss_of(twin, rows, 100.0), number=1)
    assert report.stats["loss_scale"] == 2.0**9  # 100 * 2**9 is below 65504, 100 * 2**10 is not
    assert torch.equal(layer.weight, twin.weight)


def test_what_overflows_without_a_scale_too_is_an_accident() -> None:
    layer, learner = make(LossScale())
    before = layer.weight.detach().clone()
    with pytest.raises(NonFiniteStep, match="gradient of weight"):
        learner.step(lambda _: [ROWS], lambda rows: loss_of(layer, rows, 1e6), number=1)
    assert torch.equal(layer.weight, before)


def test_the_scale_moves_as_the_one_of_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scaling, "GROWTH_INTERVAL", 3)
    theirs = torch.amp.GradScaler("cpu", init_scale=2.0**16, growth_interval=3)
    ours = LossScale()
    parameter = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=0.0)
    for overflows in (True, True, False, False, False, False, True, False, False, False, False, False, False):
        parameter.grad = theirs.scale(torch.full((1,), float("inf") if overflows else 1.0))
        theirs.step(optimizer)
        theirs.update()
        if overflows:
            assert ours.lower()
        else:
            ours.hold()
        assert ours.value == theirs.get_scale()


def test_a_scale_comes_back_from_a_checkpoint() -> None:
    scale = LossScale()
    scale.lower()
    scale.hold()
    assert LossScale(**scale.state()) == scale  # type: ignore[arg-type]
