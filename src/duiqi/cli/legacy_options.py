"""The settings of `duiqi train` and `duiqi legacy`."""

from __future__ import annotations

from dataclasses import dataclass as plain_dataclass

from pydantic.dataclasses import dataclass

from duiqi.settings.groups import GROUP


@dataclass(frozen=True, kw_only=True, config=GROUP)
class RecipeOptions:
    """Recipe"""

    recipe: str
    """A YAML or JSON file of settings that names its stage, in duiqi's words or another tool's."""
    dry_run: bool = False
    """Say what it would do and need, check settings and data, and train nothing."""
    strict: bool = True
    """Refuse a recipe with settings that have no meaning here; false: go on without them."""


@dataclass(frozen=True, kw_only=True, config=GROUP)
class OldCommandOptions:
    """Old command"""

    dry_run: bool = False
    """Print the translation and the duiqi command, check its settings, and run nothing."""
    strict: bool = True
    """Refuse a command with flags that have no meaning here; false: go on without them."""


@plain_dataclass(frozen=True)
class RecipeConfig:
    """A recipe that names its stage."""

    recipe: RecipeOptions


@plain_dataclass(frozen=True)
class OldCommandConfig:
    """A command line of another tool."""

    old: OldCommandOptions


LEGACY_CONFIGS: dict[str, type] = {"train": RecipeConfig, "legacy": OldCommandConfig}
