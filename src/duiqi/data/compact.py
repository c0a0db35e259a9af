"""Encoded rows in a few flat arrays: four bytes a token instead of forty, and ready to be written to disk and mapped.

A row becomes lists again when it is asked for.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from hashlib import blake2b
from itertools import pairwise
from math import isnan
from typing import Any, Generic, TypeVar, overload

import numpy
from numpy.typing import NDArray

from duiqi.data.encoding import EncodedPrompt, EncodedRanking, EncodedSequence

EncodedT = TypeVar("EncodedT", bound=EncodedSequence | EncodedPrompt | EncodedRanking)
Columns = Mapping[str, NDArray[Any]]
TOKEN, COUNT, FLAG, NUMBER = "i", "q", "B", "d"
"""How a value is kept: a token or a length, a place among all tokens, a truth, a number."""
PROMPT_CUT, ANSWER_CUT = 1, 2
NOT_SAID = float("nan")
"""The score of a prompt, and of answers that the data does not score."""


@dataclass(frozen=True)
class CompactRows(Sequence[EncodedT], Generic[EncodedT]):
    """Rows of one kind."""

    columns: Columns
    """Flat arrays, perhaps mapped from files."""
    read: Callable[[Columns, int], EncodedT]
    num_rows: int

    def __len__(self) -> int:
        return self.num_rows

    @overload
    def __getitem__(self, index: int) -> EncodedT: ...
    @overload
    def __getitem__(self, index: slice) -> list[EncodedT]: ...
    def __getitem__(self, index: int | slice) -> EncodedT | list[EncodedT]:
        if isinstance(index, slice):
            return [self[row] for row in range(*index.indices(self.num_rows))]
        if not -self.num_rows <= index < self.num_rows:
            raise IndexError(index)
        return self.read(self.columns, index % self.num_rows)


class SequenceWriter:
    """Puts sequences one after the other."""

    def __init__(self) -> None:
        self._tokens, self._ends, self._prompts = array(TOKEN), array(COUNT, [0]), array(TOKEN)
        self._learned, self._cut = array(FLAG), array(FLAG)

    def add(self, row: EncodedSequence) -> None:
        """Append a row."""
        self._tokens.extend(row.input_ids)
        self._learned.frombytes(bytes(row.answer_mask))
        self._ends.append(len(self._tokens))
        self._prompts.append(row.prompt_length)
        self._cut.append(PROMPT_CUT * row.prompt_truncated + ANSWER_CUT * row.answer_truncated)

    def rows(self) -> CompactRows[EncodedSequence]:
        """Everything that was added."""
        columns: dict[str, array[Any]] = {
            "tokens": self._tokens,
            "learned": self._learned,
            "ends": self._ends,
            "prompts": self._prompts,
            "cut": self._cut,
        }
        return sequence_rows({name: _as_array(values) for name, values in columns.items()})


def sequence_rows(columns: Columns) -> CompactRows[EncodedSequence]:
    """Sequences from the columns that a `SequenceWriter` made."""
    return CompactRows(columns, _read_sequence, len(columns["prompts"]))


def _read_sequence(columns: Columns, row: int) -> EncodedSequence:
    start, end = columns["ends"][row : row + 2].tolist()
    cut = int(columns["cut"][row])
    return EncodedSequence(
        columns["tokens"][start:end].tolist(),
        columns["learned"][start:end].astype(bool).tolist(),
        int(columns["prompts"][row]),
        prompt_truncated=bool(cut & PROMPT_CUT),
        answer_truncated=bool(cut & ANSWER_CUT),
    )


class RankingWriter:
    """Puts rankings one after the other: each is its prompt and then its answers."""

    def __init__(self) -> None:
        self._tokens, self._ends, self._rows = array(TOKEN), array(COUNT, [0]), array(COUNT, [0])
        self._prompt_cut, self._answers_cut, self._dropped = array(FLAG), array(TOKEN), array(TOKEN)
        self._margins: array[float] = array(NUMBER)
        self._scores: array[float] = array(NUMBER)
        self._sources = array(TOKEN)
        self._names: dict[str, int] = {}

    def add(self, row: EncodedRanking) -> None:
        """Append a row."""
        for part in (row.prompt_ids, *row.answers):
            self._tokens.extend(part)
            self._ends.append(len(self._tokens))
        self._rows.append(len(self._ends) - 1)
        self._scores.extend((NOT_SAID, *(row.scores or [NOT_SAID] * len(row.answers))))
        self._prompt_cut.append(row.prompt_truncated)
        self._answers_cut.append(row.answers_truncated)
        self._dropped.append(row.answers_dropped)
        self._margins.append(row.margin)
        self._sources.append(self._names.setdefault(row.source, len(self._names)))

    def rows(self) -> CompactRows[EncodedRanking]:
        """Everything that was added."""
        columns: dict[str, array[Any]] = {
            "tokens": self._tokens,
            "ends": self._ends,
            "rows": self._rows,
            "prompt_cut": self._prompt_cut,
            "answers_cut": self._answers_cut,
            "dropped": self._dropped,
            "margins": self._margins,
            "scores": self._scores,
            "sources": self._sources,
            "names": array(FLAG, json.dumps(list(self._names)).encode()),
        }
        return ranking_rows({name: _as_array(values) for name, values in columns.items()})


def ranking_rows(columns: Columns) -> CompactRows[EncodedRanking]:
    """Rankings from the columns that a `RankingWriter` made."""
    names = json.loads(columns["names"].tobytes())
    return CompactRows(columns, partial(_read_ranking, names), len(columns["margins"]))


def _read_ranking(names: Sequence[str], columns: Columns, row: int) -> EncodedRanking:
    first, last = columns["rows"][row : row + 2].tolist()
    ends = columns["ends"][first : last + 1].tolist()
    scores = columns["scores"][first + 1 : last].tolist()
    prompt, *answers = [columns["tokens"][start:end].tolist() for start, end in pairwise(ends)]
    return EncodedRanking(
        prompt,
        answers,
        prompt_truncated=bool(columns["prompt_cut"][row]),
        answers_truncated=int(columns["answers_cut"][row]),
        answers_dropped=int(columns["dropped"][row]),
        margin=float(columns["margins"][row]),
        source=names[columns["sources"][row]],
        scores=() if any(map(isnan, scores)) else tuple(scores),
    )


class Repetitions:
    """Counts the rows that repeat an earlier one, keeping sixteen bytes of each."""

    def __init__(self) -> None:
        self._seen: set[bytes] = set()
        self.count = 0

    def look_at(self, *parts: Iterable[int]) -> None:
        """Compare one row with all before it."""
        digest = blake2b(digest_size=16)
        for part in parts:
            tokens = array(TOKEN, part)
            digest.update(len(tokens).to_bytes(8, "little") + tokens.tobytes())
        before = len(self._seen)
        self._seen.add(digest.digest())
        self.count += len(self._seen) == before


def _as_array(values: array[Any]) -> NDArray[Any]:
    return numpy.frombuffer(values, dtype=values.typecode) if values else numpy.empty(0, dtype=values.typecode)
