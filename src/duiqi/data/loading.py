"""From the names in a `dataset` setting to examples of the kind a stage needs, with a report of what was read."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, NoReturn

from duiqi.data.formats import FORMATS, convert, recognise_format
from duiqi.data.hub import read_hub
from duiqi.data.reading import BadRow, Row, SourceFile, read_file
from duiqi.data.registry import DatasetSource, DatasetSpec, resolve
from duiqi.errors import DataError
from duiqi.types import Example, ExampleKind, Message, Origin

Need = Literal["text", "prompt", "demonstration", "ranking", "feedback", "conversation"]
"""What a stage asks for: an `ExampleKind`, or "conversation": prompts with whatever answers they have."""


@dataclass(frozen=True, slots=True)
class FileFingerprint:
    """What identifies the contents of a file, for manifest.json."""

    file: str
    sha256: str
    rows: int


@dataclass(frozen=True, slots=True)
class SumNote:
    """What there is to say about the `file_sha1` of a dataset."""

    file: str
    verdict: Literal["differs", "unchecked"]
    told: str
    """What was found, as the rest of a sentence about the file."""

    def __str__(self) -> str:
        return f"{'warning: ' if self.verdict == 'differs' else ''}{self.file} {self.told}"


@dataclass(frozen=True, slots=True)
class DatasetReport:
    """What was read under one name."""

    name: str
    format: str
    rows: int
    """Rows in the files, malformed ones included."""
    used: int
    """Examples taken after skipping and capping."""
    files: tuple[FileFingerprint, ...]
    notes: tuple[SumNote, ...] = ()
    left_out: int = 0
    """Rows that are well written and make no example of the kind that is wanted."""
    several: bool = False
    """Whether a row made more than one example."""

    def lines(self) -> list[str]:
        """Plain sentences for the terminal."""
        form = FORMATS[self.format]
        taken = f"{self.rows} row{'' if self.rows == 1 else 's'}"
        if self.several:
            taken = f"{self.used} examples of {taken}"
        elif self.used != self.rows:
            taken = f"{self.used} of {taken}"
        lines = [f"{self.name}: {self.format} format ({form.columns}), {taken}", *map(str, self.notes)]
        if self.left_out:
            lines.append(f"rows of {self.name} left out, because {form.leaves_out}: {self.left_out}")
        return lines


@dataclass(frozen=True, slots=True)
class LoadReport:
    """What was read, dataset by dataset, and the rows that were skipped."""

    datasets: tuple[DatasetReport, ...]
    rejects: tuple[BadRow, ...] = ()
    """For rejects.jsonl, which the caller writes."""

    @property
    def files(self) -> tuple[FileFingerprint, ...]:
        """The fingerprints of every file that was read."""
        return tuple(file for dataset in self.datasets for file in dataset.files)

    def lines(self) -> list[str]:
        """Plain sentences for the terminal."""
        sentences = [line for dataset in self.datasets for line in dataset.lines()]
        if self.rejects:
            sentences.append(f"malformed rows skipped: {len(self.rejects)}, the first at {_place(self.rejects[0])}")
        return sentences


@dataclass(frozen=True, slots=True)
class LoadedData:
    """Examples of one kind, in the order of the datasets and of their rows."""

    examples: list[Example]
    report: LoadReport = field(repr=False)


def load_examples(
    specs: Sequence[DatasetSpec],
    *,
    dataset_dir: str | Path,
    need: Need,
    seed: int,
    max_samples: int | None = None,
    max_bad_rows: int = 0,
) -> LoadedData:
    """The examples of all datasets, each cut down to what the stage needs.

    Prompts are made from demonstrations and rankings by dropping their answers. A dataset with more rows than its cap
    (the smallest of the spec's, the registry's and `max_samples`) is sampled by `seed`, and keeps its order.

    Raises:
        DataError: A dataset is unknown, of the wrong kind, or has more malformed rows than `max_bad_rows` in all.
    """
    examples: list[Example] = []
    reports: list[DatasetReport] = []
    rejects: list[BadRow] = []
    for spec in specs:
        found, report, bad = _load_one(spec, dataset_dir, need, seed=seed, max_samples=max_samples)
        examples += found
        reports.append(report)
        rejects += bad
    if len(rejects) > max_bad_rows:
        refuse_rows(rejects)
    if not examples:
        raise DataError("no row can be used", where=f"dataset: {','.join(spec.name for spec in specs)}")
    return LoadedData(examples, LoadReport(tuple(reports), tuple(rejects)))


def _load_one(
    spec: DatasetSpec, dataset_dir: str | Path, need: Need, *, seed: int, max_samples: int | None
) -> tuple[list[Example], DatasetReport, list[BadRow]]:
    """The examples of one dataset, what was read of it, and its malformed rows."""
    source = source_of(spec, dataset_dir, need)
    files, notes = _read(source)
    fingerprints = tuple(FileFingerprint(file.path, file.sha256, len(file.rows)) for file in files)
    rows = [row for file in files for row in file.rows]
    num_rows = len(rows)
    del files  # from here on a row goes when its examples are made
    form = _format_of(rows, source, need)
    if gather := FORMATS[form].gather:
        rows = gather(rows)
    converted: list[Example] = []
    rejects: list[BadRow] = []
    left_out, several = 0, False
    for outcome in _convert_rows(_taken_out(rows), source, form, need):
        if isinstance(outcome, BadRow):
            rejects.append(outcome)
        else:
            converted += outcome
            left_out, several = left_out + (not outcome), several or len(outcome) > 1
    caps = [cap for cap in (spec.cap, source.num_samples, max_samples) if cap is not None]
    taken = _sample(converted, min(caps, default=None), f"{seed}:{spec.name}")
    report = DatasetReport(
        spec.name, form, num_rows, len(taken), fingerprints, tuple(notes), left_out=left_out, several=several
    )
    return taken, report, rejects


def source_of(spec: DatasetSpec, dataset_dir: str | Path, need: Need) -> DatasetSource:
    """Where a dataset lies and how its rows are read for what a stage needs.

    Raises:
        DataError: Nothing has that name, or its entry cannot be read.
    """
    source = resolve(spec.name, dataset_dir, format_name=spec.format)
    if need == "text" and source.column_map is not None:
        return replace(source, column_map=source.column_map.for_text())
    return source


def converter(
    source: DatasetSource, first: Sequence[Row | BadRow], need: Need
) -> tuple[str, Callable[[Row | BadRow], Iterator[Example | BadRow]]]:
    """The format of a dataset, told from its first good row, and what makes examples of one row.

    Raises:
        DataError: It is of the wrong kind, of no known format, or of one in which an example takes several rows.
    """
    name = _format_of(first, source, need)
    if FORMATS[name].gather is not None:
        raise DataError(
            f"in {name} rows that lie anywhere belong together, so all must be read before the first example",
            where=f"dataset: {source.name}",
            remedy="leave streaming out, or write the data as trees or conversations first: duiqi data convert",
        )

    def examples_of(row: Row | BadRow) -> Iterator[Example | BadRow]:
        for outcome in _convert_rows([row], source, name, need):
            if isinstance(outcome, BadRow):
                yield outcome
            else:
                yield from outcome

    return name, examples_of


def split_validation(examples: Sequence[Example], val_size: float, *, seed: int) -> tuple[list[Example], list[Example]]:
    """Rows to train on and rows held out: a share of them when `val_size` is below 1, else a count.

    Rows with the same prompt stay on the same side, so that the held-out ones are new to the model. Where prompts
    repeat, fewer rows than asked for may be held out. Both sides keep their order.

    Raises:
        DataError: Nothing would be left on one side.
    """
    if val_size == 0:
        return list(examples), []
    if val_size >= 1 and val_size != int(val_size):
        raise DataError(
            f"{val_size:g} is neither a share of the rows nor a count",
            where="val_size",
            remedy="write a share below 1, such as 0.05, or a whole number of rows",
        )
    wanted = max(1, round(val_size * len(examples))) if val_size < 1 else int(val_size)
    groups: dict[tuple[object, ...], list[int]] = {}
    for index, example in enumerate(examples):
        groups.setdefault(example.prompt or example.answers, []).append(index)
    shuffled = list(groups.values())
    random.Random(f"validation:{seed}").shuffle(shuffled)
    held_out: set[int] = set()
    for group in shuffled:
        if len(held_out) + len(group) <= wanted:
            held_out.update(group)
    if not held_out or len(held_out) == len(examples):
        raise DataError(
            f"{wanted} of {len(examples)} rows ({len(groups)} different prompts) cannot be held out",
            where=f"val_size: {val_size}",
            remedy="choose another val_size, or name an eval_dataset",
        )
    train = [example for index, example in enumerate(examples) if index not in held_out]
    return train, [examples[index] for index in sorted(held_out)]


def _read(source: DatasetSource) -> tuple[list[SourceFile], list[SumNote]]:
    """The files of a dataset, and what should be said about them."""
    if source.hub is not None:
        hub = source.hub
        fields = read_hub(hub.name, subset=hub.subset, split=hub.split, folder=hub.folder)
        contents = "\n".join(json.dumps(row, ensure_ascii=False, sort_keys=True, default=str) for row in fields)
        rows = tuple(Row(row, f"hub:{hub.name}", number) for number, row in enumerate(fields, start=1))
        return [SourceFile(f"hub:{hub.name}", hashlib.sha256(contents.encode()).hexdigest(), rows)], []
    return [read_file(path) for path in source.local_files()], _sum_notes(source)


def _sum_notes(source: DatasetSource) -> list[SumNote]:
    """Whether the file is the one that dataset_info.json means, where it is not or nobody can tell."""
    if not source.sha1 or source.path is None:
        return []
    if source.path.is_dir():
        told = "is a folder, and the file_sha1 of dataset_info.json, which is of a file, cannot be checked"
        return [SumNote(str(source.path), "unchecked", told)]
    found = hashlib.sha1(source.path.read_bytes()).hexdigest()
    if found == source.sha1:
        return []
    return [SumNote(str(source.path), "differs", f"has sha1 {found}, but dataset_info.json says {source.sha1}")]


def _format_of(rows: Sequence[Row | BadRow], source: DatasetSource, need: Need) -> str:
    """The format of a dataset, as it is named or its first good row tells it, if it can give what is needed."""
    first = next((row for row in rows if isinstance(row, Row)), None)
    if first is None:
        refuse_rows([row for row in rows if isinstance(row, BadRow)])
    origin = Origin(source.name, first.file, first.line)
    fields = first.fields
    if source.column_map is not None:
        fields = source.column_map.rename(fields)
        if not fields:
            raise DataError(
                f"found the columns {', '.join(first.fields)}, "
                f"expected those that dataset_info.json names: {', '.join(source.column_map.columns.values())}",
                where=str(origin),
                remedy=f"correct `columns` of {source.name} in dataset_info.json",
            )
    name = source.format_name or recognise_format(fields, origin)
    kinds = FORMATS[name].kinds
    if source.ranking and "ranking" not in kinds:
        raise DataError(
            f"dataset_info.json says ranking, but {source.name} is in {name} format: one answer per row",
            where=str(origin),
        )
    if not kinds & ACCEPTED[need]:
        raise DataError(
            f"{source.name} is in {name} format ({FORMATS[name].columns}), expected {WANTED[need]}",
            where=str(origin),
            remedy=LIKED_REMEDY if kinds == {"feedback"} and need != "text" else REMEDIES[need],
        )
    return name


def _taken_out(rows: list[Row | BadRow]) -> Iterator[Row | BadRow]:
    """The rows in order; the list is empty afterwards."""
    rows.reverse()
    while rows:
        yield rows.pop()


def _convert_rows(
    rows: Iterable[Row | BadRow], source: DatasetSource, format_name: str, need: Need
) -> Iterator[list[Example] | BadRow]:
    """What each row gives: the examples of the kind that is needed, perhaps none, or the reason why it is no good."""
    for row in rows:
        if isinstance(row, BadRow):
            yield row
            continue
        try:
            fields = row.fields if source.column_map is None else source.column_map.rename(row.fields)
            made = convert(fields, format_name, Origin(source.name, row.file, row.line))
        except DataError as error:
            yield BadRow(row.file, row.line, error.problem, row.fields)
            continue
        except RecursionError:
            yield BadRow(row.file, row.line, "lists within lists within lists, too deep to be read")
            continue
        wanted = _of_need(made, need)
        if not wanted and made and all(example.kind == "prompt" for example in made):
            yield BadRow(row.file, row.line, f"found no answer, expected {WANTED[need]}", row.fields)
        else:
            yield [_with_system(example, source.system) for example in wanted] if source.system else wanted


def _of_need(made: Sequence[Example], need: Need) -> list[Example]:
    """Those that a stage can use: as prompts, each prompt of a row once; as conversations, no answer of a row twice."""
    usable = [example for example in made if example.kind in ACCEPTED[need]]
    if need == "prompt":
        asked = {example.prompt: example.origin for example in usable}
        return [Example("prompt", prompt, (), origin) for prompt, origin in asked.items()]
    if need == "conversation" and len(usable) > 1:
        ranked = {example.prompt for example in usable if example.kind == "ranking"}
        return [example for example in usable if example.kind == "ranking" or example.prompt not in ranked]
    return usable


def _with_system(example: Example, system: str) -> Example:
    if not example.prompt or example.prompt[0].role == "system":
        return example
    return replace(example, prompt=(Message("system", system), *example.prompt))


def _sample(examples: list[Example], cap: int | None, seed: str) -> list[Example]:
    if cap is None or cap >= len(examples):
        return examples
    return [examples[index] for index in sorted(random.Random(seed).sample(range(len(examples)), cap))]


def refuse_rows(rejects: Sequence[BadRow]) -> NoReturn:
    """Refuse malformed rows, of which there are more than may be skipped.

    Raises:
        DataError: Always; the first is described.
    """
    count = f"{len(rejects)} malformed rows" if len(rejects) > 1 else "malformed row"
    raise DataError(
        rejects[0].reason,
        where=_place(rejects[0]),
        remedy=f"mend it, or set max_bad_rows: {len(rejects)} to skip the {count} (written to rejects.jsonl)",
    )


def _place(row: BadRow) -> str:
    return f"{row.file}:{row.line}"


CONVERSATIONS: frozenset[ExampleKind] = frozenset({"prompt", "demonstration", "ranking", "feedback"})
ACCEPTED: dict[Need, frozenset[ExampleKind]] = {
    "text": frozenset({"text"}),
    "prompt": CONVERSATIONS,
    "demonstration": frozenset({"demonstration"}),
    "ranking": frozenset({"ranking"}),
    "feedback": frozenset({"feedback"}),
    "conversation": CONVERSATIONS,
}
WANTED: dict[Need, str] = {
    "text": "plain text",
    "prompt": "prompts",
    "demonstration": "one answer per row to learn from",
    "ranking": "at least two answers per row, best first",
    "feedback": "one answer per row and whether it was liked",
    "conversation": "prompts, with or without answers",
}
REMEDIES: dict[Need, str] = {
    "text": "pretraining reads .txt lines and {text: ...} rows; to learn answers, use the sft stage",
    "prompt": "give rows with a prompt or an instruction; plain text is for the pretrain stage",
    "demonstration": "rankings are for the rm and dpo stages, plain text for pretrain; "
    "to learn the best answers only, write them to a file of their own",
    "ranking": "rows with a single answer are for the sft stage; give `output: [better, worse]` or chosen and rejected",
    "feedback": "pref_loss: kto reads rows of prompt, completion and label; "
    "pairs and rankings are for the other losses, kto_pair among them",
    "conversation": "give rows with a prompt or an instruction; plain text is for the pretrain stage",
}
LIKED_REMEDY = "rows that say whether an answer was liked are for the dpo stage with pref_loss: kto"
