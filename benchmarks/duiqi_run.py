"""duiqi's side of the comparison: one stage of the fixed work through the public API, one JSON line at the end.

It takes the flags that the peers' scripts take and prints the keys that they print. Examples:

    python benchmarks/duiqi_run.py --stage sft --dtype bf16
    python benchmarks/duiqi_run.py --stage dpo                        # computes what the reference says
    python benchmarks/duiqi_run.py --stage dpo --reference warm       # remembers it from the run before
    python benchmarks/duiqi_run.py --stage ppo --critic adapter
    python benchmarks/duiqi_run.py --stage grpo --answers 8

Only the training itself is in train_s, as for the peers: not imports, loading or encoding, but the checkpoint at the
end. start_rss_mb is the peak after the imports, before the model is there. Settings that this version of duiqi does not
know yet are left out, and named in the line as `left_out`.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from machine import peak_memory_mb, queue_seconds
from work import BENCH, SIZES, WORKS, BenchmarkError, main_guard, read_rows, write_lines

if TYPE_CHECKING:
    from duiqi.types import StageResult

BEGIN = time.monotonic()
ONLINE = ("ppo", "grpo")
REWARD_SAMPLES = 16
"""Pairs that the reward adapter for PPO and GRPO is trained on: what it says does not matter, only what it costs."""
DTYPE_NAMES = {"fp32": "float32", "bf16": "bfloat16"}


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stage", required=True, choices=WORKS, help="the work; grpo is duiqi's ppo stage")
    parser.add_argument("--root", type=Path, default=BENCH, help="where the work files are")
    parser.add_argument("--size", default="small", choices=SIZES, help="of the model")
    parser.add_argument("--dtype", default="fp32", choices=tuple(DTYPE_NAMES), help="precision of the frozen base")
    parser.add_argument("--grad-ckpt", type=int, default=0, help="1: recompute activations in the backward pass")
    parser.add_argument("--samples", type=int, help="sequences (sft, 256) or pairs (rm and dpo, 128)")
    parser.add_argument("--batch-size", type=int, help="rows of a step (8), or answers of an update (ppo and grpo, 4)")
    parser.add_argument("--max-len", type=int, default=512, help="longest sequence")
    parser.add_argument("--iterations", type=int, default=8, help="ppo, grpo: rounds of answers")
    parser.add_argument("--rollout", type=int, default=16, help="ppo, grpo: answers of a round")
    parser.add_argument("--new-tokens", type=int, default=96, help="ppo, grpo: exact length of every answer")
    parser.add_argument("--ppo-epochs", type=int, default=4, help="ppo, grpo: passes over the answers of a round")
    parser.add_argument("--answers", type=int, default=8, help="grpo: answers to each prompt")
    parser.add_argument("--critic", default="shared", help="ppo: shared, adapter or model")
    parser.add_argument("--reference", default="cold", choices=("cold", "warm"),
                        help="dpo: warm remembers what the reference said in the last cold run")  # fmt: skip
    parser.add_argument("--lora-r", type=int, default=8, help="rank of the adapters; alpha is twice that")
    parser.add_argument("--lr", type=float, help="learning rate (2e-4; ppo and grpo 1e-5)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--tokens-per-micro-batch", type=int, help="tokens computed at once; default: duiqi's own")
    parser.add_argument("--out", type=Path, help="append the line to this file too")
    parser.add_argument("--note", default="", help="a word to tell this configuration apart")
    args = parser.parse_args(argv)
    online = args.stage in ONLINE
    args.samples = args.samples or (256 if args.stage == "sft" else 128)
    args.batch_size = args.batch_size or (4 if online else 8)
    args.lr = args.lr or (1e-5 if online else 2e-4)
    if args.stage == "grpo" and args.rollout % args.answers:
        parser.error(f"--rollout {args.rollout} is no multiple of --answers {args.answers}")
    return args


@dataclass(frozen=True)
class Job:
    """A piece of work as duiqi is given it."""

    stage: str
    """duiqi's name of the stage."""
    rows: list[dict[str, Any]]
    """In a format that duiqi reads."""
    num_samples: int
    real_tokens: int
    """Tokens of all sequences, prompts counted with each, as the peers count."""
    settings: dict[str, Any]
    """What this stage alone has."""
    wishes: dict[str, Any]
    """Settings to use where this version of duiqi has them."""


def sft_job(args: argparse.Namespace) -> Job:
    rows = read_rows(args.root, args.size, "sft", args.samples)
    tokens = sum(row["tokens"] for row in rows)
    return Job("sft", [{"messages": row["messages"]} for row in rows], len(rows), tokens, batch_settings(args), {})


def pair_job(args: argparse.Namespace) -> Job:
    rows = read_rows(args.root, args.size, "pairs", args.samples)
    tokens = sum(chosen + rejected for _, chosen, rejected in (row["tokens"] for row in rows))
    kept = [{name: row[name] for name in ("prompt", "chosen", "rejected")} for row in rows]
    own = {"pref_beta": 0.1} if args.stage == "dpo" else {}
    wishes = {"reuse_reference": True} if args.stage == "dpo" else {}
    return Job(args.stage, kept, len(rows), tokens, batch_settings(args) | own, wishes)


def online_job(args: argparse.Namespace) -> Job:
    answers = args.answers if args.stage == "grpo" else 1
    rows = read_rows(args.root, args.size, "prompts", args.iterations * args.rollout // answers)
    num_answers = args.iterations * args.rollout
    tokens = sum(row["tokens"] for row in rows) * answers + num_answers * args.new_tokens
    own = {
        "reward_model": str(reward_folder(args)),
        "rollout_batch_size": args.rollout,
        "mini_batch_size": args.batch_size,
        "ppo_epochs": args.ppo_epochs,
        "max_new_tokens": args.new_tokens,
        "min_new_tokens": args.new_tokens,
        "temperature": 1.0,
        "init_kl_coef": 0.05,
        "target_kl": 0.0,  # never leave a round early: everybody does the same number of updates
        "ratio_threshold": 1e9,
        "max_steps": args.iterations,
        "logging_steps": 1,
    }
    how = {"advantage": "grpo", "answers_per_prompt": answers} if args.stage == "grpo" else {"critic": args.critic}
    return Job("ppo", [{"prompt": row["prompt"]} for row in rows], num_answers, tokens, own | how, {})


def batch_settings(args: argparse.Namespace) -> dict[str, Any]:
    return {"per_device_train_batch_size": args.batch_size, "num_train_epochs": 1.0, "logging_steps": 8}


JOBS = {"sft": sft_job, "rm": pair_job, "dpo": pair_job, "ppo": online_job, "grpo": online_job}


def reward_folder(args: argparse.Namespace) -> Path:
    """Where the reward adapter is that PPO and GRPO score with."""
    return Path(args.root) / "out" / f"duiqi_reward_{args.size}_{args.dtype}"


def make_reward(args: argparse.Namespace) -> None:
    """Train the reward adapter once, in a process of its own so that it does not count here."""
    if (reward_folder(args) / "all_results.json").is_file():
        return
    flags = {"stage": "rm", "root": args.root, "size": args.size, "dtype": args.dtype, "threads": args.threads,
             "samples": REWARD_SAMPLES, "max-len": args.max_len, "note": "reward"}  # fmt: skip
    command = [sys.executable, __file__, *(part for name, value in flags.items() for part in (f"--{name}", str(value)))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BenchmarkError(f"the reward adapter could not be trained:\n{done.stderr[-2000:]}")


def output_folder(args: argparse.Namespace) -> Path:
    if args.note == "reward":
        return reward_folder(args)
    return Path(args.root) / "out" / "_".join(filter(None, ("duiqi", args.stage, args.size, args.dtype, args.note)))


def prepare_memory(args: argparse.Namespace) -> None:
    """Point duiqi's memory of the reference to a folder of this work, and empty it for a cold run.

    Raises:
        BenchmarkError: A warm run has nothing to remember.
    """
    home = Path(args.root).resolve() / "out" / f"reference_{args.size}_{args.dtype}"
    os.environ["XDG_CACHE_HOME"] = str(home)
    if args.stage != "dpo":
        return
    if args.reference == "cold":
        shutil.rmtree(home, ignore_errors=True)
    elif not any(home.rglob("*.safetensors")):
        raise BenchmarkError("nothing is remembered of the reference yet: run --reference cold before warm")


def split_wishes(job: Job, args: argparse.Namespace) -> tuple[dict[str, Any], list[str]]:
    """All settings of the run, and the names of those that this duiqi does not know."""
    from duiqi.settings.describe import known_settings

    known = {setting.name for setting in known_settings(job.stage)}  # type: ignore[arg-type]
    wishes = dict(job.wishes)
    if args.tokens_per_micro_batch:
        wishes["tokens_per_micro_batch"] = args.tokens_per_micro_batch
    data = output_folder(args).with_suffix(".jsonl")
    write_lines(data, job.rows)
    settings = {
        "model_name_or_path": str(Path(args.root) / args.size / "policy"),
        "dataset": str(data.resolve()),
        "output_dir": str(output_folder(args)),
        "overwrite_output_dir": True,
        "device": "cpu",
        "dtype": DTYPE_NAMES[args.dtype],
        "cutoff_len": args.max_len + 8,  # the texts are cut already: a line break after the end must not cut them again
        "max_source_length": args.max_len,
        "lora_rank": args.lora_r,
        "lora_alpha": 2 * args.lora_r,
        "learning_rate": args.lr,
        "gradient_checkpointing": bool(args.grad_ckpt),
        "seed": args.seed,
        **job.settings,
        **{name: value for name, value in wishes.items() if name in known},
    }
    return settings, sorted(set(wishes) - known)


def read_metrics(folder: Path) -> list[dict[str, float]]:
    """The lines of a run's metrics.jsonl."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def phases_of(metrics: Sequence[Mapping[str, float]], train_s: float) -> dict[str, float]:
    """Seconds by phase, with the peers' names; whatever PPO does not tell apart is training."""
    apart = {"generate": "seconds/generate", "score": "seconds/score", "ref": "seconds/measure"}
    phases = {name: sum(line.get(key, 0.0) for line in metrics) for name, key in apart.items()}
    return {
        **{name: round(value, 2) for name, value in phases.items()},
        "train": round(train_s - sum(phases.values()), 2),
    }


def check_lengths(args: argparse.Namespace, metrics: Sequence[Mapping[str, float]]) -> None:
    """Refuse a measurement in which an answer had another length than asked for."""
    lengths = {line["answer_length"] for line in metrics if "answer_length" in line}
    if args.stage in ONLINE and lengths != {float(args.new_tokens)}:
        raise BenchmarkError(f"answers should have {args.new_tokens} tokens, the run had means of {sorted(lengths)}")


def check_nothing_cut(folder: Path) -> None:
    """Refuse a measurement in which duiqi cut or dropped a row: the others work on all of them."""
    notes = json.loads((folder / "manifest.json").read_text(encoding="utf-8")).get("notes", [])
    if found := [note for note in notes if " cut at " in note or "dropped" in note]:
        raise BenchmarkError(f"duiqi did not do the whole work: {found[0]}")


def describe(
    args: argparse.Namespace, job: Job, settings: Mapping[str, Any], result: StageResult, start_rss: float
) -> dict[str, Any]:
    """The JSON line."""
    wall_s, peak = round(time.monotonic() - BEGIN, 2), peak_memory_mb()  # before the plan is made
    folder = output_folder(args)
    metrics = read_metrics(folder)
    check_lengths(args, metrics)
    check_nothing_cut(folder)
    train_s = result.totals.train_runtime
    losses = [line["loss"] for line in metrics if "loss" in line]
    return {
        "stage": args.stage,
        "peer": "duiqi",
        "size": args.size,
        "dtype": args.dtype,
        "grad_ckpt": bool(args.grad_ckpt),
        "note": args.note,
        "wall_s": wall_s,
        "train_s": round(train_s, 2),
        "samples": job.num_samples,
        "real_tokens": job.real_tokens,
        "padded_tokens": job.real_tokens,
        "tokens_per_s": round(job.real_tokens / train_s, 1),
        "peak_rss_mb": round(peak),
        "start_rss_mb": round(start_rss),
        "phases": phases_of(metrics, train_s),
        "final_loss": losses[-1] if losses else None,
        "detail": {},
        "calls": {"steps": result.steps},
        "forward_tokens": {},
        "batch_size": args.batch_size,
        "threads": args.threads,
        **planned_memory(args, job, settings, peak - start_rss),
        "queue_wait_s": round(queue_seconds(), 2),
        "versions": {name: version(name) for name in ("torch", "transformers", "peft", "duiqi")},
    }


def planned_memory(args: argparse.Namespace, job: Job, settings: Mapping[str, Any], used_mb: float) -> dict[str, float]:
    """What PPO should need (`duiqi plan`, libraries left out), and how many times that it took: the peak less what was
    there before the model.
    """
    if args.stage not in ONLINE:
        return {}
    from duiqi.planning.plan import make_plan
    from duiqi.settings.resolve import resolve

    plan = make_plan(job.stage, resolve(job.stage, values=settings), libraries=0)  # type: ignore[call-overload]
    planned_mb = plan.memory.peak / 2**20
    return {"planned_mb": round(planned_mb), "peak_over_planned": round(used_mb / planned_mb, 2)}


def main() -> None:
    args = parse_arguments()
    os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = str(args.threads)
    os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false", CUDA_VISIBLE_DEVICES="")
    job = JOBS[args.stage](args)
    if args.stage in ONLINE:
        make_reward(args)
    prepare_memory(args)

    import torch

    import duiqi
    import duiqi.stages.launch  # so that start_rss_mb holds all imports
    from duiqi.errors import UserError

    torch.set_num_threads(args.threads)
    settings, left_out = split_wishes(job, args)
    start_rss = peak_memory_mb()
    try:
        result = duiqi.run(job.stage, **settings)  # type: ignore[arg-type]
    except UserError as error:
        raise BenchmarkError(f"duiqi refused the work: {error}") from error
    line = describe(args, job, settings, result, start_rss) | ({"left_out": left_out} if left_out else {})
    text = json.dumps(line, ensure_ascii=False)
    if args.out:
        with args.out.open("a", encoding="utf-8") as file:
            file.write(text + "\n")
    print(text, flush=True)


if __name__ == "__main__":
    main_guard(main)
