"""ChatGLM-Efficient-Tuning: its scripts of May 2023 (also those of ChatGLM-6B-RLHF), and its last version."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from duiqi.errors import SettingsError
from duiqi.legacy.answering import ANSWERING_FLAGS, answering, chosen_command
from duiqi.legacy.dialect import Dialect, Line, Old, Trouble
from duiqi.legacy.old_checkpoints import Checkpoint, checkpoint_of
from duiqi.legacy.rules import Becomes, NoEffect, Refused, Rule, Together, same
from duiqi.legacy.trainer import READINGS, TRAINER, TRAINER_DEFAULTS

LAYERS = 28
"""Of every ChatGLM-6B."""
_QKV = {"qkv": "query_key_value"}
_REMOTE = NoEffect("the networks of ChatGLM are duiqi's own: no code of the model runs")

MODEL: dict[str, Rule] = {
    **same("model_name_or_path", "quantization_bit", "reward_model"),
    "checkpoint_dir": Together(),
    "resume_lora_training": Together(),
    "config_name": Refused("the base has one configuration, its own", "leave it out"),
    "tokenizer_name": Refused("the tokenizer is that of the base", "copy its files into the directory of the base"),
    "cache_dir": Refused("the hub's own cache is used", "set the environment variable HF_HOME"),
    "use_fast_tokenizer": NoEffect("the tokenizer is read as its files are"),
    "model_revision": _REMOTE,
    "use_auth_token": Refused("no key is taken from a command line", "log in with `hf auth login`"),
}
DATA: dict[str, Rule] = {
    **same("dataset", "dataset_dir", "eval_dataset"),
    "max_samples": Becomes("max_samples", "chosen by seed; the old code took the first rows of each dataset"),
    "split": Refused("the split is said in dataset_info.json", "write `split` into the dataset's entry", ("train",)),
    "preprocessing_num_workers": NoEffect("rows are prepared in this process"),
    **dict.fromkeys(("max_source_length", "max_target_length"), Together()),
    "num_beams": Refused("answers are sampled or greedy", "leave it out", unless=("none", "1")),
    "eval_num_beams": Refused("answers are sampled or greedy", "leave it out", unless=("none", "1")),
    "ignore_pad_token_for_loss": Refused("padding is never learned", "leave it out", unless=("true", "yes", "1")),
    "source_prefix": Becomes("source_prefix", "the same in every stage, in chat and in generate"),
}
TUNING: dict[str, Rule] = {
    "finetuning_type": Becomes("finetuning_type"),
    "lora_target": Together(),
    **same("lora_rank", "lora_alpha", "lora_dropout", "pre_seq_len", "prefix_projection", "plot_loss"),
    "num_layer_trainable": Becomes("freeze_trainable_layers"),
    "name_module_trainable": Becomes("freeze_trainable_modules", words=_QKV),
}
LAST: dict[str, Rule] = {
    "stage": Together(),
    **same("quantization_type", "double_quantization"),
    "dev_ratio": Becomes("val_size"),
    "val_size": Becomes("val_size"),
    "compute_dtype": Refused("it follows from fp16 and bf16", "say fp16 or bf16"),
    "padding_side": NoEffect("rows are packed, or padded on the side the network needs"),
}

FLAGS_OF_MAY = {**TRAINER, **MODEL, **DATA, **TUNING, **ANSWERING_FLAGS}
FLAGS_OF_LAST = {**FLAGS_OF_MAY, **LAST}

DEFAULTS_OF_MAY: dict[str, str] = {
    **TRAINER_DEFAULTS,
    "model_name_or_path": "THUDM/chatglm-6b",
    "dataset": "alpaca_zh",
    "finetuning_type": "lora",
    "lora_rank": "8",
    "lora_alpha": "32",
    "lora_dropout": "0.1",
    "lora_target": "query_key_value",
    "num_layer_trainable": "3",
    "name_module_trainable": "mlp",
    "pre_seq_len": "16",
    "resume_lora_training": "true",
    "max_source_length": "512",
    "max_target_length": "512",
}
DEFAULTS_OF_LAST = {**DEFAULTS_OF_MAY, "pre_seq_len": "64"}


def lineage(old: Old, command: str) -> Iterator[Line | Trouble]:
    """checkpoint_dir and resume_lora_training: from which adapters, and whether a new one is trained above them."""
    if command in ("generate", "score"):
        return
    switch = old.says("resume_lora_training")
    if not old.get("checkpoint_dir"):
        if switch:
            yield Line(switch, note="no effect without checkpoint_dir")
        return
    if old.get("finetuning_type") == "full":
        yield Line(("checkpoint_dir",), "model_name_or_path", old.get("checkpoint_dir"), "a full model is its own base")
        return
    notes = ["the adapter's own files say its shape"]
    if any((Path(each.strip()) / "finetuning_args.bin").is_file() for each in old.get("checkpoint_dir").split(",")):
        notes.append("finetuning_args.bin is not opened, because a pickle can run programs")
    yield Line(("checkpoint_dir",), "adapter_name_or_path", old.get("checkpoint_dir"), "; ".join(notes))
    is_new = not old.is_on("resume_lora_training") and bool(old.get("resume_lora_training"))
    if is_new:
        yield Line(switch, "create_new_adapter", "true", "a new adapter above them")
    elif switch:
        yield Line(switch, note="a copy of the last is trained on; itself it stays as it was", is_so_anyway=True)


def lengths(old: Old, command: str) -> Iterator[Line | Trouble]:
    """The longest prompt and the longest answer."""
    names = ("max_source_length", "max_target_length")
    if old.is_inline or command not in ("sft", "rm", "dpo", "ppo"):
        return
    source, target = (old.count(name) for name in names)
    yield Line(old.says(*names), "cutoff_len", str(source + target), "both together")
    yield Line(old.says(names[0]), names[0], str(source), "the oldest part is cut; the old code cut the end")
    goal = "max_new_tokens" if command == "ppo" else names[1]
    note = "the old code drew a length between half of it and it" if command == "ppo" else "with its end token"
    yield Line(old.says(names[1]), goal, str(target), note)


def target(old: Old, _command: str) -> Iterator[Line | Trouble]:
    """lora_target, whose names are whole parts of a path here and were the ends of one."""
    text = old.get("lora_target")
    if not text:
        return
    yield Line(old.says("lora_target"), "lora_target", text, endings_note(text, LAYERS))


def endings_note(text: str, layers: int) -> str:
    """What PEFT of 2023 took a name for besides.

    >>> endings_note("2.attention.query_key_value", 28)
    'exactly these layers; PEFT of 2023 also took those whose number ends so: 12, 22'
    """
    firsts = {name.strip().split(".")[0] for name in text.split(",")}
    others = sorted(
        {n for first in firsts if first.isdigit() for n in range(layers) if str(n).endswith(first) and n != int(first)}
    )
    more = [n for n in others if str(n) not in firsts]
    if not more:
        return ""
    return f"exactly these layers; PEFT of 2023 also took those whose number ends so: {', '.join(map(str, more))}"


def template(old: Old, command: str) -> Iterator[Line | Trouble]:
    """What the old code wrote around a prompt, without being asked."""
    if old.is_inline:
        return
    name = template_of(old.first("model_name_or_path"))
    note = "as the old code wrote prompts" if command not in ("generate", "score") else "as it was trained"
    last = old.get("checkpoint_dir").split(",")[-1].strip()
    if command == "score" or (command == "generate" and last and not _is_of_another_trainer(last)):
        return  # a run knows its template
    yield Line((), "template", name, note)


def _is_of_another_trainer(checkpoint: str) -> bool:
    return checkpoint_of(checkpoint) in (Checkpoint.ADAPTER, Checkpoint.MODEL)


def template_of(model: str) -> str:
    """The template that belongs to a ChatGLM.

    >>> template_of("THUDM/chatglm-6b"), template_of("models/chatglm2-6b")
    ('chatglm', 'chatglm2')
    """
    if "chatglm3" in model.lower():
        return "chatglm3"
    config = Path(model).expanduser() / "config.json"
    if config.is_file():
        try:
            return "chatglm2" if "padded_vocab_size" in json.loads(config.read_text(encoding="utf-8")) else "chatglm"
        except (OSError, ValueError):
            raise SettingsError("cannot be read", where=str(config), remedy="copy the base model again") from None
    return "chatglm2" if "chatglm2" in model.lower() else "chatglm"


def ppo_of_may(old: Old, command: str) -> Iterator[Line | Trouble]:
    """PPO as TRL 0.4 did it under the scripts of May 2023."""
    if command != "ppo" or old.is_inline:
        return
    rows, accumulation = old.count("per_device_train_batch_size"), old.count("gradient_accumulation_steps")
    names = old.says("per_device_train_batch_size", "gradient_accumulation_steps")
    answers = max(rows // 4, 1) * accumulation * old.processes
    sampled = max(rows * old.processes, answers)
    yield Line(names, "rollout_batch_size", str(sampled), "answers sampled before learning from them")
    yield Line(
        names, "mini_batch_size", str(answers), "answers of one optimizer step: a quarter of the batch, accumulated"
    )
    yield from trl_ppo(old)
    yield Line(old.says("lr_scheduler_type"), "lr_scheduler_type", "constant", "the old code ignored this flag in PPO")
    yield Line(old.says("weight_decay"), "weight_decay", "0.01", "torch's own, whatever this flag said")
    for name in old.says("warmup_ratio", "warmup_steps"):
        yield Line((name,), note="the old code ignored this flag in PPO")


def ppo_of_last(old: Old, command: str) -> Iterator[Line | Trouble]:
    """PPO as the last version did it."""
    if command != "ppo":
        return
    names = old.says("per_device_train_batch_size", "gradient_accumulation_steps")
    if old.is_inline and not names:
        return
    answers = old.count("per_device_train_batch_size") * old.count("gradient_accumulation_steps") * old.processes
    yield Line(names, "rollout_batch_size", str(answers), "answers sampled before learning from them")
    yield Line(names, "mini_batch_size", str(answers), "answers of one optimizer step")
    if not old.is_inline:
        yield from trl_ppo(old)


def trl_ppo(_old: Old) -> Iterator[Line]:
    """What TRL did of itself in 2023, where it differs from duiqi."""
    settings = {
        "ppo_epochs": "1",
        "init_kl_coef": "0.2",
        "kl_target": "6",
        "clip_range_high": "0.2",
        "dual_clip": "none",
        "score_norm": "false",
        "score_clip": "0",
        "missing_eos_penalty": "0",
    }
    for name, value in settings.items():
        yield Line((), name, value, "as TRL did of itself")


def remarks(_old: Old, command: str) -> Sequence[str]:
    """What differs although the settings are the same."""
    said = []
    if command == "ppo":
        said.append(
            "KL is measured against the policy as it begins (with checkpoint_dir: the SFT model). The old code "
            "switched the adapter off for it, so with resume_lora_training it pulled the policy back to the bare base."
        )
        said.append(
            "The old critic was overwritten at every step (it became zero, or the reward head); here it learns."
        )
    if command == "rm":
        said.append(
            "The score is read at the end of the answer, whatever the padding; ties count half in the accuracy."
        )
    return said


def command_of_last(old: Old) -> str:
    """The duiqi command of `train_bash.py --stage`."""
    stage = old.get("stage") or "sft"
    stages = {"sft": "sft", "rm": "rm", "ppo": "ppo", "dpo": "dpo", "pt": "pretrain"}
    if stage not in stages:
        raise SettingsError(f"there is no stage {stage!r}", where="--stage", remedy="one of sft, rm, ppo")
    return chosen_command(old, stages[stage])


def stage_line(old: Old, command: str) -> Iterator[Line | Trouble]:
    """--stage, which is the command here."""
    if old.says("stage"):
        yield Line(("stage",), note=f"the command: duiqi {command}", is_so_anyway=True)


def tuning_type(old: Old, command: str) -> Iterator[Line | Trouble]:
    """finetuning_type none, which trained nothing."""
    if old.get("finetuning_type") == "none" and command not in ("generate", "score"):
        yield Trouble(("finetuning_type",), "with none there is nothing to train", "set lora, freeze, p_tuning or full")


_COMMON = (*READINGS, lineage, target, lengths, template, tuning_type, answering)
CHATGLM_READINGS = (*_COMMON, ppo_of_last, stage_line)


def _of_may(script: str, stage: str) -> Dialect:
    return Dialect(
        f"ChatGLM-Efficient-Tuning of May 2023, {script}",
        FLAGS_OF_MAY,
        lambda old: chosen_command(old, stage),
        DEFAULTS_OF_MAY,
        (*_COMMON, ppo_of_may),
        remarks,
    )


OF_MAY = {
    script: _of_may(script, stage)
    for script, stage in {
        "finetune.py": "sft",
        "train_sft.py": "sft",
        "train_rm.py": "rm",
        "train_ppo.py": "ppo",
    }.items()
}
OF_LAST = Dialect(
    "ChatGLM-Efficient-Tuning, last version",
    FLAGS_OF_LAST,
    command_of_last,
    DEFAULTS_OF_LAST,
    CHATGLM_READINGS,
    remarks,
)
