"""Several adapters of one base, put to the same prompts with the same random numbers; the base is loaded once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedTokenizerBase

from duiqi.data.encoding import encode_prompt
from duiqi.data.templates import Template
from duiqi.models.lineage import read_stack
from duiqi.models.shared_base import SharedBase
from duiqi.packing.memory import MemoryBudget
from duiqi.rollouts.decoder import Decoder
from duiqi.rollouts.experience import Measuring, assemble
from duiqi.types import Message, Rollout, Sampling

MAX_ROWS = 64
MAX_TOKENS = 8192


@dataclass(frozen=True)
class ModelAnswers:
    """What one model said."""

    model: str
    rollouts: list[Rollout]
    kl: list[float]
    """Log-probability of each answer under this model less that under the reference, in nats."""

    @property
    def answers(self) -> list[str]:
        return [rollout.answer for rollout in self.rollouts]

    @property
    def mean_length(self) -> float:
        """Tokens per answer."""
        return sum(len(rollout.answer_ids) for rollout in self.rollouts) / len(self.rollouts)

    @property
    def mean_kl(self) -> float:
        return sum(self.kl) / len(self.kl)


def seat_models(base: SharedBase, adapters: Mapping[str, str | None]) -> None:
    """Seat every adapter on the base under its label; None stands for the bare base."""
    for label, path in adapters.items():
        if path is None:
            base.seat_bare(label)
        else:
            *below, own = read_stack(path)
            base.seat_saved_adapter(label, own, trainable=False, above=below)


def answer_side_by_side(
    base: SharedBase,
    labels: Sequence[str],
    *,
    reference: str,
    tokenizer: PreTrainedTokenizerBase,
    template: Template,
    prompts: Sequence[Sequence[Message]],
    sampling: Sampling,
) -> list[ModelAnswers]:
    """Each seated model's answers to all prompts, and their KL against the model `reference`."""
    ids = [encode_prompt(template, tokenizer, messages=prompt) for prompt in prompts]
    measuring = Measuring(
        temperature=sampling.temperature or 1.0,
        stop_token_ids=tuple(template.stop_token_ids),
        budget=MemoryBudget(MAX_TOKENS),
    )
    found = []
    for label in labels:
        decoder = Decoder(
            base,
            decode=lambda answer: str(tokenizer.decode(answer, skip_special_tokens=True)),
            stop_token_ids=template.stop_token_ids,
            pad_token_id=int(tokenizer.pad_token_id),
            max_batch_rows=MAX_ROWS,
            active=lambda label=label: base.acting(label),  # type: ignore[misc]
        )
        rollouts = decoder.generate(ids, sampling)
        experience = assemble(
            rollouts,
            range(len(rollouts)),
            min_new_tokens=sampling.min_new_tokens,
            device=base.device,
        )
        theirs = measuring.log_probs(base, experience, reference)
        own = measuring.log_probs(base, experience, label)
        kl = torch.where(experience.answer_mask, own - theirs, 0.0).sum(dim=1)
        found.append(ModelAnswers(label, rollouts, kl.tolist()))
    return found
