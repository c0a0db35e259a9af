"""LLaMA-Efficient-Tuning, as LLaMA-Factory was called in 2023: `src/train_bash.py --stage`."""

from __future__ import annotations

from collections.abc import Iterator

from duiqi.legacy import chatglm_tuning, llama_factory
from duiqi.legacy.answering import ANSWERING_FLAGS, answering
from duiqi.legacy.chatglm_tuning import lengths, lineage, ppo_of_last
from duiqi.legacy.dialect import Dialect, Line, Old, Trouble
from duiqi.legacy.rules import Becomes, NoEffect, Pending, Refused, Rule, Together, same
from duiqi.legacy.trainer import READINGS, TRAINER

_PACKING = NoEffect("rows of a micro-batch are always packed, and no row sees another")

FLAGS: dict[str, Rule] = {
    **TRAINER,
    **ANSWERING_FLAGS,
    **llama_factory.MODEL,
    **chatglm_tuning.MODEL,
    **{name: llama_factory.DATA[name] for name in llama_factory.DATA if name != "ignore_pad_token_for_loss"},
    **chatglm_tuning.DATA,
    **chatglm_tuning.TUNING,
    **llama_factory.PREFERENCES,
    "stage": Together(),
    "template": Together(),
    "lora_target": Becomes("lora_target", "names are whole parts of a path; `all` adapts every linear layer"),
    "additional_target": Becomes("modules_to_save"),
    "lora_bias": Refused("biases are not trained beside adapters", "leave it out"),
    "system_prompt": Becomes("system"),
    "prompt_template": Refused("it is called template now", "say --template"),
    "val_size": Becomes("val_size"),
    "dev_ratio": Becomes("val_size"),
    "dpo_beta": Becomes("pref_beta"),
    "ppo_score_norm": Becomes("score_norm"),
    "ppo_target": Becomes("kl_target"),
    "ppo_logger": Becomes("report_to"),
    "sft_packing": Pending(_PACKING),
    "cutoff_len": Becomes("cutoff_len"),
    "ref_model": Becomes("ref_model"),
    "ref_model_checkpoint": Becomes("ref_model"),
    "upcast_layernorm": NoEffect("what learns is float32 anyway"),
    "neft_alpha": Refused("no noise is put on embeddings", "leave it out"),
    "export_dir": Refused("exporting is a command of its own", "run `duiqi export RUN --output_dir DIR`"),
    **same("max_new_tokens", "loraplus_lr_ratio"),
}
FLAGS["max_new_tokens"] = Together()
FLAGS.pop("adapter_folder")

DEFAULTS: dict[str, str] = {
    **chatglm_tuning.DEFAULTS_OF_LAST,
    "lora_target": "q_proj,v_proj",
    "stage": "sft",
    "dpo_beta": "0.1",
}
del DEFAULTS["model_name_or_path"], DEFAULTS["dataset"], DEFAULTS["pre_seq_len"]


def budget(old: Old, command: str) -> Iterator[Line | Trouble]:
    """cutoff_len, where it is said, instead of the two lengths."""
    if old.says("cutoff_len"):
        yield Line(("cutoff_len",), "cutoff_len", old.get("cutoff_len"))
        for name in old.says("max_source_length", "max_target_length"):
            yield Line((name,), name, old.get(name))
    else:
        yield from lengths(old, command)


OF_2023 = Dialect(
    "LLaMA-Efficient-Tuning of 2023",
    FLAGS,
    llama_factory.command,
    DEFAULTS,
    (
        *READINGS,
        llama_factory.stage,
        llama_factory.template,
        llama_factory.attention,
        lineage,
        budget,
        ppo_of_last,
        answering,
    ),
    chatglm_tuning.remarks,
)
