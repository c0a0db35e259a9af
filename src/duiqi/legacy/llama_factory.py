"""LLaMA-Factory today: its names, its defaults, and what is meant beside other names."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from duiqi.errors import SettingsError
from duiqi.legacy.answering import ANSWERING_FLAGS, answering, chosen_command
from duiqi.legacy.dialect import Dialect, Line, Old, Trouble
from duiqi.legacy.rules import Becomes, NoEffect, Pending, Refused, Rule, Together, same
from duiqi.legacy.trainer import READINGS, TRAINER, TRAINER_DEFAULTS
from duiqi.settings.describe import known_settings

STAGE_COMMANDS = {"pt": "pretrain", "sft": "sft", "rm": "rm", "ppo": "ppo", "dpo": "dpo", "kto": "dpo"}
SAME_TEMPLATES = ("chatglm2", "chatglm3", "baichuan", "baichuan2", "chatml", "qwen", "alpaca", "llama2_zh")
"""Templates that both have under one name and that write the same."""
OTHER_TEMPLATES = {
    "default": "human_assistant, which has two line breaks between the turns, or zh_qa",
    "vanilla": "raw",
    "empty": "raw",
    "ziya": "human_assistant or zh_qa",
    "vicuna": "human_assistant or zh_qa",
    "baichuan2_chat": "baichuan2",
}
"""Templates of base models that are another one here."""

_FUSED = NoEffect("layers and losses are fused by duiqi itself")
_IMAGES = Refused("only text is trained", "leave it out")
_OTHER_OPTIMISER = Refused("AdamW is the optimiser", "leave it out, and lower tokens_per_micro_batch to save memory")
_PREPARATION = NoEffect("it changes how fast rows are prepared, not what they are")
_ROWS_AT_ONCE = Refused("all rows are read before the first step", "give a smaller file, or max_samples")
_SERVING = NoEffect("it is about serving a model, not about training one")
_SUBSETTINGS = NoEffect("it acts only beside what switches it on")

MODEL: dict[str, Rule] = {
    **same("model_name_or_path", "adapter_name_or_path", "resize_vocab", "trust_remote_code", "train_from_scratch"),
    **same("quantization_bit", "quantization_type", "double_quantization"),
    "add_special_tokens": Becomes("add_tokens"),
    "new_special_tokens": Becomes("add_tokens"),
    "add_tokens": Becomes("add_tokens", "they are added as special tokens here"),
    "flash_attn": Together(),
    "disable_gradient_checkpointing": Becomes("gradient_checkpointing", words={"true": "false", "false": "true"}),
    "use_unsloth_gc": NoEffect("recomputation is gradient_checkpointing here"),
    "use_reentrant_gc": NoEffect("recomputation is gradient_checkpointing here"),
    "cache_dir": Refused("the hub's own cache is used", "set the environment variable HF_HOME"),
    "adapter_folder": Refused("adapters are named by their paths", "write them into adapter_name_or_path"),
    "model_revision": Refused(
        "the newest revision is loaded", "download the one you want, and give its path", ("main",)
    ),
    "rope_scaling": Refused("positions are those of config.json", "write rope_scaling into config.json of the base"),
    "mixture_of_depths": Refused("the network is that of the base", "leave it out"),
    "shift_attn": Refused("attention is that of the network", "leave it out"),
    "moe_aux_loss_coef": Refused("the router's loss is not added", "leave it out"),
    "split_special_tokens": Refused("special tokens are read as such", "leave it out"),
    "new_special_tokens_config": Refused("new tokens begin as the mean of the old", "give add_special_tokens"),
    "init_special_tokens": NoEffect("new tokens begin as the mean of the old ones"),
    "quantization_method": Refused("matrices are quantised by bitsandbytes", "set bnb", unless=("bnb", "bitsandbytes")),
    "quantization_device_map": NoEffect("one device computes"),
    **dict.fromkeys(
        ("fp8", "fp8_backend", "fp8_enable_fsdp_float8_all_gather"),
        Refused("there is no fp8", "use bf16", ("false", "auto")),
    ),
    **dict.fromkeys(("use_unsloth", "enable_liger_kernel", "use_v1_kernels", "use_kt"), _FUSED),
    **dict.fromkeys(
        ("use_fast_tokenizer", "low_cpu_mem_usage", "print_param_status"), NoEffect("files are read as they are")
    ),
    **dict.fromkeys(
        ("upcast_layernorm", "upcast_lmhead_output"), NoEffect("what learns, and the loss, are float32 anyway")
    ),
    **dict.fromkeys(
        (
            "infer_backend",
            "offload_folder",
            "use_kv_cache",
            "infer_dtype",
            "vllm_maxlen",
            "vllm_gpu_util",
            "vllm_enforce_eager",
            "vllm_max_lora_rank",
            "vllm_config",
            "sglang_maxlen",
            "sglang_mem_fraction",
            "sglang_tp_size",
            "sglang_config",
            "sglang_lora_backend",
        ),
        _SERVING,
    ),
    **dict.fromkeys(
        (
            "export_dir",
            "export_size",
            "export_device",
            "export_quantization_bit",
            "export_quantization_dataset",
            "export_legacy_format",
            "export_hub_model_id",
        ),
        Refused("exporting is a command of its own", "run `duiqi export RUN --output_dir DIR`"),
    ),
    **dict.fromkeys(
        ("hf_hub_token", "ms_hub_token", "om_hub_token"),
        Refused("no key is taken from a file or a command line", "log in with `hf auth login`"),
    ),
    **dict.fromkeys(
        (
            "image_max_pixels",
            "image_min_pixels",
            "image_do_pan_and_scan",
            "crop_to_patches",
            "video_max_pixels",
            "video_min_pixels",
            "video_fps",
            "video_maxlen",
            "use_audio_in_video",
            "audio_sampling_rate",
        ),
        NoEffect("rows here are text"),
    ),
}
DATA: dict[str, Rule] = {
    **same("dataset", "dataset_dir", "eval_dataset", "val_size", "cutoff_len", "mask_history"),
    "default_system": Becomes("system"),
    "template": Together(),
    "max_samples": Becomes("max_samples", "chosen by seed"),
    "train_on_prompt": Refused(
        "answers are learned, prompts are not", "leave it out, or use `duiqi pretrain` on texts"
    ),
    "streaming": Pending(_ROWS_AT_ONCE),
    "buffer_size": Pending(NoEffect("it acts only with streaming")),
    "mix_strategy": Pending(
        Refused("datasets are put one behind the other and shuffled", "give caps: a,b@1000", ("concat",))
    ),
    "interleave_probs": Pending(Refused("datasets are mixed by their sizes", "give caps: a,b@1000")),
    "preprocessing_batch_size": Pending(_PREPARATION),
    "preprocessing_num_workers": Pending(_PREPARATION),
    "tokenized_path": Pending(_PREPARATION),
    "data_shared_file_system": _PREPARATION,
    "packing": Pending(
        NoEffect("rows of a micro-batch are always packed without padding, and no row sees another; a step counts rows")
    ),
    "neat_packing": Pending(NoEffect("packed rows never see each other")),
    "ignore_pad_token_for_loss": Refused("padding is never learned", "leave it out", unless=("true",)),
    "eval_num_beams": Refused("answers are sampled or greedy", "leave it out", unless=("none", "null", "1", "")),
    "eval_on_each_dataset": Refused("all held-out rows are evaluated together", "leave it out"),
    "tool_format": Refused("rows with tools are not read", "leave it out"),
    "enable_thinking": Refused(
        "the chat template writes what it writes", "leave it out", unless=("true", "none", "null", "")
    ),
    "reserved_label_len": Refused("max_source_length and max_target_length say what is cut", "set these"),
    "media_dir": _IMAGES,
}
TUNING: dict[str, Rule] = {
    "stage": Together(),
    "finetuning_type": Becomes("finetuning_type"),
    **same("lora_rank", "lora_alpha", "lora_dropout", "lora_target", "loraplus_lr_ratio", "use_rslora", "use_dora"),
    **same("pissa_init", "create_new_adapter", "freeze_trainable_layers", "freeze_trainable_modules", "plot_loss"),
    "additional_target": Becomes("modules_to_save"),
    "freeze_extra_modules": Refused("freeze trains layers alone", "use lora with modules_to_save"),
    "loraplus_lr_embedding": NoEffect("embeddings have no low-rank matrices here"),
    "pissa_iter": NoEffect("singular directions are computed exactly"),
    "pissa_convert": NoEffect("the adapter is written as plain LoRA"),
    "pure_bf16": Together(),
    "ref_model": Becomes("ref_model"),
    "ref_model_adapters": Becomes("ref_model"),
    "ref_model_quantization_bit": NoEffect("the reference shares the base"),
    "disable_shuffling": Refused("rows are shuffled by seed", "leave it out"),
    "early_stopping_steps": Refused("a run goes to its end", "set load_best_model_at_end: true to keep the best"),
    "compute_accuracy": NoEffect("sft is evaluated by loss and perplexity"),
    "include_effective_tokens_per_second": NoEffect("metrics.jsonl has it"),
    "use_dft_loss": Refused("the loss is the cross-entropy of the answers", "leave it out"),
    "use_llama_pro": Refused("no layers are inserted", "use freeze"),
    **dict.fromkeys(
        ("use_galore", "use_apollo", "use_badam", "use_adam_mini", "use_muon", "use_mca"), _OTHER_OPTIMISER
    ),
    **dict.fromkeys(
        ("freeze_vision_tower", "freeze_multi_modal_projector", "freeze_language_model"),
        NoEffect("models here read text"),
    ),
    **dict.fromkeys(
        (
            "galore_target",
            "galore_rank",
            "galore_update_interval",
            "galore_scale",
            "galore_layerwise",
            "apollo_target",
            "apollo_rank",
            "apollo_update_interval",
            "apollo_scale",
            "badam_mode",
            "badam_switch_mode",
            "badam_switch_interval",
            "badam_update_ratio",
        ),
        _SUBSETTINGS,
    ),
}
PREFERENCES: dict[str, Rule] = {
    "pref_beta": Becomes("pref_beta"),
    "dpo_beta": Becomes("pref_beta"),
    **same("pref_ftx", "dpo_label_smoothing", "simpo_gamma"),
    "dpo_ftx": Becomes("pref_ftx"),
    "pref_loss": Together(),
    "dpo_loss": Becomes("pref_loss"),
    "pref_bco_weight": Refused("there is no such term", "leave it out"),
    "ld_alpha": Refused("every token of an answer counts", "use pref_loss: simpo against length"),
    "kto_chosen_weight": Pending(
        Refused("there are no labelled single answers yet", "leave it out", unless=("1.0", "1"))
    ),
    "kto_rejected_weight": Pending(
        Refused("there are no labelled single answers yet", "leave it out", unless=("1.0", "1"))
    ),
}
PPO: dict[str, Rule] = {
    "reward_model": Becomes("reward_model"),
    "reward_model_type": Refused(
        "a score comes from a model, or from file.py:function", "name these with reward_model", unless=("lora", "full")
    ),
    "reward_model_adapters": Becomes("reward_model"),
    "reward_model_quantization_bit": NoEffect("the reward model shares the base where it stands on it"),
    "ppo_epochs": Becomes("ppo_epochs"),
    "ppo_buffer_size": Together(),
    "ppo_target": Becomes("kl_target"),
    "ppo_score_norm": Becomes("score_norm"),
    "ppo_whiten_rewards": Refused("advantages are whitened, rewards are not", "leave it out"),
    "ppo_logger": Becomes("report_to"),
}
TRACKERS: dict[str, Rule] = {
    "use_swanlab": Becomes("report_to", words={"true": "swanlab", "false": "none"}),
    "swanlab_project": Becomes("project"),
    "swanlab_run_name": Becomes("run_name"),
    **dict.fromkeys(
        ("swanlab_workspace", "swanlab_mode", "swanlab_logdir"), NoEffect("SwanLab's own environment says it")
    ),
    **dict.fromkeys(
        ("swanlab_api_key", "swanlab_lark_webhook_url", "swanlab_lark_secret"),
        Refused("no key is taken from a file or a command line", "log in with `swanlab login`"),
    ),
}

FLAGS = {
    **TRAINER,
    **ANSWERING_FLAGS,
    **MODEL,
    **DATA,
    **TUNING,
    **PREFERENCES,
    **PPO,
    **TRACKERS,
    "gradient_checkpointing": Becomes("gradient_checkpointing"),
    "max_source_length": Becomes("max_source_length"),
    "max_target_length": Becomes("max_target_length"),
    "skip_special_tokens": NoEffect("special tokens are left out of answers"),
}
DEFAULTS: dict[str, str] = {
    **TRAINER_DEFAULTS,
    "finetuning_type": "lora",
    "lora_rank": "8",
    "lora_dropout": "0.0",
    "lora_target": "all",
    "freeze_trainable_layers": "2",
    "cutoff_len": "2048",
    "stage": "sft",
    "pref_beta": "0.1",
    "ppo_epochs": "4",
    "ppo_buffer_size": "1",
    "ppo_target": "6.0",
    "ppo_score_norm": "false",
    "max_new_tokens": "1024",
}
_PPO_OF_TRL = {
    "init_kl_coef": "0.2",
    "clip_range_high": "0.2",
    "dual_clip": "none",
    "score_clip": "0",
    "missing_eos_penalty": "0",
}


def command(old: Old) -> str:
    """The duiqi command of `stage`.

    Raises:
        SettingsError: There is no such stage.
    """
    stage = old.get("stage")
    if stage not in STAGE_COMMANDS:
        raise SettingsError(f"there is no stage {stage!r}", where="stage", remedy=f"one of {', '.join(STAGE_COMMANDS)}")
    return chosen_command(old, STAGE_COMMANDS[stage])


def stage(old: Old, duiqi: str) -> Iterator[Line | Trouble]:
    """`stage`, and the loss of preferences that belongs to it."""
    if old.says("stage"):
        yield Line(("stage",), note=f"the command: duiqi {duiqi}", is_so_anyway=True)
    if old.get("stage") == "kto" and not _has_kto():
        yield Trouble(
            ("stage",), "single answers with labels are not read yet", "make pairs of them, and use stage: dpo"
        )
    elif old.get("stage") == "kto":
        yield Line(old.says("pref_loss"), "pref_loss", "kto", "the stage kto is a loss of `duiqi dpo`")
    elif old.says("pref_loss"):
        yield Line(("pref_loss",), "pref_loss", old.get("pref_loss"))


def _has_kto() -> bool:
    """Whether `duiqi dpo` has the loss of the stage kto."""
    return any("kto" in setting.choices for setting in known_settings("dpo") if setting.name == "pref_loss")


def template(old: Old, _duiqi: str) -> Iterator[Line | Trouble]:
    """The template: duiqi's of the same name, or the one that lies with the tokenizer."""
    if not old.says("template"):
        return
    name = old.get("template")
    if name in SAME_TEMPLATES:
        yield Line(("template",), "template", name)
    elif name in OTHER_TEMPLATES:
        yield Trouble(("template",), f"duiqi has no template {name}", f"set template={OTHER_TEMPLATES[name]}")
    else:
        yield Line(("template",), note="the chat template that lies with the tokenizer is used, whatever its name")


def attention(old: Old, _duiqi: str) -> Iterator[Line | Trouble]:
    """flash_attn: the kernel of attention."""
    if not old.says("flash_attn"):
        return
    words = {
        "auto": "auto",
        "fa2": "flash_attention_2",
        "true": "flash_attention_2",
        "sdpa": "sdpa",
        "disabled": "eager",
    }
    value = old.get("flash_attn").lower()
    if value in words:
        yield Line(("flash_attn",), "attn_implementation", words[value])
    else:
        yield Line(
            ("flash_attn",), note="off, as here" if value == "false" else "no effect here: attention is duiqi's own"
        )


def ppo(old: Old, duiqi: str) -> Iterator[Line | Trouble]:
    """Batches of PPO, and what TRL did of itself."""
    names = ("per_device_train_batch_size", "gradient_accumulation_steps", "ppo_buffer_size")
    if duiqi != "ppo" or (old.is_inline and not old.says(*names)):
        return
    answers = old.count(names[0]) * old.count(names[1]) * old.processes
    yield Line(old.says(*names), "rollout_batch_size", str(answers * old.count(names[2])), "answers sampled at once")
    yield Line(old.says(*names[:2]), "mini_batch_size", str(answers), "answers of one optimizer step")
    if old.is_inline:
        return
    for name, value in _PPO_OF_TRL.items():
        yield Line((), name, value, "as TRL did of itself")
    if not old.says("max_new_tokens"):
        yield Line((), "max_new_tokens", old.get("max_new_tokens"))


def remarks(old: Old, duiqi: str) -> Sequence[str]:
    """What differs although the settings are the same."""
    said = []
    if duiqi == "ppo" and not old.says("temperature", "top_p", "top_k"):
        said.append(
            "Answers are drawn from the policy itself. LLaMA-Factory draws with temperature 0.95, top_p 0.7, top_k 50, "
            "and learns another distribution than it draws from; say them in the recipe to have that."
        )
    if duiqi == "ppo" and not old.says("ref_model", "ref_model_adapters"):
        said.append("KL is measured against the policy as it begins, so against the SFT adapter and not the bare base.")
    return said


OF_TODAY = Dialect(
    "LLaMA-Factory", FLAGS, command, DEFAULTS, (*READINGS, stage, template, attention, ppo, answering), remarks
)
