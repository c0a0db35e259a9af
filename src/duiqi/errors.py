"""One error tree. What a user can mend is a `UserError`; everything else that escapes is a bug of ours.

The command line turns these into an exit status and one message: 2 for what the user can mend, 3 for a
run that a guard stopped, 130 for an interruption before anything could be saved.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class DuiqiError(Exception):
    """The root of every error duiqi raises on purpose."""

    exit_code = 1


class UserError(DuiqiError, ValueError):
    """Something the user can mend: what is wrong, where, and what to do about it.

    Args:
        problem: What is wrong, in one sentence.
        where: The place: `file:line`, a setting's name, a directory.
        remedy: What to do next.
    """

    exit_code = 2

    def __init__(self, problem: str, *, where: str | None = None, remedy: str | None = None) -> None:
        self.problem, self.where, self.remedy = problem, where, remedy
        lines = [f"{where}: {problem}" if where else problem]
        if remedy:
            lines.append(f"  -> {remedy}")
        super().__init__("\n".join(lines))


class SettingsError(UserError):
    """A setting is unknown, has the wrong type, or has no effect in this run."""


class DataError(UserError):
    """A dataset is missing, malformed, or not of the kind that the stage needs."""


class TemplateError(UserError):
    """A template is unknown, or differs between stages that must share it."""


class ModelError(UserError):
    """A model or adapter is missing, incomplete, or does not fit the base."""


class RunError(UserError):
    """A run directory is in use, incomplete, or cannot be written."""


class GuardStop(DuiqiError):
    """A guard stopped the run; `remedy` names the best checkpoint and what to look at."""

    exit_code = 3

    def __init__(self, finding: str, *, remedy: str) -> None:
        self.finding, self.remedy = finding, remedy
        super().__init__(f"{finding}\n  -> {remedy}")


class Interrupted(DuiqiError):
    """The user asked the run to stop, and the message says how to go on.

    Args:
        message: What became of the run, and the command that continues it.
        is_saved: Whether everything up to now was saved; not where a second signal left no time for it.
    """

    def __init__(self, message: str, *, is_saved: bool = True) -> None:
        self.exit_code = 0 if is_saved else 130
        super().__init__(message)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The nearest known names, as the end of a message; empty when nothing is near.

    >>> did_you_mean("lora_rnk", ["lora_rank", "lora_alpha"])
    'did you mean lora_rank?'
    """
    near = difflib.get_close_matches(name, list(known), n=3, cutoff=0.6)
    return f"did you mean {' or '.join(near)}?" if near else ""
