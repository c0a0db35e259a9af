"""What becomes of a flag of another tool: a setting here, nothing for a reason, or a refusal that says what to use."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

ON = ("true", "yes", "on", "1")
OFF = ("false", "no", "off", "none", "null", "0", "0.0", "")
"""Values with which most flags ask for nothing."""


@dataclass(frozen=True, slots=True)
class Becomes:
    """The same thing under duiqi's name."""

    setting: str
    note: str = ""
    words: Mapping[str, str] = field(default_factory=dict)
    """Values that are said otherwise here; all others stay."""


@dataclass(frozen=True, slots=True)
class NoEffect:
    """The result of a run does not depend on it here."""

    reason: str


@dataclass(frozen=True, slots=True)
class Refused:
    """duiqi cannot do it, and a run without it would be another one."""

    reason: str
    remedy: str
    unless: tuple[str, ...] = OFF
    """Values, in small letters, with which the flag asks for nothing."""


@dataclass(frozen=True, slots=True)
class Together:
    """Means something only beside other flags; one of the dialect's readings (`Dialect.readings`) speaks of it."""


@dataclass(frozen=True, slots=True)
class Pending:
    """Taken as it is once duiqi has a setting of its name; until then `otherwise`."""

    otherwise: NoEffect | Refused


Rule = Becomes | NoEffect | Refused | Together | Pending


def same(*names: str) -> dict[str, Rule]:
    """Flags that have the same name and meaning here."""
    return {name: Becomes(name) for name in names}
