"""Curves in a plane as inline SVG: one quantity against another, with a dot for every measurement."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from duiqi.journal.numbers import brief
from duiqi.reports.markup import Markup, element
from duiqi.reports.svg import HEIGHT, WIDTH, Scale, at, axes

_ROOM_FOR_WORDS = 60


@dataclass(frozen=True)
class Dot:
    """One measurement."""

    x: float
    y: float
    hint: str
    """Shown when the pointer rests on it."""
    label: str = ""
    """Written beside it."""
    is_full: bool = False
    """Whether it stands out."""


@dataclass(frozen=True)
class Curve:
    """Measurements in the order in which they were made, joined by a line."""

    dots: Sequence[Dot]
    colour: int
    """Index into the palette of the page."""
    is_dashed: bool = False


def plane(curves: Sequence[Curve], *, description: str, x_name: str) -> Markup:
    """Draw curves over a common pair of axes."""
    dots = [dot for curve in curves for dot in curve.dots]
    scale = Scale(*_range([dot.x for dot in dots]), *_range([dot.y for dot in dots]))
    return element(
        "svg",
        element("title", description),
        axes(scale, whole=False),
        [_joined(curve, scale) for curve in curves],
        [_drawn(dot, curve.colour, scale) for curve in curves for dot in curve.dots],
        element("text", x_name, class_="tick", x=WIDTH - 8, y=HEIGHT - 28, text_anchor="end"),
        viewBox=f"0 0 {WIDTH} {HEIGHT}",
        role="img",
    )


def _joined(curve: Curve, scale: Scale) -> Markup:
    corners = "L".join(f"{at(scale.x(dot.x))},{at(scale.y(dot.y))}" for dot in curve.dots)
    return element("path", class_=f"{'evaluation' if curve.is_dashed else 'raw'} c{curve.colour}", d=f"M{corners}")


def _drawn(dot: Dot, colour: int, scale: Scale) -> list[Markup]:
    x, y = at(scale.x(dot.x)), at(scale.y(dot.y))
    is_at_the_edge = x > WIDTH - _ROOM_FOR_WORDS
    style = f"{'dot' if dot.is_full else 'ring'} c{colour}"
    circle = element("circle", class_=style, cx=x, cy=y, r=4 if dot.is_full else 2.4)
    shown = element("g", element("title", dot.hint), circle)
    if not dot.label:
        return [shown]
    beside = at(x - 7 if is_at_the_edge else x + 7)
    anchor = "end" if is_at_the_edge else "start"
    return [shown, element("text", dot.label, class_="tick", x=beside, y=at(y - 5), text_anchor=anchor)]


def _range(values: Sequence[float]) -> tuple[float, float]:
    """From a little below the least to a little above the greatest; from 0 where that is near."""
    low, high = min(values), max(values)
    room = (high - low) * 0.08 or abs(high) * 0.1 or 1.0
    return (0.0 if 0 <= low < room * 4 else low - room), high + room


def hint(step: int, x: float, y: float) -> str:
    """What the pointer shows of a measurement at a step.

    >>> hint(20, 1.25, 0.5)
    'step 20: 0.5 at 1.25'
    """
    return f"step {step}: {brief(y)} at {brief(x)}"
