"""Which tool a command or a recipe is of."""

from __future__ import annotations

from collections.abc import Collection

from duiqi.errors import SettingsError, did_you_mean
from duiqi.legacy import chatglm_tuning, deepspeed_chat, llama_factory, llama_factory_2023, llm_tuning, stack_llama
from duiqi.legacy.dialect import Dialect
from duiqi.legacy.old_command import OldCommand, script_name

_LLM_TUNING = {"baichuan_lora_tuning.py": llm_tuning.SFT, "tokenize_dataset_rows.py": llm_tuning.TOKENIZE}
_LLM_TUNING_RM = {"lora_target_models"}
_LLM_TUNING_PPO = {"base_model_name", "merged_sft_model_path", "sft_model_lora_path", "reward_model_lora_path"}
_OF_2023 = {"template", "lora_bias", "dpo_beta", "system_prompt", "padding_side", "ppo_score_norm", "sft_packing"}
_OF_TODAY = {
    "pref_beta",
    "pref_loss",
    "adapter_name_or_path",
    "freeze_trainable_layers",
    "create_new_adapter",
    "cutoff_len",
}
_FACTORY_SCRIPTS = ("train.py", "llamafactory-cli train", "lmf train")
_INSTEAD = {
    "infer.py": "duiqi chat RUN",
    "cli_demo.py": "duiqi chat RUN",
    "web_demo.py": "duiqi chat RUN",
    "api_demo.py": "duiqi chat RUN, or `duiqi export` and a server of your choice",
    "train_web.py": "duiqi train RECIPE.yaml",
    "export_model.py": "duiqi export RUN --output_dir DIR",
    "predict.py": "duiqi generate RUN FILE --output_file OUT.jsonl",
    "llamafactory-cli export": "duiqi export RUN --output_dir DIR",
    "llamafactory-cli chat": "duiqi chat RUN",
    "llamafactory-cli webchat": "duiqi chat RUN",
    "llamafactory-cli api": "duiqi chat RUN, or `duiqi export` and a server of your choice",
    "llamafactory-cli webui": "duiqi train RECIPE.yaml",
    "llamafactory-cli eval": "duiqi generate RUN FILE --output_file OUT.jsonl",
    "e2e_rlhf.py": "duiqi sft, duiqi rm and duiqi ppo, one after the other",
}
KNOWN_SCRIPTS = (
    *chatglm_tuning.OF_MAY,
    "train_bash.py",
    *_FACTORY_SCRIPTS,
    *_LLM_TUNING,
    *stack_llama.SCRIPTS,
    "main.py",
)


def dialect_of(command: OldCommand) -> Dialect:
    """The dialect of an old command, by its script and, where two tools have one of its name, by its flags.

    Raises:
        SettingsError: The script is of no tool that is known here, or does what another command does.
    """
    name, flags = script_name(command.script), command.flags.keys()
    if name in chatglm_tuning.OF_MAY:
        return chatglm_tuning.OF_MAY[name]
    if name == "train_bash.py":
        return of_train_bash(flags)
    if name in _FACTORY_SCRIPTS:
        return llama_factory.OF_TODAY
    if name in _LLM_TUNING:
        return _LLM_TUNING[name]
    if name == "reward_modeling.py" and flags & _LLM_TUNING_RM:
        return llm_tuning.RM
    if name == "rl_training.py" and flags & _LLM_TUNING_PPO:
        return llm_tuning.PPO
    if name in stack_llama.SCRIPTS:
        return stack_llama.SCRIPTS[name]
    if name == "main.py":
        return deepspeed_chat.step_of(command.script, list(flags))
    remedy = f"use `{_INSTEAD[name]}`" if name in _INSTEAD else did_you_mean(name, KNOWN_SCRIPTS)
    raise SettingsError(
        f"{command.script} is no training script that is known here",
        where="command line",
        remedy=remedy or f"known are {', '.join(KNOWN_SCRIPTS)}",
    )


def of_train_bash(flags: Collection[str]) -> Dialect:
    """`train_bash.py` was the script of three tools, one after the other."""
    if _OF_TODAY & set(flags) and not {"checkpoint_dir", "dpo_beta"} & set(flags):
        return llama_factory.OF_TODAY
    return llama_factory_2023.OF_2023 if _OF_2023 & set(flags) else chatglm_tuning.OF_LAST


def of_recipe(names: Collection[str], known: Collection[str]) -> Dialect | None:
    """The dialect of a recipe by the names in it; None: every one of them is duiqi's own.

    Args:
        names: What the recipe sets, `stage` aside.
        known: The names of all settings here.
    """
    foreign = set(names) - set(known) - {"stage"}
    if not foreign:
        return None
    if foreign & {
        "checkpoint_dir",
        "num_layer_trainable",
        "name_module_trainable",
        "resume_lora_training",
        "dev_ratio",
    }:
        return of_train_bash(names) if "template" in names else chatglm_tuning.OF_LAST
    return llama_factory.OF_TODAY
