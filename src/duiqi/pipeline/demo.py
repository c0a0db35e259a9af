"""The whole job on the built-in world: pretrain, SFT, reward model, PPO and DPO, then the report and a summary."""

from __future__ import annotations

import json
import shlex
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig

from duiqi.data.loading import load_examples
from duiqi.data.registry import DatasetSpec
from duiqi.data.templates import get_template
from duiqi.errors import RunError
from duiqi.evaluation.side_by_side import ModelAnswers, answer_side_by_side, seat_models
from duiqi.journal.files import atomic_write_json, writing
from duiqi.journal.terminal import View, make_view
from duiqi.models.adapter_files import read_adapter
from duiqi.models.loading import choose_device, load_causal_lm, load_tokenizer
from duiqi.models.reward import SharedReward
from duiqi.models.shared_base import SharedBase
from duiqi.packing.batch import Family
from duiqi.pipeline.demo_recipes import RECIPES, Sizes
from duiqi.playground.files import write_world
from duiqi.playground.gold import score_gold
from duiqi.playground.tokenizer import train_tokenizer
from duiqi.reports.html import write_report
from duiqi.settings.resolve import resolve
from duiqi.settings.stages import StageName
from duiqi.stages.launch import run
from duiqi.types import Message, Sampling, StageResult, readable

MODELS: dict[str, str | None] = {"base": None, "sft": "sft", "dpo": "dpo", "ppo": "ppo"}
"""Label of each model that is compared, and the run its adapter is from."""

SHOWN_PROMPTS = 12


@dataclass
class Demo:
    """One run of the demo, stage by stage."""

    directory: Path
    seed: int
    sizes: Sizes
    say: Callable[[str], None]
    view: Callable[[], View]
    seconds: dict[str, float] = field(default_factory=dict)
    results: dict[str, StageResult] = field(default_factory=dict)

    def run(self) -> dict[str, Any]:
        """Everything, in order; returns what summary.json holds."""
        self.timed("world", self.make_world)
        stages: tuple[StageName, ...] = ("pretrain", "sft", "rm", "dpo", "ppo")
        for stage in stages:
            self.timed(stage, partial(self.train, stage))
        answers = self.timed("evaluation", self.compare)
        summary = self.summarise(answers)
        report = write_report(
            [result.output_dir for result in self.results.values()],
            self.directory / "report.html",
            title="duiqi demo",
            comparisons=self.directory / "comparisons.json",
        )
        summary["seconds"] = {name: round(seconds, 1) for name, seconds in self.seconds.items()}
        atomic_write_json(self.directory / "summary.json", summary)
        self.say(closing(summary, report))
        return summary

    def timed(self, name: str, action: Callable[[], Any]) -> Any:
        begin = time.perf_counter()
        result = action()
        self.seconds[name] = time.perf_counter() - begin
        return result

    def make_world(self) -> None:
        """Write the datasets, train the tokenizer, and lay down the configuration of an untrained model."""
        files = write_world(self.directory / "data", self.seed, sizes=self.sizes.world)
        texts = [json.loads(line)["text"] for line in files.pretrain.read_text(encoding="utf-8").splitlines()]
        blank = self.directory / "blank"
        tokenizer = train_tokenizer(texts, blank, vocab_size=self.sizes.vocabulary)
        config = LlamaConfig(
            **self.sizes.model,
            vocab_size=len(tokenizer),
            max_position_embeddings=256,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            architectures=["LlamaForCausalLM"],
        )
        config.save_pretrained(blank)

    def train(self, stage: StageName, **changes: Any) -> None:
        """Run one stage with its recipe, through the same door as the command line; `changes` win over the recipe."""
        values = {**self.settings(stage), **changes}
        self.say(f"\n$ {command(stage, values)}")
        config = resolve(stage, values=values)
        result = run(stage, config, argv=shlex.split(command(stage, values)), view=self.view())
        self.results[stage] = result
        figures = "".join(f", {name} {value:.4g}" for name, value in list(result.metrics.items())[:3])
        self.say(f"   {stage}: {result.steps} steps in {result.totals.train_runtime:.0f} s{figures}")

    def settings(self, stage: StageName) -> dict[str, Any]:
        """The recipe of a stage, with the paths of this demo."""
        here = self.directory
        common = {"output_dir": str(here / stage), "dataset_dir": str(here / "data"), "seed": self.seed}
        start = {"model_name_or_path": str(here / "base" if stage != "pretrain" else here / "blank")}
        from_sft = {"adapter_name_or_path": str(here / "sft")}
        own: dict[StageName, dict[str, str]] = {
            "pretrain": {"dataset": "pretrain", "output_dir": str(here / "base")},
            "sft": {"dataset": "sft"},
            "rm": {"dataset": "rm", "eval_dataset": "rm_heldout"},
            "dpo": {"dataset": "rm", "eval_dataset": "rm_heldout@100", **from_sft},
            "ppo": {
                "dataset": "ppo_prompts",
                "eval_dataset": "heldout_prompts@64",
                "reward_model": str(here / "rm"),
                **from_sft,
            },
        }
        return {**common, **start, **own[stage], **RECIPES[stage], **self.sizes.steps.get(stage, {})}

    def compare(self) -> list[ModelAnswers]:
        """Every model's answers to the held-out prompts, sampled as in PPO, on one base."""
        here = self.directory
        device = choose_device("auto")
        tokenizer = load_tokenizer(str(here / "base"))
        base = SharedBase(
            load_causal_lm(str(here / "base"), device=device, dtype=torch.float32), name=str(here / "base")
        )
        seat_models(base, {label: str(here / name) if name else None for label, name in MODELS.items()})
        reward = read_adapter(here / "rm")
        base.seat_saved_adapter("reward", reward, trainable=False)
        base.add_head("reward", reward.score, trainable=False)
        prompts = self.held_out_prompts()
        found = answer_side_by_side(
            base,
            list(MODELS),
            reference="sft",
            tokenizer=tokenizer,
            template=get_template(None, tokenizer),
            prompts=prompts,
            sampling=Sampling(max_new_tokens=int(RECIPES["ppo"]["max_new_tokens"]), seed=self.seed),
        )
        self.write_comparisons(prompts, found, SharedReward(base))
        return found

    def held_out_prompts(self) -> list[tuple[Message, ...]]:
        """The prompts that no stage learned from."""
        loaded = load_examples(
            [DatasetSpec("heldout_prompts")], dataset_dir=self.directory / "data", need="prompt", seed=0
        )
        return [example.prompt for example in loaded.examples]

    def write_comparisons(
        self, prompts: list[tuple[Message, ...]], found: list[ModelAnswers], reward: SharedReward
    ) -> None:
        """comparisons.json: the first prompts, everybody's answers, their score, gold reward and length."""
        shown = range(min(SHOWN_PROMPTS, len(prompts)))
        rows: list[dict[str, Any]] = [{"prompt": readable(prompts[i]), "answers": []} for i in shown]
        for said in found:
            scores = reward.score([Family(r.prompt_ids, [r.answer_ids]) for r in said.rollouts[: len(shown)]])
            gold = score_gold(prompts[: len(shown)], said.answers[: len(shown)])
            for i in shown:
                rows[i]["answers"].append(
                    {
                        "model": said.model,
                        "answer": said.answers[i],
                        "score": round(float(scores[i]), 3),
                        "gold": round(gold[i], 3),
                        "kl": round(said.kl[i], 3),
                        "length": len(said.rollouts[i].answer_ids),
                    }
                )
        atomic_write_json(self.directory / "comparisons.json", rows)

    def summarise(self, found: list[ModelAnswers]) -> dict[str, Any]:
        """The figures by which the demo is judged."""
        prompts = self.held_out_prompts()
        models = {
            said.model: {
                "gold": round(_mean(score_gold(prompts, said.answers)), 4),
                "kl": round(said.mean_kl, 4),
                "length": round(said.mean_length, 2),
                "eos_rate": round(_mean([rollout.finished for rollout in said.rollouts]), 4),
            }
            for said in found
        }
        return {
            "seed": self.seed,
            "held_out_prompts": len(prompts),
            "rm_accuracy": round(self.results["rm"].metrics["eval_accuracy"], 4),
            "models": models,
            "sizes": asdict(self.sizes),
        }


def run_demo(output_dir: Path, *, seed: int = 0, quick: bool = False) -> dict[str, Any]:
    """Run the demo.

    Args:
        output_dir: A new directory, or an empty one.
        seed: Of the world, the models and the sampling.
        quick: A few steps of everything, to see that it runs; its figures mean nothing.

    Raises:
        RunError: The directory already holds something.
    """
    if output_dir.is_dir() and any(output_dir.iterdir()):
        raise RunError(
            "this directory is not empty", where=str(output_dir), remedy="give another --output_dir, or empty it"
        )
    with writing(output_dir):
        output_dir.mkdir(parents=True, exist_ok=True)

    def say(text: str) -> None:
        sys.stdout.write(f"{text}\n")
        sys.stdout.flush()

    return Demo(output_dir, seed, Sizes.quick() if quick else Sizes(), say, make_view).run()


def command(stage: str, values: Mapping[str, Any]) -> str:
    """The command that does the same by hand."""
    flags = [f"--{name} {shlex.quote(_typed(value))}" for name, value in values.items()]
    return f"duiqi {stage} " + " ".join(flags)


def closing(summary: Mapping[str, Any], report: Path) -> str:
    """The last words: a small table, and where to look."""
    lines = ["", "model   gold   KL to sft   length"]
    lines += [
        f"{name:<6} {figures['gold']:>5.3f}   {figures['kl']:>9.2f}   {figures['length']:>6.1f}"
        for name, figures in summary["models"].items()
    ]
    total = sum(summary["seconds"].values())
    lines += [
        f"reward model: {summary['rm_accuracy']:.1%} of held-out pairs right",
        f"{total:.0f} seconds; the report is {report}",
        f"next: duiqi chat {report.parent / 'ppo'}",
    ]
    return "\n".join(lines)


def _typed(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
