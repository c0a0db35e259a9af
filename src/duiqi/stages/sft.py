"""Supervised fine-tuning: learn the answers of demonstrations, given their prompts."""

from __future__ import annotations

from functools import partial

from duiqi.journal.run import Run
from duiqi.models.saving import save_role
from duiqi.packing.budget import packed_batches
from duiqi.settings.stages import SFTConfig
from duiqi.stages.learning_rows import make_demonstrations
from duiqi.stages.materials import (
    begin,
    make_cadence,
    make_learner,
    make_template,
    make_tokenizer,
)
from duiqi.stages.start import find_start, make_base, make_card, seat_policy
from duiqi.training.disk import check_disk
from duiqi.training.fit import fit
from duiqi.training.likelihood import perplexity, token_loss
from duiqi.training.session import BestBy, Session, kept
from duiqi.types import StageResult


def run(config: SFTConfig, journal: Run) -> StageResult:
    """Minimise the cross-entropy of the answers' tokens, end token included (Ouyang et al. 2022, section 3.5)."""
    start = find_start(config.model)
    tokenizer = make_tokenizer(config.model, start, journal.warn)
    template = make_template(config.prompt, tokenizer, start.card)
    rows = make_demonstrations(config, journal, template, tokenizer)
    base = make_base(config.model, config.tuning, start, num_tokens=len(tokenizer))
    seat_policy(base, start, config.tuning, opening=rows.opening)
    base.prepare_training(gradient_checkpointing=config.optimizer.gradient_checkpointing)
    batches = partial(packed_batches, packed=base.layout.is_packed)
    begin(journal, "SFT", base, start, template, notes=rows.notes)

    learner = make_learner(base, config.optimizer, rows.total_steps, journal)
    check_disk(
        journal,
        base,
        tokenizer=tokenizer,
        settings=config.run,
        total_steps=rows.total_steps,
        evaluates=bool(rows.held_out),
    )
    card = make_card("sft", base, start, template)
    session = Session(
        journal,
        learner,
        cadence=make_cadence(config.run, rows.total_steps),
        save_model=lambda directory: save_role(base, "policy", directory, card=card, tokenizer=tokenizer),
        evaluate=lambda _: learner.budget.within(
            lambda tokens: perplexity(base, batches(rows.held_out_families(), max_tokens=tokens))
        ),
        best_by=BestBy("eval_loss"),
        rows_per_epoch=rows.num_rows,
        state=kept(**rows.kept),
    )
    fit(
        session,
        learner,
        rows.order,
        micro_batches=lambda families, tokens: batches(families, max_tokens=tokens),
        loss_fn=lambda batch: token_loss(base, batch),
    )
    return session.finish("sft")
