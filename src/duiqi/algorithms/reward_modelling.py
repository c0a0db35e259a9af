"""The loss of a reward model: the better answer should score higher."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import logsigmoid

from duiqi.algorithms.loss import Loss, WeightedSum


def pairwise_loss(
    chosen: Float[Tensor, " P"],
    rejected: Float[Tensor, " P"],
    *,
    margin: Float[Tensor, " P"] | None = None,
    weights: Float[Tensor, " P"] | None = None,
    centering: float = 0.0,
) -> Loss:
    """Summed -log sigmoid(chosen - rejected - margin) + centering (chosen + rejected)^2.

    The likelihood of Bradley and Terry (1952) as in Ouyang et al. 2022, equation 1; the margin as in Touvron et al.
    2023 (Llama 2), equation 2; centring as in Eisenstein et al. 2023, section 3.

    Args:
        chosen: Scores of the better answers.
        rejected: Scores of the worse answers.
        margin: How much better, in score units.
        weights: What each pair counts; with 1 / (number of the prompt's pairs) a prompt counts once.
        centering: Pulls the two scores towards opposite values, and so the mean score towards 0.

    >>> float(pairwise_loss(torch.zeros(1), torch.zeros(1)).total)  # ln 2
    0.6931471824645996
    """
    counts = torch.ones_like(chosen) if weights is None else weights
    gap = chosen - rejected
    losses = -logsigmoid(gap if margin is None else gap - margin)
    if centering:
        losses = losses + centering * (chosen + rejected) ** 2
    won = (gap > 0).float() + 0.5 * (gap == 0).float()
    weight = counts.sum()
    reported = {"accuracy": won, "score_chosen": chosen, "score_rejected": rejected, "score_margin": gap}
    stats = {name: WeightedSum((value.detach() * counts).sum(), weight) for name, value in reported.items()}
    return Loss((losses * counts).sum(), weight, stats)
