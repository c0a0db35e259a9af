"""From the words of an old command line to its translation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from duiqi.errors import SettingsError
from duiqi.legacy.chatglm_tuning import OF_MAY
from duiqi.legacy.dialect import Old
from duiqi.legacy.dialects import dialect_of
from duiqi.legacy.old_command import read_command, script_name
from duiqi.legacy.recipe import OwnRecipe, read_foreign
from duiqi.legacy.translation import Translation, translate
from duiqi.settings.recipe import Given

_RECIPES = (".json", ".yaml", ".yml")


def interpret(words: Sequence[str], later: Sequence[Given] = ()) -> Translation:
    """An old command in duiqi's words; where it names a file of settings, that file.

    Args:
        words: The command, word by word or as one text.
        later: Settings under duiqi's names that win over it.

    Raises:
        SettingsError: It cannot be read, or nothing here does what it does.
    """
    old = read_command(words)
    if not old.positionals:
        settings = {item.key: str(item.value) for item in later}
        dialect = dialect_of(old)
        return translate(dialect, Old(old.flags, dialect.defaults, old.processes), later=settings)
    first, *others = old.positionals
    if Path(first).suffix not in _RECIPES or any("=" not in word for word in others):
        stranger = first if Path(first).suffix not in _RECIPES else others[0]
        raise SettingsError(f"{stranger!r} belongs to no flag", where="command line", remedy="write --flag value")
    pairs = [word.partition("=") for word in others]
    beside = [Given(name, value, where=name) for name, _, value in pairs]
    beside += [Given(name, value, where=f"--{name}") for name, value in old.flags.items()]
    found = read_foreign(Path(first), [*beside, *later], dialect=OF_MAY.get(script_name(old.script)))
    if isinstance(found, OwnRecipe):
        raise SettingsError(
            "is a recipe in duiqi's own words", where=first, remedy=f"run it with `duiqi {found.stage} {first}`"
        )
    return found
