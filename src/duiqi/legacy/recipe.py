"""Recipes of other tools: a LLaMA-Factory YAML, a configuration of ChatGLM-Efficient-Tuning."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from duiqi.errors import SettingsError, did_you_mean
from duiqi.legacy.dialect import Dialect, Old
from duiqi.legacy.dialects import of_recipe
from duiqi.legacy.rules import NoEffect, Refused, Rule
from duiqi.legacy.translation import Translation, translate
from duiqi.settings.describe import known_settings
from duiqi.settings.recipe import Given, read_recipe
from duiqi.settings.stages import STAGES

_STAGES = (*STAGES, "pt", "kto")


@dataclass(frozen=True)
class OwnRecipe:
    """A recipe in duiqi's own words that names its stage."""

    stage: str
    overrides: tuple[Given, ...]


def read_foreign(file: Path, overrides: Sequence[Given], *, dialect: Dialect | None = None) -> OwnRecipe | Translation:
    """What a recipe says, in duiqi's words.

    Args:
        file: YAML or JSON, flat.
        overrides: What the command line says besides, under the recipe's names or duiqi's.
        dialect: Whose recipe it is; by default its names tell.

    Raises:
        SettingsError: It names no stage, or something that neither tool knows.
    """
    given = read_recipe(file)
    ours = {setting.name for stage in STAGES for setting in known_settings(stage)}
    names = {item.key: item for item in (*given, *overrides)}
    if "stage" not in names and dialect is None:
        raise SettingsError(
            "it does not say which stage it is for",
            where=str(file),
            remedy=f"write a line stage: sft into it (or {', '.join(_STAGES[1:])}), or run `duiqi sft {file}`",
        )
    stage = names["stage"].value if "stage" in names else ""
    if not isinstance(stage, str):
        raise SettingsError("expected the name of a stage", where=names["stage"].where, remedy="write stage: sft")
    dialect = dialect or of_recipe(names, ours)
    if dialect is None and stage in STAGES:
        return OwnRecipe(stage, tuple(item for item in overrides if item.key != "stage"))
    if dialect is None:
        dialect = of_recipe([*names, "do_train"], ours)
    assert dialect is not None
    return _translated(names, dialect, ours)


def _translated(names: Mapping[str, Given], dialect: Dialect, ours: set[str]) -> Translation:
    said: dict[str, str] = {}
    later: dict[str, str] = {}
    for key, item in names.items():
        if key in dialect.flags and item.value is None:
            continue  # null says nothing
        if key in dialect.flags:
            said[key] = _flat(item, dialect.flags[key])
        elif key in ours:
            later[key] = "null" if item.value is None else _flat(item, None)
        else:
            near = did_you_mean(key, {*dialect.flags, *ours})
            raise SettingsError(
                f"neither {dialect.tool} nor duiqi knows it", where=item.where, remedy=near or "check its spelling"
            )
    if "stage" in said and said["stage"] == "pretrain":
        said["stage"] = "pt"
    places = {name: names[name].where for name in said if names[name].is_from_recipe}
    return translate(dialect, Old(said, dialect.defaults, places=places), later=later)


def _flat(item: Given, rule: Rule | None) -> str:
    """A value as text, a list with commas; what holds more than texts only where nothing is made of it anyway.

    Raises:
        SettingsError: It cannot be written as one text.
    """
    value = item.value
    if not isinstance(value, list | dict):
        return str(value)
    if isinstance(value, list) and all(isinstance(each, str) for each in value):
        return ",".join(value)
    if isinstance(rule, Refused | NoEffect):
        return "[...]" if isinstance(value, list) else "{...}"
    what = "a list of more than plain values" if isinstance(value, list) else "settings within settings"
    remedy = "write plain values: a,b" if isinstance(value, list) else "write one value, on the line of its name"
    raise SettingsError(f"found {what}", where=item.where, remedy=remedy)
