"""What policy and reference say of answers that are given: the ground of every loss that needs no reward model."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from duiqi.data.feedback import FeedbackBatch
from duiqi.data.rankings import RankingBatch
from duiqi.errors import GuardStop
from duiqi.journal.run import Run
from duiqi.models.measure import measure_answers
from duiqi.models.quantized import rounds_activations
from duiqi.models.shared_base import SharedBase
from duiqi.packing.batch import PackedBatch
from duiqi.training.reference import ReferenceMemory

OPENING_TOLERANCE = 1e-3
"""How far apart the summed log-probabilities of an answer may be at step 0, in nats."""
COARSE_TOLERANCE = 0.3
"""The same where activations are rounded to 8 bits."""


def answer_log_probs(base: SharedBase, sequences: PackedBatch) -> Float[Tensor, " B"]:
    """Summed log-probability of every answer in a batch, under the active role."""
    return sequences.sums(measure_answers(base, sequences).log_probs)


def reference_log_probs(
    base: SharedBase, batch: RankingBatch | FeedbackBatch, memory: ReferenceMemory
) -> Float[Tensor, " B"]:
    """The same under the reference: remembered, or computed and remembered."""
    known = memory.recall(batch.rankings)
    if known is not None:
        return known.to(base.device)
    with base.acting("reference"):
        found = answer_log_probs(base, batch.sequences)
    memory.keep(batch.rankings, found)
    return found


def check_opening(base: SharedBase, batch: RankingBatch | FeedbackBatch, journal: Run) -> None:
    """Before the first update policy and reference are the same, so that a loss begins where it should: DPO's at ln 2.

    Raises:
        GuardStop: They are not: something in the network still acts differently in training (dropout).
    """
    sequences = batch.sequences.to(base.device)
    with torch.no_grad():
        policy = answer_log_probs(base, sequences)
    with base.acting("reference"):
        gap = float((policy - answer_log_probs(base, sequences)).abs().max())
    journal.event("opening_check", gap=gap)
    if gap > (COARSE_TOLERANCE if rounds_activations(base.model) else OPENING_TOLERANCE):
        raise GuardStop(
            f"the reference is not the policy at step 0: their log-probabilities differ by up to {gap:.2e}",
            remedy="this architecture has a dropout that duiqi does not know: please report it with config.yaml",
        )
