"""The sheet of a chart: ground, title and caption around what it shows."""

from __future__ import annotations

from collections.abc import Iterable

from tlprune.drawing.figure import clean
from tlprune.drawing.style import FONT, dark_rules, paint


def sheet(inner: Iterable[str], *, width: float, height: float, title: str | None, caption: str) -> str:
    """The text of the SVG, in ASCII, with no reference to anything outside of it; as wide as its words need."""
    width = max(width, 40 + 6.6 * len(caption), 40 + 10.5 * len(title or ""))
    size = f'width="{width:.0f}" height="{height:.0f}"'
    look = f'{paint("ink")} x="20" y="32" font-size="17" font-weight="600"'
    heading = [f"<text {look}>{clean(title)}</text>"] if title else []
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" class="circuit chart" viewBox="0 0 {width:.0f} {height:.0f}" '
            f'{size} role="img" font-family="{FONT}" aria-label="{clean(title or "Chart")}: {clean(caption)}">',
            f"<style>{dark_rules()}</style>",
            f"<rect {paint('ground')} {size}/>",
            *heading,
            *inner,
            words("soft", 20, height - 14, caption, size=12),
            "</svg>",
        ]
    )


def words(look: str, x: float, y: float, text: str, *, anchor: str = "start", size: float = 11, turn: float = 0) -> str:
    """Words whose baseline is at ``y``, turned by some degrees."""
    turned = f' transform="rotate({turn:g} {x:.1f} {y:.1f})"' if turn else ""
    return (
        f'<text {paint(look)} x="{x:.1f}" y="{y:.1f}" font-size="{size:g}" text-anchor="{anchor}"{turned}>'
        f"{clean(text)}</text>"
    )
