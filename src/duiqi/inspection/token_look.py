"""All examples as tokens: what is cut and lost, what other lengths would cut, and the questions to the template."""

from __future__ import annotations

from collections.abc import Sequence

from duiqi.inspection.doctor import examine
from duiqi.inspection.findings import Finding, LengthRow, Place, TokenLook, Tracker, place_of
from duiqi.inspection.kinds import severity_of
from duiqi.inspection.lens import Lens
from duiqi.inspection.row_text import row_text
from duiqi.inspection.token_checks import SAMPLED_CHECKS, TOKEN_CHECKS, Lengths, RowTokens, length_table, tokens_of
from duiqi.types import Example

SAMPLE = 2000
"""Rows, spread over all, that the slow checks look at."""
COSTLY = 1.2
"""Tokens per character from which a tokenizer was made for another language; English has 0.25, Chinese 0.6 to 1."""


def look_through(lens: Lens, examples: Sequence[Example], track: Tracker) -> TokenLook:
    """What a tokenizer and its template make of examples; plain text is left to the texts' checks."""
    conversations = [example for example in examples if example.prompt]
    answers = examine(lens) if conversations else {}
    findings = [
        Finding(kind, severity_of(kind, count=0, rows=1), 0, (), answer.text)
        for kind, answer in answers.items()
        if not answer.is_fine
    ]
    findings += [Finding("tokenizer_mended", "note", 0, (), mended) for mended in lens.mended]
    lengths: list[LengthRow] = []
    if lens.template is not None and conversations:
        found, lengths = _row_findings(conversations, lens, track)
        findings += found
    return TokenLook(lens.name, findings, answers, lengths)


def _row_findings(examples: Sequence[Example], lens: Lens, track: Tracker) -> tuple[list[Finding], list[LengthRow]]:
    """Every row as tokens, and what other lengths would cut."""
    places: dict[str, list[Place]] = {}
    lengths: list[Lengths] = []
    tokens = characters = 0
    step = max(1, len(examples) // SAMPLE)
    for index, example in enumerate(track(examples, "rows as tokens")):
        row = tokens_of(example, lens)
        if not isinstance(row, RowTokens):
            places.setdefault("unencodable", []).append(place_of(example.origin, row))
            continue
        lengths.append(row.lengths)
        tokens += len(row.prompt) + sum(map(len, row.answers))
        characters += len(row_text(example).whole)
        checks = TOKEN_CHECKS if index % step else TOKEN_CHECKS | SAMPLED_CHECKS
        for kind, check in checks.items():
            if seen := check(row, lens):
                places.setdefault(kind, []).append(place_of(example.origin, seen))
    findings = [
        Finding(kind, severity_of(kind, count=len(seen), rows=len(examples)), len(seen), tuple(seen))
        for kind, seen in places.items()
    ]
    if tokens > COSTLY * characters > 0:
        findings.append(Finding("costly_tokens", "note", 0, (), f"{tokens / characters:.1f} tokens per character"))
    return findings, length_table(lengths, lens.settings) if lengths else []
