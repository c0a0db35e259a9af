"""The demo in its quick form: every stage through the same door as the commands, then the summary and the report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import Workshop

from duiqi.cli.arguments import parse
from duiqi.errors import RunError
from duiqi.pipeline.demo import run_demo
from duiqi.settings.describe import known_settings
from duiqi.settings.resolve import resolve


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("demo") / "run"
    run_demo(directory, seed=3, quick=True)
    return directory


def summary_of(directory: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((directory / "summary.json").read_text(encoding="utf-8"))
    return loaded


def test_the_summary_has_what_the_demo_is_judged_by(demo: Path) -> None:
    summary = summary_of(demo)
    assert set(summary["models"]) == {"base", "sft", "dpo", "ppo"}
    assert all({"gold", "kl", "length"} <= set(figures) for figures in summary["models"].values())
    assert summary["models"]["sft"]["kl"] == 0.0
    assert 0.0 <= summary["rm_accuracy"] <= 1.0
    assert {"pretrain", "sft", "rm", "dpo", "ppo"} <= set(summary["seconds"])


def test_the_report_shows_every_model_and_the_chinese_prompts(demo: Path) -> None:
    page = (demo / "report.html").read_text(encoding="utf-8")
    comparisons = json.loads((demo / "comparisons.json").read_text(encoding="utf-8"))
    assert [answer["model"] for answer in comparisons[0]["answers"]] == ["base", "sft", "dpo", "ppo"]
    assert any("\u4e00" <= character <= "\u9fff" for row in comparisons for character in row["prompt"])
    assert "http://" not in page.replace("http://www.w3.org", "")


def test_the_recorded_commands_say_the_same_as_the_runs(demo: Path) -> None:
    for stage, name in (("sft", "sft"), ("rm", "rm"), ("dpo", "dpo"), ("ppo", "ppo"), ("pretrain", "base")):
        words = json.loads((demo / name / "manifest.json").read_text(encoding="utf-8"))["argv"]
        assert words[:2] == ["duiqi", stage]
        config = resolve(stage, overrides=parse(words[1:], known_settings(stage)).given)  # type: ignore[arg-type, call-overload]
        assert config == resolve(stage, recipe=demo / name / "config.yaml")  # type: ignore[call-overload]


def test_a_directory_with_something_in_it_is_refused(workshop: Workshop) -> None:
    with pytest.raises(RunError, match="this directory is not empty"):
        run_demo(Path(workshop.data), quick=True)
