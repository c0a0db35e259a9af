"""TRL's stack_llama and stack_llama_2."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from duiqi.legacy import llm_tuning
from duiqi.legacy.dialect import Dialect, Line, Old, Reading, Trouble
from duiqi.legacy.rules import Becomes, NoEffect, Refused, Rule, Together, same
from duiqi.legacy.trainer import READINGS, TRAINER, cadence, precision, resuming, rows_of_a_step

_QA = "Question: ... Answer: as there"
_KEPT = NoEffect("rows are packed into micro-batches without padding, and a step counts rows")
_SHUFFLED = NoEffect("all rows are read and shuffled by seed")

SFT_FLAGS: dict[str, Rule] = {
    "model_path": Becomes("model_name_or_path"),
    "dataset_name": Together(),
    **dict.fromkeys(
        ("subset", "split"), Refused("dataset_info.json says it", "write `subset` and `split` into the entry")
    ),
    "size_valid_set": Becomes("val_size"),
    "streaming": _SHUFFLED,
    "shuffle_buffer": _SHUFFLED,
    "seq_length": Becomes("cutoff_len"),
    **same("max_steps", "learning_rate", "lr_scheduler_type", "weight_decay", "seed", "output_dir"),
    "batch_size": Becomes("per_device_train_batch_size"),
    "gradient_accumulation_steps": Becomes("gradient_accumulation_steps"),
    "eos_token_id": NoEffect("the end token is that of the template"),
    "num_warmup_steps": Becomes("warmup_steps"),
    "no_fp16": NoEffect("the old script turned fp16 on with it; say --bf16 for bfloat16"),
    "bf16": Together(),
    "fp16": Together(),
    "no_gradient_checkpointing": NoEffect("the old script ignored it"),
    "local_rank": NoEffect("one process trains here"),
    "num_workers": NoEffect("rows are prepared in this process"),
    "log_freq": Becomes("logging_steps"),
    "eval_freq": Becomes("eval_steps"),
    "save_freq": Becomes("save_steps"),
}
SFT_DEFAULTS = {
    "size_valid_set": "4000",
    "seq_length": "1024",
    "max_steps": "10000",
    "batch_size": "4",
    "gradient_accumulation_steps": "1",
    "learning_rate": "1e-4",
    "lr_scheduler_type": "cosine",
    "num_warmup_steps": "100",
    "weight_decay": "0.05",
    "seed": "0",
    "output_dir": "./checkpoints",
    "log_freq": "1",
    "eval_freq": "1000",
    "save_freq": "1000",
    "dataset_name": "lvwerra/stack-exchange-paired",
}
RM_FLAGS = {**llm_tuning.RM_FLAGS, "lora_target_models": Refused("it is LLM-Tuning's", "leave it out")}
PPO_FLAGS: dict[str, Rule] = {
    **{
        name: rule for name, rule in llm_tuning.PPO_FLAGS.items() if not name.endswith(("_lora_path", "sft_model_path"))
    },
    "model_name": Becomes("model_name_or_path"),
    "reward_model_name": Becomes("reward_model"),
}
PPO_DEFAULTS = {**llm_tuning.PPO_DEFAULTS, "init_kl_coef": "0.2", "adap_kl_ctrl": "true"}
SFT2_FLAGS: dict[str, Rule] = {
    **TRAINER,
    "model_name": Becomes("model_name_or_path"),
    "dataset_name": Together(),
    **dict.fromkeys(("subset", "split"), SFT_FLAGS["split"]),
    "size_valid_set": Becomes("val_size"),
    "streaming": _SHUFFLED,
    "shuffle_buffer": _SHUFFLED,
    "seq_length": Becomes("cutoff_len"),
    "packing": _KEPT,
    "log_with": Becomes("report_to"),
    "num_workers": NoEffect("rows are prepared in this process"),
    "use_bnb": Becomes("quantization_bit", words={"true": "4", "false": "none"}),
    "lora_alpha": Becomes("lora_alpha"),
    "lora_dropout": Becomes("lora_dropout"),
    "lora_r": Becomes("lora_rank"),
}
SFT2_DEFAULTS = {
    "max_steps": "500",
    "per_device_train_batch_size": "4",
    "gradient_accumulation_steps": "2",
    "learning_rate": "1e-4",
    "lr_scheduler_type": "cosine",
    "warmup_steps": "100",
    "weight_decay": "0.05",
    "lora_r": "8",
    "lora_alpha": "16",
    "lora_dropout": "0.05",
    "seq_length": "1024",
    "save_steps": "10",
    "logging_steps": "10",
    "dataset_name": "lvwerra/stack-exchange-paired",
    "model_name": "meta-llama/Llama-2-7b-hf",
}
DPO_FLAGS: dict[str, Rule] = {
    **TRAINER,
    "model_name_or_path": Becomes("model_name_or_path"),
    "beta": Becomes("pref_beta"),
    "optimizer_type": NoEffect("AdamW is the optimiser"),
    "lora_alpha": Becomes("lora_alpha"),
    "lora_dropout": Becomes("lora_dropout"),
    "lora_r": Becomes("lora_rank"),
    "max_prompt_length": Becomes("max_source_length"),
    "max_length": Becomes("cutoff_len", "in tokens; the old script dropped rows by characters"),
    "sanity_check": Becomes("max_samples", words={"true": "1000", "false": "none"}),
    "ignore_bias_buffers": NoEffect("one process trains here"),
    "load_in_4bit": Becomes("quantization_bit", words={"true": "4", "false": "none"}),
    "model_dtype": NoEffect("dtype says it; auto is bfloat16 where the device has it"),
}
DPO_DEFAULTS = {
    "beta": "0.1",
    "learning_rate": "5e-4",
    "lr_scheduler_type": "cosine",
    "warmup_steps": "100",
    "weight_decay": "0.05",
    "per_device_train_batch_size": "4",
    "gradient_accumulation_steps": "4",
    "lora_alpha": "16",
    "lora_dropout": "0.05",
    "lora_r": "8",
    "max_prompt_length": "512",
    "max_length": "1024",
    "max_steps": "1000",
    "save_steps": "100",
    "eval_steps": "100",
    "logging_steps": "10",
    "output_dir": "./results",
}
MERGE_FLAGS: dict[str, Rule] = {
    "adapter_model_name": Becomes("model"),
    "base_model_name": NoEffect("the adapter names its base"),
    "output_name": Becomes("output_dir", "nothing is uploaded"),
}


def written(settings: Mapping[str, str]) -> Reading:
    """What a script had in its code."""

    def read(_old: Old, _command: str) -> Iterator[Line | Trouble]:
        for name, value in settings.items():
            yield Line((), name, value, _QA if name == "template" else "written into the old code")

    return read


def dataset(old: Old, _command: str) -> Iterator[Line | Trouble]:
    """A dataset of the hub, or a file."""
    name = old.get("dataset_name")
    is_hub = name.count("/") == 1 and not name.startswith((".", "/", "~")) and "." not in name.rpartition("/")[2]
    yield Line(old.says("dataset_name"), "dataset", f"hub:{name}" if is_hub else name)


def dpo_dataset(_old: Old, _command: str) -> Iterator[Line | Trouble]:
    """dpo_llama2.py named its data in its code."""
    yield Line((), "dataset", "hub:lvwerra/stack-exchange-paired", "written into the old code")


def rm_dataset(old: Old, command: str) -> Iterator[Line | Trouble]:
    """reward_modeling.py named its data in its code."""
    yield from (
        line
        for line in llm_tuning.rm_shape(old, command)
        if not isinstance(line, Line) or line.setting not in ("dataset", "lora_rank", "template")
    )
    yield Line((), "dataset", "hub:lvwerra/stack-exchange-paired", "written into the old code")
    yield Line((), "lora_rank", "8", "written into the old code")
    yield Line((), "template", "qa", _QA)


def ppo_shape(old: Old, command: str) -> Iterator[Line | Trouble]:
    """As LLM-Tuning's, which was made of it."""
    for line in llm_tuning.ppo_shape(old, command):
        if isinstance(line, Line) and line.setting == "template":
            yield Line((), "template", "qa", _QA)
        elif not (isinstance(line, Line) and line.setting == "repetition_penalty"):
            yield line


def ppo_remarks(_old: Old, _command: str) -> Sequence[str]:
    """What differs in PPO."""
    return ("Answers may end: the old script forbade the end token and drew 32 to output_max_length tokens.",)


_SFT_CODE = {"lora_rank": "16", "lora_alpha": "32", "lora_dropout": "0.05", "template": "qa", "quantization_bit": "8"}
_DPO_CODE = {"template": "qa", "quantization_bit": "4", "lora_target": "q_proj,k_proj,v_proj"}

SCRIPTS: dict[str, Dialect] = {
    "supervised_finetuning.py": Dialect(
        "TRL stack_llama, supervised_finetuning.py",
        SFT_FLAGS,
        lambda _: "sft",
        SFT_DEFAULTS,
        (dataset, written(_SFT_CODE), precision),
    ),
    "reward_modeling.py": Dialect(
        "TRL stack_llama, reward_modeling.py",
        RM_FLAGS,
        lambda _: "rm",
        {**llm_tuning.RM_DEFAULTS, "gradient_accumulation_steps": "1"},
        (*READINGS, rm_dataset),
    ),
    "rl_training.py": Dialect(
        "TRL stack_llama, rl_training.py", PPO_FLAGS, lambda _: "ppo", PPO_DEFAULTS, (ppo_shape,), ppo_remarks
    ),
    "sft_llama2.py": Dialect(
        "TRL stack_llama_2, sft_llama2.py",
        SFT2_FLAGS,
        lambda _: "sft",
        SFT2_DEFAULTS,
        (*READINGS, dataset, written({"template": "qa", "lora_target": "q_proj,v_proj", "quantization_bit": "4"})),
    ),
    "dpo_llama2.py": Dialect(
        "TRL stack_llama_2, dpo_llama2.py",
        DPO_FLAGS,
        lambda _: "dpo",
        DPO_DEFAULTS,
        (rows_of_a_step, cadence, precision, resuming, dpo_dataset, written(_DPO_CODE)),
    ),
    "merge_peft_adapter.py": Dialect("TRL stack_llama, merge_peft_adapter.py", MERGE_FLAGS, lambda _: "export"),
}
