"""A file for people who rank answers: it opens in a spreadsheet, is filled in by hand or by a script, and is read back.

A line per answer, in an order that says nothing of who wrote it. `rank` is left empty: 1 for the best, the same number
for answers that are equally good, nothing for those that should not count.
"""

from __future__ import annotations

import csv
import hashlib
import io
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from duiqi.curation.answered import Answered, read_answered
from duiqi.errors import DataError
from duiqi.journal.files import atomic_write_text, writing
from duiqi.serving.files import new_file
from duiqi.types import readable

COLUMNS = ("id", "prompt", "answer", "rank")
_FORMULA = ("=", "+", "-", "@", "\t")
"""Spreadsheets take text that begins so for a formula."""


def export_labels(file: str, output_file: str, *, seed: int = 0, max_samples: int | None = None) -> int:
    """Write a label file for the answers in `file`. Returns how many answers it asks about.

    Answers that say the same are asked about once, prompts with fewer than two different ones not at all.

    Raises:
        DataError: The file has no answers, the output is there already or is not called .csv, or nothing can be ranked.
    """
    target = new_file(output_file)
    if target.suffix != ".csv":
        raise DataError(f"found the extension {target.suffix!r}, expected .csv", where=f"output_file: {output_file}")
    text = io.StringIO()
    sheet = csv.writer(text, lineterminator="\r\n")
    sheet.writerow(COLUMNS)
    count = 0
    for number, row in enumerate(read_answered(file)[:max_samples]):
        places = [place for place, answer in enumerate(row.answers) if answer not in row.answers[:place]]
        if len(places) < 2:
            continue
        random.Random(f"labels:{seed}:{number}").shuffle(places)
        for place in places:
            shown = (_shown(readable(row.prompt)), _shown(row.answers[place]))
            sheet.writerow((_label_id(number, place, row), *shown, ""))
            count += 1
    if not count:
        raise DataError("no prompt has two different answers", where=file)
    with writing(target):
        target.parent.mkdir(parents=True, exist_ok=True)
    atomic_write_text(target, "\ufeff" + text.getvalue())  # without the mark, spreadsheets take Chinese for Latin-1
    return count


def with_labels(rows: Sequence[Answered], file: Path) -> list[Answered]:
    """The rows with the ranks of a label file as scores (rank 1 is -1), and without answers that have none.

    Raises:
        DataError: The file belongs to other answers, or holds something else than ranks.
    """
    ranks = _read_ranks(file)
    labelled = []
    for number, row in enumerate(rows):
        given = {place: ranks.pop(_label_id(number, place, row), None) for place in range(len(row.answers))}
        places = [place for place, rank in given.items() if rank is not None]
        labelled.append(
            replace(
                row,
                answers=tuple(row.answers[place] for place in places),
                scores=tuple(-rank for rank in given.values() if rank is not None),
                finished=tuple(row.finished[place] for place in places) if row.finished else (),
            )
        )
    if ranks:
        raise DataError(
            f"{len(ranks)} of its answers are not in the file that is paired, the first is {next(iter(ranks))}",
            where=str(file),
            remedy="pair the file that the labels were exported from",
        )
    return labelled


def _read_ranks(file: Path) -> dict[str, float]:
    """The ranks of a label file by the answers' ids; lines without a rank are left out."""
    try:
        contents = file.read_bytes()
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror}", where=f"labels: {file}") from None
    try:
        text = contents.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = contents.decode("gb18030", errors="replace")  # what spreadsheets in China save
    try:
        reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
        lines = [(reader.line_num, line) for line in reader]
    except csv.Error as error:
        raise DataError(f"not valid CSV: {error}", where=str(file), remedy="save it as CSV once more") from None
    if not {"id", "rank"} <= set(reader.fieldnames or ()):
        raise DataError(
            f"found the columns {', '.join(reader.fieldnames or ()) or '(none)'}, expected {', '.join(COLUMNS)}",
            where=str(file),
            remedy="export it anew with duiqi data label",
        )
    ranks: dict[str, float] = {}
    for number, line in lines:
        where = f"{file}:{number}"
        name, stated = (line["id"] or "").strip(), (line["rank"] or "").strip()
        if not stated:
            continue
        try:
            rank = float(stated)
        except ValueError:
            rank = 0.0
        if not 1 <= rank < 1e6:
            raise DataError(f"rank: found {stated!r}, expected 1 for the best, then 2, 3 ...", where=where)
        if name in ranks:
            raise DataError(f"the answer {name} is ranked a second time", where=where, remedy="leave one of the two")
        ranks[name] = rank
    if not ranks:
        raise DataError(
            "no answer has a rank yet", where=str(file), remedy="write 1 behind the best answer, then 2 ..."
        )
    return ranks


def _label_id(number: int, place: int, row: Answered) -> str:
    """Row and place of an answer, and what tells it from the answer of another file."""
    said = "\0".join([*(message.content for message in row.prompt), row.answers[place]])
    return f"p{number}a{place}-{hashlib.sha256(said.encode('utf-8', 'surrogatepass')).hexdigest()[:8]}"


def _shown(text: str) -> str:
    return f"'{text}" if text.startswith(_FORMULA) else text
