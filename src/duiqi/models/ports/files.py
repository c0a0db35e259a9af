"""Files of a model that may be there or not."""

from __future__ import annotations

from transformers.utils import cached_file


def optional_file(path: str, name: str) -> str | None:
    """Where the file lies, of a directory or of a model on the hub; None: it is not there, or cannot be fetched now."""
    found: str | None = cached_file(
        path, name, _raise_exceptions_for_missing_entries=False, _raise_exceptions_for_connection_errors=False
    )
    return found
