"""The one place that uses the optional package `datasets` and what comes with it: parquet files, data on the hub."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from duiqi.errors import DataError, UserError


def read_parquet(path: Path) -> list[dict[str, Any]]:
    """All rows of a parquet file.

    Raises:
        DataError: It is damaged.
    """
    _datasets(f"the parquet file {path}")  # which brings pyarrow
    parquet = importlib.import_module("pyarrow.parquet")
    try:
        rows: list[dict[str, Any]] = parquet.read_table(path).to_pylist()
    except Exception as error:  # the library raises whatever its many layers raise
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"not a parquet file that can be read: {reason}", where=str(path)) from error
    return rows


def read_hub(
    name: str, *, subset: str | None = None, split: str = "train", folder: str | None = None
) -> list[dict[str, Any]]:
    """All rows of one split of a hub dataset, or of one folder of it, from the local cache or the network.

    Raises:
        DataError: The hub or the cache does not give the dataset; the library's own reason is quoted.
    """
    datasets = _datasets(f"the hub dataset {name}")
    try:
        return [dict(row) for row in datasets.load_dataset(name, subset, data_dir=folder, split=split)]
    except Exception as error:  # the library raises whatever its many back ends raise
        raise DataError(
            f"the hub dataset cannot be loaded: {error}",
            where=name,
            remedy="check its name, subset, split and your network, or download it and name the file",
        ) from error


def _datasets(wanted_for: str) -> Any:
    try:
        return importlib.import_module("datasets")
    except ImportError:
        raise UserError(
            f"{wanted_for} needs the package datasets, which is not installed",
            remedy="pip install duiqi[hub]",
        ) from None
