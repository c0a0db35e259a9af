"""What the stages measure on a batch: log-probabilities of answers, scores and values. Heads run only where read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from duiqi.algorithms.log_probs import chunked_log_probs
from duiqi.models.shared_base import SharedBase

Project = Callable[[Tensor], Tensor]
"""Hidden states N x H to logits N x V."""


@dataclass(frozen=True)
class AnswerMeasure:
    """Per-token quantities of a batch, at the position of the token they belong to; zero outside the answers."""

    log_probs: Float[Tensor, "B T"]
    entropy: Float[Tensor, "B T"] | None
    values: Float[Tensor, "B T"] | None
    """Value estimated before each answer token."""


def measure_answers(
    base: SharedBase,
    input_ids: Int[Tensor, "B T"],
    attention_mask: Bool[Tensor, "B T"],
    answer_mask: Bool[Tensor, "B T"],
    *,
    temperature: float = 1.0,
    with_entropy: bool = False,
    with_values: bool = False,
    suppressed: Bool[Tensor, "B T"] | None = None,
    suppress: Callable[[Tensor], Tensor] | None = None,
    chunk_size: int = 1024,
) -> AnswerMeasure:
    """Log-probability of every answer token under the active role, from one pass of the trunk.

    The head runs at answer positions only, `chunk_size` positions at a time.

    Args:
        base: The shared base, with the role to measure made active by the caller.
        input_ids: Right-padded rows.
        attention_mask: True at real tokens.
        answer_mask: True at the tokens to measure; never at position 0.
        temperature: Divides the logits.
        with_entropy: Also the entropy of each token's distribution.
        with_values: Also the value head's estimates, from the same hidden states.
        suppressed: True at answer tokens whose logits `suppress` changes first (no end token yet).
        suppress: Logits to logits, as the sampler did.
    """
    hidden = base.hidden_states(input_ids, attention_mask)
    rows, columns = answer_mask.nonzero(as_tuple=True)
    before = hidden[rows, columns - 1]
    targets = input_ids[rows, columns]
    log_probs = torch.zeros(input_ids.shape, device=input_ids.device)
    entropy = torch.zeros_like(log_probs) if with_entropy else None

    def fill(picked: Tensor, project: Project) -> None:
        nonlocal log_probs, entropy
        got = chunked_log_probs(
            before[picked],
            targets[picked],
            project,
            temperature=temperature,
            chunk_size=chunk_size,
            with_entropy=with_entropy,
        )
        at = (rows[picked], columns[picked])
        log_probs = log_probs.index_put(at, got.log_probs)
        if entropy is not None and got.entropy is not None:
            entropy = entropy.index_put(at, got.entropy)

    if suppressed is None or suppress is None:
        fill(torch.arange(len(rows), device=rows.device), base.logits)
    else:
        changed = suppressed[rows, columns]
        fill((~changed).nonzero().squeeze(1), base.logits)
        fill(changed.nonzero().squeeze(1), lambda states: suppress(base.logits(states)))

    values = None
    if with_values:
        estimates = base.values(before)
        assert estimates is not None, "no value head"
        values = torch.zeros_like(log_probs).index_put((rows, columns), estimates)
    return AnswerMeasure(log_probs=log_probs, entropy=entropy, values=values)
