"""Direct preference optimisation and its kin: learn a ranking without a reward model in between."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase

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
from duiqi.data.encoding import TokenBudget
from duiqi.data.feedback import FeedbackBatch
from duiqi.data.loading import Need
from duiqi.data.rankings import RankingBatch, ranking_batches
from duiqi.data.templates import Template
from duiqi.guards.watch import HELD_OUT_PREFERENCE_ALARMS, PREFERENCE_ALARMS, read_limits
from duiqi.journal.run import Run
from duiqi.models.card import ModelCard
from duiqi.models.saving import save_role
from duiqi.models.shared_base import SharedBase
from duiqi.settings.groups import PreferenceSettings
from duiqi.settings.stages import DPOConfig
from duiqi.stages.answer_log_probs import answer_log_probs, check_opening, reference_log_probs
from duiqi.stages.feedback import batches_with_baseline, feedback_loss, prepare_feedback, refuse_single_rows
from duiqi.stages.materials import (
    Examples,
    Rankings,
    begin,
    load_rows,
    make_budget,
    make_cadence,
    make_learner,
    make_template,
    make_tokenizer,
    plan_steps,
    prepare_rankings,
)
from duiqi.stages.start import find_start, make_base, make_card, seat_policy, seat_reference
from duiqi.stages.watching import Watching
from duiqi.training.disk import check_disk
from duiqi.training.fit import fit, mean_over
from duiqi.training.reference import ReferenceMemory, memory_file
from duiqi.training.session import BestBy, Session, kept
from duiqi.types import StageResult

AnyBatch = RankingBatch | FeedbackBatch
Batches = Callable[..., Iterator[AnyBatch]]


def run(config: DPOConfig, journal: Run) -> StageResult:
    """Raise the better answer against the worse one, relative to the reference (Rafailov et al. 2023, equation 7)."""
    read_limits(config.watch.watch_limits, (*PREFERENCE_ALARMS, *HELD_OUT_PREFERENCE_ALARMS))
    start = find_start(config.model)
    rows = load_rows(config.data, data_need(config), journal, seed=config.optimizer.seed)
    tokenizer = make_tokenizer(config.model, start, journal.warn)
    template = make_template(config.prompt, tokenizer, start.card)
    budget = make_budget(config.data, config.prompt, max_answer_tokens=config.answer.max_target_length)
    prepared = prepare(config, rows, template, tokenizer, budget)
    data, held_out = prepared.train, prepared.held_out
    base = make_base(config.model, config.tuning, start, num_tokens=len(tokenizer))
    seat_policy(base, start, config.tuning, opening=data.items[0].sequence(0).input_ids)
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
        notes=prepared.notes,
        reference=reference,
    )

    batches = make_batches(base, config)
    plan, total_steps = plan_steps(len(data.items), config.optimizer, config.batch)
    learner = make_learner(base, config.optimizer, total_steps, journal)
    check_disk(
        journal, base, tokenizer=tokenizer, settings=config.run, total_steps=total_steps, evaluates=bool(held_out)
    )
    if needs_reference and config.reference.ref_model is None:
        check_opening(base, next(batches(data, plan.rows(0), max_tokens=learner.budget.tokens)), journal)
    memory = open_memory(base, config) if needs_reference else None
    loss_fn = make_loss(base, config.preference, memory)
    card = make_card("dpo", base, start, template)

    watching = Watching(
        config.watch,
        journal,
        learner,
        each_step=PREFERENCE_ALARMS if needs_reference else (),
        held_out=HELD_OUT_PREFERENCE_ALARMS,
    )

    def evaluate_held_out(tokens: int) -> dict[str, float]:
        if not held_out:
            return {}
        return evaluate(base, batches(held_out, range(len(held_out.items)), max_tokens=tokens), loss_fn)

    def evaluate_and_watch(step: int) -> dict[str, float]:
        metrics = learner.budget.within(evaluate_held_out)
        return {**metrics, **watching.evaluated(step, metrics)} if metrics else {}

    session = Session(
        journal,
        learner,
        cadence=make_cadence(config.run, total_steps),
        save_model=lambda directory: save(base, memory, directory, card, tokenizer, journal),
        evaluate=evaluate_and_watch,
        best_by=BestBy("eval_loss", ceilings={"eval_findings": 0.0}),
        rows_per_epoch=len(data.items),
        state=kept(watch=watching),
    )
    fit(
        session,
        learner,
        plan,
        micro_batches=lambda picked, tokens: batches(data, picked, max_tokens=tokens),
        loss_fn=loss_fn,
        watch=watching,
    )
    return session.finish("dpo")


REFERENCED = frozenset({"sigmoid", "ipo", "hinge", "kto_pair", "kto"})
"""The losses that compare with a reference."""


def data_need(config: DPOConfig) -> Need:
    """What the loss learns from: answers that were liked or not, or rankings."""
    return "feedback" if config.preference.pref_loss == "kto" else "ranking"


def prepare(
    config: DPOConfig, rows: Examples, template: Template, tokenizer: PreTrainedTokenizerBase, budget: TokenBudget
) -> Rankings:
    """The rows as tokens; those of the kto loss are rankings of one answer."""
    if config.preference.pref_loss != "kto":
        return prepare_rankings(rows, template, tokenizer, budget)
    refuse_single_rows(config.batch)
    return prepare_feedback(rows, template, tokenizer, budget, settings=config.preference)


def make_batches(base: SharedBase, config: DPOConfig) -> Batches:
    """What makes micro-batches of at most so many tokens out of the rows of a step."""
    if config.preference.pref_loss != "kto":
        return partial(ranking_batches, weighting="pair", packed=base.layout.is_packed)
    return partial(batches_with_baseline, base, longest=config.data.cutoff_len)


def make_loss(
    base: SharedBase, settings: PreferenceSettings, memory: ReferenceMemory | None
) -> Callable[[AnyBatch], Loss]:
    """The sum of the loss over a micro-batch."""

    def loss(batch: AnyBatch) -> Loss:
        if isinstance(batch, RankingBatch):
            return preference_loss(base, batch, settings=settings, memory=memory)
        assert memory is not None, "kto has a reference"
        return feedback_loss(base, batch, settings=settings, memory=memory)

    return loss


def preference_loss(
    base: SharedBase, batch: RankingBatch, *, settings: PreferenceSettings, memory: ReferenceMemory | None
) -> Loss:
    """Summed preference loss over the pairs of a batch; without a memory there is no reference."""
    batch = batch.to(base.device)
    policy = answer_log_probs(base, batch.sequences)
    reference = torch.zeros_like(policy) if memory is None else reference_log_probs(base, batch, memory)
    lengths = batch.sequences.counts().float()
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


def open_memory(base: SharedBase, config: DPOConfig) -> ReferenceMemory:
    """Where the reference's log-probabilities are kept: on disk, or in this process alone."""
    if not config.memory.reuse_reference:
        return ReferenceMemory(None)
    how = base.model.config.to_json_string()  # the same weights can be another network: other positions, a scaled head
    return ReferenceMemory(memory_file(base.role_fingerprint("reference"), str(base.dtype), how))


def save(
    base: SharedBase,
    memory: ReferenceMemory | None,
    directory: Path,
    card: ModelCard,
    tokenizer: PreTrainedTokenizerBase,
    journal: Run,
) -> None:
    """The policy so that it loads at once; what is known of the reference goes to its file."""
    save_role(base, "policy", directory, card=card, tokenizer=tokenizer)
    if memory is not None and (problem := memory.save()):
        journal.view.note(problem)


def evaluate(base: SharedBase, batches: Iterable[AnyBatch], loss_fn: Callable[[AnyBatch], Loss]) -> dict[str, float]:
    """Held-out loss and statistics."""
    with base.acting("policy"):
        means = mean_over(batches, loss_fn)
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
