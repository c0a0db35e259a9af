"""beyondguo/LLM-Tuning: the scripts of its RLHF folder and of ChatBaichuan-HC3."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from duiqi.errors import SettingsError
from duiqi.legacy.dialect import Dialect, Line, Old, Trouble
from duiqi.legacy.rules import Becomes, NoEffect, Refused, Rule, Together, same
from duiqi.legacy.trainer import READINGS, TRAINER, TRAINER_DEFAULTS

_RANKINGS = "rlhf-reward-single-round-trans_chinese"
_TEXT = NoEffect("duiqi reads the text itself, so nothing is tokenised beforehand")


SFT_FLAGS: dict[str, Rule] = {
    **TRAINER,
    "tokenized_dataset": Becomes(
        "dataset", "the text itself: dataset_info.json must name its file, or give dataset=FILE before the --"
    ),
    "model_path": Becomes("model_name_or_path"),
    "model_checkpoint": Becomes("model_name_or_path"),
    "lora_rank": Becomes("lora_rank"),
    "previous_lora_weights": Becomes("adapter_name_or_path", "a copy of it is trained on"),
    "no_prompt_loss": Refused(
        "prompts are never learned", "leave it out, or use `duiqi pretrain`", unless=("true", "1")
    ),
    "train_size": Becomes("max_samples"),
    "eval_size": Becomes("val_size"),
}
SFT_DEFAULTS = {
    **TRAINER_DEFAULTS,
    "lora_rank": "8",
    "lora_alpha": "32",
    "lora_dropout": "0.1",
    "lora_target": "W_pack",
    "model_path": "baichuan-inc/baichuan-7B",
    "template": "raw",
    "cutoff_len": "2040",
}

RM_FLAGS: dict[str, Rule] = {
    **TRAINER,
    "model_name": Becomes("model_name_or_path"),
    "tokenizer_name": Refused("the tokenizer is that of the base", "copy its files into the directory of the base"),
    "lora_target_models": Together(),
    **dict.fromkeys(("train_subset", "eval_subset"), Together()),
    "max_length": Becomes("cutoff_len", "longer pairs are cut here; the old code dropped them"),
    "eval_first_step": NoEffect("the first evaluation is at eval_steps"),
}
RM_DEFAULTS = {
    **TRAINER_DEFAULTS,
    "per_device_train_batch_size": "4",
    "learning_rate": "2e-5",
    "weight_decay": "0.001",
    "num_train_epochs": "1",
    "eval_steps": "500",
    "save_steps": "500",
    "save_total_limit": "5",
    "logging_steps": "10",
    "max_length": "512",
    "bf16": "true",
    "model_name": "gpt2",
}

PPO_FLAGS: dict[str, Rule] = {
    "base_model_name": Becomes("model_name_or_path"),
    "tokenizer_name": Refused("the tokenizer is that of the base", "copy its files into the directory of the base"),
    "merged_sft_model_path": NoEffect("the reference is the SFT adapter on the base: no merged copy is needed"),
    "sft_model_lora_path": Becomes("adapter_name_or_path", "a copy of it is trained on"),
    "reward_model_lora_path": Becomes("reward_model"),
    "log_with": Becomes("report_to"),
    "learning_rate": Becomes("learning_rate"),
    "output_max_length": Becomes("max_new_tokens", "the old code ignored it and drew up to 512 tokens"),
    **dict.fromkeys(("batch_size", "mini_batch_size", "gradient_accumulation_steps"), Together()),
    "ppo_epochs": Becomes("ppo_epochs"),
    "adafactor": Refused("AdamW is the optimiser", "leave it out"),
    **dict.fromkeys(("early_stopping", "target_kl"), Together()),
    "reward_baseline": Becomes("score_baseline"),
    "batched_gen": NoEffect("answers are always sampled in batches"),
    "save_freq": Becomes("save_steps"),
    "output_dir": Becomes("output_dir"),
    "seed": Becomes("seed"),
    "steps": Becomes("max_steps"),
    "init_kl_coef": Becomes("init_kl_coef"),
    "adap_kl_ctrl": Becomes("kl_target", words={"true": "6", "false": "0"}),
    **same("max_steps", "dataset", "dataset_dir"),
}
PPO_DEFAULTS = {
    "learning_rate": "1.41e-5",
    "output_max_length": "128",
    "mini_batch_size": "1",
    "batch_size": "32",
    "ppo_epochs": "4",
    "gradient_accumulation_steps": "4",
    "target_kl": "0.1",
    "reward_baseline": "0",
    "output_dir": "runs/ppo",
    "seed": "0",
    "steps": "20000",
    "init_kl_coef": "0.5",
    "adap_kl_ctrl": "false",
}
TOKENIZE_FLAGS: dict[str, Rule] = dict.fromkeys(
    ("model_checkpoint", "input_file", "prompt_key", "target_key", "save_name", "max_seq_length", "skip_overlength"),
    _TEXT,
)


def sft_shape(old: Old, _command: str) -> Iterator[Line | Trouble]:
    """What baichuan_lora_tuning.py had in its code."""
    for name in ("lora_alpha", "lora_dropout", "lora_target", "template", "cutoff_len"):
        yield Line(
            (), name, old.get(name), "written into the old code" if name != "template" else "rows have 问： and 答："
        )


def rm_shape(old: Old, _command: str) -> Iterator[Line | Trouble]:
    """What reward_modeling.py had in its code, and the flags that it joined with bars."""
    dataset = old.get("dataset_name") or _RANKINGS
    yield Line(
        old.says("dataset_name"), "dataset", dataset, "" if old.says("dataset_name") else "written into the old code"
    )
    for name, value in {"lora_rank": "4", "lora_alpha": "32", "lora_dropout": "0.1", "template": "zh_qa"}.items():
        yield Line((), name, value, "written into the old code")
    targets = old.get("lora_target_models")
    if targets:
        yield Line(old.says("lora_target_models"), "lora_target", targets.replace("|", ","), "commas instead of bars")
    for name, setting in (("train_subset", "max_samples"), ("eval_subset", "val_size")):
        if old.says(name):
            is_all = old.get(name) == "-1"
            yield Line(
                (name,), "" if is_all else setting, "" if is_all else old.get(name), "all rows" if is_all else ""
            )
    if not old.says("output_dir"):
        yield Line((), "output_dir", "runs/rm", "the old code made a name of the others")
    yield Line((), "eval_steps", old.get("eval_steps"))


def ppo_shape(old: Old, _command: str) -> Iterator[Line | Trouble]:
    """Batches of TRL, and what rl_training.py had in its code."""
    batches = old.says("mini_batch_size", "gradient_accumulation_steps")
    rows = old.count("batch_size") * old.processes
    answers = old.count("mini_batch_size") * old.count("gradient_accumulation_steps") * old.processes
    yield Line(old.says("batch_size"), "rollout_batch_size", str(max(rows, answers)), "answers sampled at once")
    yield Line(batches, "mini_batch_size", str(answers), "answers of one optimizer step")
    stops = old.says("early_stopping", "target_kl")
    yield Line(stops, "target_kl", old.get("target_kl") if old.is_on("early_stopping") else "0")
    for name, value in {
        "template": "zh_qa",
        "max_source_length": "512",
        "repetition_penalty": "1.1",
        "score_norm": "false",
        "score_clip": "0",
        "missing_eos_penalty": "0",
        "clip_range_high": "0.2",
        "dual_clip": "none",
    }.items():
        yield Line((), name, value, "written into the old code")


def sft_remarks(_old: Old, _command: str) -> Sequence[str]:
    """What differs in SFT."""
    return (
        "The old code learned the prompts too, and cut rows lost their end; here answers and their end are learned.",
    )


def ppo_remarks(_old: Old, _command: str) -> Sequence[str]:
    """What differs in PPO."""
    return (
        "KL is measured against the SFT adapter. The old code loaded a merged copy for it, and TRL of that time took "
        "the bare base instead.",
        "An empty answer is impossible (min_new_tokens: 1), which is what begin_suppress_tokens was for.",
    )


def _tokenize(old: Old) -> str:
    rows = f"data/{old.get('input_file')}" if old.get("input_file") else "the file of rows"
    length = old.get("max_seq_length") or "2040"
    columns = {"prompt": old.get("prompt_key") or "prompt", "response": old.get("target_key") or "target"}
    raise SettingsError(
        "nothing is tokenised beforehand here: `duiqi sft` reads the text",
        where="tokenize_dataset_rows.py",
        remedy=f"leave this step out; train with dataset={rows} cutoff_len={length}, and say in dataset_info.json that "
        f'"columns" are {columns}',
    )


SFT = Dialect(
    "LLM-Tuning, baichuan_lora_tuning.py", SFT_FLAGS, lambda _: "sft", SFT_DEFAULTS, (*READINGS, sft_shape), sft_remarks
)
RM = Dialect("LLM-Tuning, reward_modeling.py", RM_FLAGS, lambda _: "rm", RM_DEFAULTS, (*READINGS, rm_shape))
PPO = Dialect("LLM-Tuning, rl_training.py", PPO_FLAGS, lambda _: "ppo", PPO_DEFAULTS, (ppo_shape,), ppo_remarks)
TOKENIZE = Dialect("LLM-Tuning, tokenize_dataset_rows.py", TOKENIZE_FLAGS, _tokenize)
