"""Charts of cells: a table whose shares are colours, as the text of one SVG."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from tlprune.drawing.figure import clean
from tlprune.drawing.sheet import sheet, words
from tlprune.drawing.style import paint

LEFT, HIGH = 92.0, 26.0
STRONGEST = 0.62
"""The opacity of a whole share, under which words are still read in light and in dark."""


@dataclass(frozen=True)
class Cell:
    """One cell.

    Attributes:
        share: how strongly it is coloured, in [0, 1].
        text: what is written into it.
        note: what is told under the pointer.
    """

    share: float
    text: str
    note: str


def cell_chart(
    cells: Mapping[tuple[str, str], Cell],
    rows: Sequence[str],
    columns: Sequence[str],
    *,
    title: str | None,
    caption: str,
) -> str:
    """The SVG of a table.

    Args:
        cells: by row and column; places without one are left out.
        rows: from top to bottom.
        columns: from left to right; an empty one is a gap.
        title: above.
        caption: below.
    """
    top, wide = 84.0 if title else 54.0, 10.0 + 7.0 * max([4, *(len(cell.text) for cell in cells.values())])
    edges = _edges(columns, wide)
    inner = [words("soft", (a + b) / 2, top - 9, name, anchor="middle") for name, (a, b) in edges.items() if name]
    for place, row in enumerate(rows):
        y = top + place * HIGH
        inner.append(words("soft", LEFT - 10, y + HIGH / 2 + 4, row, anchor="end"))
        inner += (line for name in columns if (row, name) in cells for line in _cell(cells[row, name], edges[name], y))
    height = top + len(rows) * HIGH + 44
    return sheet(
        inner, width=max(420.0, max(b for _, b in edges.values()) + 24), height=height, title=title, caption=caption
    )


def _edges(columns: Sequence[str], wide: float) -> dict[str, tuple[float, float]]:
    result, x = {}, LEFT
    for name in columns:
        width = max(wide, 7.0 * len(name) + 6) if name else 12.0
        result[name] = (x, x + width)
        x += width
    return result


def _cell(cell: Cell, ends: tuple[float, float], y: float) -> Iterator[str]:
    (left, right), look = ends, "ink" if cell.share else "soft"
    place = f'x="{left + 1:.1f}" y="{y + 1:.1f}" width="{right - left - 2:.1f}" height="{HIGH - 2:.1f}" rx="4"'
    yield (
        f'<g class="mark"><title>{clean(cell.note)}</title><rect {paint("band")} {place}/>'
        f'<rect {paint("mark-q")} fill-opacity="{STRONGEST * cell.share:.3f}" {place}/>'
        f"{words(look, (left + right) / 2, y + HIGH / 2 + 4, cell.text, anchor='middle')}</g>"
    )
