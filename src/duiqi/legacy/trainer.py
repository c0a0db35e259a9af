"""The flags that most of the old tools have from transformers' TrainingArguments, and how those belong together."""

from __future__ import annotations

from collections.abc import Iterator

from duiqi.legacy.dialect import Line, Old, Trouble
from duiqi.legacy.rules import OFF, Becomes, NoEffect, Pending, Refused, Rule, Together, same

_LOADER = NoEffect("rows are prepared before the first step, so there is no loader to tune")
_ONE_PROCESS = NoEffect("one process trains here")
_EVAL_MEMORY = NoEffect("memory is bounded by tokens_per_micro_batch, and the result is the same")
_LOG = NoEffect("it changes what is printed, not what is learned; metrics.jsonl has everything")
_ADAM = "AdamW runs here with betas 0.9 and 0.999"
_EVALUATION = NoEffect("evaluation has one way here: all held-out rows, in micro-batches")
_KERNELS = NoEffect("duiqi chooses how it computes")
_HUB = Refused("nothing is uploaded", "run it without, then `duiqi export` and upload the directory")

TRAINER: dict[str, Rule] = {
    **same(
        "output_dir",
        "overwrite_output_dir",
        "learning_rate",
        "num_train_epochs",
        "warmup_ratio",
        "warmup_steps",
        "weight_decay",
        "max_grad_norm",
        "seed",
        "logging_steps",
        "save_total_limit",
        "load_best_model_at_end",
        "gradient_checkpointing",
        "run_name",
        "project",
    ),
    "max_steps": Becomes("max_steps", words={"-1": "0"}),
    "lr_scheduler_type": Becomes("lr_scheduler_type", words={"constant_with_warmup": "constant"}),
    "report_to": Becomes("report_to", words={"[]": "none"}),
    **dict.fromkeys(("do_train", "do_eval", "do_predict"), Together()),
    **dict.fromkeys(("per_device_train_batch_size", "gradient_accumulation_steps"), Together()),
    **dict.fromkeys(("fp16", "bf16"), Together()),
    **dict.fromkeys(("eval_strategy", "evaluation_strategy", "eval_steps", "save_strategy", "save_steps"), Together()),
    "resume_from_checkpoint": Together(),
    "optim": Together(),
    **dict.fromkeys(("per_device_eval_batch_size", "eval_accumulation_steps", "prediction_loss_only"), _EVAL_MEMORY),
    "auto_find_batch_size": NoEffect("micro-batches are halved by themselves when memory does not hold one"),
    **dict.fromkeys(
        (
            "dataloader_num_workers",
            "dataloader_pin_memory",
            "dataloader_persistent_workers",
            "dataloader_prefetch_factor",
            "remove_unused_columns",
        ),
        _LOADER,
    ),
    **dict.fromkeys(
        (
            "local_rank",
            "ddp_timeout",
            "ddp_find_unused_parameters",
            "ddp_backend",
            "ddp_bucket_cap_mb",
            "log_on_each_node",
            "save_on_each_node",
            "average_tokens_across_devices",
        ),
        _ONE_PROCESS,
    ),
    **dict.fromkeys(
        (
            "logging_strategy",
            "logging_first_step",
            "logging_dir",
            "log_level",
            "disable_tqdm",
            "include_num_input_tokens_seen",
            "logging_nan_inf_filter",
        ),
        _LOG,
    ),
    "save_only_model": NoEffect("checkpoints always carry what resuming needs"),
    "save_safetensors": NoEffect("only safetensors are written"),
    "group_by_length": NoEffect("rows are packed into micro-batches of few padding whatever their order"),
    "ignore_data_skip": NoEffect("resuming goes on at the row where it stopped"),
    "skip_memory_metrics": _LOG,
    "tf32": NoEffect("products are computed in the precision of dtype"),
    "metric_for_best_model": NoEffect("sft takes eval_loss for the best, rm eval_accuracy, ppo eval_score"),
    "greater_is_better": NoEffect("it follows from the metric, which the stage knows"),
    "use_cpu": Becomes("device", words={"true": "cpu", "false": "auto"}),
    "no_cuda": Becomes("device", words={"true": "cpu", "false": "auto"}),
    "deepspeed": Refused(
        "one process trains here, so there is nothing to shard", "leave it out; `duiqi plan` says whether it fits"
    ),
    "fsdp": Refused(
        "one process trains here, so there is nothing to shard", "leave it out; `duiqi plan` says whether it fits"
    ),
    "adam_beta1": Refused(_ADAM, "leave it out", unless=("0.9",)),
    "adam_beta2": Refused(_ADAM, "leave it out", unless=("0.999",)),
    "adam_epsilon": Refused("AdamW runs here with epsilon 1e-8", "leave it out", unless=("1e-8", "1e-08")),
    "label_smoothing_factor": Refused("answers are learned as they stand", "leave it out"),
    "neftune_noise_alpha": Refused("no noise is put on embeddings", "leave it out"),
    "torch_compile": NoEffect("layers are fused by duiqi itself"),
    "use_liger_kernel": NoEffect("layers and losses are fused by duiqi itself"),
    "full_determinism": NoEffect("random numbers are counted, so a run repeats itself"),
    "data_seed": Refused("one seed draws everything", "set seed", unless=("none", "null", "")),
    "dataloader_drop_last": Refused("no row is dropped", "leave it out"),
    **dict.fromkeys(
        (
            "push_to_hub",
            "hub_model_id",
            "hub_strategy",
            "hub_private_repo",
            "hub_always_push",
            "hub_revision",
        ),
        _HUB,
    ),
    **dict.fromkeys(
        (
            "eval_delay",
            "eval_on_start",
            "eval_do_concat_batches",
            "eval_use_gather_object",
            "include_for_metrics",
            "include_inputs_for_metrics",
            "batch_eval_metrics",
            "bf16_full_eval",
            "fp16_full_eval",
            "sortish_sampler",
            "generation_max_length",
            "generation_config",
        ),
        _EVALUATION,
    ),
    "generation_num_beams": Refused("answers are sampled or greedy", "leave it out", unless=("none", "null", "1", "")),
    **dict.fromkeys(
        (
            "gradient_checkpointing_kwargs",
            "activation_checkpointing_kwargs",
            "torch_compile_backend",
            "torch_compile_mode",
            "liger_kernel_config",
            "torch_empty_cache_steps",
            "half_precision_backend",
            "fp16_opt_level",
            "use_cache",
            "use_mps_device",
            "enable_jit_checkpoint",
            "debug",
        ),
        _KERNELS,
    ),
    "activation_checkpointing": Becomes("gradient_checkpointing"),
    "train_sampling_strategy": NoEffect("rows are packed into micro-batches of few padding whatever their order"),
    **dict.fromkeys(
        (
            "dataloader_multiprocessing_context",
            "dataloader_in_order",
            "label_names",
            "length_column_name",
            "dispatch_batches",
            "split_batches",
        ),
        _LOADER,
    ),
    **dict.fromkeys(
        (
            "ddp_broadcast_buffers",
            "ddp_static_graph",
            "fsdp_config",
            "accelerator_config",
            "ray_run_name",
            "ray_storage_path",
            "ray_num_workers",
            "resources_per_worker",
            "placement_strategy",
        ),
        _ONE_PROCESS,
    ),
    **dict.fromkeys(("log_level_replica", "trackio_space_id", "trackio_bucket_id", "trackio_static_space_id"), _LOG),
    "parallelism_config": Refused("one process trains here", "leave it out; `duiqi plan` says whether it fits"),
    "optim_args": Refused(_ADAM, "leave it out"),
    "optim_target_modules": Refused(_ADAM, "leave it out"),
    "restore_callback_states_from_checkpoint": NoEffect("there are no callbacks"),
    "hub_token": Refused("nothing is uploaded, and no key belongs on a command line", "leave it out"),
    "lr_scheduler_kwargs": Refused("the schedules here take no more settings", "leave it out"),
    "overwrite_cache": Pending(
        NoEffect("what is cached here knows its files by their content, and is never out of date")
    ),
}

TRAINER_DEFAULTS: dict[str, str] = {
    "per_device_train_batch_size": "8",
    "gradient_accumulation_steps": "1",
    "learning_rate": "5e-5",
    "num_train_epochs": "3.0",
    "lr_scheduler_type": "linear",
    "logging_steps": "500",
    "save_steps": "500",
    "save_strategy": "steps",
    "save_total_limit": "none",
}

_SAME_ADAM = ("adamw_torch", "adamw_hf", "adamw_torch_fused", "paged_adamw_32bit", "adamw_apex_fused")


def mode(old: Old, command: str) -> Iterator[Line | Trouble]:
    """do_train, do_eval, do_predict."""
    for name in old.says("do_train", "do_eval", "do_predict"):
        is_the_point = name == "do_train" if command not in ("generate", "score") else name != "do_train"
        if not old.is_on(name):
            yield Line((name,), note="off, as here", is_so_anyway=True)
        elif is_the_point:
            yield Line((name,), note=f"that is what `duiqi {command}` does", is_so_anyway=True)
        elif name == "do_eval":
            yield Line((name,), note="a stage evaluates when it has eval_dataset or val_size")
        else:
            yield Trouble((name,), "a stage trains, and answers nothing afterwards", "run `duiqi generate` after it")


def rows_of_a_step(old: Old, command: str) -> Iterator[Line | Trouble]:
    """The two numbers whose product is the rows of a step; the old processes multiply it."""
    if command == "ppo" or (
        old.is_inline and not old.says("per_device_train_batch_size", "gradient_accumulation_steps")
    ):
        return
    size = "per_device_train_batch_size"
    if old.get(size):
        yield Line(old.says(size), size, old.get(size))
    accumulation = old.count("gradient_accumulation_steps")
    note = ""
    if old.processes > 1:
        note = (
            f"{accumulation} in each of {old.processes} processes there; one process here, and the same rows in a step"
        )
    yield Line(
        old.says("gradient_accumulation_steps"),
        "gradient_accumulation_steps",
        str(accumulation * old.processes),
        note,
    )


def precision(old: Old, _command: str) -> Iterator[Line | Trouble]:
    """fp16 and bf16: the precision of the frozen base."""
    for name, dtype in (("fp16", "float16"), ("bf16", "bfloat16"), ("pure_bf16", "bfloat16")):
        if name not in old.said:
            continue
        if not old.is_on(name):
            yield Line((name,), note="off, as here", is_so_anyway=True)
        elif old.get("finetuning_type") == "full":
            yield Line((name,), note="full fine-tuning is in float32 here: half precision rounds small updates away")
        else:
            yield Line((name,), "dtype", dtype, "of the frozen base; what learns is float32, as there")


def cadence(old: Old, _command: str) -> Iterator[Line | Trouble]:
    """How often to evaluate and to save."""
    strategies = old.says("eval_strategy", "evaluation_strategy")
    strategy = old.first("eval_strategy", "evaluation_strategy").lower()
    if strategy == "epoch":
        yield Trouble(strategies, "steps are counted here, not epochs", "set eval_steps: rows / rows of a step")
    elif strategy == "steps":
        steps = old.get("eval_steps") or old.get("logging_steps")
        yield Line((*strategies, *old.says("eval_steps")), "eval_steps", steps)
    elif strategies:
        yield Line(
            (*strategies, *old.says("eval_steps")),
            note="no evaluation on the way; one at the end, if there are rows for it",
        )
    elif old.says("eval_steps"):
        yield Line(("eval_steps",), "eval_steps", old.get("eval_steps"))
    saving = old.get("save_strategy").lower()
    names = old.says("save_strategy", "save_steps")
    if saving == "epoch":
        yield Trouble(old.says("save_strategy"), "steps are counted here, not epochs", "set save_steps instead")
        if old.says("save_steps"):
            yield Line(("save_steps",), note="no effect beside save_strategy epoch")
    elif saving == "no":
        yield Line(names, "save_steps", "0", "the result itself is always saved")
    elif old.get("save_steps"):
        yield Line(names, "save_steps", old.get("save_steps"))


def optimiser(old: Old, _command: str) -> Iterator[Line | Trouble]:
    """The name of the optimiser."""
    if not old.says("optim"):
        return
    if old.get("optim") in _SAME_ADAM:
        yield Line(("optim",), note="AdamW, as here; this name is about how it is computed")
    else:
        yield Trouble(("optim",), f"{old.get('optim')} is another optimiser than AdamW", "leave it out")


def resuming(old: Old, _command: str) -> Iterator[Line | Trouble]:
    """resume_from_checkpoint: a switch here, a path there."""
    if not old.says("resume_from_checkpoint"):
        return
    value = old.get("resume_from_checkpoint")
    if value.lower() in OFF:
        yield Line(("resume_from_checkpoint",), note="off, as here", is_so_anyway=True)
    elif value.lower() == "true":
        yield Line(("resume_from_checkpoint",), "resume_from_checkpoint", "true")
    else:
        yield Trouble(
            ("resume_from_checkpoint",),
            "a checkpoint of the old trainer has another optimiser state than duiqi's",
            "start from its adapter with adapter_name_or_path; a run of duiqi goes on with resume_from_checkpoint=true",
        )


READINGS = (mode, rows_of_a_step, precision, cadence, optimiser, resuming)
