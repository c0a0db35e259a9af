"""A tool's way to say things: its flags, what it does when nothing is said, and the flags that belong together."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from duiqi.errors import SettingsError
from duiqi.legacy.rules import OFF, ON, Rule


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a translation."""

    flags: tuple[str, ...]
    """The old flags that it speaks of; empty where the old code did something without being asked."""
    setting: str = ""
    """Empty: nothing is set."""
    value: str = ""
    note: str = ""
    is_so_anyway: bool = False
    """Whether the flags ask for what is done without them too."""


@dataclass(frozen=True, slots=True)
class Trouble:
    """Old flags that duiqi cannot follow."""

    flags: tuple[str, ...]
    reason: str
    remedy: str


@dataclass(frozen=True)
class Old:
    """What a command of another tool says, and what that tool takes where it is silent."""

    said: Mapping[str, str]
    """In the order of the command; of a flag given twice, the last."""
    defaults: Mapping[str, str] = field(default_factory=dict)
    processes: int = 1
    """Training processes that the old launcher would have started."""
    is_inline: bool = False
    """Whether these are old flags among duiqi's own, where the old tool's defaults do not count."""
    places: Mapping[str, str] = field(default_factory=dict)
    """Where each was said, if in a file: `recipe.yaml:7: packing`."""

    def get(self, name: str) -> str:
        """The value of a flag; empty where there is none."""
        return self.said.get(name, self.defaults.get(name, ""))

    def says(self, *names: str) -> tuple[str, ...]:
        """Those of these flags that the command gives."""
        return tuple(name for name in names if name in self.said)

    def first(self, *names: str) -> str:
        """The value of the first of these flags that is given, else has a default; empty: none."""
        return next((self.get(name) for name in (*self.says(*names), *names) if self.get(name)), "")

    def is_on(self, name: str) -> bool:
        """Whether a switch is on.

        Raises:
            SettingsError: It is neither on nor off.
        """
        value = self.get(name).lower()
        if value not in (*ON, *OFF):
            raise SettingsError(f"expected true or false, found {self.get(name)!r}", where=f"--{name}")
        return value in ON

    def count(self, name: str, otherwise: int = 1) -> int:
        """A flag as a whole number.

        Raises:
            SettingsError: It is none.
        """
        text = self.get(name)
        try:
            return round(float(text)) if text else otherwise
        except ValueError:
            raise SettingsError(f"expected a number, found {text!r}", where=f"--{name}") from None


Reading = Callable[[Old, str], Iterable[Line | Trouble]]
"""Reads flags that belong together. Takes the duiqi command that the old one becomes."""


@dataclass(frozen=True)
class Dialect:
    """How one script of one tool is read."""

    tool: str
    flags: Mapping[str, Rule]
    command: Callable[[Old], str]
    """The duiqi command that does the same. Raises a SettingsError where there is none."""
    defaults: Mapping[str, str] = field(default_factory=dict)
    readings: Sequence[Reading] = ()
    remarks: Callable[[Old, str], Sequence[str]] = lambda _old, _command: ()
    """What differs although the settings are the same: sentences."""

    def lines(self, old: Old, command: str) -> Iterator[Line | Trouble]:
        """What the flags that belong together become."""
        for reading in self.readings:
            yield from reading(old, command)
