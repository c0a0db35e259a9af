"""Which settings act only beside certain values of others; given without them, they are refused."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, get_args

from duiqi.settings.groups import TrackerName
from duiqi.settings.names import NO_NAMES


@dataclass(frozen=True, slots=True)
class Condition:
    """When a setting acts: one of some other settings passes a test. Met where a command has none of them."""

    others: tuple[str, ...]
    passes: Callable[[Any], bool]
    words: str
    """What must be so, as it follows "only with" and "set": `pref_loss=simpo`, `kl_target above 0`."""
    reason: str = ""
    """Why nothing happens otherwise, where the words do not say it."""
    is_in_help: bool = True
    """Whether the help of the setting names it; not where it would stand beside every other setting."""

    def is_met(self, values: Mapping[str, Any]) -> bool:
        """Whether these values of all settings let it act."""
        there = [other for other in self.others if other in values]
        return not there or any(self.passes(values[other]) for other in there)


def is_active(name: str, values: Mapping[str, Any]) -> bool:
    """Whether a setting acts beside these values of all settings."""
    return first_unmet(name, values) is None


def first_unmet(name: str, values: Mapping[str, Any]) -> Condition | None:
    """The first condition that keeps a setting from acting beside these values of all settings."""
    return next((condition for condition in ONLY_WITH.get(name, ()) if not condition.is_met(values)), None)


def condition_in_words(name: str, names: Collection[str]) -> str:
    """When a setting acts; empty when it always does beside settings of these names.

    >>> condition_in_words("simpo_gamma", ["pref_loss", "simpo_gamma"])
    'pref_loss=simpo'
    """
    conditions = ONLY_WITH.get(name, ())
    there = (condition for condition in conditions if any(other in names for other in condition.others))
    return " and ".join(condition.words for condition in there if condition.is_in_help)


def listing(names: Iterable[str], *, last: str = "and") -> str:
    """Names as a sentence lists them.

    >>> listing(["sft", "rm", "ppo"])
    'sft, rm and ppo'
    """
    *first, final = names
    return f"{', '.join(first)} {last} {final}" if first else final


def _one_of(other: str, *values: str) -> Condition:
    return Condition((other,), lambda value: value in values, f"{other}={listing(values, last='or')}")


def _off(other: str) -> Condition:
    return Condition((other,), lambda value: not value, f"{other}=false")


def _true(other: str) -> Condition:
    return Condition((other,), bool, f"{other}=true")


def _above(other: str, low: float) -> Condition:
    return Condition((other,), lambda value: value is not None and value > low, f"{other} above {low}")


_ABOVE_OTHERS = Condition(
    ("adapter_name_or_path", "create_new_adapter"),
    lambda value: value is None or value is True,
    "create_new_adapter=true",
    reason="the adapter that this starts from is trained in the shape it has",
    is_in_help=False,
)
_FOUR_BITS = Condition(("quantization_bit",), lambda value: value == 4, "quantization_bit=4")
_WHOLE_AND_STILL = (
    Condition(("weight_decay",), lambda value: value == 0, "weight_decay=0", reason="one half of each adapter stays"),
    Condition(
        ("quantization_bit",), lambda value: value is None, "quantization_bit=null", reason="it needs them whole"
    ),
)
_EVALUATION = Condition(
    ("eval_dataset", "val_size"), bool, "eval_dataset or val_size", reason="there is nothing to evaluate on"
)
_NOT_FEEDBACK = replace(
    _one_of("pref_loss", "sigmoid", "ipo", "hinge", "kto_pair", "orpo", "simpo", "cpo"),
    reason="rows of kto are not kept",
    is_in_help=False,
)
_NOT_STREAMED = replace(_off("streaming"), reason="not all rows are known", is_in_help=False)
_A_TRACKER = Condition(
    ("report_to",),
    lambda value: value != NO_NAMES,
    f"report_to={listing(get_args(TrackerName), last='or')}",
    reason="there is no tracker to tell",
)
_SEVERAL_REWARDS = Condition(
    ("reward_model",), lambda value: "," in str(value), "several reward models", reason="one score has no spread"
)
_SEVERAL_DATASETS = Condition(
    ("dataset",), lambda value: "," in str(value), "several datasets", reason="one has nothing to be mixed with"
)
_OUR_OWN_SERVER = (
    _one_of("rollout_engine", "vllm"),
    Condition(
        ("vllm_python",), lambda value: value is not None, "vllm_python", reason="there is no server that duiqi starts"
    ),
)

ONLY_WITH: dict[str, tuple[Condition, ...]] = {
    **dict.fromkeys(
        ("lora_rank", "lora_alpha", "lora_dropout", "lora_target", "use_rslora", "use_dora", "modules_to_save"),
        (_one_of("finetuning_type", "lora"), _ABOVE_OTHERS),
    ),
    **dict.fromkeys(
        ("freeze_trainable_layers", "freeze_trainable_modules"), (_one_of("finetuning_type", "freeze"), _ABOVE_OTHERS)
    ),
    **dict.fromkeys(("pre_seq_len", "prefix_projection"), (_one_of("finetuning_type", "p_tuning"), _ABOVE_OTHERS)),
    "pissa_init": (
        _one_of("finetuning_type", "lora"),
        _ABOVE_OTHERS,
        *map(_off, ("use_dora", "use_rslora")),
        *_WHOLE_AND_STILL,
    ),
    "loraplus_lr_ratio": (_one_of("finetuning_type", "lora"),),
    "quantization_bit": (_one_of("finetuning_type", "lora", "p_tuning"),),
    **dict.fromkeys(("quantization_type", "double_quantization"), (_FOUR_BITS,)),
    "add_tokens": (_true("resize_vocab"),),
    "create_new_adapter": (_one_of("finetuning_type", "lora", "freeze", "p_tuning"),),
    "train_from_scratch": (_one_of("finetuning_type", "full"),),
    **dict.fromkeys(("eval_steps", "load_best_model_at_end", "num_eval_samples", "second_opinion"), (_EVALUATION,)),
    "mix_strategy": (_NOT_STREAMED, _SEVERAL_DATASETS),
    "interleave_probs": (_one_of("mix_strategy", "interleave_under", "interleave_over"),),
    **dict.fromkeys(("val_size", "max_samples", "num_train_epochs"), (_NOT_STREAMED,)),
    "data_cache_dir": (_NOT_STREAMED, _NOT_FEEDBACK),
    "buffer_size": (_true("streaming"),),
    "save_keep_every": (
        _above("save_steps", 0),
        Condition(
            ("save_total_limit",),
            lambda value: value is not None,
            "save_total_limit above 0",
            reason="all are kept",
            is_in_help=False,
        ),
    ),
    **dict.fromkeys(("run_name", "project"), (_A_TRACKER,)),
    "dpo_label_smoothing": (_one_of("pref_loss", "sigmoid"),),
    "simpo_gamma": (_one_of("pref_loss", "simpo"),),
    "pref_ftx": (_one_of("pref_loss", "sigmoid", "ipo", "hinge", "kto_pair", "orpo", "simpo", "cpo"),),
    **dict.fromkeys(("kto_chosen_weight", "kto_rejected_weight"), (_one_of("pref_loss", "kto"),)),
    **dict.fromkeys(
        ("ref_model", "reuse_reference"), (_one_of("pref_loss", "sigmoid", "ipo", "hinge", "kto_pair", "kto"),)
    ),
    "score_baseline": (_off("score_norm"),),
    "overlong_penalty": (_above("overlong_buffer", 0),),
    "short_answer_penalty": (_above("min_answer_length", 0),),
    "score_std_coef": (_SEVERAL_REWARDS,),
    "watch_limits": (_one_of("watch", "stop", "warn"),),
    **dict.fromkeys(
        ("critic", "lam", "clip_range_value", "vf_coef", "critic_warmup_steps", "whiten_advantages"),
        (_one_of("advantage", "gae"),),
    ),
    "gamma": (_one_of("advantage", "gae", "reinforce++"),),
    **dict.fromkeys(("kl_target", "kl_estimator"), (_above("init_kl_coef", 0),)),
    "kl_horizon": (_above("kl_target", 0),),
    "target_kl": (_above("ppo_epochs", 1),),
    **dict.fromkeys(("top_p", "top_k"), (_above("temperature", 0),)),
    "generation_batch_size": (_one_of("rollout_engine", "own"),),
    **dict.fromkeys(("vllm_python", "vllm_url", "importance_cap"), (_one_of("rollout_engine", "vllm"),)),
    **dict.fromkeys(("vllm_startup_seconds", "vllm_memory_share", "vllm_args"), _OUR_OWN_SERVER),
}
"""The conditions of each setting, all of which must be met."""
