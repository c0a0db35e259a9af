"""Who takes part in PPO: four roles on one base, the engine that answers, whatever scores, and the prompts."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from duiqi.algorithms.kl import ADAPTIVE_CLIP
from duiqi.data.encoding import encode_prompt
from duiqi.data.templates import Template, from_dict
from duiqi.errors import ModelError, SettingsError
from duiqi.guards.watch import HELD_OUT_ALARMS, PPO_ALARMS, Answer, read_limits
from duiqi.journal.run import Run
from duiqi.models.card import ModelCard
from duiqi.models.loading import load_tokenizer, locate
from duiqi.models.shared_base import SharedBase
from duiqi.packing.memory import MemoryBudget
from duiqi.rollouts.engine import Engine
from duiqi.rollouts.experience import Experience, Measuring, assemble
from duiqi.rollouts.scoring import (
    Candidate,
    FunctionScorer,
    ModelScorer,
    RewardSpec,
    Scored,
    ScoreMix,
    Scorer,
    SharedScorer,
    parse_reward_specs,
)
from duiqi.rollouts.standalone import open_reward_model
from duiqi.settings.stages import PPOConfig
from duiqi.stages.materials import (
    begin,
    load_rows,
    make_budget,
    make_memory_budget,
    make_template,
    make_tokenizer,
    refuse_mismatch,
)
from duiqi.stages.ppo_reward_adapters import goes_on_any_base, seat_reward, stands_on, unseen_notes
from duiqi.stages.ppo_reward_grade import examined_rewards
from duiqi.stages.ppo_rollouts import check_rollouts, make_engine, make_sampling
from duiqi.stages.start import find_start, make_base, make_card, seat_policy, seat_reference
from duiqi.types import Example, Rollout, Sampling, last_user_text

NOTHING_HELD_OUT = "no prompt is held out, so the result is the last policy and not the best; see val_size"


@dataclass(frozen=True)
class Answered:
    """The rollouts of one step, and the same as candidates for scoring."""

    rollouts: list[Rollout]
    candidates: list[Candidate]
    groups: list[int]

    @property
    def questions(self) -> list[str]:
        """What the user said last before each answer."""
        return [last_user_text(candidate.prompt) for candidate in self.candidates]

    def as_evidence(self, scores: Tensor) -> list[Answer]:
        """The answers with their scores (B numbers), as the watch shows them."""
        return [
            Answer(question, rollout.answer, score, len(rollout.answer_ids))
            for question, rollout, score in zip(self.questions, self.rollouts, scores.tolist(), strict=True)
        ]


@dataclass(frozen=True)
class Cast:
    """Everything that PPO's loop calls on."""

    base: SharedBase
    tokenizer: PreTrainedTokenizerBase
    template: Template
    card: ModelCard
    engine: Engine
    scorer: ScoreMix
    second_opinion: ScoreMix | None
    """Asked about held-out answers only."""
    measuring: Measuring
    sampling: Sampling
    prompts: list[Example]
    held_out: list[Example]
    max_prompt_tokens: int
    answers_per_prompt: int
    critic: str
    """shared, adapter, model or none."""
    reference_name: str
    reference_is_policy: bool
    """Whether the reference is the policy as it was at step 0."""
    num_samples: int
    importance_cap: float | None
    """Largest importance weight of a token where the sampler is not the trainer; None: it is."""

    @property
    def samples_exactly(self) -> bool:
        """Whether the sampler's log-probabilities are the trainer's to the last digits: the own decoder, in float32."""
        return self.importance_cap is None and self.base.precision == torch.float32

    @property
    def critic_is_apart(self) -> bool:
        """Whether the critic is read in passes of its own, and what it learns does not touch the policy."""
        return self.critic in ("adapter", "model")

    def answer(self, rows: Sequence[int], *, step: int, held_out: bool = False) -> Answered:
        """Sample answers to these prompts, `answers_per_prompt` to each (one to a held-out prompt)."""
        pool, copies = (self.held_out, 1) if held_out else (self.prompts, self.answers_per_prompt)
        examples = [pool[row] for row in rows for _ in range(copies)]
        groups = [i for i in range(len(rows)) for _ in range(copies)]
        ids = [
            encode_prompt(self.template, self.tokenizer, messages=e.prompt, max_prompt_tokens=self.max_prompt_tokens)
            for e in examples
        ]
        rollouts = self.engine.generate(ids, self.sampling, step=step)
        candidates = [
            Candidate(e.prompt, r.answer, r.prompt_ids, r.answer_ids) for e, r in zip(examples, rollouts, strict=True)
        ]
        return Answered(rollouts, candidates, groups)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of an answer, as the reward models read it."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True))

    def score(self, answered: Answered) -> Scored:
        """Scores as the reward models gave them."""
        return self.scorer.score(answered.candidates)

    def measure(self, answered: Answered) -> Experience:
        """The rollouts as tensors, with the reference's log-probabilities and the critic's values."""
        experience = assemble(
            answered.rollouts,
            answered.groups,
            min_new_tokens=self.sampling.min_new_tokens,
            device=self.base.device,
        )
        reference = self.measuring.log_probs(self.base, experience, "reference")
        values = experience.values
        if self.critic != "none" and not answered.rollouts[0].values:
            values = self.measuring.values(self.base, experience, "value")
        return replace(experience, reference_log_probs=reference, values=values)

    def with_trainer_log_probs(self, experience: Experience) -> Experience:
        """The experience with the trainer's own log-probabilities as the old ones, so that ratios begin at 1 exactly.

        In float32 the own sampler's agree to the last digits and are used as they are after the first step; in half
        precision rounding differs with the shape of a batch, and vLLM has other kernels: that must not look like a
        change of the policy.
        """
        return replace(experience, old_log_probs=self.measuring.log_probs(self.base, experience, "policy"))


def assemble_cast(config: PPOConfig, journal: Run, resources: ExitStack) -> Cast:
    """Load one base, seat the roles on it, read the prompts. A server that is started for it ends with `resources`.

    Raises:
        UserError: A model, adapter, reward, dataset or setting does not fit the others.
    """
    check_settings(config)
    rewards = examined_rewards(config.score)
    _warn_of_truncation(config, journal)
    start = find_start(config.model)
    rows = load_rows(config.data, "prompt", journal, seed=config.optimizer.seed)
    tokenizer = make_tokenizer(config.model, start, journal.warn)
    template = make_template(config.prompt, tokenizer, start.card)
    base = make_base(config.model, config.tuning, start, num_tokens=len(tokenizer))
    max_prompt_tokens = make_budget(config.data, config.prompt).prompt
    opening = encode_prompt(template, tokenizer, messages=rows.train[0].prompt, max_prompt_tokens=max_prompt_tokens)
    seat_policy(base, start, config.tuning, opening=opening)
    reference_name = seat_reference(base, config.reference.ref_model)
    budget = make_memory_budget(config.optimizer, journal)
    parts = [
        _make_scorer(spec, base, template, config, budget) for spec in parse_reward_specs(config.score.reward_model)
    ]
    critic = seat_critic(base, config)
    opinion = None
    if config.score.second_opinion is not None:
        specs = parse_reward_specs(config.score.second_opinion, where="second_opinion")
        opinion = ScoreMix(
            tuple(_make_scorer(spec, base, template, config, budget, where="second_opinion") for spec in specs)
        )
    base.disable_dropout()
    if config.optimizer.gradient_checkpointing:
        base.enable_checkpointing()
    sampling = make_sampling(config)
    begin(
        journal,
        "PPO" if config.ppo.advantage == "gae" else f"PPO with {config.ppo.advantage} advantages",
        base,
        start,
        template,
        notes=[
            *rows.notes,
            *unseen_notes(config.score.reward_model, base.name),
            *([] if rows.held_out else [NOTHING_HELD_OUT]),
        ],
        reward=rewards + (", a network of its own" if _has_own_network(parts) else ""),
        reference=reference_name,
        critic=_describe_critic(critic, base),
    )
    return Cast(
        base=base,
        tokenizer=tokenizer,
        template=template,
        card=make_card("ppo", base, start, template),
        engine=make_engine(
            config,
            base,
            tokenizer=tokenizer,
            template=template,
            opening=opening,
            max_prompt_tokens=max_prompt_tokens,
            journal=journal,
            resources=resources,
        ),
        scorer=ScoreMix(tuple(parts), config.score.score_std_coef),
        second_opinion=opinion,
        measuring=Measuring(
            temperature=sampling.temperature,
            stop_token_ids=tuple(template.stop_token_ids),
            budget=budget,
        ),
        sampling=sampling,
        prompts=rows.train,
        held_out=rows.held_out,
        max_prompt_tokens=max_prompt_tokens,
        answers_per_prompt=config.ppo.answers_per_prompt,
        critic=critic,
        reference_name=reference_name,
        reference_is_policy=config.reference.ref_model is None,
        num_samples=config.ppo.num_eval_samples,
        importance_cap=config.rollouts.importance_cap if config.rollouts.rollout_engine == "vllm" else None,
    )


def check_settings(config: PPOConfig) -> None:
    """Refuse settings that do not go together, before anything is loaded.

    Raises:
        SettingsError: They do not.
    """
    ppo = config.ppo
    if config.sampling.temperature == 0:
        raise SettingsError("PPO needs random answers", where="temperature", remedy="set temperature: 1.0")
    if ppo.rollout_batch_size % ppo.answers_per_prompt:
        raise SettingsError(
            f"{ppo.rollout_batch_size} answers cannot be {ppo.answers_per_prompt} to each prompt",
            where="rollout_batch_size",
            remedy=f"make it a multiple of {ppo.answers_per_prompt}",
        )
    if ppo.advantage in ("rloo", "grpo", "dr_grpo") and ppo.answers_per_prompt < 2:
        raise SettingsError(
            f"{ppo.advantage} compares answers to the same prompt, so it needs at least 2",
            where="answers_per_prompt",
            remedy="set answers_per_prompt: 4",
        )
    if ppo.critic == "adapter" and config.tuning.finetuning_type == "full":
        raise SettingsError(
            "full fine-tuning has no adapters, so the critic cannot be one",
            where="critic",
            remedy="set critic: shared or critic: model, or finetuning_type: lora",
        )
    if ppo.critic == "model" and config.model.quantization_bit is not None:
        raise SettingsError(
            "every weight of the critic would learn, and quantised ones cannot",
            where="critic",
            remedy="set critic: shared or critic: adapter, or remove quantization_bit",
        )
    if ppo.kl_target and ppo.rollout_batch_size > ppo.kl_horizon / ADAPTIVE_CLIP:
        raise SettingsError(
            f"with {ppo.rollout_batch_size} answers in a step the KL weight could turn negative",
            where="kl_horizon",
            remedy=f"set kl_horizon: {ppo.rollout_batch_size * ADAPTIVE_CLIP:g} or more, or lower rollout_batch_size",
        )
    if config.optimizer.gradient_checkpointing and ppo.critic == "adapter" and ppo.advantage == "gae":
        raise SettingsError(
            "recomputation cannot tell the policy's adapter from the critic's",
            where="gradient_checkpointing",
            remedy="set critic: shared, or lower tokens_per_micro_batch instead",
        )
    read_limits(config.watch.watch_limits, (*PPO_ALARMS, *HELD_OUT_ALARMS))
    check_rollouts(config)


def _warn_of_truncation(config: PPOConfig, journal: Run) -> None:
    if not make_sampling(config).is_plain:
        warning = (
            "top_p, top_k or repetition_penalty changes the distribution that answers are drawn from, "
            "but not the one that is learned: ratios and KL are biased"
        )
        journal.event("warning", text=warning)
        journal.view.note(f"warning: {warning}")


def _make_scorer(
    spec: RewardSpec,
    base: SharedBase,
    template: Template,
    config: PPOConfig,
    budget: MemoryBudget,
    *,
    where: str = "reward_model",
) -> tuple[Scorer, float]:
    """One part of the reward: a function, an adapter on this base, or a model of its own."""
    if spec.function is not None:
        return FunctionScorer(*spec.function), spec.weight
    name = Path(spec.source).name
    if goes_on_any_base(spec.source, base.name):
        return SharedScorer(seat_reward(base, spec.source, where=where), name=name, budget=budget), spec.weight
    located = locate(spec.source)
    if located.card is not None and located.card.role != "reward":
        raise ModelError(
            f"this is the {located.card.role} of a {located.card.stage} run, not a reward model",
            where=f"{where}: {spec.source}",
            remedy="give the output_dir of a `duiqi rm` run",
        )
    if located.card is not None and stands_on(located, located.card, base):
        if located.card.template and not config.score.allow_template_mismatch:
            theirs = from_dict(
                located.card.template, load_tokenizer(located.leaf, trust_remote_code=config.model.trust_remote_code)
            )
            refuse_mismatch(template, theirs, whose=f"the reward model {spec.source}")
        return SharedScorer(seat_reward(base, spec.source, where=where), name=name, budget=budget), spec.weight
    scorer = open_reward_model(
        spec.source,
        name=name,
        dtype=config.model.dtype,
        device=config.model.device,
        cutoff_len=config.data.cutoff_len,
        trust_remote_code=config.model.trust_remote_code,
    )
    return scorer, spec.weight


def _has_own_network(parts: Sequence[tuple[Scorer, float]]) -> bool:
    """Whether a reward model could not share the base, and takes as much memory again."""
    return any(isinstance(scorer, ModelScorer) for scorer, _ in parts)


def seat_critic(base: SharedBase, config: PPOConfig) -> str:
    """Seat the critic, if advantages need one: on the policy's trunk, or apart and begun from what the reward is."""
    if config.ppo.advantage != "gae":
        return "none"
    if config.ppo.critic == "shared":
        base.share_seat("value", "policy")
        base.add_head("value")
        return "shared"
    source = "reward" if base.has("reward") else "policy"
    if config.ppo.critic == "adapter":
        base.seat_copy("value", source, trainable=True)
    else:
        base.seat_learning_copy("value", source)
    base.add_head("value", base.heads["reward"].weight if source == "reward" else None)
    return config.ppo.critic


def _describe_critic(critic: str, base: SharedBase) -> str:
    match critic:
        case "none":
            return "none needed"
        case "shared":
            return "a value head on the policy's trunk"
        case "adapter":
            return "an adapter of its own"
    size = sum(p.numel() for p in base.seat("value").network.parameters() if p.requires_grad)
    return f"a model of its own, {size:,} parameters"
