"""Fixtures for the data tests: tokenizers built once, and files written in a line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_tokenizers import CHAT_TEMPLATES, build_tokenizer
from transformers import PreTrainedTokenizerFast


@pytest.fixture(scope="session")
def plain_tokenizer() -> PreTrainedTokenizerFast:
    """No chat template, no BOS of its own."""
    return build_tokenizer()


@pytest.fixture(scope="session")
def bos_tokenizer() -> PreTrainedTokenizerFast:
    """No chat template; begins every text with BOS."""
    return build_tokenizer(adds_bos=True)


@pytest.fixture(scope="session")
def chat_tokenizers() -> dict[str, PreTrainedTokenizerFast]:
    """One tokenizer for each of `CHAT_TEMPLATES`."""
    return {name: build_tokenizer(chat_template=text, adds_bos=True) for name, text in CHAT_TEMPLATES.items()}


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Write text, bytes or JSON rows to a file of the test's folder."""

    def write_file(name: str, contents: str | bytes | list[dict[str, Any]] | dict[str, Any]) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(contents, bytes):
            path.write_bytes(contents)
        elif isinstance(contents, str):
            path.write_text(contents, encoding="utf-8")
        elif name.endswith(".jsonl"):
            path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in contents), encoding="utf-8")
        else:
            path.write_text(json.dumps(contents, ensure_ascii=False, indent=2), encoding="utf-8")
        return path

    return write_file
