"""do_eval and do_predict of the old scripts: answers to a dataset are `duiqi generate`, scores are `duiqi score`."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path

from duiqi.errors import SettingsError
from duiqi.legacy.dialect import Line, Old, Trouble
from duiqi.legacy.old_checkpoints import Checkpoint, checkpoint_of
from duiqi.legacy.rules import NoEffect, Refused, Rule, Together

SETTINGS_OF: dict[str, tuple[str, ...]] = {
    "generate": (
        "model",
        "file",
        "output_file",
        "dataset_dir",
        "max_samples",
        "batch_size",
        "template",
        "system",
        "source_prefix",
        "max_new_tokens",
        "min_new_tokens",
        "temperature",
        "top_p",
        "top_k",
        "repetition_penalty",
        "num_repeats",
        "seed",
        "dtype",
        "device",
    ),
    "score": ("reward_model", "file", "output_file", "dataset_dir", "max_samples", "batch_size", "dtype", "device"),
    "export": ("model", "output_dir", "dtype", "max_shard_size", "prompts", "device"),
}
"""The settings of the commands that are no stage, as far as old commands become them."""

ANSWERING_FLAGS: dict[str, Rule] = {
    **dict.fromkeys(
        ("do_sample", "temperature", "top_p", "top_k", "repetition_penalty", "max_new_tokens", "max_length"), Together()
    ),
    "predict_with_generate": Together(),
    "num_beams": Refused("answers are sampled or greedy", "leave it out", unless=("none", "1")),
    "length_penalty": NoEffect("it acts on beams alone"),
    "ignore_eos_token": Refused("an answer ends at its end token", "leave it out"),
}
_AT_THE_MODEL = NoEffect("the files of the adapter or model say it")
ASKED_OTHERWISE: dict[str, NoEffect | Refused] = {
    "quantization_bit": Refused("what answers or scores is not quantised", "leave it out"),
    "max_source_length": Refused(
        "what answers or scores takes no length of prompts", "leave it out, and shorten long prompts in the file"
    ),
    "cutoff_len": NoEffect("what answers or scores takes no length of rows"),
    **dict.fromkeys(("finetuning_type", "lora_target", "pre_seq_len", "prefix_projection"), _AT_THE_MODEL),
    **dict.fromkeys(("template", "system", "source_prefix"), NoEffect("the reward model's own is taken")),
}
"""Flags that meant something to an old command that trained nothing, and are no setting of what answers or scores."""
_SAMPLED = {"temperature": "0.95", "top_p": "0.7"}


def chosen_command(old: Old, stage: str) -> str:
    """The stage, or what answers and scores instead where the old command trains nothing.

    Raises:
        SettingsError: It only evaluates something that no command here evaluates alone.
    """
    if old.is_on("do_train") or not (old.is_on("do_eval") or old.is_on("do_predict")):
        return stage
    if stage == "sft":
        return "generate"
    if stage == "rm":
        return "score"
    raise SettingsError(
        f"{stage} is not evaluated alone here",
        where="--do_eval" if old.is_on("do_eval") else "--do_predict",
        remedy="give the training run eval_dataset or val_size, or ask a finished one with `duiqi generate`",
    )


def answering(old: Old, command: str) -> Iterator[Line | Trouble]:
    """The model, the file of prompts and the file of answers of a command that trains nothing."""
    sampling = old.says("do_sample", "temperature", "top_p", "top_k", "repetition_penalty", "max_new_tokens")
    if command == "generate":
        yield from _sampled(old)
    elif command == "ppo":
        for name in sampling:
            if name == "do_sample":
                yield Line((name,), note="PPO samples its answers")
            elif name != "max_new_tokens" or not old.says("max_target_length"):
                yield Line((name,), name, old.get(name))
            else:
                yield Line((name,), note="max_target_length is said too")
    else:
        for name in sampling:
            yield Line((name,), note=f"no answers are sampled in `duiqi {command}`")
    if old.says("predict_with_generate"):
        does = command == "generate"
        note = "that is what `duiqi generate` does" if does else f"`duiqi {command}` samples nothing to evaluate"
        yield Line(("predict_with_generate",), note=note)
    if old.says("max_length"):
        yield Line(("max_length",), note="max_new_tokens counts the answer alone, and wins")
    if command in ("generate", "score"):
        yield from _files(old, command)


def _sampled(old: Old) -> Iterator[Line]:
    names = ("max_new_tokens", "max_target_length")
    yield Line(old.says(*names), "max_new_tokens", old.first(*names) or "512")
    if old.says("do_sample") and not old.is_on("do_sample"):
        yield Line(("do_sample",), "temperature", "0", "always the most likely token")
        return
    if old.says("do_sample"):
        yield Line(("do_sample",), note="a temperature above 0 samples")
    for name in ("temperature", "top_p", "top_k", "repetition_penalty"):
        value = old.get(name) or _SAMPLED.get(name, "")
        if value:
            yield Line(old.says(name), name, value, "" if old.says(name) else "as the old code sampled")


def _files(old: Old, command: str) -> Iterator[Line | Trouble]:
    yield from _model(old, "model" if command == "generate" else "reward_model")
    dataset = old.first("eval_dataset", "dataset")
    yield Line(old.says("dataset", "eval_dataset"), "file", dataset)
    yield Line(old.says("dataset_dir"), "dataset_dir", old.get("dataset_dir") or "data")
    target = str(Path(old.get("output_dir") or "results") / "generated_predictions.jsonl")
    answered = "prompt, predict and label; with duiqi[metrics] BLEU and ROUGE beside it"
    note = answered if command == "generate" else "scores of every row"
    yield Line(old.says("output_dir"), "output_file", target, note)
    if old.get("max_samples"):
        yield Line(old.says("max_samples"), "max_samples", old.get("max_samples"))
    if old.says("per_device_eval_batch_size"):
        yield Line(("per_device_eval_batch_size",), "batch_size", old.get("per_device_eval_batch_size"))


def _model(old: Old, setting: str) -> Iterator[Line | Trouble]:
    """Who answers or scores: the base, a run, a full model, or the base with an adapter of another trainer."""
    adapters = old.says("checkpoint_dir", "adapter_name_or_path")
    flags = (*adapters, *old.says("model_name_or_path"))
    base = old.get("model_name_or_path")
    named = old.first("checkpoint_dir", "adapter_name_or_path").split(",")
    checkpoints = [each.strip() for each in named if each.strip()]
    if not checkpoints:
        yield Line(flags, setting, base)
        return
    *below, last = checkpoints
    found = checkpoint_of(last)
    if below and found in (Checkpoint.ADAPTER, Checkpoint.MODEL):
        yield _below_is_unsaid(adapters, base, below, last, found)
    match found:
        case Checkpoint.ADAPTER:
            yield Line(flags, setting, f"{base},{last}" if base else last, "the base, and the adapter on it")
        case Checkpoint.MODEL:
            yield Line(flags, setting, last, "a full model is its own base")
        case Checkpoint.RUN | Checkpoint.ABSENT:
            yield Line(flags, setting, last, "a run brings its base and what it stands on")


def _below_is_unsaid(flags: tuple[str, ...], base: str, below: list[str], last: str, found: Checkpoint) -> Trouble:
    """The refusal of a list whose last member does not bring what stands below it."""
    first, *others = below
    if found is Checkpoint.MODEL:
        return Trouble(flags, f"{last} is a full model, and stands on no other", f"name it alone: {last}")
    merged = first if checkpoint_of(first) in (Checkpoint.RUN, Checkpoint.MODEL) or not base else f"{base},{first}"
    export = shlex.join(["duiqi", "export", merged, "--output_dir", "MERGED"])
    return Trouble(
        flags,
        f"{last} does not say that it stands on {', '.join(below)}, and only one adapter can be named with its base",
        f"merge the first one with `{export}`, then say --model_name_or_path MERGED --{flags[0]} "
        f"{','.join([*others, last])}",
    )
