"""What the watch saw in a run: a table of its findings, and the answers that show them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from duiqi.journal.numbers import brief
from duiqi.reports.markup import Markup, element
from duiqi.reports.read import RunRecord

_DONE = {"warn": "said", "pause": "slowed down", "stop": "went back and ended"}


def findings_of(record: RunRecord) -> list[Mapping[str, Any]]:
    """The findings of the watch, in the order of time; those that a resumed run found again count once."""
    found = [event for event in record.events if event.get("kind") == "finding" and "action" in event]
    return list({(event["step"], event["name"], event.get("of"), event["action"]): event for event in found}.values())


def findings(record: RunRecord) -> Markup | None:
    """A table of them; None where there was none."""
    found = findings_of(record)
    if not found:
        return None
    has_evidence = any(event.get("evidence") for event in found)
    rows = [
        element(
            "tr",
            element("td", str(event["step"]), class_="n"),
            element(
                "td",
                element("b", str(event["name"]).replace("_", " ")),
                f" ({event.get('of', 'training')}): ",
                str(event["text"]),
            ),
            element("td", f"{brief(event['value'])} (limit {brief(event['limit'])})"),
            element("td", _DONE.get(str(event["action"]), str(event["action"]))),
            element("td", _evidence(event.get("evidence") or [])) if has_evidence else None,
        )
        for event in found
    ]
    names = ("step", "what", "value", "what was done", *(["for instance"] if has_evidence else []))
    head = element("tr", [element("th", name, class_="when") for name in names])
    return element(
        "div",
        element("h3", f"What the watch saw in {record.name}"),
        element("div", element("table", element("thead", head), element("tbody", rows)), class_="scroll"),
        element("p", f"What to do: {found[-1]['remedy']}.", class_="story"),
    )


def _evidence(answers: Sequence[Mapping[str, Any]]) -> list[Markup]:
    return [
        element(
            "p",
            element("span", str(answer["prompt"]), class_="quiet"),
            " → ",
            str(answer["answer"]) or "∅",
            f"  (score {brief(float(answer['score']))}, {answer['length']} tokens)",
        )
        for answer in answers
    ]
