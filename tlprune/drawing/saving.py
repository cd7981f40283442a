"""From the text of a chart to a picture, saved where it is asked for."""

from __future__ import annotations

from pathlib import Path

from tlprune.drawing.page import chart_page
from tlprune.drawing.picture import Drawing


def charted(svg: str, path: str | Path | None, *, title: str) -> Drawing:
    """The drawing of a chart.

    Args:
        svg: the figure.
        path: where to save it as well, or nowhere.
        title: of its page.
    """
    drawing = Drawing(svg, chart_page(svg, title=title))
    if path is not None:
        drawing.save(path)
    return drawing
