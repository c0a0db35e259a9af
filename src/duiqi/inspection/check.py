"""All checks of a dataset: rows one by one, rows together, rows against those held out, and rows as tokens."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace

from duiqi.data.loading import DatasetReport, Need, load_examples
from duiqi.data.reading import BadRow
from duiqi.data.registry import parse_dataset_spec
from duiqi.errors import DataError
from duiqi.inspection.findings import Finding, Look, Place, TokenLook, Tracker, place_of, untracked
from duiqi.inspection.kinds import KINDS, in_order, severity_of
from duiqi.inspection.pair_checks import PAIR_CHECKS
from duiqi.inspection.row_print import Rows, print_of
from duiqi.inspection.row_text import row_text
from duiqi.inspection.set_checks import SET_CHECKS, Spotted, leaks
from duiqi.inspection.text_checks import PLAIN_TEXT_CHECKS, ROW_CHECKS
from duiqi.types import Example


@dataclass(frozen=True, slots=True)
class Gathered:
    """What could be read of some datasets."""

    examples: list[Example]
    rejects: tuple[BadRow, ...] = ()
    datasets: tuple[DatasetReport, ...] = ()
    refusal: DataError | None = None
    """Why nothing could be read."""


@dataclass(frozen=True, slots=True)
class Inspection:
    """What was found in a dataset."""

    dataset: str
    rows: int
    """Examples that were looked at."""
    malformed: int
    """Rows of the dataset that no example could be made of."""
    datasets: tuple[DatasetReport, ...]
    findings: list[Finding]
    """The gravest first."""
    look: TokenLook
    """Empty where there was no tokenizer to look through."""

    def count(self, severity: str) -> int:
        """How many findings are so grave."""
        return sum(found.severity == severity for found in self.findings)


def gather(
    dataset: str,
    *,
    dataset_dir: str,
    seed: int = 0,
    max_samples: int | None = None,
    needs: Sequence[Need] = ("conversation", "text"),
) -> Gathered:
    """Every row of some datasets, good and bad, whatever they are for.

    Args:
        needs: What the rows shall give; the first of them that they can.

    Raises:
        DataError: Nothing has such a name.
    """
    specs = parse_dataset_spec(dataset)

    def load(need: Need, max_bad_rows: int) -> Gathered:
        loaded = load_examples(
            specs, dataset_dir=dataset_dir, need=need, seed=seed, max_samples=max_samples, max_bad_rows=max_bad_rows
        )
        return Gathered(loaded.examples, loaded.report.rejects, loaded.report.datasets)

    refusals: list[DataError] = []
    for need in needs:
        for max_bad_rows in (sys.maxsize, 0):  # where every row is bad, the second says what is wrong with the first
            try:
                return load(need, max_bad_rows)
            except DataError as refusal:
                refusals.append(refusal)
    telling = next((refusal for refusal in refusals if _names_a_line(refusal)), refusals[0])
    if (telling.where or "").startswith("dataset: "):
        raise telling
    return Gathered([], refusal=telling)


def _names_a_line(refusal: DataError) -> bool:
    return (refusal.where or "").rpartition(":")[2].isdigit()


def check_dataset(
    dataset: str,
    *,
    dataset_dir: str,
    eval_dataset: str | None = None,
    look: Look | None = None,
    seed: int = 0,
    max_samples: int | None = None,
    track: Tracker = untracked,
) -> Inspection:
    """Look at every row of some datasets, and at tokenizer and template where there are any.

    A row that cannot be used, and a file that cannot be read, are findings and no errors.

    Args:
        eval_dataset: Rows to evaluate on, which must be others.
        look: Looks at the examples as tokens; without it texts alone are looked at.
    """
    gathered = gather(dataset, dataset_dir=dataset_dir, seed=seed, max_samples=max_samples)
    findings = _reading_findings(gathered)
    rows, found = _row_findings(gathered.examples, track)
    findings += found
    if rows.examples:
        findings += _spotted_findings({kind: check(rows) for kind, check in SET_CHECKS.items()}, rows)
    if eval_dataset is not None:
        held = gather(eval_dataset, dataset_dir=dataset_dir, seed=seed)
        findings += _reading_findings(held)
        held_rows = Rows(held.examples, [print_of(row_text(example)) for example in held.examples])
        findings += _spotted_findings(leaks(rows, held_rows), held_rows)
    seen = look(rows.examples, track) if look is not None else TokenLook("", [], {}, [])
    return Inspection(
        dataset=dataset,
        rows=len(rows.examples),
        malformed=len(gathered.rejects),
        datasets=gathered.datasets,
        findings=in_order(_without_twice_told(_merged(findings + seen.findings))),
        look=seen,
    )


def _reading_findings(gathered: Gathered) -> list[Finding]:
    if gathered.refusal is not None:
        refusal = gathered.refusal
        told = f"{refusal.problem}; {refusal.remedy}" if refusal.remedy else refusal.problem
        file, _, line = (refusal.where or "").rpartition(":")
        place = Place(file, int(line), told) if line.isdigit() else Place(refusal.where or "", 0, told)
        return [Finding("unreadable", "error", 0, (place,))]
    places = tuple(Place(row.file, row.line, row.reason) for row in gathered.rejects)
    findings = [Finding("malformed", "error", len(places), places)] if places else []
    for note in (note for dataset in gathered.datasets for note in dataset.notes):
        kind = {"differs": "changed_file", "unchecked": "unchecked_file"}[note.verdict]
        findings.append(Finding(kind, KINDS[kind].severity, 0, (Place(note.file, 0, note.told),)))
    return findings


def _row_findings(examples: Sequence[Example], track: Tracker) -> tuple[Rows, list[Finding]]:
    """Every row by itself, and what is kept of each to compare them."""
    places: dict[str, list[Place]] = {}
    prints = []
    checks = dict.fromkeys(("prompt", "demonstration", "feedback"), ROW_CHECKS)
    checks |= {"ranking": ROW_CHECKS | PAIR_CHECKS, "text": PLAIN_TEXT_CHECKS}
    for example in track(examples, "rows"):
        row = row_text(example)
        prints.append(print_of(row))
        for kind, check in checks[example.kind].items():
            if seen := check(row):
                places.setdefault(kind, []).append(place_of(example.origin, seen))
    rows = Rows(examples, prints)
    return rows, [
        Finding(kind, severity_of(kind, count=len(seen), rows=len(examples)), len(seen), tuple(seen))
        for kind, seen in places.items()
    ]


def _spotted_findings(spotted: dict[str, Spotted], rows: Rows) -> list[Finding]:
    findings = []
    for kind, seen in spotted.items():
        if not seen.rows and not seen.detail:
            continue
        places = tuple(place_of(rows.examples[index].origin, text) for index, text in sorted(seen.rows))
        severity = seen.severity or severity_of(kind, count=len(places), rows=len(rows.examples))
        findings.append(Finding(kind, severity, len(places), places, seen.detail))
    return findings


def _merged(findings: list[Finding]) -> list[Finding]:
    """One finding per kind: malformed rows may be on both sides, and a tokenizer may lack several things."""
    merged: dict[str, Finding] = {}
    for found in findings:
        if before := merged.get(found.kind):
            detail = "; ".join(filter(None, (before.detail, found.detail)))
            found = replace(
                before, count=before.count + found.count, places=before.places + found.places, detail=detail
            )
        merged[found.kind] = found
    return list(merged.values())


def _without_twice_told(findings: list[Finding]) -> list[Finding]:
    """A mark that is a special token of the tokenizer at hand is told as that, which is worse."""
    known = {(p.file, p.line) for found in findings if found.kind == "special_token" for p in found.places}
    told = []
    for found in findings:
        if found.kind == "marker" and known:
            places = tuple(place for place in found.places if (place.file, place.line) not in known)
            found = replace(found, places=places, count=len(places))
            if not places:
                continue
        told.append(found)
    return told
