"""What a policy gained for how far it went: every evaluation of a run by its KL and its score, the best one marked.

The shape of this curve is that of Gao et al. 2023, figure 1: a score that still rises while a second opinion falls has
been over-optimised. A person may well pick another checkpoint than duiqi did.
"""

from __future__ import annotations

from collections.abc import Sequence

from duiqi.reports.markup import Markup, element
from duiqi.reports.plane import Curve, Dot, hint, plane
from duiqi.reports.read import RunRecord

_JUDGES = {"eval_score": "Score", "eval_opinion": "Second opinion"}


def frontier(record: RunRecord) -> Markup | None:
    """The charts of a run, one for each judge; None where KL and score were not evaluated together."""
    found = {title: dots for name, title in _JUDGES.items() if len(dots := dots_of(record, name)) > 1}
    if not found:
        return None
    return element(
        "div",
        element("h3", f"What {record.name} gained, and how far it went for it"),
        element("div", [_figure(title, dots) for title, dots in found.items()], class_="charts"),
        element("p", _choices(record), class_="quiet"),
    )


def dots_of(record: RunRecord, judge: str) -> list[Dot]:
    """Every evaluation with a KL and a value of this judge, in the order of steps."""
    series = record.series()
    if judge not in series or "eval_kl" not in series:
        return []
    kl, best = dict(series["eval_kl"].finite), best_step(record)
    return [
        Dot(
            kl[step],
            value,
            hint(step, kl[step], value),
            label=f"{step} best" if step == best else str(step),
            is_full=step == best,
        )
        for step, value in series[judge].finite
        if step in kl
    ]


def best_step(record: RunRecord) -> int | None:
    """The step of the best checkpoint, as the last event that names one says."""
    for event in reversed(record.events):
        if event.get("kind") == "checkpoint" and event.get("best"):
            return int(event["step"])
        if event.get("kind") == "stopped_by_watch" and event.get("best_step"):
            return int(event["best_step"])
    return None


def _figure(title: str, dots: Sequence[Dot]) -> Markup:
    return element(
        "figure",
        element(
            "figcaption",
            element("b", f"{title} against KL"),
            element("span", "each evaluation with its step", class_="readout"),
        ),
        plane(
            [Curve(dots, colour=0)],
            description=f"{title} against the KL from the reference, in nats per answer",
            x_name="KL, nats per answer",
        ),
    )


def _choices(record: RunRecord) -> str:
    """Which checkpoints there are to choose from."""
    saved = sorted(path.name for path in record.path.glob("checkpoints/step-*"))
    if not saved:
        return "No checkpoint is left on the disk."
    steps = ", ".join(str(int(name.removeprefix("step-"))) for name in saved)
    return f"Checkpoints on the disk: {steps}. To talk to one: duiqi chat {record.path / 'checkpoints' / saved[0]}"
