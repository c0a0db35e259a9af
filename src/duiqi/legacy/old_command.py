"""Reading a command line of another tool: environment, launcher, script, flags."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from duiqi.errors import SettingsError

_ASSIGNMENT = re.compile(r"[A-Za-z_]\w*=.*", re.DOTALL)
_FLAG = re.compile(r"--?([A-Za-z][\w.-]*)(?:=(.*))?", re.DOTALL)
_PYTHON = re.compile(r"(.*/)?python[\d.]*")
_LAUNCHERS = ("torchrun", "deepspeed", "accelerate", "nohup", "srun", "time")
_CONTINUATION = re.compile(r"\\[ \t\r]*(\n|$)")
"""A line that goes on in the next one, also with white space that was pasted behind the backslash."""
_ONLY_CONTINUATION = re.compile(r"[\\\r\n]+")
_SHELL_WORDS = ("&&", "||", ";", "|", "&", ">", ">>", "<", "2>&1", "tee")
_COUNTS = ("nproc_per_node", "num_gpus", "num_processes")
_LAUNCHER_SWITCHES = ("multi_gpu", "standalone", "use_deepspeed", "use_fsdp", "cpu", "m", "module", "no_python")
_CLIS = ("llamafactory-cli", "lmf")


@dataclass(frozen=True)
class OldCommand:
    """A command of another tool, taken apart."""

    script: str
    """The script as it was named, or the words of a command-line tool: `llamafactory-cli train`."""
    flags: dict[str, str] = field(default_factory=dict)
    positionals: tuple[str, ...] = ()
    """Words that are no flag: the file of a configuration."""
    environment: tuple[str, ...] = ()
    launcher: tuple[str, ...] = ()
    processes: int = 1


def read_command(words: Sequence[str]) -> OldCommand:
    """Take a command line apart; one long word is split as a shell would.

    >>> read_command(["CUDA_VISIBLE_DEVICES=0", "python", "src/train_rm.py", "--do_train", "--lora_rank=4"]).flags
    {'do_train': 'true', 'lora_rank': '4'}

    Raises:
        SettingsError: No script is named, or there is more than one command.
    """
    rest = _split(words)
    environment: list[str] = []
    while rest and _ASSIGNMENT.fullmatch(rest[0]) and not rest[0].startswith("-"):
        environment.append(rest.pop(0))
    launcher, rest, processes = _take_launcher(rest)
    if not rest or not rest[0].strip() or rest[0].startswith("-"):
        raise SettingsError(
            "no script is named",
            where="command line",
            remedy="write the old command behind --: duiqi legacy -- python src/train_rm.py --do_train ...",
        )
    script, *rest = rest
    if script in ("bash", "sh") or script.endswith(".sh"):
        remedy = "give the commands that stand in it, one by one"
        raise SettingsError("a script of the shell is not read", where="command line", remedy=remedy)
    if script in _CLIS and rest:
        script = f"{script} {rest.pop(0)}"
    flags, positionals = _read_flags(rest)
    shown = next((text.partition("=")[2] for text in environment if text.startswith("CUDA_VISIBLE_DEVICES=")), "")
    is_spread = bool(set(launcher) & {"torchrun", "deepspeed", "accelerate"}) and processes == 0
    return OldCommand(
        script,
        flags,
        positionals,
        tuple(environment),
        tuple(launcher),
        processes=max(1, processes or (len(shown.split(",")) if is_spread and shown else 1)),
    )


def _split(words: Sequence[str]) -> list[str]:
    """The words without line continuations; an empty word and white space in a word are values."""
    text = list(words)
    if len(text) == 1 and re.search(r"\s", text[0]):
        try:
            text = shlex.split(_CONTINUATION.sub(" ", text[0]))
        except ValueError as error:
            raise SettingsError(f"the old command cannot be read ({error})", where="command line") from None
    text = [word for word in text if _ONLY_CONTINUATION.fullmatch(word) is None]
    for place, word in enumerate(text):
        if word in _SHELL_WORDS:
            raise SettingsError(
                f"{word!r} belongs to the shell, not to the command",
                where=f"command line, word {place + 1}",
                remedy="give one command, without pipes and redirections",
            )
    return text


def _take_launcher(words: list[str]) -> tuple[list[str], list[str], int]:
    """What starts the script, the rest, and how many processes it names (0: it does not say)."""
    launcher: list[str] = []
    rest, processes = list(words), 0
    while rest:
        word = rest[0]
        if word in _LAUNCHERS or _PYTHON.fullmatch(word) or (launcher and word == "launch"):
            launcher.append(rest.pop(0))
        elif launcher and (flag := _FLAG.fullmatch(word)):
            rest.pop(0)
            name, value = flag.group(1).replace("-", "_"), flag.group(2)
            if name in ("m", "module") and rest:
                launcher.append(word)
                if rest[0] in ("torch.distributed.launch", "torch.distributed.run", "accelerate.commands.launch"):
                    launcher += ["torchrun"]
                    rest.pop(0)
                continue
            if value is None and name not in _LAUNCHER_SWITCHES and rest and not rest[0].endswith(".py"):
                value = rest.pop(0)
            if name in _COUNTS and (value or "").isdigit():
                processes = int(value or 0)
            launcher.append(word)
        else:
            break
    return launcher, rest, processes


def _read_flags(words: Sequence[str]) -> tuple[dict[str, str], tuple[str, ...]]:
    """Flags with their values, several values joined by commas; a bare flag is true."""
    flags: dict[str, str] = {}
    positionals: list[str] = []
    rest = list(words)
    while rest:
        word = rest.pop(0)
        flag = _FLAG.fullmatch(word)
        if flag is None:
            positionals.append(word)
            continue
        name, value = flag.group(1).replace("-", "_"), flag.group(2)
        if value is None:
            values = []
            while rest and _FLAG.fullmatch(rest[0]) is None:
                values.append(rest.pop(0))
            value = ",".join(values) if values else "true"
        flags[name] = value
    return flags, tuple(positionals)


def script_name(script: str) -> str:
    """The last part of a script's path.

    >>> script_name("src/train_rm.py"), script_name("llamafactory-cli train")
    ('train_rm.py', 'llamafactory-cli train')
    """
    return script if " " in script else Path(script).name
