"""A directory of tokenizer files, which is all that an inspection of tokens needs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.inspection.tokenizers_to_try import build


@pytest.fixture
def tokenizer_dir(tmp_path: Path) -> Callable[..., str]:
    """Build a tokenizer (see `build`) and give the directory it is saved in."""

    def make(name: str = "base", **settings: Any) -> str:
        directory = tmp_path / name
        build(**settings).save_pretrained(directory)
        return str(directory)

    return make
