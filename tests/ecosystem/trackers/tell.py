"""A run that a tracker is told: begun and killed at step 30, then gone on with from a checkpoint at step 20."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from duiqi.journal.run import Run
from duiqi.journal.trackers.registry import make_tracking
from duiqi.types import TrainingTotals

SETTINGS = {"model_name_or_path": "base", "learning_rate": 1e-5, "system": "你是小对。", "lora_alpha": None}
KILLED = 9


def steps(run: Run, first: int, last: int) -> None:
    for step in range(first, last + 1, 5):
        run.metrics(step, {"loss": 1 / (step + 1), "rewards/margins": step / 10, "score/规则.py:f": 0.5})
        if step % 10 == 0:
            rows = [{"prompt": "你是谁？", "answer": f"第 {step} 步 🙂\n第二行", "score": step / 10}, {"prompt": "?"}]
            run.samples(step, rows)
            run.metrics(step, {"eval_loss": 2 / (step + 1), "eval_accuracy/数据": float("nan")})


def main() -> None:
    name, directory, start = sys.argv[1], Path(sys.argv[2]), sys.argv[3]
    tracking = make_tracking([name], project="duiqi check", run_name="kill-and-resume")
    run = Run.open(directory, stage="sft", settings=SETTINGS, argv=sys.argv, resume=True, tracking=tracking)
    if start == "begin":
        run.track(-1)
        steps(run, 0, 30)
        if name == "trackio":  # it writes twice a second, from a thread of its own
            time.sleep(1.5)
        os._exit(KILLED)  # as kill -9 leaves it: nothing is closed or flushed
    with run:
        run.rewind(20)
        run.track(20)
        steps(run, 25, 40)
        run.finish(TrainingTotals(1.0, 0.25, 10.0, 6.4, 0.8), {"eval_loss": 2 / 41})


if __name__ == "__main__":
    main()
