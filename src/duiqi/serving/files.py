"""The files that `generate` and `score` work on: rows in, and a new file out."""

from __future__ import annotations

import os
from pathlib import Path

from duiqi.data.loading import load_examples
from duiqi.data.registry import DatasetSpec, parse_dataset_spec
from duiqi.errors import DataError
from duiqi.types import Example


def new_file(path: str) -> Path:
    """The path of a file to be written.

    Raises:
        DataError: Something is there already.
    """
    target = Path(path)
    if target.exists():
        raise DataError("this file is already there", where=path, remedy="give another --output_file")
    return target


def read_conversations(file: str, *, max_samples: int | None, dataset_dir: str = ".") -> list[Example]:
    """Prompts with whatever answers they have, in the order of the file; at most the first `max_samples`.

    Args:
        file: A file, or names in dataset_info.json of `dataset_dir`, written as for a stage.

    Raises:
        DataError: The file is missing, malformed, or of another kind.
    """
    specs = [DatasetSpec(file)] if os.path.exists(file) else parse_dataset_spec(file)
    return load_examples(specs, dataset_dir=dataset_dir, need="conversation", seed=0).examples[:max_samples]
