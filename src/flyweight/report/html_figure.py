"""A figure of the page: an SVG with title, caption and alternative text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from markupsafe import Markup

# Inside HTML the parser knows the namespace of <svg>; without its address the page holds no address at all.
_NAMESPACES = (' xmlns="http://www.w3.org/2000/svg"', ' xmlns:xlink="http://www.w3.org/1999/xlink"')


@final
@dataclass(frozen=True, kw_only=True)
class HtmlFigure:
    """What the template's ``plate`` shows."""

    title: str
    caption: str
    alt: str
    svg: Markup


def html_figure(svg: str, *, title: str, caption: str, alt: str) -> HtmlFigure:
    """The figure of an SVG that `flyweight.report.figure.draw` drew."""
    for namespace in _NAMESPACES:
        svg = svg.replace(namespace, "", 1)
    # Markup is safe here: matplotlib wrote it, and its writer escapes the names in it.
    return HtmlFigure(title=title, caption=caption, alt=alt, svg=Markup(svg))
