"""What pretraining and SFT share: the cross-entropy of a batch, and its mean over held-out batches."""

from __future__ import annotations

import math
from collections.abc import Iterable

from duiqi.algorithms.loss import Loss
from duiqi.algorithms.supervised import cross_entropy_loss
from duiqi.models.measure import measure_answers
from duiqi.models.shared_base import SharedBase
from duiqi.packing.batch import PackedBatch
from duiqi.training.fit import mean_over

LARGEST_EXPONENT = 700.0


def token_loss(base: SharedBase, batch: PackedBatch) -> Loss:
    """Summed cross-entropy of the learned tokens of a batch, under the active role."""
    return cross_entropy_loss(measure_answers(base, batch.to(base.device)).log_probs)


def perplexity(base: SharedBase, batches: Iterable[PackedBatch]) -> dict[str, float]:
    """Mean cross-entropy per learned token (nats) of the policy, and its exponential; empty without batches."""
    with base.acting("policy"):
        means = mean_over(batches, lambda batch: token_loss(base, batch))
    if not means:
        return {}
    return {"eval_loss": means["loss"], "eval_perplexity": math.exp(min(means["loss"], LARGEST_EXPONENT))}
