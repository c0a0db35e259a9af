"""Settings, provenance and events of runs, as folded tables."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from duiqi.journal.numbers import brief
from duiqi.reports.markup import Child, Markup, element
from duiqi.reports.read import RunRecord

_MAX_EVENTS = 200
_SHOWN_ELSEWHERE = frozenset({"argv", "stage", "changed_settings"})


def settings_of(records: Sequence[RunRecord]) -> Markup:
    """One column per run. First the settings in which runs differ or that the user changed, then the rest, folded.

    A manifest may name the changed ones in `changed_settings`; without it, a single run shows all of them folded.
    """
    names = list(dict.fromkeys(name for record in records for name in record.config))
    changed = {str(name) for record in records for name in record.manifest.get("changed_settings") or ()}
    first = [name for name in names if name in changed or _differs(name, records)]
    rest = [name for name in names if name not in first]
    kind = "as by default" if changed else "the same in all"
    return element(
        "details",
        element("summary", "Settings"),
        _settings_table(first, records) if first else None,
        element(
            "details",
            element("summary", f"{len(rest)} {kind}"),
            _settings_table(rest, records),
        )
        if first and rest
        else _settings_table(rest, records),
    )


def provenance_of(record: RunRecord) -> Markup:
    """The command and everything the manifest knows."""
    command = shlex.join(map(str, record.manifest.get("argv") or ()))
    return element(
        "details",
        element("summary", f"Provenance of {record.name}"),
        element("pre", command) if command else None,
        _described({key: value for key, value in record.manifest.items() if key not in _SHOWN_ELSEWHERE}),
    )


def events_of(record: RunRecord) -> Markup | None:
    """What happened, in order of time; None where nothing was noted."""
    if not record.events:
        return None
    rows = [
        element(
            "tr",
            element("td", str(event.get("time", "")).replace("T", " ").removesuffix("+00:00"), class_="when"),
            element("td", str(event.get("kind", ""))),
            element("td", _inline({k: v for k, v in event.items() if k not in ("time", "kind")})),
        )
        for event in record.events[-_MAX_EVENTS:]
    ]
    left_out = len(record.events) - _MAX_EVENTS
    return element(
        "details",
        element("summary", f"Events of {record.name} (UTC)"),
        element("p", f"{left_out} earlier ones are in events.jsonl", class_="quiet") if left_out > 0 else None,
        element("div", element("table", element("tbody", rows)), class_="scroll"),
    )


def _settings_table(names: Sequence[str], records: Sequence[RunRecord]) -> Markup:
    head = element("tr", element("th"), [element("th", record.name) for record in records])
    rows = [
        element(
            "tr",
            element("th", name, scope="row"),
            [element("td", _inline(record.config.get(name))) for record in records],
            class_="differs" if _differs(name, records) else None,
        )
        for name in names
    ]
    table = element("table", element("thead", head) if len(records) > 1 else None, element("tbody", rows))
    return element("div", table, class_="scroll settings")


def _differs(name: str, records: Sequence[RunRecord]) -> bool:
    return any(record.config.get(name) != records[0].config.get(name) for record in records[1:])


def _described(value: Mapping[str, Any]) -> Markup:
    """A nested mapping as a definition list."""
    return element("dl", [[element("dt", str(key)), element("dd", _block(item))] for key, item in value.items()])


def _block(value: Any) -> Child:
    if isinstance(value, Mapping):
        is_flat = all(not isinstance(item, Mapping | list) for item in value.values())
        return _inline(value) if is_flat else _described(value)
    if isinstance(value, list) and any(isinstance(item, Mapping) for item in value):
        return [element("p", _block(item)) for item in value]
    return _inline(value)


def _inline(value: Any) -> str:
    """Any JSON value as a short phrase.

    >>> _inline({"step": 10, "dropped": {"metrics": 2}, "names": ["q", "v"]})
    'step 10 · dropped metrics 2 · names q, v'
    """
    if value is None or value in ("", [], {}):
        return "–"
    if isinstance(value, Mapping):
        return " · ".join(f"{key} {_inline(item)}" for key, item in value.items())
    if isinstance(value, list):
        return ", ".join(map(_inline, value))
    if isinstance(value, bool):
        return "true" if value else "false"
    return brief(value) if isinstance(value, float) else str(value)
