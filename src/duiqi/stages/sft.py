"""Supervised fine-tuning: learn the answers of demonstrations, given their prompts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from duiqi.data.batching import Batch, collate, split_micro_batches
from duiqi.data.encoded import encode_demonstrations
from duiqi.data.encoding import EncodedSequence, TrainOn, describe_first
from duiqi.journal.run import Run
from duiqi.models.saving import save_role
from duiqi.settings.stages import SFTConfig
from duiqi.stages.materials import (
    begin,
    encoding_notes,
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
    seat_policy,
)
from duiqi.training.fit import fit
from duiqi.training.likelihood import perplexity, token_loss
from duiqi.training.session import BestBy, Session
from duiqi.types import StageResult


def run(config: SFTConfig, journal: Run) -> StageResult:
    """Minimise the cross-entropy of the answers' tokens, end token included (Ouyang et al. 2022, section 3.5)."""
    start = find_start(config.model)
    rows = load_rows(config.data, "demonstration", journal, seed=config.optimizer.seed)
    tokenizer = make_tokenizer(config.model, start)
    template = make_template(config.prompt, tokenizer, start.card)
    budget = make_budget(config.data, config.prompt, max_answer_tokens=config.answer.max_target_length)
    train_on: TrainOn = "last" if config.history.mask_history else "all"
    data = encode_demonstrations(template, tokenizer, examples=rows.train, budget=budget, train_on=train_on)
    held_out = encode_demonstrations(template, tokenizer, examples=rows.held_out, budget=budget, train_on=train_on)
    base = make_base(config.model, config.tuning, start)
    seat_policy(base, start, config.tuning)
    base.prepare_training(gradient_checkpointing=config.optimizer.gradient_checkpointing)
    first = describe_first(data.items[0], tokenizer)
    notes = [*rows.notes, *encoding_notes(data.report), f"first row, learned part in ⟦⟧: {first}"]
    begin(journal, "SFT", base, start, template, notes=notes)

    pad = int(tokenizer.pad_token_id)
    plan, total_steps = plan_steps(len(data.items), config.optimizer, config.accumulation)
    learner = make_learner(base.trainable_parameters(), config.optimizer, total_steps)
    card = make_card("sft", base, start, template)
    session = Session(
        journal,
        learner,
        cadence=make_cadence(config.run, total_steps),
        save_model=lambda directory: save_role(base, "policy", directory, card=card, tokenizer=tokenizer),
        evaluate=lambda _: perplexity(
            base, batches(held_out.items, pad=pad, max_rows=config.run.per_device_eval_batch_size)
        ),
        best_by=BestBy("eval_loss"),
        rows_per_epoch=len(data.items),
    )
    fit(
        session,
        learner,
        plan,
        micro_batches=lambda picked: batches(
            [data.items[row] for row in picked], pad=pad, max_rows=config.optimizer.per_device_train_batch_size
        ),
        loss_fn=lambda batch: token_loss(base, batch),
    )
    return session.finish("sft")


def batches(sequences: Sequence[EncodedSequence], *, pad: int, max_rows: int) -> Iterator[Batch]:
    """Micro-batches of similar length."""
    lengths = [len(sequence.input_ids) for sequence in sequences]
    for picked in split_micro_batches(range(len(sequences)), lengths, max_rows=max_rows):
        yield collate([sequences[i] for i in picked], pad_token_id=pad)
