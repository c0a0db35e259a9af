"""Every kind of fault by name, how grave so many rows of it are, and what is told first."""

from __future__ import annotations

from duiqi.inspection.findings import SEVERITIES, Finding, Severity
from duiqi.inspection.kind import Kind
from duiqi.inspection.kinds_of_error import ERRORS
from duiqi.inspection.kinds_of_note import NOTES
from duiqi.inspection.kinds_of_warning import WARNINGS

GROWS_ROWS = 3
"""So many rows are no accident."""


def severity_of(kind: str, *, count: int, rows: int) -> Severity:
    """How grave so many rows with this fault are."""
    own = KINDS[kind]
    if own.grows_at is None or count < max(GROWS_ROWS, own.grows_at * rows):
        return own.severity
    return SEVERITIES[max(0, SEVERITIES.index(own.severity) - 1)]


def in_order(findings: list[Finding]) -> list[Finding]:
    """The gravest first, and among those as grave what ruins training most."""
    rank = {kind: place for place, kind in enumerate(KINDS)}
    return sorted(findings, key=lambda found: (SEVERITIES.index(found.severity), rank[found.kind]))


KINDS: dict[str, Kind] = {**ERRORS, **WARNINGS, **NOTES}
"""By the name that reports and tests use."""
