"""How numbers are written for people: short, the same everywhere, with nothing lost that matters."""

from __future__ import annotations

import math


def brief(value: float, *, digits: int = 4) -> str:
    """A number in about four digits, integers in full.

    >>> [brief(v) for v in (3, 12345, 0.69314718, 1284.7, 5e-6, -2.5, float("nan"))]
    ['3', '12,345', '0.6931', '1,285', '5e-06', '-2.5', 'nan']
    """
    if not math.isfinite(value):
        return str(float(value))
    if isinstance(value, int):
        return f"{value:,}"
    size = abs(value)
    if size >= 1000:
        return f"{value:,.0f}" if size < 1e7 else f"{value:.3g}"
    return f"{value:.{digits}g}" if size >= 1e-3 or value == 0 else f"{value:.2g}"


def duration(seconds: float) -> str:
    """A length of time.

    >>> [duration(s) for s in (0.42, 42, 200, 7260)]
    ['0.4 s', '42 s', '3 min 20 s', '2 h 01 min']
    """
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"
