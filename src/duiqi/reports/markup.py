"""HTML that is safe by construction: text is escaped when it enters an element, and only `Markup` is left alone."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape


class Markup(str):
    """Text that already is HTML."""

    __slots__ = ()


Child = str | None | Iterable["Child"]

_VOID = frozenset({"br", "input", "line", "path", "circle", "rect", "polyline"})


def element(name: str, /, *children: Child, **attributes: str | float | None) -> Markup:
    """An HTML or SVG element; children that are plain text are escaped, None and attributes that are None left out.

    A trailing underscore frees an attribute from being a Python keyword; other underscores become hyphens.

    >>> element("td", "a < b", class_="n")
    '<td class="n">a &lt; b</td>'
    """
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(f"{value:g}" if isinstance(value, float) else str(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    if name in _VOID:
        return Markup(f"<{name}{written}/>")
    return Markup(f"<{name}{written}>{join(children)}</{name}>")


def join(children: Iterable[Child]) -> Markup:
    """Children one after another, escaped where they are plain text.

    >>> join(["&", Markup("<br/>"), None, ["<"]])
    '&amp;<br/>&lt;'
    """
    return Markup("".join(_written(child) for child in children))


def _written(child: Child) -> str:
    if child is None:
        return ""
    if isinstance(child, Markup):
        return child
    return escape(child) if isinstance(child, str) else join(child)
