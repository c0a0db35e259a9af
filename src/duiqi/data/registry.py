"""Which data a name means: dataset_info.json as ChatGLM-Efficient-Tuning and LLaMA-Factory write it, or a path.

Only the entry that is asked for is judged, so a registry may hold entries that duiqi cannot read.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Gt
from pydantic import TypeAdapter, ValidationError
from typing_extensions import TypedDict  # pydantic reads typing's from Python 3.12 on

from duiqi.data.formats import named_format
from duiqi.data.reading import decode, describe
from duiqi.errors import DataError, did_you_mean
from duiqi.journal.checksums import is_inside

REGISTRY_FILE = "dataset_info.json"
HUB_PREFIX = "hub:"


class Entry(TypedDict, total=False):
    """An entry of dataset_info.json. Keys that nobody reads are known, so that a misspelt one is told from them."""

    file_name: str | None
    file_sha1: str | None
    hf_hub_url: str | None
    ms_hub_url: Any
    om_hub_url: Any
    script_url: Any
    subset: str | None
    split: str | None
    formatting: str
    columns: dict[str, str | None] | None
    tags: dict[str, str] | None
    ranking: bool
    num_samples: Annotated[int, Gt(0)] | None
    system: str | None


ENTRY_KEYS = frozenset(Entry.__annotations__)
_ENTRY = TypeAdapter(Entry)
_HUB_NAME = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")
ALPACA_COLUMNS = {"prompt": "instruction", "query": "input", "response": "output"}
COMMON_COLUMNS = {name: name for name in ("history", "system", "chosen", "rejected", "margin")}
UNREAD_COLUMNS = frozenset({"tools", "images", "videos", "audios", "kto_tag"})
DEFAULT_TAGS = {
    "sharegpt": {"role_tag": "from", "content_tag": "value", "user_tag": "human", "assistant_tag": "gpt"},
    "openai": {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"},
}


@dataclass(frozen=True, slots=True)
class DatasetSpec:
    """One part of a `dataset` setting: a name or path, at most how many of its rows, and perhaps their format."""

    name: str
    cap: int | None = None
    format: str | None = None


@dataclass(frozen=True, slots=True)
class HubDataset:
    """Where a dataset lies on the hub."""

    name: str
    subset: str | None = None
    split: str = "train"


@dataclass(frozen=True, slots=True)
class ColumnMap:
    """How a dataset's own column names and role names translate into the standard ones."""

    columns: Mapping[str, str]
    """{standard column: the dataset's column}."""
    tags: Mapping[str, str] | None = None
    """{role_tag, content_tag, user_tag ...} of message lists; None where there are none."""

    def rename(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """The row with standard column names, and messages as role/content. Columns not named are left out."""
        renamed = {standard: row[own] for standard, own in self.columns.items() if own in row}
        if self.tags is not None:
            for column in ("messages", "chosen", "rejected"):
                if column in renamed:
                    renamed[column] = self._standard_messages(renamed[column])
        return renamed

    def _standard_messages(self, value: Any) -> Any:
        if isinstance(value, list):
            return [self._standard_messages(item) for item in value]
        assert self.tags is not None
        role_key, content_key = self.tags["role_tag"], self.tags["content_tag"]
        if not isinstance(value, dict) or role_key not in value or content_key not in value:
            return value  # left as it is: the format says what it found and what it expected
        role = value[role_key]
        roles = {
            self.tags["user_tag"]: "user",
            self.tags["assistant_tag"]: "assistant",
            self.tags.get("system_tag", "system"): "system",
        }
        return {"role": roles.get(role, role) if isinstance(role, str) else role, "content": value[content_key]}


@dataclass(frozen=True, slots=True)
class DatasetSource:
    """Where a dataset lies and how to read it."""

    name: str
    path: Path | None = None
    hub: HubDataset | None = None
    column_map: ColumnMap | None = None
    """None: the columns have standard names."""
    ranking: bool = False
    """The registry says that every row ranks several answers."""
    system: str = ""
    """System message for the rows that have none."""
    num_samples: int | None = None
    sha1: str | None = None
    format_name: str | None = None
    """The format of the rows, where their columns are not to tell it."""


def parse_dataset_spec(text: str) -> list[DatasetSpec]:
    """The datasets of a setting, in order. A cap is `@` or `#` and digits (or `all`) at the end of a name.

    Before it may stand a format in brackets, where the columns alone do not tell it.

    >>> [spec.cap for spec in parse_dataset_spec("alpaca_zh, data/me@home.json@1000")]
    [None, 1000]
    >>> parse_dataset_spec("hc3[hc3_prefer_human]@10")
    [DatasetSpec(name='hc3', cap=10, format='hc3_prefer_human')]
    """
    specs = []
    for part in text.split(","):
        match = re.fullmatch(r"(.+?)(?:\[([a-z]\w*)\])?(?:[@#](\d+|all))?", part.strip())
        if match is None:
            raise DataError(
                "found an empty name, expected names separated by commas", where=f"dataset: {text}", remedy="a,b@1000"
            )
        name, form, cap = match.groups()
        if form is not None:
            named_format(form, where=f"dataset: {part.strip()}")
        if cap is not None and cap != "all" and int(cap) == 0:
            raise DataError(f"{part.strip()} takes no rows, expected a cap of at least 1", where=f"dataset: {text}")
        specs.append(DatasetSpec(name, None if cap in (None, "all") else int(cap), form))
    return specs


def resolve(name: str, dataset_dir: str | Path, *, format_name: str | None = None) -> DatasetSource:
    """What `name` means: an entry of the registry, else `hub:...`, else a path (from here, else from `dataset_dir`).

    Args:
        name: As in the `dataset` setting, without cap and format.
        dataset_dir: Where the registry lies.
        format_name: The format of its rows; wins over what the registry says.

    Raises:
        DataError: Nothing has that name, or its entry cannot be read; near names and the registry are named.
    """
    directory = Path(dataset_dir)
    registry_path = directory / REGISTRY_FILE
    registry = _read_registry(registry_path) if os.path.isfile(registry_path) else {}
    if name in registry:
        source = _source_of(name, registry[name], directory, where=f"{registry_path}: {name}")
        return replace(source, format_name=format_name or source.format_name)
    if name.startswith(HUB_PREFIX):
        hub = _hub_dataset(name.removeprefix(HUB_PREFIX), where=f"dataset: {name}")
        return DatasetSource(name, hub=hub, format_name=format_name)
    for path in (Path(name), directory / name):
        if os.path.exists(path):  # where Path.exists() raises on a name that no file can have, this says no
            return DatasetSource(name, path=path, format_name=format_name)
    known = f"it lists {len(registry)} datasets" if os.path.isfile(registry_path) else "there is no such file"
    raise DataError(
        f"no dataset and no file is named {name!r}; looked in {registry_path} ({known})",
        where=f"dataset: {name}",
        remedy=did_you_mean(name, registry) or f"add it to {registry_path}, give a path, or write hub:owner/name",
    )


def _read_registry(path: Path) -> dict[str, Any]:
    try:
        registry = json.loads(decode(path, path.read_bytes()))
    except json.JSONDecodeError as error:
        raise DataError(
            f"not valid JSON at column {error.colno}: {error.msg}", where=f"{path}:{error.lineno}"
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"cannot be read: {error}", where=str(path)) from error
    if not isinstance(registry, dict):
        raise DataError("found no object, expected {name: {file_name: ...}}", where=str(path))
    return registry


def _source_of(name: str, found: Any, directory: Path, *, where: str) -> DatasetSource:
    entry = _checked(found, where=where)
    hub, path = None, None
    if hub_name := entry.get("hf_hub_url"):
        hub = _hub_dataset(hub_name, entry.get("subset"), entry.get("split"), where=where)
    elif file_name := entry.get("file_name"):
        path = _path_in(directory, file_name, where=where)
    else:
        key = next((k for k in ("script_url", "ms_hub_url", "om_hub_url") if entry.get(k)), None)
        raise DataError(
            f"{key} cannot be read" if key else "found no source, expected file_name or hf_hub_url",
            where=where,
            remedy="convert the data to .jsonl once, and give it as file_name",
        )
    return DatasetSource(
        name,
        path=path,
        hub=hub,
        column_map=_column_map(entry, where=where),
        ranking=bool(entry.get("ranking")),
        system=entry.get("system") or "",
        num_samples=entry.get("num_samples"),
        sha1=entry.get("file_sha1") if path is not None else None,
    )


def _checked(found: Any, *, where: str) -> Entry:
    if not isinstance(found, dict):
        raise DataError("found no object, expected {file_name: ...}", where=where)
    for key in found:
        if key not in ENTRY_KEYS:
            raise DataError(f"unknown key {key!r}", where=where, remedy=did_you_mean(key, ENTRY_KEYS) or "remove it")
    try:
        return _ENTRY.validate_python(found)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise DataError(f"{place}: found {describe(first['input'])}; {first['msg']}", where=where) from None


def _path_in(directory: Path, file_name: str, *, where: str) -> Path:
    """The file of an entry. A registry comes with its data, often from elsewhere: it shall not name other files here.

    Raises:
        DataError: It lies outside of the registry's directory.
    """
    if not is_inside(file_name):
        raise DataError(
            f"file_name {file_name!r} leads out of {directory}",
            where=where,
            remedy="put the file into it (a link will do), or give its path as dataset: PATH",
        )
    return directory / file_name


def _hub_dataset(name: str, subset: str | None = None, split: str | None = None, *, where: str) -> HubDataset:
    """A dataset of the hub, which is no directory here.

    Raises:
        DataError: The name could be a path.
    """
    if not _HUB_NAME.fullmatch(name):
        raise DataError(f"found {name!r}, expected the name of a dataset on the hub: owner/name", where=where)
    return HubDataset(name, subset, split or "train")


def _column_map(entry: Entry, *, where: str) -> ColumnMap | None:
    """The renaming an entry asks for. Where `columns` is given, a column it does not name (or names "") is absent."""
    formatting = entry.get("formatting", "alpaca")
    if formatting not in ("alpaca", *DEFAULT_TAGS):
        raise DataError(
            f"found formatting {formatting!r}, expected one of alpaca, {', '.join(DEFAULT_TAGS)}", where=where
        )
    named = entry.get("columns")
    if formatting == "alpaca":
        if named is None:
            return None
        standard_names, tags = ALPACA_COLUMNS | COMMON_COLUMNS, None
    else:
        standard_names = {"messages": "messages"} | COMMON_COLUMNS
        tags = DEFAULT_TAGS[formatting] | (entry.get("tags") or {})
        named = named or {"messages": "conversations" if formatting == "sharegpt" else "messages"}
    columns = {}
    for key, own in named.items():
        if not own:
            continue
        if key in UNREAD_COLUMNS:
            raise DataError(f"the column {key!r} is not supported", where=where, remedy="remove it from columns")
        if key not in standard_names:
            hint = did_you_mean(key, standard_names) or f"expected some of {', '.join(standard_names)}"
            raise DataError(f"unknown column {key!r} in columns", where=where, remedy=hint)
        columns[standard_names[key]] = own
    return ColumnMap(columns, tags)
