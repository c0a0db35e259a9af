"""From files, flags and values to one frozen config, and back again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypedDict, TypeVar, Unpack, get_args, get_type_hints, overload

from duiqi.errors import SettingsError, did_you_mean
from duiqi.settings.checking import check
from duiqi.settings.conditions import is_active, listing
from duiqi.settings.describe import SettingInfo, describe, known_settings
from duiqi.settings.recipe import Given, read_recipe
from duiqi.settings.stages import (
    STAGE_DEFAULTS,
    STAGES,
    DPOConfig,
    PPOConfig,
    PretrainConfig,
    RewardModelConfig,
    SFTConfig,
    StageConfig,
    StageName,
)

C = TypeVar("C")

_NOTHING: Mapping[str, Any] = {}


class Sources(TypedDict, total=False):
    """The keywords of `resolve`, for its overloads."""

    recipe: Path | None
    overrides: Sequence[Given]
    values: Mapping[str, Any]


@overload
def resolve(stage: Literal["pretrain"], **sources: Unpack[Sources]) -> PretrainConfig: ...
@overload
def resolve(stage: Literal["sft"], **sources: Unpack[Sources]) -> SFTConfig: ...
@overload
def resolve(stage: Literal["rm"], **sources: Unpack[Sources]) -> RewardModelConfig: ...
@overload
def resolve(stage: Literal["dpo"], **sources: Unpack[Sources]) -> DPOConfig: ...
@overload
def resolve(stage: Literal["ppo"], **sources: Unpack[Sources]) -> PPOConfig: ...
@overload
def resolve(stage: StageName, **sources: Unpack[Sources]) -> StageConfig: ...
def resolve(
    stage: StageName,
    *,
    recipe: Path | None = None,
    overrides: Sequence[Given] = (),
    values: Mapping[str, Any] = _NOTHING,
) -> StageConfig:
    """The config of a stage. Later sources win: the stage's defaults, the recipe, the overrides in order, the values.

    Args:
        recipe: A flat YAML or JSON file of settings.
        overrides: What the command line gave.
        values: Python values by setting name; paths count as text.

    Raises:
        SettingsError: One message with every problem: unknown names, settings without effect, wrong values,
            required ones that are missing. A default that the recipe spells out, and an override leaves without
            effect, is no problem: so a run's config.yaml can be repeated with another `advantage`.
    """
    if stage not in STAGES:
        raise SettingsError(f"there is no stage {stage!r}", remedy=did_you_mean(stage, STAGES) or listing(STAGES))
    given = [item for item in read_recipe(recipe) if not _names_stage(item, stage)] if recipe else []
    given += overrides
    given += [
        Given(name, str(value) if isinstance(value, Path) else value, where=name) for name, value in values.items()
    ]
    elsewhere = {name: stages for name, stages in _stages_by_setting().items() if stage not in stages}
    return build(
        STAGES[stage],
        given,
        command=stage,
        defaults=STAGE_DEFAULTS[stage],
        elsewhere={name: listing(stages) for name, stages in elsewhere.items()},
    )


def build(
    config_type: type[C],
    given: Sequence[Given],
    *,
    command: str,
    defaults: Mapping[str, Any] = _NOTHING,
    elsewhere: Mapping[str, str] = _NOTHING,
) -> C:
    """A config class whose fields are groups, built from what was given.

    Args:
        command: The command the settings are for.
        defaults: Values that take the place of the groups' own defaults.
        elsewhere: Settings of other commands, with the commands that have them in words.

    Raises:
        SettingsError: As `resolve`.
    """
    known = describe(config_type, defaults)
    values = check(given, known, command=command, elsewhere=elsewhere)
    values = {setting.name: setting.default for setting in known if not setting.required} | values
    group_types = get_type_hints(config_type)
    groups = {
        attribute: group_types[attribute](**_values_of(attribute, known, values))
        for attribute in dict.fromkeys(setting.attribute for setting in known)
    }
    return config_type(**groups)


def dump(config: StageConfig) -> dict[str, Any]:
    """The settings of a config, flat and in the order of the help, without those that have no effect.

    Written as YAML and resolved again, they give an equal config.
    """
    known = describe(type(config), _NOTHING)
    values = {setting.name: getattr(getattr(config, setting.attribute), setting.name) for setting in known}
    return {name: value for name, value in values.items() if is_active(name, values)}


def _values_of(attribute: str, known: Sequence[SettingInfo], values: Mapping[str, Any]) -> dict[str, Any]:
    return {setting.name: values[setting.name] for setting in known if setting.attribute == attribute}


def _names_stage(item: Given, stage: StageName) -> bool:
    """Whether this is the recipe's own word on its stage, which must be ours."""
    if item.key != "stage":
        return False
    if item.value != stage:
        remedy = f"run it with `duiqi {item.value}`" if item.value in STAGES else f"the stages are {listing(STAGES)}"
        raise SettingsError(f"this recipe is for {item.value}, the command is {stage}", where=item.where, remedy=remedy)
    return True


def _stages_by_setting() -> dict[str, list[StageName]]:
    stages: dict[str, list[StageName]] = {}
    for stage in get_args(StageName):
        for setting in known_settings(stage):
            stages.setdefault(setting.name, []).append(stage)
    return stages
