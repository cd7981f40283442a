"""Charts of lines: one or several planes below each other, as the text of one SVG."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from tlprune.drawing.axis import Axis, number_text
from tlprune.drawing.figure import clean
from tlprune.drawing.sheet import sheet, words
from tlprune.drawing.style import paint

HUES = ("q", "logits", "v", "mlp", "k", "several")
WIDTH, HEIGHT, LEFT, RIGHT, GAP = 720.0, 220.0, 74.0, 26.0, 58.0
MOST_MARKS = 300

Point = tuple[float, float]


@dataclass(frozen=True)
class Line:
    """One line of a plane.

    Attributes:
        name: in the legend.
        points: from left to right.
        bounds: lower and upper bound at each point, or nothing.
        look: a line, a dashed line, or dots alone.
    """

    name: str
    points: tuple[Point, ...]
    bounds: tuple[Point, ...] = ()
    look: Literal["line", "dashed", "dots"] = "line"


@dataclass(frozen=True)
class Plane:
    """Lines over common axes.

    Attributes:
        lines: what is drawn.
        across: what the horizontal axis counts.
        up: what the vertical axis counts.
        log: which axes are logarithmic: ``"x"``, ``"y"``, ``"xy"`` or none.
    """

    lines: tuple[Line, ...]
    across: str
    up: str
    log: str = ""


def plane_chart(planes: Sequence[Plane], *, title: str | None, caption: str) -> str:
    """The SVG of planes below each other."""
    top = 52.0 if title else 22.0
    inner: list[str] = []
    for plane in planes:
        inner += _plane(plane, top + 34)
        top += 34 + HEIGHT + GAP
    return sheet(inner, width=WIDTH, height=top + 20, title=title, caption=caption)


def _plane(plane: Plane, top: float) -> Iterator[str]:
    x, y = _axes(plane, top)
    yield from _legend(plane.lines, top - 22)
    yield from _grid(plane, x, y)
    for place, line in enumerate(plane.lines):
        yield from _line(line, place, x, y)


def _axes(plane: Plane, top: float) -> tuple[Axis, Axis]:
    points = [point for line in plane.lines for point in line.points]
    heights = [y for _, y in points] + [bound for line in plane.lines for pair in line.bounds for bound in pair]
    across = Axis.over((x for x, _ in points), start=LEFT + 8, end=WIDTH - RIGHT - 8, log="x" in plane.log)
    return across, Axis.over(heights, start=top + HEIGHT, end=top, log="y" in plane.log)


def _grid(plane: Plane, x: Axis, y: Axis) -> Iterator[str]:
    left, right = LEFT, WIDTH - RIGHT
    size = f'width="{right - left:g}" height="{y.start - y.end:g}"'
    yield f'<rect {paint("band")} x="{left:g}" y="{y.end:g}" {size} rx="6"/>'
    for tick in y.ticks():
        at = y.place(tick)
        yield f'<path {paint("grid")} d="M{left:g} {at:.1f}H{right:g}"/>'
        yield words("soft", left - 9, at + 4, number_text(tick), anchor="end")
    for tick in x.ticks():
        at = x.place(tick)
        yield f'<path {paint("grid")} d="M{at:.1f} {y.end:g}V{y.start:g}"/>'
        yield words("soft", at, y.start + 17, number_text(tick), anchor="middle")
    yield words("soft", (left + right) / 2, y.start + 36, plane.across, anchor="middle", size=12)
    middle = (y.start + y.end) / 2
    yield words("soft", 16, middle, plane.up, anchor="middle", size=12, turn=-90)


def _line(line: Line, place: int, x: Axis, y: Axis) -> Iterator[str]:
    hue, places = HUES[place % len(HUES)], [(x.place(a), y.place(b)) for a, b in line.points]
    if line.bounds and len(places) > 1:
        low, high = (
            [(at, y.place(own[end])) for (at, _), own in zip(places, line.bounds, strict=True)] for end in (0, 1)
        )
        around = f"{_path([*low, *high[::-1]])}Z"
        yield f'<path {paint(f"mark-{hue}")} data-bounds="{clean(line.name)}" fill-opacity="0.16" d="{around}"/>'
    if line.look != "dots":
        yield (
            f'<path {paint(f"part-{hue}")} data-line="{clean(line.name)}" fill="none" stroke-width="1.8" '
            f'stroke-linejoin="round"{_dashes(line, place)} d="{_path(places)}"/>'
        )
    yield from _marks(line, hue, places)


def _dashes(line: Line, place: int) -> str:
    """Dashed by its look, or because its colour has been used before."""
    return ' stroke-dasharray="5 4"' if line.look == "dashed" or place >= len(HUES) else ""


def _marks(line: Line, hue: str, places: Sequence[Point]) -> Iterator[str]:
    """A dot at each point, to be seen where there are few and else only to be pointed at."""
    seen = line.look == "dots" or len(places) <= 40
    step = max(1, len(places) // MOST_MARKS)
    for number in range(0, len(places), step):
        (across, up), (at, height) = line.points[number], places[number]
        bounds = line.bounds[number] if line.bounds else ()
        within = f" [{', '.join(number_text(bound) for bound in bounds)}]" if bounds else ""
        note = clean(f"{line.name}\n{number_text(across)}: {number_text(up)}{within}")
        opacity = "" if seen else ' fill-opacity="0"'
        yield (
            f'<g class="mark"><title>{note}</title><circle {paint(f"mark-{hue}")} cx="{at:.1f}" cy="{height:.1f}" '
            f'r="{3 if seen else 5}"{opacity}/></g>'
        )


def _legend(lines: Iterable[Line], y: float) -> Iterator[str]:
    x = LEFT
    for place, line in enumerate(lines):
        hue = HUES[place % len(HUES)]
        if line.look == "dots":
            yield f'<circle {paint(f"mark-{hue}")} cx="{x + 11:.0f}" cy="{y + 6:.0f}" r="3"/>'
        else:
            yield f'<path {paint(f"part-{hue}")} stroke-width="2.5"{_dashes(line, place)} d="M{x:.0f} {y + 6:.0f}h22"/>'
        yield words("soft", x + 28, y + 10, line.name, size=12)
        x += 28 + 6.6 * len(line.name) + 20


def _path(points: Iterable[Point]) -> str:
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
