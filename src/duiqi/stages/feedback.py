"""Learning from answers that were liked or not, for the dpo stage: rows, batches with their baseline, the loss."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from duiqi.algorithms.feedback import LikedLogProbs, kto_baseline, kto_loss
from duiqi.algorithms.loss import Loss
from duiqi.data.encoded import EncodedData
from duiqi.data.encoding import EncodedRanking, TokenBudget, describe_first
from duiqi.data.feedback import FeedbackBatch, encode_feedback, feedback_batches, mismatched
from duiqi.data.templates import Template
from duiqi.errors import SettingsError
from duiqi.models.shared_base import SharedBase
from duiqi.packing.batch import PackedBatch
from duiqi.packing.budget import packed_batches
from duiqi.settings.groups import BatchSettings, PreferenceSettings
from duiqi.stages.answer_log_probs import answer_log_probs, reference_log_probs
from duiqi.stages.materials import Examples, Rankings, encoding_notes
from duiqi.training.reference import ReferenceMemory
from duiqi.types import Example


def prepare_feedback(
    rows: Examples,
    template: Template,
    tokenizer: PreTrainedTokenizerBase,
    budget: TokenBudget,
    *,
    settings: PreferenceSettings,
) -> Rankings:
    """Encode rows of one answer each, liked or not."""
    train = encode_feedback(template, tokenizer, examples=rows.train, budget=budget)
    held_out = encode_feedback(template, tokenizer, examples=rows.held_out, budget=budget) if rows.held_out else None
    first = describe_first(train.items[0].sequence(0), tokenizer)
    opinion = "liked" if train.examples[0].liked else "not liked"
    notes = [
        *rows.notes,
        *encoding_notes(train.report),
        balance(train.examples, settings),
        f"first row, its answer ({opinion}) in ⟦⟧: {first}",
    ]
    return Rankings(train, held_out, notes)


def balance(examples: Sequence[Example], settings: PreferenceSettings) -> str:
    """How many answers were liked, and what liked and disliked ones weigh together against each other."""
    liked = sum(bool(example.liked) for example in examples)
    disliked = len(examples) - liked
    weights = f"{settings.kto_chosen_weight * liked:g} to {settings.kto_rejected_weight * disliked:g}"
    return f"{liked} answers liked, {disliked} not; they weigh {weights} (kto_chosen_weight, kto_rejected_weight)"


def refuse_single_rows(batch: BatchSettings) -> None:
    """Refuse steps of one row, in which there is no other answer to tell the baseline from.

    Raises:
        SettingsError: A step has one row.
    """
    if batch.per_device_train_batch_size * batch.gradient_accumulation_steps < 2:
        raise SettingsError(
            "a step of one row has no answer to another prompt, from which kto tells its baseline",
            where="per_device_train_batch_size",
            remedy="set it to 2 or more",
        )


def batches_with_baseline(
    base: SharedBase, data: EncodedData[EncodedRanking], rows: Sequence[int], *, max_tokens: int, longest: int
) -> Iterator[FeedbackBatch]:
    """The rows of a step in micro-batches that all carry the baseline of the whole step.

    It is measured before the first of them is learned from, so the result does not depend on how they are divided.
    """
    others = mismatched([data.items[row] for row in rows], max_tokens=longest)
    packed = base.layout.is_packed
    baseline = torch.zeros((), device=base.device)
    if others:
        parts = packed_batches([item.family for item in others], max_tokens=max_tokens, packed=packed)
        baseline = kto_baseline(*map(torch.cat, zip(*(both_log_probs(base, part) for part in parts), strict=True)))
    yield from feedback_batches(data, rows, baseline=baseline, max_tokens=max_tokens, packed=packed)


def both_log_probs(base: SharedBase, sequences: PackedBatch) -> tuple[Float[Tensor, " B"], Float[Tensor, " B"]]:
    """What policy and reference say of every answer, without a gradient."""
    sequences = sequences.to(base.device)
    with torch.no_grad():
        policy = answer_log_probs(base, sequences)
    with base.acting("reference"):
        return policy, answer_log_probs(base, sequences)


def feedback_loss(
    base: SharedBase, batch: FeedbackBatch, *, settings: PreferenceSettings, memory: ReferenceMemory
) -> Loss:
    """Summed KTO loss of a batch."""
    batch = batch.to(base.device)
    answers = LikedLogProbs(
        policy=answer_log_probs(base, batch.sequences),
        reference=reference_log_probs(base, batch, memory),
        liked=batch.liked,
    )
    return kto_loss(
        answers,
        beta=settings.pref_beta,
        baseline=batch.baseline,
        liked_weight=settings.kto_chosen_weight,
        disliked_weight=settings.kto_rejected_weight,
    )
