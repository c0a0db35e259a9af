"""The commands of `duiqi data` that make data: preferences, translations, conversations."""

from __future__ import annotations

from duiqi.cli.command import ANY_SETTINGS, Command

_FROM_FILE = f"FILE --output_file OUT.jsonl {ANY_SETTINGS}"


def _command(name: str, summary: str, example: str, usage: str = _FROM_FILE) -> Command:
    return Command(summary, "Make data", usage, f"duiqi data {name} {example}", f"duiqi.cli.making_runners:{name}")


MAKING_COMMANDS: dict[str, Command] = {
    "data sample": _command(
        "sample",
        "Draw several answers of a model to every prompt.",
        "runs/sft prompts.json --num_answers 4 --output_file sampled.jsonl",
        f"MODEL_OR_RUN FILE --output_file OUT.jsonl {ANY_SETTINGS}",
    ),
    "data judge": _command(
        "judge",
        "Have answers ranked or rated by another model.",
        "sampled.jsonl --model qwen-max --output_file judged.jsonl",
    ),
    "data label": _command(
        "label",
        "Write a file for people to rank answers in.",
        "sampled.jsonl --output_file labels.csv",
        f"FILE --output_file OUT.csv {ANY_SETTINGS}",
    ),
    "data pair": _command(
        "pair",
        "Make preferences of answers: best and worst, or rankings.",
        "judged.jsonl --by scores --output_file preferences.jsonl",
    ),
    "data translate": _command(
        "translate",
        "Translate the texts of a file; its rows keep their shape.",
        "hh.jsonl --to zh --model qwen-max --output_file hh_zh.jsonl",
    ),
    "data dialogue": _command(
        "dialogue",
        "Cut a script into conversations to learn from.",
        "script.txt --character 小满 --output_file persona.jsonl",
        f"SCRIPT --output_file OUT.jsonl {ANY_SETTINGS}",
    ),
    "data fill": _command(
        "fill",
        "Put names in the place of [NAME] and the like.",
        "self_cognition.json --fill NAME=小对,AUTHOR=我们 --output_file identity.json",
    ),
}
