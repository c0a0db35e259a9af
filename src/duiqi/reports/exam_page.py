"""An examination as one self-contained page: the verdict, the parts, the probes, pairs, length, calibration."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from duiqi.evaluation.exam_grades import interval, percent
from duiqi.evaluation.exam_result import Case, Exam, Part, ProbeResult, Slice
from duiqi.evaluation.exam_statistics import Rate
from duiqi.journal.files import atomic_write_text, writing
from duiqi.reports.exam_text import short, verdict
from duiqi.reports.html import asset, page_of
from duiqi.reports.markup import Markup, element
from duiqi.reports.read import Series
from duiqi.reports.svg import Line, chart

_BAR, _STRIP, _HIGH = 150, 230, 18
_MAX_TEXT = 600
_FEWEST = 3
"""Prompts of a bin that is drawn."""


def write_exam_page(exam: Exam, output: Path) -> None:
    """Write the page, complete or not at all.

    Raises:
        RunError: It cannot be written.
    """
    with writing(output):
        output.parent.mkdir(parents=True, exist_ok=True)
    atomic_write_text(output, render_exam(exam).encode("utf-8", errors="replace").decode("utf-8"))


def render_exam(exam: Exam) -> str:
    """The page as text."""
    header = element(
        "header",
        element(
            "h1", f"Reward model {exam.about.reward_model} ", element("span", exam.grade, class_=_style(exam.grade))
        ),
        element("p", verdict(exam), class_="verdict"),
        element("p", _about(exam), class_="story"),
        [element("p", f"Note: {note}", class_="story") for note in exam.about.notes],
    )
    main = element(
        "main",
        element("div", [_card(part) for part in exam.parts], class_="cards"),
        _probes(exam),
        _pairs(exam),
        _length(exam),
        _calibration(exam),
        _stability(exam),
    )
    return page_of(f"{exam.about.reward_model}: grade {exam.grade}", header, main, style=asset("exam.css"))


def _about(exam: Exam) -> str:
    about = exam.about
    state = f"weights {about.digest[:12]}" if about.digest else "weights elsewhere"
    words = [f"{about.prompts} prompts of {about.dataset}", f"seed {about.seed}", about.precision, state]
    return f"Examined on {', '.join(filter(None, words))}; duiqi {about.version}, {about.time}."


def _card(part: Part) -> Markup:
    return element(
        "article",
        element("p", element("b", part.name), class_="kicker"),
        element("p", element("span", part.grade, class_=_style(part.grade)), part.finding, class_="finding"),
        element("p", part.reason, class_="story"),
        class_="card",
    )


def _probes(exam: Exam) -> Markup:
    lowest, highest = _range(exam)

    def strip(scores: Sequence[float], style: str) -> Markup | None:
        return _strip(scores, lowest, highest, style=style) if scores else None

    head = element(
        "tr",
        [element("th", name) for name in ("", "answer", "beats the best real answer", "95%", "and the worst one")],
        element("th", f"where its scores lie ({lowest:.3g} to {highest:.3g})"),
    )
    real = [
        element(
            "tr",
            element("td"),
            element("th", f"real: {spread.name}", scope="row"),
            [element("td") for _ in range(3)],
            element("td", strip(spread.quantiles, "real")),
        )
        for spread in exam.scores
    ]
    rows = []
    for fatal, title in ((True, "Empty answers: one hole decides the grade"), (False, "Real answers with a flaw")):
        rows.append(element("tr", element("th", title, colspan="6", class_="group")))
        for probe in (p for p in exam.probes if p.is_fatal == fatal):
            rows.append(_probe_row(probe, strip(probe.scores, "c0")))
    table = element("table", element("thead", head), element("tbody", real, rows), class_="probes")
    return element(
        "section",
        element("h2", "Probes"),
        element(
            "p",
            "Degenerate answers made from the data's own prompts, scored beside the real ones. The strip shows the "
            "middle half of the scores as a bar, 5 to 95% as a line and the median as a dot: a probe whose dot is "
            "right of the best answers' is what a policy will find.",
            class_="story",
        ),
        element("div", table, class_="scroll"),
        element("h3", "The worst cases"),
        [_cases(probe) for probe in exam.probes if probe.worst_cases and probe.grade not in (None, "A")]
        or element("p", "no kind of probe got worse than A", class_="quiet"),
        id="probes",
    )


def _probe_row(probe: ProbeResult, strip: Markup | None) -> Markup:
    if probe.grade is None:
        nothing = element("td", "nothing to make it of in this data", class_="quiet", colspan="4")
        return element("tr", element("td"), element("th", probe.title, scope="row"), nothing)
    return element(
        "tr",
        element("td", element("span", probe.grade, class_=_style(probe.grade))),
        element("th", probe.title, scope="row"),
        element("td", _bar(probe.beats_best), " ", percent(probe.beats_best.share)),
        element("td", interval(probe.beats_best), class_="n quiet"),
        element("td", percent(probe.beats_worst.share), class_="n"),
        element("td", strip),
    )


def _cases(probe: ProbeResult) -> Markup:
    count = len(probe.worst_cases)
    return element(
        "details",
        element("summary", f"{probe.title} ({count} of {probe.beats_best.trials:.0f})"),
        [_case(case) for case in probe.worst_cases],
        class_="answers",
    )


def _case(case: Case) -> Markup:
    cells = [("the probe", case.probe, case.probe_score), ("the best real answer", case.real, case.real_score)]
    first = case.probe_score > case.real_score
    return element(
        "section",
        element("p", case.prompt.strip() or "∅ (empty prompt)", class_="prompt"),
        element(
            "div",
            [
                element(
                    "div",
                    element("p", name, class_="model"),
                    element("p", _said(text), class_="said" if text.strip() else "said empty"),
                    element("p", f"score {score:.3f}", class_="measures"),
                    class_="answer best" if first == (place == 0) else "answer",
                )
                for place, (name, text, score) in enumerate(cells)
            ],
            class_="row",
        ),
    )


def _said(text: str) -> str:
    if not text.strip():
        return short(text)
    return text if len(text) <= _MAX_TEXT else f"{text[:_MAX_TEXT]}… ({len(text):,} characters)"


def _pairs(exam: Exam) -> Markup:
    accuracy = exam.accuracy
    rules = [
        ("this reward model", accuracy.overall),
        ("a rule: the longer answer wins", accuracy.longer_wins),
        ("a rule: the shorter answer wins", accuracy.shorter_wins),
    ]
    return element(
        "section",
        element("h2", "Pairs", element("small", f"{accuracy.pairs:,}")),
        element(
            "p",
            "How often the better of two real answers scores higher. A prompt counts once: with more than two answers, "
            "its pairs share its weight.",
            class_="story",
        ),
        _rates("overall", rules),
        _slices("by how long the better answer is beside the worse one", accuracy.by_length),
        _slices("by source", accuracy.by_source) if len(accuracy.by_source) > 1 else None,
        id="pairs",
    )


def _slices(title: str, slices: Sequence[Slice]) -> Markup:
    return _rates(title, [(each.name, each.accuracy) for each in slices])


def _rates(title: str, rates: Sequence[tuple[str, Rate]], *, what: str = "right") -> Markup:
    rows = [
        element(
            "tr",
            element("th", name, scope="row"),
            element("td", _bar(rate, half=True), " ", percent(rate.share)),
            element("td", interval(rate), class_="n quiet"),
            element("td", f"of {rate.trials:.0f}" if rate.trials >= 1 else "of less than 1", class_="n quiet"),
        )
        for name, rate in rates
    ]
    head = element("tr", element("th", title), element("th", what), element("th", "95%"), element("th", "prompts"))
    return element("div", element("table", element("thead", head), element("tbody", rows)), class_="scroll")


def _length(exam: Exam) -> Markup:
    length = exam.length

    def written(value: float | None) -> str:
        return "no spread" if value is None else f"{value:+.2f}"

    rates = [("this reward model", length.model_prefers_longer), ("the labels", length.labels_prefer_longer)]
    accuracies = [("the longer one", length.right_when_longer), ("the shorter one", length.right_when_shorter)]
    return element(
        "section",
        element("h2", "Length"),
        element(
            "p",
            f"Correlation of score and length: {written(length.correlation_within)} among the answers to one prompt, "
            f"{written(length.correlation_overall)} over all answers. The first is the one that a policy can use: it "
            "chooses its answer, never its prompt.",
            class_="story",
        ),
        _rates("who prefers the longer of two answers", rates, what="prefers"),
        _rates("pairs whose better answer is", accuracies),
        id="length",
    )


def _calibration(exam: Exam) -> Markup:
    bins = [each for each in exam.calibration.bins if each.weight >= _FEWEST] or exam.calibration.bins
    places = tuple(round(100 * each.confidence) for each in bins)
    lines = [
        Line("as it says", Series((50, 100), (50.0, 100.0)), 5, is_evaluation=True),
        Line("as it is", Series(places, tuple(100 * each.accuracy for each in bins)), 0),
    ]
    figure = element(
        "figure",
        element(
            "figcaption",
            element("b", "Reliability"),
            element("span", f"% right, over the confidence in % (where {_FEWEST} prompts or more)", class_="readout"),
        ),
        chart(lines, description="Share of right choices by confidence"),
        element("p", [element("span", element("i", class_=_key(x)), x.label) for x in lines], class_="legend"),
    )
    return element(
        "section",
        element("h2", "Calibration"),
        element(
            "p",
            f"Read as a probability, sigmoid(score gap) is off by {percent(exam.calibration.error)} on average. Below "
            "the dashed diagonal the model is surer than it should be.",
            class_="story",
        ),
        element("div", figure, class_="charts"),
        id="calibration",
    )


def _key(line: Line) -> str:
    return f"key evaluation c{line.colour}" if line.is_evaluation else f"key c{line.colour}"


def _stability(exam: Exam) -> Markup:
    found = exam.stability
    rows = [("alone or in a padded batch", f"{found.batch:.2g}"), ("in another order", f"{found.order:.2g}")]
    if found.precision is not None and found.flipped is not None:
        name = f"in {found.other_precision}, on average"
        rows.append((name, f"{found.precision:.2g}; {percent(found.flipped)} of pairs change their order"))
    return element(
        "section",
        element("h2", "Stability"),
        element(
            "p",
            f"How far the score of the same answer moves, in standard deviations of real answers' scores ({found.rows} "
            "rows; the largest change where nothing else is said).",
            class_="story",
        ),
        element("table", element("tbody", [element("tr", element("th", n), element("td", v)) for n, v in rows])),
        id="stability",
    )


def _style(grade: str) -> str:
    return f"grade g{grade.lower()}"


def _range(exam: Exam) -> tuple[float, float]:
    """Ends of the scale that all strips share."""
    ends = [
        score for scores in (*(p.scores for p in exam.probes), *(s.quantiles for s in exam.scores)) for score in scores
    ]
    low, high = min(ends), max(ends)
    return (low, high) if high > low else (low - 1.0, high + 1.0)


def _strip(scores: Sequence[float], low: float, high: float, *, style: str) -> Markup:
    def x(score: float) -> float:
        return round(6 + (_STRIP - 12) * (score - low) / (high - low), 1)

    first, quarter, median, three_quarters, last = map(x, scores)
    middle = _HIGH / 2
    return element(
        "svg",
        element("line", class_="reach", x1=first, x2=last, y1=middle, y2=middle),
        element(
            "rect", class_=f"half {style}", x=quarter, y=middle - 4, width=max(1.0, three_quarters - quarter), height=8
        ),
        element("circle", class_=f"dot {style}", cx=median, cy=middle, r=3.2),
        viewBox=f"0 0 {_STRIP} {_HIGH}",
        class_="strip",
        role="img",
    )


def _bar(rate: Rate, *, half: bool = False) -> Markup:
    """A share as a bar, its interval as a line; with `half`, a mark at 50 %."""
    middle = _HIGH / 2

    def x(share: float) -> float:
        return round(_BAR * share, 1)

    return element(
        "svg",
        element("rect", class_="room", x=0, y=middle - 4, width=_BAR, height=8),
        element("rect", class_="share", x=0, y=middle - 4, width=x(rate.share), height=8),
        element("line", class_="reach", x1=x(rate.low), x2=x(rate.high), y1=middle, y2=middle),
        element("line", class_="chance", x1=x(0.5), x2=x(0.5), y1=2, y2=_HIGH - 2) if half else None,
        viewBox=f"0 0 {_BAR} {_HIGH}",
        class_="bar",
        role="img",
    )
