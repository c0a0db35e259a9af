"""From scores to advantages: score transforms, the KL penalty and its controller, and the advantage estimator."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from duiqi.algorithms.advantages import Advantages, gae, grpo, reinforce_plus_plus, rloo
from duiqi.algorithms.kl import KL_ESTIMATORS, AdaptiveKL, FixedKL, k3
from duiqi.algorithms.masked import explained_variance, masked_mean, whiten
from duiqi.algorithms.rewards import RunningMoments, clip_scores, penalise_missing_eos, token_rewards
from duiqi.rollouts.experience import Experience
from duiqi.settings.groups import PPOSettings, ScoreSettings


@dataclass
class Credit:
    """Who gets how much. Holds what outlives a step: the KL controller and the moments of the scores."""

    ppo: PPOSettings
    scoring: ScoreSettings
    controller: FixedKL | AdaptiveKL
    moments: RunningMoments

    @classmethod
    def start(cls, ppo: PPOSettings, scoring: ScoreSettings) -> Credit:
        """At step 0: the initial coefficient, no scores seen."""
        controller: FixedKL | AdaptiveKL = FixedKL(ppo.init_kl_coef)
        if ppo.kl_target:
            controller = AdaptiveKL(ppo.init_kl_coef, target=ppo.kl_target, horizon=ppo.kl_horizon)
        return cls(ppo, scoring, controller, RunningMoments())

    def assign(self, experience: Experience, raw_scores: Tensor) -> tuple[Experience, dict[str, float]]:
        """The experience with rewards, advantages and returns filled in, and the step's metrics.

        Metrics come with what matters most first: score, KL, then the rest.
        """
        scores = self.transform(raw_scores, experience.finished.cpu()).to(experience.device)
        mask = experience.answer_mask
        log_ratio = torch.where(mask, experience.old_log_probs - experience.reference_log_probs, 0.0)
        kl = KL_ESTIMATORS[self.ppo.kl_estimator](log_ratio)
        rewards = token_rewards(scores, kl, mask, kl_coefficient=self.controller.coefficient)
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
            "kl_coef": self.controller.coefficient,
            "entropy": float(-masked_mean(experience.old_log_probs, mask)),
            "reward": float(rewards.sum(dim=1).mean()),
        }
        if self.ppo.advantage == "gae":
            metrics["explained_variance"] = float(explained_variance(experience.values, found.returns, mask))
        self.controller = self.controller.update(sequence_kl, len(experience))
        return replace(experience, advantages=advantages, returns=found.returns), metrics

    def transform(self, raw_scores: Tensor, finished: Tensor) -> Tensor:
        """Baseline, running normalisation, clipping, and the penalty for answers that never ended, in this order."""
        scoring = self.scoring
        scores = raw_scores - scoring.score_baseline
        if scoring.score_norm:
            self.moments = self.moments.update(scores)
            scores = self.moments.normalise(scores)
        return penalise_missing_eos(clip_scores(scores, scoring.score_clip), finished, scoring.missing_eos_penalty)

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
        return {"kl_coefficient": self.controller.coefficient, "moments": asdict(self.moments)}

    def load_state(self, state: dict[str, Any]) -> None:
        """Take back what `state` gave."""
        self.controller = replace(self.controller, coefficient=state["kl_coefficient"])
        self.moments = RunningMoments(**state["moments"])
