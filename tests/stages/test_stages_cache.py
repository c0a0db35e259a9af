"""A run takes its rows from the cache exactly when they would be the same, and then ends at the same weights."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from tests.conftest import Workshop

import duiqi
from duiqi.stages import preparation

OPENED = "prepared before, nothing has changed since"
KEPT = "prepared, and kept for the next run in"

Train = Callable[..., list[str]]


@pytest.fixture
def train(workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Train:
    """Run a stage on a copy of the data; gives what was said at its start."""
    monkeypatch.setattr(preparation, "KEPT_FROM_BYTES", 0)
    if not (tmp_path / "data").exists():
        shutil.copytree(workshop.data, tmp_path / "data")
    number = iter(range(100))

    def run(stage: str, **changes: Any) -> list[str]:
        output_dir = tmp_path / f"{stage}-{next(number)}"
        own = {"dataset_dir": str(tmp_path / "data"), "data_cache_dir": str(tmp_path / "rows"), "max_steps": 2}
        duiqi.run(stage, **workshop.settings(stage, output_dir, **{**own, **changes}))
        found: list[str] = json.loads((output_dir / "manifest.json").read_text(encoding="utf-8"))["notes"]
        return found

    return run


def said(notes: list[str], what: str) -> bool:
    return any(what in note for note in notes)


@pytest.mark.parametrize(
    ("stage", "changes"),
    [
        ("pretrain", {"val_size": 5}),
        ("sft", {"val_size": 0.2}),
        ("rm", {"probe_negatives": 0.2, "length_bias": "balanced"}),
        ("dpo", {}),
    ],
)
def test_a_second_run_takes_its_rows_from_the_cache_and_ends_at_the_same_weights(
    train: Train, tmp_path: Path, stage: str, changes: dict[str, Any]
) -> None:
    first, second = train(stage, **changes), train(stage, **changes)
    assert (said(first, KEPT), said(first, OPENED)) == (True, False)
    assert (said(second, KEPT), said(second, OPENED)) == (False, True)
    assert [n for n in first if KEPT not in n] == [n for n in second if OPENED not in n]
    weights = [load_file(tmp_path / f"{stage}-{n}" / "adapter_model.safetensors") for n in (0, 1)]
    assert all(bool((weights[0][name] == weights[1][name]).all()) for name in weights[0])
    manifests = [json.loads((tmp_path / f"{stage}-{n}" / "manifest.json").read_text()) for n in (0, 1)]
    assert manifests[0]["data"] == manifests[1]["data"]
    logs = [(tmp_path / f"{stage}-{n}" / "metrics.jsonl").read_text().splitlines() for n in (0, 1)]
    losses = [[json.loads(line).get("eval_loss") for line in log] for log in logs]
    assert losses[0] == losses[1]


def test_every_change_that_matters_prepares_the_rows_anew(train: Train) -> None:
    assert said(train("sft"), KEPT)
    for changes in (
        {"cutoff_len": 150},
        {"template": "qa"},
        {"system": "Be kind."},
        {"seed": 7},
        {"max_samples": 30},
        {"mask_history": True},
        {"max_target_length": 20},
        {"val_size": 4},
    ):
        assert said(train("sft", **changes), KEPT), changes
    assert said(train("sft"), OPENED)


def test_one_row_that_is_edited_prepares_the_rows_anew(train: Train, tmp_path: Path) -> None:
    train("sft")
    (file,) = {row["file"] for row in json.loads((tmp_path / "sft-0" / "manifest.json").read_text())["data"]}
    before = Path(file).read_text(encoding="utf-8")
    Path(file).write_text(before.replace("？", "！", 1), encoding="utf-8")
    assert said(train("sft"), KEPT)
    Path(file).write_text(before, encoding="utf-8")
    assert said(train("sft"), OPENED)


def test_overwrite_cache_prepares_anew_and_keeps_the_result(train: Train) -> None:
    train("sft")
    assert said(train("sft", overwrite_cache=True), KEPT)
    assert said(train("sft"), OPENED)


def test_a_broken_entry_is_said_and_replaced(train: Train, tmp_path: Path) -> None:
    train("sft")
    (entry,) = (tmp_path / "rows").iterdir()
    tokens = entry / "train.tokens.npy"
    tokens.write_bytes(tokens.read_bytes()[:-7])
    notes = train("sft")
    assert said(notes, "are damaged (train.tokens.npy has")
    assert said(notes, KEPT)
    assert said(train("sft"), OPENED)


def test_rows_that_were_skipped_are_written_out_again(train: Train, tmp_path: Path) -> None:
    rows = ['{"instruction": "a", "output": "b"}', "{broken", '{"instruction": "c", "output": "d"}']
    (tmp_path / "data" / "some.jsonl").write_text("\n".join(rows))
    own = {"dataset": str(tmp_path / "data" / "some.jsonl"), "max_bad_rows": 1}
    assert said(train("sft", **own), KEPT)
    assert said(train("sft", **own), OPENED)
    first, second = ((tmp_path / f"sft-{n}" / "rejects.jsonl").read_text() for n in (0, 1))
    assert first == second != ""


def test_small_data_write_nothing(train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    notes = train("sft")
    assert not said(notes, KEPT)
    assert not (tmp_path / "rows").exists()


def test_two_runs_that_begin_at_once_both_end_well(workshop: Workshop, tmp_path: Path) -> None:
    code = (
        "import sys, json, duiqi; from duiqi.stages import preparation; preparation.KEPT_FROM_BYTES = 0;"
        "settings = json.loads(sys.argv[1]); duiqi.run('sft', **settings)"
    )
    own = {"data_cache_dir": str(tmp_path / "rows"), "max_steps": 1}
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", code, json.dumps(workshop.settings("sft", tmp_path / name, **own))],
            stderr=subprocess.PIPE,
            text=True,
        )
        for name in ("one", "two")
    ]
    for run in runs:
        _, errors = run.communicate(timeout=300)
        assert run.returncode == 0, errors
    assert len(list((tmp_path / "rows").iterdir())) == 1
    one, two = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("one", "two"))
    assert all(bool((one[name] == two[name]).all()) for name in one)
