"""A reward model from ranked answers: one number for a prompt and an answer, read at its last token."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial

import torch

from duiqi.algorithms.loss import Loss
from duiqi.algorithms.reward_modelling import pairwise_loss
from duiqi.data.encoded import EncodedData
from duiqi.data.encoding import EncodedRanking
from duiqi.data.negatives import make_negatives, without_wordless_winners
from duiqi.data.rankings import RankingBatch, make_balance, ranking_batches
from duiqi.errors import SettingsError
from duiqi.journal.run import Run
from duiqi.models.measure import measure_scores
from duiqi.models.own_weights import OwnParameter
from duiqi.models.saving import save_role
from duiqi.models.shared_base import SharedBase
from duiqi.settings.groups import TuningSettings
from duiqi.settings.stages import RewardModelConfig
from duiqi.stages.materials import (
    Examples,
    begin,
    make_budget,
    make_cadence,
    make_learner,
    make_template,
    make_tokenizer,
    plan_steps,
)
from duiqi.stages.preparation import prepare_rankings
from duiqi.stages.start import find_start, make_base, make_card, seat_policy
from duiqi.training.disk import check_disk
from duiqi.training.fit import fit, mean_over
from duiqi.training.session import BestBy, Session
from duiqi.types import StageResult

HEAD_STD = 0.01
"""Spread of the fresh head's weights: small, so that scores begin near 0 and the first loss near ln 2."""


def run(config: RewardModelConfig, journal: Run) -> StageResult:
    """Maximise the likelihood that the better answer wins (Bradley-Terry; Ouyang et al. 2022, equation 1)."""
    start = find_start(config.model, role="reward")
    tokenizer = make_tokenizer(config.model, start, journal.warn)
    template = make_template(config.prompt, tokenizer, start.card)
    budget = make_budget(config.data, config.prompt, max_answer_tokens=config.answer.max_target_length)
    rankings = prepare_rankings(
        config.data,
        config.cache,
        journal,
        seed=config.optimizer.seed,
        template=template,
        tokenizer=tokenizer,
        budget=budget,
        change=lambda rows: with_negatives(rows, config),
        change_depends_on=config.reward.probe_negatives,
    )
    data, held_out = rankings.train, rankings.held_out
    base = make_base(config.model, config.tuning, start, num_tokens=len(tokenizer))
    seat_policy(base, start, config.tuning, opening=data.items[0].sequence(0).input_ids, role="reward")
    refuse_idle_head(base, config.tuning)
    score = start.stack[-1].reward_head if start.stack else None
    base.add_head("reward", score if score is not None else fresh_head(base))
    base.prepare_training(gradient_checkpointing=config.optimizer.gradient_checkpointing)
    weighting = config.reward.pair_weighting
    balance = make_balance(data, weighting=weighting) if config.reward.length_bias == "balanced" else None
    notes = [*rankings.notes, *([balance.line()] if balance is not None else [])]
    begin(journal, "Reward model", base, start, template, notes=notes)

    batches = partial(ranking_batches, weighting=weighting, packed=base.layout.is_packed)
    plan, total_steps = plan_steps(len(data.items), config.optimizer, config.batch)
    learner = make_learner(base, config.optimizer, total_steps, journal)
    check_disk(
        journal,
        base,
        role="reward",
        tokenizer=tokenizer,
        settings=config.run,
        total_steps=total_steps,
        evaluates=bool(held_out),
    )
    card = make_card("rm", base, start, template, role="reward")
    session = Session(
        journal,
        learner,
        cadence=make_cadence(config.run, total_steps),
        save_model=lambda directory: save_role(base, "reward", directory, card=card, tokenizer=tokenizer),
        evaluate=lambda _: learner.budget.within(lambda tokens: evaluate(base, held_out, batches, max_tokens=tokens)),
        best_by=BestBy("eval_accuracy", greater_is_better=True),
        rows_per_epoch=len(data.items),
    )
    fit(
        session,
        learner,
        plan,
        micro_batches=lambda picked, tokens: batches(data, picked, max_tokens=tokens, balance=balance),
        loss_fn=lambda batch: ranking_loss(base, batch, centering=config.reward.center_rewards_coefficient),
    )
    return session.finish("rm")


def with_negatives(rows: Examples, config: RewardModelConfig) -> Examples:
    """The rows without those that teach the opposite, and behind them the degenerate answers of `probe_negatives`."""
    if not config.reward.probe_negatives:
        return rows
    train, wordless = without_wordless_winners(rows.train)
    added = make_negatives(train, config.reward.probe_negatives, seed=config.optimizer.seed)
    notes = [f"probe_negatives: {len(added)} rows added to {len(train)}, a degenerate answer as the worse one"]
    if wordless:
        notes.append(f"probe_negatives: {wordless} answers without a word, preferred to written ones, are set aside")
    return replace(rows, train=[*train, *added], notes=(*rows.notes, *notes))


def refuse_idle_head(base: SharedBase, tuning: TuningSettings) -> None:
    """Refuse to train an output head that no score depends on.

    Raises:
        SettingsError: `modules_to_save` names it, and it is not tied to the embeddings.
    """
    with base.role("reward"):
        head, embeddings = base.model.get_output_embeddings(), base.model.get_input_embeddings()
        is_idle = isinstance(head.weight, OwnParameter) and head.weight is not embeddings.weight
    if tuning.modules_to_save and is_idle:
        raise SettingsError(
            "the output head has no part in a score, so it would learn nothing",
            where="modules_to_save",
            remedy="leave it out; the embeddings may stay",
        )


def fresh_head(base: SharedBase) -> torch.Tensor:
    """Weights (1 x H) of a new score head."""
    return torch.randn(1, base.hidden_size, device=base.device) * HEAD_STD


def ranking_loss(base: SharedBase, batch: RankingBatch, *, centering: float) -> Loss:
    """Summed pairwise loss of a batch."""
    batch = batch.to(base.device)
    scores = measure_scores(base, batch.sequences, "reward")
    return pairwise_loss(
        scores[batch.better],
        scores[batch.worse],
        margin=batch.margins,
        weights=batch.weights,
        centering=centering,
    )


def evaluate(
    base: SharedBase,
    data: EncodedData[EncodedRanking] | None,
    batches: Callable[..., Iterable[RankingBatch]],
    *,
    max_tokens: int,
) -> dict[str, float]:
    """Held-out loss and accuracy over all pairs (ties count half), and accuracy by dataset where there are several."""
    if not data:
        return {}
    wins: dict[str, list[float]] = defaultdict(list)

    def loss_and_wins(batch: RankingBatch) -> Loss:
        batch = batch.to(base.device)
        scores = measure_scores(base, batch.sequences, "reward")
        better, worse = scores[batch.better], scores[batch.worse]
        won = (better > worse).float() + 0.5 * (better == worse).float()
        for source, value in zip(batch.sources, won.tolist(), strict=True):
            wins[source].append(value)
        return pairwise_loss(better, worse, margin=batch.margins, weights=batch.weights)

    with base.acting("reward"):
        means = mean_over(batches(data, range(len(data.items)), max_tokens=max_tokens), loss_and_wins)
    everything = [value for values in wins.values() for value in values]
    by_source = {f"eval_accuracy/{name}": sum(values) / len(values) for name, values in wins.items()}
    return {
        "eval_loss": means.pop("loss"),
        "eval_accuracy": sum(everything) / len(everything),
        **{f"eval_{name}": value for name, value in means.items() if name != "accuracy"},
        **(by_source if len(wins) > 1 else {}),
    }
