"""DPO and its kin."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import fields, replace
from functools import partial

import pytest
import torch
from answer_batches import assert_split_is_irrelevant, noise, seeds
from hypothesis import given, settings
from torch import Tensor

from duiqi.algorithms.loss import Loss
from duiqi.algorithms.preference import (
    PairLogProbs,
    add_cross_entropy,
    cpo_loss,
    dpo_loss,
    hinge_loss,
    ipo_loss,
    kto_pair_loss,
    orpo_loss,
    simpo_loss,
)

PairLoss = Callable[[PairLogProbs], Loss]

WITH_REFERENCE: dict[str, PairLoss] = {
    "dpo": partial(dpo_loss, beta=0.1),
    "smoothed": partial(dpo_loss, beta=0.1, label_smoothing=0.1),
    "ipo": partial(ipo_loss, beta=0.1),
    "hinge": partial(hinge_loss, beta=0.1),
    "kto": partial(kto_pair_loss, beta=0.1),
}
WITHOUT_REFERENCE: dict[str, PairLoss] = {
    "orpo": partial(orpo_loss, beta=0.1),
    "simpo": partial(simpo_loss, beta=2.0, gamma=1.0),
    "cpo": partial(cpo_loss, beta=0.1),
}
EVERY_LOSS = {**WITH_REFERENCE, **WITHOUT_REFERENCE}
few = settings(max_examples=20, deadline=None)


def named(losses: dict[str, PairLoss]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("loss_of", losses.values(), ids=losses.keys())


def pair(
    chosen: float,
    rejected: float,
    reference_chosen: float = 0.0,
    reference_rejected: float = 0.0,
    tokens: tuple[float, float] = (1.0, 1.0),
) -> PairLogProbs:
    """One pair, in float64."""
    numbers = (chosen, rejected, reference_chosen, reference_rejected, *tokens)
    return PairLogProbs(*(torch.tensor([number], dtype=torch.float64) for number in numbers))


GOLDEN = pair(-10.0, -12.0, -11.0, -11.5)


def random_pairs(seed: int, num_pairs: int = 4) -> PairLogProbs:
    log_probs = -20.0 * noise(seed, 4, num_pairs).abs() - 0.1
    lengths = torch.arange(1, 2 * num_pairs + 1, dtype=torch.float64).view(2, num_pairs)
    return PairLogProbs(*log_probs, *lengths)


def rows(pairs: PairLogProbs, picked: slice) -> PairLogProbs:
    return PairLogProbs(*(getattr(pairs, field.name)[picked] for field in fields(pairs)))


@pytest.mark.parametrize(
    ("name", "expected"),
    [("dpo", 0.6209570478), ("smoothed", 0.6359570478), ("ipo", 12.25), ("hinge", 0.85)],
)
def test_golden_losses(name: str, expected: float) -> None:
    assert float(EVERY_LOSS[name](GOLDEN).total) == pytest.approx(expected, abs=1e-9)


def test_golden_gradient_of_dpo() -> None:
    chosen, rejected = GOLDEN.chosen.clone().requires_grad_(), GOLDEN.rejected.clone().requires_grad_()
    total = dpo_loss(replace(GOLDEN, chosen=chosen, rejected=rejected), beta=0.1).total
    gradients = torch.autograd.grad(total, [chosen, rejected])
    assert [float(gradient) for gradient in gradients] == pytest.approx([-0.0462570155, 0.0462570155], abs=1e-9)


def test_golden_rewards_of_dpo() -> None:
    stats = {name: stat.mean for name, stat in dpo_loss(GOLDEN, beta=0.1).stats.items()}
    assert stats == {
        "rewards/accuracies": 1.0,
        "rewards/chosen": pytest.approx(0.1),
        "rewards/rejected": pytest.approx(-0.05),
        "rewards/margins": pytest.approx(0.15),
        "logps/chosen": -10.0,
        "logps/rejected": -12.0,
    }


@pytest.mark.parametrize(
    ("name", "expected"),
    [("dpo", math.log(2)), ("smoothed", math.log(2)), ("ipo", 25.0), ("hinge", 1.0), ("kto", 1.0)],
)
def test_loss_of_a_policy_that_still_is_its_reference(name: str, expected: float) -> None:
    loss = EVERY_LOSS[name](pair(-7.0, -3.0, -7.0, -3.0))
    assert float(loss.total) == pytest.approx(expected)
    assert loss.stats["rewards/accuracies"].mean == 0.5, "a tie counts half"


def test_ipo_is_satisfied_by_one_gap_and_wants_neither_more_nor_less() -> None:
    chosen = torch.tensor([-5.0], dtype=torch.float64, requires_grad=True)
    ipo_loss(replace(pair(0.0, -10.0), chosen=chosen), beta=0.1).total.backward()
    assert chosen.grad is not None
    assert chosen.grad.tolist() == [0.0]


def test_hinge_asks_no_more_than_a_margin() -> None:
    assert float(hinge_loss(pair(-5.0, -15.0), beta=0.1).total) == 0.0
    assert float(hinge_loss(pair(-5.0, -14.0), beta=0.1).total) == pytest.approx(0.1)


def test_kto_compares_each_answer_with_the_baseline() -> None:
    gained, lost = math.log(3) / 0.1, -math.log(3) / 0.1  # sigmoid(log 3) is 3/4
    assert float(kto_pair_loss(pair(gained, lost), beta=0.1).total) == pytest.approx(0.5)
    assert float(kto_pair_loss(pair(gained, 0.0), beta=0.1, kl=gained).total) == pytest.approx(0.75)


def test_orpo_by_hand() -> None:
    chosen, rejected = math.log(0.5), math.log(0.25)  # odds of 1 and 1/3; sigmoid(log 3) is 3/4
    loss = orpo_loss(pair(3 * chosen, 2 * rejected, tokens=(3.0, 2.0)), beta=0.1)
    assert float(loss.total) == pytest.approx(math.log(2) + 0.1 * math.log(4 / 3))


def test_orpo_stays_finite_for_a_certain_answer() -> None:
    chosen = torch.zeros(1, requires_grad=True)
    certain = PairLogProbs(chosen, *(torch.full((1,), value) for value in (-200.0, 0.0, 0.0, 1.0, 1.0)))
    loss = orpo_loss(certain, beta=0.1)
    loss.total.backward()
    assert torch.isfinite(loss.total)
    assert chosen.grad is not None
    assert torch.isfinite(chosen.grad).all()


def test_simpo_by_hand() -> None:
    loss = simpo_loss(pair(-6.0, -4.0, tokens=(3.0, 2.0)), beta=2.0, gamma=math.log(3))
    assert float(loss.total) == pytest.approx(math.log(4))


def test_simpo_compares_log_probabilities_per_token() -> None:
    short, long = pair(-3.0, -8.0, tokens=(2.0, 4.0)), pair(-6.0, -16.0, tokens=(4.0, 8.0))
    assert simpo_loss(short, beta=2.0, gamma=0.5).total == simpo_loss(long, beta=2.0, gamma=0.5).total


def test_cpo_by_hand() -> None:
    assert float(cpo_loss(pair(-2.0, -2.0, tokens=(4.0, 1.0)), beta=0.1).total) == pytest.approx(math.log(2) + 0.5)


def test_cross_entropy_per_token_can_be_added() -> None:
    pairs = random_pairs(seed=0)
    plain, added = dpo_loss(pairs, beta=0.1), add_cross_entropy(dpo_loss(pairs, beta=0.1), pairs, 0.5)
    per_token = sum(-float(c) / float(n) for c, n in zip(pairs.chosen, pairs.chosen_tokens, strict=True))
    assert float(added.total - plain.total) == pytest.approx(0.5 * per_token)
    assert added.stats["nll_chosen"].mean == pytest.approx(per_token / 4)
    assert added.weight == plain.weight == 4


@few
@given(seeds)
@named(EVERY_LOSS)
def test_the_split_into_micro_batches_is_irrelevant(loss_of: PairLoss, seed: int) -> None:
    pairs = random_pairs(seed)
    assert_split_is_irrelevant(lambda picked: loss_of(rows(pairs, picked)), 4)


@few
@given(seeds)
@named(EVERY_LOSS)
def test_when_undecided_every_loss_raises_the_chosen_and_lowers_the_rejected(loss_of: PairLoss, seed: int) -> None:
    log_probs = (-1.0 - noise(seed, 3).abs()).requires_grad_()
    undecided = PairLogProbs(log_probs, log_probs, log_probs.detach(), log_probs.detach(), *torch.ones(2, 3))
    chosen, rejected = (log_probs.detach().clone().requires_grad_() for _ in range(2))
    total = loss_of(replace(undecided, chosen=chosen, rejected=rejected)).total
    of_chosen, of_rejected = torch.autograd.grad(total, [chosen, rejected])
    assert (of_chosen < 0).all()
    assert (of_rejected > 0).all()


@named(WITHOUT_REFERENCE)
def test_losses_without_reference_do_not_read_it(loss_of: PairLoss) -> None:
    pairs = random_pairs(seed=1)
    elsewhere = replace(pairs, reference_chosen=pairs.rejected, reference_rejected=pairs.chosen)
    assert loss_of(pairs).total == loss_of(elsewhere).total


@pytest.mark.parametrize("gap", [-1e4, 1e4])
@named(EVERY_LOSS)
def test_loss_and_gradient_stay_finite_for_answers_far_apart(loss_of: PairLoss, gap: float) -> None:
    chosen, rejected = (
        torch.tensor([value], requires_grad=True) for value in (-1e4 - max(-gap, 0.0), -1e4 - max(gap, 0.0))
    )
    reference = torch.tensor([-1e4])
    total = loss_of(PairLogProbs(chosen, rejected, reference, reference, *torch.ones(2, 1))).total
    results: list[Tensor] = [total, *torch.autograd.grad(total, [chosen, rejected])]
    assert all(torch.isfinite(result).all() for result in results)
