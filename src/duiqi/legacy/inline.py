"""Old flags among duiqi's own: `duiqi sft --checkpoint_dir ...`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from duiqi.legacy import chatglm_tuning, llama_factory
from duiqi.legacy.answering import answering
from duiqi.legacy.chatglm_tuning import lineage, ppo_of_last, stage_line
from duiqi.legacy.dialect import Dialect, Line, Old, Trouble
from duiqi.legacy.trainer import cadence, mode, optimiser, precision, resuming
from duiqi.legacy.translation import Translation, translate
from duiqi.settings.describe import known_settings
from duiqi.settings.recipe import Given
from duiqi.settings.stages import StageName

FLAGS = {**llama_factory.FLAGS, **chatglm_tuning.FLAGS_OF_LAST}
"""Names that users of both tools may type; ChatGLM-Efficient-Tuning's meaning first."""
_MEANT_TOGETHER = ("finetuning_type", "eval_steps", "save_steps", "logging_steps")
"""duiqi's own names that old flags are read with."""


def modern(stage: StageName, given: Sequence[Given]) -> tuple[tuple[Given, ...], Translation | None]:
    """What was given with old flags in duiqi's words, and how they were read; None where there are none.

    An unknown name that no old tool had stays, and is refused by those who check settings.

    Raises:
        SettingsError: An old flag has no meaning here, or no effect.
    """
    known = {setting.name: setting for setting in known_settings(stage)}
    old = [item for item in given if item.key not in known and item.key in FLAGS]
    if not old:
        return tuple(given), None
    said = {item.key: str(item.value) for item in old}
    beside = [item for item in given if item.key in _MEANT_TOGETHER]
    said |= {item.key: str(item.value) for item in beside}
    later = {item.key: str(item.value) for item in given if item.key in known and item.key not in said}
    dialect = Dialect(
        "old flags",
        FLAGS,
        lambda _: stage,
        readings=(
            mode,
            precision,
            cadence,
            optimiser,
            resuming,
            ppo_of_last,
            longest_answer,
            lineage,
            stage_line,
            llama_factory.attention,
            answering,
        ),
    )
    found = translate(dialect, Old(said, is_inline=True), later=later)
    lines = tuple(line for line in found.lines if set(line.flags).intersection(item.key for item in old))
    idle = [Trouble(line.flags, line.note, "remove it") for line in lines if not line.setting and not line.is_so_anyway]
    shown = replace(found, lines=lines, troubles=(*found.troubles, *idle))
    shown.refuse_troubles()
    made = tuple(item for item in found.given() if item.key not in later)
    kept = tuple(item for item in given if item.key in later or (item.key not in FLAGS and item.key not in known))
    return (*kept, *made), shown


def longest_answer(old: Old, command: str) -> Iterator[Line | Trouble]:
    """max_target_length in PPO, where answers are sampled."""
    if command == "ppo" and old.says("max_target_length"):
        yield Line(("max_target_length",), "max_new_tokens", old.get("max_target_length"))
