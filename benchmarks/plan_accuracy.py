"""How well `duiqi plan` foretells the peak memory: some configurations planned, then run, each in its own process.

    make bench-plan
    python benchmarks/plan_accuracy.py --only sft-fp32,ppo-adapter --threads 1

The base is random and made on the fly (88 million weights, so that the libraries are not most of the memory), the texts
are random words. A run takes a few steps: the peak stands after the fullest micro-batch. Planned and measured are both
everything that the process holds in memory on a CPU, libraries included. The table is printed, and everything is
written to build/bench/plan.json; the exit status is 1 when a plan is farther off than it may be.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from machine import this_machine
from work import BENCH, BenchmarkError, main_guard, write_lines

TOLERANCE = 0.15
"""How far a plan may be from the measured peak, as a share of it."""
HIDDEN, LAYERS, HEADS, KEY_VALUE_HEADS, INTERMEDIATE, VOCABULARY = 768, 12, 12, 4, 2048, 16000
SPECIAL = ("<pad>", "<user>", "<assistant>", "<end>")
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<' + message['role'] + '> ' + message['content'] + ' <end> ' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<assistant> ' }}{% endif %}"
)
ROWS = 64
PROMPT_WORDS, ANSWER_WORDS, RANKED_WORDS = (20, 200), (50, 400), (30, 200)

ROUNDS: dict[str, Any] = {
    "dataset": "prompts.jsonl",
    "reward_model": "reward",
    "rollout_batch_size": 16,
    "mini_batch_size": 8,
    "ppo_epochs": 1,
    "max_new_tokens": 64,
    "max_steps": 3,
}
CONFIGURATIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "sft-fp32": ("sft", {"dataset": "sft.jsonl", "dtype": "float32", "max_steps": 8}),
    "sft-bf16": ("sft", {"dataset": "sft.jsonl", "dtype": "bfloat16", "max_steps": 8}),
    "sft-checkpointing": ("sft", {"dataset": "sft.jsonl", "dtype": "float32", "max_steps": 4,
                                  "gradient_checkpointing": True}),
    "sft-full": ("sft", {"dataset": "sft.jsonl", "dtype": "auto", "finetuning_type": "full", "max_steps": 4}),
    "rm-fp32": ("rm", {"dataset": "pairs.jsonl", "dtype": "float32", "max_steps": 8}),
    "dpo-fp32": ("dpo", {"dataset": "pairs.jsonl", "dtype": "float32", "max_steps": 8, "reuse_reference": False}),
    "ppo-shared": ("ppo", {**ROUNDS, "dtype": "float32"}),
    "ppo-adapter": ("ppo", {**ROUNDS, "dtype": "float32", "critic": "adapter"}),
    "ppo-model": ("ppo", {**ROUNDS, "dtype": "float32", "critic": "model"}),
}  # fmt: skip
"""By name: the stage and its settings."""


@dataclass(frozen=True)
class Comparison:
    """A configuration, planned and run."""

    name: str
    planned_mb: float
    measured_mb: float
    libraries_mb: float
    """Of both."""

    @property
    def ratio(self) -> float:
        return self.planned_mb / self.measured_mb


# -- in a process of its own -------------------------------------------------------------------------------------------


def make(folder: Path) -> None:
    """Write the base, its tokenizer and the data, and train a reward adapter for PPO."""
    import random

    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    import duiqi

    words = [*SPECIAL, *(f"w{number}" for number in range(VOCABULARY - len(SPECIAL)))]
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<end>")
    fast.chat_template = CHAT_TEMPLATE
    fast.save_pretrained(folder / "base")
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=HIDDEN,
        intermediate_size=INTERMEDIATE,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=KEY_VALUE_HEADS,
        vocab_size=VOCABULARY,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        pad_token_id=0,
        eos_token_id=3,
        bos_token_id=None,
    )
    LlamaForCausalLM(config).save_pretrained(folder / "base")
    chance = random.Random(0)

    def text(length: tuple[int, int]) -> str:
        return " ".join(chance.choice(words[len(SPECIAL) :]) for _ in range(chance.randrange(*length)))

    def conversation() -> list[dict[str, str]]:
        roles = {"user": PROMPT_WORDS, "assistant": ANSWER_WORDS}
        return [{"role": role, "content": text(length)} for role, length in roles.items()]

    def ranking() -> dict[str, str]:
        lengths = {"prompt": PROMPT_WORDS, "chosen": RANKED_WORDS, "rejected": RANKED_WORDS}
        return {name: text(length) for name, length in lengths.items()}

    write_lines(folder / "sft.jsonl", [{"messages": conversation()} for _ in range(ROWS)])
    write_lines(folder / "pairs.jsonl", [ranking() for _ in range(ROWS)])
    write_lines(folder / "prompts.jsonl", [{"prompt": text(PROMPT_WORDS)} for _ in range(ROWS)])
    settings = settings_of("rm-fp32", folder) | {"max_steps": 1, "output_dir": str(folder / "reward")}
    duiqi.run("rm", **settings)


def settings_of(name: str, folder: Path) -> dict[str, Any]:
    """duiqi's settings of a configuration, paths complete."""
    _, own = CONFIGURATIONS[name]
    paths: dict[str, Any] = {key: str(folder / own[key]) for key in ("dataset", "reward_model") if key in own}
    return {
        "model_name_or_path": str(folder / "base"),
        "output_dir": str(folder / "run"),
        "overwrite_output_dir": True,
        "device": "cpu",
        **own,
        **paths,
    }


def run(name: str, folder: Path) -> float:
    """Run a configuration; the most memory that this process held, in MB."""
    import duiqi

    stage, _ = CONFIGURATIONS[name]
    duiqi.run(stage, **settings_of(name, folder))  # type: ignore[arg-type]
    status = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return int(next(line.split()[1] for line in status if line.startswith("VmHWM:"))) * 1024 / 1e6


# -- what starts the processes -----------------------------------------------------------------------------------------


def in_process(words: Sequence[str], threads: int) -> str:
    """Run a Python command; what it printed.

    Raises:
        BenchmarkError: It failed.
    """
    variables = {**os.environ, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    variables |= {"CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, *words], env=variables, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BenchmarkError(f"{' '.join(words)} failed:\n{done.stderr[-2000:]}")
    return done.stdout.strip()


def compare(name: str, args: argparse.Namespace) -> Comparison:
    """Plan a configuration, and run it."""
    stage, _ = CONFIGURATIONS[name]
    words = [f"{key}={json.dumps(value) if isinstance(value, bool) else value}"
             for key, value in settings_of(name, args.folder).items()]  # fmt: skip
    plan = json.loads(in_process(["-m", "duiqi", "plan", stage, "--json", *words], args.threads))["memory"]
    libraries = sum(part["bytes"] for part in plan["held"] if part["owner"] == "libraries")
    own = [__file__, "--action", name, "--folder", str(args.folder)]
    measured = float(in_process(own, args.threads).rpartition("\n")[2])
    return Comparison(name, plan["peak"] / 1e6, measured, libraries / 1e6)


def table(found: Sequence[Comparison]) -> str:
    """As Markdown."""
    lines = ["| configuration | planned | measured | ratio | libraries |", "| --- | --- | --- | --- | --- |"]
    lines += [
        f"| {c.name} | {c.planned_mb:,.0f} MB | {c.measured_mb:,.0f} MB | {c.ratio:.2f} | {c.libraries_mb:,.0f} MB |"
        for c in found
    ]
    return "\n".join(lines)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(CONFIGURATIONS), help=f"which, of {','.join(CONFIGURATIONS)}")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--folder", type=Path, default=BENCH / "plan", help="for the base, the data and the runs")
    parser.add_argument("--out", type=Path, default=BENCH / "plan.json")
    parser.add_argument("--action", help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.only = args.only.split(",")
    if unknown := set(args.only) - set(CONFIGURATIONS):
        parser.error(f"there is no configuration {', '.join(sorted(unknown))}; there are {', '.join(CONFIGURATIONS)}")
    return args


def main() -> None:
    args = parse_arguments()
    if args.action == "make":
        make(args.folder)
        return
    if args.action:
        print(run(args.action, args.folder))
        return
    if not (args.folder / "reward" / "all_results.json").is_file():
        in_process([__file__, "--action", "make", "--folder", str(args.folder)], args.threads)
    found = []
    for name in args.only:
        found.append(compare(name, args))
        print(f"{name}: planned {found[-1].planned_mb:.0f} MB, measured {found[-1].measured_mb:.0f} MB", flush=True)
    print(f"\n{table(found)}")
    report = {"machine": str(this_machine()), "threads": args.threads, "found": [asdict(c) for c in found]}
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    if off := [c.name for c in found if abs(c.ratio - 1) > TOLERANCE]:
        print(f"\nfarther off than {TOLERANCE:.0%}: {', '.join(off)}")
        sys.exit(1)


if __name__ == "__main__":
    main_guard(main)
