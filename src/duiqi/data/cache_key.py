"""What prepared rows depend on, as one short key: two preparations share a key exactly when they give the same rows."""

from __future__ import annotations

import hashlib
import inspect
import json
import tempfile
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import fields, is_dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import duiqi.types
from duiqi.data.templates import Template
from duiqi.types import Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

LIBRARIES = ("transformers", "tokenizers")
"""Packages whose version may change what a text is encoded to."""
PROBE = (Message("user", "a"),)
"""A conversation that a template is asked to write: some put the date of the day into what they write."""


def cache_key(**parts: object) -> str:
    """The key of everything that is named: files, settings, template, tokenizer. The code counts too."""
    described = json.dumps({"code": code_identity(), **{name: describe(part) for name, part in parts.items()}})
    return hashlib.sha256(described.encode()).hexdigest()


def tokenizer_identity(tokenizer: PreTrainedTokenizerBase) -> str:
    """The same for two tokenizers exactly when they are of one class, with the same tokens and rules."""
    digest = hashlib.sha256(f"{type(tokenizer).__module__}.{type(tokenizer).__qualname__}".encode())
    source = inspect.getsourcefile(type(tokenizer))
    digest.update(Path(source).read_bytes() if source else b"")
    digest.update(json.dumps(describe({name: str(t) for name, t in tokenizer.special_tokens_map.items()})).encode())
    digest.update(str(getattr(tokenizer, "split_special_tokens", False)).encode())
    if tokenizer.is_fast:
        digest.update(tokenizer.backend_tokenizer.to_str().encode())
        return digest.hexdigest()
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        for path in sorted(Path(folder).rglob("*")):
            if path.is_file():
                digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def template_identity(template: Template) -> object:
    """Everything that a template writes around texts, and what it writes today."""
    frame = (template.stop_token_ids, template.bos_token_ids, template.opening_token_ids)
    return [template.to_dict(), frame, template.prompt_segments(PROBE), template.answer_segment(PROBE, "b")]


def sha256_of(path: Path) -> str:
    """The checksum of a file's contents."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def describe(value: object) -> Any:
    """A value as JSON that tells it from every other value of its kind.

    >>> describe({"b": (1, None), "a": {"y", "x"}})
    {'dict': [['a', ['x', 'y']], ['b', [1, None]]]}
    """
    match value:
        case None | bool() | int() | float() | str():
            return value
        case Path():
            return str(value)
        case Mapping():
            return {"dict": sorted([str(key), describe(item)] for key, item in value.items())}
        case list() | tuple():
            return [describe(item) for item in value]
        case AbstractSet():
            return sorted(describe(item) for item in value)
    if is_dataclass(value) and not isinstance(value, type):
        return [type(value).__qualname__, {field.name: describe(getattr(value, field.name)) for field in fields(value)}]
    if inspect.isfunction(value):
        return f"{value.__module__}.{value.__qualname__}"
    raise TypeError(f"nothing tells {value!r} from others of its kind")


@cache
def code_identity() -> str:
    """The same as long as nobody changed how rows are read, converted, written and encoded."""
    files = sorted(Path(__file__).parent.rglob("*.py"))
    digest = hashlib.sha256("".join(f"{name} {version(name)}\n" for name in LIBRARIES).encode())
    for path in (*files, Path(duiqi.types.__file__)):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()
