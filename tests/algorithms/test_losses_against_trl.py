"""The losses that TRL has too, computed by TRL's own trainers from the same numbers.

A trainer needs little of itself to compute a loss: it is given that, and a model that returns prepared outputs.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from trl import DPOTrainer, KTOTrainer, RewardTrainer
from trl.experimental.cpo import CPOTrainer
from trl.experimental.orpo import ORPOTrainer

from duiqi.algorithms.feedback import LikedLogProbs, kto_baseline, kto_loss
from duiqi.algorithms.loss import Loss
from duiqi.algorithms.preference import (
    PairLogProbs,
    cpo_loss,
    dpo_loss,
    hinge_loss,
    ipo_loss,
    kto_pair_loss,
    orpo_loss,
    simpo_loss,
)
from duiqi.algorithms.reward_modelling import pairwise_loss

NUM_PAIRS = 5
ONE_PROCESS = SimpleNamespace(device="cpu", gather=lambda x: x, gather_for_metrics=lambda x: x)


class Answering(torch.nn.Module):
    """A model whose outputs are given."""

    def __init__(self, **outputs: Tensor) -> None:
        super().__init__()
        self.outputs = SimpleNamespace(**outputs)
        self.eval()

    def forward(self, **_: object) -> SimpleNamespace:
        return self.outputs


def trainer(**attributes: object) -> SimpleNamespace:
    """What TRL's loss functions read from `self`."""
    metrics: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    always = {"accelerator": ONE_PROCESS, "_metrics": metrics, "_total_train_tokens": 0, "aux_loss_enabled": False}
    return SimpleNamespace(**always, model=SimpleNamespace(training=False), **attributes)


def two_token_answers(log_probs: Tensor) -> Answering:
    """One-token prompts and two-token answers whose log-probabilities add up to these."""
    per_token = torch.stack([0.25 * log_probs, 0.75 * log_probs], dim=1)
    zeros = torch.zeros_like(per_token)
    return Answering(log_probs=per_token, entropy=zeros, mean_logits=zeros, is_top1=zeros.bool())


def inputs(num_answers: int, **more: Tensor) -> dict[str, Tensor]:
    """The batch that belongs to `two_token_answers`."""
    ids = torch.ones(num_answers, 3, dtype=torch.long)
    return {
        "input_ids": ids,
        "attention_mask": ids,
        "completion_mask": torch.tensor([[0, 1, 1]]).expand_as(ids),
        **more,
    }


@pytest.fixture
def pairs() -> PairLogProbs:
    generator = torch.Generator().manual_seed(0)
    log_probs = (-10.0 * torch.rand(4, NUM_PAIRS, generator=generator) - 0.5).unbind()
    two = torch.full((NUM_PAIRS,), 2.0)
    return PairLogProbs(log_probs[0].requires_grad_(), log_probs[1].requires_grad_(), *log_probs[2:], two, two)


def assert_same(pairs: PairLogProbs, ours: Tensor, theirs: Tensor) -> None:
    """Equal losses and equal gradients."""
    learned = [pairs.chosen, pairs.rejected]
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(
        torch.autograd.grad(ours, learned, retain_graph=True), torch.autograd.grad(theirs, learned, retain_graph=True)
    )


def trl_dpo(pairs: PairLogProbs, loss_type: str, **options: float) -> tuple[Tensor, dict[str, list[float]]]:
    """TRL's mean loss over the pairs, and its metrics."""
    settings: dict[str, Any] = {
        "beta": 0.3,
        "label_smoothing": 0.0,
        "loss_types": [loss_type],
        "loss_weights": [1.0],
        "f_divergence_type": "reverse_kl",
        "ld_alpha": None,
        "use_weighting": False,
        "precompute_ref_logps": True,
    }
    stub = trainer(**{**settings, **options})
    batch = inputs(2 * NUM_PAIRS, ref_chosen_logps=pairs.reference_chosen, ref_rejected_logps=pairs.reference_rejected)
    model = two_token_answers(torch.cat([pairs.chosen, pairs.rejected]))
    return DPOTrainer._compute_loss(stub, model, batch, return_outputs=False), stub._metrics["eval"]


@pytest.mark.parametrize(("loss_type", "loss_of"), [("sigmoid", dpo_loss), ("hinge", hinge_loss)])
def test_dpo_losses_equal_trl(loss_type: str, loss_of: Callable[..., Loss], pairs: PairLogProbs) -> None:
    theirs, metrics = trl_dpo(pairs, loss_type)
    ours = loss_of(pairs, beta=0.3)
    assert_same(pairs, ours.total / ours.weight, theirs)
    assert {name: stat.mean for name, stat in ours.stats.items()} == {
        name: pytest.approx(metrics[name][0]) for name in ours.stats
    }


def test_ipo_equals_trl_where_answers_count_as_one_token(pairs: PairLogProbs) -> None:
    """TRL divides log-probabilities by length, here 2; ours are sums. With halves given, both are the same."""
    halves = PairLogProbs(
        pairs.chosen / 2,
        pairs.rejected / 2,
        pairs.reference_chosen / 2,
        pairs.reference_rejected / 2,
        pairs.chosen_tokens,
        pairs.rejected_tokens,
    )
    theirs, _ = trl_dpo(pairs, "ipo")
    ours = ipo_loss(halves, beta=0.3)
    assert_same(pairs, ours.total / ours.weight, theirs)


def test_label_smoothing_equals_trl_cpo_with_log_ratios(pairs: PairLogProbs) -> None:
    stub = trainer(alpha=0.0, beta=0.3, label_smoothing=0.2, loss_type="sigmoid")
    theirs, _, _ = CPOTrainer.cpo_loss(
        stub, pairs.chosen - pairs.reference_chosen, pairs.rejected - pairs.reference_rejected
    )
    assert_same(pairs, dpo_loss(pairs, beta=0.3, label_smoothing=0.2).total, theirs.sum())


def test_kto_equals_trl(pairs: PairLogProbs) -> None:
    kl_log_probs, reference_kl_log_probs = torch.full((2 * NUM_PAIRS,), -3.0), torch.full((2 * NUM_PAIRS,), -3.7)
    stub = trainer(
        beta=0.3,
        loss_type="kto",
        desirable_weight=1.0,
        undesirable_weight=1.0,
        calculate_KL=True,
        precompute_ref_logps=True,
        _compute_kl_logps=lambda *_: kl_log_probs,
    )
    batch = inputs(
        2 * NUM_PAIRS,
        label=torch.arange(2 * NUM_PAIRS) < NUM_PAIRS,
        ref_logps=torch.cat([pairs.reference_chosen, pairs.reference_rejected]),
        ref_KL_logps=reference_kl_log_probs,
    )
    model = two_token_answers(torch.cat([pairs.chosen, pairs.rejected]))
    theirs = KTOTrainer._compute_loss(stub, model, batch, return_outputs=False)
    ours = kto_pair_loss(pairs, beta=0.3, kl=0.7)
    assert_same(pairs, ours.total, theirs * 2 * NUM_PAIRS)


@pytest.mark.parametrize("mismatch", [0.7, -0.7])
def test_kto_of_single_answers_equals_trl(mismatch: float, pairs: PairLogProbs) -> None:
    generator = torch.Generator().manual_seed(3)
    policy, reference = (
        torch.cat([pairs.chosen, pairs.rejected]),
        torch.cat([pairs.reference_chosen, pairs.reference_rejected]),
    )
    liked = torch.rand(2 * NUM_PAIRS, generator=generator) < 0.4
    reference_kl = torch.randn(2 * NUM_PAIRS, generator=generator) - 5
    kl = reference_kl + mismatch + 0.1 * torch.randn(2 * NUM_PAIRS, generator=generator)
    stub = trainer(
        beta=0.3,
        loss_type="kto",
        desirable_weight=1.3,
        undesirable_weight=0.8,
        calculate_KL=True,
        precompute_ref_logps=True,
        _compute_kl_logps=lambda *_: kl,
    )
    batch = inputs(2 * NUM_PAIRS, label=liked, ref_logps=reference, ref_KL_logps=reference_kl)
    theirs = KTOTrainer._compute_loss(stub, two_token_answers(policy), batch, return_outputs=False)
    answers = LikedLogProbs(policy=policy, reference=reference, liked=liked)
    baseline = kto_baseline(kl, reference_kl)
    ours = kto_loss(answers, beta=0.3, baseline=baseline, liked_weight=1.3, disliked_weight=0.8)
    assert_same(pairs, ours.total, theirs * 2 * NUM_PAIRS)
    logged = stub._metrics["eval"]
    for name in ("kl", "rewards/chosen", "rewards/rejected", "logps/chosen", "logps/rejected"):
        assert ours.stats[name].mean == pytest.approx(logged[name][0], rel=1e-5)


def test_orpo_equals_trl(pairs: PairLogProbs) -> None:
    theirs, *_ = ORPOTrainer.odds_ratio_loss(trainer(beta=0.3), pairs.mean_chosen, pairs.mean_rejected)
    ours = orpo_loss(pairs, beta=0.3).total
    assert_same(pairs, ours, (-pairs.mean_chosen - theirs).sum())


def test_simpo_equals_trl(pairs: PairLogProbs) -> None:
    stub = trainer(alpha=0.0, beta=2.0, label_smoothing=0.0, loss_type="simpo", simpo_gamma=0.5)
    theirs, _, _ = CPOTrainer.cpo_loss(stub, pairs.mean_chosen, pairs.mean_rejected)
    assert_same(pairs, simpo_loss(pairs, beta=2.0, gamma=0.5).total, theirs.sum())


def test_cpo_equals_trl(pairs: PairLogProbs) -> None:
    stub = trainer(alpha=0.0, beta=0.3, label_smoothing=0.0, loss_type="sigmoid")
    theirs, _, _ = CPOTrainer.cpo_loss(stub, pairs.chosen, pairs.rejected)
    assert_same(pairs, cpo_loss(pairs, beta=0.3).total, (theirs - pairs.mean_chosen).sum())


@pytest.mark.parametrize("centering", [None, 0.01])
@pytest.mark.parametrize("with_margin", [False, True])
def test_pairwise_loss_equals_trl(centering: float | None, with_margin: bool, pairs: PairLogProbs) -> None:
    margin = torch.linspace(0.0, 2.0, NUM_PAIRS) if with_margin else None
    stub = trainer(args=SimpleNamespace(center_rewards_coefficient=centering))
    scores = Answering(logits=torch.cat([pairs.chosen, pairs.rejected]).unsqueeze(1))
    theirs = RewardTrainer.compute_loss(stub, scores, {} if margin is None else {"margin": margin})
    ours = pairwise_loss(pairs.chosen, pairs.rejected, margin=margin, centering=centering or 0.0)
    assert_same(pairs, ours.total / ours.weight, theirs)
    assert ours.stats["accuracy"].mean == pytest.approx(stub._metrics["eval"]["accuracy"][0])
