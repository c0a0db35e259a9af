"""What can only be seen of all rows together: repetitions, contradictions, lengths, languages."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import median

from duiqi.inspection.counting import counted
from duiqi.inspection.findings import Severity, excerpt
from duiqi.inspection.row_print import Rows
from duiqi.inspection.row_text import digest, turns_key
from duiqi.types import Example, last_user_text

FEW_ROWS = 20
"""Fewer say nothing of shares."""
BIAS_NOTED, BIAS_WARNED = 0.6, 0.7
"""Share of pairs in which the better answer is the longer one: a coin gives 0.5."""
ONE_SIDED = 0.05
"""Share of answers that were liked, or were not, below which there is next to nothing to tell them apart by."""
CANNED = 0.01
"""Share of all rows, at least `CANNED_ROWS` of them, from which one answer to different prompts is a stock phrase."""
CANNED_ROWS = 3
LONG, SHORT = 20, 20
"""An answer is wildly long from so many times the median, and short below one in so many."""
LONG_CHARACTERS = 2000
SHORT_MEDIAN = 40
"""Where half of the answers are shorter than this, none is too short."""


@dataclass(frozen=True, slots=True)
class Spotted:
    """What a check saw: rows, or something in the whole that no row shows."""

    rows: Sequence[tuple[int, str]] = ()
    """(index, excerpt)"""
    detail: str = ""
    severity: Severity | None = None
    """Where what was measured makes it another than the kind's."""


def _duplicate_row(rows: Rows) -> Spotted:
    first: dict[bytes, int] = {}
    again = []
    for index, kept in enumerate(rows.prints):
        if (earlier := first.setdefault(kept.row, index)) != index:
            again.append((index, _as_in(rows.examples, earlier, index)))
    return Spotted(again)


def _near_duplicate_row(rows: Rows) -> Spotted:
    first: dict[bytes, int] = {}
    again = []
    for index, kept in enumerate(rows.prints):
        earlier = first.setdefault(kept.near_row, index)
        if rows.prints[earlier].row != kept.row:
            again.append((index, _as_in(rows.examples, earlier, index)))
    return Spotted(again)


def _repeated_prompt(rows: Rows) -> Spotted:
    """Demonstrations alone: of prompts and rankings this is another fault, or none."""
    first: dict[bytes, int] = {}
    again = []
    for index, (example, kept) in enumerate(zip(rows.examples, rows.prints, strict=True)):
        if example.kind != "demonstration":
            continue
        earlier = first.setdefault(kept.prompt, index)
        if rows.prints[earlier].row != kept.row:
            again.append((index, _as_in(rows.examples, earlier, index)))
    return Spotted(again)


def _contradiction(rows: Rows) -> Spotted:
    said: dict[bytes, int] = {}
    contradicting = {}
    for index, example in enumerate(rows.examples):
        prompt = turns_key(example.prompt)
        for claim, opposite in _claims(example):
            said.setdefault(digest(prompt, *claim), index)
            if (earlier := said.get(digest(prompt, *opposite))) is not None:
                contradicting[index] = earlier
    return Spotted([(index, _as_in(rows.examples, earlier, index)) for index, earlier in contradicting.items()])


def _claims(example: Example) -> Iterator[tuple[tuple[str, ...], tuple[str, ...]]]:
    """What a row says of its answers, each with what would contradict it."""
    if example.kind == "feedback":
        yield (example.answers[0], str(example.liked)), (example.answers[0], str(not example.liked))
    if example.kind == "ranking":
        for better, worse in example.pairs():
            if better != worse:
                yield (better, worse), (worse, better)


def _one_sided(rows: Rows) -> Spotted:
    liked = [example.liked for example in rows.examples if example.kind == "feedback"]
    share = sum(map(bool, liked)) / max(1, len(liked))
    if len(liked) < FEW_ROWS or ONE_SIDED <= share <= 1 - ONE_SIDED:
        return Spotted()
    return Spotted(detail=f"{share:.1%} of {len(liked):,} answers were liked")


def _unanswered(rows: Rows) -> Spotted:
    if all(example.kind == "prompt" for example in rows.examples):
        return Spotted()
    return Spotted([(i, _question(example)) for i, example in enumerate(rows.examples) if example.kind == "prompt"])


def _canned_answer(rows: Rows) -> Spotted:
    prompts: dict[bytes, set[bytes]] = {}
    for index, _ in _answers(rows):
        prompts.setdefault(rows.prints[index].best, set()).add(rows.prints[index].prompt)
    least = max(CANNED_ROWS, CANNED * len(rows.examples))
    canned = {best for best, asked in prompts.items() if len(asked) >= least}
    return Spotted([(index, excerpt(text)) for index, text in _answers(rows) if rows.prints[index].best in canned])


def _long_answer(rows: Rows) -> Spotted:
    typical = _typical_length(rows)
    limit = max(LONG_CHARACTERS, LONG * typical)
    found = [(index, f"{len(text):,} characters") for index, text in _answers(rows) if len(text) > limit]
    return Spotted(found, f"half of the answers have at most {typical:,.0f} characters" if found else "")


def _short_answer(rows: Rows) -> Spotted:
    typical = _typical_length(rows)
    if typical < SHORT_MEDIAN:
        return Spotted()
    found = [
        (index, f"{len(text)} characters: {excerpt(text)}")
        for index, text in _answers(rows)
        if len(text.strip()) * SHORT < typical
    ]
    return Spotted(found, f"half of the answers have at least {typical:,.0f} characters" if found else "")


def _length_bias(rows: Rows) -> Spotted:
    longer = total = 0
    for example in rows.examples:
        if example.kind != "ranking":
            continue
        lengths = [(len(better), len(worse)) for better, worse in example.pairs()]
        longer += sum(better > worse for better, worse in lengths)
        total += sum(better != worse for better, worse in lengths)
    if total < FEW_ROWS or max(longer, total - longer) / total < BIAS_NOTED:
        return Spotted()
    share = longer / total
    which, of = ("longer", share) if share > 0.5 else ("shorter", 1 - share)
    detail = f"the better answer is the {which} one in {of:.0%} of {total:,} pairs: who only counts is right so often"
    return Spotted(detail=detail, severity="warning" if of >= BIAS_WARNED else "note")


def _many_systems(rows: Rows) -> Spotted:
    systems = Counter(
        example.prompt[0].content if example.prompt[0].role == "system" else ""
        for example in rows.examples
        if example.prompt
    )
    if len(systems) < 2:
        return Spotted()
    with_none = f"; rows without one: {systems['']:,}" if "" in systems else ""
    return Spotted(detail=f"{len(systems) - ('' in systems):,} different system messages{with_none}")


def _few_rows(rows: Rows) -> Spotted:
    count = len(rows.examples)
    return Spotted(detail=counted(count, "row")) if count < FEW_ROWS else Spotted()


def _languages(rows: Rows) -> Spotted:
    told = Counter(
        kept.asks_in_characters if example.prompt else kept.says_in_characters
        for example, kept in zip(rows.examples, rows.prints, strict=True)
    )
    if min(told[True], told[False]) == 0:
        return Spotted()
    named = ((True, "in Chinese (or other characters)"), (False, "in English (or other words)"), (None, "in neither"))
    parts = [f"{told[key] / told.total():.1%} {name}" for key, name in named if told[key]]
    told_of = "questions" if any(example.prompt for example in rows.examples) else "texts"
    return Spotted(detail=f"{told_of}: {', '.join(parts)}")


def _switched_language(rows: Rows) -> Spotted:
    return Spotted(
        [
            (index, f"{excerpt(last_user_text(example.prompt), room=24)} -> {excerpt(example.answers[0], room=24)}")
            for index, (example, kept) in enumerate(zip(rows.examples, rows.prints, strict=True))
            if example.prompt and _differ(kept.asks_in_characters, kept.says_in_characters)
        ]
    )


def _differ(asked: bool | None, said: bool | None) -> bool:
    return asked is not None and said is not None and asked != said


def _answers(rows: Rows) -> Iterator[tuple[int, str]]:
    """The answers to be learned, with the rows they are of; one that was not liked is not to be."""
    for index, example in enumerate(rows.examples):
        if example.prompt and example.answers and example.liked is not False:
            yield index, example.answers[0]


def _typical_length(rows: Rows) -> float:
    return median([len(text) for _, text in _answers(rows)] or [0])


def _as_in(examples: Sequence[Example], earlier: int, index: int) -> str:
    here, there = examples[index].origin, examples[earlier].origin
    place = f"line {there.line}" if here.file == there.file and there.line else str(there)
    return f"as {place}: {_question(examples[index])}"


def _question(example: Example) -> str:
    return excerpt(last_user_text(example.prompt) or (example.answers[0] if example.answers else ""))


SET_CHECKS: dict[str, Callable[[Rows], Spotted]] = {
    "duplicate_row": _duplicate_row,
    "near_duplicate_row": _near_duplicate_row,
    "repeated_prompt": _repeated_prompt,
    "contradiction": _contradiction,
    "one_sided": _one_sided,
    "unanswered": _unanswered,
    "canned_answer": _canned_answer,
    "long_answer": _long_answer,
    "short_answer": _short_answer,
    "length_bias": _length_bias,
    "many_systems": _many_systems,
    "few_rows": _few_rows,
    "languages": _languages,
    "switched_language": _switched_language,
}


def leaks(train: Rows, held_out: Rows) -> dict[str, Spotted]:
    """What the rows to evaluate on have in common with those to learn from, the same row first, by kind."""
    first_row: dict[bytes, int] = {}
    first_prompt: dict[bytes, int] = {}
    first_near: dict[bytes, int] = {}
    for index, kept in enumerate(train.prints):
        first_row.setdefault(kept.row, index)
        first_prompt.setdefault(kept.prompt, index)
        first_near.setdefault(kept.near_prompt, index)
    found: dict[str, list[tuple[int, str]]] = {"leaked_row": [], "leaked_prompt": [], "near_leaked_prompt": []}
    for index, (example, kept) in enumerate(zip(held_out.examples, held_out.prints, strict=True)):
        keys = [("leaked_row", first_row.get(kept.row))]
        if example.prompt:
            keys += [
                ("leaked_prompt", first_prompt.get(kept.prompt)),
                ("near_leaked_prompt", first_near.get(kept.near_prompt)),
            ]
        for kind, earlier in keys:
            if earlier is not None:
                found[kind].append((index, f"as {train.examples[earlier].origin}: {_question(example)}"))
                break
    return {kind: Spotted(rows) for kind, rows in found.items()}
