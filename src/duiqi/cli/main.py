"""The command `duiqi`: finds the command, shows help, and turns every error into one message and an exit status."""

from __future__ import annotations

import errno
import logging
import os
import sys
import traceback
from collections.abc import Sequence
from importlib import import_module
from typing import Any

from duiqi.cli.commands import COMMANDS, FAMILIES, command_of
from duiqi.cli.help import command_help, family_help, overview
from duiqi.errors import DuiqiError, Interrupted, SettingsError, did_you_mean

_INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line and give its exit status (`duiqi --help` lists them).

    Args:
        argv: The words after `duiqi`; without it, those of this process.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # where installed, it has a line for every command
    is_debugging = "--debug" in words
    try:
        _run([word for word in words if word != "--debug"])
        sys.stdout.flush()
    except BrokenPipeError:
        # Whoever read our output has left, as `head` does. Without this, Python complains again when it exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (Exception, KeyboardInterrupt) as error:
        if is_debugging and not isinstance(error, Interrupted):
            traceback.print_exc()
        return _explain(error, is_debugging=is_debugging)
    return 0


def _run(words: list[str]) -> None:
    """Show the help asked for, or run the command named first."""
    if not words or words[0] in ("--help", "-h", "help"):
        _say(overview(_version()))
        return
    if words[0] == "--version":
        _say(f"duiqi {_version()}")
        return
    name, rest = command_of(words)
    if name in FAMILIES and (not rest or rest[0] in ("--help", "-h", "help")):
        _say(family_help(name))
        return
    if name not in COMMANDS:
        typed, where = (f"{name} {rest[0]}", f"duiqi {name}") if name in FAMILIES else (name, "duiqi --help")
        remedy = did_you_mean(typed, COMMANDS) or f"`{where}` lists the commands"
        raise SettingsError(f"there is no command {typed!r}", remedy=remedy)

    from duiqi.cli.arguments import parse
    from duiqi.cli.options import settings_of, words_of

    if "--help" in rest or "-h" in rest:
        _say(command_help(name, settings_of(name)))
        return
    _load(COMMANDS[name].runner)(name, parse([name, *rest], words_of(name)))


def _explain(error: BaseException, *, is_debugging: bool) -> int:
    """Say on stderr what happened, and give the exit status for it."""
    if isinstance(error, Interrupted):
        _complain(str(error))
        return error.exit_code
    if isinstance(error, DuiqiError):
        _complain(f"error: {error}")
        return error.exit_code
    if isinstance(error, KeyboardInterrupt):
        _complain("interrupted before there was anything to save")
        return _INTERRUPTED
    if _is_disk_full(error):
        where = f"{error.filename}: " if isinstance(error, OSError) and error.filename else ""
        _complain(f"error: {where}no space left on the device")
        _complain("  -> free some space or write elsewhere; training goes on with resume_from_checkpoint=true")
        return SettingsError.exit_code
    if not is_debugging:
        traceback.print_exception(error)
    _complain("this is a bug in duiqi: please report it with the lines above and the output of `duiqi env`")
    return 1


def _is_disk_full(error: BaseException) -> bool:
    """Whether a full disk is behind an error; libraries in other languages tell it in words only."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    return "No space left on device" in str(error)


def _load(path: str) -> Any:
    """The function that `module:function` names."""
    module, function = path.split(":")
    return getattr(import_module(module), function)


def _version() -> str:
    import duiqi

    return duiqi.__version__


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")


def _complain(text: str) -> None:
    sys.stderr.write(f"{text}\n")
