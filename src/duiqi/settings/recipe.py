"""Recipes: flat YAML (or JSON) files of settings, read with each one's line, and written so that they read back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from duiqi.errors import SettingsError


@dataclass(frozen=True, slots=True)
class Given:
    """One setting as somebody gave it."""

    name: str
    """The setting's name; dashes count as underscores."""
    value: Any
    """Text is read by the setting's type ("1e-5" becomes a number where one is expected); the rest is taken as is."""
    where: str
    """The place as a message names it: `recipe.yaml:7: lora_rank`, `--lora-rank`."""
    is_from_recipe: bool = False
    """Whether it stands in a file, which a command line may overrule."""

    @property
    def key(self) -> str:
        """The name with underscores."""
        return self.name.replace("-", "_")


def read_recipe(path: Path) -> list[Given]:
    """The settings of a recipe in the order of the file.

    A plain value is handed on as the text that was written, so `1e-5` (text to YAML 1.1) reaches a number and
    `system: yes` stays a word.

    Raises:
        SettingsError: The file is missing, is not YAML, is not a flat mapping, or names a setting twice.
    """
    root = _compose(path)
    if root is None:
        return []
    if not isinstance(root, yaml.MappingNode):
        raise SettingsError(
            f"a recipe is a list of `setting: value` lines, found {_kind(root)}", where=_place(path, root)
        )
    given: dict[str, Given] = {}
    for key, value in root.value:
        if not isinstance(key, yaml.ScalarNode):
            raise SettingsError(f"a setting's name is text, found {_kind(key)}", where=_place(path, key))
        item = Given(key.value, _read(value, path), where=f"{_place(path, key)}: {key.value}", is_from_recipe=True)
        if item.key in given:
            first = given[item.key].where.rsplit(": ", 1)[0]
            raise SettingsError("given twice", where=item.where, remedy=f"it is also at {first}; keep one")
        given[item.key] = item
    return list(given.values())


def _compose(path: Path) -> yaml.Node | None:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise SettingsError("there is no such recipe", where=str(path), remedy="give the path of a YAML file") from None
    except IsADirectoryError:
        remedy = "give the path of a YAML file, for a run its config.yaml"
        raise SettingsError("a recipe is a file, this is a directory", where=str(path), remedy=remedy) from None
    except PermissionError:
        remedy = "give yourself permission to read it"
        raise SettingsError("the recipe cannot be read", where=str(path), remedy=remedy) from None
    except UnicodeDecodeError as error:
        remedy = "save it as UTF-8"
        raise SettingsError(f"not UTF-8 text (byte {error.start})", where=str(path), remedy=remedy) from None
    try:
        return yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        line = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
        raise SettingsError(f"not valid YAML: {error.problem}", where=f"{path}{line}") from None
    except (yaml.YAMLError, RecursionError) as error:
        raise SettingsError(f"not valid YAML: {str(error).splitlines()[0]}", where=str(path)) from None


def _read(node: yaml.Node, path: Path) -> Any:
    """The text of a value, None for YAML's null; of a list the texts of its members, None for what is no text.

    A dict, which no setting accepts, is empty, for the message alone.
    """
    if not node.tag.startswith("tag:yaml.org,2002:") or "python" in node.tag:
        raise SettingsError(f"values have no tags here, found {node.tag}", where=_place(path, node), remedy="remove it")
    if isinstance(node, yaml.ScalarNode):
        return _text(node)
    return [_text(each) for each in node.value] if isinstance(node, yaml.SequenceNode) else {}


def _text(node: yaml.Node) -> str | None:
    is_text = isinstance(node, yaml.ScalarNode) and node.tag != "tag:yaml.org,2002:null"
    return str(node.value) if is_text else None


def _kind(node: yaml.Node) -> str:
    if isinstance(node, yaml.SequenceNode):
        return "a list"
    return "settings within settings" if isinstance(node, yaml.MappingNode) else f"{node.value!r}"


def _place(path: Path, node: yaml.Node) -> str:
    return f"{path}:{node.start_mark.line + 1}"


def to_yaml(values: Mapping[str, Any]) -> str:
    """Settings as a recipe that reads back as the same, in plain Unicode where that does.

    PyYAML writes a few of Unicode's line separators as they are, and reads them as spaces.
    """
    text = yaml.safe_dump(dict(values), sort_keys=False, allow_unicode=True, width=120)
    if yaml.safe_load(text) == dict(values):
        return str(text)
    return str(yaml.safe_dump(dict(values), sort_keys=False, width=120))
