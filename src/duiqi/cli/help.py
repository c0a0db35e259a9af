"""The texts of `duiqi --help` and `duiqi COMMAND --help`: plain text, fitted to the terminal."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Collection, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

from duiqi.cli.commands import COMMANDS, FAMILIES

if TYPE_CHECKING:
    from duiqi.settings.describe import SettingInfo

_EXIT_CODES = {
    "0": "done, or stopped at your request with everything saved",
    "1": "a bug in duiqi: the traceback is shown",
    "2": "something you can mend: the message says what, where and how",
    "3": "a guard stopped the run: the message names the best checkpoint; or a reward model failed its examination",
    "130": "interrupted before there was anything to save",
}

_OVERVIEW_INDENT = 18

_EXAMPLES = (
    "duiqi demo --output_dir runs/demo",
    "duiqi ppo recipe.yaml learning_rate=1e-5 --plot_loss",
    "duiqi chat runs/ppo",
)


def overview(version: str) -> str:
    """Every command with one line, the exit codes and three examples."""
    width = _width()
    lines = [
        f"duiqi {version}: from a base language model and preferences to an aligned model.",
        "",
        "Usage: duiqi COMMAND [RECIPE.yaml] [setting=value | --setting value] ...",
    ]
    for group, members in groupby(COMMANDS.items(), key=lambda item: item[1].group):
        lines += ["", group]
        for name, command in members:
            lines += _row(name, command.summary, indent=_OVERVIEW_INDENT, width=width)
    lines += ["", "Everywhere"]
    lines += _row("--help", "the settings of a command, with types and defaults", indent=_OVERVIEW_INDENT, width=width)
    lines += _row("--debug", "show the traceback of every error", indent=_OVERVIEW_INDENT, width=width)
    lines += _row("--version", "show the version", indent=_OVERVIEW_INDENT, width=width)
    lines += ["", "Exit codes"]
    for code, meaning in _EXIT_CODES.items():
        lines += _row(code, meaning, indent=_OVERVIEW_INDENT, width=width)
    return "\n".join([*lines, "", "Examples", *(f"  {example}" for example in _EXAMPLES)])


def family_help(family: str) -> str:
    """The commands of a family (`duiqi data`), each with one line."""
    width = _width()
    lines = [f"duiqi {family}: {FAMILIES[family]}", "", f"Usage: duiqi {family} COMMAND ...", ""]
    for name, command in COMMANDS.items():
        if name.startswith(f"{family} "):
            lines += _row(name.removeprefix(f"{family} "), command.summary, indent=_OVERVIEW_INDENT, width=width)
    return "\n".join([*lines, "", f"`duiqi {family} COMMAND --help` shows the settings of a command."])


def command_help(name: str, settings: Sequence[SettingInfo]) -> str:
    """Every setting of a command, the required ones first, then group by group; an example at the end."""
    command, width = COMMANDS[name], _width()
    indent = max((len(setting.name) for setting in settings), default=0) + 6
    lines = [*textwrap.wrap(f"duiqi {name}: {command.summary}", width), "", *_usage(name, command.usage, width)]
    names = {setting.name for setting in settings}
    required = [setting for setting in settings if setting.required]
    optional = [setting for setting in settings if not setting.required]
    sections = [("Required", required)] if required else []
    sections += [(group, list(members)) for group, members in groupby(optional, key=lambda setting: setting.group)]
    for title, members in sections:
        lines += ["", title]
        for setting in members:
            lines += _row(f"--{setting.name}", _explain(setting, names), indent=indent, width=width)
    return "\n".join([*lines, "", "Example", *_example(command.example, width)])


def _explain(setting: SettingInfo, names: Collection[str]) -> str:
    from duiqi.settings.conditions import condition_in_words

    notes = [setting.type_text]
    if not setting.required and setting.default not in (None, ""):
        notes.append(f"default {_in_words(setting.default)}")
    if condition := condition_in_words(setting.name, names):
        notes.append(f"only with {condition}")
    return f"{setting.help} [{'; '.join(notes)}]"


def _in_words(value: Any) -> str:
    """A default as a user would write it.

    >>> _in_words(True), _in_words(1e-05), _in_words(10000.0)
    ('true', '1e-05', '10000')
    """
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


def _row(label: str, text: str, *, indent: int, width: int) -> list[str]:
    """A label and its text beside it, or below it where the terminal is narrow."""
    if width - indent < 30:
        return [f"  {label}", *textwrap.wrap(text, width, initial_indent=" " * 6, subsequent_indent=" " * 6)]
    first, *rest = textwrap.wrap(text, width - indent, break_on_hyphens=False)
    return [f"  {label:<{indent - 2}}{first}", *(" " * indent + line for line in rest)]


def _usage(name: str, usage: str, width: int) -> list[str]:
    return textwrap.wrap(f"Usage: duiqi {name} {usage}".rstrip(), width, subsequent_indent=" " * 7)


def _example(example: str, width: int) -> list[str]:
    """A command that can be copied: broken where a flag begins, with a backslash."""
    if len(example) + 2 <= width:
        return [f"  {example}"]
    return ["  " + " \\\n    --".join(example.split(" --"))]


def _width() -> int:
    return max(40, min(shutil.get_terminal_size().columns, 110))
