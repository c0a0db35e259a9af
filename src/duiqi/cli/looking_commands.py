"""The commands of `duiqi data` that look at data as they are: how the help presents them and what runs them."""

from __future__ import annotations

from duiqi.cli.command import ANY_SETTINGS, Command


def _looking(summary: str, usage: str, example: str, runner: str) -> Command:
    return Command(summary, "Data", f"DATASET {usage}{ANY_SETTINGS}", example, f"duiqi.cli.looking_runners:{runner}")


LOOKING_COMMANDS: dict[str, Command] = {
    "data show": _looking(
        "Show rows as the stages see them, token by token.",
        "",
        "duiqi data show pairs.json --model_name_or_path runs/sft --rows 3,7",
        "show",
    ),
    "data check": _looking(
        "Find what is wrong with data, with file and line.",
        "",
        "duiqi data check pairs.json --eval_dataset held_out.json --model_name_or_path models/base --template zh_qa",
        "check",
    ),
    "data convert": _looking(
        "Write any format as JSON lines of one.",
        "--output_file OUT.jsonl ",
        "duiqi data convert pairs.json --output_file pairs.jsonl",
        "convert",
    ),
    "data split": _looking(
        "Deal prompts out to the stages, none to two.",
        "--output_dir DIR ",
        "duiqi data split pairs.json --parts 2,4,4 --output_dir data/parts",
        "split",
    ),
    "data stats": _looking(
        "Count rows, lengths, languages.",
        "[--json] ",
        "duiqi data stats pairs.json --model_name_or_path models/base",
        "stats",
    ),
}
