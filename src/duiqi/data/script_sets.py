"""The datasets that ChatGLM-Efficient-Tuning and LLaMA-Factory read by a script (`script_url`), without the script.

Each script downloaded one published dataset and rewrote its rows. Here the same files are read as they are published,
from the script's folder or else from the hub, and the table of formats converts them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path, PurePosixPath


@dataclass(frozen=True, slots=True)
class ScriptSet:
    """What one script read."""

    format: str
    """The format of those rows, a key of `FORMATS`."""
    files: tuple[str, ...]
    """The files in the script's folder, as patterns."""
    hub: str | None = None
    """Where the script downloaded them."""


SCRIPT_SETS = {
    "example_dataset": ScriptSet("alpaca", ("examples.json",)),
    "belle_multiturn": ScriptSet("belle", ("multiturn_chat_0.8M.json",), "BelleGroup/multiturn_chat_0.8M"),
    "ultra_chat": ScriptSet("ultrachat", ("train_*.jsonl",), "stingning/ultrachat"),
    "hh_rlhf_en": ScriptSet("hh_rlhf", ("train.jsonl", "*/train.jsonl"), "Anthropic/hh-rlhf"),
}
"""{the name of the script or of its folder: what it read}."""


def script_name(script_url: str) -> str:
    """The name of a script: of the file, or of the folder that holds it.

    >>> script_name("belle_multiturn"), script_name("belle_multiturn/belle_multiturn.py")
    ('belle_multiturn', 'belle_multiturn')
    """
    return PurePosixPath(script_url).name.removesuffix(".py")


def script_files(script: ScriptSet, folder: Path) -> tuple[Path, ...]:
    """The files of a script that lie in its folder, sorted; none where there are none."""
    return tuple(path for pattern in script.files for path in sorted(folder.glob(pattern)) if path.is_file())
