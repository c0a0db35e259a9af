"""What duiqi costs as the work grows: seconds of a step and peak memory, beside the growth of the FLOPs.

    make bench-scaling
    python benchmarks/scaling.py --axes vocabulary --threads 1

Four axes, one at a time: the length of the sequences, the size of the vocabulary and the rows of a step (SFT), and the
answers to each prompt (PPO without a critic). The model is small (6 million
parameters without the head) and random, made on the fly; duiqi is run through its
public API. Every point is a process of its own, so that its peak memory is its own; the seconds of a step are the
difference of a short and a longer run, so that what happens once does not count. The table is printed, and everything
is written to build/bench/scaling.json.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from floor import FORWARD, TRAIN, shape_of
from machine import peak_memory_mb, this_machine
from work import BENCH, BenchmarkError, main_guard, write_lines

HIDDEN, LAYERS, HEADS, KEY_VALUE_HEADS, INTERMEDIATE = 256, 8, 4, 2, 688
WARM_UP_STEPS, FEWEST_STEPS, MOST_STEPS = 2, 4, 64
SPECIAL = ("<pad>", "<user>", "<assistant>", "<end>")
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<' + message['role'] + '> ' + message['content'] + ' <end> ' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<assistant> ' }}{% endif %}"
)
PROMPTS_OF_A_ROUND, PROMPT_TOKENS, NEW_TOKENS = 4, 192, 32


@dataclass(frozen=True)
class Point:
    """One size of the work."""

    axis: str
    length: int = 256
    """Tokens of a sequence, three quarters of them learned."""
    vocabulary: int = 8000
    batch: int = 8
    answers: int = 1

    @property
    def value(self) -> int:
        """Where it stands on its axis."""
        return int(getattr(self, self.axis))


AXES: dict[str, tuple[int, ...]] = {
    "length": (64, 128, 256, 512, 1024),
    "vocabulary": (2000, 8000, 32000, 128000, 250000),
    "batch": (2, 4, 8, 16, 32),
    "answers": (1, 2, 4, 8, 16),
}


@dataclass(frozen=True)
class Cost:
    """What a point cost."""

    point: Point
    seconds_per_step: float
    peak_mb: float
    before_mb: float
    """The peak after all imports, before there is a model."""
    flops: float
    """Of a step, at least."""


def points(axes: Sequence[str], *, limit: int | None = None) -> list[Point]:
    """The points of some axes; at most `limit` on each."""
    return [Point(axis, **{axis: value}) for axis in axes for value in AXES[axis][:limit]]


def configuration(point: Point) -> dict[str, Any]:
    return {
        "hidden_size": HIDDEN,
        "intermediate_size": INTERMEDIATE,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KEY_VALUE_HEADS,
        "vocab_size": point.vocabulary,
        "max_position_embeddings": 2048,
        "tie_word_embeddings": True,
    }


def floor_flops(point: Point) -> float:
    """The least FLOPs of a step, attention's products included: at these lengths they count.

    A sequence of L tokens costs attention 2 L^2 H forwards in a layer, and twice that backwards.
    """
    shape = shape_of(configuration(point))
    if point.axis != "answers":
        learned = point.length * 3 // 4
        attention = 3 * 2 * point.length**2 * HIDDEN * LAYERS
        return point.batch * (TRAIN * (point.length * shape.body + learned * shape.head) + attention)
    learned = point.answers * NEW_TOKENS
    once = (PROMPT_TOKENS + learned) * shape.body + learned * shape.head
    own = 2 * NEW_TOKENS**2 + 4 * NEW_TOKENS * PROMPT_TOKENS
    attention = (2 * PROMPT_TOKENS**2 + point.answers * own) * HIDDEN * LAYERS
    # sampled, asked of the reference, learned once
    return PROMPTS_OF_A_ROUND * ((2 * FORWARD + TRAIN) * once + (2 + 3) * attention)


# -- in a process of its own -------------------------------------------------------------------------------------------


def make(point: Point, folder: Path) -> None:
    """Write the model, the tokenizer, the data and, for PPO, a reward function."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    words = [*SPECIAL, *(f"w{number}" for number in range(point.vocabulary - len(SPECIAL)))]
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<end>")
    fast.chat_template = CHAT_TEMPLATE
    fast.save_pretrained(folder / "model")
    torch.manual_seed(0)
    ids = {"pad_token_id": 0, "eos_token_id": 3, "bos_token_id": None}
    LlamaForCausalLM(LlamaConfig(**configuration(point), **ids)).save_pretrained(folder / "model")
    (folder / "reward.py").write_text("def zero(prompts, answers):\n    return [0.0] * len(answers)\n")
    write_lines(folder / "data.jsonl", rows_of(point))


def rows_of(point: Point) -> list[dict[str, Any]]:
    """Rows of random words with exactly the lengths of the point."""
    import random

    chance = random.Random(0)

    def words(count: int) -> str:
        return " ".join(f"w{chance.randrange(point.vocabulary - len(SPECIAL))}" for _ in range(count))

    if point.axis == "answers":  # <user> ... <end> <assistant>
        return [{"prompt": words(PROMPT_TOKENS - 3)} for _ in range(4 * PROMPTS_OF_A_ROUND)]
    answer = point.length * 3 // 4
    turns = {"user": point.length - answer - 3, "assistant": answer - 1}
    return [
        {"messages": [{"role": role, "content": words(count)} for role, count in turns.items()]}
        for _ in range(4 * point.batch)
    ]


def check_tokens(folder: Path, expected: int) -> None:
    """Refuse a measurement of other lengths: transformers puts its own splitting into some models' tokenizers."""
    notes = json.loads((folder / "run" / "manifest.json").read_text(encoding="utf-8"))["notes"]
    if not any(f" {expected} tokens," in note for note in notes):
        raise BenchmarkError(f"{expected} tokens were to be learned from, duiqi found: {'; '.join(notes)}")


def settings_of(point: Point, folder: Path) -> dict[str, Any]:
    """duiqi's settings."""
    common = {
        "model_name_or_path": str(folder / "model"),
        "dataset": str(folder / "data.jsonl"),
        "overwrite_output_dir": True,
        "device": "cpu",
        "dtype": "float32",
        "cutoff_len": 2048,
        "max_source_length": 1024,
    }
    if point.axis != "answers":
        return {**common, "per_device_train_batch_size": point.batch}
    return {
        **common,
        "reward_model": f"{folder / 'reward.py'}:zero",
        "advantage": "reinforce++",
        "answers_per_prompt": point.answers,
        "rollout_batch_size": point.answers * PROMPTS_OF_A_ROUND,
        "mini_batch_size": point.answers * PROMPTS_OF_A_ROUND,
        "ppo_epochs": 1,
        "max_new_tokens": NEW_TOKENS,
        "min_new_tokens": NEW_TOKENS,
    }


def measure(point: Point, folder: Path, *, duration: float, threads: int) -> Cost:
    """Train for a few steps, then for about `duration` seconds longer; the difference is what steps cost."""
    import torch

    import duiqi
    import duiqi.stages.launch  # so that before_mb holds all imports

    torch.set_num_threads(threads)
    before = peak_memory_mb()
    stage: Any = "ppo" if point.axis == "answers" else "sft"
    settings = settings_of(point, folder)

    def seconds(num_steps: int) -> float:
        result = duiqi.run(stage, **settings, max_steps=num_steps, output_dir=str(folder / "run"))
        return result.totals.train_runtime

    short = seconds(WARM_UP_STEPS)
    if stage == "sft":
        check_tokens(folder, 4 * point.batch * point.length)
    steps = min(max(math.ceil(duration * WARM_UP_STEPS / short), FEWEST_STEPS), MOST_STEPS)
    long = seconds(WARM_UP_STEPS + steps)
    return Cost(point, max(long - short, 1e-9) / steps, peak_memory_mb(), before, floor_flops(point))


# -- what starts the processes -----------------------------------------------------------------------------------------


def in_process(action: str, point: Point, args: argparse.Namespace) -> str:
    """Do one thing for a point in a process of its own; what it printed last.

    Raises:
        BenchmarkError: It failed.
    """
    command = [sys.executable, __file__, "--action", action, "--point", json.dumps(asdict(point))]
    command += ["--seconds", str(args.seconds), "--threads", str(args.threads), "--folder", str(args.folder)]
    threads = str(args.threads)
    variables = {**os.environ, "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, env=variables, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BenchmarkError(f"{point.axis} {point.value}: could not {action} it:\n{done.stderr[-2000:]}")
    return done.stdout.strip().rpartition("\n")[2]


def cost_of(point: Point, args: argparse.Namespace) -> Cost:
    """Make a point's model and data, and measure it."""
    shutil.rmtree(args.folder, ignore_errors=True)
    args.folder.mkdir(parents=True)
    in_process("make", point, args)
    found = json.loads(in_process("measure", point, args))
    shutil.rmtree(args.folder, ignore_errors=True)
    return Cost(**found | {"point": Point(**found["point"])})


UNITS = {
    "length": "tokens a sequence",
    "vocabulary": "tokens in the vocabulary",
    "batch": "rows a step",
    "answers": "answers to each prompt",
}


def table(axis: str, costs: Sequence[Cost]) -> str:
    """An axis as a Markdown table: everything measured, and the growth since its first point beside the floor's."""
    first = costs[0]
    lines = [
        f"| {UNITS[axis]} | seconds a step | growth | growth of the FLOPs | peak memory | above the imports |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for cost in costs:
        growth, floor = cost.seconds_per_step / first.seconds_per_step, cost.flops / first.flops
        lines.append(
            f"| {cost.point.value:,} | {cost.seconds_per_step:.3f} | {growth:.1f} | {floor:.1f} "
            f"| {cost.peak_mb:.0f} MB | {cost.peak_mb - cost.before_mb:.0f} MB |"
        )
    return "\n".join(lines)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--axes", default=",".join(AXES), help=f"which, of {','.join(AXES)}")
    parser.add_argument("--points", type=int, help="only the first so many points of each axis")
    parser.add_argument("--seconds", type=float, default=5, help="how long to measure at each point, about")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--folder", type=Path, default=BENCH / "scaling", help="for models and data; removed afterwards"
    )
    parser.add_argument("--out", type=Path, default=BENCH / "scaling.json")
    parser.add_argument("--action", choices=("make", "measure"), help=argparse.SUPPRESS)
    parser.add_argument("--point", help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.axes = args.axes.split(",")
    if unknown := set(args.axes) - set(AXES):
        parser.error(f"there is no axis {', '.join(sorted(unknown))}; there are {', '.join(AXES)}")
    return args


def act(args: argparse.Namespace) -> None:
    """Do what another process of this script asked for."""
    point = Point(**json.loads(args.point))
    actions: dict[str, Callable[[], Cost | None]] = {
        "make": lambda: make(point, args.folder),
        "measure": lambda: measure(point, args.folder, duration=args.seconds, threads=args.threads),
    }
    if cost := actions[args.action]():
        print(json.dumps(asdict(cost)), flush=True)


def main() -> None:
    args = parse_arguments()
    if args.action:
        act(args)
        return
    costs: dict[str, list[Cost]] = {axis: [] for axis in args.axes}
    for point in points(args.axes, limit=args.points):
        cost = cost_of(point, args)
        print(f"{point.axis} {point.value}: {cost.seconds_per_step:.3f} s, {cost.peak_mb:.0f} MB", flush=True)
        costs[point.axis].append(cost)
    for axis, found in costs.items():
        print(f"\n{table(axis, found)}")
    report = {
        "machine": str(this_machine()),
        "threads": args.threads,
        "costs": [asdict(c) for f in costs.values() for c in f],
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(f"\nwrote {os.path.relpath(args.out)}")


if __name__ == "__main__":
    main_guard(main)
