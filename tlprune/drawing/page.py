"""The page around a figure: notes, filters, light and dark, in one file that asks for nothing from outside."""

from __future__ import annotations

from functools import cache
from html import escape
from pathlib import Path

from tlprune.drawing.figure import clean

SLIDER = (
    '<label><span>hide small |weight|</span><input type="range" id="threshold" min="0" max="0" step="1" '
    'aria-describedby="count"></label>'
)
COUNT = '<output id="count" for="threshold"></output>'
HINT = '<span id="hint">Click a box to see what is upstream and downstream of it.</span>'


def circuit_page(svg: str, *, title: str, weighted: bool) -> str:
    """A page that shows the figure of a circuit, with filters.

    Args:
        svg: the figure.
        title: of the page.
        weighted: whether edges have weights, which a slider filters by.
    """
    bar = f"{SLIDER * weighted}{COUNT}{HINT}"
    return _page(svg, title, bar, f"{_text('page.js')}{_text('circuit.js')}")


def chart_page(svg: str, *, title: str) -> str:
    """A page that shows a chart.

    Example:
        >>> chart_page("<svg/>", title="a < b").startswith("<!doctype html>")
        True
    """
    return _page(svg, title, '<span id="hint"></span>', _text("page.js"))


def _page(svg: str, title: str, bar: str, script: str) -> str:
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<title>{clean(title)}</title>\n'
        f"<style>\n{_text('page.css')}</style>\n</head>\n<body>\n"
        f'<div class="bar" role="toolbar" aria-label="What is shown">{bar}'
        f'<button id="theme" type="button" title="light or dark"></button></div>\n'
        f'<main>\n{svg}\n</main>\n<div id="tip" role="status"></div>\n'
        f"<script>\n(() => {{\n{script}}})();\n</script>\n</body>\n</html>\n"
    )


@cache
def _text(name: str) -> str:
    return (Path(__file__).parent / name).read_text(encoding="utf-8")


def frame(html: str, *, height: float) -> str:
    """The page as a frame in a notebook, where its styles and script cannot meet those of other cells."""
    return (
        f'<iframe srcdoc="{escape(html)}" sandbox="allow-scripts" style="width:100%;height:{height:.0f}px;border:0" '
        f'loading="lazy"></iframe>'
    )
