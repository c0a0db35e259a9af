"""TensorBoard, through its own event files: the package that shows them writes them, and torch is not needed."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto
from tensorboard.compat.proto.types_pb2 import DT_STRING
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from duiqi.journal.trackers.tracker import Opened, Outcome, TrackedRun, as_text
from duiqi.settings.recipe import to_yaml


class TensorBoard:
    """Scalars and texts; a resumed run writes another file, which takes back the steps after its checkpoint."""

    def open(self, run: TrackedRun) -> Opened:
        self._writer = EventFileWriter(str(run.directory))
        known = min(run.told, run.step)
        # The first file of a run must have such a start too: the reader takes back steps at the second one it sees.
        start = SessionLog(status=SessionLog.START)
        self._writer.add_event(Event(wall_time=time.time(), step=known + 1, session_log=start))
        if known < 0:
            self._add(0, _text("settings", f"```\n{to_yaml(run.settings)}\n```"))
        return Opened("events", known, f"tensorboard --logdir {run.directory}")

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._add(step, *(Summary.Value(tag=name, simple_value=value) for name, value in values.items()))

    def samples(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        self._add(step, _text("samples", "\n\n---\n\n".join(as_text(row) for row in rows)))

    def close(self, outcome: Outcome) -> None:
        del outcome  # event files have no place for it
        self._writer.close()

    def _add(self, step: int, *values: Summary.Value) -> None:
        """Flushed at once: what a killed process still held back would be missing, and is not told again."""
        self._writer.add_event(Event(wall_time=time.time(), step=step, summary=Summary(value=values)))
        self._writer.flush()


def _text(tag: str, markdown: str) -> Summary.Value:
    plugin = SummaryMetadata.PluginData(plugin_name="text")
    shape = TensorShapeProto(dim=[TensorShapeProto.Dim(size=1)])
    tensor = TensorProto(dtype=DT_STRING, tensor_shape=shape, string_val=[markdown.encode(errors="replace")])
    return Summary.Value(tag=tag, metadata=SummaryMetadata(plugin_data=plugin), tensor=tensor)
