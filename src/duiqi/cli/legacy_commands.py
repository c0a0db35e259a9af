"""The commands that read what other tools read: their recipes and their command lines."""

from __future__ import annotations

from duiqi.cli.command import ANY_SETTINGS, Command

LEGACY_COMMANDS: dict[str, Command] = {
    "train": Command(
        "Run a recipe that names its stage, LLaMA-Factory's too.",
        "Train",
        f"RECIPE.yaml [--dry_run] [--strict false] {ANY_SETTINGS}",
        "duiqi train recipe.yaml --dry_run",
        "duiqi.cli.legacy_runners:train_recipe",
    ),
    "legacy": Command(
        "Run an old tool's command line with its old meaning.",
        "Train",
        f"[--dry_run] [--strict false] {ANY_SETTINGS} -- OLD COMMAND",
        "duiqi legacy --dry_run -- python src/train_rm.py --do_train --dataset comparison_gpt4_zh --output_dir runs/rm",
        "duiqi.cli.legacy_runners:legacy",
    ),
}
