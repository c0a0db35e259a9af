"""What a tracker holds of the run in tell.py, read with the tracker's own means and compared with metrics.jsonl."""

from __future__ import annotations

import json
import math
import os
import struct
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path

LOG_BLOCK, LOG_HEADER = 32768, struct.Struct("<IHB")

Points = dict[str, list[tuple[int, float]]]
"""The (step, value) points of every metric, in the order the tracker gives them."""


def tensorboard(run: Path) -> tuple[Points, int]:
    from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator
    from tensorboard.util.tensor_util import make_ndarray

    events = EventAccumulator(str(run / "trackers/tensorboard"), size_guidance={"tensors": 0})
    events.Reload()
    points = {
        tag: [(event.step, float(make_ndarray(event.tensor_proto))) for event in events.Tensors(tag)]
        for tag in events.PluginTagToContent("scalars")
    }
    return points, len(events.Tensors("samples"))


def log_records(path: Path) -> Iterator[bytes]:
    """The records of a LevelDB log, the format in which wandb and SwanLab keep a run until it is synced."""
    content, place, record = path.read_bytes(), 7, b""  # after a header of their own
    while place < len(content):
        if LOG_BLOCK - place % LOG_BLOCK < LOG_HEADER.size:
            place += LOG_BLOCK - place % LOG_BLOCK
            continue
        _, length, kind = LOG_HEADER.unpack_from(content, place)
        place += LOG_HEADER.size
        record += content[place : place + length]
        place += length
        if kind in (1, 4):  # whole, or the last part
            yield record
            record = b""


def wandb(run: Path) -> tuple[Points, int]:
    from wandb.proto.wandb_internal_pb2 import Record

    newest = max((run / "trackers/wandb").glob("offline-run-*"), key=lambda path: path.name)
    points: Points = {}
    tables = 0
    for data in log_records(next(newest.glob("*.wandb"))):
        record = Record()
        record.ParseFromString(data)
        if record.WhichOneof("record_type") != "history":
            continue
        values = {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
        tables += "samples/_type" in values
        for name, value in values.items():
            if name.startswith(("train/", "eval/")):
                points.setdefault(name, []).append((values["_step"], float(value)))
    return points, tables


def trackio(run: Path) -> tuple[Points, int]:
    from trackio.sqlite_storage import SQLiteStorage

    name = json.loads((run / "trackers/runs.json").read_text())["trackio"]["id"]
    points: Points = {}
    tables = 0
    for row in SQLiteStorage.get_logs("duiqi check", name):
        tables += "samples" in row
        for key, value in row.items():
            if key.startswith(("train/", "eval/")):
                points.setdefault(key, []).append((row["step"], float(value)))
    return points, tables


def mlflow(run: Path) -> tuple[Points, int]:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{run.resolve()}/trackers/mlflow/mlflow.db")
    run_id = json.loads((run / "trackers/runs.json").read_text())["mlflow"]["id"]
    found = client.get_run(run_id)
    assert found.info.status == "FINISHED", found.info.status
    assert found.data.params["system"] == "你是小对。"
    points = {
        name: [(metric.step, metric.value) for metric in client.get_metric_history(run_id, name)]
        for name in found.data.metrics
    }
    return points, len(client.list_artifacts(run_id, "samples"))


def swanlab(run: Path) -> tuple[Points, int]:
    from swanlab.proto.swanlab.record.v1.record_pb2 import Record

    newest = max((run / "trackers/swanlab").glob("run-*"), key=lambda path: path.name)
    points: Points = {}
    tables = 0
    for data in log_records(next(newest.glob("*.swanlab"))):
        record = Record()
        record.ParseFromString(data)
        if record.HasField("scalar"):
            scalar = record.scalar
            points.setdefault(scalar.key, []).append((scalar.step, scalar.value.number))
        tables += record.HasField("media") and record.media.key == "samples"
    return points, tables


READERS: dict[str, Callable[[Path], tuple[Points, int]]] = {
    "tensorboard": tensorboard,
    "wandb": wandb,
    "swanlab": swanlab,
    "trackio": trackio,
    "mlflow": mlflow,
}


def expected(run: Path) -> Points:
    """The points of metrics.jsonl, in transformers' groups."""
    points: Points = {}
    for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        for name, value in row.items():
            if name != "step":
                group = name.replace("eval_", "eval/", 1) if name.startswith("eval_") else f"train/{name}"
                points.setdefault(group, []).append((row["step"], float(value)))
    return points


def same(found: list[tuple[int, float]], wanted: list[tuple[int, float]]) -> bool:
    """Whether these are the same steps with the same values, to float32's precision."""
    return [step for step, _ in found] == [step for step, _ in wanted] and all(
        math.isclose(a, b, rel_tol=1e-6) or (math.isnan(a) and math.isnan(b))
        for (_, a), (_, b) in zip(found, wanted, strict=True)
    )


def main() -> None:
    name, run = sys.argv[1], Path(sys.argv[2])
    warnings = [line for line in (run / "events.jsonl").read_text().splitlines() if '"warning"' in line]
    assert not warnings, warnings
    found, samples = READERS[name](run)
    wanted = expected(run)
    assert [step for step, _ in wanted["train/loss"]] == list(range(0, 45, 5))
    for metric, points in wanted.items():
        key = metric if metric in found else metric.replace("规则", "__")
        assert same(found.get(key, []), points), f"{metric}: told {points}, holds {found.get(key)}"
    assert found["train/train_loss"] == [(40, 0.25)], found["train/train_loss"]
    assert samples in (2, 5), samples  # all, or those since the run was resumed
    print(
        f"{name} {version(name)}: {len(wanted)} metrics x {len(wanted['train/loss'])} steps as in metrics.jsonl, none "
        f"twice, after a kill at step 30 and a resumption from step 20; {samples} of 5 samples"
    )


if __name__ == "__main__":
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    main()
