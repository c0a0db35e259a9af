"""What can be set: every setting of a stage with its type in words, its default and its help."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from annotated_types import Ge, Gt, Le, Lt

from duiqi.settings.names import NO_NAMES, NamesFrom
from duiqi.settings.stages import STAGE_DEFAULTS, STAGES, StageName


@dataclass(frozen=True, slots=True)
class SettingInfo:
    """One setting as a reader of the help sees it."""

    name: str
    group: str
    """Title of the group, such as "Optimisation"."""
    attribute: str
    """Name of the group inside the stage's config, such as "optimizer"."""
    type_text: str
    """What a value looks like: "integer above 0", "true or false"."""
    default: Any
    """None as well when the setting is required."""
    required: bool
    help: str
    choices: tuple[str, ...]
    """The words allowed; empty when the type is not a choice."""
    annotation: Any
    """The annotated type that pydantic checks."""

    @property
    def is_switch(self) -> bool:
        """Whether the setting is on or off."""
        return self.annotation is bool

    @property
    def allows_none(self) -> bool:
        """Whether null is a value."""
        return NoneType in get_args(self.annotation)


def known_settings(stage: StageName) -> list[SettingInfo]:
    """Every setting of a stage, group by group, with the stage's own defaults.

    >>> [setting.name for setting in known_settings("rm") if setting.required]
    ['model_name_or_path', 'dataset', 'output_dir']
    """
    return describe(STAGES[stage], STAGE_DEFAULTS[stage])


def describe(config_type: type, defaults: Mapping[str, Any]) -> list[SettingInfo]:
    """Every setting of a config class whose fields are groups (pydantic dataclasses).

    Args:
        defaults: Values that take the place of the groups' own defaults.
    """
    group_types = get_type_hints(config_type)
    return [
        setting
        for field in fields(config_type)
        for setting in _describe_group(field.name, group_types[field.name], defaults)
    ]


def _describe_group(attribute: str, group: Any, defaults: Mapping[str, Any]) -> list[SettingInfo]:
    annotations = get_type_hints(group, include_extras=True)
    settings = []
    for name, field in group.__pydantic_fields__.items():
        annotation, required = annotations[name], field.is_required() and name not in defaults
        settings.append(
            SettingInfo(
                name=name,
                group=(group.__doc__ or "").strip(),
                attribute=attribute,
                type_text=type_in_words(annotation),
                default=None if required else defaults.get(name, field.default),
                required=required,
                help=" ".join((field.description or "").split()),
                choices=_choices(annotation),
                annotation=annotation,
            )
        )
    return settings


def type_in_words(annotation: Any) -> str:
    """A type as a user would say it.

    >>> type_in_words(Annotated[int, Gt(0)] | None)
    'integer above 0, or null'
    """
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin in (Union, UnionType):
        words = [type_in_words(argument) for argument in arguments if argument is not NoneType]
        return f"{', '.join(words)}, or null"
    if origin is Literal:
        return f"one of {', '.join(arguments)}"
    if origin is Annotated and isinstance(arguments[1], NamesFrom):
        return str(arguments[1])
    if origin is Annotated:
        return f"{type_in_words(arguments[0])} {_bounds_in_words(arguments[1:])}"
    if origin is tuple:
        return "one or more names"
    return {int: "integer", float: "number", bool: "true or false", str: "text"}[annotation]


def _bounds_in_words(bounds: tuple[Any, ...]) -> str:
    match bounds:
        case (Ge(low), Le(high)):
            return f"from {low} to {high}"
        case (Gt(low), Le(high)):
            return f"above {low} and at most {high}"
        case (Gt(low),):
            return f"above {low}"
        case (Ge(low),):
            return f"of at least {low}"
        case (Lt(high),):
            return f"below {high}"
        case (Le(high),):
            return f"of at most {high}"
    raise AssertionError(f"no words for the bounds {bounds}")


def _choices(annotation: Any) -> tuple[str, ...]:
    if get_origin(annotation) is Literal:
        return get_args(annotation)
    if get_origin(annotation) is Annotated and isinstance(get_args(annotation)[1], NamesFrom):
        return (*get_args(annotation)[1].known, NO_NAMES)
    return next((_choices(argument) for argument in get_args(annotation) if get_origin(argument) is Literal), ())
