"""PPO on held-out prompts: the same random numbers every time, a second opinion, and which checkpoint is the best."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from duiqi.guards.answers import answer_statistics
from duiqi.journal.run import Run
from duiqi.settings.stages import PPOConfig
from duiqi.stages.ppo_cast import Answered, Cast
from duiqi.stages.watching import Watching
from duiqi.training.session import BestBy
from duiqi.types import readable


def best_by(config: PPOConfig) -> BestBy:
    """The best checkpoint: by the second opinion where there is one, else by score; within the KL budget, and at a
    time when no alarm rang."""
    ceilings = {"eval_findings": 0.0}
    if budget := kl_budget(config):
        ceilings["eval_kl"] = budget
    metric = "eval_score" if config.score.second_opinion is None else "eval_opinion"
    return BestBy(metric, greater_is_better=True, ceilings=ceilings)


def kl_budget(config: PPOConfig) -> float:
    """Nats per answer that the policy may spend; 0: no budget. Long answers may be farther away, token by token."""
    if config.ppo.kl_budget is not None:
        return config.ppo.kl_budget
    return max(30.0, 0.1 * config.sampling.max_new_tokens) if config.ppo.init_kl_coef else 0.0


class HeldOut:
    """Evaluates the policy, and remembers what the second opinion thought best."""

    def __init__(self, cast: Cast, journal: Run, watching: Watching) -> None:
        self._cast, self._journal, self._watching = cast, journal, watching
        self._best: dict[str, float] = {}
        """Highest second opinion so far, the score at that time, and the spread of the first opinions."""

    def evaluate(self, step: int) -> dict[str, float]:
        """Answers to the held-out prompts, scored; a few are kept as samples."""
        cast = self._cast
        if not cast.held_out:
            return {}
        answered = cast.answer(range(len(cast.held_out)), step=0, held_out=True)
        scores, kl = cast.score(answered).total, sequence_kl(cast, answered)
        metrics = {
            "score": float(scores.mean()),
            "kl": float(kl.mean()),
            **answer_statistics(answered.rollouts, answered.questions),
            **what_pays(cast, answered),
        }
        opinions = None
        if cast.second_opinion is not None:
            opinions = cast.second_opinion.score(answered.candidates).total
            metrics |= {"opinion": float(opinions.mean()), "opinion_loss": self._lost(opinions, metrics["score"])}
        self._journal.samples(step, sample_rows(answered, cast.num_samples, score=scores, kl=kl, opinion=opinions))
        rings = self._watching.evaluated(step, metrics, answered.as_evidence(scores))
        return {**{f"eval_{name}": value for name, value in metrics.items()}, **rings}

    def _lost(self, opinions: Tensor, score: float) -> float:
        """How far the second opinion fell below its best while the score rose, in units of its first spread."""
        opinion = float(opinions.mean())
        if not self._best:
            spread = float(opinions.std()) if len(opinions) > 1 else 0.0
            self._best = {"opinion": opinion, "score": score, "spread": spread}
        if opinion >= self._best["opinion"]:
            self._best |= {"opinion": opinion, "score": score}
        if score <= self._best["score"] or self._best["spread"] == 0.0:
            return 0.0
        return (self._best["opinion"] - opinion) / self._best["spread"]

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return dict(self._best)

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Take back what `state` gave."""
        self._best = dict(state)


def what_pays(cast: Cast, answered: Answered) -> dict[str, float]:
    """Share of answers that the reward models score lower than what a policy could say instead, without trying:

    nothing at all, the first third of the answer, and the answer twice. PPO finds what pays, so this is known before
    it does. Functions are not asked: they need not stand answers that nobody gave.
    """
    if (scorer := cast.scorer.models) is None:
        return {}
    stop = cast.template.stop_token_ids[0]
    bodies = [rollout.answer_ids[:-1] if rollout.finished else rollout.answer_ids for rollout in answered.rollouts]
    instead: dict[str, list[tuple[int, ...]]] = {
        "nothing": [()] * len(bodies),
        "cut": [body[: len(body) // 3] for body in bodies],
        "twice": [body * 2 for body in bodies],
    }
    own = scorer.score(answered.candidates).total
    found = {}
    for name, others in instead.items():
        candidates = [
            replace(candidate, answer=cast.decode(body), answer_ids=(*body, stop))
            for candidate, body in zip(answered.candidates, others, strict=True)
        ]
        found[f"pays/{name}"] = float((scorer.score(candidates).total > own).float().mean())
    return found


def sample_rows(answered: Answered, count: int, **numbers: Tensor | None) -> list[dict[str, Any]]:
    """The first answers with what was measured of each, for samples.jsonl."""
    return [
        {
            "prompt": readable(answered.candidates[i].prompt),
            "answer": answered.rollouts[i].answer,
            **{name: round(float(values[i]), 4) for name, values in numbers.items() if values is not None},
            "length": len(answered.rollouts[i].answer_ids),
        }
        for i in range(min(count, len(answered.rollouts)))
    ]


def sequence_kl(cast: Cast, answered: Answered) -> Tensor:
    """Sampled KL of each answer against the reference, in nats: log-probability under policy minus under reference."""
    experience = cast.with_trainer_log_probs(cast.measure(answered))
    return ((experience.old_log_probs - experience.reference_log_probs) * experience.answer_mask).sum(dim=1).cpu()
