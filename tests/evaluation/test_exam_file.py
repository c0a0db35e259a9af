"""exam.json: written whole, found again, and no longer believed once a weight has changed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.evaluation.exams import make_exam

from duiqi.errors import RunError
from duiqi.evaluation.exam_file import exam_place, read_verdict, weights_digest, write_exam


@pytest.fixture
def model(tmp_path: Path) -> Path:
    (tmp_path / "rm").mkdir()
    (tmp_path / "rm" / "adapter_model.safetensors").write_bytes(b"weights")
    (tmp_path / "rm" / "adapter_config.json").write_text('{"lora_alpha": 16}')
    return tmp_path / "rm"


def test_what_is_written_is_read_again(model: Path) -> None:
    place = exam_place(str(model))
    assert place == model / "exam.json"
    assert read_verdict(place) is None
    write_exam(make_exam("C"), place)
    verdict = read_verdict(place)
    assert verdict is not None
    assert (verdict.grade, verdict.digest) == ("C", "f00d" * 16)
    assert [part["name"] for part in json.loads(place.read_text(encoding="utf-8"))["parts"]][1:3] == [
        "exploits",
        "accuracy",
    ]


def test_the_digest_changes_with_weights_and_scale_and_with_nothing_else(model: Path) -> None:
    before = weights_digest(str(model))
    (model / "exam.json").write_text("{}")
    (model / "metrics.jsonl").write_text("")
    assert weights_digest(str(model)) == before
    (model / "adapter_config.json").write_text('{"lora_alpha": 32}')
    scaled = weights_digest(str(model))
    assert scaled != before
    (model / "adapter_model.safetensors").write_bytes(b"Weights")
    assert weights_digest(str(model)) not in (before, scaled)


def test_a_function_is_known_by_its_file(tmp_path: Path) -> None:
    file = tmp_path / "checks.py"
    file.write_text("def polite(prompts, answers): return [0.0] * len(answers)\n")
    source = f"{file}:polite"
    assert exam_place(source) == tmp_path / "checks.polite.exam.json"
    before = weights_digest(source)
    file.write_text("def polite(prompts, answers): return [1.0] * len(answers)\n")
    assert before
    assert weights_digest(source) != before


def test_a_name_on_the_hub_has_no_place_and_no_digest() -> None:
    assert exam_place("somebody/reward") is None
    assert weights_digest("somebody/reward") == ""
    assert exam_place("somebody/reward", "exams") == Path("exams/exam.json")


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"grade": "E", "about": {"digest": ""}}', '{"grade": "A"}'])
def test_a_damaged_file_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "exam.json").write_text(text)
    with pytest.raises(RunError, match="this is not the file of an examination"):
        read_verdict(tmp_path / "exam.json")
