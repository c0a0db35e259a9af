"""The report: one self-contained page about one or several runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from duiqi.journal.files import atomic_write_text, writing
from duiqi.journal.numbers import brief
from duiqi.reports.answers import (
    Comparison,
    answers_over_training,
    averages,
    comparisons_from_samples,
    load_comparisons,
    side_by_side,
)
from duiqi.reports.facts import events_of, provenance_of, settings_of
from duiqi.reports.families import Family, group, parse, words
from duiqi.reports.findings import findings
from duiqi.reports.frontier import frontier
from duiqi.reports.markup import Markup, element, join
from duiqi.reports.read import RunRecord, load_run
from duiqi.reports.summary import STAGES, in_words, summarise
from duiqi.reports.svg import Line, chart

NUM_COLOURS = 6

# The page may not load anything from anywhere, whatever a model wrote into an answer.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:"


def write_report(
    run_dirs: Sequence[str | Path],
    output: str | Path,
    *,
    title: str = "",
    comparisons: str | Path | Sequence[Mapping[str, Any]] | None = None,
) -> Path:
    """Write one HTML page about runs, in the order given; runs of the same stage share their charts.

    Args:
        run_dirs: Run directories, also unfinished ones.
        output: The file to write.
        title: By default the names of the runs.
        comparisons: Answers of several models to the same prompts, or the JSON file that holds them (see
            `load_comparisons`). By default the last samples of the runs, where they share prompts.

    Returns:
        The file written.

    Raises:
        RunError: a directory holds no run, a file is damaged, or `output` cannot be written.
    """
    records = [load_run(path) for path in run_dirs]
    side = comparisons_from_samples(records) if comparisons is None else load_comparisons(comparisons)
    page = render(records, title=title or ", ".join(record.name for record in records), comparisons=side)
    output = Path(output)
    with writing(output):
        output.parent.mkdir(parents=True, exist_ok=True)
    atomic_write_text(output, page.encode("utf-8", errors="replace").decode("utf-8"))
    return output


def render(records: Sequence[RunRecord], *, title: str, comparisons: Sequence[Comparison]) -> str:
    """The page as text."""
    by_stage: dict[str, list[RunRecord]] = {}
    for record in records:
        by_stage.setdefault(record.stage, []).append(record)
    return page_of(
        title,
        element("header", element("h1", title), _contents(by_stage, has_answers=bool(comparisons))),
        element("main", _summary(records), _comparisons(comparisons), [_stage(*item) for item in by_stage.items()]),
        element("script", asset("page.js")),
    )


def page_of(title: str, *body: Markup, style: Markup | None = None) -> str:
    """A page that stands alone: its style is in it, and it may load nothing.

    Args:
        style: Rules beside those of every page.
    """
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", http_equiv="Content-Security-Policy", content=POLICY),
        element("title", title),
        element("style", asset("page.css"), style),
    )
    return f"<!doctype html>\n{element('html', head, element('body', body), lang='en')}\n"


def asset(name: str) -> Markup:
    """A file of this room, for a page."""
    return Markup(files("duiqi.reports").joinpath(name).read_text(encoding="utf-8"))


def _contents(by_stage: Mapping[str, Sequence[RunRecord]], *, has_answers: bool) -> Markup:
    answers = element("a", "answers", href="#answers") if has_answers else None
    return element("nav", answers, [element("a", stage, href=f"#stage-{stage}") for stage in by_stage])


def _summary(records: Sequence[RunRecord]) -> Markup:
    return element("div", [summarise(record) for record in records], class_="cards")


def _comparisons(comparisons: Sequence[Comparison]) -> Markup | None:
    if not comparisons:
        return None
    return element(
        "section",
        element("h2", "The same prompts, answered by each model"),
        averages(comparisons),
        side_by_side(comparisons),
        id="answers",
    )


def _stage(stage: str, records: Sequence[RunRecord]) -> Markup:
    return element(
        "section",
        element("h2", STAGES.get(stage, words(stage).capitalize()), element("small", stage)),
        [element("p", element("b", record.name), "  ", in_words(record), class_="story") for record in records],
        [findings(record) for record in records],
        [frontier(record) for record in records],
        _charts(records),
        [_samples(record) for record in records],
        element(
            "div",
            settings_of(records) if any(record.config for record in records) else None,
            [provenance_of(record) for record in records],
            [events_of(record) for record in records],
            class_="facts",
        ),
        id=f"stage-{stage}",
        class_="stage",
    )


def _charts(records: Sequence[RunRecord]) -> Markup:
    names = dict.fromkeys(name for record in records for name in record.series())
    figures = [(family, _figure(family, found, records)) for family, found in group(names)]
    folded = [figure for family, figure in figures if not family.in_report]
    return join(
        [
            element("div", [figure for family, figure in figures if family.in_report], class_="charts"),
            element(
                "details",
                element("summary", f"{len(folded)} more {'measurements' if len(folded) > 1 else 'measurement'}"),
                element("div", folded, class_="charts"),
            )
            if folded
            else None,
        ]
    )


def _figure(family: Family, names: Sequence[str], records: Sequence[RunRecord]) -> Markup:
    lines = _lines(names, records)
    latest = _latest(lines)
    return element(
        "figure",
        element(
            "figcaption",
            element("b", family.title),
            element("span", brief(latest, digits=3), class_="latest") if latest is not None else None,
            element("span", family.hint or " ", class_="readout"),
        ),
        chart(lines, description=f"{family.title} by step"),
        element("p", [_key(line) for line in lines], class_="legend") if len(lines) > 1 else None,
    )


def _lines(names: Sequence[str], records: Sequence[RunRecord]) -> list[Line]:
    """One line per run and metric; a metric and its evaluation share a colour."""
    bases = list(dict.fromkeys(parse(name).base for name in names))
    kinds = {parse(name).is_evaluation for name in names}
    lines = []
    for run, record in enumerate(records):
        series = record.series()
        for name in sorted(set(names) & set(series), key=parse):
            metric = parse(name)
            parts = (
                record.name if len(records) > 1 else "",
                words(metric.base) if len(bases) > 1 else "",
                ("evaluation" if metric.is_evaluation else "training") if len(kinds) > 1 else "",
            )
            colour = (run * len(bases) + bases.index(metric.base)) % NUM_COLOURS
            label = " ".join(part for part in parts if part)
            lines.append(Line(label, series[name], colour, is_evaluation=metric.is_evaluation))
    return lines


def _latest(lines: Sequence[Line]) -> float | None:
    """The last value, by evaluation where there is one; None where several lines would make it ambiguous."""
    drawn = [line for line in lines if line.series.finite]
    if len({line.colour for line in drawn}) != 1:
        return None
    return max(drawn, key=lambda line: line.is_evaluation).series.finite[-1][1]


def _key(line: Line) -> Markup:
    kind = "key evaluation" if line.is_evaluation else "key"
    return element("span", element("i", class_=f"{kind} c{line.colour}"), line.label)


def _samples(record: RunRecord) -> Markup | None:
    over_training = answers_over_training(record)
    if not over_training:
        return None
    return element("div", element("h3", f"Answers of {record.name} over training"), side_by_side(over_training))
