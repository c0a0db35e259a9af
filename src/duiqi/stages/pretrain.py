"""Pretraining on plain text: continued, or from random weights."""

from __future__ import annotations

from functools import partial

from duiqi.journal.run import Run
from duiqi.models.saving import save_role
from duiqi.packing.budget import packed_batches
from duiqi.settings.stages import PretrainConfig
from duiqi.stages.materials import (
    begin,
    make_cadence,
    make_learner,
    make_tokenizer,
    plan_steps,
)
from duiqi.stages.preparation import families_of, prepare_text
from duiqi.stages.start import find_start, make_base, make_card, seat_policy
from duiqi.training.disk import check_disk
from duiqi.training.fit import fit
from duiqi.training.likelihood import perplexity, token_loss
from duiqi.training.session import BestBy, Session
from duiqi.types import StageResult


def run(config: PretrainConfig, journal: Run) -> StageResult:
    """Minimise the cross-entropy of every token of documents packed into blocks of `cutoff_len`."""
    start = find_start(config.model)
    tokenizer = make_tokenizer(config.model, start, journal.warn)
    prepared = prepare_text(config.data, config.cache, journal, seed=config.optimizer.seed, tokenizer=tokenizer)
    blocks, held_out = prepared.train.items, prepared.held_out
    base = make_base(
        config.model, config.tuning, start, num_tokens=len(tokenizer), from_scratch=config.scratch.train_from_scratch
    )
    seat_policy(base, start, config.tuning, opening=blocks[0].input_ids)
    base.prepare_training(gradient_checkpointing=config.optimizer.gradient_checkpointing)
    begin(journal, "Pretraining", base, start, None, notes=prepared.notes)

    batches = partial(packed_batches, packed=base.layout.is_packed)
    plan, total_steps = plan_steps(len(blocks), config.optimizer, config.batch)
    learner = make_learner(base, config.optimizer, total_steps, journal)
    check_disk(
        journal, base, tokenizer=tokenizer, settings=config.run, total_steps=total_steps, evaluates=bool(held_out)
    )
    card = make_card("pretrain", base, start, None)
    session = Session(
        journal,
        learner,
        cadence=make_cadence(config.run, total_steps),
        save_model=lambda directory: save_role(base, "policy", directory, card=card, tokenizer=tokenizer),
        evaluate=lambda _: learner.budget.within(
            lambda tokens: perplexity(base, batches(families_of(held_out), max_tokens=tokens))
        ),
        best_by=BestBy("eval_loss"),
        rows_per_epoch=len(blocks),
    )
    fit(
        session,
        learner,
        plan,
        micro_batches=lambda rows, tokens: batches([blocks[row].family for row in rows], max_tokens=tokens),
        loss_fn=lambda batch: token_loss(base, batch),
    )
    return session.finish("pretrain")
