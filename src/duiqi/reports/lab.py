"""The page of the laboratory: what the reward model believed, what was true, and where the watch stepped in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from duiqi.journal.files import atomic_write_text
from duiqi.reports.html import POLICY
from duiqi.reports.markup import Markup, element
from duiqi.reports.plane import Curve, Dot, hint, plane

Run = Mapping[str, Any]

_CASES = {
    "fair": (
        "A fair labeller",
        "Its reward model has no planted hole. PPO should gain, and the watch should keep still.",
    ),
    "brief": (
        "A labeller who likes short answers and never saw a broken one",
        "What its reward model says of no answer at all, nobody asked: the accident that ended PPO runs of 2023.",
    ),
    "mended": (
        "The same labeller, and probe_negatives",
        "The pairs of the brief labeller with a fifth more rows in which a degenerate answer loses.",
    ),
    "wordy": ("A labeller who likes long answers", "Length is taken for thoroughness: the commonest hole of all."),
}
_JUDGES = {"score": "Score: what the reward model believed", "gold": "Gold reward: what was true"}
_WATCHES = {"off": ("watch off", 1), "stop": ("watch on", 0)}


def verdict(run: Run) -> dict[str, float]:
    """The figures by which one run is judged; gold rewards are means over all held-out prompts.

    `highest`: the best gold reward of any evaluation. `kept`: that of the checkpoint which duiqi calls the best.
    `end`: that of the last evaluation. `shrunk`: length of answers at the end, as a share of that at the start.
    """
    evaluations: Sequence[Mapping[str, float]] = run["evaluations"]
    gold = {int(each["step"]): each["gold"] for each in evaluations}
    return {
        "start": evaluations[0]["gold"],
        "highest": max(gold.values()),
        "kept": gold.get(int(run["best_step"]), evaluations[0]["gold"]),
        "end": evaluations[-1]["gold"],
        "shrunk": evaluations[-1]["length"] / max(evaluations[0]["length"], 1e-9),
    }


def in_order(found: Mapping[str, Any]) -> list[Run]:
    """The runs by labeller, seed and watch."""
    return sorted(found["runs"], key=lambda run: (found["cases"].index(run["case"]), run["seed"], run["watch"]))


def examined(found: Mapping[str, Any], case: str) -> list[str]:
    """A line for every examination of a reward model."""
    return [
        f"{case}, seed {exam['seed']}: grade {exam['grade']}, {exam['accuracy']:.0%} of clean pairs right;"
        f" {exam['worst_probe']} beats the best answer on {exam['worst_share']:.0%} of prompts"
        for exam in sorted(found["exams"], key=lambda exam: int(exam["seed"]))
        if exam["case"] == case
    ]


def summarise(found: Mapping[str, Any]) -> str:
    """A line for every reward model and for every run."""
    lines = [line for case in found["cases"] for line in examined(found, case)]
    lines += ["", "labeller  seed  watch  stopped at   gold: start  highest     kept      end   length"]
    for run in in_order(found):
        figures = verdict(run)
        lines.append(
            f"{run['case']:<9} {run['seed']:>4}  {run['watch']:<5}  {run['stopped_at'] or '-':>10}"
            f"   {figures['start']:>11.3f}  {figures['highest']:>7.3f}  {figures['kept']:>7.3f}  {figures['end']:>7.3f}"
            f"  {figures['shrunk']:>6.0%}"
        )
    return "\n".join(lines)


def write_lab_page(found: Mapping[str, Any], output: Path) -> Path:
    """Write the page; returns its file."""
    atomic_write_text(output, render_lab(found))
    return output


def render_lab(found: Mapping[str, Any]) -> str:
    """The page as text."""
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", http_equiv="Content-Security-Policy", content=POLICY),
        element("title", "Over-optimisation, with and without the watch"),
        element("style", Markup(files("duiqi.reports").joinpath("page.css").read_text(encoding="utf-8"))),
    )
    body = element(
        "body",
        element(
            "header",
            element("h1", "Over-optimisation, with and without the watch"),
            element(
                "p",
                "PPO on reward models of the built-in world, long enough to find their holes. The gold reward is"
                " never shown to training: where it falls while the score rises, the reward model was exploited"
                " (the shape of Gao et al. 2023). Dots are evaluations on held-out prompts; the full one is the"
                " checkpoint that duiqi calls the best.",
                class_="story",
            ),
        ),
        element("main", [_case(case, found) for case in found["cases"]]),
    )
    return f"<!doctype html>\n{element('html', head, body, lang='en')}\n"


def _case(case: str, found: Mapping[str, Any]) -> Markup | None:
    runs = [run for run in in_order(found) if run["case"] == case]
    if not runs:
        return None
    title, story = _CASES[case]
    seeds = sorted({run["seed"] for run in runs})
    return element(
        "section",
        element("h2", title, element("small", case)),
        element("p", story, class_="story"),
        element("ul", [element("li", line) for line in examined(found, case)]),
        [_seed(seed, [run for run in runs if run["seed"] == seed]) for seed in seeds],
        _table(runs),
    )


def _seed(seed: int, runs: Sequence[Run]) -> Markup:
    return element(
        "div",
        element("h3", f"Seed {seed}"),
        element("div", [_figure(judge, title, runs) for judge, title in _JUDGES.items()], class_="charts"),
    )


def _figure(judge: str, title: str, runs: Sequence[Run]) -> Markup:
    curves = [_curve(run, judge) for run in runs]
    keys = [
        element("span", element("i", class_=f"key c{_WATCHES[run['watch']][1]}"), _WATCHES[run["watch"]][0])
        for run in runs
    ]
    return element(
        "figure",
        element("figcaption", element("b", title), element("span", "against KL from the start", class_="readout")),
        plane(curves, description=f"{title}, against KL", x_name="KL, nats per answer"),
        element("p", keys, class_="legend"),
    )


def _curve(run: Run, judge: str) -> Curve:
    dots = []
    for each in run["evaluations"]:
        step = int(each["step"])
        is_best = step == run["best_step"]
        label = f"best ({step})" if is_best else ""
        dots.append(Dot(each["kl"], each[judge], hint(step, each["kl"], each[judge]), label=label, is_full=is_best))
    return Curve(dots, _WATCHES[run["watch"]][1], is_dashed=run["watch"] == "off")


def _table(runs: Sequence[Run]) -> Markup:
    names = ("seed", "watch", "ended", "gold at the start", "highest", "of the best checkpoint", "at the end", "length")
    rows = [
        element(
            "tr",
            element("td", str(run["seed"])),
            element("td", _WATCHES[run["watch"]][0]),
            element("td", f"by the watch, step {run['stopped_at']}" if run["stopped_at"] else "as planned"),
            [element("td", f"{figures[name]:.3f}") for name in ("start", "highest", "kept", "end")],
            element("td", f"{figures['shrunk']:.0%} of the start"),
        )
        for run in runs
        for figures in [verdict(run)]
    ]
    fired = [
        element("li", f"seed {run['seed']}, step {each['step']}: {each['text']} ({_done(each['action'])})")
        for run in runs
        if run["watch"] == "stop"
        for each in run["findings"]
    ]
    head = element("tr", [element("th", name) for name in names])
    return element(
        "div",
        element("div", element("table", element("thead", head), element("tbody", rows)), class_="scroll"),
        element("details", element("summary", f"What the watch saw: {len(fired)} findings"), element("ul", fired)),
    )


def _done(action: str) -> str:
    return {"warn": "said", "pause": "slowed down", "stop": "went back and ended"}[action]
