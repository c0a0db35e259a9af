"""Direct preference optimisation and its kin: learn a ranking without a reward model in between."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch

from duiqi.algorithms.loss import Loss
from duiqi.algorithms.preference import (
    PairLogProbs,
    add_cross_entropy,
    cpo_loss,
    dpo_loss,
    hinge_loss,
    ipo_loss,
    kto_pair_loss,
    orpo_loss,
    simpo_loss,
)
from duiqi.data.encoded import EncodedData
from duiqi.data.encoding import EncodedRanking
from duiqi.data.rankings import RankingBatch, collate_rankings, split_rankings
from duiqi.errors import GuardStop
from duiqi.journal.run import Run
from duiqi.models.measure import measure_answers
from duiqi.models.saving import save_role
from duiqi.models.shared_base import SharedBase
from duiqi.settings.groups import PreferenceSettings
from duiqi.settings.stages import DPOConfig
from duiqi.stages.materials import (
    begin,
    find_start,
    load_rows,
    make_base,
    make_budget,
    make_cadence,
    make_card,
    make_learner,
    make_template,
    make_tokenizer,
    plan_steps,
    prepare_rankings,
    seat_policy,
    seat_reference,
)
from duiqi.training.fit import fit, mean_over
from duiqi.training.session import BestBy, Session
from duiqi.types import StageResult


def run(config: DPOConfig, journal: Run) -> StageResult:
    """Raise the better answer against the worse one, relative to the reference (Rafailov et al. 2023, equation 7)."""
    start = find_start(config.model)
    rows = load_rows(config.data, "ranking", journal, seed=config.optimizer.seed)
    tokenizer = make_tokenizer(config.model, start)
    template = make_template(config.prompt, tokenizer, start.card)
    budget = make_budget(config.data, config.prompt, max_answer_tokens=config.answer.max_target_length)
    rankings = prepare_rankings(rows, template, tokenizer, budget)
    data, held_out = rankings.train, rankings.held_out
    base = make_base(config.model, config.tuning, start)
    seat_policy(base, start, config.tuning)
    needs_reference = config.preference.pref_loss in REFERENCED
    reference = seat_reference(base, config.reference.ref_model) if needs_reference else "none needed"
    base.disable_dropout()
    base.prepare_training(gradient_checkpointing=config.optimizer.gradient_checkpointing)
    begin(
        journal,
        f"DPO ({config.preference.pref_loss})",
        base,
        start,
        template,
        notes=rankings.notes,
        reference=reference,
    )

    pad = int(tokenizer.pad_token_id)
    plan, total_steps = plan_steps(len(data.items), config.optimizer, config.accumulation)
    learner = make_learner(base.trainable_parameters(), config.optimizer, total_steps)
    if needs_reference and config.reference.ref_model is None:
        opening = next(batches(data, plan.rows(0), pad=pad, max_rows=config.optimizer.per_device_train_batch_size))
        check_opening(base, opening, journal)
    loss_fn = partial(preference_loss, base, settings=config.preference, needs_reference=needs_reference)
    session = Session(
        journal,
        learner,
        cadence=make_cadence(config.run, total_steps),
        save_model=partial(
            save_role, base, "policy", card=make_card("dpo", base, start, template), tokenizer=tokenizer
        ),
        evaluate=lambda _: evaluate(base, held_out, loss_fn, pad=pad, max_rows=config.run.per_device_eval_batch_size),
        best_by=BestBy("eval_loss"),
        rows_per_epoch=len(data.items),
    )
    fit(
        session,
        learner,
        plan,
        micro_batches=lambda picked: batches(
            data, picked, pad=pad, max_rows=config.optimizer.per_device_train_batch_size
        ),
        loss_fn=loss_fn,
    )
    return session.finish("dpo")


OPENING_TOLERANCE = 1e-3
"""How far apart the summed log-probabilities of an answer may be at step 0, in nats."""

REFERENCED = frozenset({"sigmoid", "ipo", "hinge", "kto_pair"})
"""The losses that compare with a reference."""


def check_opening(base: SharedBase, batch: RankingBatch, journal: Run) -> None:
    """Before the first update policy and reference are the same, so the loss begins at ln 2.

    Raises:
        GuardStop: They are not: something in the network still acts differently in training (dropout).
    """
    batch = batch.to(base.device)
    with torch.no_grad():
        policy = answer_log_probs(base, batch)
    with base.acting("reference"):
        gap = float((policy - answer_log_probs(base, batch)).abs().max())
    journal.event("opening_check", gap=gap)
    if gap > OPENING_TOLERANCE:
        raise GuardStop(
            f"the reference is not the policy at step 0: their log-probabilities differ by up to {gap:.2e}",
            remedy="this architecture has a dropout that duiqi does not know: please report it with config.yaml",
        )


def answer_log_probs(base: SharedBase, batch: RankingBatch) -> torch.Tensor:
    """Summed log-probability of every answer in a batch, under the active role."""
    rows = batch.sequences
    return measure_answers(base, rows.input_ids, rows.attention_mask, rows.answer_mask).log_probs.sum(dim=1)


def preference_loss(
    base: SharedBase, batch: RankingBatch, *, settings: PreferenceSettings, needs_reference: bool
) -> Loss:
    """Summed preference loss over the pairs of a batch."""
    batch = batch.to(base.device)
    policy = answer_log_probs(base, batch)
    reference = torch.zeros_like(policy)
    if needs_reference:
        with base.acting("reference"):
            reference = answer_log_probs(base, batch)
    lengths = batch.sequences.answer_mask.sum(dim=1).float()
    pairs = PairLogProbs(
        chosen=policy[batch.better],
        rejected=policy[batch.worse],
        reference_chosen=reference[batch.better],
        reference_rejected=reference[batch.worse],
        chosen_tokens=lengths[batch.better],
        rejected_tokens=lengths[batch.worse],
    )
    loss = PREFERENCE_LOSSES[settings.pref_loss](pairs, settings)
    return add_cross_entropy(loss, pairs, settings.pref_ftx) if settings.pref_ftx else loss


def batches(
    data: EncodedData[EncodedRanking], rows: Sequence[int], *, pad: int, max_rows: int
) -> Iterator[RankingBatch]:
    """Micro-batches of rankings; every pair counts once."""
    for picked in split_rankings(data.items, rows, max_rows=max_rows):
        yield collate_rankings(
            [data.items[i] for i in picked],
            margins=[0.0] * len(picked),
            sources=[data.examples[i].origin.dataset for i in picked],
            weighting="pair",
            pad_token_id=pad,
        )


def evaluate(
    base: SharedBase,
    held_out: EncodedData[EncodedRanking] | None,
    loss_fn: Callable[[RankingBatch], Loss],
    *,
    pad: int,
    max_rows: int,
) -> dict[str, float]:
    """Held-out loss and statistics."""
    if held_out is None:
        return {}
    with base.acting("policy"):
        means = mean_over(batches(held_out, range(len(held_out.items)), pad=pad, max_rows=max_rows), loss_fn)
    return {f"eval_{name}": value for name, value in means.items()}


PREFERENCE_LOSSES: dict[str, Callable[[PairLogProbs, PreferenceSettings], Loss]] = {
    "sigmoid": lambda pairs, s: dpo_loss(pairs, beta=s.pref_beta, label_smoothing=s.dpo_label_smoothing),
    "ipo": lambda pairs, s: ipo_loss(pairs, beta=s.pref_beta),
    "hinge": lambda pairs, s: hinge_loss(pairs, beta=s.pref_beta),
    "kto_pair": lambda pairs, s: kto_pair_loss(pairs, beta=s.pref_beta),
    "orpo": lambda pairs, s: orpo_loss(pairs, beta=s.pref_beta),
    "simpo": lambda pairs, s: simpo_loss(pairs, beta=s.pref_beta, gamma=s.simpo_gamma),
    "cpo": lambda pairs, s: cpo_loss(pairs, beta=s.pref_beta),
}
