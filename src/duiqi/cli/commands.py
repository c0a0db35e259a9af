"""The table of commands. Light on purpose: everything heavy is named here and imported when it is needed."""

from __future__ import annotations

from collections.abc import Sequence

from duiqi.cli.command import ANY_SETTINGS, Command
from duiqi.cli.legacy_commands import LEGACY_COMMANDS
from duiqi.cli.looking_commands import LOOKING_COMMANDS
from duiqi.cli.making_commands import MAKING_COMMANDS

_STAGE_USAGE = f"[RECIPE.yaml] {ANY_SETTINGS}"


def _stage(summary: str, example: str) -> Command:
    return Command(summary, "Train", _STAGE_USAGE, example, "duiqi.cli.runners:train")


COMMANDS: dict[str, Command] = {
    "demo": Command(
        "Go the whole way in a small built-in world, report included.",
        "Start here",
        ANY_SETTINGS,
        "duiqi demo --output_dir runs/demo --seed 0",
        "duiqi.cli.runners:demo",
    ),
    "lab": Command(
        "Watch a reward model being exploited where the truth is known.",
        "Start here",
        f"overoptimisation {ANY_SETTINGS}",
        "duiqi lab overoptimisation --output_dir runs/lab --seeds 0-4",
        "duiqi.cli.runners:lab",
    ),
    "env": Command(
        "Show versions, device and memory.", "Start here", "", "duiqi env", "duiqi.cli.environment:show_environment"
    ),
    "pretrain": _stage(
        "Train a language model on plain text, from scratch or further.",
        "duiqi pretrain --model_name_or_path models/base --dataset corpus.txt --output_dir runs/pretrain",
    ),
    "sft": _stage(
        "Supervised fine-tuning: learn from demonstrations.",
        "duiqi sft --model_name_or_path models/base --dataset demonstrations.json --output_dir runs/sft",
    ),
    "rm": _stage(
        "Train a reward model on ranked answers.",
        "duiqi rm --model_name_or_path models/base --dataset preferences.json --output_dir runs/rm",
    ),
    "dpo": _stage(
        "Learn from preferences: DPO, IPO, KTO, ORPO, SimPO, CPO.",
        "duiqi dpo --model_name_or_path models/base --adapter_name_or_path runs/sft --dataset preferences.json"
        " --output_dir runs/dpo",
    ),
    "ppo": _stage(
        "Learn from a reward model: PPO, RLOO, GRPO, REINFORCE++.",
        "duiqi ppo --model_name_or_path models/base --adapter_name_or_path runs/sft --reward_model runs/rm"
        " --dataset prompts.json --output_dir runs/ppo",
    ),
    "plan": Command(
        "Say what a run will need: memory, steps, time, disk.",
        "Train",
        f"STAGE [RECIPE.yaml] [--json] {ANY_SETTINGS}",
        "duiqi plan sft --model_name_or_path models/base --dataset demonstrations.json --output_dir runs/sft",
        "duiqi.cli.runners:plan",
    ),
    **LEGACY_COMMANDS,
    **LOOKING_COMMANDS,
    **MAKING_COMMANDS,
    "generate": Command(
        "Answer a file of prompts, one JSON line each.",
        "Use",
        f"MODEL_OR_RUN FILE --output_file OUT.jsonl {ANY_SETTINGS}",
        "duiqi generate runs/ppo prompts.jsonl --output_file answers.jsonl",
        "duiqi.cli.runners:generate",
    ),
    "score": Command(
        "Score a file of answers or pairs with a reward model.",
        "Use",
        f"REWARD_RUN FILE --output_file OUT.jsonl {ANY_SETTINGS}",
        "duiqi score runs/rm answers.jsonl --output_file scores.jsonl",
        "duiqi.cli.runners:score",
    ),
    "chat": Command(
        "Talk to a model in the terminal.",
        "Use",
        f"MODEL_OR_RUN {ANY_SETTINGS}",
        "duiqi chat runs/ppo",
        "duiqi.cli.runners:chat",
    ),
    "export": Command(
        "Merge a run into one plain model that needs nothing of duiqi.",
        "Use",
        f"MODEL_OR_RUN --output_dir DIR {ANY_SETTINGS}",
        "duiqi export runs/ppo --output_dir models/aligned",
        "duiqi.cli.runners:export",
    ),
    "report": Command(
        "Write one HTML page that compares runs.",
        "Look",
        "RUN... [-o report.html]",
        "duiqi report runs/sft runs/dpo runs/ppo -o report.html",
        "duiqi.cli.runners:report",
    ),
    "exam": Command(
        "Examine a reward model before a policy learns from it.",
        "Look",
        f"REWARD_RUN_OR_FUNCTION {ANY_SETTINGS}",
        "duiqi exam runs/rm",
        "duiqi.cli.runners:exam",
    ),
}

FAMILIES: dict[str, str] = {"data": "Look at data, check it, convert it, and make preferences of it."}
"""The first words that several commands share (`data check`, `data show`), with what they are about."""


def command_of(words: Sequence[str]) -> tuple[str, list[str]]:
    """The command named first, of two words or of one, and the words behind it.

    >>> command_of(["ppo", "recipe.yaml"])
    ('ppo', ['recipe.yaml'])
    """
    of_two = " ".join(words[:2])
    return (of_two, list(words[2:])) if of_two in COMMANDS else (words[0], list(words[1:]))
