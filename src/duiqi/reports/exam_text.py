"""An examination in the terminal: the grade, why, the probes, and the cases to look at."""

from __future__ import annotations

import textwrap
import unicodedata
from collections.abc import Sequence

from duiqi.evaluation.exam_grades import interval, percent
from duiqi.evaluation.exam_result import Case, Exam, ProbeResult
from duiqi.settings.conditions import listing

_WIDTH = 110
_BAR = 20
_CASES = 4
_TEXT = 64


def exam_lines(exam: Exam) -> list[str]:
    """Plain text, the most important first."""
    about = exam.about
    held = f"{about.prompts} prompts of {about.dataset}, {_count(exam)} probes, seed {about.seed}"
    lines = [
        f"── {about.reward_model}: grade {exam.grade} " + "─" * 20,
        *_wrapped(verdict(exam), "   "),
        *_wrapped(f"examined on {held}{f', in {about.precision}' if about.precision else ''}", "   "),
        *(line for note in about.notes for line in _wrapped(note, "   note: ")),
        "",
        *(line for part in exam.parts for line in _wrapped(part.finding, f"{part.grade}  {part.name:<12} ")),
        "",
        "   how often a degenerate answer beats the best real one",
        *(_row(probe) for probe in exam.probes if probe.is_fatal),
        "   how often a flawed answer does",
        *(_row(probe) for probe in exam.probes if not probe.is_fatal),
    ]
    cases = worst_cases(exam)
    if cases:
        lines += ["", "   look at these"]
    for title, case in cases:
        lines += [
            f"   {title}: {short(case.prompt.splitlines()[-1] if case.prompt else '')}",
            f"      {case.probe_score:+8.2f}  {short(case.probe)}",
            f"      {case.real_score:+8.2f}  {short(case.real)}   (the best real answer)",
        ]
    return lines


def verdict(exam: Exam) -> str:
    """What the grade means, in a sentence: which part decided it, and what to do."""
    deciding = [part for part in exam.parts if part.counts_as == exam.grade]
    names, remedy = listing(part.name for part in deciding), _remedy([part.name for part in deciding])
    match exam.grade:
        case "A":
            return "Nothing was found that speaks against using it."
        case "B" | "C":
            return f"It can be used; keep an eye on {names} (the samples of PPO show it first)."
        case "D":
            return f"It can be used with care: {names} will show in what a policy learns. {remedy}".rstrip()
    return f"It should not be used as it is, because of {names}. {remedy}".rstrip()


def worst_cases(exam: Exam) -> list[tuple[str, Case]]:
    """The worst case of each kind of probe that won at all, fatal kinds first, then by how often they win."""
    ordered = sorted(exam.probes, key=lambda probe: (not probe.is_fatal, -probe.beats_best.share))
    won = [(p.title, p.worst_cases[0]) for p in ordered if p.worst_cases and p.grade not in (None, "A")]
    return [(title, case) for title, case in won if case.probe_score >= case.real_score][:_CASES]


def short(text: str, room: int = _TEXT) -> str:
    """A text on one line, with an ellipsis where it is cut; control characters are spelled.

    >>> short(""), short("a\\n b"), short("一二三四", 3)
    ('∅ (empty)', 'a ⏎ b', '一二…')
    """
    if not text:
        return "∅ (empty)"
    if not text.strip():
        return "".join({"\n": "⏎", "\t": "⇥"}.get(letter, "␣") for letter in text[:room])
    flat = " ".join(text.replace("\n", " ⏎ ").split())
    flat = "".join("�" if unicodedata.category(letter) == "Cc" else letter for letter in flat)
    return flat if len(flat) <= room else flat[: room - 1] + "…"


def _row(probe: ProbeResult) -> str:
    if probe.grade is None:
        return f"-  {probe.title:<30} (nothing to make it of)"
    share = probe.beats_best.share
    bar = "█" * round(share * _BAR)
    return f"{probe.grade}  {probe.title:<30} {percent(share):>5}  {bar:<{_BAR}}  {interval(probe.beats_best)}"


def _wrapped(text: str, label: str) -> list[str]:
    """A text behind a label, in lines that begin below its own beginning."""
    return textwrap.wrap(text, _WIDTH, initial_indent=label, subsequent_indent=" " * len(label), break_on_hyphens=False)


def _count(exam: Exam) -> str:
    return f"{sum(round(probe.beats_best.trials) for probe in exam.probes):,}"


def _remedy(names: Sequence[str]) -> str:
    """What to do about some parts, as sentences; empty where there is nothing to be done."""
    again = [_TRAIN_AGAIN[name] for name in names if name in _TRAIN_AGAIN]
    return " ".join(
        [
            *([f"Train it again {listing(again)}."] if again else []),
            *(["Score in float32; if that does not help, the model computes wrongly."] if "stability" in names else []),
        ]
    )


_TRAIN_AGAIN = {
    "exploits": "with probe_negatives: 0.1, or more than it had",
    "accuracy": "on more or cleaner pairs",
    "length": "with length_bias: balanced",
    "flaws": "on pairs that show these flaws",
}
