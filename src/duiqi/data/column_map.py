"""What a registry says of a dataset's own column and role names, and how rows are renamed by it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from duiqi.errors import DataError, did_you_mean

ALPACA_COLUMNS = {"prompt": "instruction", "query": "input", "response": "output"}
COMMON_COLUMNS = {name: name for name in ("history", "system", "chosen", "rejected", "margin", "kto_tag", "tools")}
"""{name in the registry: standard column}."""
NOT_TEXT = {"images": "pictures", "videos": "films", "audios": "sounds"}
DEFAULT_TAGS = {
    "sharegpt": {"role_tag": "from", "content_tag": "value", "user_tag": "human", "assistant_tag": "gpt"},
    "openai": {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"},
}
SPEAKERS = {
    "user_tag": "user",
    "assistant_tag": "assistant",
    "system_tag": "system",
    "function_tag": "function_call",
    "observation_tag": "observation",
}
"""{tag that names a role: standard role}."""
TAGS = ("role_tag", "content_tag", *SPEAKERS)
FORMATTINGS = ("alpaca", *DEFAULT_TAGS)


@dataclass(frozen=True, slots=True)
class ColumnMap:
    """How a dataset's own column names and role names translate into the standard ones."""

    columns: Mapping[str, str]
    """{standard column: the dataset's column}."""
    tags: Mapping[str, str] | None = None
    """{role_tag, content_tag, user_tag ...} of message lists; None where there are none."""

    def rename(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """The row with standard column names, and messages as role/content. Columns not named are left out."""
        renamed = {standard: row[own] for standard, own in self.columns.items() if own in row}
        if self.tags is not None:
            for column in ("messages", "chosen", "rejected"):
                if column in renamed:
                    renamed[column] = self._standard_messages(renamed[column], self.tags)
        return renamed

    def for_text(self) -> ColumnMap:
        """The same for pretraining: LLaMA-Factory calls the column of a plain text `prompt`."""
        if self.tags is None and set(self.columns) == {"instruction"}:
            return replace(self, columns={"text": self.columns["instruction"]})
        return self

    def _standard_messages(self, value: Any, tags: Mapping[str, str]) -> Any:
        if isinstance(value, list):
            return [self._standard_messages(item, tags) for item in value]
        if not isinstance(value, dict) or tags["role_tag"] not in value or tags["content_tag"] not in value:
            return value  # left as it is: the format says what it found and what it expected
        role = value[tags["role_tag"]]
        roles = {tags[tag]: standard for tag, standard in SPEAKERS.items() if tag in tags}
        return {
            "role": roles.get(role, role) if isinstance(role, str) else role,
            "content": value[tags["content_tag"]],
        }


def read_column_map(
    formatting: str, named: Mapping[str, str | None] | None, tags: Mapping[str, str] | None, *, where: str
) -> ColumnMap | None:
    """The renaming an entry asks for; None: the columns have standard names.

    Where `named` is given, a column it does not name (or names "") is absent.

    Raises:
        DataError: A name in it is unknown, or of something that is no text.
    """
    if formatting not in FORMATTINGS:
        raise DataError(f"found formatting {formatting!r}, expected one of {', '.join(FORMATTINGS)}", where=where)
    for tag in tags or ():
        if tag not in TAGS:
            raise DataError(
                f"unknown tag {tag!r} in tags", where=where, remedy=did_you_mean(tag, TAGS) or f"one of {TAGS}"
            )
    if formatting == "alpaca":
        if named is None:
            return None
        standard_names, own_tags = ALPACA_COLUMNS | COMMON_COLUMNS, None
    else:
        standard_names = {"messages": "messages"} | COMMON_COLUMNS
        own_tags = DEFAULT_TAGS[formatting] | dict(tags or {})
        named = named or {"messages": "conversations" if formatting == "sharegpt" else "messages"}
    columns = {}
    for key, own in named.items():
        if not own:
            continue
        if key in NOT_TEXT:
            raise DataError(
                f"the column {key!r} is not supported: its rows speak about {NOT_TEXT[key]}, and duiqi trains on text",
                where=where,
                remedy="choose another dataset; if the text stands by itself, remove it from columns",
            )
        if key not in standard_names:
            hint = did_you_mean(key, standard_names) or f"expected some of {', '.join(standard_names)}"
            raise DataError(f"unknown column {key!r} in columns", where=where, remedy=hint)
        columns[standard_names[key]] = own
    return ColumnMap(columns, own_tags)
