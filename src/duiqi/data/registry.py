"""Which data a name means: dataset_info.json as ChatGLM-Efficient-Tuning and LLaMA-Factory write it, or a path.

Only the entry that is asked for is judged, so a registry may hold entries that duiqi cannot read.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Gt
from pydantic import TypeAdapter, ValidationError
from typing_extensions import TypedDict  # pydantic reads typing's from Python 3.12 on

from duiqi.data.column_map import ColumnMap, read_column_map
from duiqi.data.formats import named_format
from duiqi.data.reading import decode, describe
from duiqi.data.script_sets import SCRIPT_SETS, script_files, script_name
from duiqi.errors import DataError, did_you_mean
from duiqi.journal.checksums import is_inside

REGISTRY_FILE = "dataset_info.json"
HUB_PREFIX = "hub:"


class Entry(TypedDict, total=False):
    """An entry of dataset_info.json. Keys of places that duiqi does not reach are known, so as to say so."""

    file_name: str | None
    file_sha1: str | None
    hf_hub_url: str | None
    ms_hub_url: Any
    om_hub_url: Any
    script_url: str | None
    cloud_file_name: Any
    load_from: Literal["hf_hub", "ms_hub", "om_hub", "script", "cloud_file", "file"] | None
    subset: str | None
    split: str | None
    folder: str | None
    format: str | None
    formatting: str
    columns: dict[str, str | None] | None
    tags: dict[str, str] | None
    ranking: bool
    num_samples: Annotated[int, Gt(0)] | None
    system: str | None


ENTRY_KEYS = frozenset(Entry.__annotations__)
_ENTRY = TypeAdapter(Entry)
_HUB_NAME = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")


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
    folder: str | None = None
    """A folder of the repository, where only its files are meant."""


@dataclass(frozen=True, slots=True)
class DatasetSource:
    """Where a dataset lies (one of `path`, `files` and `hub`) and how to read it."""

    name: str
    path: Path | None = None
    files: tuple[Path, ...] = ()
    """The files themselves, where they are some of a folder's."""
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
    formatting, form = entry.get("formatting", "alpaca"), entry.get("format")
    source = DatasetSource(
        name,
        column_map=read_column_map(formatting, entry.get("columns"), entry.get("tags"), where=where),
        ranking=bool(entry.get("ranking")),
        system=entry.get("system") or "",
        num_samples=entry.get("num_samples"),
        format_name=None if form is None else named_format(form, where=where),
    )
    wanted = entry.get("load_from")
    named = {place: key for place, key in PLACES.items() if entry.get(key) and wanted in (None, place)}
    for place in named:
        if located := _located(source, place, entry, directory, where=where):
            return located
    if not named:
        expected = f"{PLACES[wanted]}, because of load_from: {wanted}" if wanted else "file_name or hf_hub_url"
        raise DataError(f"found no source, expected {expected}", where=where, remedy="say where the data lie")
    key = next(iter(named.values()))
    raise DataError(
        f"{key} cannot be read: {UNREACHED[key]}",
        where=where,
        remedy="download the data once, and give the file as file_name",
    )


def _located(source: DatasetSource, place: str, entry: Entry, directory: Path, *, where: str) -> DatasetSource | None:
    """The source at one of the places that its entry names; None where duiqi does not go."""
    match place:
        case "hf_hub":
            hub = _hub_dataset(entry["hf_hub_url"] or "", where=where)
            subset, split, folder = entry.get("subset"), entry.get("split") or "train", entry.get("folder")
            return replace(source, hub=replace(hub, subset=subset, split=split, folder=folder))
        case "script":
            return _script_source(source, entry["script_url"] or "", directory, where=where)
        case "file":
            path = _path_in(directory, entry["file_name"] or "", key="file_name", where=where)
            for key in ("subset", "folder", "split"):
                if entry.get(key) not in (None, "", "train"):
                    raise DataError(
                        f"{key} chooses a part of a hub dataset, and a file has none",
                        where=where,
                        remedy=f"remove {key}, and give that part as a file of its own",
                    )
            return replace(source, path=path, sha1=entry.get("file_sha1"))
        case _:
            return None


def _script_source(source: DatasetSource, script_url: str, directory: Path, *, where: str) -> DatasetSource | None:
    """What a known script read: its files beside it, else the hub dataset it downloaded. No script is ever run."""
    script = SCRIPT_SETS.get(script_name(script_url))
    if script is None:
        return None
    published = replace(source, column_map=None, format_name=script.format)
    path = _path_in(directory, script_url, key="script_url", where=where)
    folder = path.parent if script_url.endswith(".py") else path
    if files := script_files(script, folder):
        return replace(published, files=files)
    if script.hub is None:
        missing = f"found no {' or '.join(script.files)} in {folder}"
        raise DataError(missing, where=where, remedy="put the file that the script reads there")
    return replace(published, hub=HubDataset(script.hub))


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


def _path_in(directory: Path, file_name: str, *, key: str, where: str) -> Path:
    """The file of an entry. A registry comes with its data, often from elsewhere: it shall not name other files here.

    Raises:
        DataError: It lies outside of the registry's directory.
    """
    if not is_inside(file_name):
        raise DataError(
            f"{key} {file_name!r} leads out of {directory}",
            where=where,
            remedy="put the file into it (a link will do), or give its path as dataset: PATH",
        )
    return directory / file_name


def _hub_dataset(name: str, *, where: str) -> HubDataset:
    """A dataset of the hub, which is no directory here.

    Raises:
        DataError: The name could be a path.
    """
    if not _HUB_NAME.fullmatch(name):
        raise DataError(f"found {name!r}, expected the name of a dataset on the hub: owner/name", where=where)
    return HubDataset(name)


PLACES = {
    "hf_hub": "hf_hub_url",
    "script": "script_url",
    "file": "file_name",
    "ms_hub": "ms_hub_url",
    "om_hub": "om_hub_url",
    "cloud_file": "cloud_file_name",
}
"""{place: the key that names it}; the first place of an entry counts, unless load_from names another."""
UNREACHED = {
    "script_url": f"it is a program, and none of those that duiqi reads without running it ({', '.join(SCRIPT_SETS)})",
    "ms_hub_url": "it lies on ModelScope",
    "om_hub_url": "it lies on Modelers",
    "cloud_file_name": "it lies in cloud storage",
}
"""Why duiqi does not go there."""
