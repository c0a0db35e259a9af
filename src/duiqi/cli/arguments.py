"""Reading the words of a command line: positionals, `key=value`, `--key value`, `--key=value` and bare `--switch`."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from duiqi.errors import SettingsError
from duiqi.settings.describe import SettingInfo
from duiqi.settings.recipe import Given

_FLAG = re.compile(r"--?([A-Za-z][\w-]*)(?:=(.*))?", re.DOTALL)
_ASSIGNMENT = re.compile(r"([A-Za-z_][\w-]*)=(.*)", re.DOTALL)
_ON_OR_OFF = ("true", "false", "yes", "no", "on", "off")
_SHORT = {"o": "output"}


@dataclass(frozen=True, slots=True)
class Arguments:
    """A command line, read."""

    words: tuple[str, ...]
    """As they were typed, the command first."""
    positionals: tuple[str, ...]
    given: tuple[Given, ...]

    def named(self, *names: str) -> tuple[Given, ...]:
        """Everything given, the positionals under these names.

        Raises:
            SettingsError: There are more positionals than names.
        """
        refuse_more_than(len(names), self.positionals)
        positionals = zip(names, self.positionals, strict=False)
        return (*(Given(name, value, where=name) for name, value in positionals), *self.given)


def parse(words: Sequence[str], known: Sequence[SettingInfo]) -> Arguments:
    """Read a command line, the command first.

    A switch (a setting that is true or false) takes the next word only when it says true or false, so
    `--plot_loss recipe.yaml` is a switch and a recipe.

    Raises:
        SettingsError: A flag that needs a value has none.
    """
    switches = {setting.name for setting in known if setting.is_switch}
    with_value = {setting.name for setting in known} - switches
    positionals: list[str] = []
    given: list[Given] = []
    rest = deque(words[1:])
    while rest:
        word = rest.popleft()
        if flag := _FLAG.fullmatch(word):
            written, value = flag.groups()
            where = word.partition("=")[0]
            name = _SHORT.get(written, written).replace("-", "_")
            if value is None:
                value = _take_value(rest, is_switch=name in switches)
            if value is None and name in with_value:
                raise SettingsError("needs a value", where=where, remedy=f"write {where} VALUE or {where}=VALUE")
            given.append(Given(name, "true" if value is None else value, where))
        elif assignment := _ASSIGNMENT.fullmatch(word):
            written, value = assignment.groups()
            given.append(Given(written, value, where=written))
        else:
            positionals.append(word)
    return Arguments(tuple(words), tuple(positionals), tuple(given))


def refuse_more_than(count: int, positionals: Sequence[str]) -> None:
    """Raise a SettingsError when there are more positionals than the command takes."""
    if len(positionals) > count:
        raise SettingsError(
            f"{positionals[count]!r} is one word too many",
            where="command line",
            remedy="write settings as name=value or --name value, and quote texts with spaces",
        )


def _take_value(rest: deque[str], *, is_switch: bool) -> str | None:
    """The next word when it is this flag's value, taken from the rest."""
    if not rest or _FLAG.fullmatch(rest[0]) or (is_switch and rest[0].lower() not in _ON_OR_OFF):
        return None
    return rest.popleft()
