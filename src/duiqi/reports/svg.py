"""Line charts as inline SVG, drawn without any library: axes, faint raw lines, smoothed lines, gaps for NaN."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from duiqi.journal.numbers import brief
from duiqi.reports.markup import Markup, element, join
from duiqi.reports.read import Series

WIDTH, HEIGHT = 340, 190
_LEFT, _RIGHT, _TOP, _BOTTOM = 44, 8, 10, 24
_MAX_POINTS = 300
_MIN_POINTS_TO_SMOOTH = 16
_MAX_SMOOTHING = 12.0
_SHARE_FOR_OUTLIERS = 0.02


@dataclass(frozen=True)
class Line:
    """One line of a chart."""

    label: str
    series: Series
    colour: int
    """Index into the palette of the page."""
    is_evaluation: bool = False
    """Evaluations are few and exact: drawn as joined dots, never smoothed."""


@dataclass(frozen=True)
class Scale:
    """Maps data to the drawing; values outside the range of y are cut at the frame."""

    x_low: float
    x_high: float
    y_low: float
    y_high: float

    def x(self, step: float) -> float:
        return _LEFT + (WIDTH - _LEFT - _RIGHT) * (step - self.x_low) / (self.x_high - self.x_low)

    def y(self, value: float) -> float:
        share = min(max((value - self.y_low) / (self.y_high - self.y_low), -0.02), 1.02)
        return HEIGHT - _BOTTOM - (HEIGHT - _TOP - _BOTTOM) * share


def chart(lines: Sequence[Line], *, description: str) -> Markup:
    """Draw lines over a common step axis; the numbers travel along in `data-lines` for the page's script."""
    drawn = [line for line in lines if line.series.finite]
    if not drawn:
        return element("p", "no finite value was logged", class_="quiet")
    scale = _scale_of(drawn)
    return element(
        "svg",
        element("title", description),
        axes(scale),
        [_curve(line, scale) for line in drawn],
        [_broken_points(line, scale) for line in lines],
        element("line", class_="cursor", y1=_TOP, y2=HEIGHT - _BOTTOM, visibility="hidden"),
        viewBox=f"0 0 {WIDTH} {HEIGHT}",
        role="img",
        data_lines=json.dumps([_for_the_script(line, scale) for line in drawn], ensure_ascii=False),
    )


def smooth(points: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    """The trend through noisy points: around each, a line fitted to neighbours that count less the farther they are.

    Unlike a running average it lags behind neither rise nor fall, and it meets both ends.

    >>> smooth([(1, 2.0), (2, 4.0), (3, 6.0)])
    [(1, 2.0), (2, 4.0), (3, 6.0)]
    """
    points = _condense(points)
    values = [value for _, value in points]
    width = min(max(2.0, len(values) / 12), _MAX_SMOOTHING)
    reach = math.ceil(4 * width)
    weights = {offset: math.exp(-abs(offset) / width) for offset in range(-reach, reach + 1)}
    trend: list[tuple[int, float]] = []
    for i, (step, _) in enumerate(points):
        near = [(o, weights[o], values[i + o]) for o in range(max(-reach, -i), min(reach, len(values) - 1 - i) + 1)]
        total = sum(w for _, w, _ in near)
        centre, mean = sum(o * w for o, w, _ in near) / total, sum(v * w for _, w, v in near) / total
        spread = sum(w * (o - centre) ** 2 for o, w, _ in near)
        slope = sum(w * (o - centre) * (v - mean) for o, w, v in near) / spread if spread else 0.0
        fitted = round(mean - slope * centre, 12)
        trend.append((step, min(max(fitted, min(values)), max(values))))
    return trend


def _condense(points: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    """Means of stretches where there are more points than the eye can tell apart."""
    stretch = math.ceil(len(points) / (2 * _MAX_POINTS))
    if stretch <= 1:
        return list(points)
    parts = [points[start : start + stretch] for start in range(0, len(points), stretch)]
    return [(part[-1][0], fmean(value for _, value in part)) for part in parts]


def ticks(low: float, high: float, *, count: int = 4) -> list[float]:
    """Round numbers between two ends, at least two.

    >>> ticks(0.13, 0.91)
    [0.2, 0.4, 0.6, 0.8]
    >>> ticks(0, 60)
    [0.0, 20.0, 40.0, 60.0]
    """
    rough = (high - low) / count
    unit = 10.0 ** math.floor(math.log10(rough))
    found: list[float] = []
    for factor in (10, 5, 2, 1, 0.5):
        step = factor * unit
        first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
        found = [float(f"{index * step:.12g}") for index in range(first, last + 1)]
        if factor * unit <= rough * 1.5 and len(found) >= 2:
            break
    return found


def thin(points: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    """At most a few hundred points that look the same: of every stretch, its lowest and its highest."""
    if len(points) <= _MAX_POINTS:
        return list(points)
    stretch = math.ceil(len(points) / (_MAX_POINTS // 2))
    kept: list[tuple[int, float]] = []
    for start in range(0, len(points), stretch):
        part = points[start : start + stretch]
        kept += sorted({min(part, key=lambda p: p[1]), max(part, key=lambda p: p[1])})
    return kept


def _scale_of(lines: Sequence[Line]) -> Scale:
    steps = [step for line in lines for step in line.series.steps]
    values = sorted(value for line in lines for _, value in line.series.finite)
    low, high = values[0], values[-1]
    margin = math.ceil(len(values) * _SHARE_FOR_OUTLIERS)
    usual = values[margin:-margin] if len(values) > 20 else values
    if high - low > 4 * (usual[-1] - usual[0]) > 0:  # a few wild points must not flatten the rest
        low, high = usual[0], usual[-1]
    room = (high - low) * 0.06 or abs(high) * 0.1 or 1.0
    floor = 0.0 if 0 <= low < room * 4 else low - room
    is_single_step = min(steps) == max(steps)
    return Scale(min(steps) - is_single_step, max(steps) + is_single_step, floor, high + room)


def axes(scale: Scale, *, whole: bool = True) -> Markup:
    """Grid, ticks and the line at the foot.

    Args:
        scale: Of the drawing.
        whole: Whether ticks of x are whole numbers, as steps are.
    """
    marks: list[Markup] = []
    for value in ticks(scale.y_low, scale.y_high):
        y = round(scale.y(value), 1)
        marks.append(element("line", class_="grid", x1=_LEFT, x2=WIDTH - _RIGHT, y1=y, y2=y))
        marks.append(element("text", _tick_label(value), class_="tick", x=_LEFT - 6, y=y + 3.5, text_anchor="end"))
    for value in ticks(scale.x_low, scale.x_high):
        if whole and not value.is_integer():
            continue
        x = round(scale.x(value), 1)
        anchor = "end" if x > WIDTH - _RIGHT - 12 else "middle"
        marks.append(element("text", _tick_label(value), class_="tick", x=x, y=HEIGHT - 7, text_anchor=anchor))
    bottom = HEIGHT - _BOTTOM
    marks.append(element("line", class_="axis", x1=_LEFT, x2=WIDTH - _RIGHT, y1=bottom, y2=bottom))
    return join(marks)


def _tick_label(value: float) -> str:
    return f"{value / 1000:g}k" if abs(value) >= 10_000 else brief(int(value) if value == int(value) else value)


def _curve(line: Line, scale: Scale) -> Markup:
    points = line.series.finite
    style = f"c{line.colour}"
    if line.is_evaluation or len(points) < _MIN_POINTS_TO_SMOOTH:
        dots = [element("circle", class_=f"dot {style}", cx=at(scale.x(s)), cy=at(scale.y(v)), r=2.2)
                for s, v in thin(points)] if len(points) < 40 else []  # fmt: skip
        kind = "evaluation" if line.is_evaluation else "smooth"
        return join([_path(line.series, scale, f"{kind} {style}"), dots])
    # A wild point must not pull its neighbours.
    trend = smooth([(s, min(max(v, scale.y_low), scale.y_high)) for s, v in points])
    smoothed = Series(tuple(s for s, _ in trend), tuple(v for _, v in trend))
    return join([_path(line.series, scale, f"raw {style}"), _path(smoothed, scale, f"smooth {style}")])


def _path(series: Series, scale: Scale, style: str) -> Markup:
    """A line that is interrupted where values are not finite."""
    stretches: list[list[tuple[int, float]]] = [[]]
    for step, value in zip(series.steps, series.values, strict=True):
        if math.isfinite(value):
            stretches[-1].append((step, value))
        elif stretches[-1]:
            stretches.append([])
    moves = []
    for stretch in stretches:
        corners = [f"{at(scale.x(s))},{at(scale.y(v))}" for s, v in thin(stretch)]
        if corners:
            moves.append("M" + "L".join(corners))
    return element("path", class_=style, d="".join(moves))


def _broken_points(line: Line, scale: Scale) -> list[Markup]:
    """A mark at the foot of the chart for every value that was not finite."""
    steps = [s for s, v in zip(line.series.steps, line.series.values, strict=True) if not math.isfinite(v)]
    return [
        element("text", "✕", class_="broken", x=at(scale.x(step)), y=HEIGHT - _BOTTOM - 3, text_anchor="middle")
        for step in steps[:20]
    ]


def _for_the_script(line: Line, scale: Scale) -> dict[str, object]:
    points = thin(line.series.finite)
    return {
        "label": line.label,
        "colour": line.colour,
        "points": [[at(scale.x(s)), at(scale.y(v)), s, brief(v)] for s, v in points],
    }


def at(coordinate: float) -> float:
    """A coordinate as short as the eye needs it."""
    return round(coordinate, 1)
