"""How long a run will take: its FLOPs over the speed of this machine's matrix products. An estimate, as a range."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from duiqi.planning.rows import Rows
from duiqi.settings.stages import PPOConfig, StageConfig

SHARES = (0.9, 0.2)
"""Of a matrix product's speed that a whole step reaches, at best and at worst: norms, activations, the optimizer and
calls count as no FLOPs but take time, and thin products and short rows are slower than the square ones measured.
Measured on a base of 88 million weights on a CPU: 0.8 with all weights learning in float32, 0.7 with adapters, and 0.2
in bfloat16, where the products are ten times as fast and all the rest is not."""


@dataclass(frozen=True)
class Duration:
    """Seconds of a run, loading and imports aside."""

    shortest: float
    longest: float


def estimate(config: StageConfig, rows: Rows, work: Mapping[str, float], speed: float) -> Duration | None:
    """How long the rehearsed work takes, done as often as the run does it; None where nothing was rehearsed.

    Args:
        work: FLOPs for each token, by moment.
        speed: FLOPs a second of a matrix product.
    """
    if not work:
        return None
    flops = sum(work[name] * tokens for name, tokens in tokens_by_work(config, rows).items() if name in work)
    best, worst = SHARES
    return Duration(flops / speed / best, flops / speed / worst)


def tokens_by_work(config: StageConfig, rows: Rows) -> dict[str, float]:
    """Tokens of the whole run, by what is done with them."""
    per_step = rows.tokens_per_row * min(rows.per_step, rows.num_rows)
    steps, every = rows.total_steps, config.run.eval_steps
    num_evaluations = (1 + steps // every + (steps % every > 0) if every else 2) if rows.num_held_out else 0
    evaluated = num_evaluations * rows.num_held_out
    if isinstance(config, PPOConfig):
        read = steps * per_step + evaluated * rows.tokens_per_row
        return {
            "rollouts": float((steps * config.ppo.rollout_batch_size + evaluated) * config.sampling.max_new_tokens),
            "scores": read,
            "measurements": read,
            "update": steps * per_step * config.ppo.ppo_epochs,
        }
    return {"update": steps * per_step, "evaluation": evaluated * rows.tokens_per_row}
