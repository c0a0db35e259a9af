"""Rollouts as tensors: what was sampled, what is measured on it, and the mini-batches it is learned from."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from duiqi.algorithms.log_probs import Ban
from duiqi.models.measure import measure_answers, measure_values
from duiqi.models.shared_base import SharedBase
from duiqi.packing.batch import Family, PackedBatch, pack, share_prompts
from duiqi.packing.budget import deal
from duiqi.packing.memory import MemoryBudget
from duiqi.types import Rollout

Ids = tuple[int, ...]


@dataclass(frozen=True)
class Experience:
    """B rollouts. Per-token quantities stand at the answer's tokens, B x A, filled up on the right."""

    prompts: tuple[Ids, ...]
    answers: tuple[Ids, ...]
    answer_mask: Bool[Tensor, "B A"]
    """True at every answer token, the end token included."""
    suppressed: Bool[Tensor, "B A"]
    """True at answer tokens drawn before the end token was allowed."""
    finished: Bool[Tensor, " B"]
    groups: Int[Tensor, " B"]
    """Which rollouts share a prompt; they stand side by side."""
    old_log_probs: Float[Tensor, "B A"]
    reference_log_probs: Float[Tensor, "B A"]
    values: Float[Tensor, "B A"]
    rewards: Float[Tensor, "B A"]
    advantages: Float[Tensor, "B A"]
    returns: Float[Tensor, "B A"]
    scores: Float[Tensor, " B"]

    def __len__(self) -> int:
        return len(self.answers)

    @property
    def num_tokens(self) -> int:
        """Tokens of all prompts and answers, a prompt counted with each of its answers."""
        return sum(map(len, self.prompts)) + sum(map(len, self.answers))

    @property
    def device(self) -> torch.device:
        return self.answer_mask.device

    @cached_property
    def families(self) -> list[Family]:
        """For packing: answers to the same prompt share it."""
        return share_prompts(self.prompts, self.answers)

    @cached_property
    def packed(self) -> PackedBatch:
        """All rollouts in one row; their learned tokens are the answers', in the order of `answer_mask`."""
        return pack(self.families).to(self.device)

    def select(self, rows: Sequence[int]) -> Experience:
        """These rows only, cut to the longest answer among them."""
        index = torch.tensor(rows, device=self.device)
        width = max(len(self.answers[row]) for row in rows)
        tensors = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("prompts", "answers")}
        picked = {name: value[index] for name, value in tensors.items()}
        return replace(
            self,
            prompts=tuple(self.prompts[row] for row in rows),
            answers=tuple(self.answers[row] for row in rows),
            **{name: v[:, :width] if v.ndim == 2 else v for name, v in picked.items()},
        )

    def divided(self, max_tokens: int, *, packed: bool) -> Iterator[list[int]]:
        """Rows of micro-batches of at most so many tokens; answers to one prompt stay together."""
        ends = torch.tensor([len(family.answers) for family in self.families]).cumsum(0).tolist()
        for picked in deal(self.families, max_tokens=max_tokens, packed=packed):
            yield [row for i in picked for row in range(ends[i] - len(self.families[i].answers), ends[i])]

    def matrix(self, values: Float[Tensor, " N"]) -> Float[Tensor, "B A"]:
        """Numbers of all answer tokens at their places; zero elsewhere."""
        return torch.zeros_like(self.old_log_probs).masked_scatter(self.answer_mask, values)


def assemble(
    rollouts: Sequence[Rollout], groups: Sequence[int], *, min_new_tokens: int, device: torch.device
) -> Experience:
    """Rollouts as tensors; what is not known yet is zero.

    Values are the sampler's where it captured them.
    """
    rows, width = len(rollouts), max(len(r.answer_ids) for r in rollouts)
    lengths = torch.tensor([len(r.answer_ids) for r in rollouts])
    places = torch.arange(width)
    mask = places < lengths.unsqueeze(1)
    log_probs, values = torch.zeros(rows, width), torch.zeros(rows, width)
    for i, rollout in enumerate(rollouts):
        log_probs[i, : lengths[i]] = torch.tensor(rollout.log_probs)
        if rollout.values:
            values[i, : lengths[i]] = torch.tensor(rollout.values)
    zeros = torch.zeros(rows, width, device=device)
    return Experience(
        prompts=tuple(r.prompt_ids for r in rollouts),
        answers=tuple(r.answer_ids for r in rollouts),
        answer_mask=mask.to(device),
        suppressed=(mask & (places < min_new_tokens)).to(device),
        finished=torch.tensor([r.finished for r in rollouts], device=device),
        groups=torch.tensor(groups, device=device),
        old_log_probs=log_probs.to(device),
        reference_log_probs=zeros,
        values=values.to(device),
        rewards=zeros,
        advantages=zeros,
        returns=zeros,
        scores=torch.zeros(rows, device=device),
    )


@dataclass(frozen=True)
class AnswerMatrices:
    """What was measured on the answers of an experience; zero outside them."""

    log_probs: Float[Tensor, "B A"]
    entropy: Float[Tensor, "B A"] | None
    values: Float[Tensor, "B A"] | None


@dataclass(frozen=True)
class Measuring:
    """How rollouts are measured again: exactly as they were sampled."""

    temperature: float
    stop_token_ids: tuple[int, ...]
    """What could not be drawn where `Experience.suppressed` is True."""
    budget: MemoryBudget
    """Of tokens computed at once without gradient."""

    def answers(
        self,
        base: SharedBase,
        batch: Experience,
        *,
        with_entropy: bool = False,
        with_values: bool = False,
        states: Float[Tensor, "N H"] | None = None,
    ) -> AnswerMatrices:
        """One pass over a micro-batch under the active role, or what its `states` give where it was read already."""
        found = measure_answers(
            base,
            batch.packed,
            temperature=self.temperature,
            with_entropy=with_entropy,
            with_values=with_values,
            ban=self._ban(batch),
            states=states,
        )
        return AnswerMatrices(
            log_probs=batch.matrix(found.log_probs),
            entropy=None if found.entropy is None else batch.matrix(found.entropy),
            values=None if found.values is None else batch.matrix(found.values),
        )

    def _ban(self, batch: Experience) -> Ban | None:
        if not self.stop_token_ids:
            return None
        stops = torch.tensor(self.stop_token_ids, device=batch.device)
        return Ban(batch.suppressed[batch.answer_mask], stops)

    def log_probs(self, base: SharedBase, experience: Experience, role: str) -> Float[Tensor, "B A"]:
        """Log-probabilities of all answers under `role`, without gradient."""
        return self._gather(base, experience, role, lambda batch: self.answers(base, batch).log_probs)

    def values(self, base: SharedBase, experience: Experience, role: str) -> Float[Tensor, "B A"]:
        """Values of all answer tokens under `role`, without gradient."""
        return self._gather(base, experience, role, lambda batch: batch.matrix(measure_values(base, batch.packed)))

    def _gather(
        self, base: SharedBase, experience: Experience, role: str, measure: Callable[[Experience], Tensor]
    ) -> Tensor:
        def of_everything(max_tokens: int) -> Tensor:
            out = torch.zeros_like(experience.old_log_probs)
            for rows in experience.divided(max_tokens, packed=base.layout.is_packed):
                part = measure(experience.select(rows))
                out[torch.tensor(rows, device=out.device), : part.shape[1]] = part
            return out

        with base.acting(role):
            return self.budget.within(of_everything)
