"""TRL's GRPO on the fixed work, with any number of answers to a prompt (the shared script is fixed at four).

It takes the flags of the peers' scripts and `--answers`, and uses TRL's public interface and the counters of the
peers' `common.py`, which must be importable:

    PYTHONPATH=../shared/bench python benchmarks/peer_grpo.py --answers 8

A second reward function of weight 0 sees every answer; that is how lengths are counted and checked.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any


def take_answers(argv: list[str]) -> tuple[int, list[str]]:
    """The value of `--answers`, and the other flags, which `common.py` reads from sys.argv."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--answers", type=int, default=8)
    found, rest = parser.parse_known_args(argv)
    return found.answers, rest


ANSWERS, sys.argv[1:] = take_answers(sys.argv[1:])

try:
    import common  # type: ignore[import-not-found]
except ImportError:
    sys.exit("error: common.py is not importable: set PYTHONPATH to the folder of the peers' scripts")

args = common.flags("grpo", lr=1e-5)

import torch  # noqa: E402 - common.flags sets the threads in the environment before torch is there
from datasets import Dataset  # noqa: E402
from peft import LoraConfig, PeftModelForCausalLM  # noqa: E402
from transformers import (  # noqa: E402
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedTokenizerBase,
)
from trl import GRPOConfig, GRPOTrainer  # type: ignore[attr-defined]  # noqa: E402


def counting_reward(lengths: list[tuple[int, int]], tokenizer: PreTrainedTokenizerBase) -> Any:
    """A reward function that gives nothing and notes (prompt tokens, answer tokens) of every answer."""

    def note_lengths(prompts: list[Any], completion_ids: list[list[int]], **_: Any) -> list[float]:
        for prompt, answer in zip(prompts, completion_ids, strict=True):
            assert len(answer) == args.new_tokens, len(answer)
            ids = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=False)
            lengths.append((len(ids), len(answer)))
        return [0.0] * len(prompts)

    return note_lengths


def configuration(pad_token_id: int) -> GRPOConfig:
    """The work: whole rollouts divided into updates of `batch_size` answers, several epochs, no checkpointing."""
    updates = args.rollout // args.batch_size
    return GRPOConfig(
        output_dir="build/bench/out/trl_grpo",
        use_cpu=True,
        bf16=args.dtype != "fp32",
        learning_rate=args.lr,
        per_device_train_batch_size=args.batch_size,
        gradient_accumulation_steps=1,
        steps_per_generation=updates,
        num_iterations=args.ppo_epochs,
        num_generations=ANSWERS,
        max_steps=args.iterations * updates * args.ppo_epochs,
        max_completion_length=args.new_tokens,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        beta=0.05,
        reward_weights=[1.0, 0.0],
        generation_kwargs={"min_new_tokens": args.new_tokens, "suppress_tokens": [pad_token_id]},
        gradient_checkpointing=bool(args.grad_ckpt),
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        logging_steps=4,
        seed=args.seed,
        dataloader_pin_memory=False,
    )


def main() -> None:
    meter = common.Meter()
    meter.instrument()  # a PEFT forward without gradient is the reference's or the old policy's
    tokenizer = AutoTokenizer.from_pretrained(args.policy, padding_side="left")
    work = common.rows(args, "prompts")[: args.iterations * args.rollout // ANSWERS]
    dtype = torch.bfloat16 if args.dtype == "bf16" else torch.float32
    policy = AutoModelForCausalLM.from_pretrained(args.policy, dtype=dtype)
    reward = AutoModelForSequenceClassification.from_pretrained(args.reward, num_labels=1, dtype=dtype)
    PeftModelForCausalLM.generate = meter.timed("generate", PeftModelForCausalLM.generate)
    reward.forward = meter.timed("score", reward.forward)
    lengths: list[tuple[int, int]] = []
    trainer = GRPOTrainer(
        model=policy,
        args=configuration(tokenizer.pad_token_id),
        processing_class=tokenizer,
        reward_funcs=[reward, counting_reward(lengths, tokenizer)],
        train_dataset=Dataset.from_list([{"prompt": row["prompt"]} for row in work]),
        peft_config=LoraConfig(
            r=args.lora_r, lora_alpha=2 * args.lora_r, target_modules="all-linear", task_type="CAUSAL_LM"
        ),
    )
    trainer.train()
    done = {name: meter.seconds[name] for name in ("generate", "score", "ref")}
    done["train"] = meter.train_s - sum(done.values())
    common.report(
        args,
        meter,
        "grpo",
        "trl",
        len(lengths),
        sum(prompt + answer for prompt, answer in lengths),
        meter.tokens["train_padded"] // args.ppo_epochs,
        done,
        libs=("trl",),
        new_tokens=sum(answer for _, answer in lengths),
        iterations=args.iterations,
        answers=ANSWERS,
    )


if __name__ == "__main__":
    main()
