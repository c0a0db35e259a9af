"""Old flags among duiqi's own: `duiqi sft --checkpoint_dir ...`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from duiqi.legacy import chatglm_tuning, llama_factory
from duiqi.legacy.answering import answering
from duiqi.legacy.chatglm_tuning import lineage, ppo_of_last, stage_line
from duiqi.legacy.dialect import Dialect, Line, Old, Trouble
from duiqi.legacy.trainer import READINGS
from duiqi.legacy.translation import Translation, translate
from duiqi.settings.describe import known_settings
from duiqi.settings.recipe import Given
from duiqi.settings.stages import StageName

FLAGS = {**llama_factory.FLAGS, **chatglm_tuning.FLAGS_OF_LAST}
"""Names that users of both tools may type; ChatGLM-Efficient-Tuning's meaning first."""


def modern(stage: StageName, given: Sequence[Given]) -> tuple[tuple[Given, ...], Translation | None]:
    """What was given with old flags in duiqi's words, and how they were read; None where there are none.

    An unknown name that no old tool had stays, and is refused by those who check settings.

    Raises:
        SettingsError: An old flag has no meaning here, or no effect.
    """
    known = {setting.name for setting in known_settings(stage)}
    old = [item for item in given if item.key not in known and item.key in FLAGS]
    if not old:
        return tuple(given), None
    said = {item.key: str(item.value) for item in old}
    if "save_strategy" in said or "eval_strategy" in said or "evaluation_strategy" in said:
        said |= {i.key: str(i.value) for i in given if i.key in ("save_steps", "eval_steps", "logging_steps")}
    said |= {i.key: str(i.value) for i in given if i.key == "finetuning_type"}
    dialect = Dialect(
        "old flags",
        FLAGS,
        lambda _: stage,
        readings=(
            *(reading for reading in READINGS if reading.__name__ != "rows_of_a_step"),
            *((ppo_of_last,) if stage == "ppo" else ()),
            longest_answer,
            lineage,
            stage_line,
            llama_factory.attention,
            answering,
        ),
    )
    found = translate(dialect, Old(said, is_inline=True))
    idle = [
        Trouble(line.flags, line.note, "remove it")
        for line in found.lines
        if not line.setting and line.flags and not _is_granted(line)
    ]
    Translation(found.tool, stage, found.lines, (*found.troubles, *idle), (), found.old).refuse_troubles()
    taken = {item.key for item in old} | found.settings.keys()
    return (*(item for item in given if item.key not in taken), *found.given()), found


def longest_answer(old: Old, command: str) -> Iterator[Line | Trouble]:
    """max_target_length in PPO, where answers are sampled."""
    if command == "ppo" and old.says("max_target_length"):
        yield Line(("max_target_length",), "max_new_tokens", old.get("max_target_length"))


def _is_granted(line: Line) -> bool:
    """Whether a flag asks for what is so anyway."""
    return line.note.startswith(
        ("that is what", "off, as here", "asks for nothing", "the command", "a copy of the last")
    )
