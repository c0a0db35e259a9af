"""Short pauses, and the environment that names a stand-in."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from tests.curation.stand_in import KEY, StandIn

import duiqi.curation.crew


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(duiqi.curation.crew, "FIRST_WAIT_SECONDS", 0.005)
    monkeypatch.setattr(duiqi.curation.crew, "LONGEST_WAIT_SECONDS", 0.02)


@pytest.fixture
def named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[StandIn], None]:
    """Put a stand-in, the key and a cache of its own into the environment."""

    def name(server: StandIn) -> None:
        monkeypatch.setenv("OPENAI_BASE_URL", server.url)
        monkeypatch.setenv("OPENAI_API_KEY", KEY)
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    return name
