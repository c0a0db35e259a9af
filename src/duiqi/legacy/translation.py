"""From what an old command says to the duiqi command that does the same, flag by flag."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from duiqi.errors import SettingsError, did_you_mean
from duiqi.legacy.answering import ASKED_OTHERWISE, SETTINGS_OF
from duiqi.legacy.dialect import Dialect, Line, Old, Trouble
from duiqi.legacy.rules import Becomes, NoEffect, Pending, Refused, Together
from duiqi.settings.checking import read_value
from duiqi.settings.conditions import first_unmet
from duiqi.settings.describe import SettingInfo, known_settings
from duiqi.settings.recipe import Given
from duiqi.settings.stages import STAGES

_NOTHING: Mapping[str, str] = {}
_POSITIONAL = ("model", "reward_model", "file")
_COMMAND_WORDS = {"generate": 2, "score": 2, "export": 1}


@dataclass(frozen=True)
class Translation:
    """An old command in duiqi's words."""

    tool: str
    command: str
    lines: tuple[Line, ...]
    troubles: tuple[Trouble, ...]
    remarks: tuple[str, ...]
    old: Old

    @property
    def settings(self) -> dict[str, str]:
        """What is set, in the order of the lines; of a setting spoken of twice, the last."""
        return {line.setting: line.value for line in self.lines if line.setting}

    @property
    def words(self) -> list[str]:
        """The duiqi command, word by word."""
        settings = self.settings
        first = [name for name in _POSITIONAL if name in settings][: _COMMAND_WORDS.get(self.command, 0)]
        words = ["duiqi", self.command, *(settings[name] for name in first)]
        for name, value in settings.items():
            if name not in first:
                words += [f"--{name}", value] if not value.startswith("-") else [f"--{name}={value}"]
        return words

    @property
    def line(self) -> str:
        """The duiqi command as one types it."""
        return shlex.join(self.words)

    def given(self) -> tuple[Given, ...]:
        """The settings as the stages take them, each with the old flag as its place."""
        places = {line.setting: line.flags for line in self.lines}
        return tuple(
            Given(
                name,
                value,
                where=f"{name} (from {', '.join(f'--{f}' for f in places[name])})" if places[name] else name,
            )
            for name, value in self.settings.items()
        )

    def refuse_troubles(self) -> None:
        """Raise a SettingsError that names every flag duiqi cannot follow, if there is one."""
        if not self.troubles:
            return
        if len(self.troubles) == 1:
            (trouble,) = self.troubles
            way_out = "" if self.old.is_inline else "; --strict false goes on without it"
            raise SettingsError(trouble.reason, where=self._place(trouble), remedy=trouble.remedy + way_out)
        way_out = "" if self.old.is_inline else " (--strict false goes on without them)"
        lines = [f"{self._place(trouble)}: {trouble.reason} -> {trouble.remedy}" for trouble in self.troubles]
        raise SettingsError(f"{len(lines)} settings have no meaning here{way_out}\n  " + "\n  ".join(lines))

    def _place(self, trouble: Trouble) -> str:
        """The flags of a trouble with their values, as they were said."""
        said, places = self.old.said, self.old.places
        return ", ".join(
            f"{places[flag]}: {said[flag]}" if flag in places else f"--{flag} {said.get(flag, '')}".rstrip()
            for flag in trouble.flags
        )


def translate(dialect: Dialect, old: Old, *, later: Mapping[str, str] = _NOTHING) -> Translation:
    """An old command in duiqi's words: every flag it says is in a line or in a trouble.

    Args:
        later: Settings under duiqi's names that win over the translated ones.

    Raises:
        SettingsError: A flag is unknown, or nothing here does what the command does.
    """
    refuse_unknown(dialect, old)
    command = dialect.command(old)
    known = _settings_of(command)
    if strange := [name for name in later if name not in known]:
        remedy = did_you_mean(strange[0], known) or f"`duiqi {command} --help` lists the settings"
        raise SettingsError(f"`duiqi {command}` has no such setting", where=strange[0], remedy=remedy)
    lines: list[Line] = []
    troubles: list[Trouble] = []
    for found in dialect.lines(old, command):
        _put(found, lines, troubles)
    covered = {flag for line in lines for flag in line.flags} | {flag for each in troubles for flag in each.flags}
    covered |= {flag for flag in old.defaults if flag not in old.said and _is_in(flag, lines)}
    for flag, value in old.said.items():
        if flag not in covered:
            _put(_one(dialect, flag, value, command, known), lines, troubles)
    for flag, value in old.defaults.items():
        rule = dialect.flags.get(flag)
        if flag not in old.said and flag not in covered and isinstance(rule, Becomes) and rule.setting in known:
            lines.append(Line((), rule.setting, rule.words.get(value, value)))
    mended = [trouble for trouble in troubles if later.keys() & set(trouble.flags)]
    troubles = [trouble for trouble in troubles if trouble not in mended]
    lines += [Line(trouble.flags, note="said otherwise here") for trouble in mended]
    lines += [Line((), name, value, "said here") for name, value in later.items()]
    place = {flag: number for number, flag in enumerate(old.said)}
    settled = _settled(lines, command, known)
    settled = sorted(settled, key=lambda line: min((place[f] for f in line.flags if f in place), default=len(place)))
    return Translation(
        dialect.tool, command, tuple(settled), tuple(troubles), tuple(dialect.remarks(old, command)), old
    )


def _put(found: Line | Trouble, lines: list[Line], troubles: list[Trouble]) -> None:
    if isinstance(found, Line):
        lines.append(found)
    else:
        troubles.append(found)


def refuse_unknown(dialect: Dialect, old: Old) -> None:
    """Refuse flags that the old tool does not have.

    Raises:
        SettingsError: With the nearest names.
    """
    unknown = [flag for flag in old.said if flag not in dialect.flags]
    if unknown:
        raise SettingsError(
            f"unknown in {dialect.tool}" if len(unknown) == 1 else f"unknown in {dialect.tool}: {', '.join(unknown)}",
            where=f"--{unknown[0]}",
            remedy=did_you_mean(unknown[0], dialect.flags) or "check its spelling, or remove it",
        )


def _settings_of(command: str) -> dict[str, SettingInfo | None]:
    if command in STAGES:
        return {setting.name: setting for setting in known_settings(command)}
    return dict.fromkeys(SETTINGS_OF[command])


def _is_in(flag: str, lines: Sequence[Line]) -> bool:
    """Whether a line speaks of a setting of the flag's own name already."""
    return any(line.setting == flag for line in lines)


def _one(
    dialect: Dialect, flag: str, value: str, command: str, known: Mapping[str, SettingInfo | None]
) -> Line | Trouble:
    """What a flag becomes that stands for itself."""
    rule = dialect.flags[flag]
    if isinstance(rule, Pending):
        rule = Becomes(flag) if flag in known else rule.otherwise
    if command in ("generate", "score") and isinstance(rule, Becomes | Together):
        setting = rule.setting if isinstance(rule, Becomes) else flag
        rule = rule if setting in known else ASKED_OTHERWISE.get(setting, rule)
    match rule:
        case Becomes(setting, note, words):
            if setting not in known:
                also = ", nor in the old one" if command in STAGES else ""
                return Line((flag,), note=f"no effect in `duiqi {command}`{also}")
            return Line((flag,), setting, words.get(value, words.get(value.lower(), value)), note)
        case NoEffect(reason):
            return Line((flag,), note=f"no effect here: {reason}")
        case Refused(reason, remedy, unless):
            if value.lower() in unless:
                return Line((flag,), note="asks for nothing that is not so here", is_so_anyway=True)
            return Trouble((flag,), reason, remedy)
        case Together():
            return Line((flag,), note=f"no effect in `duiqi {command}`")


def _settled(lines: Sequence[Line], command: str, known: Mapping[str, SettingInfo | None]) -> Iterable[Line]:
    """The lines without settings that this command does not have, that nothing depends on, or that say its default."""
    lines = [_whole(line, known) for line in lines]
    final = {line.setting: line for line in lines if line.setting in known}
    of_stage = {name: setting for name, setting in known.items() if setting is not None}
    values = {name: setting.default for name, setting in of_stage.items()}
    values |= {name: _value(line.value, of_stage[name]) for name, line in final.items() if name in of_stage}
    for line in lines:
        if not line.setting:
            yield line
        elif line.setting not in known:
            if line.flags:
                yield Line(line.flags, note=f"no effect in `duiqi {command}`")
        elif final[line.setting] is not line:
            if line.flags:
                yield Line(line.flags, note=f"no effect: {line.setting} is said again")
        elif (condition := first_unmet(line.setting, values)) is not None:
            if line.flags:
                reason = condition.reason or f"it acts only with {condition.words}"
                yield Line(line.flags, note=f"no effect here: {reason}")
        elif line.flags or line.setting not in of_stage or values[line.setting] != of_stage[line.setting].default:
            yield line


def _whole(line: Line, known: Mapping[str, SettingInfo | None]) -> Line:
    """32.0 as 32 where a whole number is asked for."""
    setting = known.get(line.setting)
    if setting is not None and setting.type_text.startswith("integer") and re.fullmatch(r"-?\d+\.0*", line.value):
        return replace(line, value=line.value.partition(".")[0])
    return line


def _value(text: str, setting: SettingInfo) -> object:
    """A value as conditions compare it; what the setting cannot be, and is refused as later, counts as its default."""
    try:
        return read_value(text, setting)
    except ValueError:
        return setting.default
