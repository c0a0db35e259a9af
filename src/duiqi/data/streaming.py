"""Examples of datasets that do not fit in memory: read as they are needed, mixed in a buffer, over and over.

The order depends on the files and the seed alone, and where it stands is told by a few numbers, so a run that is
resumed goes on with the very next row. To get there it reads, and does not encode, what it had read before.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any

from duiqi.data.loading import Need, converter, refuse_rows, source_of
from duiqi.data.reading import BadRow, Row, stream_file
from duiqi.data.registry import DatasetSpec
from duiqi.errors import DataError, RunError
from duiqi.types import Example

ROWS_LOOKED_AT = 1000
"""First rows of a dataset among which one must be good, for it tells the format."""


@dataclass(frozen=True)
class StreamedFile:
    """What identifies a file that is not read to its end before a run, for manifest.json."""

    file: str
    bytes: int
    modified: float
    """When, in seconds since 1970."""


@dataclass(frozen=True)
class _Dataset:
    name: str
    format: str
    files: tuple[Path, ...]
    num_bytes: int
    convert: Callable[[Row | BadRow], Iterator[Example | BadRow]]


class ExampleStream:
    """Examples without end.

    In every epoch a buffer is filled with rows, and each row that leaves it, drawn at random, makes room for the next.
    Several datasets are read side by side, in proportion to their sizes.

    Args:
        specs: The datasets, all of them files.
        dataset_dir: Where names are looked up.
        need: What the stage asks for.
        seed: Of the order.
        buffer_size: Rows among which the next one is drawn.
        max_bad_rows: Malformed rows that are passed over.
        on_reject: Told of all malformed rows whenever there is another one.

    Raises:
        DataError: A dataset is missing, on the hub, of the wrong kind, or is to be sampled.
    """

    def __init__(
        self,
        specs: Sequence[DatasetSpec],
        *,
        dataset_dir: str | Path,
        need: Need,
        seed: int,
        buffer_size: int,
        max_bad_rows: int = 0,
        on_reject: Callable[[list[dict[str, Any]]], object] = bool,
    ) -> None:
        self._datasets = [_open(spec, dataset_dir, need) for spec in specs]
        self._seed, self._buffer_size = seed, buffer_size
        self._max_bad_rows, self._on_reject = max_bad_rows, on_reject
        self._rejects: list[BadRow] = []
        self._pending: deque[Example] = deque()
        self._rows: Iterator[tuple[int, Row | BadRow]]
        self._begin(0)

    def files(self) -> list[StreamedFile]:
        """All files, in order."""
        found = [(path, path.stat()) for dataset in self._datasets for path in dataset.files]
        return [StreamedFile(str(path), status.st_size, status.st_mtime) for path, status in found]

    def lines(self) -> list[str]:
        """What is streamed, in plain sentences."""
        return [
            f"{each.name}: {each.format} format, {each.num_bytes:,} bytes in {len(each.files)} "
            f"file{'s' if len(each.files) > 1 else ''}, streamed"
            for each in self._datasets
        ]

    def take(self, count: int) -> list[Example]:
        """The next examples.

        Raises:
            DataError: There are more malformed rows than may be passed over, or no row of an epoch can be used.
        """
        while len(self._pending) < count:
            self._draw()
        return [self._pending.popleft() for _ in range(count)]

    def state(self) -> dict[str, Any]:
        """Where it stands, as JSON values."""
        return {
            "bytes": [dataset.num_bytes for dataset in self._datasets],
            "epoch": self._epoch,
            "drawn": self._drawn,
            "pending": len(self._pending),
            "rejects": [asdict(row) for row in self._rejects],
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from there.

        Raises:
            RunError: The files are of other sizes than they were, and so would be the order.
        """
        if state["bytes"] != [dataset.num_bytes for dataset in self._datasets]:
            raise RunError(
                "the data are of another size than those that the run began with, so their order would be another",
                where="dataset",
                remedy="put back the files that the run began with, or start a new output_dir",
            )
        self._begin(state["epoch"])
        self._rejects = [BadRow(**row) for row in state["rejects"]]
        drawn = state["drawn"]
        if drawn:
            try:
                dataset, row = next(islice(self._rows, drawn - 1, None))
            except StopIteration:
                raise RunError(
                    f"the data have fewer than the {drawn} rows that the run had read of them",
                    where="dataset",
                    remedy="put back the files that the run began with, or start a new output_dir",
                ) from None
            found = [each for each in self._datasets[dataset].convert(row) if isinstance(each, Example)]
            self._pending = deque(found[len(found) - state["pending"] :])
        self._drawn, self._is_fruitful = drawn, True

    def _begin(self, epoch: int) -> None:
        self._epoch, self._drawn, self._is_fruitful = epoch, 0, False
        self._rows = self._shuffled(Random(f"stream:{self._seed}:{epoch}"))

    def _draw(self) -> None:
        """Add the examples of one more row to those that wait."""
        found = next(self._rows, None)
        if found is None:
            if not self._is_fruitful:
                raise DataError("no row can be used", where=f"dataset: {','.join(d.name for d in self._datasets)}")
            self._begin(self._epoch + 1)
            return
        self._drawn += 1
        dataset, row = found
        for outcome in self._datasets[dataset].convert(row):
            if isinstance(outcome, BadRow):
                self._reject(outcome)
            else:
                self._pending.append(outcome)
                self._is_fruitful = True

    def _reject(self, row: BadRow) -> None:
        if any((known.file, known.line) == (row.file, row.line) for known in self._rejects):
            return  # seen in an earlier epoch
        self._rejects.append(row)
        if len(self._rejects) > self._max_bad_rows:
            refuse_rows(self._rejects)
        self._on_reject([asdict(each) for each in self._rejects])

    def _shuffled(self, dice: Random) -> Iterator[tuple[int, Row | BadRow]]:
        """The rows of one epoch, each with the number of its dataset."""
        buffer: list[tuple[int, Row | BadRow]] = []
        for row in self._side_by_side(dice):
            if len(buffer) < self._buffer_size:
                buffer.append(row)
                continue
            place = dice.randrange(len(buffer))
            yield buffer[place]
            buffer[place] = row
        dice.shuffle(buffer)
        yield from buffer

    def _side_by_side(self, dice: Random) -> Iterator[tuple[int, Row | BadRow]]:
        def rows_of(dataset: _Dataset) -> Iterator[Row | BadRow]:
            for path in dice.sample(dataset.files, len(dataset.files)):
                yield from stream_file(path)

        open_ones = {number: rows_of(dataset) for number, dataset in enumerate(self._datasets)}
        while open_ones:
            (number,) = dice.choices(list(open_ones), [self._datasets[number].num_bytes for number in open_ones])
            row = next(open_ones[number], None)
            if row is None:
                del open_ones[number]
            else:
                yield number, row


def _open(spec: DatasetSpec, dataset_dir: str | Path, need: Need) -> _Dataset:
    source = source_of(spec, dataset_dir, need)
    if source.hub is not None:
        raise DataError(
            f"{spec.name} lies on the hub, and what is streamed must be files here",
            where="streaming",
            remedy="download it and name its files, or leave streaming out",
        )
    if spec.cap is not None or source.num_samples is not None:
        raise DataError(
            f"so many rows of {spec.name} cannot be chosen without reading all",
            where="streaming",
            remedy="take the number away: max_steps ends the run",
        )
    files = tuple(source.local_files())
    first: list[Row | BadRow] = []
    for row in islice((row for path in files for row in stream_file(path)), ROWS_LOOKED_AT):
        first.append(row)
        if isinstance(row, Row):
            break
    if not first:
        raise DataError("found no rows, expected at least one", where=f"dataset: {spec.name}")
    name, convert = converter(source, first, need)
    return _Dataset(spec.name, name, files, max(1, sum(path.stat().st_size for path in files)), convert)
