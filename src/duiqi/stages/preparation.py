"""From settings to encoded rows: read, held out and encoded, or taken from the cache where nothing has changed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Generic

from pydantic import TypeAdapter
from transformers import PreTrainedTokenizerBase

from duiqi.data.cache import Entry, RowCache, cache_home
from duiqi.data.cache_key import cache_key, sha256_of, template_identity, tokenizer_identity
from duiqi.data.compact import Columns, CompactRows, EncodedT, ranking_rows, sequence_rows
from duiqi.data.encoded import (
    EncodedData,
    EncodingReport,
    encode_demonstrations,
    encode_rankings,
    encode_text,
)
from duiqi.data.encoding import EncodedRanking, EncodedSequence, TokenBudget, TrainOn, describe_first
from duiqi.data.loading import Need
from duiqi.data.registry import DatasetSource, DatasetSpec, parse_dataset_spec, resolve
from duiqi.data.templates import Template
from duiqi.journal.files import MIB
from duiqi.journal.run import Run
from duiqi.settings.groups import CacheSettings, DataSettings
from duiqi.stages.materials import Examples, encoding_notes, files_read, read_rows, record_data, rejected_rows
from duiqi.types import Example

KEPT_FROM_BYTES = 4 * MIB
"""Smaller data are prepared in the time that it takes to ask whether they were prepared before."""
_REPORT = TypeAdapter(EncodingReport)


@dataclass(frozen=True)
class Prepared(Generic[EncodedT]):
    """Encoded rows: to learn from, and held out."""

    train: EncodedData[EncodedT]
    held_out: EncodedData[EncodedT] | None
    notes: list[str]
    """What was read, in plain sentences."""


@dataclass(frozen=True)
class Work(Generic[EncodedT]):
    """How the rows of a stage are prepared."""

    need: Need
    encode: Callable[[list[Example]], EncodedData[EncodedT]]
    unpack: Callable[[Columns], CompactRows[EncodedT]]
    depends_on: Callable[[], object]
    """Gives everything that `encode` and `change` depend on."""
    change: Callable[[Examples], Examples] = lambda rows: rows
    """Done to the examples before they are encoded."""


def prepare_text(
    data: DataSettings, cache: CacheSettings, journal: Run, *, seed: int, tokenizer: PreTrainedTokenizerBase
) -> Prepared[EncodedSequence]:
    """The blocks of a stage that learns plain text.

    Raises:
        DataError: A dataset is missing, malformed or of another kind.
    """

    def encode(examples: Sequence[Example]) -> EncodedData[EncodedSequence]:
        return encode_text(tokenizer, examples=examples, block_size=data.cutoff_len)

    work = Work("text", encode, sequence_rows, lambda: tokenizer_identity(tokenizer))
    prepared = prepare(data, cache, journal, work, seed=seed)
    report = prepared.train.report
    prepared.notes.append(f"{report.tokens:,} tokens in {report.rows:,} blocks of at most {data.cutoff_len}")
    return prepared


def prepare_demonstrations(
    data: DataSettings,
    cache: CacheSettings,
    journal: Run,
    *,
    seed: int,
    template: Template,
    tokenizer: PreTrainedTokenizerBase,
    budget: TokenBudget,
    train_on: TrainOn,
) -> Prepared[EncodedSequence]:
    """The rows of a stage that learns from demonstrations.

    Raises:
        DataError: A dataset is missing, malformed or of another kind.
    """

    def encode(examples: Sequence[Example]) -> EncodedData[EncodedSequence]:
        return encode_demonstrations(template, tokenizer, examples=examples, budget=budget, train_on=train_on)

    def depends_on() -> object:
        return [tokenizer_identity(tokenizer), template_identity(template), budget, train_on]

    prepared = prepare(data, cache, journal, Work("demonstration", encode, sequence_rows, depends_on), seed=seed)
    first = describe_first(prepared.train.items[0], tokenizer)
    prepared.notes.extend([*encoding_notes(prepared.train.report), f"first row, learned part in ⟦⟧: {first}"])
    return prepared


def prepare_rankings(
    data: DataSettings,
    cache: CacheSettings,
    journal: Run,
    *,
    seed: int,
    template: Template,
    tokenizer: PreTrainedTokenizerBase,
    budget: TokenBudget,
    change: Callable[[Examples], Examples] = lambda rows: rows,
    change_depends_on: object = None,
) -> Prepared[EncodedRanking]:
    """The rows of a stage that learns from rankings.

    Args:
        change: Done to the examples before they are encoded.
        change_depends_on: Whatever `change` depends on.

    Raises:
        DataError: A dataset is missing, malformed or of another kind, or no ranking is left.
    """

    def encode(examples: Sequence[Example]) -> EncodedData[EncodedRanking]:
        return encode_rankings(template, tokenizer, examples=examples, budget=budget)

    def depends_on() -> object:
        return [tokenizer_identity(tokenizer), template_identity(template), budget, change_depends_on]

    work = Work("ranking", encode, ranking_rows, depends_on, change)
    prepared = prepare(data, cache, journal, work, seed=seed)
    first = describe_first(prepared.train.items[0].sequence(0), tokenizer)
    prepared.notes.extend([*encoding_notes(prepared.train.report), f"first row, its best answer in ⟦⟧: {first}"])
    return prepared


def prepare(
    data: DataSettings, cache: CacheSettings, journal: Run, work: Work[EncodedT], *, seed: int
) -> Prepared[EncodedT]:
    """Rows from the cache where it has them, else prepared and, if there are many, kept there.

    Raises:
        DataError: As `read_rows`, or what `encode` raises.
    """
    sources = _sources(data)
    files = _files_worth_keeping(sources)
    if not files:
        return _prepare_anew(data, journal, work, seed=seed)[0]
    store = RowCache(Path(cache.data_cache_dir) if cache.data_cache_dir else cache_home() / "rows")
    sums = {str(path): sha256_of(path) for path in files}
    key = cache_key(files=sums, sources=sources, settings=data, need=work.need, seed=seed, depends_on=work.depends_on())
    damage = ""
    if not cache.overwrite_cache:
        entry, damage = store.find(key)
        if entry is not None:
            return _unpacked(entry, journal, work)
    prepared, facts = _prepare_anew(data, journal, work, seed=seed)
    notes = [*([damage] if damage else []), *prepared.notes]
    if {file["file"]: file["sha256"] for file in facts["files"]} == sums:  # nobody wrote to a file in between
        problem = store.keep(key, _columns(prepared), facts)
        notes.append(problem or f"prepared, and kept for the next run in {store.place(key)}")
    return Prepared(prepared.train, prepared.held_out, notes)


def _prepare_anew(
    data: DataSettings, journal: Run, work: Work[EncodedT], *, seed: int
) -> tuple[Prepared[EncodedT], dict[str, Any]]:
    """The rows, and what the cache is to tell about them."""
    rows, reports = read_rows(data, work.need, seed=seed)
    files, rejects = files_read(reports), rejected_rows(reports)
    record_data(journal, files, rejects)
    rows = work.change(rows)
    train = work.encode(rows.train)
    held_out = work.encode(rows.held_out) if rows.held_out else None
    facts = {
        "files": files,
        "rejects": rejects,
        "notes": rows.notes,
        "train": asdict(train.report),
        "held_out": asdict(held_out.report) if held_out else None,
    }
    return Prepared(train, held_out, list(rows.notes)), facts


def _unpacked(entry: Entry, journal: Run, work: Work[EncodedT]) -> Prepared[EncodedT]:
    facts = entry.facts
    record_data(journal, facts["files"], facts["rejects"])

    def part(name: str) -> EncodedData[EncodedT]:
        return EncodedData(work.unpack(entry.parts[name]), (), _REPORT.validate_python(facts[name]))

    notes = [*facts["notes"], f"prepared before, nothing has changed since: taken from {entry.place}"]
    return Prepared(part("train"), part("held_out") if facts["held_out"] else None, notes)


def _columns(prepared: Prepared[EncodedT]) -> dict[str, Columns]:
    found: dict[str, Columns] = {}
    for name, part in (("train", prepared.train), ("held_out", prepared.held_out)):
        if part is not None:
            assert isinstance(part.items, CompactRows), "only flat arrays can be kept"
            found[name] = part.items.columns
    return found


def _sources(data: DataSettings) -> list[tuple[DatasetSpec, DatasetSource]]:
    """Where the datasets lie and how they are read, as the registry says."""
    specs = [*parse_dataset_spec(data.dataset), *(parse_dataset_spec(data.eval_dataset) if data.eval_dataset else ())]
    return [(spec, resolve(spec.name, data.dataset_dir, format_name=spec.format)) for spec in specs]


def _files_worth_keeping(sources: Sequence[tuple[DatasetSpec, DatasetSource]]) -> list[Path]:
    """All files of the datasets; none where they are small, or where one is on the hub."""
    files = [file for _, source in sources for file in source.local_files()]
    if any(source.hub for _, source in sources) or sum(file.stat().st_size for file in files) < KEPT_FROM_BYTES:
        return []
    return files
