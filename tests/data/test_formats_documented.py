"""docs/data.md and docs/zh/data.md name every format, and the rows they show are what they say."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from duiqi.data.formats import FORMATS, convert, recognise_format
from duiqi.types import Origin

DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGES = {"en": DOCS / "data.md", "zh": DOCS / "zh" / "data.md"}
ORIGIN = Origin("docs")


def table_rows(page: Path) -> list[list[str]]:
    """The cells of every table between the heading of the formats and the next one."""
    section = re.split(r"^## ", page.read_text(encoding="utf-8"), flags=re.MULTILINE)[1]
    lines = [line for line in section.splitlines() if line.startswith("| ") and not line.startswith("|--")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def names(cell: str) -> list[str]:
    return re.split(r"[,、]\s*", cell)


@pytest.mark.parametrize("language", PAGES)
def test_every_format_is_in_the_tables(language: str) -> None:
    named = {name for cells in table_rows(PAGES[language]) for name in names(cells[0])}
    assert named - {"format", "格式"} == set(FORMATS)


@pytest.mark.parametrize("language", PAGES)
def test_the_rows_shown_are_of_the_format_they_stand_beside(language: str) -> None:
    shown = [
        (cells[0], json.loads(row))
        for cells in table_rows(PAGES[language])
        for row in re.findall(r"`(\{.*?\})`(?=[ ,，]|$|或)", cells[1])
    ]
    assert len(shown) == 11
    for name, row in shown:
        assert recognise_format(row, ORIGIN) == name
        assert len(convert(row, name, ORIGIN)) == 1


def test_both_languages_say_the_same_of_what_each_is_for() -> None:
    english, chinese = (
        [
            (names(cells[0]), {stage for stage in ("sft", "rm", "dpo", "ppo", "pretrain") if stage in cells[-1]})
            for cells in table_rows(page)
            if cells[0] not in ("format", "格式")
        ]
        for page in PAGES.values()
    )
    assert english == chinese
