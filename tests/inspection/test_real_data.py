"""What is found in real Chinese data, compared with what is in the files, counted another way."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from duiqi.inspection.check import check_dataset
from duiqi.inspection.findings import Finding
from duiqi.inspection.report import report_lines

REAL = Path(__file__).parents[2].parent / "shared" / "data" / "real"
FILES = ("oaast_sft_zh.json", "oaast_rm_zh.json", "alpaca_zh_demo.json")

pytestmark = pytest.mark.skipif(not REAL.is_dir(), reason="the shared real data is not here")


def found_in(name: str) -> dict[str, Finding]:
    inspection = check_dataset(str(REAL / name), dataset_dir=".")
    assert report_lines(inspection)[-1].startswith(f"{REAL / name}: ")
    return {finding.kind: finding for finding in inspection.findings}


def rows_of(name: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads((REAL / name).read_text(encoding="utf-8"))
    return rows


def test_identical_answers_are_those_in_the_file() -> None:
    same = [row for row in rows_of("oaast_rm_zh.json") if len(set(row["output"])) == 1]
    finding = found_in("oaast_rm_zh.json")["identical_answers"]
    assert finding.severity == "error"
    assert finding.count == len(same) == 3
    lines = (REAL / "oaast_rm_zh.json").read_text(encoding="utf-8").split("\n")
    for place, row in zip(finding.places, same, strict=True):
        opening = "\n".join(lines[place.line - 1 : place.line + 1])
        assert opening.strip().startswith("{")
        assert json.dumps(row["instruction"], ensure_ascii=False) in opening


@pytest.mark.parametrize("name", ["oaast_sft_zh.json", "alpaca_zh_demo.json"])
def test_repeated_rows_are_those_in_the_file(name: str) -> None:
    rows = [json.dumps(row, ensure_ascii=False) for row in rows_of(name)]
    assert found_in(name)["duplicate_row"].count == len(rows) - len(set(rows))


@pytest.mark.parametrize("name", FILES)
def test_every_place_is_the_beginning_of_a_row(name: str) -> None:
    lines = (REAL / name).read_text(encoding="utf-8").split("\n")
    places = [place for finding in found_in(name).values() for place in finding.places]
    assert len(places) > 50
    assert all(lines[place.line - 1].strip() == "{" for place in places)
    assert all(place.excerpt for place in places)
