"""Pictures as SVG text: the same calls give the same bytes."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from pathlib import Path

INK, PALE, BLUE, ORANGE, GREEN = "#222222", "#b8b8b8", "#0072b2", "#d55e00", "#00795a"
Point = tuple[float, float]


class Page:
    """A picture in the making, on white so that it can be read on any background."""

    def __init__(self, width: int, height: int, title: str) -> None:
        self.width, self.height, self.title = width, height, title
        self.parts: list[str] = []

    def line(self, points: Iterable[Point], colour: str = INK, width: float = 1.2, *, dash: str = "") -> None:
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        dashes = f' stroke-dasharray="{dash}"' if dash else ""
        self.parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="{width}"{dashes}/>')

    def dot(self, x: float, y: float, colour: str = INK, radius: float = 3, *, hollow: bool = False) -> None:
        look = f'fill="white" stroke="{colour}" stroke-width="2"' if hollow else f'fill="{colour}"'
        self.parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius}" {look}/>')

    def box(self, x: float, y: float, width: float, height: float, *, fill: str = "#f3f3f3", edge: str = INK) -> None:
        self.parts.append(
            f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" rx="2" fill="{fill}" '
            f'stroke="{edge}"/>'
        )

    def text(self, x: float, y: float, words: str, colour: str = INK, *, at: str = "start", size: int = 12) -> None:
        """Words whose baseline is at ``y``; ``_`` before a pair of braces lowers what is in them."""
        inner, lowered = "", False
        for piece in escape(words).replace("_{", "\0").replace("}", "\0").split("\0"):
            inner += f'<tspan dy="4" font-size="{size - 3}">{piece}</tspan><tspan dy="-4">&#8203;</tspan>' * lowered
            inner += piece * (not lowered)
            lowered = not lowered
        self.parts.append(
            f'<text x="{x:.1f}" y="{y:.1f}" fill="{colour}" text-anchor="{at}" font-size="{size}">{inner}</text>'
        )

    def write(self, path: Path) -> None:
        head = (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {self.width} {self.height}" width="{self.width}" '
            f'height="{self.height}" font-family="Helvetica, Arial, DejaVu Sans, sans-serif" role="img">'
        )
        ground = f'<rect width="{self.width}" height="{self.height}" fill="white"/>'
        lines = [head, f"<title>{escape(self.title)}</title>", ground, *self.parts, "</svg>"]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
