"""Learning rates and step counts: the same as transformers', and as documented."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tests.conftest import Workshop
from transformers import get_scheduler

import duiqi
from duiqi.training.schedule import Schedule


@pytest.mark.parametrize("shape", ["linear", "cosine"])
@pytest.mark.parametrize("warmup", [0, 5])
def test_schedules_are_those_of_transformers(shape: str, warmup: int) -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5)
    theirs = get_scheduler(shape, optimizer, num_warmup_steps=warmup, num_training_steps=20)
    ours = Schedule(0.5, total_steps=20, warmup_steps=warmup, shape=shape)
    for step in range(1, 21):
        assert ours.at(step) == pytest.approx(optimizer.param_groups[0]["lr"], abs=1e-12)
        optimizer.step()
        theirs.step()


def test_constant_stays_at_the_peak_after_the_warmup() -> None:
    schedule = Schedule(2.0, total_steps=10, warmup_steps=4, shape="constant")
    assert [schedule.at(step) for step in (1, 3, 5, 10)] == [0.0, 1.0, 2.0, 2.0]


@pytest.mark.parametrize(
    ("rows", "batch", "accumulation", "epochs", "steps"),
    [(10, 2, 2, 3.0, 9), (8, 4, 1, 1.0, 2), (10, 4, 1, 1.5, 5), (3, 8, 1, 2.0, 2)],
)
def test_epochs_become_the_documented_number_of_steps(
    workshop: Workshop, tmp_path: Path, rows: int, batch: int, accumulation: int, epochs: float, steps: int
) -> None:
    result = duiqi.run(
        "sft",
        **workshop.settings(
            "sft",
            tmp_path,
            max_samples=rows,
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=accumulation,
            num_train_epochs=epochs,
            max_steps=0,
        ),
    )
    logged = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert result.steps == steps == len(logged)


def test_logged_learning_rates_follow_the_warmup(workshop: Workshop, tmp_path: Path) -> None:
    duiqi.run(
        "sft", **workshop.settings("sft", tmp_path, lr_scheduler_type="linear", warmup_steps=2, learning_rate=1.0e-3)
    )
    logged = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["learning_rate"] for row in logged] == pytest.approx([0.0, 5e-4, 1e-3, 5e-4])
