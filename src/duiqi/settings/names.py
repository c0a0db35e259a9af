"""Settings that list names with commas between them, out of a known few."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pydantic import GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema

NO_NAMES = "none"


@dataclass(frozen=True, slots=True)
class NamesFrom:
    """Marks a text setting that lists some of these names, or says none."""

    known: tuple[str, ...]

    def __str__(self) -> str:
        return f"{NO_NAMES}, or names out of {', '.join(self.known)} with commas between"

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self._checked, handler(source))

    def _checked(self, text: str) -> str:
        names = listed_names(text)
        if not set(names) <= set(self.known) or (not names and text != NO_NAMES):
            raise ValueError(f"expected {self}")
        return text


def listed_names(text: str) -> tuple[str, ...]:
    """The names that a setting lists, each once.

    >>> listed_names("wandb, tensorboard,wandb"), listed_names("none")
    (('wandb', 'tensorboard'), ())
    """
    if text == NO_NAMES:
        return ()
    return tuple(dict.fromkeys(name for name in map(str.strip, text.split(",")) if name))
