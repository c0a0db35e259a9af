"""One fault at a time in a clean file: it is found, as what it is, in its line; and nothing else that is grave."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from planted import LINE, PLANTS, Plant, demonstrations, opinions, rankings, write

from duiqi.inspection.check import check_dataset
from duiqi.inspection.findings import Finding
from duiqi.inspection.kinds import KINDS
from duiqi.inspection.lens import LensSettings, open_lens
from duiqi.inspection.token_look import look_through


def found_in(path: Path, **settings: Any) -> dict[str, Finding]:
    inspection = check_dataset(str(path), dataset_dir=".", **settings)
    return {finding.kind: finding for finding in inspection.findings}


@pytest.mark.parametrize("clean", [demonstrations, rankings, opinions])
def test_a_clean_file_has_neither_errors_nor_warnings(clean: object, tmp_path: Path) -> None:
    assert callable(clean)
    findings = found_in(write(tmp_path / "clean.jsonl", clean()))
    assert findings.keys() == {"languages"}
    assert findings["languages"].severity == "note"


@pytest.mark.parametrize("plant", PLANTS, ids=lambda plant: plant.id or plant.kind)
def test_a_planted_fault_is_found_in_its_line(plant: Plant, tmp_path: Path, tokenizer_dir: Callable[..., str]) -> None:
    rows = rankings() if plant.rankings else opinions() if plant.opinions else demonstrations()
    plant.change(rows)
    path = write(tmp_path / "planted.jsonl", rows)
    look = None
    if plant.cutoff_len:
        look = partial(look_through, open_lens(tokenizer_dir("tiny-chat"), LensSettings(cutoff_len=plant.cutoff_len)))
    findings = found_in(path, look=look)
    assert plant.kind in findings, list(findings)
    finding = findings[plant.kind]
    assert finding.severity == plant.severity
    assert finding.count == 1
    assert [str(place) for place in finding.places] == [f"{path}:{LINE}"]
    assert plant.seen in finding.places[0].excerpt
    graver = {kind for kind, other in findings.items() if other.severity == "error"} - {plant.kind}
    assert graver <= ({"half_character"} if "half" in plant.id else set())


def test_at_least_forty_kinds_of_fault_are_planted() -> None:
    assert len({plant.kind for plant in PLANTS}) == 42
    assert len({plant.id or plant.kind for plant in PLANTS}) == len(PLANTS) == 61
    assert {plant.kind for plant in PLANTS} <= KINDS.keys()
