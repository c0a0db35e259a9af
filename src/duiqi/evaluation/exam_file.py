"""exam.json: where it lies, how it is written, and whether a reward model is still the one that was examined."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from duiqi.errors import RunError
from duiqi.evaluation.exam_result import GRADES, Exam, Grade
from duiqi.journal.files import atomic_write_json
from duiqi.rollouts.scoring import RewardSpec

EXAM_NAME = "exam.json"
_WEIGHTS = ("*.safetensors", "*.bin")
_SHAPE = ("adapter_config.json", "config.json")
_NO_WEIGHTS = frozenset({"value_head.safetensors", "training_args.bin", "trainer_state.safetensors"})


@dataclass(frozen=True)
class Verdict:
    """What a reader needs of an exam.json."""

    grade: Grade
    digest: str


def exam_place(source: str, output_dir: str | None = None) -> Path | None:
    """Where the examination of a reward model is written: with its weights, or beside the file of its function.

    None for a model that has no directory here (a name on the hub) where no `output_dir` is given.

    >>> exam_place("runs/checks.py:polite").as_posix()
    'runs/checks.polite.exam.json'
    """
    if output_dir is not None:
        return Path(output_dir).expanduser() / EXAM_NAME
    if function := RewardSpec(source).function:
        file = Path(function[0]).expanduser()
        return file.with_name(f"{file.stem}.{function[1]}.{EXAM_NAME}")
    directory = Path(source).expanduser()
    return directory / EXAM_NAME if directory.is_dir() else None


def weights_digest(source: str) -> str:
    """The sha256 of everything that a reward model's scores come from and that lies in its own place.

    That is its weights and their shape (an adapter's scale is in its configuration), or the file of a function. The
    base under an adapter is not read: its fingerprint is checked when the adapter is loaded. Empty for a name on the
    hub.
    """
    if function := RewardSpec(source).function:
        files = [Path(function[0]).expanduser()]
    else:
        directory = Path(source).expanduser()
        found = {path for pattern in (*_WEIGHTS, *_SHAPE) for path in directory.glob(pattern)}
        files = sorted(path for path in found if path.name not in _NO_WEIGHTS)
    digest = hashlib.sha256()
    for file in files:
        if not file.is_file():
            continue
        with file.open("rb") as opened:
            digest.update(f"{file.name}\0{hashlib.file_digest(opened, 'sha256').hexdigest()}\0".encode())
    return digest.hexdigest() if any(file.is_file() for file in files) else ""


def write_exam(exam: Exam, path: Path) -> None:
    """Put the whole examination at `path`, complete or not at all."""
    atomic_write_json(path, {"format": 1, **asdict(exam)})


def read_verdict(path: Path) -> Verdict | None:
    """Grade and digest of an exam.json; None where there is none.

    Raises:
        RunError: It is damaged.
    """
    if not path.is_file():
        return None
    try:
        fields: Any = json.loads(path.read_text(encoding="utf-8"))
        grade, digest = fields["grade"], str(fields["about"]["digest"])
    except (ValueError, KeyError, TypeError) as error:
        raise _damaged(path) from error
    if grade not in GRADES:
        raise _damaged(path)
    return Verdict(grade, digest)


def _damaged(path: Path) -> RunError:
    return RunError("this is not the file of an examination", where=str(path), remedy="remove it, or examine again")
