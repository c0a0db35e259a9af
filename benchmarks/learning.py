"""Whether a choice that saves time or memory learns as well: the built-in world, several seeds, one thing changed.

Every seed has one world and one pretrained base. On it, each variant runs the stages that its change touches, and is
judged as the demo is: the reward model's accuracy on held-out pairs, and the gold reward of sampled answers to
held-out prompts, which no stage ever sees.

    python benchmarks/learning.py --seeds 0,1,2,3,4
    python benchmarks/learning.py --seeds 0 --only float32,adapter
    python benchmarks/learning.py --table           # what the results say so far

A line per seed and variant goes to build/learning/results.jsonl; what is there already is not run again.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Any

from work import BenchmarkError, main_guard

if TYPE_CHECKING:
    from duiqi.pipeline.demo import Demo

LEARNING = Path("build/learning")
FIGURES = ("rm_accuracy", "sft", "dpo", "ppo", "ppo_gain", "ppo_kl", "ppo_seconds")


@dataclass(frozen=True)
class Variant:
    """What is changed, and in which stages; all others are those of `float32`."""

    changes: Mapping[str, Any] = field(default_factory=dict)
    stages: tuple[str, ...] = ("sft", "rm", "dpo", "ppo")


VARIANTS = {
    "float32": Variant({"dtype": "float32"}),
    "bfloat16": Variant({"dtype": "bfloat16"}),
    "longer": Variant({"dtype": "float32", "max_steps": 88}, ("ppo",)),
    "adapter": Variant({"dtype": "float32", "critic": "adapter"}, ("ppo",)),
    "model": Variant({"dtype": "float32", "critic": "model"}, ("ppo",)),
}
"""float32 is the demo with the critic on the policy's trunk and 60 rounds of PPO; `longer` has as many more as make it
take as long as `adapter`; the last two differ in the critic alone."""


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=LEARNING, help="where the runs and the results go")
    parser.add_argument("--seeds", default="0,1,2,3,4")
    parser.add_argument("--only", default=",".join(VARIANTS), help="variants, with commas between; float32 comes first")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="a few steps of everything, to see that it runs")
    parser.add_argument("--table", action="store_true", help="only print what the results say")
    args = parser.parse_args(argv)
    if unknown := set(args.only.split(",")) - set(VARIANTS):
        parser.error(f"no variant {min(unknown)}: {', '.join(VARIANTS)}")
    return args


def run_variant(args: argparse.Namespace, seed: int, name: str) -> dict[str, Any]:
    """Run one variant of one seed; the figures of it."""
    variant, start = VARIANTS[name], args.root / f"{seed}" / "float32"
    demo = make_demo(args.root / f"{seed}" / name, seed, variant.changes, quick=args.quick)
    if name == "float32":
        demo.timed("world", demo.make_world)
        demo.timed("pretrain", lambda: demo.train("pretrain"))
    elif not start.is_dir():
        raise BenchmarkError(f"{name} of seed {seed} begins where float32 ended: run that first")
    else:
        demo.directory.mkdir(parents=True, exist_ok=True)
        for part in {"data", "blank", "base", "sft", "rm", "dpo", "ppo"} - set(variant.stages):
            link = demo.directory / part
            if not link.exists():
                link.symlink_to((start / part).resolve())
    for stage in variant.stages:
        demo.timed(stage, lambda stage=stage: demo.train(stage))  # type: ignore[misc]
    if "rm" not in variant.stages:
        demo.results["rm"] = demo.results["ppo"]
        demo.results["rm"].metrics.setdefault("eval_accuracy", float("nan"))
    summary = demo.summarise(demo.compare())
    gold = {model: figures["gold"] for model, figures in summary["models"].items()}
    return {
        "seed": seed,
        "variant": name,
        "rm_accuracy": summary["rm_accuracy"] if "rm" in variant.stages else None,
        **{model: gold[model] for model in ("sft", "dpo", "ppo")},
        "ppo_gain": round(gold["ppo"] - gold["sft"], 4),
        "ppo_kl": summary["models"]["ppo"]["kl"],
        "ppo_length": summary["models"]["ppo"]["length"],
        "ppo_seconds": round(demo.seconds["ppo"], 1),
        "seconds": {stage: round(seconds, 1) for stage, seconds in demo.seconds.items()},
        "threads": args.threads,
    }


def make_demo(directory: Path, seed: int, changes: Mapping[str, Any], *, quick: bool) -> Demo:
    """The demo with something changed in every stage that knows it."""
    from duiqi.journal.terminal import make_view
    from duiqi.pipeline.demo import Demo
    from duiqi.pipeline.demo_recipes import Sizes
    from duiqi.settings.describe import known_settings

    class Changed(Demo):
        def settings(self, stage: Any) -> dict[str, Any]:
            known = {setting.name for setting in known_settings(stage)}
            own = {} if stage == "pretrain" else {name: value for name, value in changes.items() if name in known}
            return {**super().settings(stage), **own, "overwrite_output_dir": True}

    return Changed(directory, seed, Sizes.quick() if quick else Sizes(), print, make_view)


def read_results(root: Path) -> list[dict[str, Any]]:
    path = root / "results.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """A line per variant: means over the seeds, and the smallest gain of PPO."""
    lines = ["| variant | seeds | reward model | gold SFT | DPO | PPO | PPO's smallest gain | KL | PPO, seconds |"]
    lines.append("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for name in VARIANTS:
        found = [row for row in rows if row["variant"] == name]
        if not found:
            continue
        means = {key: [row[key] for row in found if row[key] is not None] for key in FIGURES}
        accuracy = f"{mean(means['rm_accuracy']):.1%}" if means["rm_accuracy"] else "–"
        gold = " | ".join(f"{mean(means[key]):.3f}" for key in ("sft", "dpo", "ppo"))
        least = min(means["ppo_gain"])
        lines.append(
            f"| {name} | {len(found)} | {accuracy} | {gold} | {least:+.3f} | {mean(means['ppo_kl']):.2f} "
            f"| {mean(means['ppo_seconds']):.0f} |"
        )
    return "\n".join(lines)


def main() -> None:
    args = parse_arguments()
    if not args.table:
        os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = str(args.threads)
        args.root.mkdir(parents=True, exist_ok=True)
        done = {(row["seed"], row["variant"]) for row in read_results(args.root)}
        for seed in map(int, args.seeds.split(",")):
            for name in (name for name in VARIANTS if name in args.only.split(",") and (seed, name) not in done):
                line = json.dumps(run_variant(args, seed, name))
                with (args.root / "results.jsonl").open("a", encoding="utf-8") as file:
                    file.write(line + "\n")
                print(line, flush=True)
    print(table(read_results(args.root)))


if __name__ == "__main__":
    main_guard(main)
