"""What is known of a kind of fault."""

from __future__ import annotations

from dataclasses import dataclass

from duiqi.inspection.findings import Severity


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of fault."""

    severity: Severity
    title: str
    why: str
    """What it does."""
    remedy: str
    grows_at: float | None = None
    """Share of the rows, if they are more than a few, from which it is one degree graver."""
