"""The last lines of a stage: what was made, where it lies, how good it is, and what to do next."""

from __future__ import annotations

import shlex

from duiqi.settings.stages import StageConfig
from duiqi.types import StageResult

_MAX_METRICS = 6


def closing_lines(result: StageResult, config: StageConfig) -> list[str]:
    """A small table in plain text, so that its paths and commands can be copied."""
    best = f", best at step {result.best_step}" if result.best_step is not None else ""
    is_nothing_done = result.resumed_step == result.steps
    rows = {
        "resumed": f"already finished at step {result.steps}: nothing left to do" if is_nothing_done else "",
        "made": f"{_product(result.stage, config)} after {_count(result.steps, 'step')}{best}",
        "where": result.output_dir,
        "how good": ", ".join(f"{name} {value:.4g}" for name, value in list(result.metrics.items())[:_MAX_METRICS]),
        "took": _duration(result.totals.train_runtime),
        "examine": f"duiqi exam {shlex.quote(result.output_dir)}" if result.stage == "rm" else "",
        "next": _next_command(result, config),
    }
    return [f"── {result.stage} done " + "─" * 40, *(f"{key:<10}{text}" for key, text in rows.items() if text)]


def _product(stage: str, config: StageConfig) -> str:
    kind = "model" if config.tuning.finetuning_type == "full" else "adapter"
    return f"a reward {kind}" if stage == "rm" else f"{'an' if kind == 'adapter' else 'a'} {kind}"


def _next_command(result: StageResult, config: StageConfig) -> str:
    base, here = shlex.quote(config.model.model_name_or_path), shlex.quote(result.output_dir)
    if result.stage == "pretrain":
        return f"duiqi sft --model_name_or_path {here} --dataset DEMONSTRATIONS --output_dir SFT_RUN"
    if result.stage == "rm":
        return (
            f"duiqi ppo --model_name_or_path {base} --adapter_name_or_path SFT_RUN --reward_model {here}"
            " --dataset PROMPTS --output_dir PPO_RUN"
        )
    return f"duiqi chat {here}"


def _duration(seconds: float) -> str:
    """A duration as people say it.

    >>> _duration(4.21), _duration(200), _duration(7260)
    ('4.2 s', '3 min 20 s', '2 h 1 min')
    """
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
