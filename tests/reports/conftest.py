"""Small run directories, written the way stages write them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from duiqi.journal.run import Run
from duiqi.types import TrainingTotals

WriteRun = Callable[..., Path]


@pytest.fixture
def write_run(tmp_path: Path) -> WriteRun:
    """A function that writes a run of 20 steps and returns its directory."""

    def write(name: str, *, stage: str = "ppo", learning_rate: float = 1e-4, is_finished: bool = True) -> Path:
        settings = {
            "model_name_or_path": "base",
            "dataset": "demo",
            "learning_rate": learning_rate,
            "system": "小对",
        }
        with Run.open(tmp_path / name, stage=stage, settings=settings, argv=["duiqi", stage, "a b.yaml"]) as run:
            run.describe(data=[{"file": "demo.jsonl", "rows": 12, "sha256": "f00d"}])
            for step in range(1, 21):
                run.metrics(step, {"score": step / 20, "kl": 0.1 * step if step != 7 else float("nan")})
            for step in (0, 10, 20):
                run.metrics(step, {"score": step / 25}, prefix="eval")
                run.samples(
                    step, [{"prompt": "你好吗？", "answer": "很好" if step else "", "score": step / 25, "length": 2}]
                )
            if is_finished:
                run.finish(TrainingTotals(1.0, 0.5, 90.0, 2.0, 0.2), {"eval_score": 0.8})
        return tmp_path / name

    return write
