"""Several datasets of one run, mixed as the settings say; rows held out are not mixed."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from duiqi.errors import SettingsError
from duiqi.settings.groups import DataSettings
from duiqi.settings.resolve import resolve
from duiqi.stages.materials import Examples, read_rows


@pytest.fixture
def datasets(tmp_path: Path) -> str:
    for name, size in (("a", 30), ("b", 10)):
        rows = ({"instruction": f"{name}{i}", "output": "x"} for i in range(size))
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return f"{tmp_path / 'a.jsonl'},{tmp_path / 'b.jsonl'}"


def read(dataset: str, **settings: Any) -> Examples:
    return read_rows(DataSettings(dataset=dataset, **settings), "demonstration", seed=0)[0]


def test_held_out_rows_are_taken_before_the_others_are_repeated(datasets: str) -> None:
    plain = read(datasets, val_size=4)
    mixed = read(datasets, val_size=4, mix_strategy="interleave_over")
    assert mixed.held_out == plain.held_out
    assert set(map(str, mixed.train)) == set(map(str, plain.train))
    assert not {example.prompt for example in mixed.train} & {example.prompt for example in mixed.held_out}
    assert "mixed by interleave_over" in mixed.notes[-1]


def test_the_probabilities_are_taken_from_the_settings(datasets: str) -> None:
    mixed = read(datasets, mix_strategy="interleave_under", interleave_probs="9,1")
    counts = Counter(Path(example.origin.file).stem for example in mixed.train)
    assert counts["a"] > 3 * counts["b"]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"dataset": "a", "mix_strategy": "interleave_under"}, "several datasets"),
        ({"dataset": "a,b", "interleave_probs": "1,1"}, "mix_strategy=interleave_under or interleave_over"),
    ],
)
def test_a_mixture_of_one_dataset_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        resolve("sft", values={"model_name_or_path": "m", "output_dir": "o", **values})
