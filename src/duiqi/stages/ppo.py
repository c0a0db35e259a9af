"""Proximal policy optimisation: answer, score, measure, find advantages, learn; one base, four roles."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, nullcontext
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from duiqi.algorithms.loss import Loss
from duiqi.algorithms.policy import ppo_loss, value_loss
from duiqi.data.order import BatchPlan
from duiqi.errors import GuardStop
from duiqi.guards.answers import answer_statistics, outlier_gap
from duiqi.guards.finite import first_non_finite
from duiqi.guards.watch import HELD_OUT_ALARMS, PPO_ALARMS, with_kl_budget
from duiqi.journal.run import Run
from duiqi.models.saving import save_role
from duiqi.rollouts.experience import Experience
from duiqi.rollouts.vllm_engine import PROBE_TOLERANCE
from duiqi.settings.groups import PPOSettings
from duiqi.settings.stages import PPOConfig
from duiqi.stages.materials import count_steps, make_cadence, make_learner
from duiqi.stages.ppo_cast import Cast, assemble_cast
from duiqi.stages.ppo_credit import Credit
from duiqi.stages.ppo_evaluation import HeldOut, best_by, kl_budget
from duiqi.stages.ppo_rollouts import weighted_by_importance
from duiqi.stages.watching import Watching
from duiqi.training.disk import check_disk
from duiqi.training.learner import Learner, NonFiniteStep
from duiqi.training.session import Session, kept
from duiqi.training.stopwatch import Stopwatch
from duiqi.types import StageResult

VALUE_HEAD_NAME = "value_head.safetensors"
LOG_PROB_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.1, torch.float16: 0.02}
"""How far apart, on average over the tokens, the own sampler and the trainer may be in the precision of the base."""
REFERENCE_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.1, torch.float16: 0.02}
"""How far apart policy and reference may be at any token before the first update. They are computed alike and mostly
equal to the last bit; but not every processor's library rounds the same product the same way twice."""
OPENING_KL = {torch.float32: 1e-5, torch.bfloat16: 1e-3, torch.float16: 1e-4}
"""Approximate KL per token that rounding may leave before the first update of a step; in practice below 1e-9 in
float32 and about 1e-5 in bfloat16, where it depends on what else is computed in a batch."""


def run(config: PPOConfig, journal: Run) -> StageResult:
    """Train the policy on scored answers of its own (Schulman et al. 2017; Ouyang et al. 2022, section 3.5)."""
    with ExitStack() as resources:
        settings, seed = config.ppo, config.optimizer.seed
        cast = assemble_cast(config, journal, resources)
        prompts_per_step = settings.rollout_batch_size // settings.answers_per_prompt
        plan = BatchPlan(len(cast.prompts), batch_size=prompts_per_step, seed=seed)
        total_steps = count_steps(len(cast.prompts), prompts_per_step, config.optimizer)
        learner = make_learner(cast.base, config.optimizer, total_steps, journal, budget=cast.measuring.budget)
        check_disk(
            journal,
            cast.base,
            tokenizer=cast.tokenizer,
            settings=config.run,
            total_steps=total_steps,
            evaluates=bool(cast.held_out),
        )
        credit = Credit.start(config)
        watching = Watching(
            config.watch,
            journal,
            learner,
            each_step=with_kl_budget(PPO_ALARMS, kl_budget(config)),
            held_out=with_kl_budget(HELD_OUT_ALARMS, kl_budget(config)),
            raise_price=credit.raise_price if settings.init_kl_coef else None,
        )
        held_out = HeldOut(cast, journal, watching)
        session = Session(
            journal,
            learner,
            cadence=make_cadence(config.run, total_steps),
            save_model=lambda directory: save(cast, directory),
            evaluate=held_out.evaluate,
            best_by=best_by(config),
            rows_per_epoch=len(cast.prompts),
            state=kept(credit=credit, watch=watching, held_out=held_out),
        )
        for step in session.steps():
            clock = Stopwatch()
            rows = plan.rows(step - 1)
            answered = cast.answer(rows, step=step)
            clock.lap("generate")
            scored = cast.score(answered)
            clock.lap("score")
            sampled = experience = cast.measure(answered)
            refuse_non_finite(sampled, scored.total)
            if step == 1 or not cast.samples_exactly:
                experience = cast.with_trainer_log_probs(sampled)
            if step == 1:
                check_opening(cast, sampled, experience, journal)
            experience, credited = credit.assign(experience, scored.total)
            experience, mismatch = weighted_by_importance(experience, sampled, cap=cast.importance_cap)
            update = partial(learn, cast, learner, experience, config, step=step)
            learned = session.attempt(step, update, samples=len(rows))
            if learned is None:
                continue
            clock.lap("train")
            metrics = {
                **credited,
                **{f"score/{name}": float(part.mean()) for name, part in scored.parts.items()},
                **answer_statistics(answered.rollouts, answered.questions),
                "score_outlier": outlier_gap(scored.total.tolist()),
                **learned,
                **mismatch,
                **clock.report(experience.num_tokens),
            }
            watching.stepped(step, metrics, answered.as_evidence(scored.total))
            session.record(step, most_telling_first(metrics), samples=len(rows))
            watching.stop_if_due(session)
        return session.finish("ppo")


MOST_TELLING = ("score", "kl", "answer_length", "eos_rate", "entropy")


def most_telling_first(metrics: Mapping[str, float]) -> dict[str, float]:
    """The same metrics, those first by which a run is judged while it goes on: a terminal shows the first few."""
    return {name: metrics[name] for name in MOST_TELLING} | dict(metrics)


def check_opening(cast: Cast, sampled: Experience, computed: Experience, journal: Run) -> None:
    """Before the first update: KL is 0 up to rounding, for the reference is the policy, and trainer and sampler agree.

    Raises:
        GuardStop: KL is more than rounding, or trainer and sampler disagree: what follows would be wrong.
    """
    mask = sampled.answer_mask
    gaps = (computed.old_log_probs - sampled.old_log_probs)[mask].abs()
    kl = float((computed.old_log_probs - computed.reference_log_probs)[mask].abs().max())
    gap = float(gaps.mean())
    journal.event(
        "opening_check", kl=kl, mean_gap=gap, ratio_gap=float(gaps.max().exp() - 1), reference=cast.reference_name
    )
    if cast.reference_is_policy and not kl <= REFERENCE_TOLERANCE[cast.base.precision]:  # nan is no agreement
        raise GuardStop(
            f"the reference is not the policy at step 0: their log-probabilities differ by up to {kl:.2e}",
            remedy="this is a fault of duiqi, not of your settings: please report it with config.yaml",
        )
    tolerance = LOG_PROB_TOLERANCE
    remedy = "set dtype: float32 and attn_implementation: eager; if it stays, please report it with config.yaml"
    if cast.importance_cap is not None:
        tolerance, remedy = PROBE_TOLERANCE, "see docs/vllm.md; rollout_engine: own samples without vLLM"
    if not gap <= tolerance[cast.base.precision]:
        raise GuardStop(
            f"sampler and trainer disagree: their log-probabilities differ by {gap:.2e} on average", remedy=remedy
        )


def check_sampler(opening_kl: float, step: int, dtype: torch.dtype) -> None:
    """Before the first update of a step the ratio is 1: what was sampled is what is learned from.

    Raises:
        GuardStop: It is not, so the sampler followed another policy than the trainer's.
    """
    if opening_kl > OPENING_KL[dtype]:
        raise GuardStop(
            f"sampler and trainer disagree at step {step}: approximate KL {opening_kl:.1e} per token before any update",
            remedy="this is a fault of duiqi, not of your settings: please report it with config.yaml",
        )


def refuse_non_finite(experience: Experience, scores: Tensor) -> None:
    """Stop before a number that is nan or inf reaches the loss, where it could no longer be named.

    Raises:
        NonFiniteStep: Names the first bad quantity.
    """
    measured = [
        ("scores", scores),
        ("log-probabilities of the sampler", experience.old_log_probs),
        ("log-probabilities of the reference", experience.reference_log_probs),
        ("values", experience.values),
    ]
    if finding := first_non_finite(measured):
        raise NonFiniteStep(finding, experience)


def learn(cast: Cast, learner: Learner, experience: Experience, config: PPOConfig, *, step: int) -> dict[str, float]:
    """Several epochs of mini-batches over the rollouts of one step; stops early when the policy moved too far."""
    settings = config.ppo
    loss_fn = critic_loss if step <= settings.critic_warmup_steps else policy_and_critic_loss
    mode = cast.base.training_mode() if config.optimizer.gradient_checkpointing else nullcontext()
    reports: list[Mapping[str, float]] = []
    with mode:
        for epoch in range(settings.ppo_epochs):
            for rows in shuffled(experience.groups, config.optimizer.seed, step, epoch).split(settings.mini_batch_size):
                batch = experience.select(rows.tolist())
                report = learner.step(
                    partial(micro_batches, cast, batch),
                    partial(loss_fn, cast, settings),
                    number=step,
                    skip_above=settings.ratio_threshold,
                )
                reports.append(report.as_metrics())
                if len(reports) == 1:
                    check_sampler(reports[0].get("approx_kl", 0.0), step, cast.base.precision)
            if settings.target_kl and reports[-1].get("approx_kl", 0.0) > 1.5 * settings.target_kl:
                break
    means = {name: sum(report[name] for report in reports) / len(reports) for name in reports[0]}
    return {**means, "updates": float(len(reports))}


def policy_and_critic_loss(cast: Cast, settings: PPOSettings, batch: Experience) -> Loss:
    """The whole loss of PPO on a micro-batch; a critic adapter is read in the same pass as the policy."""
    roles = ("policy", "value") if cast.critic_is_apart else ("policy",)
    states = cast.base.read_each(dict.fromkeys(roles, batch.packed))
    measured = cast.measuring.answers(
        cast.base,
        batch,
        with_entropy=settings.entropy_coef > 0,
        with_values=cast.critic == "shared",
        states=states["policy"],
    )
    values = measured.values
    if cast.critic_is_apart:
        values = batch.matrix(cast.base.heads["value"](states["value"]))
    return ppo_loss(
        log_probs=measured.log_probs,
        old_log_probs=batch.old_log_probs,
        advantages=batch.advantages,
        mask=batch.answer_mask,
        values=values,
        old_values=batch.values,
        returns=batch.returns,
        entropy=measured.entropy,
        clip_low=settings.clip_range,
        clip_high=settings.clip_range_high,
        dual_clip=settings.dual_clip,
        value_clip=settings.clip_range_value,
        vf_coef=settings.vf_coef,
        entropy_coef=settings.entropy_coef,
        aggregation=settings.loss_aggregation,
    )


def critic_loss(cast: Cast, settings: PPOSettings, batch: Experience) -> Loss:
    """The critic's loss alone, for its warm-up. On a shared trunk only the head learns, so that the policy stays."""
    values = critic_values(cast, batch, through_trunk=cast.critic_is_apart)
    return value_loss(values, batch.values, batch.returns, batch.answer_mask, value_clip=settings.clip_range_value)


def critic_values(cast: Cast, batch: Experience, *, through_trunk: bool) -> Tensor:
    """The value before each answer token; the trunk learns from them too if `through_trunk`."""
    with cast.base.role("value"):
        with torch.set_grad_enabled(through_trunk):
            states = cast.base.read(batch.packed)
        values = cast.base.values(states)
    assert values is not None
    return batch.matrix(values)


def micro_batches(cast: Cast, batch: Experience, max_tokens: int) -> Iterator[Experience]:
    """A mini-batch in parts of at most so many tokens."""
    for rows in batch.divided(max_tokens, packed=cast.base.layout.is_packed):
        yield batch.select(rows)


def shuffled(groups: Tensor, seed: int, step: int, epoch: int) -> Tensor:
    """An order of rows in which the answers to one prompt stay side by side, so that they can share it.

    It depends on nothing but these numbers, so that a resumed run sees the same.
    """
    generator = torch.Generator().manual_seed(hash((seed, step, epoch)) % 2**63)
    place = torch.randperm(int(groups.max()) + 1, generator=generator)
    return place[groups.cpu()].argsort(stable=True)


def save(cast: Cast, directory: Path) -> None:
    """The policy so that it loads at once, and the value head beside it."""
    save_role(cast.base, "policy", directory, card=cast.card, tokenizer=cast.tokenizer)
    if "value" in cast.base.heads:
        weight = cast.base.heads["value"].weight.detach().cpu().contiguous()
        save_file({"value_head.weight": weight}, directory / VALUE_HEAD_NAME)
