"""From scores to advantages: score transforms, the KL penalty and its controller, and the advantage estimator."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from duiqi.algorithms.advantages import Advantages, gae, grpo, reinforce_plus_plus, rloo
from duiqi.algorithms.kl import KL_ESTIMATORS, AdaptiveKL, FixedKL, k3
from duiqi.algorithms.masked import explained_variance, masked_mean, whiten
from duiqi.algorithms.rewards import RunningMoments, clip_scores, overlong_penalty, token_rewards
from duiqi.rollouts.experience import Experience
from duiqi.settings.groups import PPOSettings, ScoreSettings
from duiqi.settings.stages import PPOConfig


@dataclass
class Credit:
    """Who gets how much. Holds what outlives a step: the KL controller and the moments of the scores."""

    ppo: PPOSettings
    scoring: ScoreSettings
    max_new_tokens: int
    controller: FixedKL | AdaptiveKL
    moments: RunningMoments
    price: float = 1.0
    """Multiplies the controller's weight of the KL penalty."""

    @classmethod
    def start(cls, config: PPOConfig) -> Credit:
        """At step 0: the initial coefficient, no scores seen."""
        ppo = config.ppo
        controller: FixedKL | AdaptiveKL = FixedKL(ppo.init_kl_coef)
        if ppo.kl_target:
            controller = AdaptiveKL(ppo.init_kl_coef, target=ppo.kl_target, horizon=ppo.kl_horizon)
        return cls(ppo, config.score, config.sampling.max_new_tokens, controller, RunningMoments())

    def assign(self, experience: Experience, raw_scores: Tensor) -> tuple[Experience, dict[str, float]]:
        """The experience with rewards, advantages and returns filled in, and the step's metrics.

        Metrics come with what matters most first: score, KL, then the rest.
        """
        mask = experience.answer_mask
        transformed = self.transform(raw_scores)
        penalties = self.penalties(experience.finished.cpu(), mask.sum(dim=1).cpu())
        scores = (transformed - sum(penalties.values())).to(experience.device)
        log_ratio = torch.where(mask, experience.old_log_probs - experience.reference_log_probs, 0.0)
        kl = KL_ESTIMATORS[self.ppo.kl_estimator](log_ratio)
        rewards = token_rewards(scores, kl, mask, kl_coefficient=self.kl_coefficient)
        experience = replace(experience, rewards=rewards, scores=scores)
        found = self.estimate(experience)
        advantages = found.advantages
        if self.ppo.advantage == "gae" and self.ppo.whiten_advantages:
            advantages = whiten(advantages, mask)
        sequence_kl = float(log_ratio.sum(dim=1).mean())
        metrics = {
            "score": float(raw_scores.mean()),
            "kl": sequence_kl,
            "score_std": float(raw_scores.std()) if len(raw_scores) > 1 else 0.0,
            "score_transformed": float(scores.mean()),
            "kl_k3": float(torch.where(mask, k3(log_ratio), 0.0).sum(dim=1).mean()),
            "kl_coef": self.kl_coefficient,
            "entropy": float(-masked_mean(experience.old_log_probs, mask)),
            "reward": float(rewards.sum(dim=1).mean()),
            **{f"penalty/{name}": float(penalty.mean()) for name, penalty in penalties.items()},
        }
        if limit := self.scoring.score_clip:
            metrics["score_clipped"] = float((transformed.abs() >= limit).float().mean())
        if self.ppo.advantage == "gae":
            metrics["explained_variance"] = float(explained_variance(experience.values, found.returns, mask))
        self.controller = self.controller.update(sequence_kl, len(experience))
        return replace(experience, advantages=advantages, returns=found.returns), metrics

    @property
    def kl_coefficient(self) -> float:
        """The weight of the KL penalty."""
        return self.controller.coefficient * self.price

    def transform(self, raw_scores: Float[Tensor, " B"]) -> Float[Tensor, " B"]:
        """Scores less the baseline, normalised by all scores so far, and clipped, in this order."""
        scoring = self.scoring
        scores = raw_scores - scoring.score_baseline
        if scoring.score_norm:
            self.moments = self.moments.update(scores)
            scores = self.moments.normalise(scores)
        return clip_scores(scores, scoring.score_clip)

    def penalties(self, finished: Bool[Tensor, " B"], lengths: Int[Tensor, " B"]) -> dict[str, Float[Tensor, " B"]]:
        """What is subtracted from the transformed scores, by the name under which it is logged."""
        scoring = self.scoring
        found = {"missing_eos": scoring.missing_eos_penalty * (~finished).float()}
        if scoring.overlong_buffer:
            share = -overlong_penalty(lengths, limit=self.max_new_tokens, buffer=scoring.overlong_buffer)
            found["overlong"] = scoring.overlong_penalty * share
        if scoring.min_answer_length:
            found["short"] = scoring.short_answer_penalty * (lengths < scoring.min_answer_length).float()
        return found

    def raise_price(self, factor: float) -> None:
        """Multiply the weight of the KL penalty, for good."""
        self.price *= factor

    def estimate(self, experience: Experience) -> Advantages:
        """Advantages by the estimator that the settings name."""
        rewards, mask = experience.rewards, experience.answer_mask
        match self.ppo.advantage:
            case "gae":
                return gae(rewards, experience.values, mask, gamma=self.ppo.gamma, lam=self.ppo.lam)
            case "rloo":
                return rloo(rewards, experience.groups, mask)
            case "grpo":
                return grpo(rewards, experience.groups, mask)
            case "dr_grpo":
                return grpo(rewards, experience.groups, mask, divide_by_std=False)
            case "reinforce++":
                return reinforce_plus_plus(rewards, mask, gamma=self.ppo.gamma)

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        steered = self.controller.coefficient if isinstance(self.controller, AdaptiveKL) else None
        return {"kl_coefficient": steered, "price": self.price, "moments": asdict(self.moments)}

    def load_state(self, state: dict[str, Any]) -> None:
        """Take back what `state` gave. A weight that is not steered is that of the settings, which may have changed."""
        if isinstance(self.controller, AdaptiveKL) and state["kl_coefficient"] is not None:
            self.controller = replace(self.controller, coefficient=state["kl_coefficient"])
        self.price = state["price"]
        self.moments = RunningMoments(**state["moments"])
