"""DeepSpeed-Chat: the main.py of its three steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from duiqi.errors import SettingsError
from duiqi.legacy.dialect import Dialect, Line, Old, Trouble
from duiqi.legacy.rules import Becomes, NoEffect, Refused, Rule, Together
from duiqi.legacy.trainer import precision, rows_of_a_step

_SHARDS = NoEffect(
    "one process trains here, so there is nothing to shard or to offload; `duiqi plan` says what it needs"
)
_ENGINE = NoEffect("the own decoder reads the training weights, so there is no second engine")
_EMA = Refused("no average of the weights is kept", "leave it out; the best checkpoint is kept instead")
_CRITIC_RATE = Refused(
    "policy and critic learn at one rate", "leave it out; vf_coef says how strongly the critic learns"
)

COMMON: dict[str, Rule] = {
    **dict.fromkeys(("data_path", "data_split", "dtype"), Together()),
    "data_output_path": NoEffect("nothing is cached beside the data"),
    "per_device_train_batch_size": Together(),
    "gradient_accumulation_steps": Together(),
    "per_device_eval_batch_size": NoEffect("memory is bounded by tokens_per_micro_batch, and the result is the same"),
    "max_seq_len": Becomes("cutoff_len"),
    "num_train_epochs": Becomes("num_train_epochs"),
    "lr_scheduler_type": Becomes("lr_scheduler_type"),
    "num_warmup_steps": Becomes("warmup_steps"),
    "output_dir": Becomes("output_dir"),
    "seed": Becomes("seed"),
    "local_rank": NoEffect("one process trains here"),
    "dropout": Refused("the base is frozen, and without dropout", "set lora_dropout", unless=("none", "0", "0.0")),
    "disable_dropout": NoEffect("there is no dropout unless lora_dropout asks for it"),
    "gradient_checkpointing": Becomes("gradient_checkpointing"),
    **dict.fromkeys(("offload", "zero_stage", "deepspeed", "deepspeed_config"), _SHARDS),
    **dict.fromkeys(
        ("lora_dim", "lora_module_name", "only_optimize_lora", "lora_learning_rate", "learning_rate"), Together()
    ),
    "compute_fp32_loss": NoEffect("losses are always computed in float32"),
    "enable_tensorboard": Becomes("report_to", words={"true": "tensorboard"}),
    "tensorboard_path": NoEffect("TensorBoard's files lie in the run's directory"),
    "add_eot_token": NoEffect("an answer ends with the template's end token, and learns it"),
    "eot_token": NoEffect("an answer ends with the template's end token, and learns it"),
    "print_loss": NoEffect("metrics.jsonl has it"),
    "weight_decay": Becomes("weight_decay"),
    "model_name_or_path": Becomes("model_name_or_path"),
}
SFT_FLAGS: dict[str, Rule] = {**COMMON, "sft_only_data_path": Together()}
RM_FLAGS: dict[str, Rule] = {
    **COMMON,
    "num_padding_at_beginning": NoEffect("the score is read at the last real token, whatever the padding"),
    "eval_interval": Becomes("eval_steps"),
    "eval_iters": NoEffect("all held-out rows are evaluated"),
}
DPO_FLAGS: dict[str, Rule] = {**COMMON, "beta": Becomes("pref_beta"), "label_smoothing": Becomes("dpo_label_smoothing")}
PPO_FLAGS: dict[str, Rule] = {
    **{
        name: rule
        for name, rule in COMMON.items()
        if name not in ("max_seq_len", "learning_rate", "model_name_or_path")
    },
    "actor_model_name_or_path": Becomes("model_name_or_path"),
    "critic_model_name_or_path": Becomes("reward_model", "the reward model; the critic begins as it"),
    **dict.fromkeys(
        (
            "per_device_generation_batch_size",
            "per_device_training_batch_size",
            "generation_batches",
            "max_prompt_seq_len",
            "max_answer_seq_len",
        ),
        Together(),
    ),
    "ppo_epochs": Becomes("ppo_epochs"),
    "actor_learning_rate": Becomes("learning_rate"),
    "critic_learning_rate": _CRITIC_RATE,
    "actor_weight_decay": Becomes("weight_decay"),
    "critic_weight_decay": NoEffect("weight_decay is that of the actor"),
    **dict.fromkeys(("actor_lora_dim", "actor_lora_module_name", "actor_lora_learning_rate"), Together()),
    **dict.fromkeys(
        ("critic_lora_dim", "critic_lora_module_name", "critic_lora_learning_rate"),
        NoEffect("the critic's shape is said by `critic`"),
    ),
    "actor_gradient_checkpointing": Becomes("gradient_checkpointing"),
    "critic_gradient_checkpointing": NoEffect("gradient_checkpointing is said of the actor"),
    **dict.fromkeys(("actor_dropout", "critic_dropout"), COMMON["dropout"]),
    **dict.fromkeys(
        ("actor_zero_stage", "critic_zero_stage", "offload_reference_model", "offload_reward_model"), _SHARDS
    ),
    **dict.fromkeys(
        (
            "enable_hybrid_engine",
            "unpin_actor_parameters",
            "release_inference_cache",
            "inference_tp_size",
            "tp_gather_partition_size",
        ),
        _ENGINE,
    ),
    **dict.fromkeys(
        ("unsupervised_dataset_name", "unsupervised_dataset_config_name"),
        Refused("no text is learned beside PPO", "leave it out; init_kl_coef keeps the policy near what it was"),
    ),
    "unsup_coef": NoEffect("it acts only with unsupervised_dataset_name"),
    "enable_ema": _EMA,
    "enable_mixed_precision_lora": NoEffect("adapters are float32 on a base in half precision"),
    "align_overflow": NoEffect("one step updates everything, or nothing"),
    **dict.fromkeys(("print_answers", "print_answers_interval"), NoEffect("samples.jsonl has answers")),
    "enable_test_mode": Together(),
    "test_stop_step": Together(),
}
DEFAULTS: dict[str, str] = {
    "data_path": "Dahoas/rm-static",
    "per_device_train_batch_size": "16",
    "gradient_accumulation_steps": "1",
    "max_seq_len": "512",
    "weight_decay": "0",
    "num_train_epochs": "1",
    "lr_scheduler_type": "cosine",
    "seed": "1234",
    "lora_dim": "0",
    "lora_learning_rate": "5e-4",
}


def data(old: Old, _command: str) -> Iterator[Line | Trouble]:
    """data_path and data_split."""
    paths = ",".join(_dataset(path) for path in old.get("data_path").replace(" ", ",").split(",") if path)
    extra = [_dataset(path) for path in old.get("sft_only_data_path").split(",") if path]
    yield Line(old.says("data_path", "sft_only_data_path"), "dataset", ",".join([paths, *extra]))
    yield Line((), "template", "human_assistant", "Human: ... Assistant: as there")
    split = old.get("data_split")
    if split and split not in ("10,0,0", "0,10,0", "0,0,10"):
        yield Trouble(
            ("data_split",),
            "every stage reads all rows that it is given",
            f"deal them out once: `duiqi data split FILE --parts {split} --output_dir DIR`; give each stage its part",
        )
    elif split:
        yield Line(("data_split",), note="all rows, as here")


def _dataset(path: str) -> str:
    """A data set as duiqi names it.

    >>> _dataset("Dahoas/rm-static"), _dataset("local/jsonfile"), _dataset("data/mine.json")
    ('hub:Dahoas/rm-static', 'data/train.json', 'data/mine.json')
    """
    if path == "local/jsonfile":
        return "data/train.json"
    is_file = path.startswith(("/", ".", "~")) or "." in path.rpartition("/")[2]
    return path if is_file or path.count("/") != 1 else f"hub:{path}"


def tuning(prefix: str, plain_rate: str) -> Callable[[Old, str], Iterator[Line | Trouble]]:
    """LoRA where its rank is above 0, else every weight; each with its own learning rate."""

    def read(old: Old, _command: str) -> Iterator[Line | Trouble]:
        rank, module = f"{prefix}lora_dim", f"{prefix}lora_module_name"
        rate = f"{prefix}lora_learning_rate"
        if not old.count(rank, 0):
            yield Line(old.says(rank), "finetuning_type", "full", "rank 0: every weight learns")
            for name in old.says(module, rate, "only_optimize_lora"):
                yield Line((name,), note="no effect with rank 0")
            if not prefix:
                yield Line(old.says("learning_rate"), "learning_rate", old.get("learning_rate") or plain_rate)
            return
        yield Line(old.says(rank), "lora_rank", old.get(rank))
        yield Line((), "lora_alpha", "1", "as there: the adapter's output is divided by its rank")
        if old.says(module):
            yield Line((module,), "lora_target", "all", "every linear layer of the network's layers")
        if not old.is_on("only_optimize_lora"):
            yield Trouble(
                old.says(rank),
                "without only_optimize_lora the old code trained the adapters and every weight below them",
                "add --only_optimize_lora for adapters alone, or set the rank to 0 for every weight",
            )
        yield Line(old.says("only_optimize_lora"), note="adapters alone learn")
        if not prefix or old.says(rate):
            yield Line(old.says(rate), "learning_rate", old.get(rate) or "5e-4")
        for name in old.says("learning_rate"):
            yield Line((name,), note="adapters learn at lora_learning_rate")

    return read


def half(old: Old, _command: str) -> Iterator[Line | Trouble]:
    """dtype: the precision of a frozen base."""
    if not old.says("dtype"):
        return
    if old.count("lora_dim", 0) or old.count("actor_lora_dim", 0):
        words = {"fp16": "float16", "bf16": "bfloat16"}
        yield Line(("dtype",), "dtype", words.get(old.get("dtype"), old.get("dtype")))
    else:
        yield Line(("dtype",), note="full fine-tuning is in float32 here")


def ppo(old: Old, _command: str) -> Iterator[Line | Trouble]:
    """Batches, lengths and the constants of step 3."""
    if old.says("test_stop_step") and old.is_on("enable_test_mode"):
        yield Line(old.says("enable_test_mode", "test_stop_step"), "max_steps", old.get("test_stop_step"))
    rows = old.count("per_device_generation_batch_size", 16) * old.count("generation_batches") * old.processes
    names = old.says("per_device_generation_batch_size", "generation_batches")
    yield Line(names, "rollout_batch_size", str(rows), "answers sampled at once")
    learned = old.count("per_device_training_batch_size", 16) * old.count("gradient_accumulation_steps") * old.processes
    names = old.says("per_device_training_batch_size", "gradient_accumulation_steps")
    yield Line(names, "mini_batch_size", str(learned), "answers of one optimizer step")
    prompt, answer = old.count("max_prompt_seq_len", 256), old.count("max_answer_seq_len", 256)
    yield Line(
        old.says("max_prompt_seq_len"),
        "max_source_length",
        str(prompt),
        "longer ones are cut; they were left out there",
    )
    yield Line(old.says("max_prompt_seq_len", "max_answer_seq_len"), "cutoff_len", str(prompt + answer))
    yield Line(old.says("max_answer_seq_len"), "max_new_tokens", str(answer))
    constants = {
        "critic": "adapter" if old.count("actor_lora_dim", 0) else "model",
        "init_kl_coef": "0.1",
        "score_norm": "false",
        "missing_eos_penalty": "0",
        "vf_coef": "1.0",
        "whiten_advantages": "false",
        "clip_range_high": "0.2",
        "dual_clip": "none",
    }
    for name, value in constants.items():
        yield Line((), name, value, "written into the old code")


def ppo_remarks(_old: Old, _command: str) -> Sequence[str]:
    """What differs in PPO."""
    return ("The end token is part of an answer here: it is learned, scored and paid for. There it never was.",)


STEPS = {
    "1": Dialect(
        "DeepSpeed-Chat, step 1",
        SFT_FLAGS,
        lambda _: "sft",
        {**DEFAULTS, "learning_rate": "1e-3"},
        (data, tuning("", "1e-3"), half, rows_of_a_step),
    ),
    "2": Dialect(
        "DeepSpeed-Chat, step 2",
        RM_FLAGS,
        lambda _: "rm",
        {**DEFAULTS, "learning_rate": "5e-5"},
        (data, tuning("", "5e-5"), half, rows_of_a_step),
    ),
    "2 dpo": Dialect(
        "DeepSpeed-Chat, DPO",
        DPO_FLAGS,
        lambda _: "dpo",
        {**DEFAULTS, "learning_rate": "1e-3", "beta": "0.1"},
        (data, tuning("", "1e-3"), half, rows_of_a_step),
    ),
    "3": Dialect(
        "DeepSpeed-Chat, step 3",
        PPO_FLAGS,
        lambda _: "ppo",
        {
            "data_path": "Dahoas/rm-static",
            "ppo_epochs": "1",
            "actor_learning_rate": "9.65e-6",
            "num_train_epochs": "1",
            "lr_scheduler_type": "cosine",
            "num_warmup_steps": "100",
        },
        (data, tuning("actor_", "9.65e-6"), half, ppo, precision),
        ppo_remarks,
    ),
}


def step_of(script: str, flags: Sequence[str]) -> Dialect:
    """The step that a main.py is of, by its folder or by its flags.

    Raises:
        SettingsError: Neither says it.
    """
    for folder, step in (("step1", "1"), ("step2_dpo", "2 dpo"), ("step2", "2"), ("step3", "3"), ("dpo", "2 dpo")):
        if folder in script:
            return STEPS[step]
    if "actor_model_name_or_path" in flags:
        return STEPS["3"]
    if "num_padding_at_beginning" in flags or "eval_interval" in flags:
        return STEPS["2"]
    if "beta" in flags:
        return STEPS["2 dpo"]
    if "sft_only_data_path" in flags:
        return STEPS["1"]
    raise SettingsError(
        f"{script} does not say which step of DeepSpeed-Chat it is",
        where="command line",
        remedy="give its path: training/step1_supervised_finetuning/main.py",
    )
