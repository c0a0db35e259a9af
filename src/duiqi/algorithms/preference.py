"""Losses that learn from pairs of answers directly: DPO and its kin. Sums over pairs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import logsigmoid

from duiqi.algorithms.loss import Loss, WeightedSum


@dataclass(frozen=True)
class PairLogProbs:
    """Summed log-probabilities of P chosen and rejected answers, and their lengths in tokens."""

    chosen: Float[Tensor, " P"]
    rejected: Float[Tensor, " P"]
    reference_chosen: Float[Tensor, " P"]
    reference_rejected: Float[Tensor, " P"]
    chosen_tokens: Float[Tensor, " P"]
    rejected_tokens: Float[Tensor, " P"]

    @property
    def log_ratio(self) -> Float[Tensor, " P"]:
        """How much more the policy prefers the chosen answer than the reference does, in nats."""
        return (self.chosen - self.rejected) - (self.reference_chosen - self.reference_rejected)

    @property
    def mean_chosen(self) -> Float[Tensor, " P"]:
        """Log-probability per token of the chosen answer."""
        return self.chosen / self.chosen_tokens

    @property
    def mean_rejected(self) -> Float[Tensor, " P"]:
        """Log-probability per token of the rejected answer."""
        return self.rejected / self.rejected_tokens


def dpo_loss(pairs: PairLogProbs, *, beta: float, label_smoothing: float = 0.0) -> Loss:
    """-(1 - eps) log sigmoid(beta log_ratio) - eps log sigmoid(-beta log_ratio).

    Rafailov et al. 2023, equation 7; with eps, the conservative form of Mitchell 2023.
    """
    z = beta * pairs.log_ratio
    losses = -(1.0 - label_smoothing) * logsigmoid(z) - label_smoothing * logsigmoid(-z)
    return _summed(losses, pairs, beta=beta)


def ipo_loss(pairs: PairLogProbs, *, beta: float) -> Loss:
    """(log_ratio - 1 / (2 beta))^2 (Azar et al. 2024, equation 17), on summed log-probabilities as in the paper.

    TRL divides log-probabilities by length first.
    """
    return _summed((pairs.log_ratio - 1.0 / (2.0 * beta)) ** 2, pairs, beta=beta)


def hinge_loss(pairs: PairLogProbs, *, beta: float) -> Loss:
    """max(0, 1 - beta log_ratio) (SLiC: Zhao et al. 2023; as a DPO loss: Liu et al. 2024, RSO)."""
    return _summed((1.0 - beta * pairs.log_ratio).clamp(min=0.0), pairs, beta=beta)


def kto_pair_loss(pairs: PairLogProbs, *, beta: float, kl: float = 0.0) -> Loss:
    """1 - sigmoid(beta (r_chosen - kl)) + 1 - sigmoid(beta (kl - r_rejected)), r = log policy / reference.

    Ethayarajh et al. 2024, equation 8, with both answers of a pair as one desirable and one undesirable example. `kl`
    is the baseline z0 in nats; 0, its lower bound, keeps the loss of a pair independent of its batch.
    """
    desirable = beta * (pairs.chosen - pairs.reference_chosen - kl)
    undesirable = beta * (kl - (pairs.rejected - pairs.reference_rejected))
    return _summed(2.0 - desirable.sigmoid() - undesirable.sigmoid(), pairs, beta=beta)


def orpo_loss(pairs: PairLogProbs, *, beta: float) -> Loss:
    """Cross-entropy per token of the chosen answer - beta log sigmoid(log odds ratio) (Hong et al. 2024, eq. 6)."""
    chosen, rejected = pairs.mean_chosen, pairs.mean_rejected
    log_odds = (chosen - rejected) - (_log1m_exp(chosen) - _log1m_exp(rejected))
    return _summed(-chosen - beta * logsigmoid(log_odds), pairs, beta=beta)


def simpo_loss(pairs: PairLogProbs, *, beta: float, gamma: float) -> Loss:
    """-log sigmoid(beta (mean_chosen - mean_rejected) - gamma) (Meng et al. 2024, equation 6)."""
    return _summed(-logsigmoid(beta * (pairs.mean_chosen - pairs.mean_rejected) - gamma), pairs, beta=beta)


def cpo_loss(pairs: PairLogProbs, *, beta: float) -> Loss:
    """-log sigmoid(beta (chosen - rejected)) plus the cross-entropy per token of the chosen answer (Xu et al. 2024)."""
    losses = -logsigmoid(beta * (pairs.chosen - pairs.rejected)) - pairs.mean_chosen
    return _summed(losses, pairs, beta=beta)


def add_cross_entropy(loss: Loss, pairs: PairLogProbs, coefficient: float) -> Loss:
    """The loss plus `coefficient` times the cross-entropy per token of the chosen answers."""
    nll = -pairs.mean_chosen.sum()
    stats = {**loss.stats, "nll_chosen": WeightedSum(nll.detach(), loss.weight)}
    return Loss(loss.total + coefficient * nll, loss.weight, stats)


def _log1m_exp(x: Tensor) -> Tensor:
    """log(1 - exp(x)) for x < 0, accurate near 0 and far from it (Mächler 2012)."""
    x = x.clamp(max=-1e-6)
    return torch.where(x > -0.6931, torch.log(-torch.expm1(x)), torch.log1p(-torch.exp(x)))


def _summed(losses: Tensor, pairs: PairLogProbs, *, beta: float) -> Loss:
    """The sum over pairs, with the statistics that every loss reports.

    `rewards/*` are beta times the log-ratio to the reference: the implicit reward of DPO. A tie counts half.
    """
    chosen = beta * (pairs.chosen - pairs.reference_chosen).detach()
    rejected = beta * (pairs.rejected - pairs.reference_rejected).detach()
    reported = {
        "rewards/accuracies": (chosen > rejected).float() + 0.5 * (chosen == rejected).float(),
        "rewards/chosen": chosen,
        "rewards/rejected": rejected,
        "rewards/margins": chosen - rejected,
        "logps/chosen": pairs.chosen.detach(),
        "logps/rejected": pairs.rejected.detach(),
    }
    weight = torch.ones_like(losses).sum()
    return Loss(losses.sum(), weight, {name: WeightedSum(value.sum(), weight) for name, value in reported.items()})
