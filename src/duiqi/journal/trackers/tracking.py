"""The trackers of one run: told what the journal writes, let go when they fail. No run stops for a tracker."""

from __future__ import annotations

import contextlib
import io
import json
import random
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from duiqi.journal.files import atomic_write_json, writing
from duiqi.journal.lines import read_lines
from duiqi.journal.trackers.tracker import NOTHING, Outcome, TrackedRun, Tracker

FOLDER = "trackers"
"""Where trackers write inside a run directory, and where `runs.json` says under which id each of them knows the run."""

_LONGEST_REASON = 300
_NO_TRACKERS: Mapping[str, Callable[[], Tracker]] = {}


@dataclass(slots=True)
class _Listener:
    """An open tracker."""

    tracker: Tracker
    id: str
    known: int
    """Rows of steps up to this one are not told: it holds them."""
    told: int


class Tracking:
    """The trackers of a run, in the order they were named.

    Args:
        makers: Makes each tracker, by name; called when the run is opened, so that what is not named is not imported.
        project: The project of the settings, if they name one.
        name: The run's name, if the settings give one; else the name of its directory.
    """

    def __init__(
        self,
        makers: Mapping[str, Callable[[], Tracker]] = _NO_TRACKERS,
        *,
        project: str | None = None,
        name: str | None = None,
    ) -> None:
        self._makers, self._project, self._name = makers, project, name
        self._listeners: dict[str, _Listener] = {}
        self._path = Path()
        self._warn: Callable[[str], None] = lambda _text: None
        self._last_step, self._last_names = NOTHING, set[str]()

    def open(
        self, directory: Path, *, settings: Mapping[str, Any], step: int, warn: Callable[[str], None]
    ) -> dict[str, str]:
        """Open every tracker and tell it what it does not know of `metrics.jsonl`.

        Args:
            directory: The run's.
            settings: Flat resolved settings.
            step: The step of the checkpoint that training goes on from; -1: it begins.
            warn: Takes the one message about a tracker that fails.

        Returns:
            How to look at the run, for each tracker that is open.
        """
        if not self._makers:
            return {}
        self._path, self._warn = directory / FOLDER / "runs.json", warn
        with writing(self._path.parent):
            self._path.parent.mkdir(exist_ok=True)
        before = _read(self._path)
        history = [_numbers(row) for row in read_lines(directory / "metrics.jsonl")]
        places = {}
        for name, make in self._makers.items():
            record = before.get(name, {})
            run = TrackedRun(
                directory=directory / FOLDER / name,
                project=self._project,
                name=self._name or directory.resolve().name,
                settings=settings,
                id=record.get("id"),
                told=record.get("told", NOTHING),
                step=step,
            )
            with self._survived(name):
                tracker = make()
                opened = tracker.open(run)
                listener = _Listener(tracker, opened.id, known=opened.known, told=opened.known)
                self._listeners[name] = listener
                for past_step, values in history:
                    _tell(listener, past_step, values)
                places[name] = opened.where
        for past_step, values in history:
            self._note(past_step, values)
        self._remember()
        return places

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Tell the numbers of a step."""
        for name, listener in list(self._listeners.items()):
            with self._survived(name):
                _tell(listener, step, values)
        self._note(step, values)
        self._remember()

    def samples(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """Tell answers of the model as it is at a step."""
        for name, listener in list(self._listeners.items()):
            if step > listener.known:
                with self._survived(name):
                    listener.tracker.samples(step, rows)

    def summary(self, values: Mapping[str, float]) -> None:
        """Tell the results, at the last step: those that were not among its numbers."""
        self.log(max(self._last_step, 0), {name: v for name, v in values.items() if name not in self._last_names})

    def close(self, outcome: Outcome) -> None:
        """Close every tracker; closing twice is harmless."""
        for name, listener in list(self._listeners.items()):
            with self._survived(name):
                listener.tracker.close(outcome)
        self._listeners.clear()

    @contextmanager
    def _survived(self, name: str) -> Iterator[None]:
        """Whatever a tracker raises ends its part in the run, and nothing else."""
        try:
            with _as_a_guest():
                yield
        except Exception as failure:
            self._listeners.pop(name, None)
            self._warn(f"{name} failed and is told no more, the run goes on without it ({_reason(failure)})")

    def _note(self, step: int, values: Mapping[str, float]) -> None:
        if step > self._last_step:
            self._last_step, self._last_names = step, set()
        self._last_names |= set(values)

    def _remember(self) -> None:
        """Keep the ids, and how far each tracker was told: it is not told the same again when the run is resumed."""
        if self._listeners:
            records = {name: {"id": each.id, "told": each.told} for name, each in self._listeners.items()}
            atomic_write_json(self._path, {**_read(self._path), **records})


def in_groups(name: str) -> str:
    """A metric's name in the groups that transformers' own reports have.

    >>> in_groups("eval_loss"), in_groups("rewards/margins")
    ('eval/loss', 'train/rewards/margins')
    """
    return f"eval/{name.removeprefix('eval_')}" if name.startswith("eval_") else f"train/{name}"


def _tell(listener: _Listener, step: int, values: Mapping[str, float]) -> None:
    if step > listener.known and values:
        listener.tracker.log(step, {in_groups(name): float(value) for name, value in values.items()})
        listener.told = max(listener.told, step)


def _numbers(row: Mapping[str, Any]) -> tuple[int, dict[str, float]]:
    """A line of metrics.jsonl, with "nan" and "inf" as the numbers they were."""
    return row["step"], {name: float(value) for name, value in row.items() if name != "step"}


def _reason(failure: Exception) -> str:
    """What happened, on one line that is not too long."""
    if isinstance(failure, EOFError):
        return "it asked for something, probably for a login: log in with its own command before the run"
    return f"{type(failure).__name__}: {' '.join(str(failure).split())[:_LONGEST_REASON]}"


def _read(path: Path) -> dict[str, dict[str, Any]]:
    """What `runs.json` says; a file that cannot be read says nothing, and the trackers begin new runs."""
    try:
        records: dict[str, dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    return records


@contextmanager
def _as_a_guest() -> Iterator[None]:
    """What a tracker may not do to its host: ask, write on stdout, keep the signals, disturb the random numbers.

    Asked for a login it finds no terminal, and fails instead of waiting for an answer. SwanLab takes SIGINT for itself,
    and with it the orderly end of a run.
    """
    stdin, hook, dice = sys.stdin, sys.excepthook, random.getstate()
    is_main = threading.current_thread() is threading.main_thread()
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)} if is_main else {}
    sys.stdin = io.StringIO()
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        sys.stdin, sys.excepthook = stdin, hook
        random.setstate(dice)
        for number, handler in handlers.items():
            if handler is not None:  # None: not Python's, so no tracker in Python has changed it
                signal.signal(number, handler)
