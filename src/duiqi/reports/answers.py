"""Answers beside each other: models on the same prompts, and one model over its training."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from duiqi.errors import RunError
from duiqi.journal.numbers import brief
from duiqi.reports.markup import Markup, element
from duiqi.reports.read import RunRecord

_PROMPTS_IN_VIEW = 4
_MAX_PROMPTS = 24
_STEPS_IN_VIEW = 4


@dataclass(frozen=True)
class Answer:
    """What one model said to a prompt."""

    model: str
    answer: str
    score: float | None = None
    """From the reward model."""
    gold: float | None = None
    """From the known judge, in the built-in world."""
    length: float | None = None
    """Tokens."""
    kl: float | None = None
    """From the reference, nats over the whole answer."""


@dataclass(frozen=True)
class Comparison:
    """One prompt and the answers to it."""

    prompt: str
    answers: tuple[Answer, ...]


def load_comparisons(source: Path | str | Sequence[Mapping[str, Any]]) -> list[Comparison]:
    """Read comparisons from a JSON file, or from the same records in memory.

    A record is `{"prompt": ..., "answers": [{"model": ..., "answer": ..., "score": ..., "length": ..., "gold": ...}]}`;
    score, length, gold and kl are optional.

    Raises:
        RunError: the file is missing or not of this shape.
    """
    where = str(source) if isinstance(source, Path | str) else "comparisons"
    shape = 'a list of {"prompt": ..., "answers": [{"model": ..., "answer": ...}]}'
    try:
        rows = json.loads(Path(source).read_text(encoding="utf-8")) if isinstance(source, Path | str) else source
        return [Comparison(str(row["prompt"]), tuple(_answer(a, a["model"]) for a in row["answers"])) for row in rows]
    except FileNotFoundError as error:
        raise RunError("there is no such file", where=where, remedy=f"give {shape}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise RunError(f"these are not comparisons ({error})", where=where, remedy=f"give {shape}") from error


def comparisons_from_samples(records: Sequence[RunRecord]) -> list[Comparison]:
    """The last answers of each run to the prompts that at least two runs were sampled on."""
    by_prompt: dict[str, list[Answer]] = {}
    for record in records:
        latest = {str(row.get("prompt", "")): row for row in record.samples}
        for prompt, row in latest.items():
            by_prompt.setdefault(prompt, []).append(_answer(row, record.name))
    return [Comparison(prompt, tuple(found)) for prompt, found in by_prompt.items() if len(found) > 1]


def answers_over_training(record: RunRecord) -> list[Comparison]:
    """The same prompts at a few steps from the first to the last."""
    by_prompt: dict[str, dict[int, Mapping[str, Any]]] = {}
    for row in record.samples:
        by_prompt.setdefault(str(row.get("prompt", "")), {})[int(row.get("step", 0))] = row
    return [
        Comparison(prompt, tuple(_answer(rows[step], f"step {step}") for step in _spread(sorted(rows))))
        for prompt, rows in by_prompt.items()
    ]


def side_by_side(comparisons: Sequence[Comparison]) -> Markup:
    """Prompts one below the other, the answers to each beside each other; all but the first few folded away."""
    shown, folded = comparisons[:_PROMPTS_IN_VIEW], comparisons[_PROMPTS_IN_VIEW:_MAX_PROMPTS]
    rest = len(comparisons) - _MAX_PROMPTS
    return element(
        "div",
        [_prompt_block(c) for c in shown],
        element(
            "details",
            element("summary", f"{len(folded)} more {'prompts' if len(folded) > 1 else 'prompt'}"),
            [_prompt_block(c) for c in folded],
            element("p", f"{rest} more are in the data and not shown here", class_="quiet") if rest > 0 else None,
        )
        if folded
        else None,
        class_="answers",
    )


def averages(comparisons: Sequence[Comparison]) -> Markup:
    """A table of means: one row per model over all prompts, columns only for what was measured."""
    by_model: dict[str, list[Answer]] = {}
    for answer in (a for c in comparisons for a in c.answers):
        by_model.setdefault(answer.model, []).append(answer)
    columns = {
        "gold reward": {model: _mean(a.gold for a in found) for model, found in by_model.items()},
        "score": {model: _mean(a.score for a in found) for model, found in by_model.items()},
        "KL": {model: _mean(a.kl for a in found) for model, found in by_model.items()},
        "tokens": {model: _mean(a.length for a in found) for model, found in by_model.items()},
        "empty": {model: _mean(float(not a.answer.strip()) for a in found) for model, found in by_model.items()},
    }
    measured = {name: means for name, means in columns.items() if any(mean is not None for mean in means.values())}
    title = f"mean over these {len(comparisons)} prompts"
    head = element("tr", element("th", title), [element("th", name, class_="n") for name in measured])
    rows = [
        element(
            "tr",
            element("th", model, scope="row"),
            [_mean_cell(means[model], is_share=name == "empty") for name, means in measured.items()],
        )
        for model in by_model
    ]
    return element("div", element("table", element("thead", head), element("tbody", rows)), class_="scroll")


def _prompt_block(comparison: Comparison) -> Markup:
    best = _best(comparison.answers)
    return element(
        "section",
        element("p", comparison.prompt.strip() or "∅ (empty prompt)", class_="prompt"),
        element("div", [_answer_card(a, is_best=a is best) for a in comparison.answers], class_="row"),
    )


def _answer_card(answer: Answer, *, is_best: bool) -> Markup:
    text = answer.answer.strip()
    measures = [
        f"{name} {brief(value, digits=3)}"
        for name, value in (("gold", answer.gold), ("score", answer.score), ("KL", answer.kl))
        if value is not None
    ] + ([f"{brief(answer.length)} tokens"] if answer.length is not None else [])
    return element(
        "div",
        element("p", answer.model, class_="model"),
        element("p", text, class_="said") if text else element("p", "∅ (empty)", class_="said empty"),
        element("p", " · ".join(measures), class_="measures"),
        class_="answer best" if is_best else "answer",
    )


def _best(answers: Sequence[Answer]) -> Answer | None:
    """The answer that the known judge, or else the reward model, likes most; None where it cannot be said."""
    for values in ([a.gold for a in answers], [a.score for a in answers]):
        known = [v for v in values if v is not None]
        if len(known) == len(answers) > 1 and max(known) > min(known):
            return answers[values.index(max(known))]
    return None


def _answer(row: Mapping[str, Any], model: object) -> Answer:
    return Answer(
        model=str(model),
        answer=str(row.get("answer") or ""),
        score=_number(row.get("score")),
        gold=_number(row.get("gold")),
        length=_number(row.get("length")),
        kl=_number(row.get("kl")),
    )


def _number(value: object) -> float | None:
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None


def _mean_cell(mean: float | None, *, is_share: bool) -> Markup:
    written = "" if mean is None else f"{mean:.0%}" if is_share else f"{mean:.3g}"
    return element("td", written, class_="n")


def _spread(steps: Sequence[int]) -> list[int]:
    """A few of the steps, evenly, always with the first and the last."""
    if len(steps) <= _STEPS_IN_VIEW:
        return list(steps)
    return [steps[round(i * (len(steps) - 1) / (_STEPS_IN_VIEW - 1))] for i in range(_STEPS_IN_VIEW)]
