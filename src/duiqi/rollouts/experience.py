"""A batch of rollouts as tensors: what PPO measures on it, and the mini-batches it is learned from."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from duiqi.models.measure import AnswerMeasure, measure_answers
from duiqi.models.shared_base import SharedBase
from duiqi.types import Rollout


@dataclass(frozen=True)
class Experience:
    """B rollouts, right-padded to T tokens. Per-token quantities stand at the token they belong to."""

    input_ids: Int[Tensor, "B T"]
    attention_mask: Bool[Tensor, "B T"]
    answer_mask: Bool[Tensor, "B T"]
    """True at every answer token, the end token included."""
    suppressed: Bool[Tensor, "B T"]
    """True at answer tokens drawn before the end token was allowed."""
    finished: Bool[Tensor, " B"]
    groups: Int[Tensor, " B"]
    """Which rollouts share a prompt."""
    old_log_probs: Float[Tensor, "B T"]
    reference_log_probs: Float[Tensor, "B T"]
    values: Float[Tensor, "B T"]
    rewards: Float[Tensor, "B T"]
    advantages: Float[Tensor, "B T"]
    returns: Float[Tensor, "B T"]
    scores: Float[Tensor, " B"]

    def __len__(self) -> int:
        return len(self.input_ids)

    @property
    def lengths(self) -> Int[Tensor, " B"]:
        return self.attention_mask.sum(dim=1)

    def select(self, rows: Tensor) -> Experience:
        """These rows only, cut to the longest of them."""
        width = int(self.lengths[rows].max())
        picked = {f.name: getattr(self, f.name)[rows] for f in fields(self)}
        return replace(self, **{name: v[:, :width] if v.ndim == 2 else v for name, v in picked.items()})

    def split(self, max_rows: int) -> Iterator[Experience]:
        """Micro-batches of at most `max_rows` rows of similar length (sums do not depend on the split)."""
        for rows in self.lengths.argsort(descending=True, stable=True).split(max_rows):
            yield self.select(rows)


def assemble(
    rollouts: Sequence[Rollout], groups: Sequence[int], *, pad_token_id: int, min_new_tokens: int, device: torch.device
) -> Experience:
    """Rollouts as right-padded tensors; what is not known yet is zero.

    Values are the sampler's where it captured them.
    """
    rows, width = len(rollouts), max(len(r.prompt_ids) + len(r.answer_ids) for r in rollouts)
    ids = torch.full((rows, width), pad_token_id, dtype=torch.long)
    attention, answers, suppressed = (torch.zeros(rows, width, dtype=torch.bool) for _ in range(3))
    log_probs, values = torch.zeros(rows, width), torch.zeros(rows, width)
    for i, rollout in enumerate(rollouts):
        start, end = len(rollout.prompt_ids), len(rollout.prompt_ids) + len(rollout.answer_ids)
        ids[i, :end] = torch.tensor(rollout.prompt_ids + rollout.answer_ids)
        attention[i, :end] = True
        answers[i, start:end] = True
        suppressed[i, start : min(end, start + min_new_tokens)] = True
        log_probs[i, start:end] = torch.tensor(rollout.log_probs)
        if rollout.values:
            values[i, start:end] = torch.tensor(rollout.values)
    zeros = torch.zeros(rows, width)
    experience = Experience(
        input_ids=ids,
        attention_mask=attention,
        answer_mask=answers,
        suppressed=suppressed,
        finished=torch.tensor([r.finished for r in rollouts]),
        groups=torch.tensor(groups),
        old_log_probs=log_probs,
        reference_log_probs=zeros,
        values=values,
        rewards=zeros,
        advantages=zeros,
        returns=zeros,
        scores=torch.zeros(rows),
    )
    return replace(experience, **{f.name: getattr(experience, f.name).to(device) for f in fields(experience)})


@dataclass(frozen=True)
class Measuring:
    """How rollouts are measured again: exactly as they were sampled."""

    temperature: float
    suppress: Callable[[Tensor], Tensor]
    """Logits to logits without the end tokens."""
    max_rows: int

    def answers(
        self, base: SharedBase, batch: Experience, *, with_entropy: bool = False, with_values: bool = False
    ) -> AnswerMeasure:
        """One pass over a micro-batch under the active role."""
        return measure_answers(
            base,
            batch.input_ids,
            batch.attention_mask,
            batch.answer_mask,
            temperature=self.temperature,
            with_entropy=with_entropy,
            with_values=with_values,
            suppressed=batch.suppressed,
            suppress=self.suppress,
        )

    def log_probs(self, base: SharedBase, experience: Experience, role: str) -> Float[Tensor, "B T"]:
        """Log-probabilities of all answers under `role`, without gradient."""
        return self._gather(base, experience, role, lambda batch: self.answers(base, batch).log_probs)

    def values(self, base: SharedBase, experience: Experience, role: str) -> Float[Tensor, "B T"]:
        """Values of all answer tokens under `role`, without gradient."""

        def estimate(batch: Experience) -> Tensor:
            hidden = base.hidden_states(batch.input_ids, batch.attention_mask)
            return answer_values(base, hidden, batch.answer_mask)

        return self._gather(base, experience, role, estimate)

    def _gather(
        self, base: SharedBase, experience: Experience, role: str, measure: Callable[[Experience], Tensor]
    ) -> Tensor:
        out = torch.zeros_like(experience.old_log_probs)
        order = experience.lengths.argsort(descending=True, stable=True)
        with base.acting(role):
            for rows in order.split(self.max_rows):
                part = measure(experience.select(rows))
                out[rows, : part.shape[1]] = part
        return out


def answer_values(
    base: SharedBase, hidden: Float[Tensor, "B T H"], answer_mask: Bool[Tensor, "B T"]
) -> Float[Tensor, "B T"]:
    """The value estimated before each answer token, at that token's position; zero elsewhere."""
    estimates = base.values(hidden[:, :-1])
    assert estimates is not None, "no value head"
    return torch.nn.functional.pad(estimates, (1, 0)) * answer_mask
