"""What the stages measure on a batch: log-probabilities of answers, scores and values. Heads run only where read."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from duiqi.algorithms.log_probs import Ban, head_log_probs
from duiqi.models.shared_base import SharedBase
from duiqi.packing.batch import PackedBatch


@dataclass(frozen=True)
class AnswerMeasure:
    """Per-token quantities of a batch, one for each of its N learned tokens in their order."""

    log_probs: Float[Tensor, " N"]
    entropy: Float[Tensor, " N"] | None
    values: Float[Tensor, " N"] | None
    """Value estimated before each token."""


def measure_answers(
    base: SharedBase,
    batch: PackedBatch,
    *,
    temperature: float = 1.0,
    with_entropy: bool = False,
    with_values: bool = False,
    ban: Ban | None = None,
    states: Float[Tensor, "N H"] | None = None,
) -> AnswerMeasure:
    """Log-probability of every learned token under the active role, from one pass of the trunk.

    Args:
        base: The shared base, with the role to measure made active by the caller.
        batch: On the device of the base.
        temperature: Divides the logits.
        with_entropy: Also the entropy of each token's distribution.
        with_values: Also the value head's estimates, from the same hidden states.
        ban: Tokens that could not be drawn, over the learned tokens.
        states: Those before the learned tokens, where the trunk has read the batch; None: it reads it here.
    """
    states = base.read(batch) if states is None else states
    found = head_log_probs(
        states, batch.targets, base.output_head(), temperature=temperature, with_entropy=with_entropy, ban=ban
    )
    values = None
    if with_values:
        values = base.values(states)
        assert values is not None, "no value head"
    return AnswerMeasure(log_probs=found.log_probs, entropy=found.entropy, values=values)


def measure_values(base: SharedBase, batch: PackedBatch) -> Float[Tensor, " N"]:
    """The value estimated before every learned token, under the active role, which must have a value head."""
    values = base.values(base.read(batch))
    assert values is not None, "no value head"
    return values


def measure_scores(base: SharedBase, batch: PackedBatch, role: str) -> Float[Tensor, " B"]:
    """What the head of `role` says at the end of every sequence, under the active role."""
    scores: Tensor = base.heads[role](base.read_ends(batch))
    return scores
