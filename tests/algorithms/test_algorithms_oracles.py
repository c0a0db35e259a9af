"""What TRL and transformers compute, beyond the preference losses."""

from __future__ import annotations

from collections import defaultdict
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close
from transformers.loss.loss_utils import ForCausalLMLoss
from trl import GRPOTrainer
from trl.rewards import get_soft_overlong_punishment
from trl.trainer.utils import selective_log_softmax_and_entropy

from duiqi.algorithms.kl import k3
from duiqi.algorithms.log_probs import token_entropy, token_log_probs
from duiqi.algorithms.policy import policy_loss
from duiqi.algorithms.rewards import overlong_penalty
from duiqi.algorithms.supervised import cross_entropy_loss

BATCH, LENGTH, VOCABULARY = 4, 6, 11
LENGTHS = torch.tensor([6, 1, 3, 5])
MASK = torch.arange(LENGTH) < LENGTHS.unsqueeze(1)
ONE_PROCESS = SimpleNamespace(gather=lambda x: x, gather_for_metrics=lambda x: x, reduce=lambda x, **_: x)


def noise(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def trl_grpo(
    log_probs: Tensor, old: Tensor, advantages: Tensor, *, loss_type: str, beta: float = 0.0, high: float = 0.28
) -> tuple[Tensor, dict[str, list[float]]]:
    """The loss and metrics of TRL's trainer, given the log-probabilities that its model would have computed."""
    metrics: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    trainer = SimpleNamespace(
        accelerator=ONE_PROCESS,
        args=SimpleNamespace(delta=None, use_bias_correction_kl=False),
        model=SimpleNamespace(training=False),
        aux_loss_enabled=False,
        beta=beta,
        epsilon_low=0.2,
        epsilon_high=high,
        importance_sampling_level="token",
        loss_type=loss_type,
        off_policy_mask_threshold=None,
        top_entropy_quantile=1.0,
        use_vllm=False,
        _entropy_bonus_enabled=False,
        _get_per_token_logps_and_entropies=lambda *_, **__: (log_probs, torch.zeros_like(log_probs), None),
        _metrics=metrics,
    )
    batch = {
        "prompt_ids": torch.ones(BATCH, 1, dtype=torch.long),
        "prompt_mask": torch.ones(BATCH, 1, dtype=torch.long),
        "completion_ids": torch.ones(BATCH, LENGTH, dtype=torch.long),
        "completion_mask": MASK.long(),
        "advantages": advantages,
        "old_per_token_logps": old,
        "ref_per_token_logps": torch.zeros_like(old),
    }
    return GRPOTrainer._compute_loss(trainer, None, batch), metrics["eval"]


@pytest.mark.parametrize(("aggregation", "loss_type"), [("token", "bnpo"), ("sequence", "grpo")])
def test_the_clipped_surrogate_is_that_of_trl(aggregation: str, loss_type: str) -> None:
    old, advantages = -noise(0, BATCH, LENGTH).abs(), noise(1, BATCH)
    log_probs = (old + 0.4 * noise(2, BATCH, LENGTH)).requires_grad_()
    theirs, metrics = trl_grpo(log_probs, old, advantages, loss_type=loss_type)
    spread = advantages.unsqueeze(1).expand(BATCH, LENGTH)
    ours = policy_loss(log_probs, old, spread, MASK, clip_low=0.2, clip_high=0.28, aggregation=aggregation)
    mean = ours.total / ours.weight
    assert_close(mean, theirs)
    assert_close(torch.autograd.grad(mean, log_probs), torch.autograd.grad(theirs, log_probs))
    assert ours.stats["clip_fraction"].mean == pytest.approx(metrics["clip_ratio/region_mean"][0])
    assert 0.0 < ours.stats["clip_fraction"].mean < 1.0


def test_k3_is_the_kl_that_trl_reports() -> None:
    log_probs = -noise(3, BATCH, LENGTH).abs()
    _, metrics = trl_grpo(log_probs, log_probs, torch.zeros(BATCH), loss_type="grpo", beta=0.1)
    assert float(k3(log_probs)[MASK].mean()) == pytest.approx(metrics["kl"][0])


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_log_probs_and_entropy_are_those_of_trl(temperature: float) -> None:
    logits, targets = 3.0 * noise(4, BATCH, LENGTH, VOCABULARY), torch.arange(BATCH * LENGTH).view(BATCH, LENGTH) % 11
    log_probs, entropy = selective_log_softmax_and_entropy(logits, targets, temperature=temperature)
    assert_close(token_log_probs(logits, targets, temperature=temperature), log_probs)
    assert_close(token_entropy(logits, temperature=temperature), entropy)


def test_overlong_penalty_is_that_of_trl() -> None:
    lengths = [*range(1, 60, 7), 20, 50]
    theirs = get_soft_overlong_punishment(max_completion_len=50, soft_punish_cache=30)([[0] * n for n in lengths])
    assert_close(overlong_penalty(torch.tensor(lengths), limit=50, buffer=30), torch.tensor(theirs))


def test_cross_entropy_is_that_of_transformers_whole_and_in_micro_batches() -> None:
    logits = noise(5, BATCH, LENGTH, VOCABULARY).requires_grad_()
    targets = torch.arange(BATCH * LENGTH).view(BATCH, LENGTH) % VOCABULARY
    losses = [
        cross_entropy_loss(token_log_probs(logits[rows], targets[rows])[MASK[rows]])
        for rows in torch.arange(BATCH).split([1, 3])
    ]
    mean = torch.stack([loss.total for loss in losses]).sum() / torch.stack([loss.weight for loss in losses]).sum()
    labels = targets.masked_fill(~MASK, -100)
    whole = ForCausalLMLoss(logits, labels, VOCABULARY, shift_labels=labels)
    assert_close(mean, whole)
    assert_close(torch.autograd.grad(mean, logits), torch.autograd.grad(whole, logits))
