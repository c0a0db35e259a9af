"""An inspection as a person reads it, and as a program does."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from duiqi.inspection.check import Inspection
from duiqi.inspection.counting import counted
from duiqi.inspection.findings import SEVERITIES, Finding, LengthRow, visible
from duiqi.inspection.kinds import KINDS

PLACES_SHOWN = 3
_WIDTH = 110
_INDENT = " " * 9


def report_lines(inspection: Inspection) -> list[str]:
    """Plain text: what was read, then the gravest first, each with its places and what to do; a summary at the end."""
    lines = [f"── {inspection.dataset} " + "─" * 20]
    for dataset in inspection.datasets:
        lines += _wrapped(" ".join(replace(dataset, notes=()).lines()), "   ")  # the notes are findings
    for found in inspection.findings:
        lines += ["", *_finding_lines(found, inspection.rows)]
    if inspection.look.answers:
        lines += ["", f"   template and tokenizer of {inspection.look.model}"]
        for kind, answer in inspection.look.answers.items():
            verdict = "ok" if answer.is_fine else KINDS[kind].severity
            lines += _wrapped(answer.text, f"   {verdict:<9}{answer.asks:<47}")
    if inspection.look.lengths:
        lines += ["", *_length_lines(inspection.look.lengths, inspection.rows)]
    return [*lines, "", summary(inspection)]


def summary(inspection: Inspection) -> str:
    """How many findings of each degree there are, in a line."""
    counts = [(inspection.count(severity), severity) for severity in SEVERITIES]
    parts = [counted(count, severity) for count, severity in counts if count]
    return f"{inspection.dataset}: {_looked_at(inspection)}, {', '.join(parts) or 'nothing found'}"


def _looked_at(inspection: Inspection) -> str:
    """The rows; where some could not be used, of how many."""
    if not inspection.malformed:
        return counted(inspection.rows, "row")
    there = counted(sum(dataset.rows for dataset in inspection.datasets), "row")
    if any(dataset.several for dataset in inspection.datasets):
        return f"{counted(inspection.rows, 'example')} of {there}"
    return f"{inspection.rows:,} of {there}"


def report_json(inspection: Inspection) -> dict[str, Any]:
    """Everything, every place included."""
    return {
        "dataset": inspection.dataset,
        "rows": inspection.rows,
        "malformed": inspection.malformed,
        "model": inspection.look.model,
        "formats": {dataset.name: dataset.format for dataset in inspection.datasets},
        "summary": {severity: inspection.count(severity) for severity in SEVERITIES},
        "findings": [
            {
                "kind": found.kind,
                "severity": found.severity,
                "title": KINDS[found.kind].title,
                "why": KINDS[found.kind].why,
                "remedy": KINDS[found.kind].remedy,
                "count": found.count,
                "detail": found.detail,
                "places": [{"file": p.file, "line": p.line, "excerpt": p.excerpt} for p in found.places],
            }
            for found in inspection.findings
        ],
        "template": {
            kind: {"fine": answer.is_fine, "found": answer.text} for kind, answer in inspection.look.answers.items()
        },
        "lengths": [
            {
                "cutoff_len": row.cutoff_len,
                "prompts_cut": row.prompts_cut,
                "answers_cut": row.answers_cut,
                "tokens_lost": row.tokens_lost,
                "tokens": row.tokens,
            }
            for row in inspection.look.lengths
        ],
    }


def _finding_lines(found: Finding, rows: int) -> list[str]:
    kind = KINDS[found.kind]
    share = (
        f" ({found.count / rows:.1%})" if found.count and rows and found.kind not in ("malformed", "unreadable") else ""
    )
    count = f": {counted(found.count, 'row')}{share}" if found.count else ""
    lines = [f"{found.severity:<9}{kind.title}{count}"]
    lines += _wrapped(found.detail, _INDENT)
    lines += _wrapped(kind.why, _INDENT)
    lines += _wrapped(kind.remedy, f"{_INDENT}-> ")
    lines += [f"{_INDENT}{place}  {visible(place.excerpt)}".rstrip() for place in found.places[:PLACES_SHOWN]]
    if len(found.places) > PLACES_SHOWN:
        lines.append(
            f"{_INDENT}and {len(found.places) - PLACES_SHOWN:,} more: --output_file report.json lists them all"
        )
    return lines


def _length_lines(table: Sequence[LengthRow], rows: int) -> list[str]:
    lines = [
        "   what cutoff_len cuts: prompts at their beginning (in every stage), answers at their end (sft, rm, dpo)"
    ]
    lines.append(f"   {'cutoff_len':>10}  {'prompts cut':>16}  {'answers cut':>16}  {'tokens lost':>20}")
    for row in table:
        lost = f"{row.tokens_lost:,} ({row.tokens_lost / max(1, row.tokens):.1%})"
        prompts, answers = (f"{n:,} ({n / max(1, rows):.1%})" for n in (row.prompts_cut, row.answers_cut))
        lines.append(f"   {row.cutoff_len:>10,}  {prompts:>16}  {answers:>16}  {lost:>20}")
    return lines


def _wrapped(text: str, label: str) -> list[str]:
    """A text behind a label, in lines that begin below its own beginning."""
    return textwrap.wrap(text, _WIDTH, initial_indent=label, subsequent_indent=" " * len(label), break_on_hyphens=False)
