"""A run directory while it is being written: settings, provenance, metrics, samples, events, checkpoints, results."""

from __future__ import annotations

import json
import shutil
import uuid
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict
from datetime import UTC, datetime
from fnmatch import fnmatch
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import yaml

from duiqi.errors import GuardStop, Interrupted, RunError
from duiqi.journal.checksums import is_inside
from duiqi.journal.files import MIB, atomic_write_json, atomic_write_text, check_free_space, writing
from duiqi.journal.lines import JsonLines, encode_line
from duiqi.journal.lock import DirectoryLock
from duiqi.journal.provenance import git_revision, hardware, versions
from duiqi.journal.terminal import SilentView, View
from duiqi.journal.trackers.tracker import Outcome
from duiqi.journal.trackers.tracking import FOLDER as TRACKERS
from duiqi.journal.trackers.tracking import Tracking
from duiqi.settings.recipe import to_yaml
from duiqi.types import TrainingTotals

CheckpointName = Literal["best", "last"]

_MIN_FREE_BYTES = 64 * MIB
_ABOUT_THE_START = frozenset({"resume_from_checkpoint", "overwrite_output_dir"})
"""Settings that say what becomes of a run already there. They are no part of the run, so `config.yaml` lacks them."""

_RECORDS = ("config.yaml", "manifest.json", "metrics.jsonl", "samples.jsonl", "events.jsonl", "rejects.jsonl")
_RESULTS = (
    "all_results.json",
    "train_results.json",
    "report.html",
    "exam.json",
    "exam.html",
    "plots",
    "anomaly",
    "checkpoints",
    "best",
    "last",
    "vllm",
    TRACKERS,
)
_MODEL = (
    "duiqi.json",
    "adapter_config.json",
    "config.json",
    "generation_config.json",
    "*.safetensors",
    "*.safetensors.index.json",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
)
_WORTH_KEEPING = ("checkpoints", "duiqi.json", "adapter_config.json", "all_results.json")


class Run:
    """The journal of one stage, and the only writer of its directory.

    Use it as a context manager: an exception that passes through is noted as the run's end, the terminal is given
    back, and the directory is unlocked.
    """

    def __init__(self, directory: Path, *, stage: str, view: View, tracking: Tracking, lock: DirectoryLock) -> None:
        self.directory = directory
        self.stage = stage
        self.view = view
        self.is_resumed = False
        """Whether the directory already held this run, to be continued from its last complete checkpoint."""
        self._tracking, self._lock = tracking, lock
        self._outcome: Outcome = "finished"
        self._settings: dict[str, Any] = {}
        self._manifest: dict[str, Any] = {}
        self._metrics = JsonLines(directory / "metrics.jsonl")
        self._samples = JsonLines(directory / "samples.jsonl")
        self._events = JsonLines(directory / "events.jsonl")

    @classmethod
    def open(
        cls,
        output_dir: str | Path,
        *,
        stage: str,
        settings: Mapping[str, Any],
        argv: Sequence[str],
        overwrite: bool = False,
        resume: bool = False,
        view: View | None = None,
        tracking: Tracking | None = None,
    ) -> Run:
        """Begin a run in `output_dir`, or continue the one it holds.

        Args:
            output_dir: Created where missing.
            stage: `sft`, `rm`, `ppo` ...
            settings: Flat resolved settings, JSON values only; `config.yaml` keeps their order.
            argv: The command as typed.
            overwrite: Remove the run that is there: what duiqi wrote, never other files.
            resume: Continue the run that is there, or begin where there is none; wins over `overwrite`.
            view: Where progress is shown; nowhere by default.
            tracking: The trackers that are told as well; none by default.

        Raises:
            RunError: the directory holds a run, is in use by another process, or cannot be written.
        """
        directory = Path(output_dir)
        with writing(directory):
            try:
                directory.mkdir(parents=True, exist_ok=True)
            except ValueError as error:  # a zero byte, half a surrogate pair
                raise RunError(f"no directory can have this name ({error})", where=repr(output_dir)) from error
        check_free_space(directory, _MIN_FREE_BYTES)
        lock = DirectoryLock(directory)
        try:
            is_resumed = _make_room(directory, stage=stage, overwrite=overwrite, resume=resume)
            run = cls(directory, stage=stage, view=view or SilentView(), tracking=tracking or Tracking(), lock=lock)
        except BaseException:
            lock.release()
            raise
        run._begin(settings, argv, is_resumed=is_resumed)
        return run

    def _begin(self, settings: Mapping[str, Any], argv: Sequence[str], *, is_resumed: bool) -> None:
        config = self.directory / "config.yaml"
        before = _read_settings(config) if is_resumed else {}
        self._settings = {name: value for name, value in settings.items() if name not in _ABOUT_THE_START}
        atomic_write_text(config, to_yaml(self._settings))
        manifest = self.directory / "manifest.json"
        if is_resumed:
            self._manifest = _read_manifest(manifest)
        self.is_resumed = is_resumed
        self.describe(
            stage=self.stage,
            argv=list(argv),
            started=self._manifest.get("started", _now()),
            seed=settings.get("seed"),
            versions=versions(),
            git=git_revision(),
            hardware=hardware(),
        )
        if is_resumed:
            self.event("resumed", changed_settings=_differences(before, settings))
        else:
            self.event("started")

    def describe(self, **fields: Any) -> None:
        """Add to `manifest.json`: data fingerprints (`data=`), parents (`parents=`), whatever explains the run."""
        self._manifest.update(fields)
        atomic_write_json(self.directory / "manifest.json", self._manifest)

    def recorded(self, name: str) -> Any:
        """What `describe` was told under this name, by this start of the run or by an earlier one; None: nothing."""
        return self._manifest.get(name)

    def track(self, step: int) -> None:
        """Open the trackers, as training is about to begin (-1) or to go on from the checkpoint of `step`."""
        places = self._tracking.open(self.directory, settings=self._settings, step=step, warn=self.warn)
        if places:
            self.describe(trackers=places)
        for name, where in places.items():
            self.view.note(f"{name}: {where}")

    def metrics(self, step: int, values: Mapping[str, float], *, prefix: str = "") -> None:
        """Log numbers of one step as one line. With the prefix `eval`, `loss` becomes `eval_loss`."""
        named = {f"{prefix}_{name}" if prefix else name: value for name, value in values.items()}
        self._metrics.append({"step": step, **named})
        self._tracking.log(step, named)

    def samples(self, step: int, rows: Iterable[Mapping[str, Any]]) -> None:
        """Keep answers as they were at a step: rows of `prompt`, `answer` and, where known, `score`, `kl`, `length`."""
        rows = list(rows)
        for row in rows:
            self._samples.append({"step": step, **row})
            self.view.sample(
                step, prompt=str(row.get("prompt", "")), answer=str(row.get("answer", "")), score=row.get("score")
            )
        self._tracking.samples(step, rows)

    def event(self, kind: str, **fields: Any) -> None:
        """Note that something happened now: a checkpoint, a finding of a guard, an interruption ..."""
        self._events.append({"time": _now(), "kind": kind, **fields})

    def warn(self, text: str) -> None:
        """Tell the user of something that does not stop the run."""
        self.event("warning", text=text)
        self.view.note(f"warning: {text}")

    def rewind(self, step: int) -> None:
        """Forget the metrics and samples of later steps, because training goes on from a checkpoint at `step`."""
        dropped = {"metrics": self._metrics.drop_after(step), "samples": self._samples.drop_after(step)}
        self.event("rewound", step=step, dropped=dropped)

    def checkpoint_dir(self, step: int) -> Path:
        """Where the checkpoint of a step lies; not created here, because it must appear complete or not at all."""
        return self.directory / "checkpoints" / f"step-{step:06d}"

    def link(self, name: CheckpointName, step: int) -> None:
        """Let `best` or `last` point at the checkpoint of `step`, replacing the old link in one move."""
        target = self.checkpoint_dir(step).relative_to(self.directory)
        link, draft = self.directory / name, self.directory / f".{name}.{uuid.uuid4().hex}"
        try:
            draft.symlink_to(target, target_is_directory=True)
        except OSError:  # Windows without the privilege, FAT: a text file says the same
            atomic_write_text(link, f"{target.as_posix()}\n")
        else:
            draft.replace(link)

    def write_rejects(self, rows: Iterable[Mapping[str, Any]]) -> Path:
        """Keep the rows of the data that were skipped, in `rejects.jsonl`. Returns the file."""
        path = self.directory / "rejects.jsonl"
        atomic_write_text(path, "".join(map(encode_line, rows)))
        return path

    def anomaly_dir(self) -> Path:
        """The directory for the batch that broke the run, created on first use."""
        path = self.directory / "anomaly"
        with writing(path):
            path.mkdir(exist_ok=True)
        return path

    def finish(self, totals: TrainingTotals, metrics: Mapping[str, float]) -> None:
        """Write the results: `train_results.json` holds the totals, `all_results.json` the last evaluation as well."""
        trained = asdict(totals)
        atomic_write_json(self.directory / "train_results.json", trained)
        atomic_write_json(self.directory / "all_results.json", {**trained, **metrics})
        self._tracking.summary({**trained, **metrics})
        self.event("finished", seconds=totals.train_runtime)

    def close(self) -> None:
        """Give back the terminal, the trackers, the files and the directory; closing twice is harmless."""
        self.view.close()
        try:
            self._tracking.close(self._outcome)
        finally:
            with ExitStack() as everything:  # a full disk may refuse the last line of one, and the rest is still closed
                everything.callback(self._lock.release)
                for lines in (self._metrics, self._samples, self._events):
                    everything.callback(lines.close)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is None:
            self.close()
            return
        was_interrupted = isinstance(error, Interrupted | KeyboardInterrupt)
        self._outcome = "interrupted" if was_interrupted else "failed"
        with suppress(RunError):  # the disk that is full is what `error` says already
            try:
                if was_interrupted:
                    self.event("interrupted", message=str(error))
                elif isinstance(error, GuardStop):
                    self.event("stopped", message=str(error))
                else:
                    self.event("failed", error=type(error).__name__, message=str(error))
            finally:
                self.close()


def linked_checkpoint(run_dir: Path, name: CheckpointName) -> Path | None:
    """The checkpoint that `best` or `last` points at, or None where there is no such link into the run."""
    link = run_dir / name
    if not link.exists():
        return None
    if link.is_dir():
        return link.resolve()
    target = link.read_text(encoding="utf-8", errors="replace").strip()
    return run_dir / target if is_inside(target) else None


def _make_room(directory: Path, *, stage: str, overwrite: bool, resume: bool) -> bool:
    """Decide what becomes of a run that is already here. Returns whether it is to be continued."""
    holds_a_run = _holds_a_run(directory)
    if holds_a_run and resume:
        _check_stage(directory, stage)
        return True
    if holds_a_run and not overwrite:
        raise RunError(
            "this directory already holds a run",
            where=str(directory),
            remedy="set overwrite_output_dir: true to replace it, or resume_from_checkpoint: true to continue it",
        )
    if holds_a_run or (directory / "manifest.json").exists():
        with writing(directory):
            for path in list(directory.iterdir()):  # not glob: it does not see a link whose target is gone
                if any(fnmatch(path.name, pattern) for pattern in (*_RECORDS, *_RESULTS, *_MODEL)):
                    _remove(path)
    return False


def _holds_a_run(directory: Path) -> bool:
    """Whether anything here would be missed. A run that failed before its first step would not: it is no obstacle to
    the next attempt. A config.yaml without our manifest is somebody's recipe."""
    metrics, manifest = directory / "metrics.jsonl", directory / "manifest.json"
    return (
        any((directory / name).exists() for name in _WORTH_KEEPING)
        or (metrics.exists() and metrics.stat().st_size > 0)
        or ((directory / "config.yaml").exists() and not manifest.exists())
    )


def _check_stage(directory: Path, stage: str) -> None:
    manifest = directory / "manifest.json"
    begun_as = _read_manifest(manifest).get("stage", stage)
    if begun_as != stage:
        raise RunError(
            f"this directory holds a run of {begun_as}, which {stage} cannot continue",
            where=str(directory),
            remedy=f"set another output_dir, or run duiqi {begun_as} to continue it",
        )


def _read_manifest(path: Path) -> dict[str, Any]:
    """What a run that is continued said of itself; nothing where the file is gone.

    Raises:
        RunError: The file is damaged.
    """
    if not path.exists():
        return {}
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(manifest, dict):
            raise ValueError("it is no object")
    except (ValueError, RecursionError) as error:
        raise RunError(
            f"not valid JSON: {error}", where=str(path), remedy="restore the file or remove it, then resume again"
        ) from error
    return manifest


def _read_settings(path: Path) -> dict[str, Any]:
    """The settings with which the run was started last, to say what has changed. Nothing else depends on them.

    Raises:
        RunError: The file is damaged.
    """
    if not path.exists():
        return {}
    try:
        settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise RunError(
            f"not valid YAML: {str(error).splitlines()[0]}",
            where=str(path),
            remedy="restore the file or remove it, then resume again",
        ) from error
    return {name: value for name, value in settings.items() if _is_flat(value)} if isinstance(settings, dict) else {}


def _is_flat(value: Any) -> bool:
    """Whether a value is one that settings have. YAML can nest a few lines into more than any disk could take."""
    if isinstance(value, list):
        return all(isinstance(item, int | float | str | None) for item in value)
    return isinstance(value, int | float | str | None)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, list[Any]]:
    """The settings that changed between two starts of a run, as [old, new]."""
    names = (*after, *(name for name in before if name not in after))
    pairs = {name: [before.get(name), after.get(name)] for name in names if name not in _ABOUT_THE_START}
    return {name: pair for name, pair in pairs.items() if before and pair[0] != pair[1]}


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
